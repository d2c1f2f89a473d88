//! An explanation of calls as text. Pure.

use allowlist_common::egress::{EgressReason, embedded};
use allowlist_common::verdict::Verdict;
use allowlist_policy::explain::is_not_covered;
use allowlist_policy::hints::counted;

use super::{CallExplanation, Destination, KnownAddress, ReachedCall};
use crate::report::egress::word;
use crate::report::{ago, table};

/// The maximum number of addresses in the text.
pub(super) const MAX_SHOWN: usize = 20;

impl CallExplanation {
    pub(super) fn to_text(&self) -> String {
        if !self.caller.is_judged {
            return self.not_judged();
        }
        let mut text = self.headline();
        text += &self.notes();
        text += &self.listings_text();
        for known in self.addresses.iter().take(MAX_SHOWN) {
            text.push('\n');
            if self.question.to.name().is_some() {
                text += &format!("{}\n", known.address);
            }
            text += &self.rows_text(&known.reached);
            text += &self.facts_text(known);
        }
        if let Some(more @ 1..) = self.addresses.len().checked_sub(MAX_SHOWN) {
            text += &format!(
                "\n{} not shown; --json has all\n",
                counted(more, "further address")
            );
        }
        if !self.next.is_empty() {
            text += &format!("\n{}\n", self.next_heading());
            text += &self.rows_text(&self.next);
        }
        text += &self.units_text();
        if !self.has_meta {
            text += "\nthe names of rules and sources are unknown: the kernel has no readable names for the active generation\n";
        }
        text
    }

    /// Returns the beginning of the lines about an address.
    const fn indent(&self) -> &'static str {
        match self.question.to {
            Destination::Name(_) => "    ",
            Destination::Address { .. } => "",
        }
    }

    /// Returns the programs that the question is about, for display.
    fn programs(&self) -> String {
        match (&self.question.unit, &self.caller.path) {
            (Some(unit), Some(path)) if unit != path => {
                format!("programs in {unit} (cgroup {path})")
            }
            (Some(unit), Some(_)) => format!("programs in {unit}"),
            (Some(unit), None) => format!(
                "programs in {unit}, which has no cgroup now: rules for slices around it are left out"
            ),
            (None, _) => "programs in no unit that a rule names".to_owned(),
        }
    }

    fn not_judged(&self) -> String {
        let reason = match &self.caller.path {
            Some(path) => format!("is not attached to {path}, nor to a cgroup around it"),
            None => "is attached to no cgroup".to_owned(),
        };
        format!(
            "{} passes for {}: the egress policy {reason}\n",
            self.destination(),
            self.programs()
        )
    }

    fn destination(&self) -> String {
        match self.question.target {
            Some(target) => format!("{} on {target}", self.question.to),
            None => format!("every port of {}", self.question.to),
        }
    }

    fn headline(&self) -> String {
        let refused = |one: &&KnownAddress| one.reached.iter().any(ReachedCall::is_refused);
        let (all, refused) = (
            self.addresses.len(),
            self.addresses.iter().filter(refused).count(),
        );
        let is_refused = if self.egress.observe {
            "would be refused"
        } else {
            "is refused"
        };
        let becomes = if self.question.target.is_none() {
            format!("ports that these programs reach at {}", self.question.to)
        } else {
            let becomes = if !self.is_refused() {
                "passes".to_owned()
            } else if refused == all {
                is_refused.to_owned()
            } else {
                format!("{is_refused} at {refused} of its {all} addresses")
            };
            format!("{} {becomes}", self.destination())
        };
        let mut text = format!(
            "{becomes}; generation {}\nfor {}\n",
            self.control.generation,
            self.programs()
        );
        if self.egress.observe {
            text += "observe mode: every call passes; these are the verdicts of enforce mode\n";
        }
        text
    }

    /// Returns the lines about the destination and the lists of a name.
    fn notes(&self) -> String {
        let mut notes = Vec::new();
        match &self.question.to {
            Destination::Address {
                address,
                mapped: Some(mapped),
            } => notes.push(format!(
                "{mapped} is IPv4-mapped: the kernel sends IPv4 packets to {address}"
            )),
            Destination::Address { address, .. } => {
                if let Some(inner) = embedded((*address).into()) {
                    let inner = std::net::IpAddr::from(inner);
                    notes.push(format!(
                        "{address} is a translated address (NAT64), which rules for {inner} allow too"
                    ));
                }
            }
            Destination::Name(name) => {
                // The names of sources are not in the metadata of an earlier build.
                if self.listings.is_empty() && !self.is_learnt {
                    let hint = self.hint.as_ref();
                    let hint = hint.map_or_else(String::new, |hint| format!("; {hint}"));
                    notes.push(format!("no rule lists {name}{hint}"));
                }
                if self.addresses.is_empty() {
                    notes.push(self.no_address(name));
                }
            }
        }
        notes.extend(self.failing_open.iter().map(|source| {
            format!(
                "source {source} has no list yet, and at_start = \"pass\": its rules allow every address"
            )
        }));
        lines("", &notes)
    }

    fn no_address(&self, name: &str) -> String {
        let mut why = vec!["no resolver's answer with one is still valid"];
        let records = self.egress.observe || self.egress.default_verdict == Verdict::Pass;
        if self.listings.is_empty() && !self.is_learnt && !records {
            why = vec!["answers for a name that no rule lists are recorded in observe mode only"];
        } else if self.listings.iter().any(|one| one.pattern == name) {
            why.push("no polled list has one");
        }
        format!("no address of {name} is known: {}", why.join(", and "))
    }

    fn listings_text(&self) -> String {
        if self.listings.is_empty() {
            return String::new();
        }
        let mut listings = table(&["rule", "source", "lists", "ports", "units"], &[]);
        for listing in &self.listings {
            let mut lists = listing.pattern.clone();
            if !listing.believes_answers {
                lists += " (polled only)";
            }
            let units = if listing.units.is_empty() {
                "all programs".to_owned()
            } else {
                listing.units.join(" ")
            };
            listings.add_row([
                listing.rule.clone(),
                listing.source.clone(),
                lists,
                listing.ports.join(" "),
                units,
            ]);
        }
        let failures = self.sources.iter().filter_map(|(name, meta)| {
            let mut listings = self.listings.iter();
            let is_polled = listings.any(|listing| {
                listing.source == *name && self.question.to.name() == Some(&listing.pattern)
            });
            let failure = meta.failure.as_ref().filter(|_| is_polled)?;
            Some(format!("polling failed: {failure}\n"))
        });
        format!("\n{listings}\n{}", failures.collect::<String>())
    }

    fn next_heading(&self) -> &'static str {
        if self.is_learnt {
            "every address that a resolver answers from now on"
        } else if self.listings.is_empty() {
            "an address that no rule lists"
        } else {
            "an address that is not in a polled list"
        }
    }

    fn rows_text(&self, rows: &[ReachedCall]) -> String {
        let indent = self.indent();
        let line = |reached: &ReachedCall| {
            let decision = reached.row.decision;
            let ports = match self.question.target {
                Some(_) => String::new(),
                None if rows.len() > 1 && is_not_covered(&decision) => {
                    "everything else: ".to_owned()
                }
                None => format!("{}: ", reached.row.ports.join(" ")),
            };
            let (verdict, reason) = (word(decision.verdict), decision.reason.name());
            let why = self.why(reached);
            format!("{indent}{ports}{verdict} {reason}: {why}\n")
        };
        rows.iter().map(line).collect()
    }

    /// Returns the reason of a decision as text: the step of docs/egress.md, and the names involved.
    pub(super) fn why(&self, reached: &ReachedCall) -> String {
        let rule = named("rule", &reached.rules);
        let default = word(self.egress.default_verdict);
        let covering = match &*reached.covering {
            [] => "no rule for these programs covers the port".to_owned(),
            [one] => format!("rule {one} covers the port, but does not list the address"),
            some => format!(
                "rules {} cover the port, but do not list the address",
                some.join(" and ")
            ),
        };
        match reached.row.decision.reason {
            EgressReason::Local => "step 1: this host, its link, or a multicast group".to_owned(),
            EgressReason::Resolver => "step 4: a resolver, on its port".to_owned(),
            EgressReason::Essential => "step 4: a time server".to_owned(),
            EgressReason::Allowed => {
                let prefix = reached.prefix.map(|prefix| prefix.to_string());
                format!(
                    "step 6: {rule} allows {}, which lists {}",
                    named("source", &reached.sources),
                    prefix.as_deref().unwrap_or("every address")
                )
            }
            EgressReason::AllowedName => format!(
                "step 6: {rule} allows {}, which lists {}",
                named("source", &reached.sources),
                reached.name.as_deref().unwrap_or("a name that is unknown")
            ),
            EgressReason::ClosedRange => {
                format!("step 7: {covering}; the address is in a closed range")
            }
            EgressReason::Default => format!("step 7: {covering}; default = \"{default}\""),
            // No question has another reason.
            other => format!("as {}", other.name()),
        }
    }

    /// Returns the lines about how an address is known.
    fn facts_text(&self, known: &KnownAddress) -> String {
        let mut facts = Vec::new();
        for (name, until) in &known.answered {
            let how = match name.strip_prefix("*.") {
                Some(below) => format!("for a name below {below}"),
                None if self.question.to.name() == Some(name) => "by a resolver".to_owned(),
                None => format!("for {name}"),
            };
            facts.push(format!(
                "answered {how}, valid until {:.0} (in {})",
                self.epoch.time(until.as_nanos() as u64),
                ago(self.left(*until))
            ));
        }
        if known.is_unlisted {
            facts.push("answered for the name, whose answers are not believed".to_owned());
        }
        facts.extend(known.polled.iter().map(|source| self.polled(known, source)));
        for matching in &known.prefixes {
            let mut sources = matching.sources.iter();
            let is_polled = sources.all(|source| known.polled.contains(source));
            // The reason of a decision names it.
            let is_stated = |reached: &ReachedCall| {
                reached.prefix == Some(matching.prefix) && reached.sources == matching.sources
            };
            let is_repeated = matching.grace.is_empty() && known.reached.iter().any(is_stated);
            if is_polled || is_repeated {
                continue;
            }
            let grace = matching.grace.iter();
            let grace =
                grace.map(|(source, until)| format!("; grace period of {source} until {until:.0}"));
            facts.push(format!(
                "in {}, listed by {} of {}{}",
                matching.prefix,
                named("source", &matching.sources),
                named("rule", &matching.rules),
                grace.collect::<String>()
            ));
        }
        lines(self.indent(), &facts)
    }

    /// Returns the text about an address in the polled list of a source.
    fn polled(&self, known: &KnownAddress, source: &str) -> String {
        let meta = self.sources.get(source);
        let mut text = format!("polled by source {source}");
        if let Some(fetched) = meta.and_then(|meta| meta.fetched) {
            text += &format!(" {} ago", ago(self.age(fetched)));
        }
        if let Some(next) = self.next_fetch.get(source) {
            text += &format!(", next in {}", ago(-self.age(*next)));
        }
        let patterns = meta.and_then(|meta| meta.names.as_ref());
        let names = patterns.map_or(0, |names| {
            let mut all = names.patterns.clone();
            all.retain(|pattern| !pattern.starts_with('*'));
            all.len()
        });
        if names > 1 {
            text += &format!(" (one list for its {names} names)");
        }
        let mut grace = known.prefixes.iter().flat_map(|matching| &matching.grace);
        if let Some((_, until)) = grace.find(|(name, _)| name == source) {
            text += &format!("; not found any more, valid until {until:.0}");
        }
        text
    }

    fn units_text(&self) -> String {
        if self.units.is_empty() {
            return String::new();
        }
        let mut units = table(&["allowed for programs in", "by rule", "ports"], &[]);
        for (unit, rules) in &self.units {
            for (rule, ports) in rules {
                let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
                units.add_row([unit.clone(), rule.clone(), ports.join(" ")]);
            }
        }
        format!("\n{units}\n")
    }
}

/// Returns texts as lines with an indent.
fn lines(indent: &str, texts: &[String]) -> String {
    let mut lines = String::new();
    for text in texts {
        lines += &format!("{indent}{text}\n");
    }
    lines
}

/// Returns names with their noun: "rule a", "rules a and b", or "a rule whose name is unknown".
fn named(noun: &str, names: &[String]) -> String {
    match names {
        [] => format!("a {noun} whose name is unknown"),
        [one] => format!("{noun} {one}"),
        some => format!("{noun}s {}", some.join(" and ")),
    }
}
