//! The `allowlist` program as a library: the command line, the daemon, the API on its socket, and reports.
//!
//! - [`cli`] has the arguments and [`command`] the commands; [`config`] reads the configuration
//! - [`daemon`] drives lists, tables and kernel; [`control`] is its socket and client, [`session`] finds the login that
//!   the lockout check protects
//! - [`report`] prints the state of the filter as text and JSON, [`export`] the prefixes in the formats of other firewalls
//! - [`journal`], [`event_log`] and [`audit`] are files of the state directory; [`generation_meta`] stores the names of
//!   sources and services in the kernel
//! - [`effective`] has the state from which verdicts follow, and the plan of a change from one state to the next
//! - [`hook`] and [`notify`] emit events to a command, a webhook and systemd
//!
//! Lists are in `allowlist-lists`, policies in `allowlist-policy`, and everything that touches the kernel's tables is in
//! `allowlist-dataplane`.
//!
//! # Examples
//!
//! Read a configuration, as `allowlist check` does:
//!
//! ```
//! use std::path::Path;
//!
//! use allowlist_user::config::Config;
//!
//! let text = r#"
//!     [services.web]
//!     ports = ["tcp/443"]
//!     allow = ["office"]
//!     [sources.office]
//!     prefixes = ["203.0.113.0/24"]
//! "#;
//! let config = Config::parse(text, Path::new("/etc/allowlist/allowlist.toml"))?;
//! assert_eq!(config.policy.services[0].name, "web");
//!
//! let error = Config::parse("mod = \"observe\"", Path::new("a.toml")).expect_err("no such key");
//! assert!(error.to_string().contains("mode"), "{error}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub mod additions;
pub mod audit;
pub mod cli;
pub mod command;
pub mod config;
pub mod control;
pub mod daemon;
pub mod effective;
pub mod error_code;
pub mod event_log;
pub mod export;
pub mod generation_meta;
pub mod hook;
pub mod journal;
pub mod logger;
pub mod notify;
pub mod operation;
pub mod report;
pub mod session;
pub mod time;
pub mod trusted_paths;
mod worker;
