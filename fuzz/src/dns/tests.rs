//! Random messages to [`run`](super::run), as a resolver sends them, and with changed bytes.

use std::net::Ipv4Addr;

use hickory_proto::rr::rdata::{AAAA, CNAME, MX, NULL, SOA, TXT};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// A name of few, so that names repeat and are compressed; in any case.
fn name() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let long = [&"a".repeat(63)[..]; 4].join(".");
    let mut names = [
        "www.example.com",
        "a.example",
        "www.a.example",
        "example.com",
        "_x-1.example.com",
        &long[..253],
    ]
    .map(labels)
    .to_vec();
    names.push(vec![b"www.example".to_vec(), b"com".to_vec()]);
    names.push(vec![b"w\0w".to_vec(), vec![0xff; 63]]);
    names.push(Vec::new());
    // Mostly the first name, which has a noted question.
    let one = prop_oneof![2 => Just(names[0].clone()), 1 => select(names)];
    (one, any::<u64>()).prop_map(|(mut labels, case)| {
        for (place, byte) in labels.iter_mut().flatten().enumerate() {
            if case >> (place % 64) & 1 != 0 {
                byte.make_ascii_uppercase();
            }
        }
        labels
    })
}

fn data() -> impl Strategy<Value = RData> {
    prop_oneof![
        4 => any::<[u8; 4]>().prop_map(|ip| RData::A(Ipv4Addr::from(ip).into())),
        4 => any::<[u16; 8]>().prop_map(|ip| RData::AAAA(AAAA(ip.into()))),
        4 => name().prop_map(|name| RData::CNAME(CNAME(name_of(&name)))),
        1 => name().prop_map(|name| RData::MX(MX::new(7, name_of(&name)))),
        1 => (name(), name()).prop_map(|(a, b)| {
            RData::SOA(SOA::new(name_of(&a), name_of(&b), 1, 2, 3, 4, 5))
        }),
        1 => "[ -~]{0,40}".prop_map(|text| RData::TXT(TXT::new(vec![text]))),
        1 => vec(any::<u8>(), 1..300).prop_map(|bytes| RData::Unknown {
            code: RecordType::Unknown(65280),
            rdata: NULL::with(bytes),
        }),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let class = prop_oneof![9 => Just(1), 1 => Just(3)];
    let ttl = prop_oneof![
        0_u32..4000,
        select(vec![MAX_TTL, MAX_TTL + 1, 1 << 31, u32::MAX]),
        any::<u32>(),
    ];
    (name(), class, ttl, data()).prop_map(|(owner, class, ttl, data)| Entry {
        owner,
        class,
        ttl,
        data,
    })
}

fn reply() -> impl Strategy<Value = Reply> {
    let kind =
        prop_oneof![4 => Just(A), 3 => Just(dns::AAAA), 1 => select(vec![dns::CNAME, 16, 65])];
    let code = prop_oneof![9 => Just(0), 1 => 0_u8..16];
    let flags = (prop::bool::weighted(0.1), any::<bool>(), any::<bool>());
    let sections = (vec(entry(), 0..12), vec(entry(), 0..3), vec(entry(), 0..3));
    // Few replies have more records than are read.
    let times = prop_oneof![29 => Just(1), 1 => Just(130)];
    (name(), kind, code, flags, sections, times).prop_map(
        |(name, kind, code, flags, (answers, authorities, additionals), times)| Reply {
            name,
            kind,
            code,
            is_truncated: flags.0,
            is_compressed: flags.1,
            has_edns: flags.2,
            sections: [vec![answers; times].concat(), authorities, additionals],
        },
    )
}

/// A change of a byte: the new value, or the changed bits.
fn changes() -> impl Strategy<Value = Vec<(Index, u8, bool)>> {
    vec((any::<Index>(), any::<u8>(), any::<bool>()), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn messages_of_resolvers_are_read_alike(reply in reply()) {
        let bytes = reply.encode();
        prop_assert!(Message::from_vec(&bytes).is_ok());
        run(&bytes);
    }

    #[test]
    fn changed_messages_are_read_alike(
        reply in reply(),
        changes in changes(),
        at_header in any::<bool>(),
        end in prop::option::weighted(0.2, any::<Index>()),
    ) {
        let mut bytes = reply.encode();
        for (place, number, replaces) in changes {
            // Half of the changes are in the header and the question, and the records behind them.
            let length = if at_header { bytes.len().min(60) } else { bytes.len() };
            let byte = &mut bytes[place.index(length)];
            *byte = if replaces { number } else { *byte ^ 1 << (number % 8) };
        }
        if let Some(end) = end {
            bytes.truncate(end.index(bytes.len()));
        }
        run(&bytes);
    }
}
