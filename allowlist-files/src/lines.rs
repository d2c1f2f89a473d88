//! An append-only file of lines in the state directory, with a limited size for each class of lines.
//!
//! A *class* is a kind of lines that has a limit of its own, so that many lines of one class remove none of another.
//! [`Lines`] appends to one file until the lines of a class in it reach half of the class's limit. Then a rotation
//! stores the newest lines of each class in a second file, up to half of its limit, and starts the first file again.
//!
//! Invariants: a line that was cut short by a crash does not run together with the next one; of each class that has
//! reached its limit, between half and all of the limit is kept; an interrupted rotation neither loses nor duplicates a
//! line. A rotation does not decode lines.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::bounded::{Open, ReadError};
use allowlist_policy::error_code::bail_with;
use anyhow::{Context as _, Result};
use log::warn;
use tempfile::NamedTempFile;

/// The maximum size of a file that is read, in bytes; a larger file counts as damaged or is an error.
const MAX_BYTES: u64 = 2 << 30;

/// The names of the two files with lines. Each must contain two dots, so that it differs from the names of the sources'
/// files in the same directory, such as `office.json`.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// The file to which lines are appended.
    pub file: &'static str,
    /// The file with older lines, which each rotation replaces.
    pub old: &'static str,
}

/// An append-only file whose lines belong to `CLASSES` classes. Clones append to the same file.
///
/// The methods access the disk on the calling thread; [`crate::bounded::within`] limits the time.
#[derive(Clone, Debug)]
pub struct Lines<const CLASSES: usize> {
    folder: PathBuf,
    names: Names,
    /// The limit of each class in both files together, in bytes.
    max_bytes: [u64; CLASSES],
    class_of: fn(&[u8]) -> usize,
    /// The number of bytes of each class in the first file; `None` before the file is measured, and after an error.
    used: Arc<Mutex<Option<[u64; CLASSES]>>>,
}

impl<const CLASSES: usize> Lines<CLASSES> {
    /// Returns the file of lines with the given names in the existing directory `folder`, without accessing the disk.
    ///
    /// `max_bytes` has the limit of each class in bytes, for both files together; `class_of` returns the index of a
    /// line's class.
    pub fn new(
        folder: &Path,
        names: Names,
        max_bytes: [u64; CLASSES],
        class_of: fn(&[u8]) -> usize,
    ) -> Self {
        Self {
            folder: folder.to_owned(),
            names,
            max_bytes,
            class_of,
            used: Arc::default(),
        }
    }

    /// Returns the path of the file to which lines are appended.
    pub fn path(&self) -> PathBuf {
        self.folder.join(self.names.file)
    }

    /// Appends a line, which must not contain a line break. Rotates the files first if the lines of its class in the
    /// first file would otherwise exceed half of the limit of the class.
    pub fn append(&self, line: &[u8]) -> io::Result<()> {
        let path = self.path();
        let mut known = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut used = match known.take() {
            Some(used) => used,
            None => self.sizes(&lines_of(&read_or_rename(&path)?)),
        };
        let (class, size) = ((self.class_of)(line), size_of_line(line));
        if used[class] > 0 && used[class] + size > self.max_bytes[class] / 2 {
            self.rotate()?;
            used = [0; CLASSES];
        }
        let mut line = [line, b"\n"].concat();
        let mut file = open_to_append(&path)?;
        if !ends_a_line(&file)? {
            // The last line was cut short; keep it from absorbing this one.
            line.insert(0, b'\n');
        }
        file.write_all(&line)
            .map_err(|error| with_path(&path, &error))?;
        used[class] += size;
        *known = Some(used);
        Ok(())
    }

    /// Replaces the content of both files by the newest of `lines`, up to the limit of each class.
    ///
    /// `lines` must be in order of time. The file with the older lines is replaced first: if the process ends before
    /// the second replacement, the other file has its previous content.
    pub fn replace(&self, lines: &[Vec<u8>]) -> io::Result<()> {
        let mut known = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        *known = None;
        let lines: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
        let new = self.newest(&lines);
        let rest: Vec<&[u8]> = lines
            .iter()
            .zip(&new)
            .filter_map(|(line, is_new)| (!is_new).then_some(*line))
            .collect();
        let old = self.newest(&rest);
        self.store(self.names.old, &selected(&rest, &old))?;
        self.store(self.names.file, &selected(&lines, &new))
    }

    /// Stores the newest lines of both files in the second one (`old`), and removes the first.
    fn rotate(&self) -> io::Result<()> {
        let [old, new] = [self.names.old, self.names.file].map(|name| self.folder.join(name));
        let (older, newer) = (read_or_rename(&old)?, read_or_rename(&new)?);
        let lines = merged(&older, &newer);
        let kept = self.newest(&lines);
        self.store(self.names.old, &selected(&lines, &kept))?;
        // If this process ends before the next step, `merged` omits the lines that both files have.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns for each line whether it is among the newest of its class that fit in half of the class's limit.
    fn newest(&self, lines: &[&[u8]]) -> Vec<bool> {
        let (mut sizes, mut is_full) = ([0; CLASSES], [false; CLASSES]);
        let mut kept = vec![false; lines.len()];
        for (line, kept) in lines.iter().zip(&mut kept).rev() {
            let class = (self.class_of)(line);
            let size = sizes[class] + size_of_line(line);
            is_full[class] |= sizes[class] > 0 && size > self.max_bytes[class] / 2;
            if !is_full[class] {
                (sizes[class], *kept) = (size, true);
            }
        }
        kept
    }

    fn sizes(&self, lines: &[&[u8]]) -> [u64; CLASSES] {
        let mut sizes = [0; CLASSES];
        for line in lines {
            sizes[(self.class_of)(line)] += size_of_line(line);
        }
        sizes
    }

    /// Replaces the content of the file `name`, atomically and durably.
    fn store(&self, name: &str, lines: &[&[u8]]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for line in lines {
            bytes.extend_from_slice(line);
            bytes.push(b'\n');
        }
        let mut file = NamedTempFile::new_in(&self.folder)?;
        file.write_all(&bytes)?;
        file.as_file().sync_all()?;
        file.persist(self.folder.join(name))?;
        fs::File::open(&self.folder)?.sync_all()
    }
}

fn size_of_line(line: &[u8]) -> u64 {
    line.len() as u64 + 1
}

fn selected<'l>(lines: &[&'l [u8]], are_selected: &[bool]) -> Vec<&'l [u8]> {
    let pairs = lines.iter().zip(are_selected);
    pairs
        .filter_map(|(line, is_selected)| is_selected.then_some(*line))
        .collect()
}

fn lines_of(bytes: &[u8]) -> Vec<&[u8]> {
    let lines = bytes.split(|byte| *byte == b'\n');
    lines.filter(|line| !line.is_empty()).collect()
}

/// Returns the lines of the second file (`old`), then those of the first file (`new`) that the second one does not
/// have.
fn merged<'l>(old: &'l [u8], new: &'l [u8]) -> Vec<&'l [u8]> {
    let mut lines = lines_of(old);
    let known: HashSet<&[u8]> = lines.iter().copied().collect();
    let is_new = |line: &&[u8]| !known.contains(line);
    lines.extend(lines_of(new).into_iter().filter(is_new));
    lines
}

/// Reads a file of the state directory; a missing file is empty.
///
/// If the path is not a regular file, is too large, or belongs to another user, renames it to `NAME.damaged` and
/// returns no bytes.
fn read_or_rename(path: &Path) -> io::Result<Vec<u8>> {
    match Open::state(MAX_BYTES).read_here(path) {
        Err(error) if error.is_missing() => Ok(Vec::new()),
        Err(error @ ReadError::Io(_)) => Err(with_path(path, &error.into())),
        Err(error) => {
            set_aside(path, &error)?;
            Ok(Vec::new())
        }
        bytes => Ok(bytes?),
    }
}

fn set_aside(path: &Path, error: &ReadError) -> io::Result<()> {
    let kept = kept_name(path);
    fs::rename(path, &kept).map_err(|error| with_path(path, &error))?;
    warn!(
        "{}: {error}; it was renamed to {}, and a new file replaces it",
        path.display(),
        kept.display()
    );
    Ok(())
}

/// Opens a file of the state directory for appending, and creates it if it is missing.
///
/// If the path is not a regular file or belongs to another user, renames it to `NAME.damaged` first.
fn open_to_append(path: &Path) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    options.create(true).read(true).append(true).mode(0o600);
    let open = || Open::state(u64::MAX).open(path, &options);
    match open() {
        Err(error @ (ReadError::NotRegular(_) | ReadError::OtherOwner(_))) => {
            set_aside(path, &error)?;
            open().map_err(|error| with_path(path, &error.into()))
        }
        file => file.map_err(|error| with_path(path, &error.into())),
    }
}

/// Returns an I/O error of the same kind whose text begins with `path`.
fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
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

/// Returns the lines of both files, the oldest first; a missing file has none.
pub fn read(folder: &Path, names: Names) -> Result<Vec<Vec<u8>>> {
    let (old, new) = (
        read_file(&folder.join(names.old))?,
        read_file(&folder.join(names.file))?,
    );
    let lines = merged(&old, &new).into_iter();
    Ok(lines.map(<[u8]>::to_vec).collect())
}

/// Returns the lines of one file; a missing file has none.
pub fn read_one(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = read_file(path)?;
    Ok(lines_of(&bytes).into_iter().map(<[u8]>::to_vec).collect())
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    match Open::state(MAX_BYTES).read(path) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.is_missing() => Ok(Vec::new()),
        Err(ReadError::Io(error)) if error.kind() == ErrorKind::PermissionDenied => {
            bail_with!(
                Forbidden,
                "cannot read {}: {error}; only root may read it, try sudo",
                path.display()
            );
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names = Names {
        file: "lines.v1.jsonl",
        old: "lines.v1.old.jsonl",
    };
    const LIMITS: [u64; 2] = [1000, 400];

    /// The class of a line is its first digit.
    fn lines(folder: &Path) -> Lines<2> {
        Lines::new(folder, NAMES, LIMITS, |line| usize::from(line[0] - b'0'))
    }

    fn line(class: usize, number: usize) -> Vec<u8> {
        format!("{class} {number:07}").into_bytes() // 10 bytes with its line break
    }

    fn numbers(folder: &Path, class: usize) -> Vec<usize> {
        let lines = read(folder, NAMES).expect("is readable").into_iter();
        let texts = lines.map(|line| String::from_utf8(line).expect("is text"));
        let of_class = texts.filter_map(|line| {
            let number = line.strip_prefix(&format!("{class} "))?;
            Some(number.parse().expect("a number"))
        });
        of_class.collect()
    }

    #[test]
    fn each_class_keeps_its_newest_lines() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = lines(folder.path());
        let mut counts = [0, 0];
        for round in 0..3000 {
            // One line of class 0 in the beginning of each thousand, and a flood of class 1.
            let class = usize::from(round % 1000 >= 20);
            file.append(&line(class, counts[class]))
                .expect("is written");
            counts[class] += 1;
            if round % 7 == 0 {
                file = lines(folder.path()); // measures the file again
            }
            for (class, (limit, count)) in LIMITS.iter().zip(counts).enumerate() {
                let kept = numbers(folder.path(), class);
                let range = (count - kept.len())..count;
                assert_eq!(kept, range.collect::<Vec<_>>(), "class {class}");
                let most = *limit as usize / 10;
                assert!(kept.len() <= most, "{} of {most}", kept.len());
                assert!(
                    kept.len() >= count.min(most / 2),
                    "{} of {count}",
                    kept.len()
                );
            }
        }
    }

    #[test]
    fn an_interrupted_rotation_doubles_no_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = lines(folder.path());
        for number in 0..20 {
            file.append(&line(1, number)).expect("is written");
        }
        let before = fs::read(file.path()).expect("is there");
        file.append(&line(1, 20)).expect("is written");
        let after = fs::read(file.path()).expect("is there");
        assert!(after.len() < before.len(), "was rotated");
        // As if the process had ended before it removed the first file.
        fs::write(file.path(), before).expect("is written");
        assert_eq!(numbers(folder.path(), 1), (0..20).collect::<Vec<_>>());
        let file = lines(folder.path());
        for number in 20..60 {
            file.append(&line(1, number)).expect("is written");
        }
        let kept = numbers(folder.path(), 1);
        assert_eq!(kept, (60 - kept.len()..60).collect::<Vec<_>>());
    }

    #[test]
    fn replaced_lines_fill_both_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = lines(folder.path());
        file.append(&line(0, 0)).expect("is written");
        let of_class = |class| (0..200).map(move |number| line(class, number));
        let all: Vec<_> = of_class(0).zip(of_class(1)).collect();
        let all: Vec<_> = all.into_iter().flat_map(|(a, b)| [a, b]).collect();
        file.replace(&all).expect("is written");
        assert_eq!(numbers(folder.path(), 0), (100..200).collect::<Vec<_>>());
        assert_eq!(numbers(folder.path(), 1), (160..200).collect::<Vec<_>>());
        file.append(&line(0, 200)).expect("is written");
        assert_eq!(numbers(folder.path(), 0), (150..201).collect::<Vec<_>>());
        assert_eq!(numbers(folder.path(), 1), (180..200).collect::<Vec<_>>());
    }

    #[test]
    fn a_line_that_was_cut_short_absorbs_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        lines(folder.path())
            .append(b"0 cut short")
            .expect("is written");
        let path = folder.path().join(NAMES.file);
        let whole = fs::read(&path).expect("is there");
        fs::write(&path, &whole[..5]).expect("is written");
        lines(folder.path()).append(b"0 whole").expect("is written");
        let lines = read(folder.path(), NAMES).expect("is readable");
        assert_eq!(lines, [b"0 cut".to_vec(), b"0 whole".to_vec()]);
    }
}
