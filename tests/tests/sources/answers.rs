//! Answers of a vendor that are not its list.

use std::time::Duration;

use allowlist_lists::source::{self, FetchErrorCause};
use allowlist_policy::error_code::ErrorCode::{self, *};
use allowlist_policy::{Format, Http, Origin, Source};
use allowlist_tests::vendor::{Answer, Vendor, header};
use expect_test::{ExpectFile, expect_file};

use super::{Errors, LIST, check_list, fetch, http, vendor};

#[test]
fn a_list_is_fetched() {
    let vendor = vendor([("/list", Answer::json(LIST))]);
    check_list(fetch(http(&vendor.url("/list"))));
    let request = &vendor.requests()[0];
    let agent = concat!("allowlist/", env!("CARGO_PKG_VERSION"));
    assert_eq!(header(request, "user-agent"), Some(agent));
    assert_eq!(header(request, "accept-encoding"), Some("gzip"));
    assert_eq!(header(request, "referer"), None);
}

#[test]
fn a_compressed_list_is_decompressed() {
    let vendor = vendor([("/list", Answer::Gzip(LIST.into()))]);
    check_list(fetch(http(&vendor.url("/list"))));
}

#[test]
fn unknown_content_encodings_are_ignored() {
    for word in ["utf-8", "aws-chunked", "identity", ""] {
        let answer = Answer::Full(200, vec![("Content-Encoding", word.into())], LIST.into());
        let vendor = vendor([("/list", answer)]);
        check_list(fetch(http(&vendor.url("/list"))));
    }
}

#[test]
fn a_byte_order_mark_and_the_content_type_are_ignored() {
    let text = "\u{feff}192.0.2.0/24\r\n198.51.100.7\r\n2001:db8::/32";
    let vendor = vendor([("/list", Answer::html(text))]);
    check_list(fetch(Http {
        format: Format::Text,
        ..http(&vendor.url("/list"))
    }));
}

/// A vendor's way to fail, its answer, and the code of the error.
type Case = (&'static str, Answer, ErrorCode);

#[track_caller]
fn check_table(format: &Format, cases: Vec<Case>, file: &ExpectFile) {
    let vendor = Vendor::start([]).expect("a vendor");
    let mut errors = Errors::of(&vendor);
    for (index, (name, answer, code)) in cases.into_iter().enumerate() {
        let path = format!("/{index}");
        vendor.answer(&path, answer);
        let fetched = fetch(Http {
            format: format.clone(),
            ..http(&vendor.url(&path))
        });
        errors.add(name, &fetched, code);
    }
    errors.check(file);
}

#[test]
fn invalid_json_lists_are_refused() {
    let utf_16 = "[\"192.0.2.1\"]"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect::<Vec<_>>();
    let with_mark = [&[0xff, 0xfe][..], &utf_16[..]].concat();
    check_table(
        &Format::json_array(),
        vec![
            (
                "a web page",
                Answer::html("<!DOCTYPE html><html><title>Just a moment…</title>"),
                ListIsWebPage,
            ),
            (
                "a web page that calls itself JSON",
                Answer::Body("application/json", b"\n <html>log in".to_vec()),
                ListIsWebPage,
            ),
            ("nothing", Answer::json(""), ListEmpty),
            ("an empty list", Answer::json("[]"), ListEmpty),
            (
                "another document",
                Answer::json(r#"{"Temporarily": "Broken"}"#),
                ListMalformed,
            ),
            (
                "host bits",
                Answer::json(r#"["192.0.2.1", "203.0.113.9/24"]"#),
                ListMalformed,
            ),
            (
                "half of the document",
                Answer::json(r#"["192.0.2.1", "203.0."#),
                Incomplete,
            ),
            (
                "UTF-16",
                Answer::json(String::from_utf8(utf_16).expect("each second byte is zero")),
                ListMalformed,
            ),
            (
                "UTF-16 with a mark",
                Answer::Body("application/json", with_mark),
                ListMalformed,
            ),
            (
                "unrequested compression, twice",
                Answer::Full(
                    200,
                    vec![("Content-Encoding", "gzip, X-Gzip".into())],
                    vec![0x8b; 9],
                ),
                InvalidArchive,
            ),
            (
                "unrequested compression",
                Answer::Full(200, vec![("Content-Encoding", "br".into())], vec![0x8b; 9]),
                InvalidArchive,
            ),
        ],
        &expect_file!["snapshots/not_a_list_in_json.txt"],
    );
}

#[test]
fn invalid_text_lists_are_refused() {
    check_table(
        &Format::Text,
        vec![
            (
                "the tombstone of a list that was merged into another",
                Answer::json(
                    "# This list has been merged into https://lists.example.com/\n# EOF\n",
                ),
                ListEmpty,
            ),
            (
                "two lines run together",
                Answer::json("192.0.2.0/24\n131.0.72.0/222400:cb00::/32\n"),
                ListMalformed,
            ),
            (
                "Latin-1",
                Answer::Body("text/plain", b"192.0.2.1\n# caf\xe9\n".to_vec()),
                ListMalformed,
            ),
            ("white space", Answer::json("\r\n \r\n"), ListEmpty),
            (
                "a page of words",
                Answer::json("Bad Gateway"),
                ListMalformed,
            ),
        ],
        &expect_file!["snapshots/not_a_list_in_text.txt"],
    );
}

#[test]
fn failed_requests_are_refused() {
    let challenge = "<!DOCTYPE html><title>Just a moment...</title>".into();
    check_table(
        &Format::json_array(),
        vec![
            (
                "a challenge for browsers",
                Answer::Full(403, vec![("cf-mitigated", "challenge".into())], challenge),
                HttpStatus,
            ),
            ("forbidden", Answer::Status(403), HttpStatus),
            ("unauthorized", Answer::Status(401), HttpStatus),
            ("not found", Answer::Status(404), HttpStatus),
            ("gone", Answer::Status(410), HttpStatus),
            ("too many requests", Answer::Status(429), HttpStatus),
            ("internal server error", Answer::Status(500), HttpStatus),
            ("service unavailable", Answer::Status(503), HttpStatus),
            ("no content", Answer::Status(204), HttpStatus),
            (
                "partial content",
                Answer::Full(206, vec![], LIST.into()),
                HttpStatus,
            ),
            (
                "not modified, without a condition",
                Answer::Status(304),
                HttpStatus,
            ),
            (
                "a redirect without a location",
                Answer::Status(302),
                HttpStatus,
            ),
            ("multiple choices", Answer::Status(300), HttpStatus),
            (
                "cut off before its length",
                Answer::Truncated(LIST.into()),
                Incomplete,
            ),
            (
                "cut off between two chunks",
                Answer::CutChunks(LIST.into()),
                Incomplete,
            ),
            (
                "a truncated gzip body",
                Answer::CutGzip(LIST.into()),
                Incomplete,
            ),
            (
                "a head that is longer than the list could be",
                Answer::Full(200, vec![("X-Long", "x".repeat(1 << 20))], LIST.into()),
                Unreachable,
            ),
            ("not HTTP", Answer::Noise, Unreachable),
        ],
        &expect_file!["snapshots/no_answer.txt"],
    );
}

#[test]
fn a_truncated_answer_is_reported_with_its_length() {
    let vendor = vendor([("/list", Answer::Truncated(LIST.into()))]);
    let error = fetch(http(&vendor.url("/list"))).expect_err("is truncated");
    assert!(
        matches!(*error.cause, FetchErrorCause::Broken { received: 65, .. }),
        "{error}"
    );
}

#[test]
fn a_closed_port_is_unreachable() {
    // The port of a server that has ended.
    let closed = vendor([]).url("");
    let mut errors = Errors::default();
    errors.name(&closed, "<closed>");
    let fetched = fetch(http(&format!("{closed}/list")));
    errors.add("a closed port", &fetched, Unreachable);
    errors.check(&expect_file!["snapshots/closed_port.txt"]);
}

#[test]
fn slow_answers_time_out() {
    let vendor = vendor([
        ("/silence", Answer::Silence),
        ("/drip", Answer::Drip),
        ("/leads-to-silence", Answer::Redirect("/silence".into())),
    ]);
    let mut errors = Errors::of(&vendor);
    for path in ["/silence", "/drip", "/leads-to-silence"] {
        let hasty = Http {
            timeout: Duration::from_millis(500),
            ..http(&vendor.url(path))
        };
        let fetched = fetch(hasty);
        errors.add(path, &fetched, Timeout);
    }
    errors.check(&expect_file!["snapshots/timeouts.txt"]);
}

#[test]
fn bodies_have_a_maximum_size() {
    let padded = |length: usize| LIST.to_owned() + &" ".repeat(length - LIST.len());
    let vendor = vendor([
        ("/endless", Answer::Endless),
        ("/bomb", Answer::Gzip(vec![b' '; 4 << 20])),
        ("/fits", Answer::json(padded(64 << 10))),
        ("/fits-compressed", Answer::Gzip(padded(64 << 10).into())),
        ("/does-not-fit", Answer::json(padded((64 << 10) + 1))),
    ]);
    let mut errors = Errors::of(&vendor);
    for path in ["/endless", "/bomb", "/does-not-fit"] {
        errors.add(path, &fetch(http(&vendor.url(path))), TooLarge);
    }
    errors.check(&expect_file!["snapshots/too_large.txt"]);
    check_list(fetch(http(&vendor.url("/fits"))));
    check_list(fetch(http(&vendor.url("/fits-compressed"))));
}

#[test]
fn the_time_to_retry_is_reported() {
    let later = jiff::Timestamp::now() + Duration::from_mins(30);
    let date = jiff::fmt::rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&later)
        .expect("a date");
    let limited = vec![
        ("x-ratelimit-remaining", "0".to_owned()),
        ("x-ratelimit-reset", later.as_second().to_string()),
    ];
    let retry_after = |text: &str| vec![("Retry-After", text.to_owned())];
    let cases = [
        (429, retry_after("120"), 120),
        (503, retry_after(&date), 1800),
        (403, limited.clone(), 1800),
        (429, limited, 1800),
        (503, retry_after("8640000"), 24 * 3600),
    ];
    let mut errors = Errors::default();
    for (status, headers, seconds) in cases {
        let title = format!("{status} for {seconds} seconds");
        let answer = Answer::Full(status, headers, b"{\"message\": \"no\"}".to_vec());
        let vendor = vendor([("/list", answer)]);
        errors.name(&vendor.url(""), "<vendor>");
        let fetched = fetch(http(&vendor.url("/list")));
        errors.add(&title, &fetched, HttpStatus);
        let found = fetched.expect_err("was checked").retry_after;
        let found = found.expect("the server states it").as_secs();
        // The test takes some of the time.
        assert!(
            (seconds - 60..=seconds).contains(&found),
            "{title}: {found}"
        );
    }
    errors.check(&expect_file!["snapshots/retry_after.txt"]);
    let silent = vendor([("/list", Answer::Status(503))]);
    let error = fetch(http(&silent.url("/list"))).expect_err("must be refused");
    assert_eq!(error.retry_after, None);
}

#[test]
fn several_urls_form_one_list() {
    let vendor = vendor([
        ("/v4", Answer::json(r#"["198.51.100.7", "192.0.2.0/24"]"#)),
        ("/v6", Answer::json(r#"["2001:db8::/32", "192.0.2.0/24"]"#)),
        ("/empty", Answer::json("[]")),
    ]);
    let both = |paths: &[&str]| {
        let paths = paths.iter().map(|path| vendor.url(path));
        fetch(super::urls(&paths.collect::<Vec<_>>()))
    };
    check_list(both(&["/v4", "/v6"]));
    // The error names the URL that failed.
    let mut errors = Errors::of(&vendor);
    errors.add("one is gone", &both(&["/v4", "/gone"]), HttpStatus);
    errors.add("one is empty", &both(&["/empty", "/v6"]), ListEmpty);
    errors.check(&expect_file!["snapshots/several_urls.txt"]);
}

#[test]
fn a_next_page_has_a_note_unless_it_is_read_too() {
    let link = |to: &str| {
        vec![(
            "Link",
            format!("</first>; rel=prev, <{to}>; rel=\"next last\""),
        )]
    };
    let vendor = vendor([
        (
            "/list",
            Answer::Full(200, link("/list?page=2"), LIST.into()),
        ),
        ("/other", Answer::Full(200, link("/more"), LIST.into())),
        ("/more", Answer::json(LIST)),
    ]);
    let notes = |paths: &[&str]| {
        let urls = paths.iter().map(|path| vendor.url(path));
        let fetched = fetch(super::urls(&urls.collect::<Vec<_>>()));
        fetched.expect("a list").notes
    };
    let found = notes(&["/list"]);
    assert!(
        found.len() == 1 && found[0].contains("next page"),
        "{found:?}"
    );
    assert!(notes(&["/other", "/more"]).is_empty());
}

#[test]
fn a_part_may_be_empty_only_if_the_list_may() {
    let vendor = vendor([
        ("/v4", Answer::json(LIST)),
        ("/empty", Answer::json("[]")),
        ("/broken", Answer::json("{}")),
    ]);
    let fetched = |paths: &[&str], min: usize| {
        let urls = paths.iter().map(|path| vendor.url(path));
        let origin = Origin::Http(super::urls(&urls.collect::<Vec<_>>()));
        let mut source = Source::new("vendor", origin);
        source.gate.min = min;
        match super::run(async { source::fetch(&source, &[]).await }) {
            Ok(source::Answer::List(list)) => Some(list.prefixes.len()),
            _ => None,
        }
    };
    assert_eq!(fetched(&["/v4", "/empty"], 0), Some(3));
    assert_eq!(fetched(&["/empty"], 0), Some(0));
    assert_eq!(fetched(&["/v4", "/empty"], 1), None);
    assert_eq!(fetched(&["/v4", "/broken"], 0), None);
}
