//! Why a new packet of an address would pass, or not: as the kernel decides it now.
//!
//! The verdicts are the kernel's own tables', asked by the order of decisions that ships. The record on disk
//! has the words, and costs nothing else where it is missing. Needs no daemon.

use std::collections::BTreeMap;
use std::path::Path;

use allowlist_common::abi::{Control, ReturnTraffic, Traffic};
use allowlist_common::judge::Decision;
use allowlist_common::verdict::{Reason, Verdict};
use anyhow::{Result, bail};
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::status::by_name;
use super::{Epoch, Report, ago, table};
use crate::dataplane::{Attachment, Lookup, View, clock};
use crate::explain::{Question, Row, Target, rows};
use crate::record::{Record, SourceRecord};

/// The answer to a [`Question`].
pub struct Explanation {
    question: Question,
    control: Control,
    /// Interfaces on which everything is decided alike, and how; none where nothing is filtered.
    interfaces: Vec<(Vec<String>, Vec<Reached>)>,
    /// The longest first.
    prefixes: Vec<Matching>,
    /// By name: those behind the prefixes.
    sources: BTreeMap<String, Behind>,
    /// With tracking: how many flows this host has with the address, whose answers pass.
    flows: Option<usize>,
    is_recorded: bool,
    now: Timestamp,
    epoch: Epoch,
}

/// What is decided alike, in words.
struct Reached {
    row: Row,
    /// The services that cover it.
    services: Vec<String>,
    /// The sources that let it in.
    sources: Vec<String>,
}

/// A prefix that holds the address.
struct Matching {
    prefix: IpNet,
    services: Vec<String>,
    /// Those that list it or a wider one.
    sources: Vec<String>,
    /// Those that list it no more, and until when it stays.
    held: Vec<(String, Timestamp)>,
}

/// A source that lists a prefix that holds the address.
struct Behind {
    record: Option<SourceRecord>,
    traffic: Traffic,
}

impl Explanation {
    /// Asks the kernel; the words are the record's in `state_dir`.
    pub fn read(pin_dir: &Path, state_dir: &Path, question: Question) -> Result<Self> {
        let view = View::open(pin_dir)?;
        let lookup = view.lookup()?;
        let loaded = Record::load(state_dir);
        let is_recorded = loaded.is_some();
        let record = loaded.unwrap_or_default();
        let mut interfaces: Vec<(Vec<String>, Vec<Reached>)> = Vec::new();
        for attachment in asked(view.attachments()?, question.interface.as_deref())? {
            let rows = reached(&lookup, attachment.slot, &question)?;
            let alike = interfaces
                .iter_mut()
                .find(|(_, known)| known.iter().map(|one| &one.row).eq(&rows));
            match alike {
                Some((names, _)) => names.push(attachment.name),
                None => {
                    let rows = rows.into_iter().map(|row| Reached::new(row, &record));
                    interfaces.push((vec![attachment.name], rows.collect()));
                }
            }
        }
        let traffic = view.traffic(record.names.matches.len())?;
        let traffic = by_name(&record.names.matches, &traffic, Traffic::plus);
        let prefixes: Vec<Matching> = lookup
            .containing(question.address)?
            .into_iter()
            .map(|entry| Matching::new(entry.prefix, entry.grant.matched, &record))
            .collect();
        let sources = prefixes.iter().flat_map(|matching| &matching.sources);
        let sources = sources.map(|name| {
            let behind = Behind {
                record: record.sources.get(name).cloned(),
                traffic: traffic.get(name).copied().unwrap_or_default(),
            };
            (name.clone(), behind)
        });
        let control = *lookup.control();
        let flows = (control.return_traffic == ReturnTraffic::Track)
            .then(|| lookup.flows_with(question.address));
        let now = Timestamp::now();
        Ok(Self {
            control,
            interfaces,
            sources: sources.collect(),
            prefixes,
            flows,
            is_recorded,
            now,
            epoch: Epoch::new(now, clock()),
            question,
        })
    }

    /// Whether anything that was asked would be dropped, or is where drops are carried out.
    pub fn is_dropped(&self) -> bool {
        self.rows()
            .any(|reached| reached.row.decision.verdict == Verdict::Drop)
    }

    fn rows(&self) -> impl Iterator<Item = &Reached> {
        self.interfaces.iter().flat_map(|(_, rows)| rows)
    }

    fn headline(&self) -> String {
        let address = self.question.address;
        let mut text = match (self.question.target, &self.interfaces[..]) {
            (_, []) => {
                return format!("{address} passes: the filter is on no interface\n");
            }
            (Some(target), [(names, rows)]) => {
                let verdict = rows
                    .first()
                    .map_or(Verdict::Drop, |one| one.row.decision.verdict);
                let becomes = match (verdict, self.control.observe) {
                    (Verdict::Pass, _) => "passes",
                    (Verdict::Drop, false) => "is dropped",
                    (Verdict::Drop, true) => "would be dropped",
                };
                format!("{address} to {target} on {} {becomes}", names.join(", "))
            }
            (Some(target), _) => format!("{address} to {target}, by interface"),
            (None, _) => format!("what {address} reaches"),
        };
        text += &format!("; generation {}\n", self.control.generation);
        if self.control.observe {
            text += "mode observe: everything passes all the same; these are the verdicts that enforce would carry out\n";
        }
        text
    }

    fn rows_text(&self, rows: &[Reached]) -> String {
        if let (Some(_), [reached]) = (self.question.target, rows) {
            let decision = reached.row.decision;
            return format!(
                "{} {}: {}\n",
                decision.verdict.name(),
                decision.reason.name(),
                self.why(reached)
            );
        }
        let mut table = table(&["verdict", "reason", "service", "ports", "why"], &[]);
        for reached in rows {
            let decision = reached.row.decision;
            let is_rest = decision.service == 0 && rows.len() > 1;
            table.add_row([
                decision.verdict.name().to_owned(),
                decision.reason.name().to_owned(),
                match &reached.services[..] {
                    [] => "-".to_owned(),
                    some => some.join(" "),
                },
                if is_rest {
                    "everything else".to_owned()
                } else {
                    reached.row.ports.join(" ")
                },
                self.why(reached),
            ]);
        }
        format!("{table}\n")
    }

    /// The step of docs/packets.md that decided, in words.
    fn why(&self, reached: &Reached) -> String {
        let services = named(&reached.services, "a service that the record does not know");
        let address = self.question.address;
        match reached.row.decision.reason {
            Reason::Allowed => format!(
                "step 4: {services} covers it and allows {}, which lists {address}",
                named(&reached.sources, "a source that the record does not know")
            ),
            Reason::NotAllowed if self.prefixes.is_empty() => {
                format!("step 4: {services} covers it, and no source lists {address}")
            }
            Reason::NotAllowed => {
                format!("step 4: {services} covers it, and allows no source that lists {address}")
            }
            Reason::Default => format!(
                "step 6: no service covers it, and default = \"{}\"",
                self.control.default_verdict.name()
            ),
            Reason::InternalError => {
                "nothing was published yet, so there is nothing that could let anybody in"
                    .to_owned()
            }
            // None of what is asked about ends so.
            other => format!("as {}", other.name()),
        }
    }

    fn row_json(&self, reached: &Reached) -> Value {
        let Decision {
            verdict, reason, ..
        } = reached.row.decision;
        json!({
            "ports": reached.row.ports,
            "verdict": verdict.name(),
            "reason": reason.name(),
            "step": step(reason),
            "why": self.why(reached),
            "services": reached.services,
            "sources": reached.sources,
        })
    }

    fn source_json(&self, behind: &Behind) -> Value {
        let record = behind.record.as_ref();
        json!({
            "state": record.map(|one| one.state(self.now)),
            "origin": record.map(|one| &one.origin),
            "regions": record.map(|one| &one.regions),
            "fetched": record.map(|one| one.fetched),
            "age_seconds": record.and_then(|one| Some(self.age(one.fetched?))),
            "failure": record.and_then(|one| one.failure.as_ref()),
            "passed_packets": behind.traffic.packets,
            "last_passed": self.last(behind.traffic),
        })
    }

    /// The prefixes, and the sources behind them.
    fn sources_text(&self) -> String {
        if self.prefixes.is_empty() {
            return format!("\nno prefix in force holds {}\n", self.question.address);
        }
        let mut prefixes = table(&["prefix", "reaches", "listed by", "held"], &[]);
        for matching in &self.prefixes {
            let held = matching.held.iter();
            let held = held.map(|(source, until)| format!("for {source} until {until:.0}"));
            prefixes.add_row([
                matching.prefix.to_string(),
                matching.services.join(" "),
                matching.sources.join(" "),
                match held.collect::<Vec<_>>().join(", ") {
                    none if none.is_empty() => "-".to_owned(),
                    held => held,
                },
            ]);
        }
        let mut text = format!("\n{prefixes}\n");
        if !self.is_recorded {
            return text
                + "\nnothing is known of services and sources: no record in this state directory\n";
        }
        let mut sources = table(
            &["source", "state", "age", "last hit", "regions", "from"],
            &[2, 3],
        );
        for (name, behind) in &self.sources {
            let Some(record) = &behind.record else {
                continue;
            };
            sources.add_row([
                name.clone(),
                record.state(self.now).to_owned(),
                record
                    .fetched
                    .map_or_else(|| "-".to_owned(), |fetched| ago(self.age(fetched))),
                self.last(behind.traffic)
                    .map_or_else(|| "never".to_owned(), |time| ago(self.age(time))),
                match &record.regions[..] {
                    [] => "-".to_owned(),
                    some => some.join(" "),
                },
                record.origin.clone(),
            ]);
        }
        text += &format!("\n{sources}\n");
        text
    }

    fn last(&self, traffic: Traffic) -> Option<Timestamp> {
        (traffic.last != 0).then(|| self.epoch.time(traffic.last))
    }

    fn age(&self, time: Timestamp) -> i64 {
        self.now.duration_since(time).as_secs()
    }
}

impl Report for Explanation {
    fn text(&self) -> String {
        let mut text = self.headline();
        for (names, rows) in &self.interfaces {
            if self.interfaces.len() > 1 || self.question.target.is_none() {
                text += &format!("\non {}\n", names.join(", "));
            }
            text += &self.rows_text(rows);
        }
        if let Some(flows @ 1..) = self.flows {
            text += &format!(
                "\nthis host has {flows} flows with {}: what answers them passes all the same\n",
                self.question.address
            );
        }
        text += &self.sources_text();
        text
    }

    fn json(&self) -> Value {
        let interfaces = self.interfaces.iter().flat_map(|(names, rows)| {
            let decisions: Value = rows.iter().map(|reached| self.row_json(reached)).collect();
            names
                .iter()
                .map(move |name| json!({ "name": name, "decisions": decisions }))
        });
        let prefixes = self.prefixes.iter().map(|matching| {
            let held: Map<_, _> = matching
                .held
                .iter()
                .map(|(source, until)| (source.clone(), json!(until)))
                .collect();
            json!({
                "prefix": matching.prefix,
                "services": matching.services,
                "sources": matching.sources,
                "held_until": held,
            })
        });
        let sources: Map<_, _> = self
            .sources
            .iter()
            .map(|(name, behind)| (name.clone(), self.source_json(behind)))
            .collect();
        json!({
            "address": self.question.address,
            "port": self.question.target,
            "verdict": if self.is_dropped() { Verdict::Drop } else { Verdict::Pass }.name(),
            "mode": if self.control.observe { "observe" } else { "enforce" },
            "passes": !self.is_dropped() || self.control.observe,
            "generation": self.control.generation,
            "default": self.control.default_verdict.name(),
            "interfaces": interfaces.collect::<Value>(),
            "prefixes": prefixes.collect::<Value>(),
            "sources": sources,
            "flows": self.flows,
        })
    }
}

impl Reached {
    fn new(row: Row, record: &Record) -> Self {
        let names = &record.names;
        let services = names.services.get(row.decision.service as usize);
        let services = services.cloned().unwrap_or_default();
        let allows = |source: &String| {
            let mut covering = services.iter().filter_map(|name| record.services.get(name));
            covering.any(|service| service.allow.contains(source))
        };
        let mut sources = names.sources_of(row.decision.matched);
        sources.retain(allows);
        Self {
            row,
            services,
            sources,
        }
    }
}

impl Matching {
    fn new(prefix: IpNet, matched: u32, record: &Record) -> Self {
        let sources = record.names.sources_of(matched);
        let held = sources.iter().filter_map(|name| {
            let mut holds = record.sources.get(name)?.holds.iter();
            let held = holds.find(|held| held.prefix == prefix)?;
            Some((name.clone(), held.until))
        });
        Self {
            prefix,
            services: record.services_of(&sources),
            held: held.collect(),
            sources,
        }
    }
}

/// The interfaces that are filtered, or the one that was asked about.
fn asked(attachments: Vec<Attachment>, wanted: Option<&str>) -> Result<Vec<Attachment>> {
    let filtered: Vec<Attachment> = attachments
        .into_iter()
        .filter(|attachment| attachment.attached)
        .collect();
    let Some(wanted) = wanted else {
        return Ok(filtered);
    };
    let names: Vec<&str> = filtered.iter().map(|one| &*one.name).collect();
    if !names.contains(&wanted) {
        bail!(
            "{wanted} is not filtered, so what comes in there passes; the filter is on {}",
            if names.is_empty() {
                "no interface".to_owned()
            } else {
                names.join(", ")
            }
        );
    }
    Ok(filtered
        .into_iter()
        .filter(|attachment| attachment.name == wanted)
        .collect())
}

/// What becomes of what is asked about on one interface.
fn reached(lookup: &Lookup, slot: u32, question: &Question) -> Result<Vec<Row>> {
    let targets: Vec<Target> = match question.target {
        Some(target) => vec![target],
        None => Target::all().collect(),
    };
    let packets = targets.iter().map(|target| target.packet(question.address));
    let decisions = lookup.judge(slot, packets)?;
    Ok(rows(targets.iter().copied().zip(decisions)))
}

/// The step of docs/packets.md that a reason comes from; none for what should not be.
fn step(reason: Reason) -> Option<u8> {
    Some(match reason {
        Reason::NotIp | Reason::Arp => 1,
        Reason::Malformed => 2,
        Reason::NeighbourDiscovery | Reason::IcmpError | Reason::Dhcp | Reason::Multicast => 3,
        Reason::Allowed | Reason::NotAllowed => 4,
        Reason::Answer => 5,
        Reason::Default => 6,
        Reason::InternalError => return None,
    })
}

fn named(names: &[String], otherwise: &str) -> String {
    match names {
        [] => otherwise.to_owned(),
        some => some.join(" and "),
    }
}
