//! Configurations: see `allowlist_fuzz::config`.
#![no_main]

use allowlist_fuzz::{config, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: seeds::write(&seeds::config()),
    |input| config::run(input)
);
