//! The book of additions on disk: a line of JSON a change, beside last-good.
//!
//! Invariants: a change is on disk whole, with its checksum, before anybody is told that it is done; a line
//! that a crash cut short was told to nobody, and is left out; a line that is damaged costs itself only, and
//! the file as it was is set aside. It is written anew, whole, when most of it is history.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use log::warn;
use serde::{Deserialize, Serialize};

use super::{Additions, Edit};
use crate::lines::ends_a_line;
use crate::state::{StateDir, StateError};

/// No source's file can have this name, since a source's name has no dot.
const FILE: &str = "added.v1.jsonl";
/// So many edits more than there are entries are worth writing the file anew.
const HISTORY: usize = 1000;

/// The file, open for writing.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// How many edits are in it.
    edits: usize,
}

#[derive(Serialize, Deserialize)]
struct Line {
    /// Of the edits as this program writes them.
    crc32: u32,
    edits: Vec<Edit>,
}

impl Line {
    fn encode(edits: &[Edit]) -> Vec<u8> {
        let json = serde_json::to_vec(edits).expect("strings and numbers are JSON");
        let mut line = format!("{{\"crc32\":{},\"edits\":", crc32fast::hash(&json)).into_bytes();
        line.extend_from_slice(&json);
        line.extend_from_slice(b"}\n");
        line
    }

    fn decode(bytes: &[u8]) -> Option<Vec<Edit>> {
        let line: Self = serde_json::from_slice(bytes).ok()?;
        let json = serde_json::to_vec(&line.edits).ok()?;
        (crc32fast::hash(&json) == line.crc32).then_some(line.edits)
    }
}

impl Journal {
    /// Reads the book, without what is over at `now`, and opens it for writing.
    ///
    /// Where it cannot be written now, changes will be refused; what is in it counts all the same.
    pub fn open(state: &StateDir, now: Timestamp) -> Result<(Self, Additions), StateError> {
        let path = state.path().join(FILE);
        let Read {
            mut book,
            edits,
            damaged,
        } = read(&path)?;
        if damaged > 0 {
            let kept = path.with_extension("jsonl.damaged");
            let copied = fs::copy(&path, &kept);
            warn!(
                "{}: {damaged} of its lines are damaged and left out, so some prefixes that were added or removed by command may not be as they were{}; `allowlist list --added` shows what there is",
                path.display(),
                if copied.is_ok() {
                    format!("; the file as it was is kept as {}", kept.display())
                } else {
                    String::new()
                }
            );
        }
        book.expire(now);
        let mut journal = Self { path, edits };
        if damaged > 0 || edits > book.len() * 2 + HISTORY {
            journal.rewrite(state, &book);
        }
        Ok((journal, book))
    }

    /// Adds a change; on return it has reached the disk. On an error nothing was added.
    pub fn add(&mut self, edits: &[Edit]) -> Result<(), StateError> {
        let written = self.append(&Line::encode(edits));
        written.map_err(|cause| StateError::Io {
            path: self.path.clone(),
            cause,
        })?;
        self.edits += edits.len();
        Ok(())
    }

    /// Writes the file anew if most of it is history. That it cannot be is no loss.
    pub fn tidy(&mut self, state: &StateDir, book: &Additions) {
        if self.edits > book.len() * 2 + HISTORY {
            self.rewrite(state, book);
        }
    }

    fn rewrite(&mut self, state: &StateDir, book: &Additions) {
        let edits: Vec<Edit> = book.all().cloned().map(Edit::Add).collect();
        match state.write(FILE, &Line::encode(&edits)) {
            Ok(()) => self.edits = edits.len(),
            Err(error) => warn!("{error}"),
        }
    }

    fn append(&self, line: &[u8]) -> io::Result<()> {
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
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

fn whole_lines(bytes: &[u8]) -> u64 {
    let last = bytes.iter().rposition(|byte| *byte == b'\n');
    last.map_or(0, |at| at as u64 + 1)
}

/// The book as it is on disk, for whoever only looks.
pub fn peek(folder: &Path) -> Result<Additions, StateError> {
    Ok(read(&folder.join(FILE))?.book)
}

struct Read {
    book: Additions,
    edits: usize,
    damaged: usize,
}

fn read(path: &Path) -> Result<Read, StateError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(cause) if cause.kind() == ErrorKind::NotFound => Vec::new(),
        Err(cause) => {
            return Err(StateError::Io {
                path: path.to_owned(),
                cause,
            });
        }
    };
    let mut read = Read {
        book: Additions::default(),
        edits: 0,
        damaged: 0,
    };
    let mut lines = bytes.split(|byte| *byte == b'\n').peekable();
    while let Some(line) = lines.next() {
        let is_cut_short = lines.peek().is_none();
        match Line::decode(line) {
            // Without a line break it was told to nobody.
            _ if is_cut_short || line.is_empty() => {}
            Some(edits) => {
                read.edits += edits.len();
                read.book.apply(&edits);
            }
            None => read.damaged += 1,
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{addition, edit};
    use super::*;

    fn open(folder: &Path) -> (StateDir, Journal, Additions) {
        let state = StateDir::open(folder).expect("a state directory");
        let (journal, book) = Journal::open(&state, Timestamp::UNIX_EPOCH).expect("is readable");
        (state, journal, book)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn what_was_added_is_found_again(
            changes in prop::collection::vec(prop::collection::vec(edit(), 0..5), 0..20),
            restart in 0_usize..20,
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let mut model = Additions::default();
            let (mut state, mut journal, _) = open(folder.path());
            for (place, edits) in changes.iter().enumerate() {
                if place == restart {
                    let book;
                    (state, journal, book) = open(folder.path());
                    let mut expected = model.clone();
                    expected.expire(Timestamp::UNIX_EPOCH);
                    prop_assert_eq!(&book, &expected);
                }
                journal.add(edits).expect("is written");
                model.apply(edits);
                journal.tidy(&state, &model);
            }
            model.expire(Timestamp::UNIX_EPOCH);
            prop_assert_eq!(open(folder.path()).2, model);
        }
    }

    /// Cut at any byte, a file holds the changes before that, each whole or not at all.
    #[test]
    fn a_crash_cuts_off_whole_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        let mut books = vec![Additions::default()];
        let mut ends = vec![0];
        let (_, mut journal, mut book) = open(folder.path());
        for number in 0..4 {
            let edits: Vec<Edit> = (0..3)
                .map(|service| Edit::Add(addition(number, service, None)))
                .collect();
            journal.add(&edits).expect("is written");
            book.apply(&edits);
            books.push(book.clone());
            ends.push(fs::metadata(&path).expect("is there").len() as usize);
        }
        let whole = fs::read(&path).expect("is there");
        for length in (0..=whole.len())
            .filter(|length| length % 5 == 0 || ends.iter().any(|end| end.abs_diff(*length) < 2))
        {
            fs::write(&path, &whole[..length]).expect("is written");
            let changes = ends.iter().filter(|end| **end <= length).count() - 1;
            let (_, mut journal, found) = open(folder.path());
            assert_eq!(found, books[changes], "{length} bytes");
            // What comes next is not lost for it.
            let next = [Edit::Add(addition(99, 0, None))];
            journal.add(&next).expect("is written");
            let mut expected = books[changes].clone();
            expected.apply(&next);
            assert_eq!(open(folder.path()).2, expected, "{length} bytes");
        }
    }

    #[test]
    fn a_damaged_line_costs_itself_only_and_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        let (_, mut journal, _) = open(folder.path());
        for number in 0..3 {
            journal
                .add(&[Edit::Add(addition(number, 0, None))])
                .expect("is written");
        }
        let text = fs::read_to_string(&path).expect("is there");
        let damaged = text.replace("192.0.2.1/32", "192.0.2.9/32");
        fs::write(&path, &damaged).expect("is written");
        let (_, _, book) = open(folder.path());
        let found: Vec<_> = book.all().map(|one| one.prefix.to_string()).collect();
        assert_eq!(found, ["192.0.2.0/32", "192.0.2.2/32"]);
        let kept = fs::read_to_string(path.with_extension("jsonl.damaged"));
        assert_eq!(kept.expect("is kept"), damaged);
        // Once it was said, it is in order.
        assert_eq!(peek(folder.path()).expect("is readable"), book);
    }

    #[test]
    fn what_is_mostly_history_is_written_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let (state, mut journal, mut book) = open(folder.path());
        let edits = [
            Edit::Add(addition(1, 0, None)),
            Edit::Remove {
                prefix: addition(1, 0, None).prefix,
                service: "s0".to_owned(),
            },
        ];
        for _ in 0..=HISTORY / 2 {
            journal.add(&edits).expect("is written");
            book.apply(&edits);
        }
        journal.tidy(&state, &book);
        let length = fs::metadata(folder.path().join(FILE))
            .expect("is there")
            .len();
        assert!(length < 100, "{length}");
    }
}
