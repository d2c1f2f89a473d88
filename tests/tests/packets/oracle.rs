//! A second opinion: the same policy as nftables rules in a namespace of its own, and the same frames over
//! a link to it. The kernel's own parser, its own sets and its own rules must come to the same verdicts.
//!
//! `rules` renders a policy, `judge` sends frames and reads what became of them. Where the two are meant
//! to differ, [`DIFFERENCES`] says for which frames and why; a difference that is not listed fails, and
//! so does a listed one that is gone.

mod judge;
mod rules;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use allowlist_common::packet::{SCTP, TCP, UDP};
use allowlist_tests::lab::frame;
use allowlist_tests::model::policy_strategies::scenarios;
use allowlist_tests::model::static_snapshot;
use allowlist_tests::{require_root, skip};
use allowlist_user::compile::{Names, compile};
use allowlist_user::policy::{DefaultVerdict, Mode, ReturnTraffic, Rules};
use proptest::collection::vec;
use proptest::prelude::any;

use crate::check::Compiled;
use crate::frames::{groups, host, icmp, icmp_of, ip, packet, ported, tcp, udp, with_options};
use crate::kernel::{INTERFACE, Kernel};
use crate::{is_long, runner};

use judge::Judge;

/// Ports that random policies' ranges begin and end at, and some beside them.
const PORTS: [u16; 10] = [1, 2, 22, 80, 443, 444, 445, 8080, 65_534, 65_535];

/// Longer frames do not fit the link.
const LONGEST: usize = 1514;

/// Rows that the two judge differently.
struct Difference {
    why: &'static str,
    /// The default verdicts under which it shows: under the other one both happen to say the same.
    defaults: &'static [DefaultVerdict],
    rows: &'static [&'static str],
}

const BOTH: &[DefaultVerdict] = &[DefaultVerdict::Pass, DefaultVerdict::Drop];
const PASS: &[DefaultVerdict] = &[DefaultVerdict::Pass];
const DROP: &[DefaultVerdict] = &[DefaultVerdict::Drop];

const DIFFERENCES: &[Difference] = &[
    Difference {
        why: "the kernel takes off one tag, and what has another one is not IP to nftables",
        defaults: BOTH,
        rows: &[
            "two tags, stranger",
            "two 802.1ad tags, stranger, IPv6",
            "two tags and nothing behind",
            "the second tag is cut",
            "tagged TCP, cut after 21 bytes",
            "tagged TCP, cut after 22 bytes",
            "tagged TCP, cut after 41 bytes",
            "tagged TCP, cut after 42 bytes",
            "tagged TCP, cut after 61 bytes",
            "three tags hide what is in them",
            "three tags, 802.1ad outside",
            "three tags around what is not IP",
        ],
    },
    Difference {
        why: "to nftables at ingress, padding behind a packet is part of it",
        defaults: BOTH,
        rows: &[
            "total length cuts the TCP header; padding is no header",
            "payload length cuts the TCP header",
            "payload length 0, of TCP",
        ],
    },
    Difference {
        why: "nftables follows any number of extension headers",
        defaults: BOTH,
        rows: &["nine extension headers"],
    },
    Difference {
        why: "nftables does not compare an extension header's length with the packet's",
        defaults: PASS,
        rows: &["extension header a little past the packet"],
    },
    Difference {
        why: "nftables takes an authentication header for the transport's, and looks no further",
        defaults: PASS,
        rows: &["an authentication header past the packet"],
    },
    Difference {
        why: "nftables takes an authentication header for the transport's, and looks no further",
        defaults: DROP,
        rows: &[
            "authentication header, vendor",
            "a first fragment whose options are behind its header, vendor",
            "AH over IPv6 is looked through",
        ],
    },
    Difference {
        why: "nftables finds no protocol in a later fragment that begins with an extension header",
        defaults: BOTH,
        rows: &[
            "a later fragment that begins with options: any service",
            "a later fragment that begins with a routing header, office",
            "later fragment that begins with options, vendor",
            "later fragment that begins with options, office",
            "a later fragment that begins with AH, IPv6, vendor",
        ],
    },
    Difference {
        why: "of two fragment headers, nftables compares the first, which does not say that it is a later one",
        defaults: DROP,
        rows: &["a fragment inside a fragment"],
    },
];

/// Leaves the test where there is no nft.
macro_rules! require_nft {
    () => {
        require_root!();
        if !judge::is_installed() {
            skip!("there is no `nft`: run `apt-get install nftables`");
        }
    };
}

/// Every group of frames, but for those that need a memory of what was sent.
#[test]
fn nftables_agrees_on_every_frame() -> anyhow::Result<()> {
    require_nft!();
    let judge = Judge::new()?;
    let mut kernel = Kernel::new();
    let mut different = BTreeSet::new();
    for group in groups() {
        let compiled = Compiled::of(&group.config);
        let config = &compiled.config;
        if config.mode == Mode::Observe || config.rules.tracks() {
            continue;
        }
        compiled.publish(&mut kernel);
        let snapshot = static_snapshot(&config.policy);
        let rules = rules::render(&config.policy, &snapshot, config.rules, INTERFACE);
        let rows = group.rows.iter();
        let rows: Vec<_> = rows.filter(|row| row.frame.len() <= LONGEST).collect();
        let frames: Vec<&[u8]> = rows.iter().map(|row| row.frame.as_slice()).collect();
        let verdicts = judge.verdicts(&rules, &frames)?;
        for (row, theirs) in rows.into_iter().zip(verdicts) {
            let ours = kernel.verdict(&row.frame);
            if ours != theirs {
                different.insert(found(&row.description, config.rules.default));
            }
        }
    }
    let listed = listed();
    let unlisted: Vec<_> = different
        .iter()
        .filter(|row| !listed.contains_key(*row))
        .collect();
    assert!(
        unlisted.is_empty(),
        "judged differently, and not listed: {unlisted:#?}"
    );
    let gone: Vec<_> = listed
        .iter()
        .filter(|(row, _)| !different.contains(*row))
        .collect();
    assert!(gone.is_empty(), "listed, and judged alike: {gone:#?}");
    Ok(())
}

/// Each row that differs, and why it may.
fn listed() -> BTreeMap<String, &'static str> {
    let mut listed = BTreeMap::new();
    for difference in DIFFERENCES {
        for row in difference.rows {
            for default in difference.defaults {
                listed.insert(found(row, *default), difference.why);
            }
        }
    }
    listed
}

fn found(row: &str, default: DefaultVerdict) -> String {
    format!("default {default:?}: {row}")
}

/// Random policies, and packets that hit their edges, in several shapes.
#[test]
fn nftables_agrees_on_random_scenarios() -> anyhow::Result<()> {
    require_nft!();
    let judge = Judge::new()?;
    let kernel = RefCell::new(Kernel::new());
    let (cases, packets) = if is_long() { (200, 190) } else { (12, 64) };
    let shape = (scenarios(0), vec(any::<u64>(), packets));
    let done = runner(cases).run(&shape, |(scenario, seeds)| {
        let (policy, snapshot) = (&scenario.policy, &scenario.snapshot);
        // Nothing in nftables is like tracking by what was sent.
        let rules = Rules {
            return_traffic: ReturnTraffic::Off,
            ..scenario.rules
        };
        let tables = compile(policy, snapshot, 1000, &Names::default()).expect("a small policy");
        let mut kernel = kernel.borrow_mut();
        kernel.publish_on(&tables, Mode::Enforce, rules, &[INTERFACE]);
        let sources = scenario.edges();
        let frames: Vec<Vec<u8>> = seeds.iter().map(|seed| random(*seed, &sources)).collect();
        let slices: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let text = rules::render(policy, snapshot, rules, INTERFACE);
        let verdicts = judge.verdicts(&text, &slices).expect("nftables judges");
        for (place, theirs) in verdicts.into_iter().enumerate() {
            let ours = kernel.verdict(&frames[place]);
            proptest::prop_assert_eq!(ours, theirs, "{:?} {:02x?}", scenario, &frames[place]);
        }
        Ok(())
    });
    done.unwrap_or_else(|error| panic!("{error}"));
    Ok(())
}

/// A packet from one of these sources, as it is, in a tag, with options, or a fragment of it.
fn random(seed: u64, sources: &[IpAddr]) -> Vec<u8> {
    let pick = |shift: u32, of: usize| (seed >> shift) as usize % of;
    let source = sources[pick(0, sources.len())];
    let text = source.to_string();
    let port = PORTS[pick(16, PORTS.len())];
    let protocol = [TCP, UDP, SCTP, icmp_of(&text), 47][pick(24, 5)];
    let whole = match protocol {
        TCP => tcp(&text, port),
        UDP => udp(&text, 40_000, port),
        SCTP => ported(SCTP, (&text, 40_000), (host(&text), port), 0),
        47 => packet(&text, 47, &[0; 8]),
        _ => icmp(&text, if source.is_ipv4() { 8 } else { 128 }),
    };
    match (pick(32, 4), source) {
        (1, _) => frame::tagged(whole, &[(0x8100, 5)]),
        (2, IpAddr::V4(_)) => with_options(&whole, 2),
        (3, _) => frame::later_fragment(source, ip(host(&text)), protocol, &[0xff; 32]),
        _ => whole,
    }
}
