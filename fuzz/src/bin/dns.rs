//! DNS messages against another reader: see `allowlist_fuzz::dns`.
#![no_main]

use allowlist_fuzz::{dns, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: seeds::write(&seeds::dns()),
    |input: &[u8]| {
        dns::run(input);
    }
);
