//! Storing and loading lists, with damage and mistakes.

use std::os::unix::fs::PermissionsExt;

use allowlist_policy::{Http, PerFamily};
use expect_test::expect;
use tempfile::TempDir;

use super::*;

fn state() -> (TempDir, StateDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let state = StateDir::open(&folder.path().join("a/state")).expect("is made");
    (folder, state)
}

fn source(url: &str) -> Source {
    Source::new(
        "vendor",
        Origin::Http(Http::new(
            vec![url.parse().expect("a URL")],
            Format::json_array(),
        )),
    )
}

fn feed() -> Feed {
    let prefixes = ["192.0.2.0/24", "2001:db8::/32"];
    let fetched = "2026-11-22T10:11:12.123456789Z".parse().expect("a time");
    Feed {
        grace: vec![GracePrefix {
            prefix: "198.51.100.0/24".parse().expect("a prefix"),
            until: fetched,
            seconds: 30,
        }],
        validators: vec![Validator {
            etag: Some("\"1\"".to_owned()),
            last_modified: None,
        }],
        notes: vec!["a note".to_owned()],
        changes: vec![PastChange {
            seconds: 60,
            oldest_seconds: 120,
            added: vec!["192.0.2.0/24".parse().expect("a prefix")],
            removed: vec!["192.0.2.0/25".parse().expect("a prefix")],
            fewest: Some(PerFamily {
                v4: 128,
                v6: 1 << 96,
            }),
        }],
        answered: fetched + jiff::SignedDuration::from_secs(60),
        ..Feed::new(
            prefixes
                .map(|prefix| prefix.parse().expect("a prefix"))
                .to_vec(),
            fetched,
        )
    }
}

const URL: &str = "https://me:hush@example.com/list?region=us&key=hush";

#[test]
fn lists_round_trip() {
    let (_folder, state) = state();
    assert_eq!(state.load(&source(URL)).expect("is readable"), None);
    state.store(&source(URL), &feed()).expect("is stored");
    state.store(&source(URL), &feed()).expect("is replaced");
    assert_eq!(state.load(&source(URL)).expect("is readable"), Some(feed()));
    let names: Vec<_> = fs::read_dir(&state.path).expect("a folder").collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn files_are_private_and_have_no_secret() {
    let (_folder, state) = state();
    state.store(&source(URL), &feed()).expect("is stored");
    let path = state.path.join("vendor.json");
    assert!(
        !fs::read_to_string(&path)
            .expect("is readable")
            .contains("hush")
    );
    for (path, mode) in [(&path, 0o600), (&state.path, 0o700)] {
        let metadata = fs::metadata(path).expect("is there");
        assert_eq!(
            metadata.permissions().mode() & 0o777,
            mode,
            "{}",
            path.display()
        );
    }
}

#[test]
fn a_list_of_another_origin_is_not_used() {
    let (_folder, state) = state();
    state.store(&source(URL), &feed()).expect("is stored");
    let cases = [
        ("https://me:new@example.com/list?region=us&key=hush", true),
        ("https://example.com/list?region=us&key=hush", true),
        ("https://example.com/list?region=eu&key=hush", false),
        ("https://example.com/list", false),
        ("https://example.org/list?region=us&key=hush", false),
    ];
    for (url, same) in cases {
        match state.load(&source(url)) {
            Ok(Some(_)) => assert!(same, "{url}"),
            Err(StateError::OtherOrigin { .. }) => assert!(!same, "{url}"),
            other => panic!("{url}: {other:?}"),
        }
    }
}

#[test]
fn a_list_of_another_format_is_not_used() {
    let (_folder, state) = state();
    state.store(&source(URL), &feed()).expect("is stored");
    let select =
        Format::Json(vec![allowlist_policy::Select::new("$.a[*]").expect("a path")].into());
    let changes: [fn(&mut Http, Format); 3] = [
        |http, format| http.format = format,
        |http, _| http.unzip = vec![allowlist_policy::Pattern::new("txt$").expect("a pattern")],
        |http, _| http.urls.push(http.urls[0].clone()),
    ];
    for change in changes {
        let mut source = source(URL);
        let Origin::Http(http) = &mut source.origin else {
            panic!("{source:?}")
        };
        change(http, select.clone());
        let loaded = state.load(&source);
        assert!(
            matches!(loaded, Err(StateError::OtherOrigin { .. })),
            "{loaded:?}"
        );
    }
}

#[test]
fn damaged_files_are_renamed() {
    let (_folder, state) = state();
    let path = state.path.join("vendor.json");
    state.store(&source(URL), &feed()).expect("is stored");
    let whole = fs::read(&path).expect("is readable");
    let text = String::from_utf8(whole.clone()).expect("is text");
    let cases = [
        Vec::new(),
        b"[]".to_vec(),
        whole[..whole.len() - 1].to_vec(),
        text.replace("192.0.2.0", "192.0.3.0").into_bytes(),
        text.replace("2026-11-22", "2026-11-23").into_bytes(),
        text.replace("192.0.2.0/24", "192.0.2.0/99").into_bytes(),
    ];
    for bytes in cases {
        fs::write(&path, &bytes).expect("is written");
        let error = state.load(&source(URL)).expect_err("must be refused");
        assert!(matches!(error, StateError::Damaged { .. }), "{error}");
        assert_eq!(
            fs::read(state.path.join("vendor.damaged")).expect("is kept"),
            bytes
        );
        assert_eq!(state.load(&source(URL)).expect("is gone"), None);
    }
}

#[test]
fn other_formats_are_not_changed() {
    let (_folder, state) = state();
    let path = state.path.join("vendor.json");
    for (other, text) in [
        (OLDER_FORMAT - 1, r#"{"format":3,"content":"?"}"#),
        (FORMAT + 1, "6 ?"),
    ] {
        fs::write(&path, text).expect("is written");
        for _ in 0..2 {
            let error = state.load(&source(URL)).expect_err("must be refused");
            assert!(
                matches!(error, StateError::Format { format, .. } if format == other),
                "{error}"
            );
        }
    }
}

/// The file was written by a program of the older format; `tests/fixtures/state-v1` has its origin.
#[test]
fn files_of_the_older_format_are_read() {
    let (_folder, state) = state();
    let written = include_bytes!("../../../tests/fixtures/state-v1/vendor.json");
    let path = state.path.join("vendor.json");
    fs::write(&path, written).expect("is written");
    let source = source("http://127.0.0.1:8000/list?key=hush");
    let load = || {
        let stored = state.load_or_later(&source, OPENING, drop);
        stored.expect("is readable").expect("is there")
    };
    let StoredList {
        feed,
        has_older_format,
    } = load();
    assert!(has_older_format);
    let (prefixes, grace) = (feed.prefixes.len(), feed.grace.len());
    assert_eq!((prefixes, grace), (7, 14));
    assert_eq!((feed.validators.len(), feed.changes.len()), (1, 1));
    assert_ne!(feed.answered, feed.fetched);
    state.store(&source, &feed).expect("is stored");
    let stored = load();
    assert_eq!(stored.feed, feed);
    assert!(!stored.has_older_format);
    let damaged = String::from_utf8_lossy(written).replace("198.18.6.0/24", "198.18.6.0/25");
    fs::write(&path, damaged).expect("is written");
    let error = state.load_readonly(&source).expect_err("must be refused");
    assert!(matches!(error, StateError::Damaged { .. }), "{error}");
}

/// A list that a later version writes with more fields is used.
#[test]
fn unknown_fields_are_ignored() {
    let (_folder, state) = state();
    state.store(&source(URL), &feed()).expect("is stored");
    let path = state.path.join("vendor.json");
    let text = fs::read_to_string(&path).expect("is readable");
    let (_, json) = text.split_once('{').expect("is JSON");
    let json = format!("{{\"later\":[1], {json}");
    let later = [b"5 ", &*checksum::prepend(json.as_bytes())].concat();
    fs::write(&path, later).expect("is written");
    assert_eq!(state.load(&source(URL)).expect("is readable"), Some(feed()));
}

#[test]
fn one_process_has_the_lock() {
    let (_folder, state) = state();
    let lock = state.lock().expect("is free");
    let error = state.lock().expect_err("is held");
    let StateError::Locked { holder, .. } = &error else {
        panic!("{error}");
    };
    let process = format!("process {} (", std::process::id());
    assert!(
        holder
            .as_ref()
            .is_some_and(|holder| holder.starts_with(&process)),
        "{error}"
    );
    drop(lock);
    let _lock = state.lock().expect("the lock is released");
}

#[test]
fn errors_as_text() {
    let path = PathBuf::from("/state");
    let errors = [
        StateError::Io {
            path: path.clone(),
            cause: ErrorKind::PermissionDenied.into(),
        },
        StateError::Io {
            path: path.clone(),
            cause: ErrorKind::StorageFull.into(),
        },
        StateError::Io {
            path: path.clone(),
            cause: ErrorKind::TimedOut.into(),
        },
        StateError::Io {
            path: path.clone(),
            cause: ErrorKind::NotFound.into(),
        },
        StateError::Shared { path: path.clone() },
        StateError::Locked {
            path: path.clone(),
            holder: Some("process 7 (allowlist)".to_owned()),
        },
        StateError::Locked {
            path: path.clone(),
            holder: None,
        },
        StateError::Damaged {
            path: path.clone(),
            problem: "PROBLEM".to_owned(),
            kept: Some("/kept".into()),
        },
        StateError::Format {
            path: path.clone(),
            format: 9,
        },
        StateError::OtherOrigin {
            path,
            stored: "https://old".to_owned(),
            configured: "https://new".to_owned(),
        },
    ];
    let lines: Vec<_> = errors
        .iter()
        .map(|error| format!("{}: {error}", error.code()))
        .collect();
    expect![[r"
        forbidden: /state: permission denied; only its owner may read it, try sudo
        invalid-state-dir: /state: no storage space; free some space; `allowlist detach` works on a full disk
        invalid-state-dir: /state: timed out; check the disk or the file server of the state directory
        invalid-state-dir: /state: entity not found; check the state directory and its permissions
        invalid-state-dir: /state: other users can write to the directory; change its owner to this user and its mode to 0700, or choose another --state-dir
        already-running: /state: the state directory is in use by process 7 (allowlist); stop that process, or choose another --state-dir
        already-running: /state: the state directory is in use by another process; stop that process, or choose another --state-dir
        invalid-state-dir: /state: the last-good list is damaged, and is not used: PROBLEM; the file was renamed to /kept; the next fetched list replaces it
        invalid-state-dir: /state: the last-good list is not used, since its format is 9, and this version reads the formats 4 and 5; the next fetched list replaces it
        invalid-state-dir: /state: the last-good list is not used, since it is from https://old, and the source is https://new now; the next fetched list replaces it"]].assert_eq(&lines.join("\n"));
}

#[test]
fn directories_of_other_users_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let permissions = fs::Permissions::from_mode(0o777);
    fs::set_permissions(folder.path(), permissions).expect("is ours");
    let error = StateDir::open(folder.path()).expect_err("must be refused");
    assert_eq!(error.code(), ErrorCode::UntrustedPath, "{error}");
}
