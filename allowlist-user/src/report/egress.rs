//! The egress policy's part of `allowlist status`, as text and as JSON.

use std::collections::BTreeMap;

use allowlist_common::abi::{Calls, Control, EgressControl, RuleCalls};
use allowlist_common::egress::{Call, EgressReason};
use allowlist_common::verdict::Verdict;
use allowlist_dataplane::{EgressCounted, View};
use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::status::by_name;
use super::table;
use crate::generation_meta::{GenerationMeta, RuleMeta};

/// The state of the egress policy.
pub(super) struct EgressStatus {
    control: EgressControl,
    counted: EgressCounted,
    rules: BTreeMap<String, RuleMeta>,
    /// The names and wildcards that have addresses or calls, also those of earlier policies.
    by_name: BTreeMap<String, NameStatus>,
    by_rule: BTreeMap<String, RuleCalls>,
}

/// The state of a name whose addresses are learnt from answers.
#[derive(Clone, Copy, Default)]
struct NameStatus {
    /// The number of addresses that are allowed now.
    addresses: usize,
    /// The calls that passed because of the name.
    passed: Calls,
}

/// Returns the state of each name that has addresses or calls; `names` are indexed by id.
fn by_listed_name(names: &[String], counted: &EgressCounted) -> BTreeMap<String, NameStatus> {
    let mut by_id = vec![NameStatus::default(); names.len()];
    for (of_name, passed) in by_id.iter_mut().zip(&counted.names) {
        of_name.passed = *passed;
    }
    for learnt in &counted.learned {
        if let Some(of_name) = by_id.get_mut(learnt.name as usize) {
            of_name.addresses += 1;
        }
    }
    let all = names.iter().cloned().zip(by_id);
    all.filter(|(_, one)| one.addresses != 0 || one.passed.count != 0)
        .collect()
}

impl EgressStatus {
    /// Reads the state from the kernel; `None` if the effective control word has no egress policy.
    pub(super) fn read(
        view: &View,
        control: &Control,
        meta: Option<&GenerationMeta>,
    ) -> Result<Option<Self>> {
        let Some(egress) = control.egress else {
            return Ok(None);
        };
        let ids = meta.map(|meta| meta.egress_ids.clone()).unwrap_or_default();
        let counted = view.egress(ids.matches.len(), ids.services.len(), ids.names.len())?;
        Ok(counted.map(|counted| Self {
            control: egress,
            by_name: by_listed_name(&ids.names, &counted),
            by_rule: by_name(&ids.services, &counted.rules, RuleCalls::plus),
            rules: meta
                .map(|meta| meta.egress_rules.clone())
                .unwrap_or_default(),
            counted,
        }))
    }

    const fn mode(&self) -> &'static str {
        if self.control.observe {
            "observe"
        } else {
            "enforce"
        }
    }

    const fn default(&self) -> &'static str {
        word(self.control.default_verdict)
    }

    /// Returns the number of calls of the given kinds with a verdict.
    fn sum(&self, calls: &[Call], verdict: Verdict) -> u64 {
        let counted = self.counted.calls.iter();
        counted
            .filter(|(call, found, ..)| calls.contains(call) && *found == verdict)
            .map(|(.., count)| count)
            .sum()
    }

    /// Returns one line with the mode and the sums of the counters.
    pub(super) fn headline(&self) -> String {
        let requests = [Call::Connect, Call::Send];
        let verb = if self.control.observe {
            "would have been refused"
        } else {
            "refused"
        };
        let attached = match self.counted.cgroups {
            0 => "; WARNING: attached to no cgroup, so nothing is refused",
            _ => "",
        };
        let probes = match self.sum(&[Call::Probe], Verdict::Drop) {
            0 => String::new(),
            probes => format!(", and {probes} probes"),
        };
        format!(
            "egress: {}, default {}; {} calls passed, {} {verb}{probes}{attached}\n",
            self.mode(),
            self.default(),
            self.sum(&requests, Verdict::Pass),
            self.sum(&requests, Verdict::Drop),
        )
    }

    /// Returns the tables of rules and of calls by reason. `last` displays the time of the last call.
    pub(super) fn text(&self, last: impl Fn(Calls) -> String) -> String {
        let mut reasons = table(&["call", "verdict", "reason", "calls"], &[3]);
        for (call, verdict, reason, count) in &self.counted.calls {
            if *count != 0 {
                reasons.add_row([
                    call.name(),
                    word(*verdict),
                    reason.name(),
                    &count.to_string(),
                ]);
            }
        }
        let mut rules = table(
            &["egress rule", "passed", "last", "refused", "last", "ports"],
            &[1, 2, 3, 4],
        );
        for (name, rule) in &self.rules {
            let calls = self.by_rule.get(name).copied().unwrap_or_default();
            rules.add_row([
                name.clone(),
                calls.passed.count.to_string(),
                last(calls.passed),
                calls.refused.count.to_string(),
                last(calls.refused),
                rule.ports.join(" "),
            ]);
        }
        let mut text = format!("\n{reasons}\n\n{rules}\n");
        if !self.by_name.is_empty() {
            let mut names = table(&["name", "addresses", "passed", "last"], &[1, 2, 3]);
            for (name, of_name) in &self.by_name {
                names.add_row([
                    name.clone(),
                    of_name.addresses.to_string(),
                    of_name.passed.count.to_string(),
                    last(of_name.passed),
                ]);
            }
            let answers = self.counted.answers.iter().filter(|(_, count)| *count != 0);
            let answers: Vec<String> = answers
                .map(|(kind, count)| format!("{} {count}", kind.name()))
                .collect();
            text += &format!("\n{names}\nanswers of resolvers: {}\n", answers.join(", "));
        }
        text
    }

    /// Returns the state as JSON. `last` returns the time of the last call.
    pub(super) fn json(&self, last: impl Fn(Calls) -> Option<Timestamp>) -> Value {
        let rules: Map<_, _> = self
            .rules
            .iter()
            .map(|(name, rule)| {
                let calls = self.by_rule.get(name).copied().unwrap_or_default();
                let value = json!({
                    "to": rule.to,
                    "ports": rule.ports,
                    "units": rule.units,
                    "passed": calls.passed.count,
                    "last_passed": last(calls.passed),
                    "refused": calls.refused.count,
                    "last_refused": last(calls.refused),
                });
                (name.clone(), value)
            })
            .collect();
        let mut counters = Map::new();
        for call in Call::ALL {
            let verdicts = Verdict::ALL.into_iter().map(|verdict| {
                let reasons = EgressReason::ALL.into_iter().map(|reason| {
                    let mut counted = self.counted.calls.iter();
                    let found =
                        counted.find(|one| (one.0, one.1, one.2) == (call, verdict, reason));
                    (
                        reason.name().to_owned(),
                        json!(found.map_or(0, |one| one.3)),
                    )
                });
                (word(verdict).to_owned(), Value::Object(reasons.collect()))
            });
            counters.insert(call.name().to_owned(), Value::Object(verdicts.collect()));
        }
        let answers: Map<_, _> = self
            .counted
            .answers
            .iter()
            .map(|(kind, count)| (kind.name().to_owned(), json!(count)))
            .collect();
        let names: Map<_, _> = self
            .by_name
            .iter()
            .map(|(name, of_name)| {
                let value = json!({
                    "addresses": of_name.addresses,
                    "passed": of_name.passed.count,
                    "last_passed": last(of_name.passed),
                });
                (name.clone(), value)
            })
            .collect();
        json!({
            "mode": self.mode(),
            "default": self.default(),
            "errno": self.control.refusal.name(),
            "cgroups": self.counted.cgroups,
            "counters": counters,
            "rules": rules,
            "answers": answers,
            "names": names,
        })
    }
}

/// Returns the display form of a verdict on a call: `pass` or `refuse`.
pub(super) const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Drop => "refuse",
    }
}
