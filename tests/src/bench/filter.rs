//! Measure 2, under random traffic: what a packet costs in the whole filter as it ships, beside a program that drops
//! everything and the small filter that somebody would write with the kernel's trie.
//!
//! A program in front of each gives a frame the next of a million sources, and hands it on; what that costs is
//! known by handing frames to the program that drops everything, and is taken off.

use allowlist_common::abi::PROGRAM;
use allowlist_tests::lab::frame;
use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::Xdp;

use crate::Effort;
use crate::programs::{self, ADDRESSES, InForce, XDP_DROP};
use crate::record::{Record, Sample};
use crate::traffic::{Family, List, Traffic};

pub(crate) const MEASURE: &str = "filter";
pub(crate) const UNIT: &str = "ns/packet";
/// What the others are compared with.
pub(crate) const BARE: &str = "XDP drop";
const TRIE: &str = "trie in XDP";
/// What ships, by its setting of `lookup`.
const OURS: [(&str, &str); 2] = [
    ("allowlist", "range-table"),
    ("allowlist, lpm-trie", "lpm-trie"),
];

const SEED: u64 = 20_260_103;
const XDP_PASS: u32 = 2;

/// What comes, and under which settings.
struct Case {
    name: &'static str,
    family: Family,
    prefixes: usize,
    traffic: Traffic,
    frame: fn(Family) -> Vec<u8>,
    /// On top of `default = "drop"`.
    keys: &'static str,
    /// How many services there are; the frames go to the last.
    services: u16,
    /// Whether the small filter can do it too: it knows UDP over IPv4 by its source, and drops or passes it.
    small_too: bool,
    says: u32,
}

const MISS: Case = Case {
    name: "UDP, nobody's",
    family: Family::V4,
    prefixes: 10_000,
    traffic: Traffic::Miss,
    frame: udp,
    keys: "",
    services: 1,
    small_too: true,
    says: XDP_DROP,
};
const HIT: Case = Case {
    name: "UDP, allowed",
    traffic: Traffic::Hit,
    says: XDP_PASS,
    ..MISS
};

const CASES: [Case; 14] = [
    MISS,
    Case {
        prefixes: 100_000,
        ..MISS
    },
    Case {
        name: "TCP, nobody's",
        frame: syn,
        small_too: false,
        ..MISS
    },
    Case {
        name: "in a VLAN, nobody's",
        frame: in_vlan,
        small_too: false,
        ..MISS
    },
    Case {
        name: "no service's, nobody's",
        frame: elsewhere,
        small_too: false,
        ..MISS
    },
    Case {
        name: "64 services, nobody's",
        services: 64,
        ..MISS
    },
    Case {
        name: "tracking, nobody's",
        keys: "return_traffic = 'track'",
        ..MISS
    },
    Case {
        name: "observed, nobody's",
        keys: "mode = 'observe'",
        small_too: false,
        says: XDP_PASS,
        ..MISS
    },
    Case {
        name: "IPv6, nobody's",
        family: Family::V6,
        small_too: false,
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
        small_too: false,
        ..HIT
    },
];

pub(crate) fn run(record: &mut Record, effort: &Effort) -> Result<()> {
    effort.say("filter: the whole filter under random traffic");
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
    let mut small = programs::load(&[programs::trie_room(&list)])?;
    if case.small_too {
        programs::fill_trie(&mut small, &list)?;
    }
    let mut filters = Vec::new();
    for (_, lookup) in OURS {
        let in_force = InForce::of(&list, &policy(case, lookup))?;
        let object = in_force.dataplane.load_program(0, false)?;
        filters.push((object, in_force));
    }
    let bare = programs::program(&small, "bare")?;
    let mut subjects = Vec::new();
    if case.small_too {
        subjects.push((TRIE, programs::program(&small, "drop_trie")?));
    }
    for ((name, _), (object, _)) in OURS.iter().zip(&filters) {
        let program: &Xdp = object.program(PROGRAM).context("no program")?.try_into()?;
        subjects.push((name, program));
    }
    for (name, program) in &subjects {
        let says = front.verdict(program)?;
        let wanted = case.says;
        ensure!(says == wanted, "{name} said {says}, and not {wanted}");
    }
    for round in 0..effort.rounds {
        let alone = programs::cost(bare, &front.frame, effort.burst)?;
        let handed = front.cost(bare, effort.burst)?;
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
        add(BARE, alone);
        for (name, program) in &subjects {
            add(name, front.cost(program, effort.burst)? - handed + alone);
        }
    }
    // The kernel takes a CPU for as long as it frees prefixes.
    std::mem::forget(small);
    Ok(())
}

fn policy(case: &Case, lookup: &str) -> String {
    let mut text = format!("default = 'drop'\nlookup = '{lookup}'\n{}\n", case.keys);
    let sources = InForce::sources();
    for service in (0..case.services).rev() {
        let port = PORT - service;
        text += &format!(
            "[services.s{service}]\nports = ['udp/{port}', 'tcp/{port}']\nallow = [{sources}]\n"
        );
    }
    text
}

/// What hands frames on.
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
            &addresses.context("a list has prefixes")?,
        )?;
        let frame = (case.frame)(case.family);
        let header = if is_tagged(&frame) { 18 } else { 14 };
        let (name, source) = match case.family {
            Family::V4 => ("front4", 12),
            Family::V6 => ("front6", 8),
        };
        let map = object.map_mut("SOURCE_AT").context("no SOURCE_AT")?;
        let mut at: Array<&mut MapData, u32> = map.try_into()?;
        at.set(0, header + source, 0)?;
        Ok(Self {
            object,
            name,
            frame,
        })
    }

    fn hand_to(&mut self, subject: &Xdp) -> Result<()> {
        let map = self.object.map_mut("SUBJECT").context("no SUBJECT")?;
        let mut programs: ProgramArray<&mut MapData> = map.try_into()?;
        programs.set(0, subject.fd()?, 0)?;
        Ok(())
    }

    fn cost(&mut self, subject: &Xdp, burst: u32) -> Result<f64> {
        self.hand_to(subject)?;
        programs::cost(
            programs::program(&self.object, self.name)?,
            &self.frame,
            burst,
        )
    }

    fn verdict(&mut self, subject: &Xdp) -> Result<u32> {
        self.hand_to(subject)?;
        let program = programs::program(&self.object, self.name)?;
        programs::verdict(program, &self.frame)
    }
}

/// The last service's.
const PORT: u16 = 4_433;

fn udp(family: Family) -> Vec<u8> {
    let (from, to) = family.ends(PORT);
    frame::udp(from, to, b"bench")
}

fn elsewhere(family: Family) -> Vec<u8> {
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
