//! nftables as an oracle: the same policy as nftables rules in a separate namespace, which receives the same frames over a
//! link. The parser, sets and rules of nftables must produce the same verdicts as the filter.
//!
//! `rules` renders a policy; `judge` sends frames and reads their verdicts. [`DIFFERENCES`] lists the permitted differences
//! with their reasons. The test fails if an unlisted difference appears, or a listed one disappears.

mod judge;
mod rules;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use allowlist_common::packet::{SCTP, TCP, UDP};
use allowlist_policy::compile::{IdTable, compile};
use allowlist_policy::{Mode, ReturnTraffic, Rules, Verdict};
use allowlist_tests::lab::frame;
use allowlist_tests::model::policy_strategies::scenarios;
use allowlist_tests::model::static_snapshot;
use allowlist_tests::{require_root, skip};
use proptest::collection::vec;
use proptest::prelude::any;

use crate::check::Compiled;
use crate::frames::{groups, host, icmp, icmp_of, ip, packet, ported, tcp, udp, with_options};
use crate::kernel::{INTERFACE, Kernel};
use crate::{is_long, runner};

use judge::Judge;

/// Ports at the edges of the ranges of random policies, and adjacent ones.
const PORTS: [u16; 10] = [1, 2, 22, 80, 443, 444, 445, 8080, 65_534, 65_535];

/// The maximum frame length of the link.
const LONGEST: usize = 1514;

/// Rows for which nftables and the filter have different verdicts.
struct Difference {
    why: &'static str,
    /// The default verdicts under which the verdicts differ; under the other one, they are equal by chance.
    defaults: &'static [Verdict],
    rows: &'static [&'static str],
}

const BOTH: &[Verdict] = &[Verdict::Pass, Verdict::Drop];
const PASS: &[Verdict] = &[Verdict::Pass];
const DROP: &[Verdict] = &[Verdict::Drop];

const DIFFERENCES: &[Difference] = &[
    Difference {
        why: "the kernel removes one tag, and nftables does not recognise IP behind another one",
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
            "three tags around TCP",
            "three tags, 802.1ad outside",
            "three tags around LLDP",
        ],
    },
    Difference {
        why: "at ingress, nftables treats padding as part of the packet",
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
        why: "nftables treats an authentication header as the transport header",
        defaults: PASS,
        rows: &["an authentication header past the packet"],
    },
    Difference {
        why: "nftables treats an authentication header as the transport header",
        defaults: DROP,
        rows: &[
            "authentication header, vendor",
            "a first fragment whose options are behind its header, vendor",
            "AH over IPv6 is skipped",
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
        why: "nftables reads only the first of two fragment headers, which is not that of a later fragment",
        defaults: DROP,
        rows: &["a fragment inside a fragment"],
    },
];

/// Skips the test if `nft` is not installed.
macro_rules! require_nft {
    () => {
        require_root!();
        if !judge::is_installed() {
            skip!("`nft` is not installed: run `apt-get install nftables`");
        }
    };
}

/// Compares all groups of frames except those with flow tracking or in observe mode.
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
        for (row, by_nftables) in rows.into_iter().zip(verdicts) {
            let by_filter = kernel.verdict(&row.frame);
            if by_filter != by_nftables {
                different.insert(key(&row.description, config.rules.default));
            }
        }
    }
    let listed = listed();
    let unlisted: Vec<_> = different
        .iter()
        .filter(|row| !listed.contains_key(*row))
        .collect();
    assert!(unlisted.is_empty(), "unlisted differences: {unlisted:#?}");
    let gone: Vec<_> = listed
        .iter()
        .filter(|(row, _)| !different.contains(*row))
        .collect();
    assert!(
        gone.is_empty(),
        "listed differences without effect: {gone:#?}"
    );
    Ok(())
}

/// Returns the permitted differences with their reasons.
fn listed() -> BTreeMap<String, &'static str> {
    let mut listed = BTreeMap::new();
    for difference in DIFFERENCES {
        for row in difference.rows {
            for default in difference.defaults {
                listed.insert(key(row, *default), difference.why);
            }
        }
    }
    listed
}

fn key(row: &str, default: Verdict) -> String {
    format!("default {default:?}: {row}")
}

/// Compares random policies, with packets of several forms at the edges of prefixes and port ranges.
#[test]
fn nftables_agrees_on_random_scenarios() -> anyhow::Result<()> {
    require_nft!();
    let judge = Judge::new()?;
    let kernel = RefCell::new(Kernel::new());
    let (cases, packets) = if is_long() { (200, 190) } else { (12, 64) };
    let shape = (scenarios(0), vec(any::<u64>(), packets));
    let done = runner(cases).run(&shape, |(scenario, seeds)| {
        let (policy, snapshot) = (&scenario.policy, &scenario.snapshot);
        // nftables has no equivalent of the flow table at ingress.
        let rules = Rules {
            return_traffic: ReturnTraffic::Off,
            ..scenario.rules
        };
        let tables = compile(policy, snapshot, 1000, &IdTable::default()).expect("a small policy");
        let mut kernel = kernel.borrow_mut();
        kernel.publish_on(&tables, Mode::Enforce, rules, &[INTERFACE]);
        let sources = scenario.edges();
        let frames: Vec<Vec<u8>> = seeds.iter().map(|seed| random(*seed, &sources)).collect();
        let slices: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let text = rules::render(policy, snapshot, rules, INTERFACE);
        let verdicts = judge
            .verdicts(&text, &slices)
            .expect("verdicts of nftables");
        for (index, by_nftables) in verdicts.into_iter().enumerate() {
            let by_filter = kernel.verdict(&frames[index]);
            proptest::prop_assert_eq!(
                by_filter,
                by_nftables,
                "{:?} {:02x?}",
                scenario,
                &frames[index]
            );
        }
        Ok(())
    });
    done.unwrap_or_else(|error| panic!("{error}"));
    Ok(())
}

/// Generates a packet from one of the sources: unchanged, tagged, with options, or as a later fragment.
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
