//! The event log: its limits, damage, and the files of earlier versions.

use allowlist_lists::event::{Change, EventKind};
use serde_json::{Value, json};

use super::*;
use crate::audit::Actor;
use crate::operation::Operation;

fn event(number: i64) -> Event {
    Event {
        time: Timestamp::from_second(number).expect("a time"),
        source: "vendor".to_owned(),
        kind: EventKind::Changed {
            generation: 1,
            change: Change::new(vec!["192.0.2.0/24".parse().expect("a prefix")], Vec::new()),
            grace_until: None,
            accepted: false,
        },
    }
}

fn entry(number: i64) -> AuditEntry {
    AuditEntry {
        time: Timestamp::from_second(number).expect("a time"),
        actor: Actor::Daemon,
        operation: Operation::Confirm,
        policy: None,
        refused: None,
        no_change: false,
        generation: 7,
    }
}

fn log(folder: &Path) -> EventLog {
    EventLog::new(folder, 4096, 4096)
}

#[test]
fn the_oldest_events_are_dropped_and_no_operation() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = log(folder.path());
    let operations: Vec<AuditEntry> = (0..10).map(entry).collect();
    for operation in &operations {
        log.add(&operation.clone().into()).expect("is written");
    }
    for number in 0..500 {
        log.add(&(&event(number)).into()).expect("is written");
    }
    let records = read(folder.path()).expect("is readable");
    assert_eq!(records.damaged, 0);
    assert_eq!(records.operations, operations);
    assert_eq!(records.list_events.last(), Some(&event(499)));
    let times = records
        .list_events
        .iter()
        .map(|event| event.time.as_second());
    let times: Vec<_> = times.collect();
    assert!(
        times.windows(2).all(|pair| pair[0] + 1 == pair[1]),
        "{times:?}"
    );
    let of_events = |line: &&Vec<u8>| Record::class(line) == 1;
    let lines = lines::read(folder.path(), NAMES).expect("is readable");
    let bytes: usize = lines
        .iter()
        .filter(of_events)
        .map(|line| line.len() + 1)
        .sum();
    assert!((2048..=4096).contains(&bytes), "{bytes}");
}

#[test]
fn damaged_lines_are_skipped_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = log(folder.path());
    for number in 1..4 {
        log.add(&(&event(number)).into()).expect("is written");
    }
    let path = folder.path().join(NAMES.file);
    let whole = fs::read_to_string(&path).expect("is there");
    let damaged = whole.replacen("192.0.2.0", "192.0.2.1", 1);
    fs::write(&path, &damaged[..damaged.len() - 9]).expect("is written");
    log.add(&entry(4).into()).expect("is written");
    let records = read(folder.path()).expect("is readable");
    assert_eq!(records.damaged, 2);
    assert_eq!(records.list_events, [event(2)]);
    assert_eq!(records.operations, [entry(4)]);
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
    let Record::List(Event {
        kind: EventKind::Refused { change, .. },
        ..
    }) = Record::from(&great)
    else {
        panic!("another event");
    };
    assert_eq!((change.added_count, change.added.len()), (1000, 200));
}

/// The files were written by a program of an earlier version; `tests/fixtures/state-v1` has their origin.
fn older() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/state-v1");
    for file in OLDER_FILES {
        let bytes = fs::read(Path::new(fixture).join(file.name)).expect("is there");
        fs::write(folder.path().join(file.name), bytes).expect("is written");
    }
    folder
}

/// Returns the lines of older files as JSON, in the order of the files, with the present names of keys.
fn values(names: &[&str]) -> Vec<Value> {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/state-v1");
    let texts = names.iter().map(|name| {
        let text = fs::read_to_string(Path::new(fixture).join(name));
        text.expect("is there")
            .replace("\"held_until\"", "\"grace_until\"")
    });
    let lines = texts.flat_map(|text| {
        let lines = text.lines().map(serde_json::from_str);
        lines.collect::<Result<Vec<Value>, _>>().expect("is JSON")
    });
    lines.collect()
}

fn check(folder: &Path) -> Records {
    let records = read(folder).expect("is readable");
    assert_eq!(records.damaged, 0);
    let operations = values(&["audit.v1.old.jsonl", "audit.v1.jsonl"]);
    let events = values(&["history.v1.old.jsonl", "history.v1.jsonl"]);
    assert_eq!(
        json!(records.operations[..operations.len()]),
        json!(operations)
    );
    assert_eq!(json!(records.list_events[..events.len()]), json!(events));
    records
}

#[test]
fn files_of_earlier_versions_are_migrated_once() {
    let folder = older();
    check(folder.path());
    assert!(
        !folder.path().join(NAMES.file).exists(),
        "a reader writes nothing"
    );
    let newest = entry(i64::from(u32::MAX));
    let log = EventLog::new(folder.path(), 1 << 20, 1 << 20);
    log.add(&newest.clone().into()).expect("is written");
    let records = check(folder.path());
    assert_eq!(records.operations.last(), Some(&newest));
    for file in OLDER_FILES {
        assert!(!folder.path().join(file.name).exists(), "{}", file.name);
    }
    let count = records.operations.len();
    log.add(&newest.into()).expect("is written");
    assert_eq!(check(folder.path()).operations.len(), count + 1);
}

/// A migration that ended before it removed a file, and records that an earlier version has written since.
#[test]
fn a_repeated_migration_doubles_no_record() {
    let folder = older();
    let log = EventLog::new(folder.path(), 1 << 20, 1 << 20);
    let now = entry(i64::from(u32::MAX));
    log.add(&now.clone().into()).expect("is written");
    let mut audit = serde_json::to_vec(&entry(1)).expect("is JSON");
    let again = fs::read(older().path().join("audit.v1.jsonl")).expect("is there");
    audit.push(b'\n');
    audit.extend_from_slice(&again);
    fs::write(folder.path().join("audit.v1.jsonl"), audit).expect("is written");
    let log = EventLog::new(folder.path(), 1 << 20, 1 << 20);
    log.add(&now.clone().into()).expect("is written");
    let records = read(folder.path()).expect("is readable");
    let before = values(&["audit.v1.old.jsonl", "audit.v1.jsonl"]).len();
    assert_eq!(records.operations.len(), before + 3);
    assert_eq!(records.operations[0], entry(1));
    assert_eq!(records.operations[before + 1..], [now.clone(), now]);
}

#[test]
fn older_files_with_damage_are_kept() {
    let folder = older();
    let path = folder.path().join("audit.v1.jsonl");
    let text = fs::read_to_string(&path).expect("is there");
    fs::write(&path, text.replacen("\"time\"", "\"t", 1)).expect("is written");
    fs::remove_file(folder.path().join("history.v1.jsonl")).expect("is there");
    fs::create_dir(folder.path().join("history.v1.jsonl")).expect("a folder");
    let log = EventLog::new(folder.path(), 1 << 20, 1 << 20);
    log.add(&entry(1).into()).expect("is written");
    assert!(kept_name(&path).exists() && !path.exists());
    assert!(folder.path().join("history.v1.jsonl").exists());
    let lines = lines::read(folder.path(), NAMES).expect("is readable");
    let counts = [
        values(&["audit.v1.old.jsonl", "audit.v1.jsonl"]).len(),
        values(&["history.v1.old.jsonl"]).len(),
    ];
    // One operation is damaged, and one was added.
    assert_eq!(lines.len(), counts.iter().sum::<usize>());
}
