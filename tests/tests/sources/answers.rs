//! What a vendor sends instead of its list.

use std::time::Duration;

use allowlist_tests::vendor::{Answer, Vendor, header};
use allowlist_user::policy::{Format, Http, Origin, Source};
use allowlist_user::source;

use super::{LIST, check_error, check_list, check_words, fetch, http, vendor};

const TRY_AGAIN: &str = "nothing of it is used: try again";
const USE_THE_LIST: &str = "use the address of the list itself, and open it in a browser to see \
     what the page says";
const TOO_LARGE: &str =
    "is larger than 65536 bytes; if the list is meant to be that long, raise `max_size`";

#[test]
fn fetches_a_list() {
    let vendor = vendor([("/list", Answer::json(LIST))]);
    check_list(fetch(http(&vendor.url("/list"))));
    let request = &vendor.requests()[0];
    let agent = concat!("allowlist/", env!("CARGO_PKG_VERSION"));
    assert_eq!(header(request, "user-agent"), Some(agent));
    assert_eq!(header(request, "accept-encoding"), Some("gzip"));
    assert_eq!(header(request, "referer"), None);
}

#[test]
fn decompresses() {
    let vendor = vendor([("/list", Answer::Gzip(LIST.into()))]);
    check_list(fetch(http(&vendor.url("/list"))));
}

#[test]
fn a_word_that_is_no_compression_does_not_matter() {
    for word in ["utf-8", "aws-chunked", "identity", ""] {
        let answer = Answer::Full(200, vec![("Content-Encoding", word.into())], LIST.into());
        let vendor = vendor([("/list", answer)]);
        check_list(fetch(http(&vendor.url("/list"))));
    }
}

#[test]
fn a_byte_order_mark_and_a_strange_type_do_not_matter() {
    let text = "\u{feff}192.0.2.0/24\r\n198.51.100.7\r\n2001:db8::/32";
    let vendor = vendor([("/list", Answer::html(text))]);
    check_list(fetch(Http {
        format: Format::Text,
        ..http(&vendor.url("/list"))
    }));
}

/// A vendor's way to fail, its answer, and what is said of it.
type Case = (&'static str, Answer, String);

#[track_caller]
fn check_table(format: &Format, cases: Vec<Case>) {
    let vendor = Vendor::start([]).expect("a vendor");
    for (index, (name, answer, expected)) in cases.into_iter().enumerate() {
        println!("{name}");
        let path = format!("/{index}");
        vendor.answer(&path, answer);
        let fetched = fetch(Http {
            format: format.clone(),
            ..http(&vendor.url(&path))
        });
        check_error(&fetched, &vendor, &path, &expected);
    }
}

#[test]
fn refuses_what_is_not_a_list_in_json() {
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
                format!(
                    "got a web page, not a list: \"<!DOCTYPE html><html><title>Just a moment…</title>\"; {USE_THE_LIST}"
                ),
            ),
            (
                "a web page that calls itself JSON",
                Answer::Body("application/json", b"\n <html>log in".to_vec()),
                format!("got a web page, not a list: \"<html>log in\"; {USE_THE_LIST}"),
            ),
            (
                "nothing",
                Answer::json(""),
                "is empty; a list names at least one prefix: check where it comes from".into(),
            ),
            (
                "an empty list",
                Answer::json("[]"),
                "names no prefix; a list names at least one: check where it comes from".into(),
            ),
            (
                "another document",
                Answer::json(r#"{"Temporarily": "Broken"}"#),
                "$.Temporarily: \"Broken\" is not a prefix; write one such as \"203.0.113.0/24\", \
                 \"2001:db8::/32\" or \"203.0.113.9\""
                    .into(),
            ),
            (
                "host bits",
                Answer::json(r#"["192.0.2.1", "203.0.113.9/24"]"#),
                "$[1]: \"203.0.113.9/24\" has host bits set; write \"203.0.113.0/24\" for the \
                 network or \"203.0.113.9/32\" for the one address"
                    .into(),
            ),
            (
                "half of the document, as the vendor has it",
                Answer::json(r#"["192.0.2.1", "203.0."#),
                "breaks off after 21 bytes; the transfer was cut short: try again".into(),
            ),
            (
                "UTF-16",
                Answer::json(String::from_utf8(utf_16).expect("each second byte is zero")),
                "is not text from its byte 1 on: {*}; it has to be plain UTF-8"
                    .into(),
            ),
            (
                "UTF-16 with a mark",
                Answer::Body("application/json", with_mark),
                "is not text from its byte 0 on: {*}; it has to be plain UTF-8"
                    .into(),
            ),
            (
                "compression that nobody asked for, twice",
                Answer::Full(200, vec![("Content-Encoding", "gzip, X-Gzip".into())], vec![0x8b; 9]),
                "is compressed as \"gzip, X-Gzip\", which was not asked for; remove Accept-Encoding \
                 from `headers`, or ask the vendor"
                    .into(),
            ),
            (
                "compression that nobody asked for",
                Answer::Full(200, vec![("Content-Encoding", "br".into())], vec![0x8b; 9]),
                "is compressed as \"br\", which was not asked for; remove Accept-Encoding from \
                 `headers`, or ask the vendor"
                    .into(),
            ),
        ],
    );
}

#[test]
fn refuses_what_is_not_a_list_in_text() {
    check_table(
        &Format::Text,
        vec![
            (
                "the tombstone of a list that was merged into another",
                Answer::json(
                    "# This list has been merged into https://lists.example.com/\n# EOF\n",
                ),
                "names no prefix; a list names at least one: check where it comes from".into(),
            ),
            (
                "two lines run together",
                Answer::json("192.0.2.0/24\n131.0.72.0/222400:cb00::/32\n"),
                "line 2: \"131.0.72.0/222400:cb00::/32\" is not a prefix: it looks like \
                 \"131.0.72.0/22\" and \"2400:cb00::/32\" run together; separate them"
                    .into(),
            ),
            (
                "Latin-1",
                Answer::Body("text/plain", b"192.0.2.1\n# caf\xe9\n".to_vec()),
                "is not text from its byte 15 on: {*}; it has to be plain UTF-8".into(),
            ),
            (
                "white space",
                Answer::json("\r\n \r\n"),
                "is empty; a list names at least one prefix: check where it comes from".into(),
            ),
            (
                "a page of words",
                Answer::json("Bad Gateway"),
                "line 1: \"Bad Gateway\" is not a prefix; write one such as \"203.0.113.0/24\", \
                 \"2001:db8::/32\" or \"203.0.113.9\""
                    .into(),
            ),
        ],
    );
}

#[expect(clippy::too_many_lines, reason = "a table")]
#[test]
fn refuses_what_is_no_answer() {
    let status = |text: &str| format!("the server answered {text}");
    let moved = "the list has moved: look for its new address in the vendor's documentation";
    let blocked = "check the URL, the credentials (`bearer_file`, `headers`), and whether the vendor blocks this \
         host's address or its `User-Agent`";
    let browser = "it wants to see a browser: set another `User-Agent` in `headers`, or use an address of the \
         list that the vendor has for programs";
    let token =
        "it wants credentials: set `bearer_file`, or a header in `headers`, or correct them";
    let later = "the vendor has a problem: try again later";
    let challenge = "<!DOCTYPE html><title>Just a moment...</title>".into();
    check_table(
        &Format::json_array(),
        vec![
            (
                "a challenge for browsers",
                Answer::Full(403, vec![("cf-mitigated", "challenge".into())], challenge),
                status(&format!("403 Forbidden; {browser}")),
            ),
            (
                "a vendor that does not like this host",
                Answer::Status(403),
                status(&format!("403 Forbidden; {blocked}")),
            ),
            (
                "no right",
                Answer::Status(401),
                status(&format!("401 Unauthorized; {token}")),
            ),
            (
                "gone",
                Answer::Status(404),
                status(&format!("404 Not Found; {moved}")),
            ),
            (
                "gone for good",
                Answer::Status(410),
                status(&format!("410 Gone; {moved}")),
            ),
            (
                "asked too often",
                Answer::Status(429),
                status("429 Too Many Requests; it is asked too often: raise `every`"),
            ),
            (
                "broken",
                Answer::Status(500),
                status(&format!("500 Internal Server Error; {later}")),
            ),
            (
                "busy",
                Answer::Status(503),
                status(&format!("503 Service Unavailable; {later}")),
            ),
            (
                "no content",
                Answer::Status(204),
                status("204 No Content; check the URL"),
            ),
            (
                "a part",
                Answer::Full(206, vec![], LIST.into()),
                status("206 Partial Content; check the URL"),
            ),
            (
                "nothing new, though nobody asked",
                Answer::Status(304),
                status(
                    "304 Not Modified; nobody asked whether the list is new: check `headers`, and \
                     any cache on the way",
                ),
            ),
            (
                "a redirect to nowhere",
                Answer::Status(302),
                status("302 Found; configure the final address of the list"),
            ),
            (
                "a choice",
                Answer::Status(300),
                status("300 Multiple Choices; configure the final address of the list"),
            ),
            (
                "cut off before its length",
                Answer::Truncated(LIST.into()),
                format!(
                    "the answer broke off after 65 bytes: end of file before message length reached; {TRY_AGAIN}"
                ),
            ),
            (
                "cut off between two chunks",
                Answer::CutChunks(LIST.into()),
                format!("the answer broke off after {{*}} bytes: {{*}}; {TRY_AGAIN}"),
            ),
            (
                "cut off before it was compressed",
                Answer::CutGzip(LIST.into()),
                format!("the answer broke off after {{*}} bytes: {{*}}; {TRY_AGAIN}"),
            ),
            (
                "a head that is longer than the list could be",
                Answer::Full(200, vec![("X-Long", "x".repeat(1 << 20))], LIST.into()),
                "cannot be reached: message head is too large; check the URL, this host's name \
                 resolution, its route and its proxy"
                    .into(),
            ),
            (
                "something else than HTTP",
                Answer::Noise,
                "cannot be reached: invalid HTTP version parsed; check the URL, this host's name \
                 resolution, its route and its proxy"
                    .into(),
            ),
        ],
    );
}

#[test]
fn says_what_cannot_be_reached() {
    // A port that was free a moment ago.
    let url = vendor([]).url("/list");
    check_words(
        &fetch(http(&url)),
        &format!(
            "{url}: cannot be reached: tcp connect error: Connection refused (os error 111); check \
             the URL, this host's name resolution, its route and its proxy"
        ),
    );
}

#[test]
fn gives_up_in_time() {
    let vendor = vendor([
        ("/silence", Answer::Silence),
        ("/drip", Answer::Drip),
        ("/leads-to-silence", Answer::Redirect("/silence".into())),
    ]);
    for path in ["/silence", "/drip", "/leads-to-silence"] {
        let hasty = Http {
            timeout: Duration::from_millis(500),
            ..http(&vendor.url(path))
        };
        check_error(
            &fetch(hasty),
            &vendor,
            path,
            "no complete answer within 500ms; check that the host is reachable, or raise `timeout`",
        );
    }
}

#[test]
fn reads_no_more_than_it_may() {
    let padded = |length: usize| LIST.to_owned() + &" ".repeat(length - LIST.len());
    let vendor = vendor([
        ("/endless", Answer::Endless),
        ("/bomb", Answer::Gzip(vec![b' '; 4 << 20])),
        ("/fits", Answer::json(padded(64 << 10))),
        ("/fits-compressed", Answer::Gzip(padded(64 << 10).into())),
        ("/does-not-fit", Answer::json(padded((64 << 10) + 1))),
    ]);
    for path in ["/endless", "/bomb", "/does-not-fit"] {
        check_error(&fetch(http(&vendor.url(path))), &vendor, path, TOO_LARGE);
    }
    check_list(fetch(http(&vendor.url("/fits"))));
    check_list(fetch(http(&vendor.url("/fits-compressed"))));
}

#[test]
fn says_how_long_the_server_asks_to_be_left_alone() {
    let later = jiff::Timestamp::now() + Duration::from_mins(30);
    let date = jiff::fmt::rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&later)
        .expect("a date");
    let limited = vec![
        ("x-ratelimit-remaining", "0".to_owned()),
        ("x-ratelimit-reset", later.as_second().to_string()),
    ];
    let retry_after = |text: &str| vec![("Retry-After", text.to_owned())];
    let often = "this host's address has asked too often: raise `every`, or send a token";
    let cases = [
        (
            429,
            retry_after("120"),
            120,
            "429 Too Many Requests; it is asked too often: raise `every`".to_owned(),
        ),
        (
            503,
            retry_after(&date),
            1800,
            "503 Service Unavailable; the vendor has a problem: try again later".to_owned(),
        ),
        (
            403,
            limited.clone(),
            1800,
            format!("403 Forbidden; {often}"),
        ),
        (
            429,
            limited,
            1800,
            format!("429 Too Many Requests; {often}"),
        ),
        (
            503,
            retry_after("8640000"),
            24 * 3600,
            "503 Service Unavailable; the vendor has a problem: try again later".to_owned(),
        ),
    ];
    for (status, headers, seconds, expected) in cases {
        let answer = Answer::Full(status, headers, b"{\"message\": \"no\"}".to_vec());
        let vendor = vendor([("/list", answer)]);
        let fetched = fetch(http(&vendor.url("/list")));
        check_error(
            &fetched,
            &vendor,
            "/list",
            &format!("the server answered {expected}"),
        );
        let said = fetched.expect_err("was checked").retry_after;
        let said = said.expect("it was said").as_secs();
        // The test itself takes a moment.
        assert!((seconds - 60..=seconds).contains(&said), "{said}");
    }
    let silent = vendor([("/list", Answer::Status(503))]);
    let error = fetch(http(&silent.url("/list"))).expect_err("must be refused");
    assert_eq!(error.retry_after, None);
}

#[test]
fn several_urls_are_one_list() {
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
    // What of them failed is said.
    check_error(
        &both(&["/v4", "/gone"]),
        &vendor,
        "/gone",
        "the server answered 404 Not Found; the list has moved: look for its new address in the \
         vendor's documentation",
    );
    check_error(
        &both(&["/empty", "/v6"]),
        &vendor,
        "/empty",
        "names no prefix; a list names at least one: check where it comes from",
    );
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
fn a_part_may_be_empty_only_where_the_list_may() {
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
