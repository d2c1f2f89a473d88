//! File access with limits of type, size and time.
//!
//! - [`Open`] states how a file is opened, its required type, and the number of bytes to read
//! - [`within`] runs a file operation on a thread of its own with a time limit
//!
//! Invariants: no open waits for a writer or a device; the open descriptor is checked, not the path; no read exceeds its
//! limit; no caller of [`within`] waits longer than its time limit, even if the kernel blocks. An operation that never
//! ends costs one thread; until it ends, further operations on the same path fail at once.

use std::collections::BTreeSet;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use thiserror::Error;

/// The usual time limit for reading or writing a file, long enough for a busy disk.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The time limit for reading a file of the state directory; shorter than [`PATIENCE`], because a start reads several
/// files in sequence.
const READ_PATIENCE: Duration = Duration::from_secs(2);

/// The options for opening and reading a file, and the required properties of the file. Use [`Open::state`] or
/// [`Open::configured`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// The maximum size of the file in bytes. A larger file is an error.
    pub max_bytes: u64,
    /// The time limit for opening and reading together.
    pub timeout: Duration,
    /// Whether the last component of the path may be a symbolic link; if false, a link is an error.
    pub follows_links: bool,
    /// The required owner of the file.
    pub owner: Owner,
    /// Whether reading fails if another process writes to the file at the same time. Reading is repeated once before it
    /// fails.
    pub is_steady: bool,
}

/// The required owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Any user may own the file.
    Any,
    /// Only root or the owner of the file's directory may own the file.
    OfFolder,
}

/// An error of opening or reading a file.
#[derive(Debug, Error)]
pub enum ReadError {
    /// An I/O error, including an exceeded time limit.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file is a directory, symbolic link, pipe, socket or device.
    #[error("the path is {0}, not a regular file")]
    NotRegular(&'static str),
    /// A read of the file would wait for data, as that of `/proc/kmsg` does.
    #[error("the path is not a regular file, since reading it would wait for data")]
    Waits,
    /// The file belongs to this user, who is neither root nor the owner of its directory.
    #[error(
        "the file belongs to user {0}, not to root or the owner of its directory; correct its owner"
    )]
    OtherOwner(u32),
    /// The file is larger than the limit.
    #[error("the file is larger than {limit} bytes")]
    TooLarge {
        /// The maximum size in bytes.
        limit: u64,
    },
    /// Another process wrote to the file while it was read, also when the read was repeated.
    #[error("the file was modified while it was read; try again")]
    Unsteady,
}

impl ReadError {
    /// Returns whether the error states that the file does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == ErrorKind::NotFound)
    }

    /// Returns whether the error states that the time limit was exceeded.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == ErrorKind::TimedOut)
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => error,
            other => Self::new(ErrorKind::InvalidData, other.to_string()),
        }
    }
}

impl Open {
    /// Returns the options for files of the state directory.
    pub const fn state(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            timeout: READ_PATIENCE,
            follows_links: false,
            owner: Owner::OfFolder,
            is_steady: false,
        }
    }

    /// Returns the options for files of the configuration, which may be symbolic links.
    pub const fn configured(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            timeout: PATIENCE,
            follows_links: true,
            owner: Owner::Any,
            is_steady: true,
        }
    }

    /// Reads a file on a thread of its own, and returns its bytes.
    ///
    /// # Errors
    /// Fails with any [`ReadError`]; if the time limit is exceeded, with an I/O error of the kind
    /// [`ErrorKind::TimedOut`].
    pub fn read(self, path: &Path) -> Result<Vec<u8>, ReadError> {
        let file = path.to_owned();
        within(path, self.timeout, move || self.read_here(&file), drop)?
    }

    /// Reads a file on the calling thread, without a time limit, and returns its bytes. For threads that may block.
    pub fn read_here(self, path: &Path) -> Result<Vec<u8>, ReadError> {
        Ok(self.read_steadily(path, || {})?.0)
    }

    /// Reads a file on a thread of its own, and returns the bytes and the metadata of the open file.
    ///
    /// # Errors
    /// As [`Open::read`].
    pub fn read_with_metadata(self, path: &Path) -> Result<(Vec<u8>, Metadata), ReadError> {
        let file = path.to_owned();
        within(
            path,
            self.timeout,
            move || self.read_steadily(&file, || {}),
            drop,
        )?
    }

    /// Reads a file; `meanwhile` runs between the read and the check for writes, for tests.
    fn read_steadily(
        self,
        path: &Path,
        mut meanwhile: impl FnMut(),
    ) -> Result<(Vec<u8>, Metadata), ReadError> {
        for _ in 0..2 {
            let mut file = self.open(path, OpenOptions::new().read(true))?;
            let before = file.metadata()?;
            if before.len() > self.max_bytes {
                return Err(ReadError::TooLarge {
                    limit: self.max_bytes,
                });
            }
            let mut bytes = Vec::with_capacity(before.len() as usize);
            let read = (&mut file).take(self.max_bytes + 1).read_to_end(&mut bytes);
            match read {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(ReadError::Waits);
                }
                read => read?,
            };
            meanwhile();
            if bytes.len() as u64 > self.max_bytes {
                return Err(ReadError::TooLarge {
                    limit: self.max_bytes,
                });
            }
            // Compare the open file: another file that was renamed to the path is left for the next read.
            if !self.is_steady || version(&file.metadata()?) == version(&before) {
                return Ok((bytes, before));
            }
        }
        Err(ReadError::Unsteady)
    }

    /// Opens a file, and checks the type and the owner of the open file. Does not wait for a pipe or a device, but has
    /// no time limit for a file system that hangs.
    pub fn open(self, path: &Path, options: &OpenOptions) -> Result<File, ReadError> {
        // Check before opening too, since opening a device can have effects.
        let found = if self.follows_links {
            fs::metadata(path)
        } else {
            fs::symlink_metadata(path)
        };
        match found {
            Ok(found) => self.check(path, &found)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let mut flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
        if !self.follows_links {
            flags |= libc::O_NOFOLLOW;
        }
        let file = match options.clone().custom_flags(flags).open(path) {
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                return Err(ReadError::NotRegular("a symbolic link"));
            }
            // A pipe without a reader, or a socket, that replaced the file after the check.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                return Err(ReadError::NotRegular("a pipe or a socket"));
            }
            file => file?,
        };
        self.check(path, &file.metadata()?)?;
        Ok(file)
    }

    fn check(self, path: &Path, found: &Metadata) -> Result<(), ReadError> {
        if let Some(kind) = other_kind(found.file_type()) {
            return Err(ReadError::NotRegular(kind));
        }
        if self.owner == Owner::OfFolder && found.uid() != 0 {
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            let folder = fs::metadata(folder.unwrap_or(Path::new(".")))?;
            if found.uid() != folder.uid() {
                return Err(ReadError::OtherOwner(found.uid()));
            }
        }
        Ok(())
    }
}

/// Returns the name of a file type with its article, such as "a directory"; `None` for a regular file.
fn other_kind(kind: FileType) -> Option<&'static str> {
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_symlink() {
        Some("a symbolic link")
    } else if kind.is_fifo() {
        Some("a pipe")
    } else if kind.is_socket() {
        Some("a socket")
    } else {
        Some("a device")
    }
}

/// Returns the size and modification times of a file, which differ after a write to the file.
fn version(metadata: &Metadata) -> (u64, i64, i64) {
    (metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

/// The paths of operations that have exceeded their time limit and not ended.
static STUCK: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The state of a file operation that runs on a thread of its own.
enum State<T> {
    Running,
    Done(thread::Result<T>),
    /// The time limit was exceeded, and the caller has continued.
    GivenUp,
}

struct Slot<T> {
    state: Mutex<State<T>>,
    bell: Condvar,
}

/// Runs the file operation `work` on a thread of its own, and waits at most `limit` for its result.
///
/// `place` is the file or directory of the operation: until an operation that exceeded its limit ends, others at or
/// below that path fail at once. The result of such an operation is passed to `late` when it ends.
///
/// # Errors
/// Returns an I/O error of the kind [`ErrorKind::TimedOut`] if the limit is exceeded, by this operation or an earlier
/// one that has not ended.
///
/// # Panics
/// Panics if `work` panics.
pub fn within<T: Send + 'static>(
    place: &Path,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
    late: impl FnOnce(T) + Send + 'static,
) -> io::Result<T> {
    if is_stuck(place) {
        return Err(io::Error::new(
            ErrorKind::TimedOut,
            "an earlier access to this path exceeded its time limit and has not ended; check its file system",
        ));
    }
    let slot = Arc::new(Slot {
        state: Mutex::new(State::Running),
        bell: Condvar::new(),
    });
    let (there, at) = (Arc::clone(&slot), place.to_owned());
    thread::Builder::new()
        .name("file-access".to_owned())
        .spawn(move || {
            let done = catch_unwind(AssertUnwindSafe(work));
            let mut state = lock(&there.state);
            if matches!(*state, State::GivenUp) {
                drop(state);
                if let Ok(done) = done {
                    late(done);
                }
                lock(&STUCK).remove(&at);
            } else {
                *state = State::Done(done);
                there.bell.notify_all();
            }
        })?;
    let (mut state, _) = slot
        .bell
        .wait_timeout_while(lock(&slot.state), limit, |state| {
            matches!(state, State::Running)
        })
        .unwrap_or_else(PoisonError::into_inner);
    match std::mem::replace(&mut *state, State::GivenUp) {
        State::Done(Ok(done)) => Ok(done),
        State::Done(Err(panic)) => resume_unwind(panic),
        State::Running | State::GivenUp => {
            lock(&STUCK).insert(place.to_owned());
            let limit = humantime::format_duration(limit);
            Err(io::Error::new(
                ErrorKind::TimedOut,
                format!("the file system did not respond within {limit}"),
            ))
        }
    }
}

/// Returns whether an operation at this path, or at a directory above it, has exceeded its limit and not ended.
pub fn is_stuck(place: &Path) -> bool {
    let stuck = lock(&STUCK);
    place.ancestors().any(|place| stuck.contains(place))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic leaves the data consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
