//! Tests of the reader of DNS messages: tables of messages, built byte by byte, and the keys of names.

extern crate std;

use std::format;
use std::net::IpAddr;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::*;

/// The offset of the question's name, for compression pointers.
const QUESTION: u16 = 12;
/// The flags of a response to a recursive query, without an error.
const RESPONSE: u16 = 0x8180;
/// The longest label.
const LONGEST: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// The addresses that a message gave, with their times to live.
#[derive(Debug, Default, PartialEq)]
struct Taken(Vec<(Address, u32)>);

impl Sink for Taken {
    fn take(&mut self, address: Address, ttl: u32) {
        self.0.push((address, ttl));
    }
}

/// Records of an answer section, and the addresses that they give.
type Case<'c> = (&'c [Vec<u8>], &'c [(&'c str, u32)]);

/// Returns a name in the format of messages, without compression.
fn name(text: &str) -> Vec<u8> {
    let labels: Vec<&[u8]> = text.split('.').map(str::as_bytes).collect();
    labels_of(&labels)
}

fn labels_of(labels: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in labels {
        bytes.push(label.len() as u8);
        bytes.extend(*label);
    }
    bytes.push(0);
    bytes
}

/// Returns a compression pointer to an offset.
fn pointer(offset: u16) -> Vec<u8> {
    (0xc000 | offset).to_be_bytes().to_vec()
}

fn numbers(numbers: &[u16]) -> Vec<u8> {
    numbers.iter().flat_map(|one| one.to_be_bytes()).collect()
}

/// Returns a message with a question, whose name is in the format of messages.
fn message(flags: u16, question: &[u8], kind: u16, answers: &[Vec<u8>]) -> Vec<u8> {
    let header = numbers(&[0x1234, flags, 1, answers.len() as u16, 0, 0]);
    let rest = numbers(&[kind, INTERNET]);
    [&header, question, &rest, &answers.concat()].concat()
}

fn record(owner: &[u8], kind: u16, class: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    [
        owner,
        &numbers(&[kind, class]),
        &ttl.to_be_bytes(),
        &numbers(&[data.len() as u16]),
        data,
    ]
    .concat()
}

/// Returns a record of an address, with a pointer to the question's name.
fn a(ttl: u32, text: &str) -> Vec<u8> {
    match text.parse().expect("an address") {
        IpAddr::V4(ip) => record(&pointer(QUESTION), A, INTERNET, ttl, &ip.octets()),
        IpAddr::V6(ip) => record(&pointer(QUESTION), AAAA, INTERNET, ttl, &ip.octets()),
    }
}

/// Returns a record of an alias, with a pointer to the question's name.
fn cname(ttl: u32, to: &[u8]) -> Vec<u8> {
    record(&pointer(QUESTION), CNAME, INTERNET, ttl, to)
}

fn taken(all: &[(&str, u32)]) -> Taken {
    let all = all.iter().map(|(text, ttl)| {
        let address: IpAddr = text.parse().expect("an address");
        (address.into(), *ttl)
    });
    Taken(all.collect())
}

/// Reads the question of a message.
fn note(message: &[u8]) -> Option<Noted> {
    let mut noted = Noted::EMPTY;
    read_question::<_, PlainLoops>(&Bytes(message), &mut noted)?;
    Some(noted)
}

/// Returns the question of a query for a name.
fn asked(text: &str, kind: u16) -> Noted {
    note(&message(0x0100, &name(text), kind, &[])).expect("a question for addresses")
}

fn text_of(noted: &Noted) -> String {
    let bytes = (0..noted.length()).map(|index| char::from(noted.byte(index)));
    bytes.collect()
}

/// Reads an answer; returns whether it was believed, and the addresses that it gave in any case.
fn read(message: &[u8], noted: &Noted) -> (bool, Taken) {
    let mut taken = Taken::default();
    let bytes = Bytes(message);
    let is_believed = header(&bytes).is_some_and(|header| {
        header.kind == Kind::Answer
            && read_answer::<_, PlainLoops, _>(&bytes, &header, noted, &mut taken).is_some()
    });
    (is_believed, taken)
}

/// Reads an answer to the query of type A for `www.example.com`.
fn read_www(answers: &[Vec<u8>]) -> (bool, Taken) {
    let message = message(RESPONSE, &name("www.example.com"), A, answers);
    read(&message, &asked("www.example.com", A))
}

/// Returns a name of `length` bytes.
fn long_name(length: usize) -> String {
    let mut text = [LONGEST; 4].join(".");
    text.truncate(length);
    text
}

#[test]
fn headers_have_a_kind() {
    let cases = [
        (0x0000, 1, Some(Kind::Query)),
        (0x0100, 1, Some(Kind::Query)),
        (0x8000, 1, Some(Kind::Answer)),
        (0x8580, 1, Some(Kind::Answer)),
        (0x8380, 1, Some(Kind::Truncated)),
        (0x8183, 1, Some(Kind::Error)),
        // A truncated error is an error.
        (0x8382, 1, Some(Kind::Error)),
        // Inverse query, status, notify, update, and the last opcode.
        (0x0800, 1, None),
        (0x1000, 1, None),
        (0xa400, 1, None),
        (0xa800, 1, None),
        (0x7800, 1, None),
        (RESPONSE, 0, None),
        (RESPONSE, 2, None),
        (RESPONSE, 0x0100, None),
    ];
    for (flags, questions, kind) in cases {
        let bytes = numbers(&[0xabcd, flags, questions, 7, 9, 9]);
        let expected = kind.map(|kind| Header {
            id: 0xabcd,
            kind,
            answers: 7,
        });
        let found = header(&Bytes(&bytes));
        assert_eq!(found, expected, "{flags:#x}, {questions} questions");
        for end in 0..8 {
            assert_eq!(header(&Bytes(&bytes[..end])), None);
        }
    }
}

#[test]
fn questions_are_noted_in_lower_case() {
    let (long, all_labels) = (long_name(253), ["a"; 127].join("."));
    let cases = [
        ("www.example.com", "www.example.com"),
        ("wWw.EXAMPLE.cOm", "www.example.com"),
        ("a.b", "a.b"),
        ("_sip-1.X9_.example", "_sip-1.x9_.example"),
        ("localhost", "localhost"),
        (LONGEST, LONGEST),
        (&long_name(252), &long_name(252)),
        (&long, &long),
        (&all_labels, &all_labels),
    ];
    for (text, expected) in cases {
        for kind in [A, AAAA] {
            let noted = note(&message(0x0100, &name(text), kind, &[]));
            let noted = noted.unwrap_or_else(|| panic!("{text} was refused"));
            assert_eq!((&*text_of(&noted), noted.kind()), (expected, kind));
            // The key of the query is that of the configured name.
            let key = NameKey::new(0, expected, WildcardKey::Exact);
            assert_eq!(Some(noted.key), key, "{text}");
        }
    }
}

#[test]
fn other_questions_are_refused() {
    let names = [
        // The root.
        vec![0],
        name(&long_name(254)),
        name(&[LONGEST; 4].join(".")),
        name(&["a"; 128].join(".")),
        // A label of 64 bytes, a compression pointer, and the reserved types of labels.
        [&[64][..], &[b'a'; 64], &[0]].concat(),
        pointer(0),
        [&b"\x03www"[..], &pointer(QUESTION)].concat(),
        b"\x41ab\0".to_vec(),
        b"\x81ab\0".to_vec(),
        // Bytes that no configured name has.
        labels_of(&[b"a.b", b"example"]),
        labels_of(&[b"a b", b"example"]),
        labels_of(&[b"a\0", b"example"]),
        labels_of(&[b"*", b"example"]),
        labels_of(&[b"a@", b"example"]),
        labels_of(&[b"a[", b"example"]),
        labels_of(&[b"a`", b"example"]),
        labels_of(&[b"a{", b"example"]),
        labels_of(&[b"a/", b"example"]),
        labels_of(&[b"a:", b"example"]),
        labels_of(&["b\u{fc}cher".as_bytes(), b"example"]),
    ];
    for name in names {
        assert_eq!(note(&message(0x0100, &name, A, &[])), None, "{name:02x?}");
    }
    let question = name("www.example.com");
    for kind in [0, 2, CNAME, 12, 15, 16, 33, 64, 65, 255, A << 8] {
        assert_eq!(note(&message(0x0100, &question, kind, &[])), None, "{kind}");
    }
    let mut of_chaos = message(0x0100, &question, A, &[]);
    *of_chaos.last_mut().expect("a byte") = 3;
    assert_eq!(note(&of_chaos), None);
    let whole = message(0x0100, &question, A, &[]);
    for end in 0..whole.len() {
        assert_eq!(note(&whole[..end]), None, "{end} bytes");
    }
}

#[test]
fn addresses_of_answers_are_taken() {
    let com = pointer(QUESTION + 4);
    let with_pointer = [&b"\x01b"[..], &com].concat();
    let soa = record(&com, 6, INTERNET, 1, &[7; 30]);
    let opt = record(&[0], 41, 1232, 0, &[]);
    let cases: [Case<'_>; 13] = [
        (&[], &[]),
        (&[a(60, "192.0.2.1")], &[("192.0.2.1", 60)]),
        (
            &[a(60, "192.0.2.1"), a(5, "2001:db8::1"), a(7, "192.0.2.1")],
            &[("192.0.2.1", 60), ("2001:db8::1", 5), ("192.0.2.1", 7)],
        ),
        // Owner names of each form; whose they are is not compared.
        (
            &[record(
                &name("WWW.other.example"),
                A,
                INTERNET,
                9,
                &[192, 0, 2, 1],
            )],
            &[("192.0.2.1", 9)],
        ),
        (
            &[record(&with_pointer, A, INTERNET, 9, &[192, 0, 2, 1])],
            &[("192.0.2.1", 9)],
        ),
        (
            &[record(&[0], A, INTERNET, 9, &[192, 0, 2, 1])],
            &[("192.0.2.1", 9)],
        ),
        (
            &[record(
                &name(&long_name(253)),
                A,
                INTERNET,
                9,
                &[192, 0, 2, 1],
            )],
            &[("192.0.2.1", 9)],
        ),
        // An address is valid no longer than the aliases before it.
        (
            &[
                cname(50, &with_pointer),
                a(60, "192.0.2.1"),
                cname(70, &com),
                a(40, "192.0.2.2"),
                cname(30, &name("c.example")),
                a(60, "192.0.2.3"),
            ],
            &[("192.0.2.1", 50), ("192.0.2.2", 40), ("192.0.2.3", 30)],
        ),
        // Records of other types and classes are skipped, and aliases of another class do not count.
        (
            &[
                soa,
                record(&com, A, 3, 1, &[192, 0, 2, 9]),
                record(&com, A, 3, 1, &[192, 0, 2]),
                record(&com, CNAME, 3, 1, &com),
                record(&com, 16, INTERNET, 1, &[]),
                record(&com, 46, INTERNET, 1, &[0; 300]),
                opt,
                a(60, "192.0.2.1"),
            ],
            &[("192.0.2.1", 60)],
        ),
        // Times to live: the maximum, and 0 for one with the first bit set.
        (
            &[
                a(MAX_TTL, "192.0.2.1"),
                a(MAX_TTL + 1, "192.0.2.2"),
                a(0x7fff_ffff, "192.0.2.3"),
                a(0x8000_0000, "192.0.2.4"),
                a(0xffff_ffff, "192.0.2.5"),
                a(0, "192.0.2.6"),
            ],
            &[
                ("192.0.2.1", MAX_TTL),
                ("192.0.2.2", MAX_TTL),
                ("192.0.2.3", MAX_TTL),
                ("192.0.2.4", 0),
                ("192.0.2.5", 0),
                ("192.0.2.6", 0),
            ],
        ),
        (
            &[cname(0x8000_0001, &com), a(60, "192.0.2.1")],
            &[("192.0.2.1", 0)],
        ),
        (&[a(60, "192.0.2.1"), cname(1, &com)], &[("192.0.2.1", 60)]),
        (
            &[a(1, "64:ff9b::192.0.2.1"), a(1, "::ffff:192.0.2.1")],
            &[("64:ff9b::192.0.2.1", 1), ("::ffff:192.0.2.1", 1)],
        ),
    ];
    for (number, (answers, expected)) in cases.into_iter().enumerate() {
        assert_eq!(read_www(answers), (true, taken(expected)), "case {number}");
    }
}

/// Data after the answer section, such as EDNS options, has no effect.
#[test]
fn other_sections_are_ignored() {
    let mut whole = message(RESPONSE, &name("www.example.com"), A, &[a(60, "192.0.2.1")]);
    let noted = asked("www.example.com", A);
    whole[8..12].copy_from_slice(&[0, 1, 0, 1]);
    whole.extend(a(60, "192.0.2.8"));
    assert_eq!(read(&whole, &noted), (true, taken(&[("192.0.2.1", 60)])));
    whole.extend([0xff; 9]);
    assert_eq!(read(&whole, &noted), (true, taken(&[("192.0.2.1", 60)])));
}

#[test]
fn wrong_records_end_the_message() {
    let first = || a(60, "192.0.2.1");
    let wrong = [
        record(&pointer(QUESTION), A, INTERNET, 1, &[192, 0, 2]),
        record(&pointer(QUESTION), A, INTERNET, 1, &[192, 0, 2, 9, 0]),
        record(&pointer(QUESTION), A, INTERNET, 1, &[]),
        record(&pointer(QUESTION), A, INTERNET, 1, &[9; 16]),
        record(&pointer(QUESTION), AAAA, INTERNET, 1, &[9; 15]),
        record(&pointer(QUESTION), AAAA, INTERNET, 1, &[9; 17]),
        record(&pointer(QUESTION), AAAA, INTERNET, 1, &[9; 4]),
        // Reserved types of labels, as the first and as a later label.
        record(&[0x40], A, INTERNET, 1, &[192, 0, 2, 9]),
        record(&[0xbf, 0], A, INTERNET, 1, &[192, 0, 2, 9]),
        record(&[1, b'a', 0x80, 0], A, INTERNET, 1, &[192, 0, 2, 9]),
    ];
    for wrong in wrong {
        let found = read_www(&[first(), wrong.clone(), a(60, "192.0.2.2")]);
        assert_eq!(found, (false, taken(&[("192.0.2.1", 60)])), "{wrong:02x?}");
    }
    // A header that promises more records than there are.
    let mut short = message(RESPONSE, &name("www.example.com"), A, &[first()]);
    short[7] = 2;
    let found = read(&short, &asked("www.example.com", A));
    assert_eq!(found, (false, taken(&[("192.0.2.1", 60)])));
}

#[test]
fn answers_repeat_the_question() {
    let noted = asked("www.example.com", A);
    let answers = [a(60, "192.0.2.1")];
    let believed = (true, taken(&[("192.0.2.1", 60)]));
    let same = ["www.example.com", "WWW.Example.COM"];
    for text in same {
        let message = message(RESPONSE, &name(text), A, &answers);
        assert_eq!(read(&message, &noted), believed, "{text}");
    }
    let others = [
        name("www.example.con"),
        name("xww.example.com"),
        name("www.example.comm"),
        name("www.example.com.a"),
        name("a.www.example.com"),
        name("example.com"),
        name("www-example.com"),
        name("wwwwexample.com"),
        // The same text with other labels.
        labels_of(&[b"www.example", b"com"]),
        labels_of(&[b"www.example.com"]),
        labels_of(&[b"www", b"example.com"]),
        // The same bytes in another place: a label that ends later than the name.
        b"\x03www\x07example\x04com\0".to_vec(),
        [&b"\x03www"[..], &pointer(QUESTION)].concat(),
        b"\x03www\x07example\xc0om\0".to_vec(),
        b"\x43www\x07example\x03com\0".to_vec(),
        b"\x03www\x07example\x03com\x01".to_vec(),
        vec![0],
    ];
    for other in others {
        let message = message(RESPONSE, &other, A, &answers);
        assert_eq!(read(&message, &noted), (false, taken(&[])), "{other:02x?}");
    }
    let question = name("www.example.com");
    for kind in [AAAA, CNAME, 255] {
        let message = message(RESPONSE, &question, kind, &answers);
        assert_eq!(read(&message, &noted), (false, taken(&[])), "{kind}");
    }
    let mut of_chaos = message(RESPONSE, &question, A, &answers);
    of_chaos[QUESTION as usize + question.len() + 3] = 3;
    assert_eq!(read(&of_chaos, &noted), (false, taken(&[])));
}

/// The longest names are believed too.
#[test]
fn long_names_are_answered() {
    for text in [long_name(252), long_name(253), ["a"; 127].join(".")] {
        let noted = asked(&text, AAAA);
        let message = |text: &str| {
            let question = name(&text.to_ascii_uppercase());
            message(RESPONSE, &question, AAAA, &[a(60, "2001:db8::1")])
        };
        let expected = (true, taken(&[("2001:db8::1", 60)]));
        assert_eq!(read(&message(&text), &noted), expected, "{text}");
        let mut other = text.clone();
        other.replace_range(text.len() - 1.., "b");
        assert_eq!(read(&message(&other), &noted), (false, taken(&[])));
    }
}

/// Each prefix of a message gives only addresses of the message, and is not believed.
#[test]
fn truncated_messages_are_not_believed() {
    let answers = [
        cname(50, &name("b.example.net")),
        record(&name("b.example.net"), A, INTERNET, 60, &[192, 0, 2, 1]),
        record(&pointer(QUESTION), 16, INTERNET, 1, b"\x04text"),
        a(40, "2001:db8::1"),
        a(30, "192.0.2.2"),
    ];
    let whole = message(RESPONSE, &name("www.example.com"), A, &answers);
    let noted = asked("www.example.com", A);
    let (is_believed, all) = read(&whole, &noted);
    assert!(is_believed && all.0.len() == 3, "{all:?}");
    for end in 0..whole.len() {
        let (is_believed, some) = read(&whole[..end], &noted);
        assert!(!is_believed, "{end} bytes");
        assert!(all.0.starts_with(&some.0), "{end} bytes: {some:?}");
    }
}

#[test]
fn answers_have_up_to_512_steps() {
    let many = |count: usize, owner: &[u8]| {
        let records = (0..count).map(|n| {
            let data = (0xc000_0200 + n as u32).to_be_bytes();
            record(owner, A, INTERNET, n as u32, &data)
        });
        let (is_believed, taken) = read_www(&records.collect::<Vec<_>>());
        assert!(is_believed, "{count} records");
        for (n, (address, ttl)) in taken.0.iter().enumerate() {
            let expected = Address::V4(0xc000_0200 + n as u32);
            assert_eq!((*address, *ttl), (expected, n as u32));
        }
        taken.0.len()
    };
    for (count, expected) in [
        (32, 32),
        (33, 33),
        (100, 100),
        (512, 512),
        (513, 512),
        (2000, 512),
    ] {
        assert_eq!(many(count, &pointer(QUESTION)), expected, "{count} records");
    }
    // Each label of an uncompressed name is a step, and so is the rest of the record.
    let owner = name("www.example.com");
    for (count, expected) in [(127, 127), (128, 128), (129, 128), (600, 128)] {
        assert_eq!(many(count, &owner), expected, "{count} records");
    }
}

/// Returns the key that a longest-prefix match finds among `keys`, as the kernel's trie does.
fn matched<'k>(keys: &'k [NameKey], wanted: &NameKey) -> Option<&'k NameKey> {
    let number = |data: &[u8; 256], bit: u32| data[bit as usize / 8] >> (7 - bit % 8) & 1;
    let all = keys.iter().filter(|key| {
        key.bits <= wanted.bits
            && (0..key.bits).all(|bit| number(&key.data, bit) == number(&wanted.data, bit))
    });
    all.max_by_key(|key| key.bits)
}

#[test]
fn the_exact_name_matches_before_the_longest_wildcard() {
    let kinds = [WildcardKey::Exact, WildcardKey::Below];
    let listed = [
        (0, "a.example.com", kinds[0]),
        (0, "example.com", kinds[1]),
        (0, "b.example.com", kinds[1]),
        (0, "b.example.com", kinds[0]),
        (1, "only.example.com", kinds[0]),
        (1, "c.example.com", kinds[1]),
        (1, "example.net", kinds[1]),
    ];
    let keys: Vec<NameKey> = listed
        .iter()
        .map(|(slot, name, kind)| NameKey::new(*slot, name, *kind).expect("a key"))
        .collect();
    let cases = [
        (0, "a.example.com", Some(0)),
        (0, "example.com", None),
        (0, "x.example.com", Some(1)),
        (0, "x.a.example.com", Some(1)),
        (0, "aa.example.com", Some(1)),
        (0, "b.example.com", Some(3)),
        (0, "x.b.example.com", Some(2)),
        (0, "y.x.b.example.com", Some(2)),
        (0, "bb.example.com", Some(1)),
        (0, "only.example.com", Some(1)),
        (0, "badexample.com", None),
        (0, "example.com.net", None),
        (0, "x.example.net", None),
        (0, "com", None),
        (1, "only.example.com", Some(4)),
        (1, "x.only.example.com", None),
        (1, "x.c.example.com", Some(5)),
        (1, "a.example.com", None),
        (1, "x.example.net", Some(6)),
        (2, "a.example.com", None),
    ];
    for (slot, text, expected) in cases {
        let mut noted = asked(text, A);
        noted.set_slot(slot);
        let expected = expected.map(|place: usize| &keys[place]);
        assert_eq!(matched(&keys, &noted.key), expected, "{text} in {slot}");
    }
}

#[test]
fn keys_have_a_maximum_length() {
    let key = |length, kind| NameKey::new(1, &long_name(length), kind).is_some();
    for (length, is_exact, is_below) in [
        (0, false, false),
        (1, true, true),
        (252, true, true),
        (253, true, false),
        (254, false, false),
    ] {
        assert_eq!(key(length, WildcardKey::Exact), is_exact, "{length}");
        assert_eq!(key(length, WildcardKey::Below), is_below, "{length}");
    }
    // A name of the maximum length below a wildcard.
    let below = long_name(253);
    let (_, wildcard) = below.split_once('.').expect("two labels");
    let keys = [NameKey::new(0, wildcard, WildcardKey::Below).expect("a key")];
    assert_eq!(matched(&keys, &asked(&below, A).key), Some(&keys[0]));
    let other = format!("{}b", &below[..below.len() - 1]);
    assert_eq!(matched(&keys, &asked(&other, A).key), None);
}
