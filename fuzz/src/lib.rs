//! The fuzz targets: each module has a function `run`, which takes arbitrary bytes and panics if the program
//! misbehaves.
//!
//! - `judge`: frames, judged by the product and by the model
//! - `config`: configuration files
//! - `dns`: DNS messages, compared with another reader
//! - `feed`: response bodies of providers
//! - `pages`: generated web pages, compared with a model of the visible text
//! - `transfer`: HTTP transfers, complete or truncated
//! - `seeds`: initial inputs, which are generated, so that the repository has no corpus
//!
//! The feature `libfuzzer` builds the programs in `bin`. `cargo xtask fuzz` builds and runs them; this crate does not
//! know how.

pub mod config;
pub mod dns;
pub mod feed;
pub mod judge;
pub mod pages;
pub mod seeds;
pub mod transfer;
