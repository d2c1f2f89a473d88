//! An explanation of calls as JSON. Pure.

use allowlist_common::egress::EgressReason;
use allowlist_common::verdict::Verdict;
use serde_json::{Map, Value, json};

use super::{CallExplanation, Destination, KnownAddress, ReachedCall};
use crate::generation_meta::SourceMeta;
use crate::report::Report;
use crate::report::egress::word;

impl Report for CallExplanation {
    fn text(&self) -> String {
        self.to_text()
    }

    fn json(&self) -> Value {
        let (name, address) = match &self.question.to {
            Destination::Address { address, .. } => (None, Some(address)),
            Destination::Name(name) => (Some(name), None),
        };
        let verdict = if self.is_refused() {
            Verdict::Drop
        } else {
            Verdict::Pass
        };
        let listings = self.listings.iter().map(|listing| {
            json!({
                "rule": listing.rule,
                "source": listing.source,
                "pattern": listing.pattern,
                "answers": if listing.believes_answers { "believe" } else { "poll" },
                "ports": listing.ports,
                "units": listing.units,
            })
        });
        let units = self.units.iter().flat_map(|(unit, rules)| {
            let of_unit = rules.iter();
            of_unit.map(move |(rule, ports)| json!({ "unit": unit, "rule": rule, "ports": ports }))
        });
        let sources: Map<_, _> = self
            .sources
            .iter()
            .map(|(name, meta)| (name.clone(), self.source_json(name, meta)))
            .collect();
        json!({
            "name": name,
            "address": address,
            "port": self.question.target,
            "unit": self.question.unit,
            "cgroup": self.caller.path,
            "judged": self.caller.is_judged,
            "verdict": word(verdict),
            "mode": if self.egress.observe { "observe" } else { "enforce" },
            "passes": verdict == Verdict::Pass || self.egress.observe,
            "generation": self.control.generation,
            "default": word(self.egress.default_verdict),
            "listed": listings.collect::<Value>(),
            "hint": self.hint,
            "addresses": self.addresses.iter().map(|known| self.address_json(known)).collect::<Value>(),
            "next_answer": self.rows_json(&self.next),
            "units": units.collect::<Value>(),
            "sources": sources,
        })
    }
}

impl CallExplanation {
    fn address_json(&self, known: &KnownAddress) -> Value {
        let answered = known.answered.iter().map(|(name, until)| {
            json!({
                "name": name,
                "until": self.epoch.time(until.as_nanos() as u64),
                "seconds_left": self.left(*until),
            })
        });
        let prefixes = known.prefixes.iter().map(|matching| {
            let grace = matching.grace.iter();
            let grace: Map<_, _> = grace
                .map(|(source, until)| (source.clone(), json!(until)))
                .collect();
            json!({
                "prefix": matching.prefix,
                "sources": matching.sources,
                "rules": matching.rules,
                "grace_until": grace,
            })
        });
        json!({
            "address": known.address,
            "decisions": self.rows_json(&known.reached),
            "answered": answered.collect::<Value>(),
            "answered_unlisted": known.is_unlisted,
            "polled": known.polled,
            "prefixes": prefixes.collect::<Value>(),
        })
    }

    fn rows_json(&self, rows: &[ReachedCall]) -> Value {
        let row = |reached: &ReachedCall| {
            let decision = reached.row.decision;
            json!({
                "ports": reached.row.ports,
                "verdict": word(decision.verdict),
                "reason": decision.reason.name(),
                "step": step(decision.reason),
                "why": self.why(reached),
                "covering": reached.covering,
                "rules": reached.rules,
                "sources": reached.sources,
                "prefix": reached.prefix,
                "name": reached.name,
            })
        };
        rows.iter().map(row).collect()
    }

    fn source_json(&self, name: &str, meta: &SourceMeta) -> Value {
        json!({
            "state": meta.state(self.now),
            "origin": meta.origin,
            "fetched": meta.fetched,
            "age_seconds": meta.fetched.map(|fetched| self.age(fetched)),
            "next_fetch": self.next_fetch.get(name),
            "failure": meta.failure,
            "failure_code": meta.failure_code,
        })
    }
}

/// Returns the step of docs/egress.md that decides with this reason; `None` for an internal error.
const fn step(reason: EgressReason) -> Option<u8> {
    Some(match reason {
        EgressReason::Local => 1,
        EgressReason::Daemon => 2,
        EgressReason::Resolver | EgressReason::Essential => 4,
        EgressReason::Reply => 5,
        EgressReason::Allowed | EgressReason::AllowedName => 6,
        EgressReason::ClosedRange | EgressReason::Default => 7,
        EgressReason::InternalError => return None,
    })
}
