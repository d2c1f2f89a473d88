//! Measure 4: the time to compile and publish a list, by the number of prefixes; and the number of packets with a wrong
//! verdict while lists are published one after the other, with packets on all CPUs.
//!
//! Two lists are published alternately. They differ in many prefixes, so that no publish is an in-place change.

use std::time::Instant;

use allowlist_common::abi::PROGRAM;
use allowlist_common::verdict::{Reason, Verdict};
use allowlist_dataplane::View;
use allowlist_tests::lab::{frame, with_background_load};
use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use ipnet::IpNet;

use crate::Effort;
use crate::programs::{self, PublishedList};
use crate::record::{Record, Sample, float};
use crate::traffic::{Family, List};

pub(crate) const MEASURE: &str = "publishes";
pub(crate) const UNIT: &str = "ms";
pub(crate) const WRONG: &str = "wrong verdicts";
pub(crate) const JUDGED: &str = "packets judged";

const PREFIXES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
const QUICK_PREFIXES: [usize; 2] = [1_000, 10_000];
/// The largest list for the kernel's trie: filling the trie with a larger one takes seconds.
const MOST_IN_TRIES: usize = 100_000;
const ENGINES: [(&str, &str); 2] = [("range table", "range-table"), ("lpm-trie", "lpm-trie")];
const SEED: u64 = 20_260_104;

/// The number of prefixes in each list of the measurement under load.
const LOADED: usize = 10_000;
/// The number of publishes in the measurement under load.
const PUBLISHES: usize = 1_000;
const QUICK_PUBLISHES: usize = 100;
/// A source address that both lists contain.
const LISTED: &str = "198.18.0.1";
/// A source address that neither list contains.
const UNLISTED: &str = "198.18.0.2";

pub(crate) fn run(record: &mut Record, effort: &Effort) -> Result<()> {
    let prefixes = if effort.is_quick {
        &QUICK_PREFIXES[..]
    } else {
        &PREFIXES[..]
    };
    for &count in prefixes {
        effort.announce(&format!("publishes: {count} prefixes"));
        for (name, lookup) in ENGINES {
            if lookup == "range-table" || count <= MOST_IN_TRIES {
                time(record, effort, count, (name, lookup)).context(name)?;
            }
        }
    }
    effort.announce("publishes: under load");
    under_load(record, effort)
}

fn policy(lookup: &str) -> String {
    let sources = PublishedList::sources();
    format!(
        "default = 'drop'\nlookup = '{lookup}'\n\
         [services.web]\nports = ['tcp/443']\nallow = [{sources}]\n"
    )
}

/// Returns two different lists of `count` prefixes each, to publish alternately.
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
    let mut active = PublishedList::publish_policy(&lists[0], &policy(lookup))?;
    let snapshots = [0, 1].map(|turn| PublishedList::snapshot(&lists[turn], None));
    // The first publish may have to enlarge the tables.
    for round in 0..=effort.rounds {
        let started = Instant::now();
        let tables = active.compile(&snapshots[(round + 1) % 2])?;
        let compiled = started.elapsed();
        active.publish(&tables)?;
        let published = started.elapsed();
        if round == 0 {
            continue;
        }
        for (case, elapsed) in [
            ("compiled", compiled),
            ("compiled and published", published),
        ] {
            record.add(Sample {
                measure: MEASURE,
                subject: name.to_owned(),
                case: case.to_owned(),
                prefixes: count,
                round: round - 1,
                value: elapsed.as_secs_f64() * 1e3,
                unit: UNIT,
            });
        }
    }
    Ok(())
}

/// Publishes the two lists alternately, while other threads run the program without a pause on frames from two sources:
/// one that both lists contain, and one that neither contains. Counts the wrong verdicts.
fn under_load(record: &mut Record, effort: &Effort) -> Result<()> {
    let publishes = if effort.is_quick {
        QUICK_PUBLISHES
    } else {
        PUBLISHES
    };
    let lists = lists(LOADED);
    let mut active = PublishedList::publish_policy(&lists[0], &policy(ENGINES[0].1))?;
    let listed: IpNet = format!("{LISTED}/32").parse()?;
    let mut tables = Vec::new();
    for list in &lists {
        let snapshot = PublishedList::snapshot(list, Some(listed));
        tables.push(active.compile(&snapshot)?);
    }
    // The first publishes may have to enlarge the tables, which replaces programs.
    for tables in &tables {
        active.publish(tables)?;
    }
    let object = active.dataplane.load_program(0, false)?;
    let program: &Xdp = object
        .program(PROGRAM)
        .with_context(|| format!("the filter's eBPF object has no program {PROGRAM}"))?
        .try_into()?;
    let view = View::open(active.scratch.pin_dir())?;
    let before = view.counters_of(0)?;
    let judge = |frame: &[u8], times| programs::cost(program, frame, times).map(drop);
    let frames = [LISTED, UNLISTED].map(|source| {
        let from = format!("{source}:1024").parse().expect("an address");
        let to = "198.51.100.1:443".parse().expect("an address");
        frame::tcp_syn(from, to)
    });
    let [allowed, dropped] = with_background_load(judge, frames, || {
        (0..publishes).try_for_each(|turn| active.publish(&tables[turn % 2]))
    })?;
    let after = view.counters_of(0)?;
    let counted = |verdict, reason| after.get(verdict, reason) - before.get(verdict, reason);
    let wrong = allowed.abs_diff(counted(Verdict::Pass, Reason::Allowed))
        + dropped.abs_diff(counted(Verdict::Drop, Reason::NotAllowed));
    let judged = allowed + dropped;
    ensure!(
        allowed > 0 && dropped > 0,
        "the background load sent no frame during the publishes, so nothing was measured"
    );
    for (value, unit) in [(wrong, WRONG), (judged, JUDGED)] {
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
