//! The policy that a start would publish, for `check`.

use allowlist_dataplane::Entry;
use allowlist_policy::Verdict;
use allowlist_policy::compile::Tables;
use allowlist_policy::error_code::CodedError;
use allowlist_policy::text::indented;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::attach::{ExpectedAttach, attach_table};
use super::egress::word as egress_word;
use super::list::entries_json;
use super::{Table, ago, table};
use crate::config::Config;
use crate::generation_meta::{GenerationMeta, SourceMeta};

/// The report of `allowlist check`: a compiled configuration that is not published.
pub struct Plan<'a> {
    /// The configuration that was compiled.
    pub config: &'a Config,
    /// The names of the sources and services in the tables.
    pub meta: &'a GenerationMeta,
    /// The tables that a start would publish.
    pub tables: &'a Tables,
    /// Warnings about the configuration.
    pub warnings: &'a [String],
    /// Notes about the configuration that need no change.
    pub notes: &'a [String],
    /// The expected result of attaching to each interface that is present.
    pub attach: &'a [ExpectedAttach],
    /// The reasons why a start would fail, or would wait for a list.
    pub failures: &'a [CodedError],
    /// The time of the report.
    pub now: Timestamp,
}

impl Plan<'_> {
    /// Returns the report as text for people.
    pub fn text(&self) -> String {
        let mut services = table(&["service", "ports", "on", "allows"], &[]);
        for (name, service) in &self.meta.services {
            let interfaces = match &service.interfaces[..] {
                [] => "all".to_owned(),
                some => some.join(" "),
            };
            services.add_row([
                name.clone(),
                service.ports.join(" "),
                interfaces,
                service.allow.join(" "),
            ]);
        }
        let mut text = format!("{services}\n\n");
        if let Some(rules) = self.egress_rules() {
            text += &format!("{rules}\n\n");
        }
        text += &format!("{}\n\n", self.sources());
        if let Some(attach) = attach_table(self.attach) {
            text += &format!("{attach}\n\n");
        }
        for (name, source) in &self.meta.sources {
            if let Some(failure) = &source.failure {
                let begin = format!("source {name}: ");
                let failure = failure.strip_prefix(&begin).unwrap_or(failure);
                text += &format!("failed: {name}: {}\n", indented(failure));
            }
        }
        for warning in self.warnings {
            text += &format!("warning: {warning}\n");
        }
        for note in self.notes {
            text += &format!("note: {note}\n");
        }
        for failure in self.failures {
            text += &format!("not ok: {}\n", indented(&failure.error));
        }
        if !self.failures.is_empty() {
            return text;
        }
        text + &format!(
            "ok: {} IPv4 and {} IPv6 prefixes, max_prefixes {}; mode {}, default {}{}{}\n",
            self.tables.v4.len(),
            self.tables.v6.len(),
            self.config.max_prefixes,
            word(&self.config.mode),
            word(&self.config.rules.default),
            match self.config.rules.default {
                Verdict::Pass => String::new(),
                Verdict::Drop => {
                    format!(
                        ", return traffic {}",
                        word(&self.config.rules.return_traffic)
                    )
                }
            },
            match &self.config.policy.egress {
                Some(egress) => format!(
                    "; egress mode {}, default {}",
                    egress.mode.name(),
                    egress_word(egress.default)
                ),
                None => String::new(),
            },
        )
    }

    /// Returns the table of the rules of the egress policy; `None` without one.
    fn egress_rules(&self) -> Option<Table> {
        self.config.policy.egress.as_ref()?;
        let mut rules = table(&["egress rule", "ports", "of", "to"], &[]);
        for (name, rule) in &self.meta.egress_rules {
            let units = match &rule.units[..] {
                [] => "all programs".to_owned(),
                some => some.join(" "),
            };
            rules.add_row([name.clone(), rule.ports.join(" "), units, rule.to.join(" ")]);
        }
        Some(rules)
    }

    /// Returns the table of sources; if a source has failed, with a column of their states.
    fn sources(&self) -> Table {
        let has_failed = |one: &SourceMeta| one.failure.is_some();
        if !self.meta.sources.values().any(has_failed) {
            let mut sources = table(&["source", "prefixes", "from"], &[1]);
            for (name, source) in &self.meta.sources {
                let count = source.prefixes.to_string();
                sources.add_row([name.clone(), count, source.origin.clone()]);
            }
            return sources;
        }
        let mut sources = table(&["source", "state", "prefixes", "from"], &[2]);
        for (name, source) in &self.meta.sources {
            let state = match (&source.failure, source.fetched) {
                (None, _) => "ok".to_owned(),
                (Some(_), Some(fetched)) => {
                    let age = self.now.duration_since(fetched).as_secs();
                    format!("failed, last-good of {} ago", ago(age))
                }
                (Some(_), None) => "failed, no list".to_owned(),
            };
            let count = source.prefixes.to_string();
            sources.add_row([name.clone(), state, count, source.origin.clone()]);
        }
        sources
    }

    /// Returns the report as JSON for programs.
    pub fn json(&self) -> Value {
        let v4 = self.tables.v4.iter().map(|(prefix, grant)| Entry {
            prefix: (*prefix).into(),
            grant: *grant,
        });
        let v6 = self.tables.v6.iter().map(|(prefix, grant)| Entry {
            prefix: (*prefix).into(),
            grant: *grant,
        });
        json!({
            "ok": self.failures.is_empty(),
            "failures": self.failures.iter().map(|failure| &failure.error).collect::<Vec<_>>(),
            "warnings": self.warnings,
            "notes": self.notes,
            "interfaces": self.config.interfaces,
            "attach": self.attach.iter().map(ExpectedAttach::json).collect::<Vec<_>>(),
            "mode": self.config.mode,
            "default": self.config.rules.default,
            "return_traffic": self.config.rules.return_traffic,
            "keep": self.config.rules.keep,
            "services": self.meta.services,
            "egress": self.config.policy.egress.as_ref().map(|egress| json!({
                "mode": egress.mode,
                "default": egress_word(egress.default),
                "errno": egress.errno.name(),
                "resolvers": egress.resolvers,
                "time_servers": egress.time_servers,
                "cgroups": egress.cgroups,
                "rules": self.meta.egress_rules,
            })),
            "sources": self.meta.sources,
            "prefixes": entries_json(v4.chain(v6).collect(), self.meta),
        })
    }
}

/// Returns a value in the syntax of the configuration file.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    match json!(value) {
        Value::String(word) => word,
        other => other.to_string(),
    }
}
