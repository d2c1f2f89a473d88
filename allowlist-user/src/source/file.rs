//! Reads files: an operator's list, and what a request needs (certificates, a token).
//!
//! Invariants: waits for nobody, so it opens no pipe; reads no more than a limit; and what it returns was
//! in the file at one moment, as far as its size and times can tell.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use jiff::Timestamp;
use jiff::civil::Date;
use tokio::io::AsyncReadExt as _;

use super::error::FetchErrorCause;
use super::{Fetched, beside, union};
use crate::feed;
use crate::policy::Format;

/// A file is held in memory while it is read.
const MAX_BYTES: u64 = 64 << 20;

/// The list in a file.
pub(super) async fn fetch(
    path: &Path,
    format: &Format,
    now: Timestamp,
    today: Date,
) -> Result<Fetched, FetchErrorCause> {
    let bytes = read(path, MAX_BYTES).await.map_err(|error| match error {
        ReadError::Io(error) => FetchErrorCause::File(error),
        ReadError::NotAFile => FetchErrorCause::NotAFile,
        ReadError::TooLarge => FetchErrorCause::FileTooLarge { limit: MAX_BYTES },
        ReadError::Unsteady => FetchErrorCause::Unsteady,
    })?;
    let format = format.clone();
    let list = beside(move || feed::parse(&format, &bytes, today)).await?;
    Ok(union([list], now))
}

/// Why a file was not read.
#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    /// A folder, a pipe, a device.
    NotAFile,
    TooLarge,
    /// It changed, twice.
    Unsteady,
}

impl ReadError {
    /// What is wrong with the file, for an error that goes on to say what to do.
    pub(super) fn problem(&self) -> String {
        match self {
            Self::Io(error) => error.to_string(),
            Self::NotAFile => "it is not a file".to_owned(),
            Self::TooLarge => "it is too large".to_owned(),
            Self::Unsteady => "it changes while it is read".to_owned(),
        }
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// All of a file, unless that is more than `limit`.
pub(super) async fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    read_steadily(path, limit, || {}).await
}

/// The same; `meanwhile` runs when the bytes were read, and before that is believed.
async fn read_steadily(
    path: &Path,
    limit: u64,
    mut meanwhile: impl FnMut(),
) -> Result<Vec<u8>, ReadError> {
    for _ in 0..2 {
        // Before it is opened: opening a pipe waits for its writer.
        if !tokio::fs::metadata(path).await?.is_file() {
            return Err(ReadError::NotAFile);
        }
        let mut file = tokio::fs::File::open(path).await?;
        let before = version(&file.metadata().await?);
        let mut bytes = Vec::new();
        (&mut file).take(limit + 1).read_to_end(&mut bytes).await?;
        meanwhile();
        if bytes.len() as u64 > limit {
            return Err(ReadError::TooLarge);
        }
        // Of the open file: one that was renamed into its place meanwhile is for the next time.
        if version(&file.metadata().await?) == before {
            return Ok(bytes);
        }
    }
    Err(ReadError::Unsteady)
}

/// What changes when a file is written to.
fn version(metadata: &Metadata) -> (u64, i64, i64) {
    (metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(future)
    }

    #[test]
    fn a_file_that_changes_is_read_once_more() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("list");
        std::fs::write(&path, "192.0.2.1\n").expect("a file");
        let mut changes = vec!["192.0.2.1\n192.0.2.2\n"];
        let read = run(read_steadily(&path, 100, || {
            if let Some(change) = changes.pop() {
                std::fs::write(&path, change).expect("a file");
            }
        }));
        assert_eq!(
            read.expect("steady at last"),
            b"192.0.2.1\n192.0.2.2\n",
            "the second reading"
        );
    }

    #[test]
    fn a_file_that_keeps_changing_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("list");
        std::fs::write(&path, "#").expect("a file");
        let mut text = "#".to_owned();
        let read = run(read_steadily(&path, 100, || {
            text.push('#');
            std::fs::write(&path, &text).expect("a file");
        }));
        assert!(matches!(read, Err(ReadError::Unsteady)), "{read:?}");
    }

    #[test]
    fn no_more_than_the_limit_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("list");
        std::fs::write(&path, "12345").expect("a file");
        assert_eq!(run(read(&path, 5)).expect("fits"), b"12345");
        let read = run(read(&path, 4));
        assert!(matches!(read, Err(ReadError::TooLarge)), "{read:?}");
    }
}
