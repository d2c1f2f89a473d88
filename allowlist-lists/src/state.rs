//! The state directory: the last-good lists on disk, for the next start.
//!
//! Invariants: a list is stored atomically; a damaged list, or one from another origin than the configured one, is
//! never returned; only the owner can write to the directory; one process at a time holds its lock; every access has a
//! time limit.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use allowlist_files::bounded::{Open, PATIENCE, ReadError, within};
use allowlist_files::checksum;
use allowlist_files::lines::kept_name;
use allowlist_files::lock;
use allowlist_files::trust::{self, Untrusted};
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::{
    Feed, Format, GracePrefix, Origin, PastChange, Source, Validator, public_url,
};
use ipnet::IpNet;
use jiff::Timestamp;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use thiserror::Error;

/// The version of the file format, incremented when older versions of the program would misread a file.
///
/// A file is `FORMAT CRC32 JSON`, with [`checksum`] over the JSON.
const FORMAT: u32 = 5;
/// The previous format, which is read too: one JSON object with a checksum over its content, which is encoded again to
/// verify it.
const OLDER_FORMAT: u32 = 4;
/// The maximum size of a stored list's file, in bytes; a larger one is neither read nor written. Sufficient for the
/// largest `max_prefixes`.
const MAX_FEED_BYTES: u64 = 128 << 20;

/// The time limit for opening and checking the state directory.
const OPENING: Duration = Duration::from_secs(2);

/// The state directory, which holds the last-good list of each source in a file of its own.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

/// The lock of a state directory, held until this value is dropped.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct StateLock {
    _directory: File,
}

/// A list that was read from the state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredList {
    /// The stored feed: the list, its grace prefixes and its recent changes.
    pub feed: Feed,
    /// Whether the file has an older format, so that [`StateDir::store`] should write it again.
    pub has_older_format: bool,
}

impl StateDir {
    /// Opens the state directory at `path` for reading and writing, and creates a missing one (mode 0700).
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let folder = path.to_owned();
        let is_shared = within(
            path,
            OPENING,
            move || {
                // Before it is created, and again in case another user created it meanwhile.
                trust::require(&folder)?;
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&folder)?;
                trust::require(&folder)?;
                let found = fs::metadata(&folder)?;
                Ok(found.mode() & 0o022 != 0 || found.uid() != geteuid().as_raw())
            },
            drop,
        );
        let path = path.to_owned();
        match is_shared.flatten() {
            Ok(false) => Ok(Self { path }),
            Ok(true) => Err(StateError::Shared { path }),
            Err(cause) => Err(StateError::Io { path, cause }),
        }
    }

    /// Returns the state directory at `path` without opening it, for a process that continues after opening failed.
    pub fn unopened(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Opens the state directory at `path` for reading, or returns `None` if it does not exist.
    pub fn find(path: &Path) -> Result<Option<Self>, StateError> {
        let folder = path.to_owned();
        match access(path, move || fs::read_dir(&folder).map(drop)) {
            Ok(()) => Ok(Some(Self {
                path: path.to_owned(),
            })),
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(StateError::Io {
                path: path.to_owned(),
                cause,
            }),
        }
    }

    /// Returns the path of the state directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the state directory for this process; fails if another process has the lock.
    ///
    /// The directory itself is locked, which needs neither space nor write access, so that the filter can start on a
    /// full disk.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let io = |cause| StateError::Io {
            path: self.path.clone(),
            cause,
        };
        let path = self.path.clone();
        let (directory, locked) = access(&self.path, move || {
            let directory = File::open(&path)?;
            let locked = directory.try_lock();
            Ok((directory, locked))
        })
        .map_err(io)?;
        match locked {
            Ok(()) => Ok(StateLock {
                _directory: directory,
            }),
            Err(TryLockError::WouldBlock) => Err(StateError::Locked {
                path: self.path.clone(),
                holder: lock::holder_in_words(&directory),
            }),
            Err(TryLockError::Error(cause)) => Err(io(cause)),
        }
    }

    /// Returns the process that holds the lock of the directory, for display: `process 123 (allowlist)`.
    ///
    /// `None` means that no process holds the lock, or that the process is unknown.
    pub fn holder(&self) -> Option<String> {
        let path = self.path.clone();
        access(&self.path, move || {
            Ok(lock::holder_in_words(&File::open(&path)?))
        })
        .ok()?
    }

    /// Returns the stored list of `source`, or `None` if none is stored.
    ///
    /// # Errors
    /// Fails if the file must not be used; the caller logs the error and continues without a list. A damaged file is
    /// renamed.
    pub fn load(&self, source: &Source) -> Result<Option<Feed>, StateError> {
        self.load_readonly(source)
            .map_err(|error| self.set_aside(source, error))
    }

    /// Renames the file of `source` if `error` says that it is damaged, to keep it for analysis; returns `error` with
    /// the new name.
    fn set_aside(&self, source: &Source, error: StateError) -> StateError {
        match error {
            StateError::Damaged { path, problem, .. } => {
                let kept = self.path.join(format!("{}.damaged", source.name));
                let renamed = rename(&path, &kept);
                StateError::Damaged {
                    path,
                    problem,
                    kept: renamed.ok().map(|()| kept),
                }
            }
            other => other,
        }
    }

    /// Returns the stored list of `source` as [`Self::load`] does, but fails if reading it takes longer than `limit`.
    ///
    /// A valid list that is read after this time is passed to `late`.
    pub fn load_or_later(
        &self,
        source: &Source,
        limit: Duration,
        late: impl FnOnce(Feed) + Send + 'static,
    ) -> Result<Option<StoredList>, StateError> {
        if fingerprint(source).is_none() {
            return Ok(None);
        }
        let path = self.file(source);
        let (file, state, owned) = (path.clone(), self.clone(), source.clone());
        let work = move || Open::state(MAX_FEED_BYTES).read_here(&file);
        let late = move |read| {
            if let Ok(Some(stored)) = state.decode(&owned, read) {
                late(stored.feed);
            }
        };
        let read = within(&path, limit, work, late).unwrap_or_else(|error| Err(error.into()));
        self.decode(source, read)
            .map_err(|error| self.set_aside(source, error))
    }

    /// Returns the stored list of `source` as [`Self::load`] does, but does not rename a damaged file.
    pub fn load_readonly(&self, source: &Source) -> Result<Option<Feed>, StateError> {
        if fingerprint(source).is_none() {
            return Ok(None);
        }
        let read = Open::state(MAX_FEED_BYTES).read(&self.file(source));
        Ok(self.decode(source, read)?.map(|stored| stored.feed))
    }

    /// Decodes `read`, the content of the file of `source`; returns `None` if the file does not exist.
    fn decode(
        &self,
        source: &Source,
        read: Result<Vec<u8>, ReadError>,
    ) -> Result<Option<StoredList>, StateError> {
        let Some(origin) = fingerprint(source) else {
            return Ok(None);
        };
        let path = self.file(source);
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) if error.is_missing() => return Ok(None),
            Err(ReadError::Io(cause)) => return Err(StateError::Io { path, cause }),
            Err(other) => {
                return Err(StateError::Damaged {
                    path,
                    problem: other.to_string(),
                    kept: None,
                });
            }
        };
        let (content, format) = match Content::decode(&bytes) {
            Ok(decoded) => decoded,
            Err(Undecodable::Format(format)) => return Err(StateError::Format { path, format }),
            Err(Undecodable::Damaged(problem)) => {
                return Err(StateError::Damaged {
                    path,
                    problem,
                    kept: None,
                });
            }
        };
        if content.origin != origin {
            return Err(StateError::OtherOrigin {
                path,
                stored: content.origin,
                configured: origin,
            });
        }
        Ok(Some(StoredList {
            feed: Feed {
                prefixes: content.prefixes,
                grace: content.grace,
                fetched: content.fetched,
                validators: content.validators,
                notes: content.notes,
                changes: content.changes,
                answered: content.answered.unwrap_or(content.fetched),
            },
            has_older_format: format != FORMAT,
        }))
    }

    /// Stores `feed` as the last-good list of `source`, durably. Prefixes in the configuration, prefixes added by
    /// command and built-in lists are not stored here.
    pub fn store(&self, source: &Source, feed: &Feed) -> Result<(), StateError> {
        let Some(origin) = fingerprint(source) else {
            return Ok(());
        };
        let path = self.file(source);
        let content = Content {
            origin,
            fetched: feed.fetched,
            prefixes: feed.prefixes.clone(),
            grace: feed.grace.clone(),
            validators: feed.validators.clone(),
            notes: feed.notes.clone(),
            changes: feed.changes.clone(),
            answered: (feed.answered != feed.fetched).then_some(feed.answered),
        };
        let bytes = content.encode();
        if bytes.len() as u64 > MAX_FEED_BYTES {
            let cause = io::Error::new(
                ErrorKind::FileTooLarge,
                format!("the list would take more than {MAX_FEED_BYTES} bytes"),
            );
            return Err(StateError::Io { path, cause });
        }
        self.replace(path, bytes)
    }

    /// Replaces the file `name` in the directory by one with the content `bytes`, atomically and durably.
    pub fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), StateError> {
        self.replace(self.path.join(name), bytes)
    }

    fn replace(&self, path: PathBuf, bytes: Vec<u8>) -> Result<(), StateError> {
        let (folder, target) = (self.path.clone(), path.clone());
        access(&path, move || {
            let mut file = NamedTempFile::new_in(&folder)?;
            file.write_all(&bytes)?;
            file.as_file().sync_all()?;
            if let Err(failed) = file.persist(&target) {
                // A directory cannot be replaced by a file: rename it.
                if failed.error.kind() != ErrorKind::IsADirectory {
                    return Err(failed.error);
                }
                fs::rename(&target, kept_name(&target))?;
                failed.file.persist(&target)?;
            }
            // Make the new name durable too.
            File::open(&folder)?.sync_all()
        })
        .map_err(|cause| StateError::Io { path, cause })
    }

    fn file(&self, source: &Source) -> PathBuf {
        self.path.join(format!("{}.json", source.name))
    }
}

/// Renames the file `from` of a state directory to `to`, within a time limit.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let (place, to) = (from.to_owned(), to.to_owned());
    access(from, move || fs::rename(&place, &to))
}

/// Runs `work`, which accesses `place` in a state directory, on a thread of its own and within a time limit.
fn access<T: Send + 'static>(
    place: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    within(place, PATIENCE, work, drop)?
}

/// Returns the remedy for the I/O error `cause`, as a part of a message.
fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => "only its owner may read it, try sudo",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space; `allowlist detach` works on a full disk"
        }
        io::ErrorKind::TimedOut => "check the disk or the file server of the state directory",
        _ => "check the state directory and its permissions",
    }
}

/// The reason why the state directory or one of its files cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// An operation on the directory or on a file in it failed.
    #[error("{}: {cause}; {}", path.display(), remedy(cause))]
    Io {
        /// The path of the file or directory.
        path: PathBuf,
        /// The error of the operating system, or the reason why the path is not trusted.
        cause: io::Error,
    },
    /// Users other than the owner can write to the directory, or it has another owner.
    #[error("{}: other users can write to the directory; change its owner to this user and its mode to 0700, or choose another --state-dir", path.display())]
    Shared {
        /// The path of the directory.
        path: PathBuf,
    },
    /// Another process has the lock of the directory.
    #[error(
        "{}: the state directory is in use by {}; stop that process, or choose another --state-dir",
        path.display(),
        holder.as_deref().unwrap_or("another process")
    )]
    Locked {
        /// The path of the directory.
        path: PathBuf,
        /// The process that has the lock, such as `process 123 (allowlist)`; `None` if it is unknown.
        holder: Option<String>,
    },
    /// The file of a list is damaged.
    #[error(
        "{}: the last-good list is damaged, and is not used: {problem}{}; the next fetched list replaces it",
        path.display(),
        kept.as_ref().map_or_else(String::new, |kept| format!("; the file was renamed to {}", kept.display()))
    )]
    Damaged {
        /// The path of the file.
        path: PathBuf,
        /// What is wrong with the content of the file.
        problem: String,
        /// The new path of the file; `None` if it was not renamed.
        kept: Option<PathBuf>,
    },
    /// Another version of the program wrote the file, in a format that this version does not read.
    #[error("{}: the last-good list is not used, since its format is {format}, and this version reads the formats {OLDER_FORMAT} and {FORMAT}; the next fetched list replaces it", path.display())]
    Format {
        /// The path of the file.
        path: PathBuf,
        /// The version of the file's format.
        format: u32,
    },
    /// The stored list comes from another origin than the source's configured one.
    #[error("{}: the last-good list is not used, since it is from {stored}, and the source is {configured} now; the next fetched list replaces it", path.display())]
    OtherOrigin {
        /// The path of the file.
        path: PathBuf,
        /// The origin from which the stored list was fetched.
        stored: String,
        /// The origin that the source has in the configuration.
        configured: String,
    },
}

impl StateError {
    /// Returns the stable identifier of the error.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Io { cause, .. } if cause.kind() == ErrorKind::PermissionDenied => {
                ErrorCode::Forbidden
            }
            Self::Io { cause, .. }
                if cause
                    .get_ref()
                    .is_some_and(<dyn std::error::Error + Send + Sync>::is::<Untrusted>) =>
            {
                ErrorCode::UntrustedPath
            }
            Self::Locked { .. } => ErrorCode::AlreadyRunning,
            _ => ErrorCode::InvalidStateDir,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Content {
    origin: String,
    fetched: Timestamp,
    prefixes: Vec<IpNet>,
    // Empty fields are omitted: in files of the older format, the checksum is over the rest.
    #[serde(default, rename = "held", skip_serializing_if = "Vec::is_empty")]
    grace: Vec<GracePrefix>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    validators: Vec<Validator>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    changes: Vec<PastChange>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answered: Option<Timestamp>,
}

enum Undecodable {
    Format(u32),
    Damaged(String),
}

impl Content {
    fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("strings and numbers are JSON");
        [format!("{FORMAT} ").as_bytes(), &checksum::prepend(&json)].concat()
    }

    /// Returns the content of a file, and the format of the file.
    fn decode(bytes: &[u8]) -> Result<(Self, u32), Undecodable> {
        if bytes.starts_with(b"{") {
            return Ok((Self::decode_older(bytes)?, OLDER_FORMAT));
        }
        let damaged = |problem: &str| Undecodable::Damaged(problem.to_owned());
        let space = bytes.iter().position(|byte| *byte == b' ');
        let no_version = || damaged("it does not begin with a format version");
        let (format, stored) = bytes.split_at(space.ok_or_else(no_version)?);
        let format = std::str::from_utf8(format).ok();
        let format = format.and_then(|format| format.parse().ok());
        let format: u32 = format.ok_or_else(no_version)?;
        if format != FORMAT {
            return Err(Undecodable::Format(format));
        }
        let json = checksum::verify(&stored[1..]).ok_or_else(|| damaged("checksum mismatch"))?;
        let content = serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))?;
        Ok((content, format))
    }

    /// Returns the content of a file of the [`OLDER_FORMAT`].
    fn decode_older(bytes: &[u8]) -> Result<Self, Undecodable> {
        /// The field that all formats before 5 have.
        #[derive(Deserialize)]
        struct Header {
            format: u32,
        }
        #[derive(Deserialize)]
        struct Stored {
            /// The CRC-32 of the JSON text of `content`.
            crc32: u32,
            content: Content,
        }
        let damaged = |error: serde_json::Error| Undecodable::Damaged(error.to_string());
        let Header { format } = serde_json::from_slice(bytes).map_err(damaged)?;
        if format != OLDER_FORMAT {
            return Err(Undecodable::Format(format));
        }
        let stored: Stored = serde_json::from_slice(bytes).map_err(damaged)?;
        let json = serde_json::to_vec(&stored.content).map_err(damaged)?;
        if stored.crc32 != crc32fast::hash(&json) {
            return Err(Undecodable::Damaged("checksum mismatch".to_owned()));
        }
        Ok(stored.content)
    }
}

/// Returns the identity of the list of `source`, which a stored list must match; `None` if the list is never stored.
///
/// Credentials are not part of the identity. The query of a URL is, as a checksum, since it may select another list.
fn fingerprint(source: &Source) -> Option<String> {
    let read_as = |origin: String, format: &Format, usual: &Format| {
        if format == usual {
            origin
        } else {
            format!("{origin} as {format}")
        }
    };
    match &source.origin {
        Origin::Prefixes(_) | Origin::Added | Origin::BuiltIn { .. } => None,
        Origin::File { path, format } => {
            // Independent of the working directory.
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            Some(read_as(path.display().to_string(), format, &Format::Text))
        }
        Origin::Http(http) => {
            let urls: Vec<_> = http
                .urls
                .iter()
                .map(|url| {
                    let query = url
                        .query()
                        .map(|query| format!("?crc32={:08x}", crc32fast::hash(query.as_bytes())));
                    public_url(url) + &query.unwrap_or_default()
                })
                .collect();
            let mut origin = read_as(urls.join(" and "), &http.format, &Format::json_array());
            let discover = http.discover.iter().map(|pattern| (" discover ", pattern));
            let unzip = http.unzip.iter().map(|pattern| (" unzip ", pattern));
            for (word, pattern) in discover.chain(unzip) {
                origin += word;
                origin += pattern.as_str();
            }
            if http.newest {
                origin += " newest";
            }
            Some(origin)
        }
        Origin::Names(lookup) => Some(format!("names {}", lookup.names.join(" "))),
    }
}

#[cfg(test)]
mod tests;
