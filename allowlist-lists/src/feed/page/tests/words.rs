//! Text directly beside an address, without a blank.

use super::*;

#[test]
fn punctuation_is_split_off() {
    let cases = [
        ("192.0.2.1(US)", "192.0.2.1"),
        ("192.0.2.1[1]", "192.0.2.1"),
        ("192.0.2.0/24(US),192.0.2.9{a}", "192.0.2.0/24 192.0.2.9"),
        ("(US)192.0.2.1", "192.0.2.1"),
        ("US:192.0.2.1", "192.0.2.1"),
        ("<b>DE:</b>192.0.2.1", "192.0.2.1"),
        ("us-east-1:192.0.2.4-7", "192.0.2.4/30"),
        ("地址：192.0.2.1（新）", "192.0.2.1"),
        (
            "v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::/32 ~all",
            "192.0.2.0/24 2001:db8::",
        ),
        ("2001:db8::1(US)", "2001:db8::1/128"),
        ("\"192.0.2.1\":\"US\"", "192.0.2.1"),
    ];
    for (html, expected) in cases {
        check(&Page::default(), html, expected);
    }
    let by_region = [
        ("US:192.0.2.1 EU:192.0.2.2", "192.0.2.1"),
        ("US 192.0.2.1(EU) 192.0.2.2(EU)", "192.0.2.1 192.0.2.2"),
    ];
    for (html, expected) in by_region {
        check(&region("^US$"), html, expected);
    }
}

#[test]
fn letters_glued_to_an_address_fail_the_page() {
    let mut answers = Answers::default();
    let words = [
        "IP192.0.2.1",
        "192.0.2.1US",
        "192.0.2.0/24US",
        "US192.0.2.1",
        "192.0.2.1a",
        "地址192.0.2.1",
        "192.0.2.4-192.0.2.7US",
    ];
    for word in words {
        let html = format!("192.0.2.9 {word}");
        answers.add(&html, check(&Page::default(), &html, "NotAPrefix"));
    }
    answers.check(&expect_file!["../snapshots/glued_letters.txt"]);
    let brackets = parse_html(&Page::default(), b"<p>(192.0.2.1)-(192.0.2.5)", TODAY);
    assert!(brackets.is_err(), "{brackets:?}");
}

#[test]
fn other_words_stay_prose() {
    let words = [
        "https://192.0.2.1/x",
        "https://192.0.2.1(US)",
        "http://[2001:db8::1]:443/",
        "[here](https://192.0.2.1/)",
        "user@192.0.2.1",
        "'user'@'192.0.2.1'",
        "ip-192-0-2-1.example",
        "192.0.2.1.nip.io",
        "x.192.0.2.1",
        "1.2.0.192.in-addr.arpa",
        "v1.2.3.4",
        "V1.2.3.4",
        "app-v1.2.3.4",
        "Version1.2.3.4",
        "openssl-1.2.3.4",
        "1.2.3.4-beta",
        "Chrome/120.0.0.1",
        "192.0.2.1/x",
        "192.0.2.1:x",
        "IP7.17.943.944",
        "x1.2.3",
        "f(a::b)",
        "std::vec(1)",
    ];
    for word in words {
        check(&Page::default(), &format!("192.0.2.9 {word}"), "192.0.2.9");
    }
}
