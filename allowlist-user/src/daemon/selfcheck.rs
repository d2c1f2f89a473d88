//! The self-check of a running daemon: every second, and whenever an interface changes.
//!
//! Invariants: the filter's own objects are repaired, each at most [`REPAIRS`] times within [`WINDOW`], which limits a
//! conflict with another program; other programs are not changed; only changes of the findings are logged.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use allowlist_dataplane::interface;
use allowlist_dataplane::{Difference, DifferenceKind, View};
use anyhow::Result;
use log::{info, warn};
use tokio::time::Instant;

use super::Daemon;

/// The maximum number of repairs of one object within [`WINDOW`]; further repairs are suspended.
const REPAIRS: usize = 3;
const WINDOW: Duration = Duration::from_mins(1);

/// The state of the self-check: what it has found, logged and repaired so far.
#[derive(Default)]
pub(super) struct SelfCheck {
    /// The differences that the last check found and did not repair.
    known: Vec<Difference>,
    /// The reason why the last check failed; `None` if it succeeded.
    failure: Option<String>,
    /// By object: the times of the object's last repairs.
    repairs: BTreeMap<Object, VecDeque<Instant>>,
    /// The objects whose repair is suspended; this was logged once for each.
    exhausted: BTreeSet<Object>,
}

/// What a repair restores: the kind of difference, and the name of the interface or map, if any.
type Object = (DifferenceKind, Option<String>);

fn object(difference: &Difference) -> Object {
    (difference.kind, difference.object.clone())
}

/// Returns the log target for a difference, which has the kind of difference as its code.
fn target(difference: &Difference) -> String {
    format!("allowlist::{}", difference.kind)
}

impl SelfCheck {
    /// Records that the check failed, and logs the reason if it differs from that of the last failure.
    pub(super) fn fail(&mut self, error: String) {
        if self.failure.as_ref() != Some(&error) {
            warn!(
                target: "allowlist::self-check-failed",
                "self-check: cannot read the kernel's state: {error}; the filter is unchanged, and the check is retried"
            );
            self.failure = Some(error);
        }
    }

    /// Records that the check succeeded.
    pub(super) fn succeed(&mut self) {
        if self.failure.take().is_some() {
            info!(
                target: "allowlist::self-check-works",
                "self-check: the kernel's state can be read again"
            );
        }
    }

    /// Returns whether an object may be repaired now, and if so, counts the repair.
    fn may_repair(&mut self, object: &Object, now: Instant) -> bool {
        let repairs = self.repairs.entry(object.clone()).or_default();
        repairs.retain(|time| now.saturating_duration_since(*time) < WINDOW);
        let may = repairs.len() < REPAIRS;
        if may {
            repairs.push_back(now);
            self.exhausted.remove(object);
        }
        may
    }

    /// Returns whether the last check did not find this difference.
    fn is_new(&self, difference: &Difference) -> bool {
        !self.known.contains(difference)
    }
}

impl Daemon {
    /// Returns the differences between the kernel and the published state, except for removed and replaced interfaces.
    pub(super) async fn compare(&self) -> Result<Vec<Difference>> {
        let pin_dir = self.options.paths.pin_dir.clone();
        let compare = move |_: &mut _| View::open(&pin_dir)?.self_check_now();
        let mut differences = self.kernel.run(compare).await?;
        // `attach_again` handles these.
        differences.retain(|one| {
            !matches!(
                one.kind,
                DifferenceKind::InterfaceGone | DifferenceKind::InterfaceMoved
            )
        });
        Ok(differences)
    }

    /// Repairs the differences that concern the filter's own objects, and reports the rest.
    pub(super) async fn repair(&mut self, differences: Vec<Difference>) -> Result<()> {
        if self.kernel.run(|dataplane| dataplane.is_detached()).await {
            return Ok(());
        }
        let self_check = &self.interfaces.self_check;
        let (ours, others): (Vec<_>, Vec<_>) =
            differences.into_iter().partition(|one| one.kind.is_ours());
        for other in &others {
            if self_check.is_new(other) {
                warn!(
                    target: &target(other),
                    "self-check: {}; the daemon reports this, and does not repair it",
                    other.text
                );
            }
        }
        let mut left = others;
        let (now, later) = self.allowed(ours);
        if !now.is_empty() {
            left.extend(self.repair_ours(now).await?);
        }
        left.extend(later);
        if left.is_empty() && !self.interfaces.self_check.known.is_empty() {
            info!(
                target: "allowlist::repaired",
                "self-check: the kernel agrees with the published state again"
            );
        }
        self.interfaces.self_check.known = left;
        Ok(())
    }

    /// Splits differences into those that may be repaired now, and those whose object was repaired too often.
    fn allowed(&mut self, ours: Vec<Difference>) -> (Vec<Difference>, Vec<Difference>) {
        let (time, self_check) = (Instant::now(), &mut self.interfaces.self_check);
        let (now, later): (Vec<_>, Vec<_>) = ours
            .into_iter()
            .partition(|one| self_check.may_repair(&object(one), time));
        for one in &later {
            if self_check.exhausted.insert(object(one)) {
                warn!(
                    target: "allowlist::repairs-exhausted",
                    "self-check: {}; the daemon pauses repairs of this object after {REPAIRS} within a minute; find the process that undoes the repairs",
                    one.text
                );
            }
        }
        (now, later)
    }

    /// Repairs the differences in `ours`, and returns those that remain.
    async fn repair_ours(&mut self, ours: Vec<Difference>) -> Result<Vec<Difference>> {
        let done = self.make_again(&ours).await;
        let still = match &done {
            Ok(()) => self.compare().await?,
            Err(_) => ours.clone(),
        };
        let (left, repaired): (Vec<_>, Vec<_>) =
            ours.into_iter().partition(|one| still.contains(one));
        for one in &repaired {
            warn!(target: &target(one), "self-check: {}; repaired", one.text);
        }
        for one in left
            .iter()
            .filter(|one| self.interfaces.self_check.is_new(one))
        {
            match &done {
                Ok(()) => {
                    warn!(target: &target(one), "self-check: {}; the repair had no effect; retrying", one.text);
                }
                Err(error) => warn!(
                    target: &target(one),
                    "self-check: {}; cannot repair it: {error:#}; retrying",
                    one.text
                ),
            }
        }
        Ok(left)
    }

    async fn make_again(&mut self, ours: &[Difference]) -> Result<()> {
        let differences = ours.to_vec();
        self.kernel
            .run(move |dataplane| dataplane.repair(&differences))
            .await?;
        let is_about_interface = |one: &&Difference| {
            !matches!(
                one.kind,
                DifferenceKind::ControlWord
                    | DifferenceKind::MapPinMissing
                    | DifferenceKind::MapReplaced
            )
        };
        let names: BTreeSet<&String> = ours
            .iter()
            .filter(is_about_interface)
            .filter_map(|one| one.object.as_ref())
            .filter(|name| self.state.config().interfaces.contains(name))
            .collect();
        for name in names.into_iter().cloned().collect::<Vec<_>>() {
            let facts = interface::look_up(&name).await?;
            self.attach(facts, self.options.trace).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_repairs_a_minute() {
        let mut check = SelfCheck::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let word = (DifferenceKind::ControlWord, None);
        let made =
            [0, 1, 2, 3, 59, 60, 61, 62, 63, 121].map(|time| check.may_repair(&word, at(time)));
        assert_eq!(
            made,
            [
                true, true, true, false, false, true, true, true, false, true
            ]
        );
        let another = (DifferenceKind::MapPinMissing, Some("FLOWS".to_owned()));
        assert!(check.may_repair(&another, at(3)), "a limit of its own");
    }
}
