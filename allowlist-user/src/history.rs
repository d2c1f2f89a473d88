//! The history of lists on disk: one line of JSON per event; the oldest lines are dropped first.

use std::io;
use std::path::Path;

use allowlist_files::lines::{self, Lines, Names};
use allowlist_lists::event::Event;
use anyhow::Result;

const NAMES: Names = Names {
    file: "history.v1.jsonl",
    old: "history.v1.old.jsonl",
};

/// The history of list changes in a state directory, open for appending.
#[derive(Debug)]
pub struct History(Lines);

impl History {
    /// Returns the history in the existing state directory `folder`, limited to `max_bytes`.
    pub fn new(folder: &Path, max_bytes: u64) -> Self {
        Self(Lines::new(folder, NAMES, max_bytes))
    }

    /// Appends an event to the history.
    pub fn add(&self, event: &Event) -> io::Result<()> {
        self.0.add(serde_json::to_vec(&event.clone().shortened())?)
    }
}

/// Reads the history in the directory `folder`. Returns the events, the oldest first, and the number of damaged lines.
pub fn read(folder: &Path) -> Result<(Vec<Event>, usize)> {
    lines::read(folder, NAMES)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use jiff::Timestamp;

    use super::*;
    use allowlist_lists::event::{Change, EventKind};

    fn event(number: i64) -> Event {
        Event {
            time: Timestamp::from_second(number).expect("a time"),
            source: "vendor".to_owned(),
            kind: EventKind::Changed {
                generation: 1,
                change: Change::new(vec!["192.0.2.0/24".parse().expect("a prefix")], Vec::new()),
                held_until: None,
                accepted: false,
            },
        }
    }

    #[test]
    fn the_oldest_events_are_dropped() {
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
        let bytes: u64 = [NAMES.file, NAMES.old]
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
    fn a_cut_line_is_skipped() {
        let folder = tempfile::tempdir().expect("a folder");
        let history = History::new(folder.path(), 4096);
        history.add(&event(1)).expect("is written");
        let path = folder.path().join(NAMES.file);
        let whole = fs::read(&path).expect("is there");
        fs::write(&path, &whole[..whole.len() - 9]).expect("is written");
        history.add(&event(2)).expect("is written");
        assert_eq!(
            read(folder.path()).expect("is readable"),
            (vec![event(2)], 1)
        );
    }

    #[test]
    fn long_lists_are_truncated() {
        let prefixes: Vec<ipnet::IpNet> = (0..1000u32)
            .map(|number| std::net::IpAddr::from(number.to_be_bytes()).into())
            .collect();
        let great = Event {
            kind: EventKind::Refused {
                reason: "why".to_owned(),
                change: Change::new(prefixes, Vec::new()),
            },
            ..event(1)
        };
        let EventKind::Refused { change, .. } = great.shortened().kind else {
            panic!("another event");
        };
        assert_eq!((change.added_count, change.added.len()), (1000, 200));
    }
}
