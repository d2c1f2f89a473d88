//! Explains whether a program of this host may connect to a destination, by the kernel's current tables.
//!
//! The verdicts come from the kernel's tables, by the decision code that the eBPF programs run. The metadata of the
//! generation has only names; without it, ids have none. Needs no daemon and no disk, and resolves no name: an answer to
//! its own query would be learnt, and could differ from what programs got.

mod document;
mod names;
mod question;
#[cfg(test)]
mod tests;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use allowlist_common::abi::{Control, EgressControl};
use allowlist_common::egress::{EgressDecision, EgressReason, is_closed};
use allowlist_common::verdict::Verdict;
use allowlist_dataplane::{CallingUnit, EgressLookup, Entry, View, kernel_clock};
use allowlist_policy::error_code::bail_with;
use allowlist_policy::explain::Row;
use anyhow::Result;
use ipnet::IpNet;
use jiff::Timestamp;

use self::names::{Listing, listings};
pub use self::question::{CallQuestion, Destination};
use super::Epoch;
use crate::generation_meta::{GenerationMeta, NamesMeta, SourceMeta, covers};

/// The answer to a [`CallQuestion`].
pub struct CallExplanation {
    question: CallQuestion,
    control: Control,
    egress: EgressControl,
    caller: CallingUnit,
    /// The rules that list the name; empty for an address.
    listings: Vec<Listing>,
    /// A clause about a name in the rules that is probably meant, if no rule lists the name.
    hint: Option<String>,
    /// The address, or the addresses of the name that are known, sorted.
    addresses: Vec<KnownAddress>,
    /// The decisions on the next address that a resolver answers for the name; empty for an address.
    next: Vec<ReachedCall>,
    /// Whether the addresses that resolvers answer for the name are learnt.
    is_learnt: bool,
    /// The sources of the name that have no list and allow every address until it arrives (`at_start = "pass"`).
    failing_open: Vec<String>,
    /// The ports that the rules for units allow in addition, by unit and rule, if the question names no unit.
    units: BTreeMap<String, PortsByRule>,
    /// The sources that list the name or a prefix with an address, by name.
    sources: BTreeMap<String, SourceMeta>,
    /// The times of the next polls of sources, by name; empty without a daemon.
    pub next_fetch: BTreeMap<String, Timestamp>,
    has_meta: bool,
    now: Timestamp,
    /// The kernel's time of `now`, since the start of the system.
    uptime: Duration,
    epoch: Epoch,
}

/// The ports on which each rule allows a destination, by the name of the rule.
type PortsByRule = BTreeMap<String, BTreeSet<String>>;

/// An address, how it became known, and the decisions on calls to it.
struct KnownAddress {
    address: IpAddr,
    /// The active prefixes that contain the address, longest first.
    prefixes: Vec<MatchingPrefix>,
    /// The listed names and wildcards for which resolvers answered it, each with the time until which it is valid.
    answered: Vec<(String, Duration)>,
    /// The sources that list the name and whose polled list has the address; empty for the question about an address.
    polled: Vec<String>,
    /// Whether a resolver answered it for the name of the question, which no rule lists.
    is_unlisted: bool,
    reached: Vec<ReachedCall>,
}

/// A prefix of the tables that contains an address.
struct MatchingPrefix {
    prefix: IpNet,
    /// The names of the sources that list the prefix or a wider one.
    sources: Vec<String>,
    /// The names of the rules that allow these sources.
    rules: Vec<String>,
    /// The names of the sources that no longer list the prefix, each with the end of the grace period.
    grace: Vec<(String, Timestamp)>,
}

/// A decision on some calls of the question, with the names involved.
struct ReachedCall {
    row: Row<EgressDecision>,
    /// The names of the rules that cover the ports for the program.
    covering: Vec<String>,
    /// Of these, the names of the rules that allow the destination.
    rules: Vec<String>,
    /// The names of the sources by which they allow it.
    sources: Vec<String>,
    /// The prefix that allows the destination.
    prefix: Option<IpNet>,
    /// The listed name or wildcard that allows the destination.
    name: Option<String>,
}

impl CallExplanation {
    /// Reads the answer to a question from the kernel's tables.
    ///
    /// # Errors
    /// Fails if the tables cannot be read, or with the code `no-egress-policy` if no egress policy is active.
    pub fn read(pin_dir: &Path, question: CallQuestion) -> Result<Self> {
        let view = View::open(pin_dir)?;
        let name = question.to.name().map(str::to_owned);
        let lookup = view.egress_lookup(name.as_deref())?;
        let control = lookup.as_ref().map(EgressLookup::control);
        let egress = control.and_then(|control| control.egress);
        let (Some(lookup), Some(control), Some(egress)) = (lookup, control, egress) else {
            bail_with!(
                NoEgressPolicy,
                "no egress policy is active, so every call passes; add [egress] to the configuration and run `allowlist reload`"
            );
        };
        let loaded = lookup.metadata().and_then(GenerationMeta::decode);
        let has_meta = loaded.is_some();
        let meta = loaded.unwrap_or_default();
        let caller = match &question.unit {
            Some(unit) => lookup.program_of(unit)?,
            None => lookup.any_program(),
        };
        let reader = Reader {
            lookup: &lookup,
            meta: &meta,
            question: &question,
        };
        let listings = name.as_ref().map(|name| listings(name, &meta));
        let listings = listings.unwrap_or_default();
        let hint = name.as_ref().filter(|_| listings.is_empty());
        let hint = hint.and_then(|name| names::hint(name, &meta));
        let addresses = reader.addresses();
        let reached = reader.reach(&caller, &addresses);
        let units = if question.unit.is_none() && reached.has_refusal() {
            reader.units(&reached, &addresses)
        } else {
            BTreeMap::new()
        };
        let next = reached.next;
        let addresses = addresses.into_iter().zip(reached.known);
        let addresses = addresses.map(|(address, reached)| reader.known(address, reached));
        let addresses: Vec<KnownAddress> = addresses.collect();
        let of_prefixes = addresses.iter().flat_map(|one| &one.prefixes);
        let of_prefixes = of_prefixes.flat_map(|matching| &matching.sources);
        let of_names = listings.iter().map(|listing| &listing.source);
        let sources = of_prefixes.chain(of_names).collect::<BTreeSet<_>>();
        let sources = sources
            .into_iter()
            .filter_map(|name| Some((name.clone(), meta.sources.get(name)?.clone())));
        let (now, uptime) = (Timestamp::now(), kernel_clock());
        Ok(Self {
            control,
            egress,
            caller,
            hint,
            is_learnt: lookup.listed() != 0,
            failing_open: reader.failing_open(&listings),
            sources: sources.collect(),
            listings,
            addresses,
            next,
            units,
            next_fetch: BTreeMap::new(),
            has_meta,
            now,
            uptime,
            epoch: Epoch::new(now, uptime),
            question,
        })
    }

    /// Returns whether a call to the destination is refused, in either mode: to any of the known addresses of a name, and
    /// if there are none, to the next one that a resolver answers.
    pub fn is_refused(&self) -> bool {
        let mut deciding = self.deciding();
        self.caller.is_judged && deciding.any(ReachedCall::is_refused)
    }

    /// Returns the decisions on which the verdict depends: those on the known addresses, and if there are none, those on
    /// the next one.
    fn deciding(&self) -> impl Iterator<Item = &ReachedCall> {
        deciding(self.addresses.iter().map(|one| &one.reached), &self.next)
    }

    /// Returns the time in seconds for which an address is still valid that is valid until a time of the kernel's clock.
    fn left(&self, until: Duration) -> i64 {
        until.saturating_sub(self.uptime).as_secs().cast_signed()
    }

    fn age(&self, time: Timestamp) -> i64 {
        self.now.duration_since(time).as_secs()
    }
}

impl ReachedCall {
    fn is_refused(&self) -> bool {
        self.row.decision.verdict == Verdict::Drop
    }
}

/// Returns the decisions on the known addresses, and if there are none, those on the `next` one.
fn deciding<'r>(
    known: impl ExactSizeIterator<Item = &'r Vec<ReachedCall>>,
    next: &'r [ReachedCall],
) -> impl Iterator<Item = &'r ReachedCall> {
    let next = if known.len() == 0 { next } else { &[] };
    known.flatten().chain(next)
}

/// The decisions on the calls of a program.
struct Reached {
    /// Those on each known address.
    known: Vec<Vec<ReachedCall>>,
    /// Those on the next address of a name.
    next: Vec<ReachedCall>,
}

impl Reached {
    fn deciding(&self) -> impl Iterator<Item = &ReachedCall> {
        deciding(self.known.iter(), &self.next)
    }

    fn has_refusal(&self) -> bool {
        self.deciding().any(ReachedCall::is_refused)
    }

    /// Returns the ports on which each rule allows the destination.
    fn by_rule(&self) -> PortsByRule {
        let mut ports = PortsByRule::new();
        for reached in self.deciding() {
            for rule in &reached.rules {
                let of_rule = ports.entry(rule.clone()).or_default();
                of_rule.extend(reached.row.ports.iter().cloned());
            }
        }
        ports
    }
}

/// The tables and the metadata for the answer to a question.
struct Reader<'r> {
    lookup: &'r EgressLookup,
    meta: &'r GenerationMeta,
    question: &'r CallQuestion,
}

impl Reader<'_> {
    /// Returns the address of the question, or the known addresses of its name.
    fn addresses(&self) -> Vec<IpAddr> {
        match &self.question.to {
            Destination::Address { address, .. } => vec![*address],
            Destination::Name(name) => self.addresses_of(name),
        }
    }

    /// Returns the decisions on calls of a program.
    fn reach(&self, caller: &CallingUnit, addresses: &[IpAddr]) -> Reached {
        let tables = self.lookup.tables(caller.rows);
        let targets = tables.targets(self.question.target);
        let everything = self.lookup.everything();
        let next = match &self.question.to {
            Destination::Address { .. } => Vec::new(),
            Destination::Name(_) => {
                tables.reach_unknown(self.lookup.listed(), everything, &targets)
            }
        };
        let next = next.into_iter().map(|row| self.reached(row, None));
        let known = addresses.iter().map(|address| {
            let rows = tables.reach(*address, &targets).into_iter();
            rows.map(|row| self.reached(row, Some(*address))).collect()
        });
        Reached {
            known: known.collect(),
            next: next.collect(),
        }
    }

    /// Returns the known addresses of a name, sorted: those that were answered for it, or for a name that the same wildcard
    /// covers, and those in the polled lists of the sources that list it.
    fn addresses_of(&self, name: &str) -> Vec<IpAddr> {
        let names = (0..).zip(&self.meta.egress_ids.names).skip(1);
        let ids = names.filter(|(_, pattern)| covers(pattern, name));
        let ids: BTreeSet<u32> = ids.map(|(id, _)| id).collect();
        let mut addresses: BTreeSet<IpAddr> = self.lookup.answered_for(&ids).into_iter().collect();
        addresses.extend(self.lookup.unlisted());
        let polled = self.lookup.entries().iter();
        let polled = polled.filter(|entry| !self.polling(entry, name).is_empty());
        addresses.extend(polled.map(|entry| entry.prefix.addr()));
        addresses.into_iter().collect()
    }

    /// Returns the sources that list a name, not by a wildcard, and whose polled list has the address of a prefix.
    fn polling(&self, entry: &Entry, name: &str) -> Vec<String> {
        if entry.prefix.prefix_len() != entry.prefix.max_prefix_len() {
            return Vec::new();
        }
        let mut sources = self.meta.egress_ids.sources_of(entry.grant.match_id);
        sources.retain(|source| {
            let names = self.names_of(source);
            names.is_some_and(|names| names.covering(name) == Some(name))
                && !self.fails_open(source)
        });
        sources
    }

    fn names_of(&self, source: &str) -> Option<&NamesMeta> {
        self.meta.sources.get(source)?.names.as_ref()
    }

    /// Returns whether a source has no list, and allows every address until it arrives.
    fn fails_open(&self, source: &str) -> bool {
        let has_list = self
            .meta
            .sources
            .get(source)
            .is_some_and(|one| one.fetched.is_some());
        let mut wide = self.lookup.entries().iter();
        !has_list
            && wide.any(|entry| {
                entry.prefix.prefix_len() == 0
                    && self
                        .meta
                        .egress_ids
                        .sources_of(entry.grant.match_id)
                        .iter()
                        .any(|one| one == source)
            })
    }

    fn failing_open(&self, listings: &[Listing]) -> Vec<String> {
        let sources: BTreeSet<&String> = listings.iter().map(|listing| &listing.source).collect();
        let open = sources.into_iter().filter(|source| self.fails_open(source));
        open.cloned().collect()
    }

    fn known(&self, address: IpAddr, mut reached: Vec<ReachedCall>) -> KnownAddress {
        let entries = self.lookup.containing(address);
        for one in &mut reached {
            let matched = one.row.decision.match_id;
            let mut matching = entries.iter().filter(|_| matched != 0);
            let entry = matching.find(|entry| entry.grant.match_id == matched);
            one.prefix = entry.map(|entry| entry.prefix);
        }
        let name = self.question.to.name();
        let polled = entries
            .iter()
            .filter_map(|entry| Some(self.polling(entry, name?)));
        let answered = self
            .lookup
            .names_of(address)
            .iter()
            .filter_map(|(id, until)| {
                let pattern = self.meta.egress_ids.names.get(*id as usize)?;
                let is_asked = name.is_none_or(|name| covers(pattern, name));
                is_asked.then(|| (pattern.clone(), *until))
            });
        KnownAddress {
            address,
            polled: polled
                .flatten()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            answered: answered.collect(),
            is_unlisted: self.lookup.unlisted().contains(&address),
            prefixes: entries.iter().map(|entry| self.matching(entry)).collect(),
            reached,
        }
    }

    fn matching(&self, entry: &Entry) -> MatchingPrefix {
        let sources = self.meta.egress_ids.sources_of(entry.grant.match_id);
        let rules = self.meta.egress_rules.iter();
        let rules = rules.filter(|(_, rule)| rule.to.iter().any(|name| sources.contains(name)));
        let grace = sources.iter().filter_map(|name| {
            let mut grace_prefixes = self.meta.sources.get(name)?.grace_prefixes.iter();
            let grace = grace_prefixes.find(|grace| grace.prefix == entry.prefix)?;
            Some((name.clone(), grace.until))
        });
        MatchingPrefix {
            prefix: entry.prefix,
            rules: rules.map(|(name, _)| name.clone()).collect(),
            grace: grace.collect(),
            sources,
        }
    }

    /// Returns a decision with its names; `address` is `None` for an address that is not known.
    fn reached(&self, row: Row<EgressDecision>, address: Option<IpAddr>) -> ReachedCall {
        let decision = row.decision;
        let ids = &self.meta.egress_ids;
        let covering = decision
            .rules
            .iter()
            .filter_map(|id| ids.services.get(*id as usize));
        let covering: BTreeSet<String> = covering.flatten().cloned().collect();
        let mut name = None;
        let listing: Vec<String> = match decision.reason {
            EgressReason::Allowed => ids.sources_of(decision.match_id),
            EgressReason::AllowedName => {
                name = ids.names.get(decision.name as usize).cloned();
                let is_closed = address.is_some_and(|address| is_closed(&address.into()));
                let lists = |source: &SourceMeta| {
                    let names = source.names.as_ref().zip(name.as_ref());
                    names.is_some_and(|(names, name)| {
                        names.believes_answers
                            && (!is_closed || names.allow_special_use)
                            && names.covering(name).is_some()
                    })
                };
                let sources = self.meta.sources.iter();
                let sources = sources.filter(|(_, source)| lists(source));
                sources.map(|(name, _)| name.clone()).collect()
            }
            _ => Vec::new(),
        };
        let rules = self.meta.egress_rules.iter().filter(|(name, rule)| {
            covering.contains(*name) && rule.to.iter().any(|source| listing.contains(source))
        });
        let (rules, metas): (Vec<String>, Vec<_>) =
            rules.map(|(name, rule)| (name.clone(), rule)).unzip();
        let sources = listing.into_iter().filter(|source| {
            let mut metas = metas.iter();
            metas.any(|rule| rule.to.contains(source))
        });
        ReachedCall {
            row,
            rules,
            sources: sources.collect(),
            covering: covering.into_iter().collect(),
            prefix: None,
            name,
        }
    }

    /// Returns the ports that the rules for units allow and that are not allowed for every program, by unit and rule.
    fn units(&self, everywhere: &Reached, addresses: &[IpAddr]) -> BTreeMap<String, PortsByRule> {
        let everywhere = everywhere.by_rule();
        let rules = self.meta.egress_rules.values();
        let named: BTreeSet<&String> = rules.flat_map(|rule| &rule.units).collect();
        let allowed = named.into_iter().map(|unit| {
            let caller = self.lookup.program_of_rule(unit);
            let mut allowed = self.reach(&caller, addresses).by_rule();
            allowed.retain(|rule, ports| everywhere.get(rule) != Some(ports));
            (unit.clone(), allowed)
        });
        allowed.filter(|(_, rules)| !rules.is_empty()).collect()
    }
}
