//! The plan of a change: the differences that reports show, and the writes to the kernel. Pure.
//!
//! Invariant: applying the writes of a plan from the state `old` makes the kernel judge every packet by the state `new`.

use std::sync::Arc;

use allowlist_policy::compile::CompileError;
use allowlist_policy::{Egress, Feed, Mode, Origin};
use jiff::Timestamp;

use super::{Compiled, EffectiveState, KnownIds, difference};
use crate::config::Config;

/// The change from one effective state to another.
#[derive(Clone)]
pub struct Plan {
    /// A line for each difference that reports show; empty if and only if `status`, `list` and `explain` stay the same.
    pub changes: Vec<String>,
    /// The writes to the kernel.
    pub writes: KernelWrites,
}

/// The writes to the kernel that activate a state.
#[derive(Clone)]
pub enum KernelWrites {
    /// The kernel judges by the new state already.
    Nothing,
    /// One store of the control word, which sets the modes.
    Mode,
    /// A new generation.
    Generation {
        /// The tables of the new generation.
        compiled: Compiled,
        /// The parts of the kernel's state that the generation concerns.
        scope: Scope,
    },
}

/// The parts of the kernel's state that a new generation concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The tables and the control word.
    Tables,
    /// The attached interfaces, their programs and the flow tables as well.
    Interfaces {
        /// Whether the program is replaced on interfaces that have it already.
        renews: bool,
    },
}

/// Returns the plan of the change from the state `old` to the state `new`.
///
/// `known` has the ids of the kernel's counters, which the new tables keep. `index_of` returns the index of the
/// interface with a name. With `always`, a generation is published even if the tables are the same, such as after an
/// interface was replaced. Added prefixes that have expired at `now` cause no line in [`Plan::changes`].
///
/// # Errors
/// Fails if the lists do not fit the tables.
pub fn plan(
    old: &EffectiveState,
    new: &EffectiveState,
    always: bool,
    known: &KnownIds,
    index_of: impl Fn(&str) -> Option<u32>,
    now: Timestamp,
) -> Result<Plan, CompileError> {
    let writes = if always || !has_same_tables(old, new) || scope(old, new) != Scope::Tables {
        KernelWrites::Generation {
            compiled: new.compile(known, index_of)?,
            scope: scope(old, new),
        }
    } else if old.mode != new.mode || old.egress_mode != new.egress_mode {
        KernelWrites::Mode
    } else {
        KernelWrites::Nothing
    };
    Ok(Plan {
        changes: difference(old, new, now),
        writes,
    })
}

/// Returns whether both states compile to the same tables and the same control word, apart from the mode.
fn has_same_tables(old: &EffectiveState, new: &EffectiveState) -> bool {
    let (before, after) = (&old.config, &new.config);
    let missing = new.missing();
    old.policy.services == new.policy.services
        && has_same_egress(old, new)
        && has_same_names(old, new)
        && before.rules == after.rules
        && before.max_prefixes == after.max_prefixes
        && old.missing() == missing
        && (missing.is_empty() || before.at_start == after.at_start)
        && new.policy.used_sources().all(|source| {
            let [before, after] = [old, new].map(|state| state.sources.feeds().get(&source.name));
            is_active_alike(before, after)
        })
}

/// Returns whether both states have the same egress policy, apart from its mode.
fn has_same_egress(old: &EffectiveState, new: &EffectiveState) -> bool {
    let [old, new] = [old, new].map(|state| {
        let egress = state.policy.egress.clone();
        egress.map(|egress| Egress {
            mode: Mode::default(),
            ..egress
        })
    });
    old == new
}

/// Returns whether both states learn the addresses of the same names, for the same rules: the names are in the tables,
/// and not in the lists.
fn has_same_names(old: &EffectiveState, new: &EffectiveState) -> bool {
    let [old, new] = [old, new].map(|state| {
        let Some(egress) = &state.policy.egress else {
            return Vec::new();
        };
        let used = state.policy.sources.iter();
        let used = used.filter(|source| egress.user_of(source).is_some());
        used.filter_map(|source| match &source.origin {
            Origin::Names(lookup) if lookup.believes_answers => Some((
                &source.name,
                lookup.patterns(),
                source.gate.allow_special_use,
            )),
            _ => None,
        })
        .collect()
    });
    old == new
}

/// Returns whether two lists have the same active prefixes, or both states have no list.
fn is_active_alike(old: Option<&Arc<Feed>>, new: Option<&Arc<Feed>>) -> bool {
    match (old, new) {
        // Usually a list is the same, or has been fetched again without a difference.
        (Some(old), Some(new)) if Arc::ptr_eq(old, new) => true,
        (Some(old), Some(new)) if old.grace.is_empty() && new.grace.is_empty() => {
            old.prefixes == new.prefixes
        }
        (Some(old), Some(new)) => old.sorted_active() == new.sorted_active(),
        (old, new) => old.is_none() && new.is_none(),
    }
}

fn scope(old: &EffectiveState, new: &EffectiveState) -> Scope {
    let (before, after) = (&old.config, &new.config);
    let renews = tracking(before) != tracking(after) || before.attach != after.attach;
    if renews || before.interfaces != after.interfaces {
        Scope::Interfaces { renews }
    } else {
        Scope::Tables
    }
}

/// Returns the maximum number of tracked flows; `None` if the configuration tracks no flows.
pub(crate) fn tracking(config: &Config) -> Option<u32> {
    config.rules.tracks().then_some(config.max_flows)
}
