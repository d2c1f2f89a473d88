//! What the verifier has to walk for each program, on the kernel that the tests run on.

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
