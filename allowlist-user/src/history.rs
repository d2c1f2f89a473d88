//! What changed when, on disk beside last-good: a line of JSON an event, the oldest dropped first.
//!
//! Invariants: a line is written whole or is not read; two files take turns, so that at least half of the
//! configured size is kept and never more than all of it. A history that cannot be written costs nothing
//! but itself.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::event::Event;

/// The file that grows. No source's file can have this name, since a source's name has no dot.
const FILE: &str = "history.v1.jsonl";
/// The one before it.
const OLD: &str = "history.v1.old.jsonl";

/// The writing side.
#[derive(Debug)]
pub struct History {
    folder: PathBuf,
    max_bytes: u64,
}

impl History {
    /// In a state directory, which must be there. Takes no more than `max_bytes` of it.
    pub fn new(folder: &Path, max_bytes: u64) -> Self {
        Self {
            folder: folder.to_owned(),
            max_bytes,
        }
    }

    /// Adds an event.
    pub fn add(&self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(&event.clone().shortened())?;
        line.push(b'\n');
        let path = self.folder.join(FILE);
        let length = match fs::metadata(&path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        if length > 0 && length + line.len() as u64 > self.max_bytes / 2 {
            fs::rename(&path, self.folder.join(OLD))?;
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

fn ends_a_line(file: &fs::File) -> io::Result<bool> {
    use std::os::unix::fs::FileExt as _;

    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    Ok(last == [b'\n'])
}

/// What is kept, the oldest first, and how many lines could not be read.
pub fn read(folder: &Path) -> Result<(Vec<Event>, usize)> {
    let (mut events, mut damaged) = (Vec::new(), 0);
    for name in [OLD, FILE] {
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
                Ok(event) => events.push(event),
                Err(_) => damaged += 1,
            }
        }
    }
    Ok((events, damaged))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::event::{Change, What};

    fn event(number: i64) -> Event {
        Event {
            time: Timestamp::from_second(number).expect("a time"),
            source: "vendor".to_owned(),
            what: What::Changed {
                generation: 1,
                change: Change::new(vec!["192.0.2.0/24".parse().expect("a prefix")], Vec::new()),
                held_until: None,
                accepted: false,
            },
        }
    }

    #[test]
    fn the_newest_are_kept_within_the_size() {
        let folder = tempfile::tempdir().expect("a folder");
        let history = History::new(folder.path(), 4096);
        for number in 0..500 {
            history.add(&event(number)).expect("is written");
        }
        let (events, damaged) = read(folder.path()).expect("is readable");
        assert_eq!(damaged, 0);
        assert_eq!(events.last(), Some(&event(499)));
        let times: Vec<_> = events.iter().map(|event| event.time.as_second()).collect();
        assert!(
            times.windows(2).all(|pair| pair[0] + 1 == pair[1]),
            "{times:?}"
        );
        let bytes: u64 = [FILE, OLD]
            .iter()
            .map(|name| {
                fs::metadata(folder.path().join(name))
                    .expect("is there")
                    .len()
            })
            .sum();
        assert!((2048..=4096).contains(&bytes), "{bytes}");
    }

    #[test]
    fn half_a_line_costs_itself_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let history = History::new(folder.path(), 4096);
        history.add(&event(1)).expect("is written");
        let path = folder.path().join(FILE);
        let whole = fs::read(&path).expect("is there");
        fs::write(&path, &whole[..whole.len() - 9]).expect("is written");
        history.add(&event(2)).expect("is written");
        assert_eq!(
            read(folder.path()).expect("is readable"),
            (vec![event(2)], 1)
        );
    }

    #[test]
    fn a_great_change_is_cut_short_and_counted() {
        let prefixes: Vec<ipnet::IpNet> = (0..1000u32)
            .map(|number| std::net::IpAddr::from(number.to_be_bytes()).into())
            .collect();
        let great = Event {
            what: What::Refused {
                reason: "why".to_owned(),
                change: Change::new(prefixes, Vec::new()),
            },
            ..event(1)
        };
        let What::Refused { change, .. } = great.shortened().what else {
            panic!("it is another event now");
        };
        assert_eq!((change.added_count, change.added.len()), (1000, 200));
    }
}
