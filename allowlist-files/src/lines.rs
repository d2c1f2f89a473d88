//! An append-only file of lines in the state directory, with a limited size.
//!
//! Invariants: a line that was cut short is not read; two files are rotated, so that between half and all of the
//! configured size is kept.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::bounded::{Open, PATIENCE, ReadError, within};
use allowlist_policy::error_code::bail_with;
use anyhow::{Context as _, Result};
use log::warn;
use serde::de::DeserializeOwned;

/// The maximum number of bytes that are read from a file: the maximum of `history_size` and `log_size`.
const MAX_BYTES: u64 = 1 << 30;

/// The names of the two files with lines. They contain two dots, so they cannot be the name of a source's file.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// The file to which lines are appended.
    pub file: &'static str,
    /// The file with older lines, which the next rotation replaces.
    pub old: &'static str,
}

/// A file of lines, for appending.
#[derive(Clone, Debug)]
pub struct Lines {
    folder: PathBuf,
    names: Names,
    max_bytes: u64,
}

impl Lines {
    /// Returns the file of lines in an existing directory, limited to `max_bytes` in both files together.
    pub fn new(folder: &Path, names: Names, max_bytes: u64) -> Self {
        Self {
            folder: folder.to_owned(),
            names,
            max_bytes,
        }
    }

    /// Appends a line, which must not contain a line break. After a timeout, the line may or may not have been written.
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
        // The last line was cut short; keep it from absorbing this one.
        line.insert(0, b'\n');
    }
    file.write_all(&line)
}

/// Opens a file of the state directory for appending, and creates it if it is missing.
///
/// If something other than a regular file is in its place, renames that to `NAME.damaged`.
fn open_to_append(path: &Path) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    options.create(true).read(true).append(true).mode(0o600);
    let open = || Open::state(u64::MAX).open(path, &options);
    match open() {
        Err(error @ (ReadError::NotRegular(_) | ReadError::OtherOwner(_))) => {
            let kept = kept_name(path);
            fs::rename(path, &kept)?;
            warn!("{}: {error}; renamed to {}", path.display(), kept.display());
            Ok(open()?)
        }
        file => Ok(file?),
    }
}

/// Returns the path to which a damaged file of the state directory is renamed.
pub fn kept_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    name.into()
}

/// Returns whether the file is empty or ends with a line break, so that its last line is complete.
pub fn ends_a_line(file: &fs::File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    Ok(last == [b'\n'])
}

/// Reads and parses the lines of both files, and returns them, the oldest first, with the number of damaged lines.
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
                    "cannot read {}: {error}; only root may read it, try sudo",
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
