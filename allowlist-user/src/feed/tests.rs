//! What feeds may look like, and what is said of those that may not.

use proptest::prelude::*;

use super::*;

fn check(parse: fn(&[u8]) -> Result<Vec<IpNet>, FeedError>, text: &str, expected: &str) {
    let answer = match parse(text.as_bytes()) {
        Ok(prefixes) => prefixes
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" "),
        Err(error) => error.to_string(),
    };
    assert_eq!(answer, expected, "of {text:?}");
}

#[test]
fn json_arrays() {
    let not_a_list = "must be an array of strings such as [\"192.0.2.1\", \"198.51.100.0/24\"]";
    let cases = [
        (
            r#"["198.51.100.7","192.0.2.0/24","2001:db8::/32","192.0.2.0/24"]"#,
            "192.0.2.0/24 198.51.100.7/32 2001:db8::/32",
        ),
        ("\u{feff} [\"192.0.2.1\"]\r\n", "192.0.2.1/32"),
        (r#"["10.0.0.0/8","2000::/16"]"#, "10.0.0.0/8 2000::/16"),
        (
            "",
            "is empty; a list names at least one prefix: check where it comes from",
        ),
        (
            " \r\n",
            "is empty; a list names at least one prefix: check where it comes from",
        ),
        (
            "[]",
            "names no prefix; a list names at least one: check where it comes from",
        ),
        (
            "<!DOCTYPE html>",
            "got a web page, not a list: \"<!DOCTYPE html>\"; use the address of the list \
             itself, and open it in a browser to see what the page says",
        ),
        (
            r#"["192.0.2.1", "192.0"#,
            "breaks off after 20 bytes; the transfer was cut short: try again",
        ),
        (
            r#"{"a":1,"b":2,"c":3,"d":4}"#,
            &format!(
                "is an object with the keys \"a\", \"b\", \"c\", …, not an array; it {not_a_list}"
            ),
        ),
        (
            "{}",
            &format!("is an object without keys, not an array; it {not_a_list}"),
        ),
        (
            "\"192.0.2.1\"",
            &format!("is the string \"192.0.2.1\", not an array; it {not_a_list}"),
        ),
        ("null", &format!("is null, not an array; it {not_a_list}")),
        (
            "192.0.2.1\n192.0.2.2\n",
            &format!(
                "is not JSON: trailing characters at line 1 column 6: the text starts with \"192.0.2.1\\n192.0.2.2\"; it {not_a_list}"
            ),
        ),
        (
            "[\"192.0.2.1\"] x",
            &format!(
                "is not JSON: trailing characters at line 1 column 15: the text starts with \"[\\\"192.0.2.1\\\"] x\"; it {not_a_list}"
            ),
        ),
        (
            "[\"192.0.2.1\", 7]",
            "$[1]: is the number 7, not a string; each item must be an address or a prefix",
        ),
        (
            "[[\"192.0.2.1\"]]",
            "$[0]: is an array, not a string; each item must be an address or a prefix",
        ),
        (
            r#"["192.0.2.1 "]"#,
            "$[0]: \"192.0.2.1 \" is not a prefix; write one such as \"203.0.113.0/24\", \
             \"2001:db8::/32\" or \"203.0.113.9\"",
        ),
        (
            r#"["9.0.0.0/7", "8.0.0.0/7"]"#,
            "$[0]: \"9.0.0.0/7\" has host bits set; write \"8.0.0.0/7\" for the network or \
             \"9.0.0.0/32\" for the one address",
        ),
        (
            r#"["8.0.0.0/7"]"#,
            "$[0]: 8.0.0.0/7 is wider than a feed may be trusted with (IPv4 /8, IPv6 /16); if it \
             is meant, write it under `prefixes` in the configuration",
        ),
        (
            r#"["192.0.2.1", "2000::/15"]"#,
            "$[1]: 2000::/15 is wider than a feed may be trusted with (IPv4 /8, IPv6 /16); if it \
             is meant, write it under `prefixes` in the configuration",
        ),
    ];
    for (text, expected) in cases {
        check(parse_json_array, text, expected);
    }
    assert_eq!(
        parse_json_array(b"[\"\xff\"]"),
        Err(FeedError::NotText { at: 2 })
    );
}

#[test]
fn lines() {
    let cases = [
        (
            "# office\r\n\r\n  203.0.113.0/24\t# and the annex\r\n2001:db8::1\n203.0.113.0/24",
            "203.0.113.0/24 2001:db8::1/128",
        ),
        ("\u{feff}203.0.113.9", "203.0.113.9/32"),
        (
            "",
            "is empty; a list names at least one prefix: check where it comes from",
        ),
        (
            "# merged into another list\n",
            "names no prefix; a list names at least one: check where it comes from",
        ),
        (
            "203.0.113.0/24\n\n203.0.113.0/24 203.0.114.0/24\n",
            "line 3: \"203.0.113.0/24 203.0.114.0/24\" is not a prefix; write one such as \
             \"203.0.113.0/24\", \"2001:db8::/32\" or \"203.0.113.9\"",
        ),
        (
            "192.0.2.0/24\n131.0.72.0/222400:cb00::/32\n",
            "line 2: \"131.0.72.0/222400:cb00::/32\" is not a prefix: it looks like \
             \"131.0.72.0/22\" and \"2400:cb00::/32\" run together; separate them",
        ),
        (
            "0.0.0.0/0",
            "line 1: 0.0.0.0/0 is wider than a feed may be trusted with (IPv4 /8, IPv6 /16); if \
             it is meant, write it under `prefixes` in the configuration",
        ),
    ];
    for (text, expected) in cases {
        check(parse_lines, text, expected);
    }
}

#[test]
fn tokens() {
    let generic = |token: &str| {
        format!(
            "{token:?} is not a prefix; write one such as \"203.0.113.0/24\", \
             \"2001:db8::/32\" or \"203.0.113.9\""
        )
    };
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
        ("", &generic("")),
        ("192.0.2.0/", &generic("192.0.2.0/")),
        ("192.0.2.0/+24", &generic("192.0.2.0/+24")),
        (
            "192.0.2.0/255.255.255.0",
            "\"192.0.2.0/255.255.255.0\" is not a prefix: it has a netmask; write /24 instead",
        ),
        ("192.0.2.01", &generic("192.0.2.01")),
        ("192.0.2.256", &generic("192.0.2.256")),
        ("192.0.2.1-4", &generic("192.0.2.1-4")),
        ("fe80::1%eth0", &generic("fe80::1%eth0")),
        ("\u{1b}[2J", &generic("\u{1b}[2J")),
        (
            &"größer".repeat(20),
            &generic(&format!("{}…", "größer".repeat(10))),
        ),
    ];
    for (token, expected) in cases {
        let answer = match parse_prefix(token) {
            Ok(prefix) => prefix.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(answer, expected, "of {token:?}");
    }
}

fn prefix() -> impl Strategy<Value = IpNet> {
    let address = prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
        any::<u128>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
    ];
    let narrow = |(address, length): (IpAddr, u8)| {
        let length = if address.is_ipv4() {
            8 + length % 25
        } else {
            16 + length % 113
        };
        IpNet::new_assert(address, length).trunc()
    };
    (address, any::<u8>())
        .prop_map(narrow)
        .prop_filter("not mapped", |prefix| check_prefix(*prefix).is_ok())
}

proptest! {
    #[test]
    fn lists_read_back(prefixes in prop::collection::vec(prefix(), 1..50)) {
        let tokens: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
        let mut expected = prefixes;
        expected.sort();
        expected.dedup();
        let json = serde_json::to_vec(&tokens).expect("strings are JSON");
        prop_assert_eq!(parse_json_array(&json), Ok(expected.clone()));
        prop_assert_eq!(parse_lines(tokens.join("\r\n").as_bytes()), Ok(expected));
    }

    #[test]
    fn bytes_never_panic(bytes: Vec<u8>, text in "[\\[\\]\"0-9a-f.:/# \n]{0,60}|\\PC{0,20}") {
        for input in [&bytes[..], text.as_bytes()] {
            let parsed = [parse_json_array(input), parse_lines(input)];
            for prefixes in parsed.into_iter().flatten() {
                prop_assert!(prefixes.is_sorted());
                prop_assert!(prefixes.iter().all(|prefix| check_prefix(*prefix).is_ok()));
            }
        }
    }
}
