//! What lists may look like in each format, and what is said of those that may not.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::policy::{Column, Page, Select};

mod pairs;
mod shapes;

const TODAY: Date = jiff::civil::date(2026, 11, 24);
const EMPTY: &str = "is empty; a list names at least one prefix: check where it comes from";
const NO_PREFIXES: &str = "names no prefix; a list names at least one: check where it comes from";

#[track_caller]
fn check(format: &Format, text: &str, expected: &str) {
    check_bytes(format, text.as_bytes(), expected);
}

#[track_caller]
fn check_bytes(format: &Format, bytes: &[u8], expected: &str) {
    let answer = match parse(format, bytes, TODAY) {
        Ok(list) => words(&list.prefixes).join(" "),
        Err(error) => error.to_string(),
    };
    assert_eq!(answer, expected, "of {:?}", String::from_utf8_lossy(bytes));
}

fn words(prefixes: &[IpNet]) -> Vec<String> {
    prefixes.iter().map(ToString::to_string).collect()
}

fn selects(paths: &[&str]) -> Vec<Select> {
    let select = |path: &&str| Select::new(path).expect("a JSONPath");
    paths.iter().map(select).collect()
}

fn not_a_prefix(token: &str) -> String {
    format!(
        "{token:?} is not a prefix; write one such as \"203.0.113.0/24\", \"2001:db8::/32\" or \
         \"203.0.113.9\""
    )
}

#[test]
fn json() {
    let not_json = |problem: &str, start: &str| {
        format!(
            "is not JSON: {problem}: the text starts with {start:?}; check `format`, and where it comes from"
        )
    };
    let nothing = |found: &str| {
        format!(
            "names no prefix: \"$[*]\" finds nothing in {found}; open it, and correct `select` if its shape has changed"
        )
    };
    let cases = [
        (
            r#"["198.51.100.7","192.0.2.0/24","2001:db8::/32","192.0.2.0/24"]"#,
            "192.0.2.0/24 198.51.100.7/32 2001:db8::/32",
        ),
        ("\u{feff} [\"192.0.2.1\"]\r\n", "192.0.2.1/32"),
        (r#"["0.0.0.0/0","2000::/3"]"#, "0.0.0.0/0 2000::/3"),
        // Vendors pad, and say with nothing that there is none.
        (
            r#"["192.0.2.5 ", "", "\u00a0192.0.2.6"]"#,
            "192.0.2.5/32 192.0.2.6/32",
        ),
        (r#"["192.0.2.6-9"]"#, "192.0.2.6/31 192.0.2.8/31"),
        ("", EMPTY),
        (" \r\n", EMPTY),
        ("\u{feff}\u{a0}", EMPTY),
        ("[]", NO_PREFIXES),
        (r#"["", " "]"#, NO_PREFIXES),
        (
            "<!DOCTYPE html>",
            "got a web page, not a list: \"<!DOCTYPE html>\"; use the address of the list \
             itself, and open it in a browser to see what the page says",
        ),
        (
            r#"["192.0.2.1", "192.0"#,
            "breaks off after 20 bytes; the transfer was cut short: try again",
        ),
        ("{}", &nothing("an object without keys")),
        ("\"192.0.2.1\"", &nothing("the string \"192.0.2.1\"")),
        ("null", &nothing("null")),
        (
            "192.0.2.1\n192.0.2.2\n",
            &not_json(
                "trailing characters at line 1 column 6",
                "192.0.2.1\n192.0.2.2",
            ),
        ),
        (
            "[\"192.0.2.1\"] x",
            &not_json(
                "trailing characters at line 1 column 15",
                "[\"192.0.2.1\"] x",
            ),
        ),
        (
            "[\"192.0.2.1\", 7]",
            "$[1]: is the number 7, not a string; each item must be an address or a prefix",
        ),
        ("[\"192.0.2.1\", null]", "192.0.2.1/32"),
        (
            "[[\"192.0.2.1\"]]",
            "$[0]: is an array, not a string; select its items: \"$[0][*]\"",
        ),
        (
            r#"{"a b":{"c":"192.0.2.1","d":1}}"#,
            "$['a b']: is an object with the keys \"c\", \"d\", not a string; select what it holds, \
             such as \"$['a b'].c\"",
        ),
        (
            r#"["192.0.2.1","x"]"#,
            &format!("$[1]: {}", not_a_prefix("x")),
        ),
        (
            r#"["9.0.0.0/7"]"#,
            "$[0]: \"9.0.0.0/7\" has host bits set; write \"8.0.0.0/7\" for the network or \
             \"9.0.0.0/32\" for the one address",
        ),
        (
            &"[".repeat(100_000),
            "is nested too deep to be read; check where it comes from",
        ),
    ];
    for (text, expected) in cases {
        check(&Format::json_array(), text, expected);
    }
}

/// A value is two characters of the text, and up to some hundred bytes of memory.
#[test]
fn json_that_would_fill_memory() {
    let array = Format::json_array();
    for (values, close) in [("0,", "0]"), ("[],", "0]"), ("{},", "0]")] {
        let text = format!("[{}{close}", values.repeat(2_500_000));
        let error = parse(&array, text.as_bytes(), TODAY).expect_err("too much");
        assert_eq!(error, FeedError::TooMuchMemory, "of {values}");
    }
    // What is in a string is no value.
    let text = format!("[\"192.0.2.1\",\"\\\"{}\"]", ",[{".repeat(2_500_000));
    let error = parse(&array, text.as_bytes(), TODAY).expect_err("one prefix");
    assert!(error.to_string().starts_with("$[1]: "), "{error}");
}

#[test]
fn json_by_paths() {
    let two = Format::Json(selects(&["$.hooks[*]", "$.web[*]"]).into());
    let github =
        r#"{"ssh_keys":["ssh-ed25519 AAAA"],"hooks":["192.0.2.0/24","2001:db8::/32"],"web":[]}"#;
    check(&two, github, "192.0.2.0/24 2001:db8::/32");
    check(
        &two,
        r#"{"Temporarily":"Broken"}"#,
        "names no prefix: \"$.hooks[*]\", \"$.web[*]\" finds nothing in an object with the keys \
         \"Temporarily\"; open it, and correct `select` if its shape has changed",
    );
    check(
        &Format::Json(selects(&["$.hooks"]).into()),
        github,
        "$.hooks: is an array, not a string; select its items: \"$.hooks[*]\"",
    );
    check(
        &two,
        r#"{"hooks":["192.0.2.0/24","192.0.2.1/24"]}"#,
        "$.hooks[1]: \"192.0.2.1/24\" has host bits set; write \"192.0.2.0/24\" for the network or \
         \"192.0.2.1/32\" for the one address",
    );
    let regional = Format::Json(selects(&["$.prefixes[?@.scope=='eu']['v4','v6']"]).into());
    check(
        &regional,
        r#"{"prefixes":[{"v4":"192.0.2.0/24","scope":"eu"},{"v6":"2001:db8::/32","scope":"eu"},
           {"v4":"198.51.100.0/24","scope":"us"}]}"#,
        "192.0.2.0/24 2001:db8::/32",
    );
}

#[test]
fn json_lines() {
    let cidrs = Format::JsonLines(selects(&["$.cidr"]).into());
    let cases = [
        (
            "{\"cidr\":\"198.51.100.0/24\",\"id\":\"1\"}\r\n\n{\"cidr\":\"192.0.2.0/24\"}\n{\"type\":\"metadata\",\"records\":2}\n",
            "192.0.2.0/24 198.51.100.0/24",
        ),
        ("\n", EMPTY),
        (
            "{\"type\":\"metadata\"}\n",
            "names no prefix: \"$.cidr\" finds nothing in an object with the keys \"type\"; open it, \
             and correct `select` if its shape has changed",
        ),
        (
            "{\"cidr\":\"192.0.2.0/24\"}\n\n{\"cidr\":\"192.0.2.0/2",
            "line 3: breaks off after 20 bytes; the transfer was cut short: try again",
        ),
        (
            "{\"cidr\":\"192.0.2.0/24\"}\n{\"cidr\":7}",
            "line 2: $.cidr: is the number 7, not a string; each item must be an address or a prefix",
        ),
    ];
    for (text, expected) in cases {
        check(&cidrs, text, expected);
    }
}

#[test]
fn text() {
    let cases = [
        (
            "# office\r\n\r\n  203.0.113.0/24\t# and the annex\r\n2001:db8::1\n203.0.113.0/24",
            "203.0.113.0/24 2001:db8::1/128",
        ),
        ("\u{feff}203.0.113.9", "203.0.113.9/32"),
        (
            "; a list of 2026\n192.0.2.0/24 ; SBL1\n; the end\n",
            "192.0.2.0/24",
        ),
        // A comment ends with its line, whichever way that ends.
        (
            "# old\r192.0.2.1 # and\r192.0.2.2\r\n192.0.2.3\n",
            "192.0.2.1/32 192.0.2.2/32 192.0.2.3/32",
        ),
        (
            "\u{a0}192.0.2.1\u{a0}\n\u{200b}192.0.2.2\n",
            "192.0.2.1/32 192.0.2.2/32",
        ),
        ("192.0.2.4 - 192.0.2.9\n", "192.0.2.4/30 192.0.2.8/31"),
        // A semicolon between prefixes would make a comment of all but the first.
        (
            "192.0.2.0/24;198.51.100.0/24\n",
            "line 1: \"198.51.100.0/24\" stands behind a semicolon, which starts a comment; write each \
             prefix on a line of its own",
        ),
        (
            "192.0.2.0/24 ; 198.51.100.0/24 ; 203.0.113.9\n",
            "line 1: \"198.51.100.0/24\" stands behind a semicolon, which starts a comment; write each \
             prefix on a line of its own",
        ),
        (
            "192.0.2.0/24 ; was 198.51.100.0/24\n;192.0.2.9\n",
            "192.0.2.0/24",
        ),
        ("", EMPTY),
        ("# merged into another list\n", NO_PREFIXES),
        (
            "203.0.113.0/24\n\n203.0.113.0/24 203.0.114.0/24\n",
            &format!("line 3: {}", not_a_prefix("203.0.113.0/24 203.0.114.0/24")),
        ),
        (
            "192.0.2.0/24\n131.0.72.0/222400:cb00::/32\n",
            "line 2: \"131.0.72.0/222400:cb00::/32\" is not a prefix: it looks like \
             \"131.0.72.0/22\" and \"2400:cb00::/32\" run together; separate them",
        ),
    ];
    for (text, expected) in cases {
        check(&Format::Text, text, expected);
    }
}

#[test]
fn what_is_no_text() {
    let not_text = |at: usize, problem: &str| {
        format!("is not text from its byte {at} on: {problem}; it has to be plain UTF-8")
    };
    let cases: [(&[u8], String); 6] = [
        (b"[\"\xff\"]", not_text(2, "it is not UTF-8")),
        (b"\xff\xfe1\09\0", not_text(0, "it looks like UTF-16")),
        (
            b"1\x009\x002\x00",
            not_text(1, "it has a zero byte, as UTF-16 and binary files have"),
        ),
        (
            b"\x1f\x8b\x08\0",
            not_text(1, "it looks like a file that gzip made"),
        ),
        (
            b"PK\x03\x04\x14\0",
            not_text(5, "it looks like a ZIP archive, for which `unzip` is"),
        ),
        (
            b"%PDF-1.7\n\xe2",
            not_text(9, "it looks like a PDF document"),
        ),
    ];
    for (bytes, expected) in cases {
        for format in formats() {
            check_bytes(&format, bytes, &expected);
        }
    }
}

#[test]
fn csv() {
    let first = Format::Csv(Column::Number(0).into());
    let named = Format::Csv(Column::Name("ip_prefix".to_owned()).into());
    let cases = [
        (
            &first,
            "# a geofeed\n# ip_prefix,country\n2001:db8::/32,US,US-TX,Richardson,\n192.0.2.0/24,NU,,Alofi,\n",
            "192.0.2.0/24 2001:db8::/32",
        ),
        (
            &first,
            "\u{feff}\"192.0.2.0/24\",\"New York, NY\"\r\n",
            "192.0.2.0/24",
        ),
        (
            &named,
            "# of 2026\n\nregion, ip_prefix\nus,\"192.0.2.0/24\"\n eu , 198.51.100.0/24 ,more\nsg,\n",
            "192.0.2.0/24 198.51.100.0/24",
        ),
        (
            &named,
            "# a comment\nip,region\n192.0.2.0/24,us\n",
            "line 2: no column is headed \"ip_prefix\"; the header line has \"ip\", \"region\": correct `column`",
        ),
        (
            &Format::Csv(Column::Number(2).into()),
            "a,b,192.0.2.0/24\n\n# short\r\na,b\n",
            "line 4: has no column 2; it has 2 in all, counted from 0: correct `column`, or the line",
        ),
        (
            &first,
            "192.0.2.0/24,x\n# a comment\n\n192.0.2.1/24,y\n",
            "line 4: \"192.0.2.1/24\" has host bits set; write \"192.0.2.0/24\" for the network or \
             \"192.0.2.1/32\" for the one address",
        ),
        (
            &first,
            "192.0.2.0/24,\"Alofi\n198.51.100.0/24,\"Niue\"\n",
            "line 1: a quoted field does not end in its line; close its quotes",
        ),
        (&first, "# nothing but this\n", NO_PREFIXES),
        (&named, "ip_prefix\n", NO_PREFIXES),
        (
            &first,
            "<html>",
            "got a web page, not a list: \"<html>\"; use the address of the list itself, and open \
             it in a browser to see what the page says",
        ),
    ];
    for (format, text, expected) in cases {
        check(format, text, expected);
    }
}

#[test]
fn tokens() {
    let cases = [
        ("203.0.113.9", "203.0.113.9/32"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::/0", "::/0"),
        (
            "::ffff:0:0/95",
            "\"::ffff:0.0.0.0/95\" has host bits set; write \"::fffe:0:0/95\" for the network or \"::ffff:0.0.0.0/128\" for the one address",
        ),
        (
            "::ffff:192.0.2.1",
            "\"::ffff:192.0.2.1/128\" is IPv4 written as IPv6, which no packet carries; write \"192.0.2.1/32\"",
        ),
        (
            "::ffff:192.0.2.9/120",
            "\"::ffff:192.0.2.9/120\" is IPv4 written as IPv6, which no packet carries; write \"192.0.2.0/24\"",
        ),
        (
            "192.0.2.0/33",
            "\"192.0.2.0/33\" is not a prefix: its length is more than 32; write one from /0 to /32",
        ),
        (
            "2001:db8::/129",
            "\"2001:db8::/129\" is not a prefix: its length is more than 128; write one from /0 to /128",
        ),
        ("", &not_a_prefix("")),
        ("192.0.2.0/", &not_a_prefix("192.0.2.0/")),
        ("192.0.2.0/+24", &not_a_prefix("192.0.2.0/+24")),
        (
            "192.0.2.0/255.255.255.0",
            "\"192.0.2.0/255.255.255.0\" is not a prefix: it has a netmask; write /24 instead",
        ),
        ("192.0.2.01", &not_a_prefix("192.0.2.01")),
        ("192.0.2.256", &not_a_prefix("192.0.2.256")),
        ("fe80::1%eth0", &not_a_prefix("fe80::1%eth0")),
        ("\u{1b}[2J", &not_a_prefix("\u{1b}[2J")),
        (
            &"größer".repeat(20),
            &not_a_prefix(&format!("{}…", "größer".repeat(10))),
        ),
    ];
    for (text, expected) in cases {
        let answer = match parse_prefix(text) {
            Ok(prefix) => prefix.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(answer, expected, "of {text:?}");
        let mut prefixes = Vec::new();
        let answer = match token::parse_token(text, &mut prefixes) {
            Ok(()) => words(&prefixes).join(" "),
            Err(error) => error.to_string(),
        };
        assert_eq!(answer, expected, "of {text:?} in a list");
    }
}

#[test]
fn ranges() {
    let cases = [
        ("203.0.113.232-239", "203.0.113.232/29"),
        (
            "203.0.113.1–4",
            "203.0.113.1/32 203.0.113.2/31 203.0.113.4/32",
        ),
        ("203.0.113.7-7", "203.0.113.7/32"),
        ("192.0.2.0-192.0.3.255", "192.0.2.0/23"),
        ("192.0.2.0 - 192.0.2.255", "192.0.2.0/24"),
        ("0.0.0.0-255.255.255.255", "0.0.0.0/0"),
        ("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::/0"),
        ("2001:db8::1-2001:db8::2", "2001:db8::1/128 2001:db8::2/128"),
        (
            "203.0.113.239-232",
            "\"203.0.113.239-232\" is a range that ends before it starts; write \
             \"203.0.113.232-203.0.113.239\" if it is meant",
        ),
        (
            "2001:db8::2-2001:db8::1",
            "\"2001:db8::2-2001:db8::1\" is a range that ends before it starts; write \
             \"2001:db8::1-2001:db8::2\" if it is meant",
        ),
        ("203.0.113.1-256", &not_a_prefix("203.0.113.1-256")),
        ("203.0.113.1-07", &not_a_prefix("203.0.113.1-07")),
        ("203.0.113.1-", &not_a_prefix("203.0.113.1-")),
        ("203.0.113.1-4-7", &not_a_prefix("203.0.113.1-4-7")),
        ("203.0.113.0/24-7", &not_a_prefix("203.0.113.0/24-7")),
        ("2001:db8::1-7", &not_a_prefix("2001:db8::1-7")),
        (
            "192.0.2.1-2001:db8::1",
            &not_a_prefix("192.0.2.1-2001:db8::1"),
        ),
        (
            "::ffff:192.0.2.1-::ffff:192.0.2.4",
            "\"::ffff:192.0.2.1/128\" is IPv4 written as IPv6, which no packet carries; write \"192.0.2.1/32\"",
        ),
    ];
    for (text, expected) in cases {
        let line = format!("line 1: {expected}");
        let is_error = expected.contains('"');
        check(&Format::Text, text, if is_error { &line } else { expected });
    }
    // The configuration and the command line take a prefix.
    assert!(parse_prefix("192.0.2.1-4").is_err());
}

/// From a few characters, two hundred and more prefixes.
#[test]
fn ranges_do_not_fill_memory() {
    const RANGE: &str = "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe";
    let of_one = parse(&Format::Text, RANGE.as_bytes(), TODAY).expect("a range");
    let ranges = MOST_PREFIXES / of_one.prefixes.len() + 1;
    let list = |before: &str, after: &str| format!("{before}{RANGE}{after}").repeat(ranges);
    let [_, json, lines, ..] = formats();
    let texts = [
        (Format::Text, list("", "\n")),
        (json, format!("[{}\"\"]", list("\"", "\","))),
        (lines, list("\"", "\"\n")),
        (Format::Csv(Column::Number(0).into()), list("", ",x\n")),
        (Format::Html(Page::default()), list("", "<br>")),
        (
            Format::Html(Page::default()),
            format!("192.0.2.1<p>was retired: {}", list("", " ")),
        ),
    ];
    for (format, text) in texts {
        let error = parse(&format, text.as_bytes(), TODAY).expect_err("too many");
        let expected = "names more than 4000000 prefixes; write networks instead of ranges, which can be \
                        hundreds of prefixes each, or make it several sources";
        let error = error.to_string();
        assert_eq!(
            error.trim_start_matches("line 15749: "),
            expected,
            "of {format:?}"
        );
    }
}

/// One of each kind, with nothing narrowed.
fn formats() -> [Format; 7] {
    [
        Format::Text,
        Format::json_array(),
        Format::JsonLines(selects(&["$"]).into()),
        Format::Csv(Column::Number(0).into()),
        Format::Csv(Column::Name("ip".to_owned()).into()),
        Format::Html(Page::default()),
        Format::Markdown(Page::default()),
    ]
}

fn prefix() -> impl Strategy<Value = IpNet> {
    let address = prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
        any::<u128>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
    ];
    (address, any::<u8>())
        .prop_map(|(address, length)| {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new_assert(address, length % (bits + 1)).trunc()
        })
        .prop_filter("not mapped", |prefix| check_prefix(*prefix).is_ok())
}

proptest! {
    #[test]
    fn lists_read_back(prefixes in prop::collection::vec(prefix(), 1..50)) {
        let tokens = words(&prefixes);
        let mut expected = prefixes;
        expected.sort();
        expected.dedup();
        let quoted: Vec<String> = tokens.iter().map(|token| format!("{token:?}")).collect();
        let texts = [
            tokens.join("\r\n"),
            format!("[{}]", quoted.join(",")),
            quoted.join("\n"),
            format!("{},x\n", tokens.join(",x\n")),
            format!("ip\n{}", tokens.join("\n")),
            format!("<table><tr><td>{}</table>", tokens.join("<tr><td>")),
            format!("- {}\n", tokens.join("\n- ")),
        ];
        for (format, text) in formats().iter().zip(texts) {
            let list = parse(format, text.as_bytes(), TODAY).map(|list| list.prefixes);
            prop_assert_eq!(list.as_ref(), Ok(&expected), "{} {}", format, text);
        }
        let line = format!("<p>{}", tokens.join(", "));
        let list = parse(&formats()[5], line.as_bytes(), TODAY).map(|list| list.prefixes);
        prop_assert_eq!(list, Ok(expected));
    }

    #[test]
    fn bytes_never_panic(
        bytes: Vec<u8>,
        text in "[\\[\\]\"0-9a-f.:/# \n-]{0,60}|\\PC{0,20}",
        page in "(<(/?(table|tr|td|th|ul|li|p|b|pre|dl|dt|dd|h1|details|summary|del|svg)|td colspan=3|th rowspan=0)>|192\\.0\\.2\\.[1-9]|US|deprecated |will be |2026-11-2[0-9] |\\| |- |\n|`{3}|# |\\[block:code\\]|\\[/block\\]){0,40}",
    ) {
        for input in [&bytes[..], text.as_bytes(), page.as_bytes()] {
            for format in formats() {
                if let Ok(list) = parse(&format, input, TODAY) {
                    prop_assert!(!list.prefixes.is_empty());
                    prop_assert!(list.prefixes.is_sorted_by(|a, b| a < b));
                    prop_assert!(list.prefixes.iter().all(|prefix| check_prefix(*prefix).is_ok()));
                }
            }
        }
    }

    /// Against the set of addresses, and there is no shorter way to say it.
    #[test]
    fn ranges_are_their_addresses(start: u32, length in 0_u32..600) {
        let end = start.saturating_add(length);
        let [first, last] = [start, end].map(Ipv4Addr::from_bits);
        let mut prefixes = Vec::new();
        token::parse_token(&format!("{first}-{last}"), &mut prefixes).expect("a range");
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => address.to_bits(),
            IpAddr::V6(address) => panic!("{address} is not IPv4"),
        };
        let addresses: Vec<u32> = prefixes
            .iter()
            .flat_map(|prefix| bits(prefix.network())..=bits(prefix.broadcast()))
            .collect();
        let expected: Vec<u32> = (start..=end).collect();
        prop_assert_eq!(addresses, expected);
        prop_assert_eq!(IpNet::aggregate(&prefixes), prefixes);
    }
}
