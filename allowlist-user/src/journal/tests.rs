//! The journal against a model, with crashes at any byte, damage, and a limited size.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::additions::tests::{addition, edit};

const FILE: &str = "journal.v2.jsonl";
const OLDER_FILE: &str = "ledger.v1.jsonl";
/// The present time in these tests, before any prefix expires.
const NOW: Timestamp = Timestamp::constant(-1, 0);

fn written(text: &str) -> Arc<ConfigText> {
    Arc::new(ConfigText::new(None, text.to_owned(), Vec::new()))
}

fn change(text: &str, edits: Vec<Edit>) -> Change {
    Change {
        time: NOW,
        by: "root".to_owned(),
        operation: Recorded::Text("a change".to_owned()),
        written: Some(written(text)),
        edits,
        mode: None,
        egress_mode: None,
        suppressed_config_crc: None,
        unconfirmed: None,
    }
}

fn open(folder: &Path) -> (StateDir, Journal) {
    let state = StateDir::open(folder).expect("a state directory");
    let journal = Journal::open(&state, &Now::by_wall(NOW), "");
    (state, journal)
}

/// Opens a journal, and adds three policies that each add a prefix.
fn open_with_three_changes(folder: &Path) -> Journal {
    let (_, mut journal) = open(folder);
    for number in 0..3 {
        let edits = vec![Edit::Add(addition(number, 0, None))];
        journal.add(change("x", edits)).expect("is written");
    }
    journal
}

fn steps() -> impl Strategy<Value = Vec<(u8, Vec<Edit>, bool)>> {
    let step = (
        0_u8..3,
        prop::collection::vec(edit(), 0..4),
        prop::bool::weighted(0.2),
    );
    prop::collection::vec(step, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The journal equals a list of all changes, over restarts too.
    #[test]
    fn equals_a_list_of_all_changes(steps in steps()) {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut state, mut journal) = open(folder.path());
        let mut books = vec![Additions::default()];
        for (place, (text, edits, restarts)) in steps.iter().enumerate() {
            let number = journal.add(change(&text.to_string(), edits.clone())).expect("is written");
            prop_assert_eq!(number, place as u64 + 1);
            let mut book = books[place].clone();
            book.apply(edits);
            books.push(book);
            match place % 5 {
                // It failed, and is as if it had never been, but for this line.
                3 => {
                    journal.undo_last();
                    prop_assert_eq!(journal.known().additions(), &books[place]);
                    journal.add(change(&text.to_string(), edits.clone())).expect("is written");
                }
                4 => journal.rewrite(&state, &Now::by_wall(NOW)),
                _ => {}
            }
            if *restarts {
                let before = journal.known.clone();
                drop(journal);
                (state, journal) = open(folder.path());
                prop_assert_eq!(&journal.known.policies, &before.policies);
            }
            prop_assert_eq!(journal.known().newest().map(|one| &one.written().text), Some(&text.to_string()));
            for policy in journal.known().policies() {
                let mut book = journal.known().additions().clone();
                book.apply(&journal.known().revert_edits(policy.number));
                prop_assert_eq!(&book, &books[policy.number as usize]);
            }
        }
        prop_assert!(journal.known().policies().count() <= MAX_POLICIES + 1);
    }
}

/// A file that is cut at any byte has the complete changes before it.
#[test]
fn a_crash_loses_whole_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(FILE);
    let (_, mut journal) = open(folder.path());
    let mut ends = vec![0];
    for number in 0..4 {
        let edits = (0..3).map(|service| Edit::Add(addition(number, service, None)));
        let change = change("x", edits.collect());
        journal.add(change).expect("is written");
        ends.push(fs::metadata(&path).expect("is there").len() as usize);
    }
    let whole = fs::read(&path).expect("is there");
    let near_an_end = |length: usize| ends.iter().any(|end| end.abs_diff(length) < 2);
    for length in (0..=whole.len()).filter(|length| length % 7 == 0 || near_an_end(*length)) {
        fs::write(&path, &whole[..length]).expect("is written");
        let changes = ends.iter().filter(|end| **end <= length).count() - 1;
        let (_, mut journal) = open(folder.path());
        assert_eq!(
            journal.known().policies().count(),
            changes,
            "{length} bytes"
        );
        assert_eq!(
            journal.known().additions().len(),
            changes * 3,
            "{length} bytes"
        );
        // The next record is not lost, and does not complete the damaged one.
        let number = journal.add(change("y", Vec::new())).expect("is written");
        assert_eq!(number, changes as u64 + 1);
        let known = PolicyHistory::load_readonly(folder.path()).expect("is readable");
        assert_eq!(known.policies().count(), changes + 1, "{length} bytes");
    }
}

#[test]
fn damaged_lines_are_skipped_and_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(FILE);
    open_with_three_changes(folder.path());
    let text = fs::read_to_string(&path).expect("is there");
    let damaged = text.replace("192.0.2.1/32", "192.0.2.9/32");
    fs::write(&path, &damaged).expect("is written");
    let (_, journal) = open(folder.path());
    let added = journal.known().additions().all();
    let found: Vec<_> = added.map(|one| one.prefix.to_string()).collect();
    assert_eq!(found, ["192.0.2.0/32", "192.0.2.2/32"]);
    let kept = fs::read_to_string(path.with_extension("jsonl.damaged"));
    assert_eq!(kept.expect("is kept"), damaged);
    // The file was repaired.
    let known = PolicyHistory::load_readonly(folder.path()).expect("is readable");
    assert_eq!(known.additions(), journal.known().additions());
}

#[test]
fn a_file_of_superfluous_edits_is_rewritten() {
    let folder = tempfile::tempdir().expect("a folder");
    let (state, mut journal) = open(folder.path());
    let flood: Vec<Edit> = (0..=255)
        .map(|number| Edit::Add(addition(number, 0, None)))
        .cycle()
        .take(HISTORY * 2)
        .collect();
    journal.add(change("x", flood)).expect("is written");
    for _ in 0..=MAX_POLICIES {
        journal.add(change("y", Vec::new())).expect("is written");
    }
    let path = folder.path().join(FILE);
    let before = fs::metadata(&path).expect("is there").len();
    let known = journal.known.clone();
    journal.compact(&state, &Now::by_wall(NOW));
    let after = fs::metadata(&path).expect("is there").len();
    assert!(after * 4 < before, "{after} of {before}");
    assert_eq!(
        PolicyHistory::load_readonly(folder.path()).expect("is readable"),
        known
    );
}

#[test]
fn confirmations_are_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, mut journal) = open(folder.path());
    journal.add(change("x", Vec::new())).expect("is written");
    let unconfirmed = Some(ConfirmDeadline {
        until: NOW,
        revert_to: Some(1),
    });
    let second = Change {
        unconfirmed,
        mode: Some(Mode::Observe),
        suppressed_config_crc: Some(7),
        ..change("y", Vec::new())
    };
    journal.add(second).expect("is written");
    let (_, mut journal) = open(folder.path());
    assert_eq!(journal.known().unconfirmed(), unconfirmed);
    journal.confirm().expect("is written");
    let known = PolicyHistory::load_readonly(folder.path()).expect("is readable");
    assert_eq!(&known, journal.known());
    assert_eq!(known.unconfirmed(), None);
    let newest = known.newest().expect("there are two");
    assert_eq!(newest.change.mode, Some(Mode::Observe));
    assert_eq!(newest.change.suppressed_config_crc, Some(7));
}

/// A failed write affects no earlier change.
#[test]
fn a_failed_write_affects_no_other_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(FILE);
    let mut journal = open_with_three_changes(folder.path());
    let known = journal.known.clone();
    let aside = folder.path().join("aside");
    fs::rename(&path, &aside).expect("it is there");
    fs::create_dir(&path).expect("in its way");
    for _ in 0..2 {
        journal.stage(change("y", vec![Edit::Add(addition(9, 0, None))]));
        journal.write().expect_err("not a regular file");
        // A repeated call has no effect.
        journal.undo_last();
        journal.undo_last();
        assert_eq!(journal.known, known);
    }
    fs::remove_dir(&path).expect("it is empty");
    fs::rename(&aside, &path).expect("it is there");
    assert_eq!(
        PolicyHistory::load_readonly(folder.path()).expect("is readable"),
        known
    );
    journal.add(change("z", Vec::new())).expect("is written");
    let found = PolicyHistory::load_readonly(folder.path()).expect("is readable");
    assert_eq!(found, journal.known);
    assert_eq!(found.additions().len(), 3);
}

#[test]
fn a_clock_that_is_set_back_restores_no_addition() {
    let folder = tempfile::tempdir().expect("a folder");
    let second = |second| Timestamp::from_second(second).expect("a time");
    let at = |time| Now::by_wall(second(time));
    let (state, mut journal) = open(folder.path());
    let edits = [(1, Some(5)), (2, Some(50)), (3, None)]
        .map(|(prefix, until)| Edit::Add(addition(prefix, 1, until)));
    journal
        .add(change("a", edits.to_vec()))
        .expect("is written");
    assert_eq!(journal.expire(&at(10)).len(), 1);
    drop(journal);
    // An hour earlier.
    let mut journal = Journal::open(&state, &at(-3600), "");
    assert_eq!(journal.known().additions().len(), 2);
    // A rewritten ledger still holds both the expiry and its time.
    journal.rewrite(&state, &at(-3600));
    let known = journal.known().clone();
    assert_eq!(
        PolicyHistory::load_readonly(folder.path()).expect("is readable"),
        known
    );
    assert!(journal.now().wall >= second(10));
    // Rolled back to a policy that had it, the addition expires again.
    let mut book = known.additions().clone();
    book.apply(&[Edit::Add(addition(1, 1, Some(5)))]);
    assert_eq!(book.expire(&journal.now()).len(), 2);
}

/// An active change that could not be written is written later, before any other.
#[test]
fn changes_without_the_disk_are_written_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(FILE);
    let (_, mut journal) = open(folder.path());
    journal
        .add(change("x", vec![Edit::Add(addition(0, 0, None))]))
        .expect("is written");
    let aside = folder.path().join("aside");
    let hide = || {
        fs::rename(&path, &aside).expect("it is there");
        fs::create_dir(&path).expect("in its way");
    };
    let show = || {
        fs::remove_dir(&path).expect("it is empty");
        fs::rename(&aside, &path).expect("it is there");
    };
    hide();
    for number in 1..3 {
        journal.stage(change("y", vec![Edit::Add(addition(number, 0, None))]));
        journal.write().expect_err("not a regular file");
        journal.keep_in_memory();
    }
    let known = journal.known.clone();
    // One that was not activated after all, and one that needs the disk.
    journal.stage(change("z", Vec::new()));
    journal.write().expect_err("not a regular file");
    journal.keep_in_memory();
    journal.undo_last();
    journal.stage(change("z", Vec::new()));
    journal.write().expect_err("not a regular file");
    journal.undo_last();
    journal.undo_last();
    assert_eq!(journal.known, known);
    show();
    assert!(journal.is_behind());
    journal.add(change("z", Vec::new())).expect("is written");
    assert!(!journal.is_behind());
    let found = PolicyHistory::load_readonly(folder.path()).expect("is readable");
    assert_eq!(found, journal.known);
    assert_eq!(found.additions().len(), 3);
    // The earlier ones stay when the last is rolled back.
    journal.undo_last();
    journal.undo_last();
    assert_eq!(journal.known, known);
    assert_eq!(
        PolicyHistory::load_readonly(folder.path()).expect("is readable"),
        known
    );
}

/// A state directory with the journal that a program of the older format wrote; `tests/fixtures/state-v1` has its origin.
fn older() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/state-v1");
    for name in [OLDER_FILE, "redaction.key"] {
        let bytes = fs::read(Path::new(fixture).join(name)).expect("is there");
        fs::write(folder.path().join(name), bytes).expect("is written");
    }
    let config = fs::read_to_string(Path::new(fixture).join("allowlist.toml"));
    (folder, config.expect("is there"))
}

#[test]
fn a_journal_of_the_older_format_is_migrated() {
    let (folder, config) = older();
    let path = |name| folder.path().join(name);
    let before = PolicyHistory::load_readonly(folder.path()).expect("is readable");
    let numbers: Vec<u64> = before.policies().map(|policy| policy.number).collect();
    assert_eq!(numbers, (10..=30).collect::<Vec<_>>());
    assert_eq!(before.additions().len(), 3);
    assert_eq!(
        before.newest().expect("is stored").change.mode,
        Some(Mode::Enforce)
    );
    assert!(!path(FILE).exists(), "a reader writes nothing");
    let state = StateDir::open(folder.path()).expect("a state directory");
    let journal = Journal::open(&state, &Now::by_wall(NOW), &config);
    let texts = |known: &PolicyHistory| -> Vec<_> {
        let change = |policy: &Policy| (policy.number, policy.change.operation.to_string());
        known.policies().map(change).collect()
    };
    assert_eq!(texts(journal.known()), texts(&before));
    assert_eq!(journal.known().additions(), before.additions());
    let newest = journal.known().newest().expect("is stored");
    assert!(newest.written().text.contains("Bearer hush"));
    assert!(!path(OLDER_FILE).exists());
    let text = fs::read_to_string(path(FILE)).expect("is there");
    assert!(!text.contains("hush") && !text.starts_with('{'), "{text}");
    let after = PolicyHistory::load_readonly(folder.path()).expect("is readable");
    assert_eq!(after, before);
}

/// While the disk permits no write, the older file stays, and a change needs the migration first.
#[test]
fn an_interrupted_migration_continues() {
    let (folder, config) = older();
    let path = |name| folder.path().join(name);
    let before = PolicyHistory::load_readonly(folder.path()).expect("is readable");
    // A directory that is not empty cannot be replaced, and its name for damaged files is taken too.
    for name in [FILE, "journal.v2.jsonl.damaged"] {
        fs::create_dir_all(path(name).join("in its way")).expect("a folder");
    }
    let state = StateDir::open(folder.path()).expect("a state directory");
    let (_, lines, _) = File::open(&state);
    assert_eq!(lines.len(), 0, "the new file is no file");
    fs::remove_dir_all(path(FILE)).expect("a folder");
    let (mut file, _, _) = File::open(&state);
    fs::create_dir_all(path(FILE).join("in its way")).expect("a folder");
    let line = Line::Confirmed { number: 30 };
    file.add(&line).expect_err("cannot be written");
    assert!(path(OLDER_FILE).exists());
    fs::remove_dir_all(path(FILE)).expect("a folder");
    file.add(&line).expect("is written");
    assert!(!path(OLDER_FILE).exists());
    let after = PolicyHistory::load_readonly(folder.path()).expect("is readable");
    assert_eq!(after, before);
    // A process that ended before it removed the older file.
    let (older, _) = self::older();
    fs::copy(older.path().join(OLDER_FILE), path(OLDER_FILE)).expect("is written");
    let journal = Journal::open(&state, &Now::by_wall(NOW), &config);
    assert_eq!(journal.known().additions(), before.additions());
    assert!(!path(OLDER_FILE).exists());
}

/// Lines that a later version writes with more fields are read.
#[test]
fn unknown_fields_are_ignored() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(FILE);
    let known = open_with_three_changes(folder.path()).known().clone();
    let text = fs::read_to_string(&path).expect("is there");
    let later = text.lines().flat_map(|line| {
        let (_, json) = line.split_once(' ').expect("a checksum");
        let json = json.replacen("\"number\"", "\"later\":[],\"number\"", 1);
        let mut line = allowlist_files::checksum::prepend(json.as_bytes());
        line.push(b'\n');
        line
    });
    fs::write(&path, later.collect::<Vec<_>>()).expect("is written");
    assert_eq!(
        PolicyHistory::load_readonly(folder.path()).expect("is readable"),
        known
    );
}
