//! The ledger against a model, crashes at any byte, damage, and its size.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::additions::tests::{addition, edit};

const FILE: &str = "ledger.v1.jsonl";
/// Before anything of these tests is over.
const NOW: Timestamp = Timestamp::constant(-1, 0);

fn written(text: &str) -> Arc<Written> {
    Arc::new(Written::new(None, text.to_owned(), Vec::new()))
}

fn change(text: &str, edits: Vec<Edit>) -> Change {
    Change {
        time: NOW,
        by: "root".to_owned(),
        what: "a change".to_owned(),
        written: Some(written(text)),
        edits,
        mode: None,
        held_back: None,
        unconfirmed: None,
    }
}

fn open(folder: &Path) -> (StateDir, Ledger) {
    let state = StateDir::open(folder).expect("a state directory");
    let ledger = Ledger::open(&state, &Now::by_wall(NOW), "");
    (state, ledger)
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

    /// Whatever comes, starts included: what is known is what a list of all that was ever done says.
    #[test]
    fn as_a_list_of_everything_says(steps in steps()) {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut state, mut ledger) = open(folder.path());
        let mut books = vec![Additions::default()];
        for (place, (text, edits, restarts)) in steps.iter().enumerate() {
            let number = ledger.add(change(&text.to_string(), edits.clone())).expect("is written");
            prop_assert_eq!(number, place as u64 + 1);
            let mut book = books[place].clone();
            book.apply(edits);
            books.push(book);
            match place % 5 {
                // It failed, and is as if it had never been, but for this line.
                3 => {
                    ledger.take_back();
                    prop_assert_eq!(ledger.known().additions(), &books[place]);
                    ledger.add(change(&text.to_string(), edits.clone())).expect("is written");
                }
                4 => ledger.rewrite(&state, &Now::by_wall(NOW)),
                _ => {}
            }
            if *restarts {
                let before = ledger.known.clone();
                drop(ledger);
                (state, ledger) = open(folder.path());
                prop_assert_eq!(&ledger.known.policies, &before.policies);
            }
            prop_assert_eq!(ledger.known().newest().map(|one| &one.written().text), Some(&text.to_string()));
            for policy in ledger.known().policies() {
                let mut book = ledger.known().additions().clone();
                book.apply(&ledger.known().back_to(policy.number));
                prop_assert_eq!(&book, &books[policy.number as usize]);
            }
        }
        prop_assert!(ledger.known().policies().count() <= KEPT + 1);
    }
}

/// Cut at any byte, a file holds the changes before that, each whole or not at all.
#[test]
fn a_crash_cuts_off_whole_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(FILE);
    let (_, mut ledger) = open(folder.path());
    let mut ends = vec![0];
    for number in 0..4 {
        let edits = (0..3).map(|service| Edit::Add(addition(number, service, None)));
        let change = change("x", edits.collect());
        ledger.add(change).expect("is written");
        ends.push(fs::metadata(&path).expect("is there").len() as usize);
    }
    let whole = fs::read(&path).expect("is there");
    let near_an_end = |length: usize| ends.iter().any(|end| end.abs_diff(length) < 2);
    for length in (0..=whole.len()).filter(|length| length % 7 == 0 || near_an_end(*length)) {
        fs::write(&path, &whole[..length]).expect("is written");
        let changes = ends.iter().filter(|end| **end <= length).count() - 1;
        let (_, mut ledger) = open(folder.path());
        assert_eq!(ledger.known().policies().count(), changes, "{length} bytes");
        assert_eq!(
            ledger.known().additions().len(),
            changes * 3,
            "{length} bytes"
        );
        // What comes next is not lost for it, and completes nothing.
        let number = ledger.add(change("y", Vec::new())).expect("is written");
        assert_eq!(number, changes as u64 + 1);
        let known = Known::peek(folder.path()).expect("is readable");
        assert_eq!(known.policies().count(), changes + 1, "{length} bytes");
    }
}

#[test]
fn a_damaged_line_costs_itself_only_and_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(FILE);
    let (_, mut ledger) = open(folder.path());
    for number in 0..3 {
        let edits = vec![Edit::Add(addition(number, 0, None))];
        ledger.add(change("x", edits)).expect("is written");
    }
    let text = fs::read_to_string(&path).expect("is there");
    let damaged = text.replace("192.0.2.1/32", "192.0.2.9/32");
    fs::write(&path, &damaged).expect("is written");
    let (_, ledger) = open(folder.path());
    let added = ledger.known().additions().all();
    let found: Vec<_> = added.map(|one| one.prefix.to_string()).collect();
    assert_eq!(found, ["192.0.2.0/32", "192.0.2.2/32"]);
    let kept = fs::read_to_string(path.with_extension("jsonl.damaged"));
    assert_eq!(kept.expect("is kept"), damaged);
    // Once it was said, it is in order.
    let known = Known::peek(folder.path()).expect("is readable");
    assert_eq!(known.additions(), ledger.known().additions());
}

#[test]
fn what_is_mostly_history_is_written_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let (state, mut ledger) = open(folder.path());
    let flood: Vec<Edit> = (0..=255)
        .map(|number| Edit::Add(addition(number, 0, None)))
        .cycle()
        .take(HISTORY * 2)
        .collect();
    ledger.add(change("x", flood)).expect("is written");
    for _ in 0..=KEPT {
        ledger.add(change("y", Vec::new())).expect("is written");
    }
    let path = folder.path().join(FILE);
    let before = fs::metadata(&path).expect("is there").len();
    let known = ledger.known.clone();
    ledger.tidy(&state, &Now::by_wall(NOW));
    let after = fs::metadata(&path).expect("is there").len();
    assert!(after * 4 < before, "{after} of {before}");
    assert_eq!(Known::peek(folder.path()).expect("is readable"), known);
}

#[test]
fn what_is_confirmed_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, mut ledger) = open(folder.path());
    ledger.add(change("x", Vec::new())).expect("is written");
    let unconfirmed = Some(Unconfirmed {
        until: NOW,
        back_to: Some(1),
    });
    let second = Change {
        unconfirmed,
        mode: Some(Mode::Observe),
        held_back: Some(7),
        ..change("y", Vec::new())
    };
    ledger.add(second).expect("is written");
    let (_, mut ledger) = open(folder.path());
    assert_eq!(ledger.known().unconfirmed(), unconfirmed);
    ledger.confirm().expect("is written");
    let known = Known::peek(folder.path()).expect("is readable");
    assert_eq!(&known, ledger.known());
    assert_eq!(known.unconfirmed(), None);
    let newest = known.newest().expect("there are two");
    assert_eq!(newest.change.mode, Some(Mode::Observe));
    assert_eq!(newest.change.held_back, Some(7));
}

/// What could not be written costs nothing that was written before.
#[test]
fn a_change_that_cannot_be_written_is_forgotten_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(FILE);
    let (_, mut ledger) = open(folder.path());
    for number in 0..3 {
        let edits = vec![Edit::Add(addition(number, 0, None))];
        ledger.add(change("x", edits)).expect("is written");
    }
    let known = ledger.known.clone();
    let aside = folder.path().join("aside");
    fs::rename(&path, &aside).expect("it is there");
    fs::create_dir(&path).expect("in its way");
    for _ in 0..2 {
        ledger.stage(change("y", vec![Edit::Add(addition(9, 0, None))]));
        ledger.write().expect_err("not a regular file");
        // Once is enough, and twice no harm.
        ledger.take_back();
        ledger.take_back();
        assert_eq!(ledger.known, known);
    }
    fs::remove_dir(&path).expect("it is empty");
    fs::rename(&aside, &path).expect("it is there");
    assert_eq!(Known::peek(folder.path()).expect("is readable"), known);
    ledger.add(change("z", Vec::new())).expect("is written");
    let found = Known::peek(folder.path()).expect("is readable");
    assert_eq!(found, ledger.known);
    assert_eq!(found.additions().len(), 3);
}

#[test]
fn a_clock_that_is_set_back_brings_no_addition_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let second = |second| Timestamp::from_second(second).expect("a time");
    let at = |time| Now::by_wall(second(time));
    let (state, mut ledger) = open(folder.path());
    let edits = [(1, Some(5)), (2, Some(50)), (3, None)]
        .map(|(prefix, until)| Edit::Add(addition(prefix, 1, until)));
    ledger.add(change("a", edits.to_vec())).expect("is written");
    assert_eq!(ledger.expire(&at(10)).len(), 1);
    drop(ledger);
    // An hour earlier.
    let mut ledger = Ledger::open(&state, &at(-3600), "");
    assert_eq!(ledger.known().additions().len(), 2);
    // A rewritten ledger still holds both the expiry and its time.
    ledger.rewrite(&state, &at(-3600));
    let known = ledger.known().clone();
    assert_eq!(Known::peek(folder.path()).expect("is readable"), known);
    assert!(ledger.now().wall >= second(10));
    // Rolled back to a policy that had it, the addition expires again.
    let mut book = known.additions().clone();
    book.apply(&[Edit::Add(addition(1, 1, Some(5)))]);
    assert_eq!(book.expire(&ledger.now()).len(), 2);
}

/// A change that is active without the disk is written later, in its place, before any other.
#[test]
fn changes_without_the_disk_are_written_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(FILE);
    let (_, mut ledger) = open(folder.path());
    ledger
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
        ledger.stage(change("y", vec![Edit::Add(addition(number, 0, None))]));
        ledger.write().expect_err("not a regular file");
        ledger.keep_in_memory();
    }
    let known = ledger.known.clone();
    // One that could not be made active after all, and one that needs the disk.
    ledger.stage(change("z", Vec::new()));
    ledger.write().expect_err("not a regular file");
    ledger.keep_in_memory();
    ledger.take_back();
    ledger.stage(change("z", Vec::new()));
    ledger.write().expect_err("not a regular file");
    ledger.take_back();
    ledger.take_back();
    assert_eq!(ledger.known, known);
    show();
    assert!(ledger.is_behind());
    ledger.add(change("z", Vec::new())).expect("is written");
    assert!(!ledger.is_behind());
    let found = Known::peek(folder.path()).expect("is readable");
    assert_eq!(found, ledger.known);
    assert_eq!(found.additions().len(), 3);
    // The earlier ones stay when the last is rolled back.
    ledger.take_back();
    ledger.take_back();
    assert_eq!(ledger.known, known);
    assert_eq!(Known::peek(folder.path()).expect("is readable"), known);
}
