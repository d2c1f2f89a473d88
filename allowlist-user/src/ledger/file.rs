//! The ledger's bytes: a line a step, each with a checksum; added at the end, or written anew as a whole.
//!
//! Knows what a line is, and not what it means.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use log::warn;
use serde::{Deserialize, Serialize};

use super::Change;
use crate::additions::Addition;
use crate::lines::ends_a_line;
use crate::state::{StateDir, StateError};

/// No source's file can have this name, since a source's name has no dot.
const FILE: &str = "ledger.v1.jsonl";

/// A step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line {
    /// What was added by command before the first change that is known.
    Base { additions: Vec<Addition> },
    /// A change, and the number of the policy that it makes.
    Change { number: u64, change: Change },
    /// That change was confirmed.
    Confirmed { number: u64 },
}

#[derive(Serialize, Deserialize)]
struct Stored {
    /// Of the line as this program writes it.
    crc32: u32,
    line: Line,
}

impl Line {
    fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("strings and numbers are JSON");
        let mut line = format!("{{\"crc32\":{},\"line\":", crc32fast::hash(&json)).into_bytes();
        line.extend_from_slice(&json);
        line.extend_from_slice(b"}\n");
        line
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let stored: Stored = serde_json::from_slice(bytes).ok()?;
        let json = serde_json::to_vec(&stored.line).ok()?;
        (crc32fast::hash(&json) == stored.crc32).then_some(stored.line)
    }

    fn edits(&self) -> usize {
        match self {
            Self::Base { additions } => additions.len(),
            Self::Change { change, .. } => change.edits.len(),
            Self::Confirmed { .. } => 0,
        }
    }
}

/// The file, to be written to.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    /// How many edits are in it.
    edits: usize,
    /// How long it was before the last line.
    before: Option<u64>,
}

/// What a file says.
pub(super) struct Read {
    pub(super) lines: Vec<Line>,
    damaged: usize,
}

impl File {
    /// Reads it.
    ///
    /// # Returns
    /// Also what it says, and whether some of it was damaged. Then the file as it was is kept.
    pub(super) fn open(state: &StateDir) -> Result<(Self, Vec<Line>, bool), StateError> {
        let path = state.path().join(FILE);
        let Read { lines, damaged } = read(state.path())?;
        if damaged > 0 {
            let kept = path.with_extension("jsonl.damaged");
            let copied = fs::copy(&path, &kept);
            warn!(
                "{}: {damaged} of its lines are damaged and left out, so what was added or removed by command may not be as it was{}; `allowlist list --added` shows what there is",
                path.display(),
                if copied.is_ok() {
                    format!("; the file as it was is kept as {}", kept.display())
                } else {
                    String::new()
                }
            );
        }
        let file = Self {
            path,
            edits: lines.iter().map(Line::edits).sum(),
            before: None,
        };
        Ok((file, lines, damaged > 0))
    }

    /// Adds a line; on return it has reached the disk. On an error nothing was added.
    pub(super) fn add(&mut self, line: &Line) -> Result<(), StateError> {
        let written = self.append(&line.encode());
        self.before = Some(written.map_err(|cause| self.problem(cause))?);
        self.edits += line.edits();
        Ok(())
    }

    /// Takes the line off that was added last.
    ///
    /// # Returns
    /// Whether there was one.
    pub(super) fn take_back(&mut self) -> Result<bool, StateError> {
        let Some(length) = self.before.take() else {
            return Ok(false);
        };
        let cut = || {
            let file = OpenOptions::new().write(true).open(&self.path)?;
            file.set_len(length)?;
            file.sync_data()
        };
        cut().map_err(|cause| self.problem(cause))?;
        Ok(true)
    }

    /// Nothing that was added so far will be taken back.
    pub(super) fn keep_what_is(&mut self) {
        self.before = None;
    }

    /// Writes all of it anew.
    pub(super) fn replace(&mut self, state: &StateDir, lines: &[Line]) -> Result<(), StateError> {
        let bytes: Vec<u8> = lines.iter().flat_map(Line::encode).collect();
        state.write(FILE, &bytes)?;
        self.edits = lines.iter().map(Line::edits).sum();
        self.before = None;
        Ok(())
    }

    pub(super) fn edits(&self) -> usize {
        self.edits
    }

    fn problem(&self, cause: io::Error) -> StateError {
        StateError::Io {
            path: self.path.clone(),
            cause,
        }
    }

    /// # Returns
    /// How long the file was.
    fn append(&self, line: &[u8]) -> io::Result<u64> {
        let is_new = !self.path.exists();
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)?;
        if !ends_a_line(&file)? {
            // What a crash cut short was told to nobody, and must not become whole by what follows.
            file.set_len(whole_lines(&fs::read(&self.path)?))?;
        }
        let length = file.metadata()?.len();
        let written = file.write_all(line).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // Whoever asked is told that it is not done, so no start may find it done.
            let _ = file.set_len(length);
            return Err(error);
        }
        if is_new && let Some(folder) = self.path.parent() {
            // The new name, too, must survive a power cut.
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(length)
    }
}

fn whole_lines(bytes: &[u8]) -> u64 {
    let last = bytes.iter().rposition(|byte| *byte == b'\n');
    last.map_or(0, |at| at as u64 + 1)
}

/// Reads the file of a state directory; nothing where there is none.
pub(super) fn read(folder: &Path) -> Result<Read, StateError> {
    let path = folder.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(cause) if cause.kind() == ErrorKind::NotFound => Vec::new(),
        Err(cause) => return Err(StateError::Io { path, cause }),
    };
    let (mut lines, mut damaged) = (Vec::new(), 0);
    // What is behind the last line break was told to nobody.
    let whole = &bytes[..whole_lines(&bytes) as usize];
    for bytes in whole.split(|byte| *byte == b'\n') {
        match Line::decode(bytes) {
            Some(line) => lines.push(line),
            None => damaged += usize::from(!bytes.is_empty()),
        }
    }
    Ok(Read { lines, damaged })
}
