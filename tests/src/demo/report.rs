//! Prints the decisions as text or as JSON, and lists the packets whose counter or delivery differs from the expectation.
//!
//! Invariant: only the result is written to standard output; with JSON, exactly one document.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;

use allowlist_common::abi::Counters;
use allowlist_common::verdict::Verdict;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde::Serialize;

use super::counters;
use super::egress::Attempt;
use super::fixtures::{Decision, Owner, Port};
use super::probe::Observed;
use super::topology::INTERFACE;

/// The number of rows for consecutive packets that differ only in the source address; one more row counts the others.
const SHOWN: usize = 3;

/// Prints a table and the counters.
pub(crate) fn text(observed: &[Observed], counters: &Counters) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "source",
        "belongs to",
        "port",
        "verdict",
        "reason",
        "delivered",
    ]);
    for alike in observed.chunk_by(is_like) {
        // A summary line instead of a single row would not make the table shorter.
        let shown = if alike.len() > SHOWN + 1 {
            SHOWN
        } else {
            alike.len()
        };
        for one in &alike[..shown] {
            table.add_row(row(one.packet.source.to_string(), one));
        }
        if shown < alike.len() {
            table.add_row(row(
                format!("… {} more like these", alike.len() - shown),
                &alike[0],
            ));
        }
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{table}\n")?;
    writeln!(
        out,
        "Counted by the kernel (a connection that succeeds is two packets to the host):"
    )?;
    for (decision, count) in counters::all(counters).filter(|(_, count)| *count > 0) {
        writeln!(out, "{count:>6}  {decision}")?;
    }
    writeln!(out)
}

/// Prints all results as one JSON document.
pub(crate) fn json(
    observed: &[Observed],
    counters: &Counters,
    attempts: Option<&[Attempt]>,
) -> io::Result<()> {
    let document = Document {
        egress: attempts,
        packets: observed.iter().map(PacketLine::new).collect(),
        counters: [(INTERFACE, by_verdict_and_reason(counters))].into(),
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &document)?;
    writeln!(out)
}

/// Prints the results of the programs that the egress policy judges.
pub(crate) fn egress(attempts: Option<&[Attempt]>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let Some(attempts) = attempts else {
        return writeln!(
            out,
            "\nThe egress policy is not shown: cgroup v2 is not mounted on this machine."
        );
    };
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["program in", "resolves", "and connects to", "result"]);
    for attempt in attempts {
        table.add_row([
            &attempt.unit,
            &attempt.name,
            &format!("{} tcp/{}", attempt.address, attempt.port),
            &attempt.result,
        ]);
    }
    writeln!(
        out,
        "\nThe egress policy allows what a local name server answers for the name to programs in the cgroup\n\
         alerts only:\n{table}\n"
    )
}

#[derive(Serialize)]
struct Document<'d> {
    /// The results of the programs that the egress policy judges, or null without cgroup v2.
    egress: Option<&'d [Attempt]>,
    packets: Vec<PacketLine>,
    counters: BTreeMap<&'static str, CountersByName>,
}

#[derive(Serialize)]
struct PacketLine {
    source: IpAddr,
    /// The name of the configured source that the address belongs to, or null.
    provider: Option<&'static str>,
    port: String,
    verdict: Option<&'static str>,
    reason: Option<&'static str>,
    delivered: bool,
}

type CountersByName = BTreeMap<&'static str, BTreeMap<&'static str, u64>>;

impl PacketLine {
    fn new(observed: &Observed) -> Self {
        let decision = observed.decision();
        Self {
            source: observed.packet.source,
            provider: observed.packet.owner.source(),
            port: observed.packet.port.to_string(),
            verdict: decision.map(|decision| decision.verdict.name()),
            reason: decision.map(|decision| decision.reason.name()),
            delivered: observed.delivered,
        }
    }
}

fn by_verdict_and_reason(counters: &Counters) -> CountersByName {
    let mut by_name = CountersByName::new();
    for (Decision { verdict, reason }, count) in counters::all(counters) {
        by_name
            .entry(verdict.name())
            .or_default()
            .insert(reason.name(), count);
    }
    by_name
}

/// Returns a line for each packet whose counter or delivery is not as expected.
pub(crate) fn disagreements(observed: &[Observed]) -> Vec<String> {
    observed.iter().filter_map(disagreement).collect()
}

fn disagreement(observed: &Observed) -> Option<String> {
    let Observed {
        packet,
        decisions,
        delivered,
    } = observed;
    let expected = packet.expected;
    if *decisions == [expected] && *delivered == (expected.verdict == Verdict::Pass) {
        return None;
    }
    let counted = match &decisions[..] {
        [] => "nothing".to_owned(),
        several => several
            .iter()
            .map(Decision::to_string)
            .collect::<Vec<_>>()
            .join(" and "),
    };
    let delivery = if *delivered {
        "received it"
    } else {
        "did not receive it"
    };
    Some(format!(
        "{} ({}) to {}: expected {expected}; the kernel counted {counted}, and the socket {delivery}",
        packet.source, packet.owner, packet.port
    ))
}

/// Returns the values of the columns after the source address.
fn cells(observed: &Observed) -> (Owner, Port, Option<Decision>, bool) {
    (
        observed.packet.owner,
        observed.packet.port,
        observed.decision(),
        observed.delivered,
    )
}

fn is_like(one: &Observed, next: &Observed) -> bool {
    cells(one) == cells(next)
}

fn row(source: String, observed: &Observed) -> [String; 6] {
    let (owner, port, decision, delivered) = cells(observed);
    let (verdict, reason) = decision.map_or(("?", "?"), |decision| {
        (decision.verdict.name(), decision.reason.name())
    });
    [
        source,
        owner.to_string(),
        port.to_string(),
        verdict.to_owned(),
        reason.to_owned(),
        if delivered { "yes" } else { "no" }.to_owned(),
    ]
}
