//! The `allowlist` program as a library: fetches the lists of the sources and keeps the kernel's tables up to date.
//!
//! Data flows one way: `source` -> `feed` -> `policy` -> `compile` -> `dataplane` -> `report`.
//! `daemon` drives them; `cli` has the arguments. No module calls one on its left.

pub mod additions;
pub mod audit;
pub mod bounded;
pub mod catalogue;
pub mod cli;
pub mod command;
pub mod compile;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod difference;
pub mod driver;
pub mod effective;
pub mod error_code;
pub mod event;
pub mod explain;
pub mod export;
pub mod feed;
pub mod gate;
pub mod gather;
pub mod hints;
pub mod history;
pub mod hook;
pub mod interface;
pub mod journal;
pub mod lines;
pub mod list_update;
pub mod lists;
pub mod lock;
pub mod logger;
pub mod netlink;
pub mod notify;
pub mod past;
pub mod policy;
pub mod record;
pub mod rejected;
pub mod report;
pub mod session;
pub mod sockets;
pub mod source;
pub mod state;
pub mod text;
pub mod time;
pub mod trust;
