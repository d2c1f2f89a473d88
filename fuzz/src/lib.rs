//! What a fuzzer runs with any bytes at all: each module has a function `run`, which panics where the
//! program would do wrong.
//!
//! - `judge`: frames, by the logic that ships and by the model
//! - `config`: a configuration, and what becomes of it
//! - `feed`: what a vendor's address answers
//! - `pages`: pages put together from pieces, against a model of the visible text
//! - `transfer`: how an answer is sent, whole or cut
//! - `seeds`: inputs to begin with, made here, so that no corpus is kept
//!
//! The programs are in `bin`, and the feature `libfuzzer` builds them. Knows nothing of how they are
//! built and started: that is `cargo xtask fuzz`.

pub mod config;
pub mod feed;
pub mod judge;
pub mod pages;
pub mod seeds;
pub mod transfer;
