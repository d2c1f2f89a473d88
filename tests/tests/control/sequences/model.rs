//! The model of a host's policies: what a daemon must do with each operation, without lists of vendors and without time.

use std::collections::BTreeSet;

use super::Operation;

/// The mode of each variant of the configuration: whether it observes.
pub(super) const OBSERVES: [bool; 4] = [false, false, true, false];

/// A policy: the variant of the configuration, the added prefixes with their services, and the mode set by command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) config: usize,
    pub(super) added: BTreeSet<(u8, u8)>,
    pub(super) observes_by_command: Option<bool>,
    /// The variant of the configuration file that is ignored, since its change was rolled back.
    suppressed: Option<usize>,
}

impl Policy {
    pub(super) fn observes(&self) -> bool {
        self.observes_by_command.unwrap_or(OBSERVES[self.config])
    }

    /// Returns the policy with another configuration; the mode by command ends if the configured mode differs.
    fn with_config(&self, config: usize) -> Self {
        let is_same = OBSERVES[config] == OBSERVES[self.config];
        Self {
            config,
            observes_by_command: self.observes_by_command.filter(|_| is_same),
            suppressed: None,
            ..self.clone()
        }
    }

    /// Returns the policy that restores this one, and suppresses the configuration `file`, unless it is the restored one.
    fn restored(&self, file: usize, otherwise: Option<usize>) -> Self {
        Self {
            suppressed: Some(file).filter(|file| *file != self.config).or(otherwise),
            ..self.clone()
        }
    }
}

/// The policies of a host, the oldest first, and the variant of the configuration in its file.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    policies: Vec<Policy>,
    file: usize,
    /// The index of the policy that the pending change is rolled back to, if a change is pending.
    pending: Option<usize>,
}

impl Model {
    /// Returns the model of a host whose daemon has started with the first variant.
    pub(super) fn started() -> Self {
        Self {
            policies: vec![Policy::default()],
            ..Self::default()
        }
    }

    pub(super) fn active(&self) -> &Policy {
        self.policies.last().expect("a policy is active")
    }

    pub(super) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Returns the number of policies, which is the number of the active one.
    pub(super) fn number(&self) -> usize {
        self.policies.len()
    }

    /// Does an operation. Returns whether the daemon does it too, instead of refusing it.
    pub(super) fn apply(&mut self, operation: &Operation) -> bool {
        let active = self.active().clone();
        let (next, confirms) = match *operation {
            Operation::Confirm => return self.pending.take().is_some(),
            Operation::Rollback(back) if self.is_pending() => {
                // Only the policy before the pending change can be restored.
                let is_before = back == 0;
                if is_before {
                    self.roll_back();
                }
                return is_before;
            }
            Operation::Edit(variant) => {
                self.file = variant;
                return true;
            }
            Operation::Refresh(_) => return true,
            Operation::Miss { kills, down } => {
                match (self.pending.is_some(), kills) {
                    (false, false) => {}
                    (false, true) => self.start(),
                    (true, true) if !down => self.start(),
                    (true, true) => self.start_late(),
                    (true, false) => self.roll_back(),
                }
                return true;
            }
            _ if self.is_pending() => return false,
            Operation::Add {
                prefix,
                service,
                confirms,
            } => {
                let mut next = active.clone();
                next.added.insert((prefix, service));
                (next, confirms)
            }
            // The prefix has expired when the operation ends, and the policy that added it stays in the journal.
            Operation::AddForAWhile { prefix, service } => {
                let mut next = active;
                next.added.remove(&(prefix, service));
                self.policies.push(next);
                return true;
            }
            Operation::Remove { prefix } => {
                let mut next = active.clone();
                next.added.retain(|one| one.0 != prefix);
                if next == active {
                    return false;
                }
                (next, false)
            }
            Operation::Mode { observes, confirms } => {
                let by_command = Some(observes).filter(|_| observes != OBSERVES[active.config]);
                let next = Policy {
                    observes_by_command: by_command,
                    ..active.clone()
                };
                (next, confirms)
            }
            Operation::Reload { confirms } => {
                let is_same = self.file == active.config && active.suppressed.is_none();
                if !is_same {
                    // A policy of its own, even if nothing else differs.
                    let next = active.with_config(self.file);
                    self.push(next, confirms);
                }
                return true;
            }
            Operation::Rollback(back) => {
                let Some(place) = (self.policies.len() - 1).checked_sub(back + 1) else {
                    return false;
                };
                let next = self.policies[place].restored(self.file, None);
                self.push(next, false);
                return true;
            }
        };
        if next != active {
            self.push(next, confirms);
        }
        true
    }

    fn push(&mut self, next: Policy, confirms: bool) {
        self.pending = confirms.then_some(self.policies.len() - 1);
        self.policies.push(next);
    }

    /// Rolls the pending change back while a daemon runs.
    fn roll_back(&mut self) {
        let back = self.pending.take().expect("a change is pending");
        let before = &self.policies[back];
        let next = before.restored(self.active().config, before.suppressed);
        self.policies.push(next);
    }

    /// Starts a daemon.
    fn start(&mut self) {
        let active = self.active();
        let is_known = active
            .suppressed
            .map_or(active.config, |suppressed| suppressed)
            == self.file;
        if !is_known {
            let next = active.with_config(self.file);
            self.policies.push(next);
        }
    }

    /// Starts a daemon after the deadline of the pending change.
    fn start_late(&mut self) {
        let back = self.pending.expect("a change is pending");
        let (rolled_back, before) = (self.active().config, self.policies[back].clone());
        if self.file != rolled_back && self.file != before.config {
            self.pending = None;
            self.policies.push(before.with_config(self.file));
        } else {
            self.roll_back();
        }
    }
}
