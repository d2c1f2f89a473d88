//! The file of the journal: lines with checksums, which are appended, or rewritten as a whole.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use allowlist_files::bounded::{Open, PATIENCE, ReadError, within};
use allowlist_files::checksum;
use allowlist_files::lines::{ends_a_line, kept_name};
use allowlist_lists::state::{StateDir, StateError, rename};
use allowlist_policy::hints::counted;
use ipnet::IpNet;
use jiff::Timestamp;
use log::warn;
use serde::{Deserialize, Serialize};

use super::Change;
use crate::additions::Addition;

/// The name of the journal's file. No list of a source can have this name, since names of sources have no dot.
const FILE: &str = "journal.v2.jsonl";
/// The journal of earlier versions, which is read if [`FILE`] is missing, and removed once its lines are in [`FILE`].
///
/// A line is JSON with a checksum, which is that of the content after it was decoded and encoded again.
const OLDER_FILE: &str = "ledger.v1.jsonl";
/// The maximum size of the journal's file, in bytes. A line that would exceed it is not written, and its change fails.
const MAX_BYTES: u64 = 256 << 20;

/// A line of the journal's file, without its checksum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line {
    /// The added prefixes before the oldest stored change.
    Base { additions: Vec<Addition> },
    /// A change, with the number of its policy.
    Change { number: u64, change: Box<Change> },
    /// The policy with this number was confirmed.
    Confirmed { number: u64 },
    /// The added prefixes that expired, each with the name of its service, and the time of the expiry.
    Expired {
        time: Timestamp,
        additions: Vec<(IpNet, String)>,
    },
}

impl Line {
    /// Returns the line as the file has it: a checksum, the JSON, and a line break.
    fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("strings and numbers are JSON");
        let mut line = checksum::prepend(&json);
        line.push(b'\n');
        line
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(checksum::verify(bytes)?).ok()
    }

    /// Decodes a line of the [`OLDER_FILE`].
    fn decode_older(bytes: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Stored {
            crc32: u32,
            line: Line,
        }
        let stored: Stored = serde_json::from_slice(bytes).ok()?;
        let json = serde_json::to_vec(&stored.line).ok()?;
        (crc32fast::hash(&json) == stored.crc32).then_some(stored.line)
    }

    fn edits(&self) -> usize {
        match self {
            Self::Base { additions } => additions.len(),
            Self::Change { change, .. } => change.edits.len(),
            Self::Confirmed { .. } | Self::Expired { .. } => 0,
        }
    }
}

/// A function that decodes a line; `None` if the line is damaged.
type Decode = fn(&[u8]) -> Option<Line>;

/// The open file of the journal.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    /// The number of edits of added prefixes in the file, including the prefixes of [`Line::Base`].
    edits: usize,
    /// The length in bytes to which [`Self::undo_last`] truncates the file; `None` if no line can be removed.
    before: Option<u64>,
    /// Whether the file could not be read, in which case nothing is appended to it.
    is_unread: bool,
    /// The state directory and the lines of the [`OLDER_FILE`], which the next write moves into the file; `None` if
    /// there are none to move.
    migrating: Option<(StateDir, Vec<Line>)>,
}

/// The undamaged lines of the journal's file, and the number of damaged ones.
#[derive(Default)]
pub(super) struct Read {
    pub(super) lines: Vec<Line>,
    damaged: usize,
}

impl File {
    /// Opens the journal's file. Returns the file, its lines, and whether the file should be rewritten.
    ///
    /// The file should be rewritten if it is the [`OLDER_FILE`], or if some lines are damaged; then the damaged file is
    /// copied first. A file that cannot be read has no lines, and nothing is appended to it.
    pub(super) fn open(state: &StateDir) -> (Self, Vec<Line>, bool) {
        let mut file = Self {
            path: state.path().join(FILE),
            edits: 0,
            before: None,
            is_unread: false,
            migrating: None,
        };
        let (path, read) = find(state.path());
        let Read { lines, damaged } = match read {
            Ok(read) => read,
            Err(error) => {
                file.set_aside(&path, &error);
                return (file, Vec::new(), false);
            }
        };
        if path == file.path {
            // An earlier migration may have been interrupted.
            file.remove_older();
        } else {
            file.migrating = Some((state.clone(), lines.clone()));
        }
        if damaged > 0 {
            let kept = kept_name(&path);
            let (from, to) = (path.clone(), kept.clone());
            let copied = within(&path, PATIENCE, move || copy(&from, &to), drop).flatten();
            warn!(
                "{}: ignoring {}; prefixes that `allowlist add` added may be missing, and removed ones may be allowed again; compare `allowlist list --added` with what you expect, and add or remove the difference{}",
                path.display(),
                counted(damaged, "damaged line"),
                if copied.is_ok() {
                    format!("; a copy of the file is {}", kept.display())
                } else {
                    String::new()
                }
            );
        }
        file.edits = lines.iter().map(Line::edits).sum();
        let should_rewrite = damaged > 0 || file.migrating.is_some();
        (file, lines, should_rewrite)
    }

    /// Renames a file at `path` that is not a journal, so that a new one can replace it. After an I/O error, keeps the
    /// file.
    fn set_aside(&mut self, path: &Path, error: &ReadError) {
        let lost = "policies and added prefixes are lost";
        if let ReadError::Io(_) = error {
            self.is_unread = true;
            warn!(
                "{}: {error}; starting without policies and added prefixes, and storing no changes; repair the disk, then restart the daemon",
                path.display()
            );
            return;
        }
        let kept = kept_name(path);
        match rename(path, &kept) {
            Ok(()) => warn!(
                "{}: {error}; {lost}; the file is renamed to {}",
                path.display(),
                kept.display()
            ),
            Err(cause) => {
                self.is_unread = true;
                warn!(
                    "{}: {error}, and the file cannot be renamed: {cause}; {lost}, and changes are not stored; rename the file, then restart the daemon",
                    path.display()
                );
            }
        }
    }

    /// Removes the [`OLDER_FILE`], whose lines are in this file. A failure is logged.
    fn remove_older(&self) {
        let older = self.folder().join(OLDER_FILE);
        let path = older.clone();
        let removed = within(&older, PATIENCE, move || fs::remove_file(&path), drop).flatten();
        if let Err(error) = removed
            && error.kind() != ErrorKind::NotFound
        {
            warn!(
                "{}: cannot remove this journal of an earlier version: {error}; its records are in the present journal, so remove the file by hand",
                older.display()
            );
        }
    }

    /// Appends a line to the file durably. After an error nothing is appended.
    pub(super) fn add(&mut self, line: &Line) -> Result<(), StateError> {
        if let Some((state, lines)) = self.migrating.clone() {
            self.replace(&state, &lines)?;
        }
        let written = self.append(line.encode());
        self.before = Some(written.map_err(|cause| self.problem(cause))?);
        self.edits += line.edits();
        Ok(())
    }

    /// Removes the line that was appended last, unless [`Self::make_permanent`] was called since. Returns whether a
    /// line was removed.
    pub(super) fn undo_last(&mut self) -> Result<bool, StateError> {
        let Some(length) = self.before.take() else {
            return Ok(false);
        };
        let path = self.path.clone();
        let cut = move || {
            let options = &mut OpenOptions::new();
            let file = Open::state(MAX_BYTES).open(&path, options.write(true))?;
            file.set_len(length)?;
            file.sync_data()
        };
        let cut = within(&self.path, PATIENCE, cut, drop).flatten();
        cut.map_err(|cause| self.problem(cause))?;
        Ok(true)
    }

    /// Makes all lines permanent, so that [`Self::undo_last`] cannot remove them.
    pub(super) fn make_permanent(&mut self) {
        self.before = None;
    }

    /// Replaces the content of the file by `lines`.
    pub(super) fn replace(&mut self, state: &StateDir, lines: &[Line]) -> Result<(), StateError> {
        if self.is_unread {
            return Err(self.problem(unread()));
        }
        let bytes: Vec<u8> = lines.iter().flat_map(Line::encode).collect();
        state.write(FILE, bytes)?;
        self.edits = lines.iter().map(Line::edits).sum();
        self.before = None;
        if self.migrating.take().is_some() {
            self.remove_older();
        }
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

    /// Appends an encoded line to the file, and returns the earlier length of the file in bytes.
    fn append(&self, line: Vec<u8>) -> io::Result<u64> {
        if self.is_unread {
            return Err(unread());
        }
        let (path, folder) = (self.path.clone(), self.folder().to_owned());
        let late = self.path.clone();
        // A line that is written too late was answered with an error, so no start may find it.
        let undo = move |written: io::Result<u64>| {
            if let Ok(length) = written {
                let options = &mut OpenOptions::new();
                let file = Open::state(MAX_BYTES).open(&late, options.write(true));
                let cut = file.map_err(io::Error::from).and_then(|file| {
                    file.set_len(length)?;
                    file.sync_data()
                });
                if let Err(error) = cut {
                    warn!(
                        "cannot remove the refused change from the journal {}: {error}; the next start may apply it; `allowlist rollback` then undoes it",
                        late.display()
                    );
                }
            }
        };
        let work = move || append(&path, &folder, &line);
        within(&self.path, PATIENCE, work, undo)?
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }
}

/// Appends a line to the file at `path`, and creates a missing file. Returns the earlier length of the file in bytes.
fn append(path: &Path, folder: &Path, line: &[u8]) -> io::Result<u64> {
    let is_new = !path.exists();
    let mut options = OpenOptions::new();
    options.create(true).read(true).append(true).mode(0o600);
    let mut file = Open::state(MAX_BYTES).open(path, &options)?;
    if !ends_a_line(&file)? {
        // Remove a line that a crash cut short, so that this one does not complete it.
        let bytes = Open::state(MAX_BYTES).read_here(path)?;
        file.set_len(whole_lines(&bytes))?;
    }
    let length = file.metadata()?.len();
    if length + line.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("the file would exceed {MAX_BYTES} bytes"),
        ));
    }
    let written = file.write_all(line).and_then(|()| file.sync_data());
    if let Err(error) = written {
        // The request is refused, so no later start may find it.
        let _ = file.set_len(length);
        return Err(error);
    }
    if is_new {
        // Make the name durable too.
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(length)
}

/// Copies the file `from` to `to`, and replaces an existing file there.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let bytes = Open::state(MAX_BYTES).read_here(from)?;
    let _ = fs::remove_file(to);
    let mut options = OpenOptions::new();
    let mut file = Open::state(MAX_BYTES).open(to, options.write(true).create_new(true))?;
    file.write_all(&bytes)
}

fn unread() -> io::Error {
    io::Error::other(
        "the file could not be read at the start, so nothing is appended; repair the disk, then restart the daemon",
    )
}

fn whole_lines(bytes: &[u8]) -> u64 {
    let last = bytes.iter().rposition(|byte| *byte == b'\n');
    last.map_or(0, |at| at as u64 + 1)
}

/// Reads the journal's file in the state directory `folder`. A missing file has no lines.
pub(super) fn read(folder: &Path) -> Result<Read, StateError> {
    let (path, read) = find(folder);
    read.map_err(|error| StateError::Io {
        path,
        cause: error.into(),
    })
}

/// Reads the journal's file, or the [`OLDER_FILE`] if that is missing. Returns the path of the file, and its lines.
fn find(folder: &Path) -> (PathBuf, Result<Read, ReadError>) {
    let files: [(_, Decode); 2] = [(FILE, Line::decode), (OLDER_FILE, Line::decode_older)];
    for (name, decode) in files {
        let path = folder.join(name);
        match Open::state(MAX_BYTES).read(&path) {
            Err(error) if error.is_missing() => {}
            bytes => return (path, bytes.map(|bytes| Read::new(&bytes, decode))),
        }
    }
    (folder.join(FILE), Ok(Read::default()))
}

impl Read {
    fn new(bytes: &[u8], decode: Decode) -> Self {
        let (mut lines, mut damaged) = (Vec::new(), 0);
        // A last line without its line break was cut short.
        let whole = &bytes[..whole_lines(bytes) as usize];
        for bytes in whole.split(|byte| *byte == b'\n') {
            match decode(bytes) {
                Some(line) => lines.push(line),
                None => damaged += usize::from(!bytes.is_empty()),
            }
        }
        Self { lines, damaged }
    }
}
