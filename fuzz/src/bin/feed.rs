//! Providers' lists: see `allowlist_fuzz::feed`.
#![no_main]

use allowlist_fuzz::{feed, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: seeds::write(&seeds::feed()),
    |input| feed::run(input)
);
