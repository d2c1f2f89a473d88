//! Two texts that are one range or one prefix.

use super::*;

#[test]
fn pairs_of_ends_and_of_address_and_length() {
    let mut answers = Answers::default();
    let mut shown = |input: String, answer: Result<Vec<IpNet>, PrefixError>| match answer {
        Ok(prefixes) => words(&prefixes).join(" "),
        Err(error) => {
            answers.add(&input, Some(error.to_string()));
            variant(&error)
        }
    };
    let ends = [
        ("192.0.2.0", "192.0.3.255", "192.0.2.0/23"),
        (
            "2001:db8::1",
            "2001:db8::2",
            "2001:db8::1/128 2001:db8::2/128",
        ),
        ("192.0.2.1", "9", "NotAPrefix"),
        ("192.0.2.1", "", "NotAPrefix"),
        ("192.0.2.1", "2001:db8::1", "NotAPrefix"),
        ("192.0.2.9", "192.0.2.1", "Backwards"),
    ];
    for (first, last, expected) in ends {
        let answer = parse_ends(first, last);
        assert_eq!(shown(format!("{first} to {last}"), answer), expected);
    }
    let lengths = [
        ("192.0.2.0", "24", "192.0.2.0/24"),
        ("192.0.2.0", "/24", "192.0.2.0/24"),
        ("192.0.2.0", "255.255.255.0", "192.0.2.0/24"),
        ("2001:db8::", "/32", "2001:db8::/32"),
        ("192.0.2.0", "", "NotAPrefix"),
        ("192.0.2.0", "x", "NotAPrefix"),
        ("192.0.2.0/24", "24", "NotAPrefix"),
        ("192.0.2.9", "255.255.255.0", "HostBits"),
    ];
    for (address, length, expected) in lengths {
        let answer = parse_with_length(address, length).map(|prefix| vec![prefix]);
        assert_eq!(shown(format!("{address} with {length}"), answer), expected);
    }
    answers.check(&expect_file!["../snapshots/pairs.txt"]);
}
