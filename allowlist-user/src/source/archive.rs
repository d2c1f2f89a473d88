//! Lists out of a ZIP archive that lies in memory.
//!
//! Invariants: nothing is written anywhere; what is unpacked is at most a limit, whatever the archive says
//! of itself; and of an archive that can be read in two ways nothing is taken. Knows no format of lists.

use std::io::{Cursor, Read as _};

use thiserror::Error;
use zip::ZipArchive;
use zip::result::ZipError;

use crate::feed::{FeedError, shown, some_of};
use crate::policy::Pattern;

/// An archive with more files is not one of lists.
const MAX_FILES: usize = 1000;
/// As many names as an error repeats.
const SHOWN_NAMES: usize = 8;
/// More than an error repeats of a text.
const SHOWN_BYTES: usize = 300;

/// Why an archive has no list to give.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// Something else, or a damaged one.
    #[error(
        "is not a ZIP archive that can be read: {problem}: it starts with {start:?}; check the URL, or remove `unzip`"
    )]
    NotAnArchive {
        /// What is wrong with it.
        problem: String,
        /// Its first characters.
        start: String,
    },
    /// Two files of one name, or too many files.
    #[error("is a ZIP archive with {0}; nothing of it is used: ask the vendor")]
    Suspicious(String),
    /// No file of that name.
    #[error("is a ZIP archive without a file that `unzip` ({pattern:?}) matches; it has {files}")]
    NoMatch {
        /// `unzip`.
        pattern: String,
        /// What it has instead.
        files: String,
    },
    /// Encrypted, compressed in an unusual way, or damaged.
    #[error(
        "{file:?} in the ZIP archive cannot be unpacked: {problem}; try again, or ask the vendor"
    )]
    Damaged {
        /// Which file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// More than `max_size`.
    #[error(
        "unpacks to more than {limit} bytes; if the list is meant to be that long, raise `max_size`"
    )]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// A file of it is not a list.
    #[error("{file:?} in the ZIP archive: {error}")]
    Feed {
        /// Which file.
        file: String,
        /// What is wrong with it.
        error: FeedError,
    },
}

/// The files that one of `patterns` matches, by name; at least one for each pattern. Together they have at most `limit`
/// bytes.
pub(super) fn unzip(
    bytes: &[u8],
    patterns: &[Pattern],
    limit: u64,
) -> Result<Vec<(String, Vec<u8>)>, ArchiveError> {
    let unreadable = |error: ZipError| ArchiveError::NotAnArchive {
        problem: problem(&error),
        start: shown(&String::from_utf8_lossy(
            &bytes[..bytes.len().min(SHOWN_BYTES)],
        )),
    };
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(unreadable)?;
    if archive.len() > MAX_FILES {
        let files = format!("{} files, more than {MAX_FILES}", archive.len());
        return Err(ArchiveError::Suspicious(files));
    }
    if archive.has_duplicate_names() {
        return Err(ArchiveError::Suspicious("two files of one name".to_owned()));
    }
    let mut names = Vec::new();
    let mut has_matched = vec![false; patterns.len()];
    let mut left = limit;
    let mut files = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_data(index).map_err(unreadable)?;
        let name = entry.name().map_err(unreadable)?.into_owned();
        if !entry.is_file() || is_hidden(&name) {
            continue;
        }
        names.push(name.clone());
        let mut is_selected = false;
        for (pattern, has_matched) in patterns.iter().zip(&mut has_matched) {
            if pattern.is_match(&name) {
                (is_selected, *has_matched) = (true, true);
            }
        }
        if !is_selected {
            continue;
        }
        let damaged = |problem: String| ArchiveError::Damaged {
            file: shown(&name),
            problem,
        };
        if entry.encrypted() {
            return Err(damaged("it is encrypted".to_owned()));
        }
        let file = archive.by_index(index);
        let file = file.map_err(|error| damaged(problem(&error)))?;
        let mut unpacked = Vec::new();
        // One byte more tells too much from just enough, and reaching the end has the checksum compared.
        file.take(left + 1)
            .read_to_end(&mut unpacked)
            .map_err(|error| damaged(error.to_string()))?;
        left = left
            .checked_sub(unpacked.len() as u64)
            .ok_or(ArchiveError::TooLarge { limit })?;
        files.push((name, unpacked));
    }
    if let Some(missing) = has_matched.iter().position(|has_matched| !has_matched) {
        return Err(ArchiveError::NoMatch {
            pattern: patterns[missing].as_str().to_owned(),
            files: match names.len() {
                0 => "no file at all".to_owned(),
                _ => some_of(names.iter().map(String::as_str), SHOWN_NAMES),
            },
        });
    }
    Ok(files)
}

/// What no vendor means: a desktop's notes on files.
fn is_hidden(name: &str) -> bool {
    name.split('/')
        .any(|part| part == "__MACOSX" || part.starts_with('.'))
}

fn problem(error: &ZipError) -> String {
    match error {
        ZipError::InvalidArchive(problem) => problem.to_string(),
        ZipError::UnsupportedArchive(problem) => (*problem).to_owned(),
        error => error.to_string(),
    }
}
