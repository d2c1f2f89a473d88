//! The lines of an answer to a change: the difference of the effective states, and warnings.

use jiff::Timestamp;

use super::Daemon;
use crate::additions::Additions;
use crate::config::Config;
use crate::effective::{EffectiveState, difference};
use crate::policy::{Mode, Snapshot};

impl Daemon {
    /// The difference between the effective state that these make and the one now.
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
            self.ledger.known().additions(),
            self.lists.feeds(),
            now,
        );
        difference(&old, &new)
    }

    /// The warnings that hold as long as this state: a mode that is not the configuration's, and the
    /// configuration's own.
    pub(super) fn standing_warnings(&self) -> Vec<String> {
        let by_command = (self.mode != self.config.mode).then(|| {
            let configured = self.config.mode.name();
            format!(
                "mode {} by command: {} states {configured}; `allowlist mode {configured}` returns to that",
                self.mode.name(),
                self.written.origin(),
            )
        });
        let warnings = self.warnings.iter().cloned();
        by_command.into_iter().chain(warnings).collect()
    }
}
