//! Lists that lie on this host, and lists that are compiled in.

use std::fs;
use std::path::PathBuf;

use allowlist_user::policy::{Format, Origin};

use super::{LIST, PREFIXES, check_list, check_words, fetch_origin};

fn text(path: PathBuf) -> Origin {
    Origin::File {
        path,
        format: Format::Text,
    }
}

#[test]
fn a_file_is_read_by_its_format() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("office");
    fs::write(
        &path,
        "# the office\r\n198.51.100.7\r\n\r\n192.0.2.0/24 # and the annex\r\n2001:db8::/32",
    )
    .expect("a file");
    check_list(fetch_origin(text(path.clone())));
    fs::write(&path, LIST).expect("a file");
    check_list(fetch_origin(Origin::File {
        path,
        format: Format::json_array(),
    }));
}

#[test]
fn a_file_that_is_no_list_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let refused = |name: &str, expected: &str| {
        let path = path(name);
        let expected = format!("{}: {expected}", path.display());
        check_words(&fetch_origin(text(path)), &expected);
    };
    fs::write(path("wrong"), "192.0.2.1\n192.0.2.0/33\n").expect("a file");
    refused(
        "wrong",
        "line 2: \"192.0.2.0/33\" is not a prefix: its length is more than 32; write one from /0 \
         to /32",
    );
    fs::write(path("empty"), "").expect("a file");
    refused(
        "empty",
        "is empty; a list names at least one prefix: check where it comes from",
    );
    refused(
        "none",
        "cannot be read: No such file or directory (os error 2); check the path and its permissions",
    );
    let other = |kind: &str| {
        format!(
            "cannot be read as a file: it is {kind} and not a regular file; name a file that holds the list"
        )
    };
    refused("", &other("a folder"));
    nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
    refused("pipe", &other("a pipe"));
    // Of nothing, so that it takes no room.
    let huge = fs::File::create(path("huge")).expect("a file");
    huge.set_len((64 << 20) + 1).expect("a hole");
    refused(
        "huge",
        "is larger than 67108864 bytes, the most that a file may have; check that it is the list",
    );
}

#[test]
fn what_is_compiled_in_is_as_old_as_its_check() {
    let origin = Origin::BuiltIn {
        prefixes: PREFIXES
            .map(|prefix| prefix.parse().expect("a prefix"))
            .to_vec(),
        checked: "2026-11-22".parse().expect("a day"),
    };
    let fetched = fetch_origin(origin).expect("is always there");
    assert_eq!(fetched.fetched.to_string(), "2026-11-22T00:00:00Z");
    assert_eq!(fetched.prefixes.len(), PREFIXES.len());
}
