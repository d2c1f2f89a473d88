//! Measure 2, under random traffic: the cost of a packet in the whole filter, in a program that drops everything, and in
//! a minimal filter with the kernel's trie.
//!
//! A front program writes the next of a million source addresses into each frame, and tail-calls the subject. The cost of
//! the front program is measured with the program that drops everything, and subtracted.

use allowlist_common::abi::PROGRAM;
use allowlist_tests::lab::frame;
use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::Xdp;

use crate::Effort;
use crate::programs::{self, ADDRESSES, PublishedList, XDP_DROP};
use crate::record::{Record, Sample};
use crate::traffic::{Family, List, Traffic};

pub(crate) const MEASURE: &str = "filter";
pub(crate) const UNIT: &str = "ns/packet";
/// The name of the subject that is the baseline of the ratios: a program that drops every packet.
pub(crate) const BARE: &str = "XDP drop";
const TRIE: &str = "trie in XDP";
/// The names of the subjects that are the shipped filter, each with its value of the key `lookup`.
const OURS: [(&str, &str); 2] = [
    ("allowlist", "range-table"),
    ("allowlist, lpm-trie", "lpm-trie"),
];

const SEED: u64 = 20_260_103;
const XDP_PASS: u32 = 2;

/// A kind of packet, and the configuration under which it is measured.
struct Case {
    name: &'static str,
    family: Family,
    prefixes: usize,
    traffic: Traffic,
    frame: fn(Family) -> Vec<u8>,
    /// Configuration keys in addition to `default = "drop"`.
    keys: &'static str,
    /// The number of services; the frames are sent to the last one.
    services: u16,
    /// Whether the minimal filter is measured too: it drops or passes UDP over IPv4 by a lookup of the source address
    /// in the kernel's trie.
    in_small_filter: bool,
    expected: u32,
}

const MISS: Case = Case {
    name: "UDP, not allowed",
    family: Family::V4,
    prefixes: 10_000,
    traffic: Traffic::Miss,
    frame: udp,
    keys: "",
    services: 1,
    in_small_filter: true,
    expected: XDP_DROP,
};
const HIT: Case = Case {
    name: "UDP, allowed",
    traffic: Traffic::Hit,
    expected: XDP_PASS,
    ..MISS
};

const CASES: [Case; 14] = [
    MISS,
    Case {
        prefixes: 100_000,
        ..MISS
    },
    Case {
        name: "TCP, not allowed",
        frame: syn,
        in_small_filter: false,
        ..MISS
    },
    Case {
        name: "in a VLAN, not allowed",
        frame: in_vlan,
        in_small_filter: false,
        ..MISS
    },
    Case {
        name: "to no service, not allowed",
        frame: udp_to_no_service,
        in_small_filter: false,
        ..MISS
    },
    Case {
        name: "64 services, not allowed",
        services: 64,
        ..MISS
    },
    Case {
        name: "tracking, not allowed",
        keys: "return_traffic = 'track'",
        ..MISS
    },
    Case {
        name: "observed, not allowed",
        keys: "mode = 'observe'",
        in_small_filter: false,
        expected: XDP_PASS,
        ..MISS
    },
    Case {
        name: "IPv6, not allowed",
        family: Family::V6,
        in_small_filter: false,
        ..MISS
    },
    HIT,
    Case {
        prefixes: 100_000,
        ..HIT
    },
    Case {
        name: "tracking, allowed",
        keys: "return_traffic = 'track'",
        ..HIT
    },
    Case {
        name: "64 services, allowed",
        services: 64,
        ..HIT
    },
    Case {
        name: "IPv6, allowed",
        family: Family::V6,
        in_small_filter: false,
        ..HIT
    },
];

pub(crate) fn run(record: &mut Record, effort: &Effort) -> Result<()> {
    effort.announce("filter: the whole filter under random traffic");
    let cases = if effort.is_quick {
        &CASES[..1]
    } else {
        &CASES[..]
    };
    for case in cases {
        measure(record, effort, case).context(case.name)?;
    }
    Ok(())
}

fn measure(record: &mut Record, effort: &Effort, case: &Case) -> Result<()> {
    let list = List::new(case.family, case.prefixes, SEED);
    let mut front = Front::new(&list, case)?;
    let mut small = programs::load(&[programs::trie_capacity(&list)])?;
    if case.in_small_filter {
        programs::fill_trie(&mut small, &list)?;
    }
    let mut filters = Vec::new();
    for (_, lookup) in OURS {
        let published = PublishedList::publish_policy(&list, &policy(case, lookup))?;
        let object = published.dataplane.load_program(0, false)?;
        filters.push((object, published));
    }
    let bare = programs::program(&small, "bare")?;
    let mut subjects = Vec::new();
    if case.in_small_filter {
        subjects.push((TRIE, programs::program(&small, "drop_trie")?));
    }
    for ((name, _), (object, _)) in OURS.iter().zip(&filters) {
        let program: &Xdp = object
            .program(PROGRAM)
            .with_context(|| format!("the filter's eBPF object has no program {PROGRAM}"))?
            .try_into()?;
        subjects.push((name, program));
    }
    for (name, program) in &subjects {
        let verdict = front.verdict(program)?;
        let expected = case.expected;
        ensure!(
            verdict == expected,
            "program {name}: the verdict on the benchmark's packet is {verdict}, not {expected} (1 is drop, 2 is pass)"
        );
    }
    for round in 0..effort.rounds {
        let direct = programs::cost(bare, &front.frame, effort.burst)?;
        let through_front = front.cost(bare, effort.burst)?;
        let mut add = |subject: &str, value: f64| {
            record.add(Sample {
                measure: MEASURE,
                subject: subject.to_owned(),
                case: case.name.to_owned(),
                prefixes: case.prefixes,
                round,
                value,
                unit: UNIT,
            });
        };
        add(BARE, direct);
        for (name, program) in &subjects {
            add(
                name,
                front.cost(program, effort.burst)? - through_front + direct,
            );
        }
    }
    // Freeing the prefixes would occupy a CPU during the next measurement.
    std::mem::forget(small);
    Ok(())
}

fn policy(case: &Case, lookup: &str) -> String {
    let mut text = format!("default = 'drop'\nlookup = '{lookup}'\n{}\n", case.keys);
    let sources = PublishedList::sources();
    for service in (0..case.services).rev() {
        let port = PORT - service;
        text += &format!(
            "[services.s{service}]\nports = ['udp/{port}', 'tcp/{port}']\nallow = [{sources}]\n"
        );
    }
    text
}

/// The program that writes a source address into each frame and tail-calls a subject.
struct Front {
    object: Ebpf,
    name: &'static str,
    frame: Vec<u8>,
}

impl Front {
    fn new(list: &List, case: &Case) -> Result<Self> {
        let mut object = programs::load(&[])?;
        let addresses = list.addresses(case.traffic, ADDRESSES, SEED);
        programs::set_addresses(
            &mut object,
            list.family,
            &addresses
                .context("the benchmark's list has no prefix to draw source addresses from")?,
        )?;
        let frame = (case.frame)(case.family);
        let header = if is_tagged(&frame) { 18 } else { 14 };
        let (name, source) = match case.family {
            Family::V4 => ("front4", 12),
            Family::V6 => ("front6", 8),
        };
        let map = object
            .map_mut("SOURCE_AT")
            .with_context(|| programs::no_map("SOURCE_AT"))?;
        let mut at: Array<&mut MapData, u32> = map.try_into()?;
        at.set(0, header + source, 0)?;
        Ok(Self {
            object,
            name,
            frame,
        })
    }

    fn set_subject(&mut self, subject: &Xdp) -> Result<()> {
        let map = self
            .object
            .map_mut("SUBJECT")
            .with_context(|| programs::no_map("SUBJECT"))?;
        let mut programs: ProgramArray<&mut MapData> = map.try_into()?;
        programs.set(0, subject.fd()?, 0)?;
        Ok(())
    }

    fn cost(&mut self, subject: &Xdp, burst: u32) -> Result<f64> {
        self.set_subject(subject)?;
        programs::cost(
            programs::program(&self.object, self.name)?,
            &self.frame,
            burst,
        )
    }

    fn verdict(&mut self, subject: &Xdp) -> Result<u32> {
        self.set_subject(subject)?;
        let program = programs::program(&self.object, self.name)?;
        programs::verdict(program, &self.frame)
    }
}

/// The destination port of the frames, which the last service covers.
const PORT: u16 = 4_433;

fn udp(family: Family) -> Vec<u8> {
    let (from, to) = family.ends(PORT);
    frame::udp(from, to, b"bench")
}

fn udp_to_no_service(family: Family) -> Vec<u8> {
    let (from, to) = family.ends(PORT + 1);
    frame::udp(from, to, b"bench")
}

fn syn(family: Family) -> Vec<u8> {
    let (from, to) = family.ends(PORT);
    frame::tcp_syn(from, to)
}

fn in_vlan(family: Family) -> Vec<u8> {
    frame::tagged(udp(family), &[(0x8100, 7)])
}

fn is_tagged(frame: &[u8]) -> bool {
    frame[12..14] == [0x81, 0x00]
}
