//! Last-good: the feeds that a host fell back on, kept on disk for its next boot.
//!
//! Invariants: a feed is stored whole or not at all; one that is damaged, or that came from another
//! origin than the one configured now, is never returned; nobody but the owner can have written it;
//! one process at a time holds the directory; and no caller waits for a disk longer than a limit. Does not know
//! whether a feed is too old to use.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use thiserror::Error;

use crate::bounded::{Open, PATIENCE, ReadError, within};
use crate::error_code::ErrorCode;
use crate::lines::kept_name;
use crate::lock;
use crate::policy::{Feed, Format, Held, Origin, PastChange, Source, Validator, public_url};
use crate::trust::{self, Untrusted};

/// Counts up when a reader of the old form would misread the new one.
const FORMAT: u32 = 4;
/// The oldest form that is read.
const OLDEST: u32 = 1;
/// The largest file of a feed, in bytes: as many prefixes as `max_prefixes` may allow.
const MAX_FEED_BYTES: u64 = 128 << 20;

/// How long a start waits for the directory.
const OPENING: Duration = Duration::from_secs(2);

/// A directory of feeds, a file a source.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

/// Holds the directory until it is dropped.
#[derive(Debug)]
#[must_use = "the directory is free again as soon as this is dropped"]
pub struct StateLock {
    _directory: File,
}

impl StateDir {
    /// Opens the directory, and makes it (mode 0700) if there is none.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let folder = path.to_owned();
        let is_shared = within(
            path,
            OPENING,
            move || {
                // Before it is made, and again in case that another user made it just then.
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

    /// A directory that could not be opened, for a process that goes on without it.
    pub fn unopened(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Opens the directory to look at it; none if there is none.
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

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps other processes out; fails if another one got there first.
    ///
    /// The directory itself is locked, which takes no room and no right to write: a full disk must
    /// not keep the filter from starting.
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

    /// The process that holds the lock of the directory, as errors name it: `process 123 (allowlist)`; none if there
    /// is none, or if the kernel does not report it to this process.
    pub fn holder(&self) -> Option<String> {
        let path = self.path.clone();
        access(&self.path, move || {
            Ok(lock::holder_in_words(&File::open(&path)?))
        })
        .ok()?
    }

    /// The feed that was stored last for this source, if it can be used.
    ///
    /// An error means that there is something which must not be used: log it, and go on without. What is
    /// damaged is set aside, so that it can be looked at and a good one put in its place.
    pub fn load(&self, source: &Source) -> Result<Option<Feed>, StateError> {
        self.peek(source)
            .map_err(|error| self.set_aside(source, error))
    }

    /// Renames a damaged file, so that it can be looked at.
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

    /// `load`, within a shorter time limit. A list that is read later, as from a slow disk, is handed to `late`.
    pub fn load_or_later(
        &self,
        source: &Source,
        limit: Duration,
        late: impl FnOnce(Feed) + Send + 'static,
    ) -> Result<Option<Feed>, StateError> {
        if fingerprint(source).is_none() {
            return Ok(None);
        }
        let path = self.file(source);
        let (file, state, owned) = (path.clone(), self.clone(), source.clone());
        let work = move || Open::state(MAX_FEED_BYTES).read_here(&file);
        let late = move |read| {
            if let Ok(Some(feed)) = state.decode(&owned, read) {
                late(feed);
            }
        };
        let read = within(&path, limit, work, late).unwrap_or_else(|error| Err(error.into()));
        self.decode(source, read)
            .map_err(|error| self.set_aside(source, error))
    }

    /// `load`, and what is damaged stays where it is.
    pub fn peek(&self, source: &Source) -> Result<Option<Feed>, StateError> {
        if fingerprint(source).is_none() {
            return Ok(None);
        }
        self.decode(source, Open::state(MAX_FEED_BYTES).read(&self.file(source)))
    }

    /// The feed in the bytes of a source's file.
    fn decode(
        &self,
        source: &Source,
        read: Result<Vec<u8>, ReadError>,
    ) -> Result<Option<Feed>, StateError> {
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
        let content = match Stored::decode(&bytes) {
            Ok(content) => content,
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
        Ok(Some(Feed {
            prefixes: content.prefixes,
            held: content.held,
            fetched: content.fetched,
            validators: content.validators,
            notes: content.notes,
            changes: content.changes,
            answered: content.answered.unwrap_or(content.fetched),
        }))
    }

    /// Replaces what is stored for this source; on return it has reached the disk.
    ///
    /// What the configuration or the program itself holds is always there, and is not stored.
    pub fn store(&self, source: &Source, feed: &Feed) -> Result<(), StateError> {
        let Some(origin) = fingerprint(source) else {
            return Ok(());
        };
        let path = self.file(source);
        let content = Content {
            origin,
            fetched: feed.fetched,
            prefixes: feed.prefixes.clone(),
            held: feed.held.clone(),
            validators: feed.validators.clone(),
            notes: feed.notes.clone(),
            changes: feed.changes.clone(),
            answered: (feed.answered != feed.fetched).then_some(feed.answered),
        };
        let bytes = Stored::encode(content);
        if bytes.len() as u64 > MAX_FEED_BYTES {
            let cause = io::Error::new(
                ErrorKind::FileTooLarge,
                format!("the list takes more than {MAX_FEED_BYTES} bytes there"),
            );
            return Err(StateError::Io { path, cause });
        }
        self.replace(path, bytes)
    }

    /// Replaces a file of this directory whole; on return it has reached the disk.
    pub(crate) fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), StateError> {
        self.replace(self.path.join(name), bytes)
    }

    fn replace(&self, path: PathBuf, bytes: Vec<u8>) -> Result<(), StateError> {
        let (folder, target) = (self.path.clone(), path.clone());
        access(&path, move || {
            let mut file = NamedTempFile::new_in(&folder)?;
            file.write_all(&bytes)?;
            file.as_file().sync_all()?;
            if let Err(failed) = file.persist(&target) {
                // A folder is no file to replace. Anything else is.
                if failed.error.kind() != ErrorKind::IsADirectory {
                    return Err(failed.error);
                }
                fs::rename(&target, kept_name(&target))?;
                failed.file.persist(&target)?;
            }
            // The new name, too, must survive a power cut.
            File::open(&folder)?.sync_all()
        })
        .map_err(|cause| StateError::Io { path, cause })
    }

    fn file(&self, source: &Source) -> PathBuf {
        self.path.join(format!("{}.json", source.name))
    }
}

/// Gives a file of a state directory another name there.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let (place, to) = (from.to_owned(), to.to_owned());
    access(from, move || fs::rename(&place, &to))
}

/// Accesses a state directory or a file in it, on a thread of its own and within a time limit.
fn access<T: Send + 'static>(
    place: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    within(place, PATIENCE, work, drop)?
}

/// What to do about what the system said of a file.
fn way_out(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => "only its owner may look into it; try sudo",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room there; `allowlist detach` takes the filter off without any"
        }
        io::ErrorKind::TimedOut => "check the disk, or the server, that the state directory is on",
        _ => "check the state directory and its permissions",
    }
}

/// Why a feed could not be kept or found again.
#[derive(Debug, Error)]
pub enum StateError {
    /// The system said no.
    #[error("{}: {cause}; {}", path.display(), way_out(cause))]
    Io {
        /// The file or the directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Others could plant a list of their own.
    #[error("{}: others than this user may write there; give it to this user with mode 0700, or choose another --state-dir", path.display())]
    Shared {
        /// The directory.
        path: PathBuf,
    },
    /// Another process holds the directory.
    #[error(
        "{}: is in use by {}; stop it, or choose another --state-dir",
        path.display(),
        holder.as_deref().unwrap_or("another process")
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// That process, if it can be told: `process 123 (allowlist)`.
        holder: Option<String>,
    },
    /// A disk error, or an editor.
    #[error(
        "{}: is damaged: {problem}; it is not used{}",
        path.display(),
        kept.as_ref().map_or_else(String::new, |kept| format!(", and kept as {}", kept.display()))
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// Where it is now, if it was set aside.
        kept: Option<PathBuf>,
    },
    /// A newer version of this program wrote it.
    #[error("{}: has format {format}, and this version knows format {FORMAT}; it is not used, and will be replaced", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// The source was pointed elsewhere.
    #[error("{}: came from {stored}, and the source is {configured} now; it is not used, and will be replaced", path.display())]
    OtherOrigin {
        /// The file.
        path: PathBuf,
        /// Where it came from.
        stored: String,
        /// What is configured.
        configured: String,
    },
}

impl StateError {
    /// Returns the stable identifier.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Io { cause, .. } if cause.kind() == ErrorKind::PermissionDenied => {
                ErrorCode::Forbidden
            }
            Self::Io { cause, .. }
                if cause.get_ref().is_some_and(|inner| inner.is::<Untrusted>()) =>
            {
                ErrorCode::UntrustedPath
            }
            Self::Locked { .. } => ErrorCode::AlreadyRunning,
            _ => ErrorCode::InvalidStateDir,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    /// Of the content as this program writes it.
    crc32: u32,
    content: Content,
}

#[derive(Serialize, Deserialize)]
struct Content {
    origin: String,
    fetched: Timestamp,
    prefixes: Vec<IpNet>,
    // Format 1 had none of these: left out where empty, a file of then has the checksum that it says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    held: Vec<Held>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    validators: Vec<Validator>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    // Format 2 had no changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    changes: Vec<PastChange>,
    // Format 3 had neither this nor the counts of `changes` and the ages of `held`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answered: Option<Timestamp>,
}

enum Undecodable {
    Format(u32),
    Damaged(String),
}

impl Stored {
    fn encode(content: Content) -> Vec<u8> {
        let stored = Self {
            format: FORMAT,
            crc32: content.crc32(),
            content,
        };
        serde_json::to_vec(&stored).expect("strings and numbers are JSON")
    }

    fn decode(bytes: &[u8]) -> Result<Content, Undecodable> {
        /// What every format has.
        #[derive(Deserialize)]
        struct Header {
            format: u32,
        }
        let damaged = |error: serde_json::Error| Undecodable::Damaged(error.to_string());
        let Header { format } = serde_json::from_slice(bytes).map_err(damaged)?;
        if !(OLDEST..=FORMAT).contains(&format) {
            return Err(Undecodable::Format(format));
        }
        let stored: Self = serde_json::from_slice(bytes).map_err(damaged)?;
        if stored.crc32 != stored.content.crc32() {
            return Err(Undecodable::Damaged(
                "its checksum does not match".to_owned(),
            ));
        }
        Ok(stored.content)
    }
}

impl Content {
    fn crc32(&self) -> u32 {
        crc32fast::hash(&serde_json::to_vec(self).expect("strings and numbers are JSON"))
    }
}

/// What must be the same for a stored feed to stand for this source; none if it is never stored.
///
/// Credentials may change, and do not reach the disk; a query may choose another list, and reaches
/// it as a checksum.
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
            // The same file, from wherever it is named.
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
