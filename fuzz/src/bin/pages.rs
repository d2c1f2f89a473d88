//! Pages: see `allowlist_fuzz::pages`.
#![no_main]

use allowlist_fuzz::{pages, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: seeds::write(&seeds::pages()),
    |input| pages::run(input)
);
