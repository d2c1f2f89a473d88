//! The event log on disk: the operations on the filter, and the changes of lists, one line for each record.
//!
//! A line is a checksum and a [`Record`] in JSON. The oldest records are dropped first. Each class of records has a
//! limit of its own, so that a list that changes often removes no operation.
//!
//! Invariants: a line is appended and never changed; records of earlier versions are moved into this log once. The
//! lines are not synced to the disk, so a crash of the host may lose the last ones; a start needs none of them.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use allowlist_files::bounded::{PATIENCE, within};
use allowlist_files::checksum;
use allowlist_files::lines::{self, Lines, Names, kept_name};
use allowlist_lists::event::Event;
use anyhow::Result;
use jiff::Timestamp;
use log::warn;
use serde::{Deserialize, Serialize};

use crate::audit::AuditEntry;

const NAMES: Names = Names {
    file: "events.v1.jsonl",
    old: "events.v1.old.jsonl",
};

/// A record of the event log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// An operation that was done or refused: an entry of `allowlist log`.
    Operation(AuditEntry),
    /// A change of a source's list: an entry of `allowlist history`.
    List(Event),
}

impl Record {
    fn time(&self) -> Timestamp {
        match self {
            Self::Operation(entry) => entry.time,
            Self::List(event) => event.time,
        }
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        Ok(checksum::prepend(&serde_json::to_vec(self)?))
    }

    fn decode(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(checksum::verify(line)?).ok()
    }

    /// Returns the class of a line of the event log, which selects its size limit: 0 for operations, 1 for list events.
    fn class(line: &[u8]) -> usize {
        let json = line.splitn(2, |byte| *byte == b' ').nth(1);
        usize::from(json.is_none_or(|json| !json.starts_with(b"{\"operation\":")))
    }
}

impl From<AuditEntry> for Record {
    fn from(entry: AuditEntry) -> Self {
        Self::Operation(entry)
    }
}

impl From<&Event> for Record {
    /// Returns the record of an event with at most the number of prefixes that the log stores.
    fn from(event: &Event) -> Self {
        Self::List(event.clone().shortened())
    }
}

/// The event log of a state directory, open for appending.
#[derive(Debug)]
pub struct EventLog {
    folder: PathBuf,
    lines: Lines<2>,
    /// Whether the files of earlier versions are in the log.
    is_migrated: Arc<AtomicBool>,
}

impl EventLog {
    /// Returns the event log in the existing state directory `folder`, limited to `log_bytes` of operations and
    /// `history_bytes` of list events.
    pub fn new(folder: &Path, log_bytes: u64, history_bytes: u64) -> Self {
        Self {
            folder: folder.to_owned(),
            lines: Lines::new(folder, NAMES, [log_bytes, history_bytes], Record::class),
            is_migrated: Arc::default(),
        }
    }

    /// Appends a record. After an error due to a timeout, the record may or may not be in the log.
    pub fn add(&self, record: &Record) -> io::Result<()> {
        let line = record.encode()?;
        let (folder, lines) = (self.folder.clone(), self.lines.clone());
        let is_migrated = Arc::clone(&self.is_migrated);
        let work = move || {
            if !is_migrated.load(Ordering::Relaxed) {
                migrate(&folder, &lines)?;
                is_migrated.store(true, Ordering::Relaxed);
            }
            lines.append(&line)
        };
        within(&self.lines.path(), PATIENCE, work, drop)?
    }
}

/// The records of an event log.
#[derive(Debug, Default)]
pub struct Records {
    /// The operations, the oldest first.
    pub operations: Vec<AuditEntry>,
    /// The list events, the oldest first.
    pub list_events: Vec<Event>,
    /// The number of damaged lines, which are skipped.
    pub damaged: usize,
}

/// Reads the event log in the directory `folder`, including the files of earlier versions that are not migrated yet.
pub fn read(folder: &Path) -> Result<Records> {
    let mut lines = lines::read(folder, NAMES)?;
    let mut records = Records::default();
    let mut older = Vec::new();
    for file in OLDER_FILES {
        let read = file.read(folder)?;
        records.damaged += read.damaged;
        older.extend(read.lines);
    }
    if !older.is_empty() {
        lines = in_order(lines, older);
    }
    for line in lines {
        match Record::decode(&line) {
            Some(Record::Operation(entry)) => records.operations.push(entry),
            Some(Record::List(event)) => records.list_events.push(event),
            None => records.damaged += 1,
        }
    }
    Ok(records)
}

/// A file of earlier versions, which had a log of operations and a log of list events, without checksums.
struct OlderFile {
    name: &'static str,
    decode: fn(&[u8]) -> Option<Record>,
}

const OLDER_FILES: [OlderFile; 4] = [
    OlderFile::operations("audit.v1.old.jsonl"),
    OlderFile::operations("audit.v1.jsonl"),
    OlderFile::list_events("history.v1.old.jsonl"),
    OlderFile::list_events("history.v1.jsonl"),
];

/// The lines of an [`OlderFile`], as lines of this log.
struct OlderLines {
    lines: Vec<Vec<u8>>,
    damaged: usize,
}

impl OlderFile {
    const fn operations(name: &'static str) -> Self {
        let decode = |line: &[u8]| serde_json::from_slice(line).ok().map(Record::Operation);
        Self { name, decode }
    }

    const fn list_events(name: &'static str) -> Self {
        let decode = |line: &[u8]| serde_json::from_slice(line).ok().map(Record::List);
        Self { name, decode }
    }

    fn read(&self, folder: &Path) -> Result<OlderLines> {
        let mut older = OlderLines {
            lines: Vec::new(),
            damaged: 0,
        };
        for line in lines::read_one(&folder.join(self.name))? {
            match (self.decode)(&line) {
                Some(record) => older.lines.push(record.encode()?),
                None => older.damaged += 1,
            }
        }
        Ok(older)
    }
}

/// Moves the records of earlier versions into the log. After an interruption, a repetition adds no record twice.
///
/// A file with damaged lines is renamed. A file that cannot be read is logged, and stays.
fn migrate(folder: &Path, log: &Lines<2>) -> io::Result<()> {
    let (mut older, mut done) = (Vec::new(), Vec::new());
    for file in OLDER_FILES {
        let path = folder.join(file.name);
        if !path.try_exists().map_err(|error| at(&path, &error))? {
            continue;
        }
        match file.read(folder) {
            Ok(read) => {
                older.extend(read.lines);
                done.push((path, read.damaged));
            }
            Err(error) => {
                warn!("{error:#}; the records of this file are not moved to the event log");
            }
        }
    }
    if !older.is_empty() {
        let lines = lines::read(folder, NAMES).map_err(io::Error::other)?;
        log.replace(&in_order(lines, older))?;
    }
    for (path, damaged) in done {
        if damaged == 0 {
            fs::remove_file(&path).map_err(|error| at(&path, &error))?;
        } else {
            let kept = kept_name(&path);
            fs::rename(&path, &kept).map_err(|error| at(&path, &error))?;
            warn!(
                "{}: {damaged} lines are damaged and are not moved to the event log; the file is renamed to {}",
                path.display(),
                kept.display()
            );
        }
    }
    Ok(())
}

/// Returns the error with the path of the file that could not be moved into the log.
fn at(path: &Path, error: &io::Error) -> io::Error {
    let text = format!("cannot move {} into the event log: {error}", path.display());
    io::Error::new(error.kind(), text)
}

/// Returns the lines of the log and of older files in the order of their times, each line once. A damaged line follows
/// the line before it.
fn in_order(log: Vec<Vec<u8>>, older: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let known: HashSet<Vec<u8>> = log.iter().cloned().collect();
    let missing = older.into_iter().filter(|line| !known.contains(line));
    let mut last = Timestamp::MIN;
    let mut dated: Vec<_> = missing
        .chain(log)
        .map(|line| {
            last = Record::decode(&line).map_or(last, |record| record.time());
            (last, line)
        })
        .collect();
    dated.sort_by_key(|(time, _)| *time);
    dated.into_iter().map(|(_, line)| line).collect()
}

#[cfg(test)]
mod tests;
