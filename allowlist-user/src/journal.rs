//! The journal: the policies and their changes on disk, one line of JSON per change.
//!
//! A policy is a numbered state: the configuration's text, the added prefixes, the mode set by command, and whether it is
//! confirmed. `file` reads and writes the lines, `redact` replaces the secrets.
//!
//! Invariants: a change is on disk with its checksum before its request is answered; a line that a crash cut short is
//! ignored; the last [`MAX_POLICIES`] policies can be restored; no secret of a configuration is on disk.

mod file;
mod redact;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use allowlist_lists::state::{StateDir, StateError};
use allowlist_policy::Mode;
use jiff::Timestamp;
use log::warn;
use serde::{Deserialize, Serialize};

use self::file::{File, Line};
use self::redact::Redactor;
use crate::additions::{Addition, Additions, Edit};
use crate::config::without_comments;
use crate::operation::Recorded;
use crate::time::{Now, SteadyClock};

/// The number of policies that a rollback can restore; one more is kept, so that a failed change removes none.
pub const MAX_POLICIES: usize = 20;
/// The number of superfluous edits of added prefixes that the journal's file may have: the file is rewritten when it
/// has more edits than twice the needed ones plus this number.
const HISTORY: usize = 1000;

/// A change from one policy to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The time of the change.
    pub time: Timestamp,
    /// The name of the user who made the change, or of the daemon.
    pub by: String,
    /// The operation that made the change.
    #[serde(rename = "what")]
    pub operation: Recorded,
    /// The text of the new configuration; `None` if the change keeps the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Arc<ConfigText>>,
    /// The edits that the change makes to the added prefixes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edits: Vec<Edit>,
    /// The mode that was set by command; `None` if the configuration's mode is active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The mode of the egress policy that was set by command; `None` if the configuration's is active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_mode: Option<Mode>,
    /// The checksum of the suppressed configuration file, which is ignored because its change was rolled back; `None`
    /// if the file is not suppressed.
    #[serde(rename = "held_back", default, skip_serializing_if = "Option::is_none")]
    pub suppressed_config_crc: Option<u32>,
    /// The deadline of the confirmation; `None` if the change is confirmed, or needs no confirmation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed: Option<ConfirmDeadline>,
}

/// The deadline of a pending change, and the policy to roll back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmDeadline {
    /// The time at which the change is rolled back.
    pub until: Timestamp,
    /// The number of the policy that the rollback restores; `None` if nothing was filtered before the change.
    #[serde(rename = "back_to")]
    pub revert_to: Option<u64>,
}

/// The text of a configuration and its origin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigText {
    /// The path of the configuration file; `None` for a configuration from the command line.
    pub file: Option<PathBuf>,
    /// The text of the configuration, including its secrets. On disk, each secret is replaced by a tag.
    pub text: String,
    /// The number of secrets that were not restored when the journal was read; the text contains their tags instead.
    #[serde(skip)]
    missing_secrets: usize,
    /// The CRC-32 of the original text, if `text` was read from disk, where it lacks comments and secrets. `None` if
    /// `text` is the original.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc32: Option<u32>,
    /// The names of the interfaces from the command line, which replace those of the text; empty if it names none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
}

impl PartialEq for ConfigText {
    fn eq(&self, other: &Self) -> bool {
        self.file == other.file && self.interfaces == other.interfaces && self.has_text_of(other)
    }
}

impl Eq for ConfigText {}

impl ConfigText {
    /// Returns the configuration text of `file`, or of the command line if `file` is `None`. `interfaces` are those of
    /// the command line.
    pub fn new(file: Option<PathBuf>, text: String, interfaces: Vec<String>) -> Self {
        Self {
            file,
            text,
            missing_secrets: 0,
            crc32: None,
            interfaces,
        }
    }

    /// Returns the CRC-32 of the original text, including comments and secrets.
    pub fn checksum(&self) -> u32 {
        self.crc32
            .unwrap_or_else(|| crc32fast::hash(self.text.as_bytes()))
    }

    /// Returns whether the original texts of both configurations are equal, including their secrets.
    pub fn has_text_of(&self, other: &Self) -> bool {
        self.checksum() == other.checksum()
            && (self.text == other.text
                || without_comments(&self.text) == without_comments(&other.text))
    }

    /// Returns a warning if some secrets could not be restored, otherwise `None`.
    pub fn missing_secrets_warning(&self) -> Option<String> {
        (self.missing_secrets > 0).then(|| {
            format!(
                "{} secrets of this policy's configuration are not in {} any more, so the sources that need them keep their last-good lists; restore the secrets in the file, or use bearer_file",
                self.missing_secrets,
                self.origin()
            )
        })
    }

    /// Returns the origin of the configuration for display: the path of the file, or the command line.
    pub fn origin(&self) -> String {
        match &self.file {
            Some(file) => file.display().to_string(),
            None => "the command line".to_owned(),
        }
    }
}

/// A policy that the journal stores, with the change that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The number of the policy; each policy has the number after that of its predecessor.
    pub number: u64,
    /// The change that made the policy. Its `written` is never `None`.
    pub change: Change,
    /// The edits that restore the added prefixes of the policy before this one.
    undo: Vec<Edit>,
}

impl Policy {
    /// Returns the text of the policy's configuration.
    pub fn written(&self) -> &Arc<ConfigText> {
        self.change.written.as_ref().expect("replaying fills it in")
    }
}

/// The journal of a daemon.
#[derive(Debug)]
pub struct Journal {
    file: File,
    redactor: Redactor,
    clock: SteadyClock,
    known: PolicyHistory,
    /// The line of the newest change, until it is written to disk; `None` if no change is staged.
    staged: Option<Line>,
    /// Active changes that could not be written to disk yet, oldest first.
    unwritten: Vec<Line>,
    /// Whether the last entry of `unwritten` is the newest policy's change, which [`Self::undo_last`] then removes
    /// there.
    is_newest_unwritten: bool,
}

/// The policies of a journal and the present added prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyHistory {
    /// The stored policies, oldest first.
    policies: VecDeque<Policy>,
    additions: Additions,
    /// The newest time of all journal lines, which is a lower bound for the wall clock.
    newest_time: Timestamp,
}

impl Default for PolicyHistory {
    fn default() -> Self {
        Self {
            policies: VecDeque::new(),
            additions: Additions::default(),
            newest_time: Timestamp::MIN,
        }
    }
}

impl PolicyHistory {
    /// Reads the policies and the added prefixes from the journal in directory `folder`, without locking the directory.
    pub fn load_readonly(folder: &Path) -> Result<Self, StateError> {
        let mut known = Self::default();
        for line in file::read(folder)?.lines {
            known.replay(line);
        }
        Ok(known)
    }

    /// Reads the added prefixes that have not expired from the journal in directory `folder`; also returns the time at
    /// which the expiry was checked.
    pub fn load_additions(folder: &Path) -> Result<(Additions, Now), StateError> {
        let known = Self::load_readonly(folder)?;
        let now = SteadyClock::not_before(known.newest_time).now();
        let mut additions = known.additions;
        additions.expire(&now);
        Ok((additions, now))
    }

    /// Returns the stored policies, oldest first.
    pub fn policies(&self) -> impl DoubleEndedIterator<Item = &Policy> {
        self.policies.iter()
    }

    /// Returns the active policy, which is the newest, or `None` if no policy is stored.
    pub fn newest(&self) -> Option<&Policy> {
        self.policies.back()
    }

    /// Returns the policy with this number, or `None` if it is not stored.
    pub fn get(&self, number: u64) -> Option<&Policy> {
        self.policies.iter().find(|policy| policy.number == number)
    }

    /// Returns the present added prefixes.
    pub fn additions(&self) -> &Additions {
        &self.additions
    }

    /// Returns the edits that restore the added prefixes of policy `number`.
    pub fn revert_edits(&self, number: u64) -> Vec<Edit> {
        let later = self.policies.iter().rev();
        let later = later.take_while(|policy| policy.number > number);
        later.flat_map(|policy| policy.undo.clone()).collect()
    }

    /// Returns the deadline by which the newest policy must be confirmed, also if it has passed. `None` means that the
    /// policy is confirmed or needs no confirmation.
    pub fn unconfirmed(&self) -> Option<ConfirmDeadline> {
        self.newest()?.change.unconfirmed
    }

    fn replay(&mut self, line: Line) {
        match line {
            Line::Base { additions } => {
                let edits: Vec<Edit> = additions.into_iter().map(Edit::Add).collect();
                self.additions.apply(&edits);
            }
            Line::Change { number, change } => {
                let mut change = *change;
                if change.written.is_none() {
                    let Some(before) = self.newest() else {
                        return; // the line with the configuration was damaged
                    };
                    change.written = Some(Arc::clone(before.written()));
                }
                let undo = self.additions.apply(&change.edits);
                self.newest_time = self.newest_time.max(change.time);
                self.policies.push_back(Policy {
                    number,
                    change,
                    undo,
                });
                if self.policies.len() > MAX_POLICIES + 1 {
                    self.policies.pop_front();
                }
            }
            Line::Confirmed { number } => {
                let mut policies = self.policies.iter_mut();
                if let Some(policy) = policies.find(|policy| policy.number == number) {
                    policy.change.unconfirmed = None;
                }
            }
            Line::Expired { time, additions } => {
                self.newest_time = self.newest_time.max(time);
                let remove = |(prefix, service)| Edit::Remove { prefix, service };
                let edits: Vec<Edit> = additions.into_iter().map(remove).collect();
                self.additions.apply(&edits);
            }
        }
    }

    /// Returns the lines of the shortest journal with the same content, without the prefixes that have expired at
    /// `now`.
    fn lines(&self, now: &Now) -> Vec<Line> {
        let mut oldest = self.additions.clone();
        for policy in self.policies.iter().rev() {
            oldest.apply(&policy.undo);
        }
        oldest.expire(now);
        let base = Line::Base {
            additions: oldest.all().cloned().collect(),
        };
        let mut before: Option<&Arc<ConfigText>> = None;
        let changes = self.policies.iter().map(|policy| {
            let mut change = policy.change.clone();
            if before.is_some_and(|before| before == policy.written()) {
                change.written = None;
            }
            before = Some(policy.written());
            Line::Change {
                number: policy.number,
                change: Box::new(change),
            }
        });
        // Replaying the changes can restore expired prefixes; and the newest time must be kept.
        let mut replayed = Self::default();
        let mut lines: Vec<Line> = std::iter::once(base).chain(changes).collect();
        lines.iter().cloned().for_each(|line| replayed.replay(line));
        let is_gone = |one: &&Addition| self.additions.get(&one.service, &one.prefix).is_none();
        let gone = replayed.additions.all().filter(is_gone);
        let additions: Vec<_> = gone.map(|one| (one.prefix, one.service.clone())).collect();
        if !additions.is_empty() || replayed.newest_time < self.newest_time {
            lines.push(Line::Expired {
                time: self.newest_time,
                additions,
            });
        }
        lines
    }

    fn edits(&self) -> usize {
        let of_policies = self.policies.iter().map(|policy| policy.change.edits.len());
        self.additions.len() + of_policies.sum::<usize>()
    }
}

impl Journal {
    /// Opens the journal of a state directory; omits the added prefixes that have expired at `now`.
    ///
    /// A journal that cannot be read is logged and counts as empty, so that the filter can start. Secrets of earlier
    /// policies are restored from `current`, the text of the present configuration.
    pub fn open(state: &StateDir, now: &Now, current: &str) -> Self {
        let (file, lines, should_rewrite) = File::open(state);
        let mut journal = Self {
            file,
            redactor: Redactor::open(state),
            clock: SteadyClock::not_before(Timestamp::MIN),
            known: PolicyHistory::default(),
            staged: None,
            unwritten: Vec::new(),
            is_newest_unwritten: false,
        };
        let mut has_secrets = false;
        for mut line in lines {
            if let Line::Change { change, .. } = &mut line
                && let Some(written) = &mut change.written
            {
                let written = Arc::make_mut(written);
                // Earlier versions did not redact the text.
                has_secrets |= journal.redactor.redact(&written.text) != written.text;
                let restored = journal.redactor.restore(&written.text, current);
                (written.text, written.missing_secrets) = (restored.text, restored.missing);
            }
            journal.known.replay(line);
        }
        journal.clock.learn(journal.known.newest_time);
        let now = &Now {
            wall: now.wall.max(journal.known.newest_time),
            uptime: now.uptime.clone(),
        };
        journal.known.additions.expire(now);
        if should_rewrite || has_secrets {
            journal.rewrite(state, now);
        }
        journal
    }

    /// Returns the policies and the added prefixes of the journal, including the changes that are not on disk yet.
    pub fn known(&self) -> &PolicyHistory {
        &self.known
    }

    /// Appends a policy to the file durably, and returns the policy's number. After an error nothing is appended.
    #[cfg(test)]
    fn add(&mut self, change: Change) -> Result<u64, StateError> {
        self.stage(change);
        self.write().inspect_err(|_| self.undo_last())
    }

    /// Adds a policy in memory. [`Self::write`] writes it to disk; [`Self::undo_last`] removes it.
    pub fn stage(&mut self, mut change: Change) {
        let newest = self.known.newest();
        let number = newest.map_or(1, |policy| policy.number + 1);
        if change.written.as_ref() == newest.map(Policy::written) {
            change.written = None;
        }
        let line = Line::Change {
            number,
            change: Box::new(change),
        };
        self.known.replay(line.clone());
        self.clock.learn(self.known.newest_time);
        self.file.make_permanent();
        self.is_newest_unwritten = false;
        self.staged = Some(line);
    }

    /// Keeps the staged change in memory after a failed write; the next successful write includes it.
    /// [`Self::undo_last`] removes it.
    pub fn keep_in_memory(&mut self) {
        if let Some(line) = self.staged.take() {
            self.unwritten.push(line);
            self.is_newest_unwritten = true;
        }
    }

    /// Returns whether active changes are missing on disk.
    pub fn is_behind(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Writes the active changes that are missing on disk. After an error, the rest stay in memory.
    pub fn catch_up(&mut self) -> Result<(), StateError> {
        while let Some(line) = self.unwritten.first() {
            let line = self.redacted(line.clone());
            self.file.add(&line)?;
            self.file.make_permanent();
            self.unwritten.remove(0);
            self.is_newest_unwritten = false;
        }
        Ok(())
    }

    /// Returns whether the newest policy is staged: in memory, but not written to disk.
    pub fn has_staged(&self) -> bool {
        self.staged.is_some()
    }

    /// Writes the staged change to disk durably, and returns the newest policy's number, 0 without a policy. After an
    /// error, the change stays staged.
    pub fn write(&mut self) -> Result<u64, StateError> {
        if let Some(line) = &self.staged {
            let line = line.clone();
            self.catch_up()?;
            let line = self.redacted(line);
            self.file.add(&line)?;
            self.staged = None;
        }
        Ok(self.known.newest().map_or(0, |policy| policy.number))
    }

    /// Removes the last staged change from memory and disk, after it could not be activated. A repeated call has no
    /// effect.
    pub fn undo_last(&mut self) {
        if self.is_newest_unwritten {
            self.unwritten.pop();
            self.is_newest_unwritten = false;
        } else if self.staged.take().is_none() {
            match self.file.undo_last() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => warn!(
                    "cannot remove the failed change from the journal: {error}; the next start may apply it; `allowlist rollback` then undoes it"
                ),
            }
        }
        if let Some(policy) = self.known.policies.pop_back() {
            self.known.additions.apply(&policy.undo);
        }
    }

    /// Records on disk that the newest policy is confirmed.
    pub fn confirm(&mut self) -> Result<(), StateError> {
        let Some(number) = self.known.newest().map(|policy| policy.number) else {
            return Ok(());
        };
        let line = Line::Confirmed { number };
        self.catch_up()?;
        self.file.add(&line)?;
        self.known.replay(line);
        Ok(())
    }

    /// Returns the time that decides which added prefixes have expired; never earlier than the newest time in the
    /// journal.
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// Removes and returns the added prefixes that have expired at `now`. The expiry is written to disk, so that a
    /// clock that is set back does not restore them.
    pub fn expire(&mut self, now: &Now) -> Vec<Addition> {
        let gone = self.known.additions.expire(now);
        if !gone.is_empty() {
            let key = |one: &Addition| (one.prefix, one.service.clone());
            let line = Line::Expired {
                time: now.wall,
                additions: gone.iter().map(key).collect(),
            };
            self.known.newest_time = self.known.newest_time.max(now.wall);
            self.clock.learn(now.wall);
            if let Err(error) = self.file.add(&line) {
                warn!(
                    "cannot record expired prefixes in the journal: {error}; after a restart with a clock that was set back, they may be allowed again"
                );
            }
            self.file.make_permanent();
        }
        gone
    }

    /// Rewrites the journal's file if later edits have replaced most of its edits. A failure is logged.
    pub fn compact(&mut self, state: &StateDir, now: &Now) {
        if self.file.edits() > self.known.edits() * 2 + HISTORY {
            self.rewrite(state, now);
        }
    }

    /// Returns the journal line with a tag in place of each secret.
    fn redacted(&self, mut line: Line) -> Line {
        if let Line::Change { change, .. } = &mut line
            && let Some(written) = &mut change.written
        {
            let written = Arc::make_mut(written);
            written.crc32 = Some(written.checksum());
            written.text = self.redactor.redact(&written.text);
        }
        line
    }

    fn rewrite(&mut self, state: &StateDir, now: &Now) {
        let lines = self.known.lines(now).into_iter();
        let lines: Vec<Line> = lines.map(|line| self.redacted(line)).collect();
        match self.file.replace(state, &lines) {
            Ok(()) => self.unwritten.clear(),
            Err(error) => warn!("cannot rewrite the journal, so its present file stays: {error}"),
        }
    }
}

#[cfg(test)]
mod tests;
