//! The lines of an answer to a change: the difference of the effective states, and warnings.

use allowlist_policy::{Mode, Snapshot};
use jiff::Timestamp;

use super::Daemon;
use crate::additions::Additions;
use crate::config::Config;
use crate::effective::{EffectiveState, difference};

impl Daemon {
    /// Returns the differences between an earlier effective state, given by the arguments, and the present one, a line
    /// each.
    pub(super) fn changes_since(
        &self,
        config: &Config,
        mode: Mode,
        additions: &Additions,
        lists: &Snapshot,
    ) -> Vec<String> {
        let now = Timestamp::now();
        let old = EffectiveState::new(config, mode, additions, lists, now);
        let new = EffectiveState::new(
            &self.config,
            self.mode,
            self.journal.known().additions(),
            self.lists.feeds(),
            now,
        );
        difference(&old, &new)
    }

    /// Returns the warnings about the present state: if the mode was set by command and differs from the
    /// configuration's, and the warnings about the configuration.
    pub(super) fn state_warnings(&self) -> Vec<String> {
        let by_command = (self.mode != self.config.mode).then(|| {
            let configured = self.config.mode.name();
            format!(
                "mode {} was set by command, {} states {configured}; to return to it: `allowlist mode {configured}`",
                self.mode.name(),
                self.written.origin(),
            )
        });
        let warnings = self.warnings.iter().cloned();
        by_command.into_iter().chain(warnings).collect()
    }
}
