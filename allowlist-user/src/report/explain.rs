//! Why a new packet of an address would pass, or not: as the kernel decides it now.
//!
//! The verdicts are the kernel's own tables', asked by the order of decisions that ships. The record on disk
//! has the words, and costs nothing else where it is missing. Needs no daemon.

#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;
use std::path::Path;

use allowlist_common::abi::{Control, ReturnTraffic, Traffic};
use allowlist_common::verdict::Verdict;
use anyhow::{Result, bail};
use ipnet::IpNet;
use jiff::Timestamp;

use super::Epoch;
use super::status::by_name;
use crate::dataplane::{Attachment, Lookup, View, kernel_clock};
use crate::explain::{Question, Row, Target, rows};
use crate::netlink::index_of;
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
            if let Some((names, _)) = alike {
                names.push(attachment.name);
            } else {
                let rows = rows.into_iter().map(|row| Reached::new(row, &record));
                interfaces.push((vec![attachment.name], rows.collect()));
            }
        }
        let traffic = view.traffic(record.names.matches.len())?;
        let traffic = by_name(&record.names.matches, &traffic, Traffic::plus);
        let prefixes: Vec<Matching> = lookup
            .containing(question.address)
            .into_iter()
            .map(|entry| Matching::new(entry.prefix, entry.grant.match_id, &record))
            .collect();
        let sources = prefixes.iter().flat_map(|matching| &matching.sources);
        let sources = sources.map(|name| {
            let behind = Behind {
                record: record.sources.get(name).cloned(),
                traffic: traffic.get(name).copied().unwrap_or_default(),
            };
            (name.clone(), behind)
        });
        let control = lookup.control();
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
            epoch: Epoch::new(now, kernel_clock()),
            question,
        })
    }

    /// Whether anything that was asked would be dropped, or is where drops are carried out.
    pub fn is_dropped(&self) -> bool {
        let mut rows = self.interfaces.iter().flat_map(|(_, rows)| rows);
        rows.any(|reached| reached.row.decision.verdict == Verdict::Drop)
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
        let mut sources = names.sources_of(row.decision.match_id);
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
    // It may have several names.
    let index = index_of(wanted);
    let is_wanted =
        |one: &Attachment| one.name == wanted || (index.is_some() && one.index == index);
    if !filtered.iter().any(is_wanted) {
        bail!(
            "{wanted} is not filtered, so what comes in there passes; the filter is on {}",
            if names.is_empty() {
                "no interface".to_owned()
            } else {
                names.join(", ")
            }
        );
    }
    Ok(filtered.into_iter().filter(is_wanted).collect())
}

/// What becomes of what is asked about on one interface.
fn reached(lookup: &Lookup, slot: u32, question: &Question) -> Result<Vec<Row>> {
    let targets: Vec<Target> = match question.target {
        Some(Target::Other) => Target::protocols(question.address).collect(),
        Some(target) => vec![target],
        None => Target::all(question.address).collect(),
    };
    let packets = targets.iter().map(|target| target.packet(question.address));
    let decisions = lookup.judge(slot, packets)?;
    let mut rows = rows(targets.iter().copied().zip(decisions));
    if question.target == Some(Target::Other) {
        // Protocols that a service covers by number are not the others.
        rows.retain(|row| row.ports.iter().any(|port| port == "other"));
    }
    Ok(rows)
}
