//! Two texts that are one range or one prefix.

use super::*;

#[test]
fn two_texts_that_are_one_range_or_prefix() {
    let shown = |answer: Result<Vec<IpNet>, PrefixError>| match answer {
        Ok(prefixes) => words(&prefixes).join(" "),
        Err(error) => error.to_string(),
    };
    let ends = [
        ("192.0.2.0", "192.0.3.255", "192.0.2.0/23"),
        (
            "2001:db8::1",
            "2001:db8::2",
            "2001:db8::1/128 2001:db8::2/128",
        ),
        ("192.0.2.1", "9", &not_a_prefix("192.0.2.1-9")),
        ("192.0.2.1", "", &not_a_prefix("192.0.2.1-")),
        (
            "192.0.2.1",
            "2001:db8::1",
            &not_a_prefix("192.0.2.1-2001:db8::1"),
        ),
        (
            "192.0.2.9",
            "192.0.2.1",
            "\"192.0.2.9-192.0.2.1\" is a range that ends before it starts; write \
             \"192.0.2.1-192.0.2.9\" if it is meant",
        ),
    ];
    for (first, last, expected) in ends {
        assert_eq!(shown(parse_ends(first, last)), expected);
    }
    let lengths = [
        ("192.0.2.0", "24", "192.0.2.0/24"),
        ("192.0.2.0", "/24", "192.0.2.0/24"),
        ("192.0.2.0", "255.255.255.0", "192.0.2.0/24"),
        ("2001:db8::", "/32", "2001:db8::/32"),
        ("192.0.2.0", "", &not_a_prefix("192.0.2.0/")),
        ("192.0.2.0", "x", &not_a_prefix("192.0.2.0/x")),
        ("192.0.2.0/24", "24", &not_a_prefix("192.0.2.0/24/24")),
        (
            "192.0.2.9",
            "255.255.255.0",
            "\"192.0.2.9/24\" has host bits set; write \"192.0.2.0/24\" for the network or \
             \"192.0.2.9/32\" for the one address",
        ),
    ];
    for (address, length, expected) in lengths {
        let answer = parse_with_length(address, length).map(|prefix| vec![prefix]);
        assert_eq!(shown(answer), expected);
    }
}
