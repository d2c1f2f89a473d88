//! Unpacks lists from a ZIP archive in memory.
//!
//! Invariants: nothing is written to disk; the unpacked size has a limit, independent of the sizes that the archive
//! states; and an ambiguous archive is refused. Knows no format of lists.

use std::io::{Cursor, Read as _};

use allowlist_policy::Pattern;
use thiserror::Error;
use zip::ZipArchive;
use zip::result::ZipError;

use crate::feed::{FeedError, shown, some_of};

/// The most files that a ZIP archive may have; one with more fails with [`ArchiveError::Suspicious`].
const MAX_FILES: usize = 1000;
/// The most file names that an error message shows.
const SHOWN_NAMES: usize = 8;
/// The number of bytes at the start of invalid data from which an error message quotes.
const SHOWN_BYTES: usize = 300;

/// The reason why no list could be read from a ZIP archive.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The data is not a valid ZIP archive.
    #[error(
        "the answer is not a valid ZIP archive: {problem}; it starts with {start:?}: check the URL, or remove `unzip`"
    )]
    NotAnArchive {
        /// The reason why the archive cannot be read.
        problem: String,
        /// The first characters of the data.
        start: String,
    },
    /// The archive has two files with the same name, or too many files. The text is the reason.
    #[error("the ZIP archive has {0}, and was discarded; report it to the vendor")]
    Suspicious(String),
    /// No file name in the archive matches a pattern of `unzip`.
    #[error(
        "no file in the ZIP archive matches unzip = {pattern:?}; it has {files}: correct `unzip` if the archive has changed"
    )]
    NoMatch {
        /// The pattern of `unzip` that matches no file.
        pattern: String,
        /// The names of the files in the archive, for display.
        files: String,
    },
    /// A file in the archive is encrypted, damaged, or has an unsupported compression.
    #[error(
        "{file:?} in the ZIP archive cannot be unpacked: {problem}; try again, or report it to the vendor"
    )]
    Damaged {
        /// The name of the file in the archive.
        file: String,
        /// The reason why the file cannot be unpacked.
        problem: String,
    },
    /// The unpacked files are larger than `max_size`.
    #[error(
        "the ZIP archive unpacks to more than {limit} bytes; raise `max_size` if such a list is expected"
    )]
    TooLarge {
        /// The configured `max_size`, in bytes.
        limit: u64,
    },
    /// A file in the archive is not a valid list.
    #[error("{file:?} in the ZIP archive: {error}")]
    Feed {
        /// The name of the file in the archive.
        file: String,
        /// The reason why the file is not a valid list.
        error: FeedError,
    },
}

/// Returns the names and contents of the files in the ZIP archive `bytes` whose names match one of `patterns`.
///
/// Each pattern must match a file, and the unpacked files must have at most `limit` bytes in all.
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
        return Err(ArchiveError::Suspicious(
            "two files with the same name".to_owned(),
        ));
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
        // One byte beyond the limit detects an excess, and reading to the end verifies the checksum.
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

/// Returns whether the file `name` in an archive is metadata of a desktop system, which is not a list.
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
