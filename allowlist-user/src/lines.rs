//! A file of lines that only grows, on disk beside last-good; the oldest lines are dropped first.
//!
//! Invariants: a line is written whole or is not read; two files take turns, so that at least half of the
//! configured size is kept and never more than all of it. Knows nothing of what a line says.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;

/// Where the lines are: no source's file can have such names, since a source's name has no dot.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// The file that grows.
    pub file: &'static str,
    /// The one before it.
    pub old: &'static str,
}

/// The writing side.
#[derive(Debug)]
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
    pub fn add(&self, mut line: Vec<u8>) -> io::Result<()> {
        line.push(b'\n');
        let path = self.folder.join(self.names.file);
        let length = match fs::metadata(&path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        if length > 0 && length + line.len() as u64 > self.max_bytes / 2 {
            fs::rename(&path, self.folder.join(self.names.old))?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&path)?;
        if !ends_a_line(&file)? {
            // What a power cut left of the last one must not swallow this one too.
            line.insert(0, b'\n');
        }
        file.write_all(&line)
    }
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
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(error).with_context(|| {
                    format!("cannot read {}: only root may; try sudo", path.display())
                });
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
