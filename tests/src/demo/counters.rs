//! The kernel's counters by verdict and reason. `probe` interprets their differences.

use std::path::Path;

use allowlist_common::abi::Counters;
use allowlist_common::verdict::{Reason, Verdict};
use allowlist_dataplane::View;
use anyhow::Context;

use super::fixtures::Decision;

/// Reads one interface's counters from the pinned maps.
pub(crate) fn read(pin_dir: &Path, interface: &str) -> anyhow::Result<Counters> {
    let mut counters = View::open(pin_dir)?.counters()?;
    counters.remove(interface).with_context(|| {
        format!("the filter has no counters for {interface}, so it is not attached there")
    })
}

/// Returns all pairs of verdict and reason with their counts.
pub(crate) fn all(counters: &Counters) -> impl Iterator<Item = (Decision, u64)> {
    let decisions = Verdict::ALL
        .into_iter()
        .flat_map(|verdict| Reason::ALL.map(|reason| Decision { verdict, reason }));
    decisions.map(|decision| (decision, counters.get(decision.verdict, decision.reason)))
}

/// Returns the decisions that were counted between two readings.
pub(crate) fn between(before: &Counters, after: &Counters) -> Vec<Decision> {
    all(before)
        .zip(all(after))
        .filter_map(|((decision, before), (_, after))| (after > before).then_some(decision))
        .collect()
}
