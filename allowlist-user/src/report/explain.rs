//! Explains whether a new packet from an address would pass, by the kernel's current tables.
//!
//! The verdicts come from the kernel's tables, by the decision code that the eBPF program runs. The metadata of the
//! generation has only names; without it, ids are shown. Needs no daemon and no disk.

#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;
use std::path::Path;

use allowlist_common::abi::{Control, ReturnTraffic, Traffic};
use allowlist_common::verdict::Verdict;
use allowlist_dataplane::netlink::index_of;
use allowlist_dataplane::{Attachment, Lookup, View, kernel_clock};
use allowlist_policy::error_code::bail_with;
use allowlist_policy::explain::{Question, Row, Target, rows};
use anyhow::Result;
use ipnet::IpNet;
use jiff::Timestamp;

use super::Epoch;
use super::status::by_name;
use crate::generation_meta::{GenerationMeta, SourceMeta};

/// The answer to a [`Question`].
pub struct Explanation {
    question: Question,
    control: Control,
    /// Groups of interfaces with the same decisions, each with these decisions; empty if no interface is filtered.
    interfaces: Vec<(Vec<String>, Vec<Reached>)>,
    /// The active prefixes that contain the address, longest first.
    prefixes: Vec<Matching>,
    /// The sources that list these prefixes, by name.
    sources: BTreeMap<String, Behind>,
    /// The number of flows between this host and the address, whose answers pass; `None` if flows are not tracked.
    flows: Option<usize>,
    has_meta: bool,
    now: Timestamp,
    epoch: Epoch,
}

/// A decision about some packets of the question, with the names of the services and sources involved.
struct Reached {
    row: Row,
    /// The names of the services that cover the port.
    services: Vec<String>,
    /// The names of the sources that allow the address.
    sources: Vec<String>,
}

/// A prefix that contains the address.
struct Matching {
    prefix: IpNet,
    services: Vec<String>,
    /// The names of the sources that list the prefix or a wider one.
    sources: Vec<String>,
    /// The names of the sources that no longer list the prefix, each with the end of the grace period.
    grace: Vec<(String, Timestamp)>,
}

/// A source that lists a prefix with the address: its metadata, if any, and its traffic.
struct Behind {
    meta: Option<SourceMeta>,
    traffic: Traffic,
}

impl Explanation {
    /// Reads the answer to a question from the kernel's tables.
    pub fn read(pin_dir: &Path, question: Question) -> Result<Self> {
        let view = View::open(pin_dir)?;
        let lookup = view.lookup()?;
        let loaded = lookup.metadata().and_then(GenerationMeta::decode);
        let has_meta = loaded.is_some();
        let meta = loaded.unwrap_or_default();
        let mut interfaces: Vec<(Vec<String>, Vec<Reached>)> = Vec::new();
        for attachment in asked(view.attachments()?, question.interface.as_deref())? {
            let rows = reached(&lookup, attachment.slot, &question)?;
            let alike = interfaces
                .iter_mut()
                .find(|(_, known)| known.iter().map(|one| &one.row).eq(&rows));
            if let Some((names, _)) = alike {
                names.push(attachment.name);
            } else {
                let rows = rows.into_iter().map(|row| Reached::new(row, &meta));
                interfaces.push((vec![attachment.name], rows.collect()));
            }
        }
        let traffic = view.traffic(meta.ids.matches.len())?;
        let traffic = by_name(&meta.ids.matches, &traffic, Traffic::plus);
        let prefixes: Vec<Matching> = lookup
            .containing(question.address)
            .into_iter()
            .map(|entry| Matching::new(entry.prefix, entry.grant.match_id, &meta))
            .collect();
        let sources = prefixes.iter().flat_map(|matching| &matching.sources);
        let sources = sources.map(|name| {
            let behind = Behind {
                meta: meta.sources.get(name).cloned(),
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
            has_meta,
            now,
            epoch: Epoch::new(now, kernel_clock()),
            question,
        })
    }

    /// Returns whether any decision is to drop the packet, in either mode.
    pub fn is_dropped(&self) -> bool {
        let mut rows = self.interfaces.iter().flat_map(|(_, rows)| rows);
        rows.any(|reached| reached.row.decision.verdict == Verdict::Drop)
    }
}

impl Reached {
    fn new(row: Row, meta: &GenerationMeta) -> Self {
        let ids = &meta.ids;
        let services = ids.services.get(row.decision.service as usize);
        let services = services.cloned().unwrap_or_default();
        let allows = |source: &String| {
            let mut covering = services.iter().filter_map(|name| meta.services.get(name));
            covering.any(|service| service.allow.contains(source))
        };
        let mut sources = ids.sources_of(row.decision.match_id);
        sources.retain(allows);
        Self {
            row,
            services,
            sources,
        }
    }
}

impl Matching {
    fn new(prefix: IpNet, matched: u32, meta: &GenerationMeta) -> Self {
        let sources = meta.ids.sources_of(matched);
        let grace = sources.iter().filter_map(|name| {
            let mut grace_prefixes = meta.sources.get(name)?.grace_prefixes.iter();
            let grace = grace_prefixes.find(|grace| grace.prefix == prefix)?;
            Some((name.clone(), grace.until))
        });
        Self {
            prefix,
            services: meta.services_of(&sources),
            grace: grace.collect(),
            sources,
        }
    }
}

/// Returns the attached interfaces, or with `wanted` only the one with that name.
///
/// # Errors
/// Fails if the filter is not attached to the wanted interface.
fn asked(attachments: Vec<Attachment>, wanted: Option<&str>) -> Result<Vec<Attachment>> {
    let filtered: Vec<Attachment> = attachments
        .into_iter()
        .filter(|attachment| attachment.attached)
        .collect();
    let Some(wanted) = wanted else {
        return Ok(filtered);
    };
    let names: Vec<&str> = filtered.iter().map(|one| &*one.name).collect();
    // An interface may have several names.
    let index = index_of(wanted);
    let is_wanted =
        |one: &Attachment| one.name == wanted || (index.is_some() && one.index == index);
    if !filtered.iter().any(is_wanted) {
        bail_with!(
            NothingAttached,
            "{wanted} is not filtered, so every packet that it receives passes; the filter is on {}",
            if names.is_empty() {
                "no interface".to_owned()
            } else {
                names.join(", ")
            }
        );
    }
    Ok(filtered.into_iter().filter(is_wanted).collect())
}

/// Returns the decisions that a packet of the question can reach on one interface.
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
