//! Services, sources and rules of allowlist, and their meaning for a packet.
//!
//! - [`Policy`], [`Source`], [`Format`] and the other types of the root are the contents of a configuration
//! - [`compile`] makes the tables of a generation from a policy and the lists of its sources
//! - [`explain`] gives the verdict of compiled tables for a packet, [`lockout`] refuses a change that would cut a login
//! - [`difference`] compares lists
//! - [`error_code`] has the stable identifiers of errors, [`hints`] the suggestions in messages, and [`text`] escapes
//!   foreign text
//!
//! Pure: uses neither files, the network, the clock nor the kernel.
//!
//! # Examples
//!
//! Compile a policy with one service and one source, and get the verdict for two packets:
//!
//! ```
//! use allowlist_policy::compile::{IdTable, compile};
//! use allowlist_policy::explain::{Judge, Target};
//! use allowlist_policy::{Feed, Mode, Origin, Policy, Ports, Rules, Service, Snapshot, Source};
//!
//! let office = vec!["203.0.113.0/24".parse()?];
//! let policy = Policy {
//!     services: vec![Service {
//!         name: "web".to_owned(),
//!         ports: vec!["tcp/443".parse::<Ports>()?],
//!         interfaces: Vec::new(),
//!         allow: vec!["office".to_owned()],
//!     }],
//!     sources: vec![Source::new("office", Origin::Prefixes(office.clone()))],
//!     egress: None,
//! };
//! let mut lists = Snapshot::default();
//! lists.insert("office".to_owned(), Feed::new(office, "2026-11-30T00:00Z".parse()?).into());
//! let tables = compile(&policy, &lists, 1000, &IdTable::default())?;
//!
//! let rules = Rules::default();
//! let judge = Judge::new(&tables, Mode::Enforce, &rules);
//! let passes = |source: &str| {
//!     let source = source.parse().expect("an address");
//!     judge.on("eth0").lets_through(&Target::Tcp(443).packet(source))
//! };
//! assert!(passes("203.0.113.7"));
//! assert!(!passes("198.51.100.7"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub mod compile;
pub mod difference;
pub mod error_code;
pub mod explain;
pub mod hints;
pub mod lockout;
mod policy;
pub mod text;

pub use policy::{
    Answer, AtStart, Column, Condition, Csv, Direction, Egress, EgressRule, Engine, Family, Feed,
    Fetched, Format, Gate, GracePrefix, Http, Item, Json, Keep, Lines, Lookup, MAX_NAME_BYTES,
    Mode, Origin, Page, PastChange, Pattern, PerFamily, Policy, Ports, Refusal, ReturnTraffic,
    Rules, STARTED_UNITS, Secret, Select, Service, Snapshot, Source, UnitPlace, Validator, Verdict,
    Xml, is_loopback, is_name, public_url,
};
