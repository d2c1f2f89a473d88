//! The number of instructions that the verifier processes for each program, on the kernel of the tests.

use allowlist_tests::{require_root, skip};
use allowlist_user::dataplane::verify;

/// A fifth of the kernel's limit: older verifiers walk more for the same program, and a change that
/// doubles the walk should be noticed long before a kernel refuses it.
const MOST: u32 = 200_000;
/// With `--trace`, which is for looking closely: its log has a path for each word that it prints.
const MOST_TRACING: u32 = 600_000;

#[test]
fn the_verifier_walks_no_more_than_a_fifth_of_its_limit() {
    require_root!();
    for (trace, most) in [(false, MOST), (true, MOST_TRACING)] {
        let verified = verify(trace).expect("the kernel takes the programs");
        assert_eq!(verified.len(), 2, "{verified:?}");
        for one in verified {
            let Some(walked) = one.verified_instructions else {
                skip!("this kernel does not tell what its verifier walked (5.16 does)");
            };
            println!("{}: {walked} walked, trace {trace}", one.program);
            assert!(walked <= most, "{one:?}, trace {trace}");
        }
    }
}

/// The verifier does not process the trace code if tracing is off, and the kernel removes unprocessed code.
#[test]
fn a_trace_that_is_off_is_removed_at_load() {
    require_root!();
    let [off, on] = [false, true].map(|trace| {
        let verified = verify(trace).expect("the kernel takes the programs");
        verified[0].verified_instructions
    });
    let (Some(off), Some(on)) = (off, on) else {
        skip!("this kernel does not tell what its verifier walked (5.16 does)");
    };
    assert!(off + 10_000 < on, "{off} without a trace, {on} with");
}
