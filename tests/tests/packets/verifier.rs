//! The number of instructions that the verifier processes for each program, on the kernel of the tests.

use allowlist_common::abi::PROGRAM;
use allowlist_dataplane::verify;
use allowlist_tests::{require_root, skip};

/// A quarter of the kernel's limit. Older verifiers process more instructions for the same program (Linux 6.1: 200,137),
/// and a change that doubles the number should fail this test long before a kernel refuses the program.
const LIMIT: u32 = 250_000;
/// The limit with `--trace`, whose log output adds many paths (Linux 6.1: 604,252).
const LIMIT_WITH_TRACE: u32 = 700_000;

#[test]
fn verified_instructions_are_below_a_quarter_of_the_limit() {
    require_root!();
    for (trace, limit) in [(false, LIMIT), (true, LIMIT_WITH_TRACE)] {
        let verified = verify(trace).expect("the programs load");
        assert_eq!(verified.len(), 11, "{verified:?}");
        for one in verified {
            let Some(count) = one.verified_instructions else {
                skip!(
                    "this kernel does not report the number of verified instructions (added in 5.16)"
                );
            };
            println!(
                "{}: {count} verified instructions, trace {trace}",
                one.program
            );
            assert!(count <= limit, "{one:?}, trace {trace}");
        }
    }
}

/// The verifier does not process the trace code if tracing is off, and the kernel removes unprocessed code.
#[test]
fn a_trace_that_is_off_is_removed_at_load() {
    require_root!();
    let [off, on] = [false, true].map(|trace| {
        let verified = verify(trace).expect("the programs load");
        let mut programs = verified.iter();
        let filter = programs.find(|one| one.program == PROGRAM);
        filter.expect("it is loaded").verified_instructions
    });
    let (Some(off), Some(on)) = (off, on) else {
        skip!("this kernel does not report the number of verified instructions (added in 5.16)");
    };
    assert!(
        off + 10_000 < on,
        "{off} without a trace, {on} with a trace"
    );
}
