//! Reads files that the configuration names: lists, certificates, tokens.
//!
//! Invariant: a read has a limit in bytes and in time, and blocks no thread of the async runtime.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use allowlist_files::bounded::{Open, ReadError};
use allowlist_files::trust;
use allowlist_policy::Format;
use jiff::Timestamp;
use jiff::civil::Date;

use super::error::FetchErrorCause;
use super::gzip::GzipError;
use super::{Fetched, gzip, parse_blocking, run_blocking, union};
use crate::feed;

/// The maximum size of a list's file in bytes, before and after the expansion of gzip data; a larger one is an error,
/// since the list is held in memory.
const MAX_BYTES: u64 = 64 << 20;

/// The time limit for opening and reading a file.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// Reads and parses the list in the file `path`, expanded if it is gzip data. `may_be_empty` allows a list without
/// prefixes. `now` becomes the list's fetch time; rows of a page that expired before `today` are left out.
pub(super) async fn fetch(
    path: &Path,
    format: &Format,
    may_be_empty: bool,
    now: Timestamp,
    today: Date,
) -> Result<Fetched, FetchErrorCause> {
    let limited = open(MAX_BYTES);
    let file = path.to_owned();
    let read = run_blocking(move || limited.read_with_metadata(&file)).await;
    let (bytes, metadata) = read.map_err(|error| match error {
        ReadError::TooLarge { limit } => FetchErrorCause::FileTooLarge { limit },
        ReadError::Unsteady => FetchErrorCause::Unsteady,
        error if error.is_timeout() => FetchErrorCause::FileTimeout(TIMEOUT),
        ReadError::Io(error) => FetchErrorCause::File(error),
        other => FetchErrorCause::NotAFile(other.to_string()),
    })?;
    let format = format.clone();
    let list = parse_blocking(bytes.len(), move || {
        let bytes = gzip::expand_file(bytes, MAX_BYTES).map_err(|error| match error {
            GzipError::TooLarge { limit } => FetchErrorCause::FileTooLarge { limit },
            error => FetchErrorCause::Gzip(error),
        })?;
        Ok::<_, FetchErrorCause>(feed::parse_part(&format, &bytes, today, may_be_empty)?)
    })
    .await;
    let list = list.map_err(|error| match error {
        // A user who controls a symbolic link on the way could otherwise read any file in the log.
        FetchErrorCause::Feed(error) if !is_public(path, &metadata) => {
            FetchErrorCause::PrivateFile(error.line())
        }
        error => error,
    })?;
    Ok(union([list], now))
}

/// Reads a certificate or token file of at most `limit` bytes.
///
/// # Errors
/// The file cannot be read within the limits, or users other than root and this process's own could replace it.
pub(super) async fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let path: PathBuf = path.to_owned();
    let limited = open(limit);
    run_blocking(move || {
        trust::require(&path)?;
        limited.read(&path)
    })
    .await
}

fn open(limit: u64) -> Open {
    Open {
        timeout: TIMEOUT,
        ..Open::configured(limit)
    }
}

/// Returns whether messages may quote the content of the list at `path`, whose metadata is `file`.
///
/// They may if every user may read the file, and either only trusted users can change which file the path leads to, or
/// every user may enter all folders above the file.
fn is_public(path: &Path, file: &Metadata) -> bool {
    let may_enter =
        |folder: &Path| fs::metadata(folder).is_ok_and(|found| found.mode() & 0o001 != 0);
    let is_trusted = || trust::examine(path).is_ok_and(|findings| findings.is_empty());
    let is_open =
        || fs::canonicalize(path).is_ok_and(|path| path.ancestors().skip(1).all(may_enter));
    file.mode() & 0o004 != 0 && (is_trusted() || is_open())
}
