//! Files of a wrong type, and operations that do not end.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::mpsc;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

const FOREVER: Duration = Duration::from_hours(1);

/// Reads of special files, which would block without the checks, return errors.
#[test]
fn other_file_types_are_refused_without_waiting() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    mkfifo(&path("pipe"), Mode::S_IRWXU).expect("a pipe");
    let _socket = UnixListener::bind(path("socket")).expect("a socket");
    symlink("/dev/zero", path("device")).expect("a link");
    symlink("pipe", path("link")).expect("a link");
    let open = |follows_links| Open {
        follows_links,
        timeout: FOREVER,
        ..Open::state(100)
    };
    for (name, follows_links, expected) in [
        ("pipe", false, "pipe"),
        ("socket", false, "socket"),
        ("device", true, "device"),
        ("device", false, "symbolic link"),
        ("link", true, "pipe"),
        ("link", false, "symbolic link"),
        ("", false, "directory"),
    ] {
        let read = open(follows_links).read(&path(name));
        assert!(
            matches!(read, Err(ReadError::NotRegular(kind)) if kind.ends_with(expected)),
            "{name}: {read:?}"
        );
        // A write is refused too.
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        let opened = open(follows_links).open(&path(name), &options);
        assert!(
            matches!(opened, Err(ReadError::NotRegular(_))),
            "{name}: {opened:?}"
        );
    }
    let read = open(false).read(&path("none"));
    assert!(read.is_err_and(|error| error.is_missing()));
}

#[test]
fn the_size_is_limited() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("list");
    fs::write(&path, "12345").expect("a file");
    assert_eq!(Open::state(5).read(&path).expect("fits"), b"12345");
    let read = Open::state(4).read(&path);
    assert!(
        matches!(read, Err(ReadError::TooLarge { limit: 4 })),
        "{read:?}"
    );
    // Its size is 0, but it has content.
    let read = Open::configured(4).read(Path::new("/proc/self/status"));
    assert!(
        matches!(read, Err(ReadError::TooLarge { limit: 4 })),
        "{read:?}"
    );
}

#[test]
fn a_file_that_changes_is_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("list");
    fs::write(&path, "192.0.2.1\n").expect("a file");
    let mut changes = vec!["192.0.2.1\n192.0.2.2\n"];
    let read = Open::configured(100).read_steadily(&path, || {
        if let Some(change) = changes.pop() {
            fs::write(&path, change).expect("a file");
        }
    });
    assert_eq!(
        read.expect("steady at last").0,
        b"192.0.2.1\n192.0.2.2\n",
        "the second reading"
    );
}

#[test]
fn a_file_that_keeps_changing_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("list");
    fs::write(&path, "#").expect("a file");
    let mut text = "#".to_owned();
    let read = Open::configured(100).read_steadily(&path, || {
        text.push('#');
        fs::write(&path, &text).expect("a file");
    });
    assert!(matches!(read, Err(ReadError::Unsteady)), "{read:?}");
}

/// The operation blocks until the test ends it, so the test does not depend on time.
#[test]
fn a_late_result_is_passed_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().to_owned();
    let (end, ends) = mpsc::channel::<()>();
    let (undo, undone) = mpsc::channel();
    let work = move || {
        let _ = ends.recv();
        7
    };
    let given_up = within(&place, Duration::from_millis(1), work, move |done| {
        undo.send(done).expect("the test waits for it");
    });
    let kind = |result: io::Result<i32>| result.map_err(|error| error.kind());
    assert_eq!(kind(given_up), Err(ErrorKind::TimedOut));
    // Others at that path fail at once, without a thread.
    for place in [&place, &place.join("file")] {
        let next = within(place, FOREVER, || 8, drop);
        assert_eq!(kind(next), Err(ErrorKind::TimedOut));
    }
    // Other paths are not affected.
    let other = within(Path::new("/other"), FOREVER, || 9, drop);
    assert_eq!(kind(other), Ok(9));
    end.send(()).expect("it waits");
    assert_eq!(undone.recv(), Ok(7));
    // The path is free again soon.
    while within(&place, FOREVER, || (), drop).is_err() {
        thread::yield_now();
    }
}
