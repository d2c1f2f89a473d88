//! Frames against the model: see `allowlist_fuzz::judge`.
#![no_main]

use allowlist_fuzz::{judge, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: seeds::write(&seeds::judge()),
    |input| judge::run(input)
);
