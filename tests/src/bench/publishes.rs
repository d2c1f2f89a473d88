//! Measure 4: how long it takes to compile a whole list and to put it in force, by the number of prefixes; and how many
//! packets are misjudged while lists are put in force one after the other, on both CPUs.
//!
//! Two lists take turns, which differ in many prefixes, so that no publish is a change in place.

use std::time::Instant;

use allowlist_common::abi::PROGRAM;
use allowlist_common::verdict::{Reason, Verdict};
use allowlist_tests::lab::{frame, with_background_load};
use allowlist_user::dataplane::View;
use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use ipnet::IpNet;

use crate::Effort;
use crate::programs::{self, InForce};
use crate::record::{Record, Sample, float};
use crate::traffic::{Family, List};

pub(crate) const MEASURE: &str = "publishes";
pub(crate) const UNIT: &str = "ms";
pub(crate) const MISJUDGED: &str = "packets misjudged";
pub(crate) const JUDGED: &str = "packets judged meanwhile";

const PREFIXES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
const QUICK_PREFIXES: [usize; 2] = [1_000, 10_000];
/// The kernel's tries take seconds to fill with more.
const MOST_IN_TRIES: usize = 100_000;
const ENGINES: [(&str, &str); 2] = [("range table", "range-table"), ("lpm-trie", "lpm-trie")];
const SEED: u64 = 20_260_104;

/// Under load.
const LOADED: usize = 10_000;
const PUBLISHES: usize = 1_000;
const QUICK_PUBLISHES: usize = 100;
/// Of both lists, and of neither.
const FRIEND: &str = "198.18.0.1";
const STRANGER: &str = "198.18.0.2";

pub(crate) fn run(record: &mut Record, effort: &Effort) -> Result<()> {
    let prefixes = if effort.is_quick {
        &QUICK_PREFIXES[..]
    } else {
        &PREFIXES[..]
    };
    for &count in prefixes {
        effort.say(&format!("publishes: {count} prefixes"));
        for (name, lookup) in ENGINES {
            if lookup == "range-table" || count <= MOST_IN_TRIES {
                time(record, effort, count, (name, lookup)).context(name)?;
            }
        }
    }
    effort.say("publishes: under load");
    under_load(record, effort)
}

fn policy(lookup: &str) -> String {
    let sources = InForce::sources();
    format!(
        "default = 'drop'\nlookup = '{lookup}'\n\
         [services.web]\nports = ['tcp/443']\nallow = [{sources}]\n"
    )
}

/// Two lists.
fn lists(count: usize) -> [List; 2] {
    [0, 1].map(|turn| List::new(Family::V4, count, SEED + turn))
}

fn time(
    record: &mut Record,
    effort: &Effort,
    count: usize,
    (name, lookup): (&str, &str),
) -> Result<()> {
    let lists = lists(count);
    let mut in_force = InForce::of(&lists[0], &policy(lookup))?;
    let snapshots = [0, 1].map(|turn| InForce::snapshot(&lists[turn], None));
    // The first one may have to make room.
    for round in 0..=effort.rounds {
        let started = Instant::now();
        let tables = in_force.compile(&snapshots[(round + 1) % 2])?;
        let compiled = started.elapsed();
        in_force.publish(&tables)?;
        let published = started.elapsed();
        if round == 0 {
            continue;
        }
        for (case, took) in [("compiled", compiled), ("compiled and in force", published)] {
            record.add(Sample {
                measure: MEASURE,
                subject: name.to_owned(),
                case: case.to_owned(),
                prefixes: count,
                round: round - 1,
                value: took.as_secs_f64() * 1e3,
                unit: UNIT,
            });
        }
    }
    Ok(())
}

/// Frames of somebody who is in both lists, and of somebody who is in none, judged without a pause while they are put in
/// force.
fn under_load(record: &mut Record, effort: &Effort) -> Result<()> {
    let publishes = if effort.is_quick {
        QUICK_PUBLISHES
    } else {
        PUBLISHES
    };
    let lists = lists(LOADED);
    let mut in_force = InForce::of(&lists[0], &policy(ENGINES[0].1))?;
    let friend: IpNet = format!("{FRIEND}/32").parse()?;
    let mut tables = Vec::new();
    for list in &lists {
        let snapshot = InForce::snapshot(list, Some(friend));
        tables.push(in_force.compile(&snapshot)?);
    }
    // The first ones may have to make room, which replaces programs.
    for tables in &tables {
        in_force.publish(tables)?;
    }
    let object = in_force.dataplane.load_program(0, false)?;
    let program: &Xdp = object.program(PROGRAM).context("no program")?.try_into()?;
    let view = View::open(in_force.scratch.pin_dir())?;
    let before = view.counters_of(0)?;
    let judge = |frame: &[u8], times| programs::cost(program, frame, times).map(drop);
    let frames = [FRIEND, STRANGER].map(|source| {
        let from = format!("{source}:1024").parse().expect("an address");
        let to = "198.51.100.1:443".parse().expect("an address");
        frame::tcp_syn(from, to)
    });
    let [friends, strangers] = with_background_load(judge, frames, || {
        (0..publishes).try_for_each(|turn| in_force.publish(&tables[turn % 2]))
    })?;
    let after = view.counters_of(0)?;
    let counted = |verdict, reason| after.get(verdict, reason) - before.get(verdict, reason);
    let misjudged = friends.abs_diff(counted(Verdict::Pass, Reason::Allowed))
        + strangers.abs_diff(counted(Verdict::Drop, Reason::NotAllowed));
    let judged = friends + strangers;
    ensure!(
        friends > 0 && strangers > 0,
        "no packet was judged meanwhile"
    );
    for (value, unit) in [(misjudged, MISJUDGED), (judged, JUDGED)] {
        record.add(Sample {
            measure: MEASURE,
            subject: ENGINES[0].0.to_owned(),
            case: format!("{publishes} publishes"),
            prefixes: LOADED,
            round: 0,
            value: float(value),
            unit,
        });
    }
    Ok(())
}
