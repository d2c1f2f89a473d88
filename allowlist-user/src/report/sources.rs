//! The sources: the state, the age and the passed packets of each, and the time of its next fetch.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Report, Status, ago, table};
use crate::generation_meta::SourceMeta;

/// The report of `allowlist sources`: the sources of a status.
pub struct Sources(pub Status);

impl Report for Sources {
    fn text(&self) -> String {
        if self.0.sources().next().is_none() {
            return "no source is active, or the kernel has no readable names for the active generation\n"
                .to_owned();
        }
        format!("{}\n{}", self.0.sources_table(), self.0.source_warnings())
    }

    fn json(&self) -> Value {
        json!({ "sources": self.0.sources_json() })
    }
}

impl Status {
    /// Returns the table of sources, a row for each.
    pub(super) fn sources_table(&self) -> String {
        let header = [
            "source", "state", "prefixes", "age", "next", "passed", "bytes", "last", "from",
        ];
        let mut table = table(&header, &[2, 3, 4, 5, 6, 7]);
        for (name, source) in self.sources() {
            let traffic = self.traffic_of(name);
            table.add_row([
                name.clone(),
                source.state(self.now).to_owned(),
                match source.grace {
                    0 => source.prefixes.to_string(),
                    grace => format!("{} ({grace} in grace)", source.prefixes),
                },
                self.age_of(source).map_or_else(|| "-".to_owned(), ago),
                self.next_fetch(name).map_or_else(
                    || "-".to_owned(),
                    |next| ago(next.duration_since(self.now).as_secs()),
                ),
                traffic.packets.to_string(),
                traffic.bytes.to_string(),
                self.last(traffic),
                match &source.regions[..] {
                    [] => source.origin.clone(),
                    regions => format!("{} ({})", source.origin, regions.join(" ")),
                },
            ]);
        }
        format!("{table}\n")
    }

    /// Returns the warnings and notes about the sources.
    pub(super) fn source_warnings(&self) -> String {
        let mut text = String::new();
        for (name, source) in self.sources() {
            if let Some(failure) = &source.failure {
                text += &match source.fetched {
                    Some(_) => {
                        format!("warning: {name}: the last-good list is active: {failure}\n")
                    }
                    None => format!("warning: {name}: no list yet: {failure}\n"),
                };
            }
            if source.is_stale(self.now) {
                text += &format!(
                    "warning: {name}: the list is stale: it is {} old, and max_age is {}; it stays active\n",
                    ago(self.age_of(source).unwrap_or_default()),
                    ago(source.max_age_seconds.unwrap_or_default().cast_signed())
                );
            }
            for note in &source.notes {
                text += &format!("note: {name}: {note}\n");
            }
        }
        text
    }

    pub(super) fn sources_json(&self) -> Value {
        let sources: Map<_, _> = self
            .sources()
            .map(|(name, source)| {
                let traffic = self.traffic_of(name);
                let value = json!({
                    "origin": source.origin,
                    "regions": source.regions,
                    "state": source.state(self.now),
                    "prefixes": source.prefixes,
                    "grace": source.grace,
                    "notes": source.notes,
                    "max_age_seconds": source.max_age_seconds,
                    "fetched": source.fetched,
                    "age_seconds": self.age_of(source),
                    "next_fetch": self.next_fetch(name),
                    "failure": source.failure,
                    "failure_code": source.failure_code,
                    "passed_packets": traffic.packets,
                    "passed_bytes": traffic.bytes,
                    "last_passed": self.last_time(traffic),
                });
                (name.clone(), value)
            })
            .collect();
        Value::Object(sources)
    }

    fn next_fetch(&self, name: &str) -> Option<Timestamp> {
        self.daemon.as_ref()?.next_fetch.get(name).copied()
    }

    fn age_of(&self, source: &SourceMeta) -> Option<i64> {
        source.fetched.map(|fetched| self.age(fetched))
    }
}
