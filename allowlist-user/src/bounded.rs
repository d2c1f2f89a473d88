//! File access within limits: the required type of a file, its greatest length, and the time that the system may take.
//!
//! - [`Open`] states how a file is opened, the required type of the open descriptor, and the number of bytes that are read
//! - [`within`] runs a file operation on a thread of its own, and gives up on it after a time limit
//!
//! Invariants: no open waits for a writer or a device; the open descriptor is checked, and not the path; no read is
//! longer than its limit; and no caller waits longer than its time limit, even if the kernel blocks. An operation
//! that the kernel never ends costs one thread; until it ends, further ones at the same place fail at once.
//! Knows no file's content.

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

/// How long a write may take. A disk that is only busy answers within this.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long a read may take: a start waits for several, one after the other.
const READ_PATIENCE: Duration = Duration::from_secs(2);

/// How a file is opened, and its required type. The safe choices are [`Open::state`] and [`Open::configured`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// The most bytes that are read. A longer file is an error.
    pub max_bytes: u64,
    /// The time limit for opening and reading together.
    pub timeout: Duration,
    /// Whether the last component of the path may be a symbolic link.
    pub follows_links: bool,
    /// Who must own the file.
    pub owner: Owner,
    /// Whether a file that is written while it is read is an error, after a second try.
    pub is_steady: bool,
}

/// Who must own a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Any user.
    Any,
    /// The owner of the folder that the file is in, or root.
    OfFolder,
}

/// Why a file was not opened or not read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A folder, a symbolic link, a pipe, a socket, a device.
    #[error("it is {0} and not a regular file")]
    NotRegular(&'static str),
    /// It is a regular file by name only: a read would wait for data, as in `/proc/kmsg`.
    #[error("reading it waits for data, so it is not a regular file on a disk")]
    Waits,
    /// Another user owns it.
    #[error("it is owned by user {0}, and not by the owner of its folder or root")]
    OtherOwner(u32),
    /// More than the limit.
    #[error("it is larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// It was written while it was read, twice.
    #[error("it changes while it is read")]
    Unsteady,
}

impl ReadError {
    /// Whether there is no such file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == ErrorKind::NotFound)
    }

    /// Whether the time limit ended it.
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
    /// For files that this program writes itself, in its state folder.
    pub const fn state(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            timeout: READ_PATIENCE,
            follows_links: false,
            owner: Owner::OfFolder,
            is_steady: false,
        }
    }

    /// For files that the configuration names. They may be symbolic links.
    pub const fn configured(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            timeout: PATIENCE,
            follows_links: true,
            owner: Owner::Any,
            is_steady: true,
        }
    }

    /// Reads a file whole, on a thread of its own.
    ///
    /// # Errors
    /// Any [`ReadError`]; past the time limit, an I/O error of the kind [`ErrorKind::TimedOut`].
    pub fn read(self, path: &Path) -> Result<Vec<u8>, ReadError> {
        let file = path.to_owned();
        within(path, self.timeout, move || self.read_here(&file), drop)?
    }

    /// Reads a file whole on the calling thread, for threads that nothing waits for without a limit.
    pub fn read_here(self, path: &Path) -> Result<Vec<u8>, ReadError> {
        Ok(self.read_steadily(path, || {})?.0)
    }

    /// Reads a file whole, on a thread of its own, and returns the bytes and the metadata of the file that was open.
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

    /// Reads a file whole; the callback runs between the read and the check that nothing was written.
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
            // Of the open file: one that was renamed into its place since then is for the next time.
            if !self.is_steady || version(&file.metadata()?) == version(&before) {
                return Ok((bytes, before));
            }
        }
        Err(ReadError::Unsteady)
    }

    /// Opens a file and checks the open descriptor. Does not wait for a pipe or a device, but has no time limit
    /// of its own: a file system may hang.
    pub fn open(self, path: &Path, options: &OpenOptions) -> Result<File, ReadError> {
        // Before it is opened: opening a device can act on it.
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
            // A pipe without a reader, or a socket, that took the file's place just now.
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

/// The type of a file that is not a regular one.
fn other_kind(kind: FileType) -> Option<&'static str> {
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a folder")
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

/// What changes when a file is written to.
fn version(metadata: &Metadata) -> (u64, i64, i64) {
    (metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

/// The places at which an operation has not ended that was given up.
static STUCK: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The state of an operation on another thread.
enum State<T> {
    Running,
    Done(thread::Result<T>),
    /// Its time limit is over, and its caller went on.
    GivenUp,
}

struct Slot<T> {
    state: Mutex<State<T>>,
    bell: Condvar,
}

/// Runs a file operation on a thread of its own, and waits for it at most `limit`. `place` is the file or folder:
/// until an operation ends that was given up, others at that place or below it fail at once. An operation that
/// was given up and ends later hands its result to `late`.
///
/// # Errors
/// An I/O error of the kind [`ErrorKind::TimedOut`] when the time limit is over, or was over for an earlier
/// operation that has not ended.
///
/// # Panics
/// If `work` does.
pub fn within<T: Send + 'static>(
    place: &Path,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
    late: impl FnOnce(T) + Send + 'static,
) -> io::Result<T> {
    if is_stuck(place) {
        return Err(io::Error::new(
            ErrorKind::TimedOut,
            "an earlier access to it has not ended",
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
                format!("no answer within {limit}"),
            ))
        }
    }
}

/// Whether an operation that was given up has not ended, at this place or at a folder above it.
pub fn is_stuck(place: &Path) -> bool {
    let stuck = lock(&STUCK);
    place.ancestors().any(|place| stuck.contains(place))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked with it left it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
