//! Which policy is in force, on disk: a line of JSON a change, each a policy with a number. What the
//! configuration said, what was added by command, which mode, and whether it was confirmed.
//!
//! Invariants: a change is on disk whole, with its checksum, before anybody is told that it is done; a line
//! that a crash cut short was told to nobody, and does not count; of the last policies is known what leads
//! back to them; no secret of a configuration is on disk. `file` knows the bytes, `redact` the secrets. Knows
//! neither the kernel nor whether a policy is a good one.

mod file;
mod redact;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use log::warn;
use serde::{Deserialize, Serialize};

use self::file::{File, Line};
use self::redact::Redactor;
use crate::additions::{Addition, Additions, Edit};
use crate::config::without_comments;
use crate::policy::Mode;
use crate::state::{StateDir, StateError};
use crate::time::{Now, SteadyClock};

/// How many policies can be gone back to; one more is known, so that a change that fails costs none.
pub const KEPT: usize = 20;
/// So many edits more than are needed are worth writing the file anew.
const HISTORY: usize = 1000;

/// What makes a policy of the one before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When.
    pub time: Timestamp,
    /// Who did it.
    pub by: String,
    /// What it was, in words.
    pub what: String,
    /// The configuration, where it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Arc<Written>>,
    /// What is added by command, and what is not any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edits: Vec<Edit>,
    /// The mode by command, from now on; none is that of the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The checksum of what the configuration's file says, if that does not count any more: its change was
    /// taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_back: Option<u32>,
    /// Until when it must be confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed: Option<Unconfirmed>,
}

/// That a change has to be confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed {
    /// In time.
    pub until: Timestamp,
    /// The policy that is gone back to else; none where nothing was filtered before.
    pub back_to: Option<u64>,
}

/// A configuration's text and its origin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Written {
    /// Its file; none if it was typed.
    pub file: Option<PathBuf>,
    /// The text, with its secrets. On disk, each secret is replaced by a tag.
    pub text: String,
    /// How many secrets of the text are unknown, since the file of this start does not have them: their tags
    /// stand in the text.
    #[serde(skip)]
    missing_secrets: usize,
    /// The checksum of the text as it was written, of which the disk has neither comments nor secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc32: Option<u32>,
    /// Interfaces that were typed, and stand for those of the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
}

impl PartialEq for Written {
    fn eq(&self, other: &Self) -> bool {
        self.file == other.file && self.interfaces == other.interfaces && self.has_text_of(other)
    }
}

impl Eq for Written {}

impl Written {
    /// A configuration of a file, or of the command line where that is `None`; `interfaces` are those that were
    /// typed.
    pub fn new(file: Option<PathBuf>, text: String, interfaces: Vec<String>) -> Self {
        Self {
            file,
            text,
            missing_secrets: 0,
            crc32: None,
            interfaces,
        }
    }

    /// Returns a checksum of the text as it was written.
    pub fn checksum(&self) -> u32 {
        self.crc32
            .unwrap_or_else(|| crc32fast::hash(self.text.as_bytes()))
    }

    /// Whether both have one text, as it was written and with the same secrets.
    pub fn has_text_of(&self, other: &Self) -> bool {
        self.checksum() == other.checksum()
            && (self.text == other.text
                || without_comments(&self.text) == without_comments(&other.text))
    }

    /// A warning about secrets that could not be restored; `None` if all could.
    pub fn missing_secrets_warning(&self) -> Option<String> {
        (self.missing_secrets > 0).then(|| {
            format!(
                "{} of the secrets of this policy's configuration are not in {} any more and are stored nowhere else, so sources that need them keep their last-good lists; put the secrets back into the file, or use bearer_file",
                self.missing_secrets,
                self.origin()
            )
        })
    }

    /// Where it comes from, in words.
    pub fn origin(&self) -> String {
        match &self.file {
            Some(file) => file.display().to_string(),
            None => "the command line".to_owned(),
        }
    }
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its number.
    pub number: u64,
    /// What made it. Its configuration is always there.
    pub change: Change,
    /// What leads back to the additions of the one before.
    undo: Vec<Edit>,
}

impl Policy {
    /// The configuration.
    pub fn written(&self) -> &Arc<Written> {
        self.change.written.as_ref().expect("replaying fills it in")
    }
}

/// The policies that are known, and what is added by command now.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    redactor: Redactor,
    clock: SteadyClock,
    known: Known,
    /// What is known and not on disk yet.
    staged: Option<Line>,
    /// Changes that are active without the disk, to be written when that is possible again.
    unwritten: Vec<Line>,
    /// Whether the newest policy is the last of `unwritten`.
    is_newest_unwritten: bool,
}

/// What the lines say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The oldest first.
    policies: VecDeque<Policy>,
    additions: Additions,
    /// The newest time of any line, which the clock must not be behind.
    newest_time: Timestamp,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            policies: VecDeque::new(),
            additions: Additions::default(),
            newest_time: Timestamp::MIN,
        }
    }
}

impl Known {
    /// Reads what is in a state directory, for whoever only looks.
    pub fn peek(folder: &Path) -> Result<Self, StateError> {
        let mut known = Self::default();
        for line in file::read(folder)?.lines {
            known.replay(line);
        }
        Ok(known)
    }

    /// Reads the additions of a state directory that have not expired, and the moment that they were judged by.
    ///
    /// # Errors
    /// A ledger that cannot be read.
    pub fn peek_additions(folder: &Path) -> Result<(Additions, Now), StateError> {
        let known = Self::peek(folder)?;
        let now = SteadyClock::not_before(known.newest_time).now();
        let mut additions = known.additions;
        additions.expire(&now);
        Ok((additions, now))
    }

    /// The oldest first.
    pub fn policies(&self) -> impl DoubleEndedIterator<Item = &Policy> {
        self.policies.iter()
    }

    /// The one in force.
    pub fn newest(&self) -> Option<&Policy> {
        self.policies.back()
    }

    /// By number.
    pub fn get(&self, number: u64) -> Option<&Policy> {
        self.policies.iter().find(|policy| policy.number == number)
    }

    /// What is added by command.
    pub fn additions(&self) -> &Additions {
        &self.additions
    }

    /// What leads to the additions of policy `number`.
    pub fn back_to(&self, number: u64) -> Vec<Edit> {
        let later = self.policies.iter().rev();
        let later = later.take_while(|policy| policy.number > number);
        later.flat_map(|policy| policy.undo.clone()).collect()
    }

    /// What still has to be confirmed.
    pub fn unconfirmed(&self) -> Option<Unconfirmed> {
        self.newest()?.change.unconfirmed
    }

    fn replay(&mut self, line: Line) {
        match line {
            Line::Base { additions } => {
                let edits: Vec<Edit> = additions.into_iter().map(Edit::Add).collect();
                self.additions.apply(&edits);
            }
            Line::Change { number, mut change } => {
                if change.written.is_none() {
                    let Some(before) = self.newest() else {
                        return; // it was damaged, and so this says nothing
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
                if self.policies.len() > KEPT + 1 {
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

    /// As few lines as say the same.
    fn lines(&self, now: &Now) -> Vec<Line> {
        let mut oldest = self.additions.clone();
        for policy in self.policies.iter().rev() {
            oldest.apply(&policy.undo);
        }
        oldest.expire(now);
        let base = Line::Base {
            additions: oldest.all().cloned().collect(),
        };
        let mut before: Option<&Arc<Written>> = None;
        let changes = self.policies.iter().map(|policy| {
            let mut change = policy.change.clone();
            if before.is_some_and(|before| before == policy.written()) {
                change.written = None;
            }
            before = Some(policy.written());
            Line::Change {
                number: policy.number,
                change,
            }
        });
        // Replaying the changes may bring back expired additions; and the newest time must not be lost.
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

impl Ledger {
    /// Reads the ledger, without additions that have expired at `now`. While the disk cannot be written to, changes
    /// are refused. A ledger that cannot be read is logged and counts as one without policies: a damaged disk does
    /// not keep the filter from starting. Secrets of earlier policies are restored from `current`, the text of the
    /// configuration that this start begins with.
    pub fn open(state: &StateDir, now: &Now, current: &str) -> Self {
        let (file, lines, damaged) = File::open(state);
        let mut ledger = Self {
            file,
            redactor: Redactor::open(state),
            clock: SteadyClock::not_before(Timestamp::MIN),
            known: Known::default(),
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
                // An earlier version of this program wrote texts as they were.
                has_secrets |= ledger.redactor.redact(&written.text) != written.text;
                let restored = ledger.redactor.restore(&written.text, current);
                (written.text, written.missing_secrets) = (restored.text, restored.missing);
            }
            ledger.known.replay(line);
        }
        ledger.clock.learn(ledger.known.newest_time);
        let now = &Now {
            wall: now.wall.max(ledger.known.newest_time),
            uptime: now.uptime.clone(),
        };
        ledger.known.additions.expire(now);
        if damaged || has_secrets {
            ledger.rewrite(state, now);
        }
        ledger
    }

    /// What it says.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// Adds a policy; on return it has reached the disk. On an error nothing was added.
    ///
    /// # Returns
    /// Its number.
    #[cfg(test)]
    fn add(&mut self, change: Change) -> Result<u64, StateError> {
        self.stage(change);
        self.write().inspect_err(|_| self.take_back())
    }

    /// Adds a policy that is not on disk yet: [`Self::write`] puts it there, [`Self::take_back`] forgets it.
    pub fn stage(&mut self, mut change: Change) {
        let newest = self.known.newest();
        let number = newest.map_or(1, |policy| policy.number + 1);
        if change.written.as_ref() == newest.map(Policy::written) {
            change.written = None;
        }
        let line = Line::Change { number, change };
        self.known.replay(line.clone());
        self.clock.learn(self.known.newest_time);
        self.file.keep_what_is();
        self.is_newest_unwritten = false;
        self.staged = Some(line);
    }

    /// Gives up writing the change that was staged for now: it is active without the disk, and the next write
    /// that succeeds writes it first. [`Self::take_back`] forgets it.
    pub fn keep_in_memory(&mut self) {
        if let Some(line) = self.staged.take() {
            self.unwritten.push(line);
            self.is_newest_unwritten = true;
        }
    }

    /// Whether there are active changes that are not on disk.
    pub fn is_behind(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Writes the active changes that are not on disk.
    pub fn catch_up(&mut self) -> Result<(), StateError> {
        while let Some(line) = self.unwritten.first() {
            let line = self.redacted(line.clone());
            self.file.add(&line)?;
            self.file.keep_what_is();
            self.unwritten.remove(0);
            self.is_newest_unwritten = false;
        }
        Ok(())
    }

    /// Whether there is a policy that is not on disk yet.
    pub fn is_staged(&self) -> bool {
        self.staged.is_some()
    }

    /// Puts on disk what was staged; on return it is there. On an error it stays staged, for
    /// [`Self::take_back`].
    ///
    /// # Returns
    /// The newest policy's number.
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

    /// What was staged last could not be put in force, whether it is on disk yet or not, and was never. Nothing
    /// happens where that was done already.
    pub fn take_back(&mut self) {
        if self.is_newest_unwritten {
            self.unwritten.pop();
            self.is_newest_unwritten = false;
        } else if self.staged.take().is_none() {
            match self.file.take_back() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => warn!(
                    "{error}; the change that failed may be tried again by the next start; `allowlist rollback` undoes it then"
                ),
            }
        }
        if let Some(policy) = self.known.policies.pop_back() {
            self.known.additions.apply(&policy.undo);
        }
    }

    /// The newest policy is confirmed.
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

    /// Returns the moment that grants are judged by: never before the newest time of the ledger.
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// Removes the additions that have expired, and returns them. That they have is written down, so that a clock
    /// that is set back brings none back.
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
                    "{error}; an addition that has expired may pass again after a start with a clock that was set back"
                );
            }
            self.file.keep_what_is();
        }
        gone
    }

    /// Writes the file anew if most of it is history. That it cannot be is no loss.
    pub fn tidy(&mut self, state: &StateDir, now: &Now) {
        if self.file.edits() > self.known.edits() * 2 + HISTORY {
            self.rewrite(state, now);
        }
    }

    /// Returns the line as it may be on disk.
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
            Err(error) => warn!("{error}"),
        }
    }
}

#[cfg(test)]
mod tests;
