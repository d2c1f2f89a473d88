//! A file of lines that only grows, on disk beside last-good; the oldest lines are dropped first.
//!
//! Invariants: a line is written whole or is not read; two files take turns, so that at least half of the
//! configured size is kept and never more than all of it. Knows nothing of what a line says.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use log::warn;
use serde::de::DeserializeOwned;

use crate::bounded::{Open, PATIENCE, ReadError, within};
use crate::error_code::bail_with;

/// The most bytes that are read of a file: the largest `history_size` and `log_size`.
const MAX_BYTES: u64 = 1 << 30;

/// Where the lines are: no source's file can have such names, since a source's name has no dot.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// The file that grows.
    pub file: &'static str,
    /// The one before it.
    pub old: &'static str,
}

/// The writing side.
#[derive(Clone, Debug)]
pub struct Lines {
    folder: PathBuf,
    names: Names,
    max_bytes: u64,
}

impl Lines {
    /// In a folder that must be there. Takes no more than `max_bytes` of it.
    pub fn new(folder: &Path, names: Names, max_bytes: u64) -> Self {
        Self {
            folder: folder.to_owned(),
            names,
            max_bytes,
        }
    }

    /// Adds a line, which has no line break in it.
    ///
    /// # Errors
    /// Those of the system. Past the time limit the line may or may not be written.
    pub fn add(&self, line: Vec<u8>) -> io::Result<()> {
        let Self {
            folder,
            names,
            max_bytes,
        } = self.clone();
        let place = folder.join(names.file);
        let work = move || add(&folder, names, max_bytes, line);
        within(&place, PATIENCE, work, drop)?
    }
}

fn add(folder: &Path, names: Names, max_bytes: u64, mut line: Vec<u8>) -> io::Result<()> {
    line.push(b'\n');
    let path = folder.join(names.file);
    let length = match fs::symlink_metadata(&path) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    if length > 0 && length + line.len() as u64 > max_bytes / 2 {
        fs::rename(&path, folder.join(names.old))?;
    }
    let mut file = open_to_append(&path)?;
    if !ends_a_line(&file)? {
        // The rest of a line that a power cut left must not swallow this one too.
        line.insert(0, b'\n');
    }
    file.write_all(&line)
}

/// Opens a file of the state folder to add to its end, and creates it if there is none. A pipe, a folder or the like
/// in its place is renamed to `NAME.damaged` first.
fn open_to_append(path: &Path) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    options.create(true).read(true).append(true).mode(0o600);
    let open = || Open::state(u64::MAX).open(path, &options);
    match open() {
        Err(error @ (ReadError::NotRegular(_) | ReadError::OtherOwner(_))) => {
            let kept = kept_name(path);
            fs::rename(path, &kept)?;
            warn!(
                "{}: {error}; it is kept as {}",
                path.display(),
                kept.display()
            );
            Ok(open()?)
        }
        file => Ok(file?),
    }
}

/// The name under which a damaged file of the state folder is kept.
pub fn kept_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    name.into()
}

/// Whether the last line is whole; so is an empty file.
pub fn ends_a_line(file: &fs::File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    Ok(last == [b'\n'])
}

/// What the lines say that are kept, the oldest first, and how many could not be read.
pub fn read<T: DeserializeOwned>(folder: &Path, names: Names) -> Result<(Vec<T>, usize)> {
    let (mut read, mut damaged) = (Vec::new(), 0);
    for name in [names.old, names.file] {
        let path = folder.join(name);
        let bytes = match Open::state(MAX_BYTES).read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_missing() => continue,
            Err(ReadError::Io(error)) if error.kind() == ErrorKind::PermissionDenied => {
                bail_with!(
                    Forbidden,
                    "cannot read {}: only root may; try sudo: {error}",
                    path.display()
                );
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        for line in bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            match serde_json::from_slice(line) {
                Ok(one) => read.push(one),
                Err(_) => damaged += 1,
            }
        }
    }
    Ok((read, damaged))
}
