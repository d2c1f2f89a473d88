//! Lists in each format, and the errors of invalid lists.

use std::net::{IpAddr, Ipv4Addr};

use allowlist_policy::{Column, Page, Select};
use expect_test::expect_file;
use proptest::prelude::*;

use self::answers::{Answers, kind, variant};
use super::*;

pub(crate) mod answers;
mod pairs;
mod shapes;

const TODAY: Date = jiff::civil::date(2026, 11, 24);

/// Compares the prefixes of a list, or the kind of its error, and returns the text of an error.
#[track_caller]
fn check(format: &Format, text: &str, expected: &str) -> Option<String> {
    check_bytes(format, text.as_bytes(), expected)
}

#[track_caller]
fn check_bytes(format: &Format, bytes: &[u8], expected: &str) -> Option<String> {
    let list = parse(format, bytes, TODAY);
    let answer = match &list {
        Ok(list) => words(&list.prefixes).join(" "),
        Err(error) => kind(error),
    };
    assert_eq!(answer, expected, "of {:?}", String::from_utf8_lossy(bytes));
    list.err().map(|error| error.to_string())
}

fn words(prefixes: &[IpNet]) -> Vec<String> {
    prefixes.iter().map(ToString::to_string).collect()
}

fn selects(paths: &[&str]) -> Vec<Select> {
    let select = |path: &&str| Select::new(path).expect("a JSONPath");
    paths.iter().map(select).collect()
}

#[test]
fn json() {
    let mut answers = Answers::default();
    let cases = [
        (
            r#"["198.51.100.7","192.0.2.0/24","2001:db8::/32","192.0.2.0/24"]"#,
            "192.0.2.0/24 198.51.100.7/32 2001:db8::/32",
        ),
        ("\u{feff} [\"192.0.2.1\"]\r\n", "192.0.2.1/32"),
        (r#"["0.0.0.0/0","2000::/3"]"#, "0.0.0.0/0 2000::/3"),
        // Vendors pad values, and write an empty string for none.
        (
            r#"["192.0.2.5 ", "", "\u00a0192.0.2.6"]"#,
            "192.0.2.5/32 192.0.2.6/32",
        ),
        (r#"["192.0.2.6-9"]"#, "192.0.2.6/31 192.0.2.8/31"),
        ("", "Empty"),
        (" \r\n", "Empty"),
        ("\u{feff}\u{a0}", "Empty"),
        ("[]", "NoPrefixes"),
        (r#"["", " "]"#, "NoPrefixes"),
        ("<!DOCTYPE html>", "WebPage"),
        (r#"["192.0.2.1", "192.0"#, "Truncated"),
        ("{}", "NothingSelected"),
        ("\"192.0.2.1\"", "NothingSelected"),
        ("null", "NothingSelected"),
        ("192.0.2.1\n192.0.2.2\n", "NotJson"),
        ("[\"192.0.2.1\"] x", "NotJson"),
        ("[\"192.0.2.1\", 7]", "NotAString"),
        ("[\"192.0.2.1\", null]", "192.0.2.1/32"),
        ("[[\"192.0.2.1\"]]", "NotAString"),
        (r#"{"a b":{"c":"192.0.2.1","d":1}}"#, "NotAString"),
        (r#"["192.0.2.1","x"]"#, "NotAPrefix"),
        (r#"["9.0.0.0/7"]"#, "HostBits"),
        (&"[".repeat(100_000), "TooDeep"),
    ];
    for (text, expected) in cases {
        answers.add(text, check(&Format::json_array(), text, expected));
    }
    answers.check(&expect_file!["snapshots/json.txt"]);
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
    // The content of a string has no values.
    let text = format!("[\"192.0.2.1\",\"\\\"{}\"]", ",[{".repeat(2_500_000));
    let error = parse(&array, text.as_bytes(), TODAY).expect_err("one prefix");
    assert!(error.to_string().starts_with("$[1]: "), "{error}");
}

#[test]
fn json_by_paths() {
    let mut answers = Answers::default();
    let two = Format::Json(selects(&["$.hooks[*]", "$.web[*]"]).into());
    let github =
        r#"{"ssh_keys":["ssh-ed25519 AAAA"],"hooks":["192.0.2.0/24","2001:db8::/32"],"web":[]}"#;
    check(&two, github, "192.0.2.0/24 2001:db8::/32");
    answers.add(
        r#"{"Temporarily":"Broken"}"#,
        check(&two, r#"{"Temporarily":"Broken"}"#, "NothingSelected"),
    );
    answers.add(
        github,
        check(
            &Format::Json(selects(&["$.hooks"]).into()),
            github,
            "NotAString",
        ),
    );
    answers.add(
        r#"{"hooks":["192.0.2.0/24","192.0.2.1/24"]}"#,
        check(
            &two,
            r#"{"hooks":["192.0.2.0/24","192.0.2.1/24"]}"#,
            "HostBits",
        ),
    );
    let regional = Format::Json(selects(&["$.prefixes[?@.scope=='eu']['v4','v6']"]).into());
    check(
        &regional,
        r#"{"prefixes":[{"v4":"192.0.2.0/24","scope":"eu"},{"v6":"2001:db8::/32","scope":"eu"},
           {"v4":"198.51.100.0/24","scope":"us"}]}"#,
        "192.0.2.0/24 2001:db8::/32",
    );
    answers.check(&expect_file!["snapshots/json_by_paths.txt"]);
}

#[test]
fn json_lines() {
    let mut answers = Answers::default();
    let cidrs = Format::JsonLines(selects(&["$.cidr"]).into());
    let cases = [
        (
            "{\"cidr\":\"198.51.100.0/24\",\"id\":\"1\"}\r\n\n{\"cidr\":\"192.0.2.0/24\"}\n{\"type\":\"metadata\",\"records\":2}\n",
            "192.0.2.0/24 198.51.100.0/24",
        ),
        ("\n", "Empty"),
        ("{\"type\":\"metadata\"}\n", "NothingSelected"),
        (
            "{\"cidr\":\"192.0.2.0/24\"}\n\n{\"cidr\":\"192.0.2.0/2",
            "Truncated",
        ),
        ("{\"cidr\":\"192.0.2.0/24\"}\n{\"cidr\":7}", "NotAString"),
    ];
    for (text, expected) in cases {
        answers.add(text, check(&cidrs, text, expected));
    }
    answers.check(&expect_file!["snapshots/json_lines.txt"]);
}

#[test]
fn text() {
    let mut answers = Answers::default();
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
        // A comment ends with its line, for each kind of line end.
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
        ("192.0.2.0/24;198.51.100.0/24\n", "InComment"),
        (
            "192.0.2.0/24 ; 198.51.100.0/24 ; 203.0.113.9\n",
            "InComment",
        ),
        (
            "192.0.2.0/24 ; was 198.51.100.0/24\n;192.0.2.9\n",
            "192.0.2.0/24",
        ),
        ("", "Empty"),
        ("# merged into another list\n", "NoPrefixes"),
        (
            "203.0.113.0/24\n\n203.0.113.0/24 203.0.114.0/24\n",
            "NotAPrefix",
        ),
        ("192.0.2.0/24\n131.0.72.0/222400:cb00::/32\n", "Glued"),
    ];
    for (text, expected) in cases {
        answers.add(text, check(&Format::Text, text, expected));
    }
    answers.check(&expect_file!["snapshots/text.txt"]);
}

#[test]
fn binary_data_is_not_text() {
    let mut answers = Answers::default();
    let cases: [&[u8]; 6] = [
        b"[\"\xff\"]",
        b"\xff\xfe1\09\0",
        b"1\x009\x002\x00",
        b"\x1f\x8b\x08\0",
        b"PK\x03\x04\x14\0",
        b"%PDF-1.7\n\xe2",
    ];
    for bytes in cases {
        for format in formats() {
            let text = check_bytes(&format, bytes, "NotText");
            if format == Format::Text {
                answers.add(&String::from_utf8_lossy(bytes), text);
            }
        }
    }
    answers.check(&expect_file!["snapshots/not_text.txt"]);
}

#[test]
fn csv() {
    let mut answers = Answers::default();
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
            "NoHeader",
        ),
        (
            &Format::Csv(Column::Number(2).into()),
            "a,b,192.0.2.0/24\n\n# short\r\na,b\n",
            "NoColumn",
        ),
        (
            &first,
            "192.0.2.0/24,x\n# a comment\n\n192.0.2.1/24,y\n",
            "HostBits",
        ),
        (
            &first,
            "192.0.2.0/24,\"Alofi\n198.51.100.0/24,\"Niue\"\n",
            "OpenQuotes",
        ),
        (&first, "# nothing but this\n", "NoPrefixes"),
        (&named, "ip_prefix\n", "NoPrefixes"),
        (&first, "<html>", "WebPage"),
    ];
    for (format, text, expected) in cases {
        answers.add(text, check(format, text, expected));
    }
    answers.check(&expect_file!["snapshots/csv.txt"]);
}

#[test]
fn tokens() {
    let mut answers = Answers::default();
    let cases = [
        ("203.0.113.9", "203.0.113.9/32"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::/0", "::/0"),
        ("::ffff:0:0/95", "HostBits"),
        ("::ffff:192.0.2.1", "Mapped"),
        ("::ffff:192.0.2.9/120", "Mapped"),
        ("192.0.2.0/33", "TooLong"),
        ("2001:db8::/129", "TooLong"),
        ("", "NotAPrefix"),
        ("192.0.2.0/", "NotAPrefix"),
        ("192.0.2.0/+24", "NotAPrefix"),
        ("192.0.2.0/255.255.255.0", "Netmask"),
        ("192.0.2.01", "NotAPrefix"),
        ("192.0.2.256", "NotAPrefix"),
        ("fe80::1%eth0", "NotAPrefix"),
        ("\u{1b}[2J", "NotAPrefix"),
        (&"größer".repeat(20), "NotAPrefix"),
    ];
    for (text, expected) in cases {
        let mut prefixes = Vec::new();
        let in_list = token::parse_token(text, &mut prefixes).map(|()| words(&prefixes).join(" "));
        let alone = parse_prefix(text).map(|prefix| prefix.to_string());
        assert_eq!(alone, in_list, "of {text:?}");
        match alone {
            Ok(prefix) => assert_eq!(prefix, expected, "of {text:?}"),
            Err(error) => {
                assert_eq!(variant(&error), expected, "of {text:?}");
                answers.add(text, Some(error.to_string()));
            }
        }
    }
    answers.check(&expect_file!["snapshots/tokens.txt"]);
}

#[test]
fn ranges() {
    let mut answers = Answers::default();
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
        ("203.0.113.239-232", "Backwards"),
        ("2001:db8::2-2001:db8::1", "Backwards"),
        ("203.0.113.1-256", "NotAPrefix"),
        ("203.0.113.1-07", "NotAPrefix"),
        ("203.0.113.1-", "NotAPrefix"),
        ("203.0.113.1-4-7", "NotAPrefix"),
        ("203.0.113.0/24-7", "NotAPrefix"),
        ("2001:db8::1-7", "NotAPrefix"),
        ("192.0.2.1-2001:db8::1", "NotAPrefix"),
        ("::ffff:192.0.2.1-::ffff:192.0.2.4", "Mapped"),
    ];
    for (text, expected) in cases {
        answers.add(text, check(&Format::Text, text, expected));
    }
    // The configuration and the command line take a prefix.
    assert!(parse_prefix("192.0.2.1-4").is_err());
    answers.check(&expect_file!["snapshots/ranges.txt"]);
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
        assert_eq!(kind(&error), "TooManyPrefixes", "of {format:?}");
    }
    let mut answers = Answers::default();
    answers.add(RANGE, Some(FeedError::TooManyPrefixes.to_string()));
    answers.check(&expect_file!["snapshots/too_many_prefixes.txt"]);
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

    /// A range yields prefixes of exactly its addresses, and no two prefixes can be merged.
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
