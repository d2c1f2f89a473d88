//! Lists in local files, and compiled-in lists.

use std::fs;
use std::path::PathBuf;

use allowlist_policy::error_code::ErrorCode::{FileUnreadable, ListEmpty, ListMalformed, TooLarge};
use allowlist_policy::{Format, Origin};
use expect_test::expect_file;

use super::{Errors, LIST, PREFIXES, check_list, fetch_origin};

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
fn invalid_files_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("wrong"), "192.0.2.1\n192.0.2.0/33\n").expect("a file");
    fs::write(path("empty"), "").expect("a file");
    nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
    // Sparse, so that it needs no space.
    let huge = fs::File::create(path("huge")).expect("a file");
    huge.set_len((64 << 20) + 1).expect("a hole");
    let mut errors = Errors::default();
    for (name, code) in [
        ("wrong", ListMalformed),
        ("empty", ListEmpty),
        ("none", FileUnreadable),
        ("pipe", FileUnreadable),
        ("huge", TooLarge),
    ] {
        errors.add(name, &fetch_origin(text(path(name))), code);
    }
    let own = fetch_origin(text(folder.path().to_owned()));
    errors.add("a folder", &own, FileUnreadable);
    errors.check(&expect_file!["snapshots/files.txt"]);
}

#[test]
fn compiled_in_lists_have_the_time_of_their_check() {
    let origin = Origin::BuiltIn {
        prefixes: PREFIXES
            .map(|prefix| prefix.parse().expect("a prefix"))
            .to_vec(),
        checked: "2026-11-22".parse().expect("a day"),
    };
    let fetched = fetch_origin(origin).expect("a list");
    assert_eq!(fetched.fetched.to_string(), "2026-11-22T00:00:00Z");
    assert_eq!(fetched.prefixes.len(), PREFIXES.len());
}
