//! With which policy a start begins, by what was asked and what is known of the policies before. Pure.
//!
//! Invariants: what was not confirmed in time is taken back, also when nothing ran meanwhile; a file whose
//! change was taken back does not count until it says something else.

use std::sync::Arc;

use jiff::Timestamp;

use crate::audit::Who;
use crate::ledger::{Change, Known, Policy, Unconfirmed, Written};
use crate::policy::Mode;

/// What a start does to the policies that are known.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The configuration that it begins with.
    pub(super) written: Arc<Written>,
    /// The policy that it makes; none where the newest is this one.
    pub(super) change: Option<Change>,
    /// What was not confirmed, and is taken back.
    pub(super) taken_back: Option<String>,
    /// The policy that is in force instead of what the file says.
    pub(super) instead: Option<u64>,
}

impl Plan {
    /// For a start with `typed`. `waits` is whether the newest change still waits to be confirmed; `mode`
    /// tells the mode of a configuration, if it is one.
    pub(super) fn of(
        typed: Written,
        known: &Known,
        waits: bool,
        mode: impl Fn(&Written) -> Option<Mode>,
        now: Timestamp,
    ) -> Self {
        let typed = Arc::new(typed);
        let Some(newest) = known.newest() else {
            return Self::begin(typed, None, now, mode);
        };
        if let Some(unconfirmed) = known.unconfirmed()
            && !waits
        {
            return Self::take_back(typed, known, newest, unconfirmed, now, mode);
        }
        if newest.change.held_back == Some(typed.checksum()) {
            return Self {
                written: Arc::clone(newest.written()),
                change: None,
                taken_back: None,
                instead: Some(newest.number),
            };
        }
        if **newest.written() == *typed && newest.change.held_back.is_none() {
            return Self {
                written: typed,
                change: None,
                taken_back: None,
                instead: None,
            };
        }
        Self::begin(typed, Some(newest), now, mode)
    }

    /// A policy of its own.
    fn begin(
        typed: Arc<Written>,
        before: Option<&Policy>,
        now: Timestamp,
        mode: impl Fn(&Written) -> Option<Mode>,
    ) -> Self {
        // What the file says newly is meant.
        let by_command = before.and_then(|before| {
            let is_same = mode(before.written()) == mode(&typed);
            before.change.mode.filter(|_| is_same)
        });
        let change = Change {
            time: now,
            by: Who::Daemon.to_string(),
            what: format!("start by {}", typed.origin()),
            written: Some(Arc::clone(&typed)),
            edits: Vec::new(),
            mode: by_command,
            held_back: None,
            unconfirmed: None,
        };
        Self {
            written: typed,
            change: Some(change),
            taken_back: None,
            instead: None,
        }
    }

    fn take_back(
        typed: Arc<Written>,
        known: &Known,
        newest: &Policy,
        unconfirmed: Unconfirmed,
        now: Timestamp,
        mode: impl Fn(&Written) -> Option<Mode>,
    ) -> Self {
        let before = unconfirmed.back_to.and_then(|number| known.get(number));
        let Some(before) = before else {
            // Nothing was filtered before, and now somebody wants it again.
            return Self {
                taken_back: Some(newest.change.what.clone()),
                ..Self::begin(typed, None, now, mode)
            };
        };
        let change = back(known, before, newest.written(), now);
        let taken_back = Some(newest.change.what.clone());
        if typed.checksum() != newest.written().checksum()
            && typed.checksum() != before.written().checksum()
        {
            // It is neither what was taken back nor what was before: somebody has mended it.
            let begun = Self::begin(typed, Some(before), now, mode);
            let change = begun.change.map(|begun| Change {
                edits: change.edits,
                ..begun
            });
            return Self {
                change,
                taken_back,
                ..begun
            };
        }
        Self {
            written: Arc::clone(before.written()),
            instead: change.held_back.map(|_| before.number),
            change: Some(change),
            taken_back,
        }
    }
}

/// What makes `before` the policy again, in the place of one that came from `taken_back`.
pub(super) fn back(known: &Known, before: &Policy, taken_back: &Written, now: Timestamp) -> Change {
    Change {
        time: now,
        by: Who::Daemon.to_string(),
        what: format!(
            "back to policy {}, since a change was not confirmed",
            before.number
        ),
        written: Some(Arc::clone(before.written())),
        edits: known.back_to(before.number),
        mode: before.change.mode,
        held_back: held_back(taken_back, before.written()).or(before.change.held_back),
        unconfirmed: None,
    }
}

/// The checksum of what does not count any more, if it is a file's and other than what is gone back to.
pub(super) fn held_back(taken_back: &Written, back_to: &Written) -> Option<u32> {
    let is_other = taken_back.file.is_some() && !taken_back.has_text_of(back_to);
    is_other.then(|| taken_back.checksum())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::ledger::Ledger;
    use crate::state::StateDir;
    use crate::time::Now;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn written(text: &str) -> Written {
        Written::new(Some("allowlist.toml".into()), text.to_owned(), Vec::new())
    }

    /// A policy by the configuration `text`; the mode by command; whether it is unconfirmed, and since when;
    /// what is held back.
    type Step = (
        &'static str,
        Option<Mode>,
        Option<Option<u64>>,
        Option<&'static str>,
    );

    /// Returns a plan as text: the configuration; the change, if there is one, with its mode and what is held back;
    /// whether something is taken back; what is in force instead.
    fn planned(steps: &[Step], typed: &str, waits: bool) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(folder.path()).expect("a state directory");
        let mut ledger = Ledger::open(&state, &Now::by_wall(NOW), "");
        for (text, mode, unconfirmed, held_back) in steps {
            let change = Change {
                time: NOW,
                by: "root".to_owned(),
                what: format!("reload of {text}"),
                written: Some(Arc::new(written(text))),
                edits: Vec::new(),
                mode: *mode,
                held_back: held_back.map(|text| written(text).checksum()),
                unconfirmed: unconfirmed.map(|back_to| Unconfirmed {
                    until: NOW,
                    back_to,
                }),
            };
            ledger.stage(change);
            ledger.write().expect("is written");
        }
        let mode = |written: &Written| {
            Some(if written.text.contains("observe") {
                Mode::Observe
            } else {
                Mode::Enforce
            })
        };
        let plan = Plan::of(written(typed), ledger.known(), waits, mode, NOW);
        let mut words = plan.written.text.clone();
        if let Some(change) = &plan.change {
            words += &format!(", {}", change.what);
            if let Some(mode) = change.mode {
                words += &format!(", {}", mode.name());
            }
            let texts = ["old", "new", "newer"];
            let held = |text: &&str| change.held_back == Some(written(text).checksum());
            if let Some(text) = texts.iter().find(|text| held(text)) {
                words += &format!(", {text} held back");
            }
        }
        if let Some(what) = &plan.taken_back {
            words += &format!("; {what} taken back");
        }
        if let Some(number) = plan.instead {
            words += &format!("; instead {number}");
        }
        words
    }

    #[test]
    fn plans() {
        let plain = |text| (text, None, None, None);
        let observed = ("old", Some(Mode::Observe), None, None);
        let unconfirmed = ("new", None, Some(Some(1)), None);
        let added = ("old", None, Some(Some(1)), None);
        let first = ("old", None, Some(None), None);
        let went_back = ("old", None, None, Some("new"));
        let mut text = String::new();
        for (title, steps, typed, waits) in [
            ("no policy", &[][..], "old", false),
            ("the same file", &[plain("old")], "old", false),
            ("another file", &[plain("old")], "new", false),
            (
                "a mode by command, the same file",
                &[observed],
                "old",
                false,
            ),
            ("a mode by command, another file", &[observed], "new", false),
            (
                "a mode by command, a file with another mode",
                &[observed],
                "observe",
                false,
            ),
            (
                "pending, the same file",
                &[plain("old"), unconfirmed],
                "new",
                true,
            ),
            (
                "unconfirmed, the same file",
                &[plain("old"), unconfirmed],
                "new",
                false,
            ),
            (
                "unconfirmed, the file before",
                &[plain("old"), unconfirmed],
                "old",
                false,
            ),
            (
                "unconfirmed, a third file",
                &[plain("old"), unconfirmed],
                "newer",
                false,
            ),
            (
                "unconfirmed additions, the same file",
                &[plain("old"), added],
                "old",
                false,
            ),
            ("an unconfirmed first start", &[first], "old", false),
            (
                "rolled back, the same file",
                &[plain("old"), went_back],
                "new",
                false,
            ),
            (
                "rolled back, a third file",
                &[plain("old"), went_back],
                "newer",
                false,
            ),
            (
                "rolled back, the file before",
                &[plain("old"), went_back],
                "old",
                false,
            ),
        ] {
            text += &format!("{title}: {}\n", planned(steps, typed, waits));
        }
        expect![[r"
            no policy: old, start by allowlist.toml
            the same file: old
            another file: new, start by allowlist.toml
            a mode by command, the same file: old
            a mode by command, another file: new, start by allowlist.toml, observe
            a mode by command, a file with another mode: observe, start by allowlist.toml
            pending, the same file: new
            unconfirmed, the same file: old, back to policy 1, since a change was not confirmed, new held back; reload of new taken back; instead 1
            unconfirmed, the file before: old, back to policy 1, since a change was not confirmed, new held back; reload of new taken back; instead 1
            unconfirmed, a third file: newer, start by allowlist.toml; reload of new taken back
            unconfirmed additions, the same file: old, back to policy 1, since a change was not confirmed; reload of old taken back
            an unconfirmed first start: old, start by allowlist.toml; reload of old taken back
            rolled back, the same file: old; instead 2
            rolled back, a third file: newer, start by allowlist.toml
            rolled back, the file before: old, start by allowlist.toml
        "]].assert_eq(&text);
    }
}
