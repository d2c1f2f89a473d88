//! The lists of the sources: fetch, parse, gate, state.
//!
//! Data flows one way: [`source`] fetches bytes, [`feed`] parses them to prefixes, [`gate`] accepts or rejects the list,
//! [`list_update`] makes the next active list, [`states`] keeps the state of each source, [`state`] the files of
//! the last-good lists.
//! [`gather`] fetches many sources at once, [`past`] restores earlier lists for the gate, [`rejected`] the lists that
//! wait for the operator, [`event`] is a line of the history, and [`catalogue`] has the known providers.
//!
//! The only user of an HTTP client, a resolver and an HTML parser. Does not know services, ports or the kernel.
//!
//! # Examples
//!
//! Parse a list, and let the gate compare it with the active one:
//!
//! ```
//! use allowlist_lists::{feed, gate};
//! use allowlist_policy::{Format, Http, Origin, Source};
//!
//! let today = "2026-11-30".parse()?;
//! let list = feed::parse(&Format::Text, b"192.30.252.0/22\n185.199.108.7\n", today)?;
//! assert_eq!(list.prefixes.len(), 2);
//!
//! let url = "https://vendor.example/ips.txt".parse()?;
//! let source = Source::new("vendor", Origin::Http(Http::new(vec![url], Format::Text)));
//! assert_eq!(gate::judge(&source, None, &list.prefixes, false), Ok(()));
//!
//! // A list that opens half of the Internet is rejected.
//! let wide = feed::parse(&Format::Text, b"0.0.0.0/1\n", today)?;
//! assert!(gate::judge(&source, None, &wide.prefixes, false).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub mod catalogue;
pub mod event;
pub mod feed;
pub mod gate;
pub mod gather;
pub mod list_update;
pub mod past;
pub mod rejected;
pub mod source;
pub mod state;
pub mod states;
