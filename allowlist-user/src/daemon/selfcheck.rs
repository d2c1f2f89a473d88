//! The self-check of a running daemon: every second, and whenever an interface changes.
//!
//! Invariants: the filter's own objects are repaired, each at most [`REPAIRS`] times within [`WINDOW`], so that two programs
//! that undo each other's work do so slowly; the order of other programs is never changed; a line is logged when the state
//! changes, and not once a second.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use anyhow::Result;
use log::{info, warn};
use tokio::time::Instant;

use super::Daemon;
use crate::dataplane::{Difference, DifferenceKind, View};
use crate::interface;

/// How many repairs of one object there are within [`WINDOW`] at most.
const REPAIRS: usize = 3;
const WINDOW: Duration = Duration::from_mins(1);

/// The findings of the self-check so far.
#[derive(Default)]
pub(super) struct SelfCheck {
    /// What differed when it was looked at last, and was not repaired.
    known: Vec<Difference>,
    /// Why the kernel could not be looked at, if it could not.
    failure: Option<String>,
    /// By object: when its last repairs were made.
    repairs: BTreeMap<Object, VecDeque<Instant>>,
    /// The objects of which it was logged that they are not repaired for now.
    exhausted: BTreeSet<Object>,
}

/// An object of a repair: the kind of difference, and the interface or map.
type Object = (DifferenceKind, Option<String>);

fn object(difference: &Difference) -> Object {
    (difference.kind, difference.object.clone())
}

/// Returns the target of a log record about a difference: its kind is the code.
fn target(difference: &Difference) -> String {
    format!("allowlist::{}", difference.kind)
}

impl SelfCheck {
    /// Notes why the kernel could not be looked at, and logs it if that is new.
    pub(super) fn fail(&mut self, error: &anyhow::Error) {
        let error = format!("{error:#}");
        if self.failure.as_ref() != Some(&error) {
            warn!(
                target: "allowlist::self-check-failed",
                "self-check: the kernel cannot be looked at: {error}; the filter is as it was"
            );
            self.failure = Some(error);
        }
    }

    /// Notes that the kernel could be looked at.
    pub(super) fn succeed(&mut self) {
        if self.failure.take().is_some() {
            info!(
                target: "allowlist::self-check-works",
                "self-check: the kernel can be looked at again"
            );
        }
    }

    /// Whether an object may be repaired now; if so, that is counted.
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

    /// Whether this was not known before.
    fn is_new(&self, difference: &Difference) -> bool {
        !self.known.contains(difference)
    }
}

impl Daemon {
    /// Lists the differences between the kernel and the published state.
    pub(super) fn compare(&self) -> Result<Vec<Difference>> {
        let mut differences = View::open(&self.options.paths.pin_dir)?.self_check_now()?;
        // Those are looked after as interfaces that come and go.
        differences.retain(|one| {
            !matches!(
                one.kind,
                DifferenceKind::InterfaceGone | DifferenceKind::InterfaceMoved
            )
        });
        Ok(differences)
    }

    /// Repairs the differences of the filter's own objects, and reports the rest.
    pub(super) async fn repair(&mut self, differences: Vec<Difference>) -> Result<()> {
        if self.dataplane.is_detached() {
            return Ok(());
        }
        let (ours, others): (Vec<_>, Vec<_>) =
            differences.into_iter().partition(|one| one.kind.is_ours());
        for other in &others {
            if self.self_check.is_new(other) {
                warn!(
                    target: &target(other),
                    "self-check: {}; it is not changed by this daemon",
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
        if left.is_empty() && !self.self_check.known.is_empty() {
            info!(
                target: "allowlist::repaired",
                "self-check: everything is as it was published again"
            );
        }
        self.self_check.known = left;
        Ok(())
    }

    /// Those that may be repaired now, and those that were repaired too often.
    fn allowed(&mut self, ours: Vec<Difference>) -> (Vec<Difference>, Vec<Difference>) {
        let time = Instant::now();
        let (now, later): (Vec<_>, Vec<_>) = ours
            .into_iter()
            .partition(|one| self.self_check.may_repair(&object(one), time));
        for one in &later {
            if self.self_check.exhausted.insert(object(one)) {
                warn!(
                    target: "allowlist::repairs-exhausted",
                    "self-check: {}; not repaired now, since {REPAIRS} repairs within a minute did not last: find the process that undoes them",
                    one.text
                );
            }
        }
        (now, later)
    }

    /// # Returns
    /// What still differs.
    async fn repair_ours(&mut self, ours: Vec<Difference>) -> Result<Vec<Difference>> {
        let done = self.make_again(&ours).await;
        let still = match &done {
            Ok(()) => self.compare()?,
            Err(_) => ours.clone(),
        };
        let (left, repaired): (Vec<_>, Vec<_>) =
            ours.into_iter().partition(|one| still.contains(one));
        for one in &repaired {
            warn!(target: &target(one), "self-check: {}; repaired", one.text);
        }
        for one in left.iter().filter(|one| self.self_check.is_new(one)) {
            match &done {
                Ok(()) => {
                    warn!(target: &target(one), "self-check: {}; the repair did not last", one.text);
                }
                Err(error) => warn!(
                    target: &target(one),
                    "self-check: {}; it cannot be repaired, which is tried again: {error:#}",
                    one.text
                ),
            }
        }
        Ok(left)
    }

    async fn make_again(&mut self, ours: &[Difference]) -> Result<()> {
        self.dataplane.repair(ours)?;
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
            .filter(|name| self.config.interfaces.contains(name))
            .collect();
        for name in names.into_iter().cloned().collect::<Vec<_>>() {
            let facts = interface::look_up(&name).await?;
            self.attach(&facts, self.options.trace)?;
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
