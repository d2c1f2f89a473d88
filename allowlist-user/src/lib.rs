//! The loader: keeps what the kernel program looks up in step with what the sources publish.
//!
//! Data flows one way: `source` -> `feed` -> `policy` -> `compile` -> `dataplane` -> `report`.
//! `daemon` drives it; `cli` says what was typed. Nothing on the right calls anything on its left.

pub mod catalogue;
pub mod cli;
pub mod command;
pub mod compile;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod export;
pub mod feed;
pub mod gather;
pub mod interface;
pub mod policy;
pub mod record;
pub mod report;
pub mod source;
pub mod state;
