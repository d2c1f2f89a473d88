//! Chooses the policy of a start from the configuration and the journal. Pure.
//!
//! Invariants: an unconfirmed change is rolled back, also if no daemon ran at its deadline; a configuration file whose
//! change was rolled back is suppressed until the file changes.

use std::sync::Arc;

use allowlist_policy::Mode;
use jiff::Timestamp;

use crate::audit::Actor;
use crate::journal::{Change, ConfigText, ConfirmDeadline, Policy, PolicyHistory};
use crate::operation::Operation;

/// The effect of a start on the policies of the journal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StartPlan {
    /// The text of the configuration that the start activates.
    pub(super) written: Arc<ConfigText>,
    /// The new policy to write to the journal; `None` if the newest policy stays active.
    pub(super) change: Option<Change>,
    /// The description of the unconfirmed change that is rolled back, if any.
    pub(super) rolled_back: Option<String>,
    /// The number of the policy that is used because the configuration file is suppressed; `None` if it is not
    /// suppressed.
    pub(super) active_policy: Option<u64>,
}

/// The modes of a configuration: that for packets, and that of the egress policy.
type Modes = (Mode, Mode);

impl StartPlan {
    /// Returns the plan of a start with the configuration `typed` and the journal's policies `known`.
    ///
    /// `waits` is whether the newest change is still pending in the kernel; `modes` returns the modes of a
    /// configuration, or `None` if it is invalid.
    pub(super) fn new(
        typed: ConfigText,
        known: &PolicyHistory,
        waits: bool,
        modes: impl Fn(&ConfigText) -> Option<Modes>,
        now: Timestamp,
    ) -> Self {
        let typed = Arc::new(typed);
        let Some(newest) = known.newest() else {
            return Self::begin(typed, None, now, modes);
        };
        if let Some(unconfirmed) = known.unconfirmed()
            && !waits
        {
            return Self::roll_back(typed, known, newest, unconfirmed, now, modes);
        }
        if newest.change.suppressed_config_crc == Some(typed.checksum()) {
            return Self {
                written: Arc::clone(newest.written()),
                change: None,
                rolled_back: None,
                active_policy: Some(newest.number),
            };
        }
        if **newest.written() == *typed && newest.change.suppressed_config_crc.is_none() {
            return Self {
                written: typed,
                change: None,
                rolled_back: None,
                active_policy: None,
            };
        }
        Self::begin(typed, Some(newest), now, modes)
    }

    /// Returns the plan that activates `typed` as a new policy; `before` is the policy that it replaces, if any.
    fn begin(
        typed: Arc<ConfigText>,
        before: Option<&Policy>,
        now: Timestamp,
        modes: impl Fn(&ConfigText) -> Option<Modes>,
    ) -> Self {
        // A new mode in the file ends the mode set by command.
        let by_command = |set: fn(&Change) -> Option<Mode>, configured: fn(Modes) -> Mode| {
            let before = before?;
            let [old, new] =
                [before.written(), &typed].map(|written| modes(written).map(configured));
            set(&before.change).filter(|_| old == new)
        };
        let change = Change {
            time: now,
            by: Actor::Daemon.to_string(),
            operation: start(&typed).into(),
            written: Some(Arc::clone(&typed)),
            edits: Vec::new(),
            mode: by_command(|change| change.mode, |(mode, _)| mode),
            egress_mode: by_command(|change| change.egress_mode, |(_, egress)| egress),
            suppressed_config_crc: None,
            unconfirmed: None,
        };
        Self {
            written: typed,
            change: Some(change),
            rolled_back: None,
            active_policy: None,
        }
    }

    /// Returns the plan that rolls back the newest policy, which was not confirmed.
    fn roll_back(
        typed: Arc<ConfigText>,
        known: &PolicyHistory,
        newest: &Policy,
        unconfirmed: ConfirmDeadline,
        now: Timestamp,
        modes: impl Fn(&ConfigText) -> Option<Modes>,
    ) -> Self {
        let before = unconfirmed.revert_to.and_then(|number| known.get(number));
        let Some(before) = before else {
            // Nothing was filtered before the unconfirmed start, and this start is a new one.
            return Self {
                rolled_back: Some(newest.change.operation.to_string()),
                ..Self::begin(typed, None, now, modes)
            };
        };
        let change = back(known, before, newest.written(), now);
        let rolled_back = Some(newest.change.operation.to_string());
        if typed.checksum() != newest.written().checksum()
            && typed.checksum() != before.written().checksum()
        {
            // The file is neither the rolled back one nor the one before it: it was corrected.
            let begun = Self::begin(typed, Some(before), now, modes);
            let change = begun.change.map(|begun| Change {
                edits: change.edits,
                ..begun
            });
            return Self {
                change,
                rolled_back,
                ..begun
            };
        }
        Self {
            written: Arc::clone(before.written()),
            active_policy: change.suppressed_config_crc.map(|_| before.number),
            change: Some(change),
            rolled_back,
        }
    }
}

/// Returns the operation with which the journal and the logs record a start with this configuration.
pub(super) fn start(written: &ConfigText) -> Operation {
    Operation::Start {
        from: written.origin(),
    }
}

/// Returns the change that restores the policy `before`, and suppresses the configuration `rolled_back`.
pub(super) fn back(
    known: &PolicyHistory,
    before: &Policy,
    rolled_back: &ConfigText,
    now: Timestamp,
) -> Change {
    Change {
        time: now,
        by: Actor::Daemon.to_string(),
        operation: Operation::NotConfirmed {
            to: Some(before.number),
        }
        .into(),
        written: Some(Arc::clone(before.written())),
        edits: known.revert_edits(before.number),
        mode: before.change.mode,
        egress_mode: before.change.egress_mode,
        suppressed_config_crc: suppressed_config_crc(rolled_back, before.written())
            .or(before.change.suppressed_config_crc),
        unconfirmed: None,
    }
}

/// Returns the checksum of a rolled back configuration; `None` if it came from the command line, or has the same text
/// as the configuration that is restored.
pub(super) fn suppressed_config_crc(
    rolled_back: &ConfigText,
    revert_to: &ConfigText,
) -> Option<u32> {
    let is_other = rolled_back.file.is_some() && !rolled_back.has_text_of(revert_to);
    is_other.then(|| rolled_back.checksum())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::journal::Journal;
    use crate::operation::Recorded;
    use crate::time::Now;
    use allowlist_lists::state::StateDir;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn written(text: &str) -> ConfigText {
        ConfigText::new(Some("allowlist.toml".into()), text.to_owned(), Vec::new())
    }

    /// A policy in a test: the text of its configuration; the mode set by command; if the policy is unconfirmed, the
    /// policy to roll back to; the text of the suppressed configuration.
    type Step = (
        &'static str,
        Option<Mode>,
        Option<Option<u64>>,
        Option<&'static str>,
    );

    /// Returns a plan as text: the configuration; the change, if any, with its mode and the suppressed configuration;
    /// the rolled back change; the active policy.
    fn planned(steps: &[Step], typed: &str, waits: bool) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(folder.path()).expect("a state directory");
        let mut journal = Journal::open(&state, &Now::by_wall(NOW), "");
        for (text, mode, unconfirmed, suppressed_config_crc) in steps {
            let change = Change {
                time: NOW,
                by: "root".to_owned(),
                operation: Recorded::Text(format!("reload of {text}")),
                written: Some(Arc::new(written(text))),
                edits: Vec::new(),
                mode: *mode,
                egress_mode: None,
                suppressed_config_crc: suppressed_config_crc.map(|text| written(text).checksum()),
                unconfirmed: unconfirmed.map(|revert_to| ConfirmDeadline {
                    until: NOW,
                    revert_to,
                }),
            };
            journal.stage(change);
            journal.write().expect("is written");
        }
        let modes = |written: &ConfigText| {
            let mode = if written.text.contains("observe") {
                Mode::Observe
            } else {
                Mode::Enforce
            };
            Some((mode, Mode::Enforce))
        };
        let plan = StartPlan::new(written(typed), journal.known(), waits, modes, NOW);
        let mut words = plan.written.text.clone();
        if let Some(change) = &plan.change {
            words += &format!(", {}", change.operation);
            if let Some(mode) = change.mode {
                words += &format!(", {}", mode.name());
            }
            let texts = ["old", "new", "newer"];
            let is_suppressed =
                |text: &&str| change.suppressed_config_crc == Some(written(text).checksum());
            if let Some(text) = texts.iter().find(|text| is_suppressed(text)) {
                words += &format!(", {text} suppressed");
            }
        }
        if let Some(what) = &plan.rolled_back {
            words += &format!("; {what} rolled back");
        }
        if let Some(number) = plan.active_policy {
            words += &format!("; policy {number} active");
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
            unconfirmed, the same file: old, rollback to policy 1, since a change was not confirmed, new suppressed; reload of new rolled back; policy 1 active
            unconfirmed, the file before: old, rollback to policy 1, since a change was not confirmed, new suppressed; reload of new rolled back; policy 1 active
            unconfirmed, a third file: newer, start by allowlist.toml; reload of new rolled back
            unconfirmed additions, the same file: old, rollback to policy 1, since a change was not confirmed; reload of old rolled back
            an unconfirmed first start: old, start by allowlist.toml; reload of old rolled back
            rolled back, the same file: old; policy 2 active
            rolled back, a third file: newer, start by allowlist.toml
            rolled back, the file before: old, start by allowlist.toml
        "]].assert_eq(&text);
    }
}
