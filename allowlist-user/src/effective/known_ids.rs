//! The ids by which the kernel counts and stores addresses, with their names.

use allowlist_policy::compile::IdTable;

/// The ids under which the kernel counts now, with the names of the sources, services and egress rules behind each. The
/// next compilation keeps these ids, so that the counters continue.
#[derive(Clone, Debug, Default)]
pub struct KnownIds {
    /// The ids of the counters of packets.
    pub packets: IdTable,
    /// The ids of the counters of the egress policy.
    pub egress: IdTable,
}

impl KnownIds {
    /// Returns the ids of names alone: the kernel has addresses by them, and these are no counters that can restart.
    pub(super) fn only_names(&self) -> Self {
        let names = self.egress.names.clone();
        Self {
            packets: IdTable::default(),
            egress: IdTable {
                names,
                ..IdTable::default()
            },
        }
    }
}
