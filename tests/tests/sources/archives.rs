//! Lists in ZIP archives.

use std::io::{Cursor, Write as _};

use allowlist_lists::source::{ArchiveError, FetchError, FetchErrorCause, Fetched};
use allowlist_policy::error_code::ErrorCode::{self, *};
use allowlist_policy::{Format, Http, Pattern};
use allowlist_tests::vendor::Answer;
use expect_test::expect_file;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::{Errors, check_list, fetch, http, vendor};

const V4: &str = "192.0.2.0/24\n198.51.100.7\n";
const V6: &str = "2001:db8::/32\n192.0.2.0/24\n";

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    for (name, text) in files {
        if name.ends_with('/') {
            archive.add_directory(*name, options).expect("a folder");
        } else {
            archive.start_file(*name, options).expect("a file");
            archive.write_all(text.as_bytes()).expect("its text");
        }
    }
    archive.finish().expect("an archive").into_inner()
}

/// Fetches the body as `/list.zip`.
fn unzipped(body: Vec<u8>) -> Result<Fetched, FetchError> {
    unzipped_by(&[r"\.txt$"], body)
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("a pattern")
}

fn unzipped_by(patterns: &[&str], body: Vec<u8>) -> Result<Fetched, FetchError> {
    let vendor = vendor([("/list.zip", Answer::Body("application/zip", body))]);
    fetch(Http {
        unzip: patterns.iter().map(|text| pattern(text)).collect(),
        format: Format::Text,
        ..http(&vendor.url("/list.zip"))
    })
}

impl Errors {
    #[track_caller]
    fn archive(&mut self, title: &str, body: Vec<u8>, code: ErrorCode) {
        self.add(title, &unzipped(body), code);
    }
}

#[test]
fn all_matching_files_form_one_list() {
    let fetched = unzipped(archive(&[
        ("lists/", ""),
        ("lists/v4.txt", V4),
        ("__MACOSX/lists/._v4.txt", "\0\u{5}\u{16}\u{7}"),
        ("lists/.hidden.txt", "not a list"),
        ("lists/v6.txt", V6),
        ("readme.md", "# Not a list"),
        ("folder.txt/", ""),
    ]));
    check_list(fetched);
}

#[test]
fn an_archive_without_the_list_is_refused() {
    let mut errors = Errors::default();
    errors.archive(
        "other files",
        archive(&[("readme.md", "# Read"), ("lists/v4.csv", V4)]),
        InvalidArchive,
    );
    errors.archive(
        "no file",
        archive(&[("__MACOSX/a.txt", V4)]),
        InvalidArchive,
    );
    let many: Vec<_> = (0..12).map(|number| format!("{number}.csv")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), V4)).collect();
    errors.archive("many other files", archive(&many), InvalidArchive);
    errors.archive(
        "a web page",
        archive(&[("v4.txt", V4), ("v6.txt", "<html>")]),
        InvalidArchive,
    );
    errors.check(&expect_file!["snapshots/archives_without_the_list.txt"]);
}

#[test]
fn each_of_several_patterns_has_to_match_a_file() {
    let by_family = ["v4.*\\.txt$", "v6.*\\.txt$"];
    let both = archive(&[("lists/v4.txt", V4), ("lists/v6.txt", V6)]);
    check_list(unzipped_by(&by_family, both));
    // A file that both patterns match is read once.
    let one = archive(&[("v4-and-v6.txt", &format!("{V4}{V6}"))]);
    check_list(unzipped_by(&by_family, one));
    let mut errors = Errors::default();
    for (files, missing) in [
        (&[("lists/v4.txt", V4), ("lists/ipv6.csv", V6)][..], "v6"),
        (&[("lists/ipv4.csv", V4), ("lists/v6.txt", V6)], "v4"),
    ] {
        let fetched = unzipped_by(&by_family, archive(files));
        errors.add(missing, &fetched, InvalidArchive);
        let error = fetched.expect_err("was checked");
        let by = format!("{missing}.*\\.txt$");
        assert!(
            matches!(
                &*error.cause,
                FetchErrorCause::Archive(ArchiveError::NoMatch { pattern, .. }) if *pattern == by
            ),
            "{error}"
        );
    }
    errors.check(&expect_file!["snapshots/archives_without_a_match.txt"]);
}

#[test]
fn invalid_archives_are_refused() {
    let mut errors = Errors::default();
    errors.archive("a text", V4.into(), InvalidArchive);
    let mut half = archive(&[("v4.txt", V4)]);
    half.truncate(half.len() / 2);
    errors.archive("half of an archive", half, InvalidArchive);
    errors.check(&expect_file!["snapshots/not_an_archive.txt"]);
}

#[test]
fn unpacked_archives_have_a_maximum_size() {
    let blank = " ".repeat(8 << 20);
    let bomb = archive(&[("a.txt", &blank)]);
    assert!(bomb.len() < 64 << 10, "{}", bomb.len());
    let mut errors = Errors::default();
    errors.archive("one file", bomb, InvalidArchive);
    // The sum of both files.
    let half = format!("{V4}{}", " ".repeat(40 << 10));
    let both = archive(&[("a.txt", &half), ("b.txt", &half)]);
    errors.archive("two files", both, InvalidArchive);
    // Exactly the maximum.
    let blank_part = (64 << 10) - V4.len() - V6.len();
    let full = format!("{V4}{}", " ".repeat(blank_part));
    check_list(unzipped(archive(&[("a.txt", &full), ("b.txt", V6)])));
    // A header with a wrong, small size.
    let mut wrong = archive(&[("a.txt", &blank)]);
    let size = u32::try_from(blank.len()).expect("fits").to_le_bytes();
    let at = wrong.windows(4).rposition(|window| window == size);
    let at = at.expect("the directory has the size");
    wrong[at..at + 4].copy_from_slice(&100_u32.to_le_bytes());
    errors.archive("a wrong size", wrong, InvalidArchive);
    errors.check(&expect_file!["snapshots/large_archives.txt"]);
}

#[test]
fn a_damaged_or_odd_archive_is_refused() {
    let mut errors = Errors::default();
    // One changed bit in the compressed data.
    let mut damaged = archive(&[("v4.txt", &V4.repeat(50))]);
    let at = 30 + "v4.txt".len() + 12;
    damaged[at] ^= 0x10;
    errors.archive("damaged", damaged, InvalidArchive);
    // The encryption flag or the compression method, in the file's header and in the directory.
    let changed = |offset: usize, value: u8| {
        let mut bytes = archive(&[("v4.txt", V4)]);
        for (start, offset) in [(&b"PK\x03\x04"[..], offset), (b"PK\x01\x02", offset + 2)] {
            let at = bytes.windows(4).position(|window| window == start);
            bytes[at.expect("a header") + offset] = value;
        }
        bytes
    };
    errors.archive("encrypted", changed(6, 1), InvalidArchive);
    errors.archive("compression method 12", changed(8, 12), InvalidArchive);
    // Two files with one name; programs differ in the one that they choose.
    let mut twice = archive(&[("v4.txt", V4), ("v5.txt", V6)]);
    while let Some(at) = twice.windows(6).position(|window| window == b"v5.txt") {
        twice[at + 1] = b'4';
    }
    errors.archive("two files with the same name", twice, InvalidArchive);
    errors.check(&expect_file!["snapshots/damaged_archives.txt"]);
}

#[test]
fn an_archive_of_very_many_files_is_refused() {
    let names: Vec<_> = (0..1001).map(|number| format!("{number:x}")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    let body = archive(&files);
    let vendor = vendor([("/list.zip", Answer::Body("application/zip", body))]);
    let url = vendor.url("/list.zip");
    let fetched = fetch(Http {
        unzip: vec![pattern("")],
        max_bytes: 4 << 20,
        ..http(&url)
    });
    let mut errors = Errors::of(&vendor);
    errors.add("1001 files", &fetched, InvalidArchive);
    errors.check(&expect_file!["snapshots/archive_of_many_files.txt"]);
}
