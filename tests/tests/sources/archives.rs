//! Lists in ZIP archives.

use std::io::{Cursor, Write as _};

use allowlist_tests::vendor::Answer;
use allowlist_user::policy::{Format, Http, Pattern};
use allowlist_user::source::{FetchError, Fetched};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::{check_list, check_words, fetch, http, vendor};

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

/// What is served at `/list.zip`, and the URL of it.
fn unzipped(body: Vec<u8>) -> (String, Result<Fetched, FetchError>) {
    unzipped_by(&[r"\.txt$"], body)
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("a pattern")
}

fn unzipped_by(patterns: &[&str], body: Vec<u8>) -> (String, Result<Fetched, FetchError>) {
    let vendor = vendor([("/list.zip", Answer::Body("application/zip", body))]);
    let url = vendor.url("/list.zip");
    let fetched = fetch(Http {
        unzip: patterns.iter().map(|text| pattern(text)).collect(),
        format: Format::Text,
        ..http(&url)
    });
    (url, fetched)
}

#[track_caller]
fn check_refused(body: Vec<u8>, expected: &str) {
    let (url, fetched) = unzipped(body);
    check_words(&fetched, &format!("{url}: {expected}"));
}

#[test]
fn all_matching_files_are_one_list() {
    let (_, fetched) = unzipped(archive(&[
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
    check_refused(
        archive(&[("readme.md", "# Read"), ("lists/v4.csv", V4)]),
        "is a ZIP archive without a file that `unzip` (\"\\\\.txt$\") matches; it has \"readme.md\", \
         \"lists/v4.csv\"",
    );
    check_refused(
        archive(&[("__MACOSX/a.txt", V4)]),
        "is a ZIP archive without a file that `unzip` (\"\\\\.txt$\") matches; it has no file at all",
    );
    let many: Vec<_> = (0..12).map(|number| format!("{number}.csv")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), V4)).collect();
    check_refused(
        archive(&many),
        "is a ZIP archive without a file that `unzip` (\"\\\\.txt$\") matches; it has \"0.csv\", {*}, \
         \"7.csv\", …",
    );
    check_refused(
        archive(&[("v4.txt", V4), ("v6.txt", "<html>")]),
        "\"v6.txt\" in the ZIP archive: got a web page, not a list: {*}",
    );
}

#[test]
fn each_of_several_patterns_has_to_match_a_file() {
    let by_family = ["v4.*\\.txt$", "v6.*\\.txt$"];
    let both = archive(&[("lists/v4.txt", V4), ("lists/v6.txt", V6)]);
    check_list(unzipped_by(&by_family, both).1);
    // A file that both patterns match is read once.
    let one = archive(&[("v4-and-v6.txt", &format!("{V4}{V6}"))]);
    check_list(unzipped_by(&by_family, one).1);
    for (files, missing) in [
        (&[("lists/v4.txt", V4), ("lists/ipv6.csv", V6)][..], "v6"),
        (&[("lists/ipv4.csv", V4), ("lists/v6.txt", V6)], "v4"),
    ] {
        let (url, fetched) = unzipped_by(&by_family, archive(files));
        check_words(
            &fetched,
            &format!(
                "{url}: is a ZIP archive without a file that `unzip` (\"{missing}.*\\\\.txt$\") matches; it has \
                 {:?}, {:?}",
                files[0].0, files[1].0
            ),
        );
    }
}

#[test]
fn what_is_no_archive_is_refused() {
    check_refused(
        V4.into(),
        "is not a ZIP archive that can be read: {*}: it starts with \"192.0.2.0/24\\n198.51.100.7\\n\"; \
         check the URL, or remove `unzip`",
    );
    let mut half = archive(&[("v4.txt", V4)]);
    half.truncate(half.len() / 2);
    check_refused(
        half,
        "is not a ZIP archive that can be read: {*}; check the URL, or remove `unzip`",
    );
}

#[test]
fn an_archive_unpacks_to_no_more_than_it_may() {
    let blank = " ".repeat(8 << 20);
    let bomb = archive(&[("a.txt", &blank)]);
    assert!(bomb.len() < 64 << 10, "{}", bomb.len());
    let too_large =
        "unpacks to more than 65536 bytes; if the list is meant to be that long, raise `max_size`";
    check_refused(bomb, too_large);
    // All of them together.
    let half = format!("{V4}{}", " ".repeat(40 << 10));
    check_refused(archive(&[("a.txt", &half), ("b.txt", &half)]), too_large);
    // To the byte.
    let blank_part = (64 << 10) - V4.len() - V6.len();
    let full = format!("{V4}{}", " ".repeat(blank_part));
    check_list(unzipped(archive(&[("a.txt", &full), ("b.txt", V6)])).1);
    // One that says that it is small.
    let mut liar = archive(&[("a.txt", &blank)]);
    let size = u32::try_from(blank.len()).expect("fits").to_le_bytes();
    let at = liar.windows(4).rposition(|window| window == size);
    let at = at.expect("the directory has the size");
    liar[at..at + 4].copy_from_slice(&100_u32.to_le_bytes());
    check_refused(liar, "\"a.txt\" in the ZIP archive cannot be unpacked: {*}");
}

#[test]
fn a_damaged_or_odd_archive_is_refused() {
    let cannot = "in the ZIP archive cannot be unpacked:";
    let ask = "try again, or ask the vendor";
    // A bit of what is packed.
    let mut damaged = archive(&[("v4.txt", &V4.repeat(50))]);
    let at = 30 + "v4.txt".len() + 12;
    damaged[at] ^= 0x10;
    check_refused(damaged, &format!("\"v4.txt\" {cannot} {{*}}; {ask}"));
    // In the file's own header and in the directory: that it is encrypted, or how it is compressed.
    let changed = |offset: usize, value: u8| {
        let mut bytes = archive(&[("v4.txt", V4)]);
        for (start, offset) in [(&b"PK\x03\x04"[..], offset), (b"PK\x01\x02", offset + 2)] {
            let at = bytes.windows(4).position(|window| window == start);
            bytes[at.expect("has one") + offset] = value;
        }
        bytes
    };
    check_refused(
        changed(6, 1),
        &format!("\"v4.txt\" {cannot} it is encrypted; {ask}"),
    );
    check_refused(
        changed(8, 12),
        &format!("\"v4.txt\" {cannot} compression method not supported: 12; {ask}"),
    );
    // Two files of one name, of which programs choose differently.
    let mut twice = archive(&[("v4.txt", V4), ("v5.txt", V6)]);
    while let Some(at) = twice.windows(6).position(|window| window == b"v5.txt") {
        twice[at + 1] = b'4';
    }
    check_refused(
        twice,
        "is a ZIP archive with two files of one name; nothing of it is used: ask the vendor",
    );
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
    check_words(
        &fetched,
        &format!(
            "{url}: is a ZIP archive with 1001 files, more than 1000; nothing of it is used: ask the vendor"
        ),
    );
}
