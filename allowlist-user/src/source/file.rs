//! Reads files that the configuration names: lists, certificates, tokens.
//!
//! Invariant: a read has a limit in bytes and in time, and holds up no thread of the runtime.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;

use super::error::FetchErrorCause;
use super::{Fetched, beside, gzip, parse_beside, union};
use crate::bounded::{Open, ReadError};
use crate::feed;
use crate::policy::Format;

/// A file is held in memory while it is read.
const MAX_BYTES: u64 = 64 << 20;

/// How long a file may take to be opened and read.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// The list in a file.
pub(super) async fn fetch(
    path: &Path,
    format: &Format,
    now: Timestamp,
    today: Date,
) -> Result<Fetched, FetchErrorCause> {
    let bytes = read(path, MAX_BYTES).await.map_err(|error| match error {
        ReadError::TooLarge { limit } => FetchErrorCause::FileTooLarge { limit },
        ReadError::Unsteady => FetchErrorCause::Unsteady,
        error if error.is_timeout() => FetchErrorCause::FileTimeout(TIMEOUT),
        ReadError::Io(error) => FetchErrorCause::File(error),
        other => FetchErrorCause::NotAFile(other.to_string()),
    })?;
    let format = format.clone();
    let list = parse_beside(bytes.len(), move || {
        let bytes = gzip::expand_file(bytes, MAX_BYTES)?;
        Ok::<_, FetchErrorCause>(feed::parse(&format, &bytes, today)?)
    });
    Ok(union([list.await?], now))
}

/// All of a file, unless that is more than `limit` bytes.
pub(super) async fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let path: PathBuf = path.to_owned();
    let open = Open {
        timeout: TIMEOUT,
        ..Open::configured(limit)
    };
    beside(move || open.read(&path)).await
}
