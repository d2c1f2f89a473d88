//! Files that hang, grow without limit, are damaged, or belong to others.
//!
//! - [`bounded`] reads and writes files within limits of size and time
//! - [`checksum`] adds a checksum to bytes, and verifies it
//! - [`trust`] decides whether other users could change the target of a path
//! - [`lines`] is an append-only file of lines that is rotated
//! - [`lock`] finds the process that holds the lock of a file
//!
//! Knows neither lists nor the kernel's tables.
//!
//! # Examples
//!
//! Read a file of at most 1 KiB; a FIFO, a larger file or a file system that hangs is an error:
//!
//! ```
//! use std::time::Duration;
//!
//! use allowlist_files::bounded::{Open, Owner};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("list.txt");
//! std::fs::write(&path, "203.0.113.0/24\n")?;
//!
//! let open = Open {
//!     max_bytes: 1024,
//!     timeout: Duration::from_secs(60),
//!     follows_links: false,
//!     owner: Owner::Any,
//!     is_steady: false,
//! };
//! assert_eq!(open.read(&path)?, b"203.0.113.0/24\n");
//! assert!(Open { max_bytes: 4, ..open }.read(&path).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub mod bounded;
pub mod checksum;
pub mod lines;
pub mod lock;
pub mod trust;
