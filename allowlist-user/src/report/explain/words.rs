//! An explanation as text and as JSON. Pure.

use allowlist_common::abi::Traffic;
use allowlist_common::judge::Decision;
use allowlist_common::verdict::{Reason, Verdict};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Behind, Explanation, Reached};
use crate::report::{Report, ago, table};

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
                "\nthis host tracks {flows} flows with {}: answers to these flows pass\n",
                self.question.address
            );
        }
        if self.interfaces.is_empty() {
            return text;
        }
        text + &self.sources_text()
    }

    fn json(&self) -> Value {
        let interfaces = self.interfaces.iter().flat_map(|(names, rows)| {
            let decisions: Value = rows.iter().map(|reached| self.row_json(reached)).collect();
            names
                .iter()
                .map(move |name| json!({ "name": name, "decisions": decisions }))
        });
        let prefixes = self.prefixes.iter().map(|matching| {
            let grace: Map<_, _> = matching
                .grace
                .iter()
                .map(|(source, until)| (source.clone(), json!(until)))
                .collect();
            json!({
                "prefix": matching.prefix,
                "services": matching.services,
                "sources": matching.sources,
                "grace_until": grace,
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

impl Explanation {
    fn headline(&self) -> String {
        let address = self.question.address;
        let mut text = match (self.question.target, &self.interfaces[..]) {
            (_, []) => {
                return format!("{address} passes: the filter is attached to no interface\n");
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
            (None, _) => format!("services that {address} reaches"),
        };
        text += &format!("; generation {}\n", self.control.generation);
        if self.control.observe {
            text += "observe mode: every packet passes; these are the verdicts of enforce mode\n";
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

    /// Returns the reason of a decision as text: the step of docs/packets.md, and the names involved.
    fn why(&self, reached: &Reached) -> String {
        let services = named(&reached.services, "a service whose name is unknown");
        let address = self.question.address;
        match reached.row.decision.reason {
            Reason::Allowed => format!(
                "step 4: {services} covers such packets and allows {}, which lists {address}",
                named(&reached.sources, "a source whose name is unknown")
            ),
            Reason::NotAllowed if self.prefixes.is_empty() => {
                format!("step 4: {services} covers such packets, and no source lists {address}")
            }
            Reason::NotAllowed => {
                format!(
                    "step 4: {services} covers such packets, and allows no source that lists {address}"
                )
            }
            Reason::Default => format!(
                "step 6: no service covers such packets, and default = \"{}\"",
                self.control.default_verdict.name()
            ),
            Reason::InternalError => {
                "no generation is published yet, so no source is allowed".to_owned()
            }
            // No question has another reason.
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
        let meta = behind.meta.as_ref();
        json!({
            "state": meta.map(|one| one.state(self.now)),
            "origin": meta.map(|one| &one.origin),
            "regions": meta.map(|one| &one.regions),
            "fetched": meta.and_then(|one| one.fetched),
            "age_seconds": meta.and_then(|one| Some(self.age(one.fetched?))),
            "failure": meta.and_then(|one| one.failure.as_ref()),
            "failure_code": meta.and_then(|one| one.failure_code),
            "passed_packets": behind.traffic.packets,
            "last_passed": self.last(behind.traffic),
        })
    }

    /// Returns the table of prefixes that contain the address, and the table of their sources.
    fn sources_text(&self) -> String {
        if self.prefixes.is_empty() {
            return format!("\nno active prefix contains {}\n", self.question.address);
        }
        let mut prefixes = table(&["prefix", "reaches", "listed by", "grace period"], &[]);
        for matching in &self.prefixes {
            let grace = matching.grace.iter();
            let grace = grace.map(|(source, until)| format!("for {source} until {until:.0}"));
            prefixes.add_row([
                matching.prefix.to_string(),
                matching.services.join(" "),
                matching.sources.join(" "),
                match grace.collect::<Vec<_>>().join(", ") {
                    none if none.is_empty() => "-".to_owned(),
                    grace => grace,
                },
            ]);
        }
        let mut text = format!("\n{prefixes}\n");
        if !self.has_meta {
            return text
                + "\nthe services and sources are unknown: the kernel has no readable names for the active generation\n";
        }
        let mut sources = table(
            &["source", "state", "age", "last hit", "regions", "from"],
            &[2, 3],
        );
        for (name, behind) in &self.sources {
            let Some(meta) = &behind.meta else {
                continue;
            };
            sources.add_row([
                name.clone(),
                meta.state(self.now).to_owned(),
                meta.fetched
                    .map_or_else(|| "-".to_owned(), |fetched| ago(self.age(fetched))),
                self.last(behind.traffic)
                    .map_or_else(|| "never".to_owned(), |time| ago(self.age(time))),
                match &meta.regions[..] {
                    [] => "-".to_owned(),
                    some => some.join(" "),
                },
                meta.origin.clone(),
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

/// Returns the step of docs/packets.md that decides with this reason; `None` for an internal error.
fn step(reason: Reason) -> Option<u8> {
    Some(match reason {
        Reason::NotIp | Reason::Arp => 1,
        Reason::Malformed => 2,
        Reason::NeighbourDiscovery | Reason::IcmpError | Reason::Dhcp | Reason::Multicast => 3,
        Reason::Allowed | Reason::NotAllowed | Reason::Fragment => 4,
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
