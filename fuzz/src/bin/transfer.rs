//! Transfers of lists: see `allowlist_fuzz::transfer`.
#![no_main]

use allowlist_fuzz::{seeds, transfer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: seeds::write(&seeds::transfer()),
    |input| transfer::run(input)
);
