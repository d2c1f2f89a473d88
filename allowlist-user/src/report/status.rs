//! What is in force: a page that answers at a glance, and the same as data.

use std::collections::BTreeMap;
use std::path::Path;

use allowlist_common::abi::{Control, Counters, Traffic};
use allowlist_common::verdict::{Reason, Verdict};
use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{ago, table};
use crate::control::Live;
use crate::dataplane::{Attachment, View};
use crate::record::Record;

/// Everything that `status` prints.
pub struct Status {
    /// The daemon, if one answers.
    pub daemon: Option<Live>,
    control: Control,
    attachments: Vec<Attachment>,
    counters: BTreeMap<String, Counters>,
    record: Option<Record>,
    traffic: BTreeMap<String, Traffic>,
    now: Timestamp,
}

impl Status {
    /// Reads the kernel, and the record for what its numbers mean.
    pub fn read(pin_dir: &Path, state_dir: &Path) -> Result<Self> {
        let view = View::open(pin_dir)?;
        let record = Record::load(state_dir);
        let traffic = match &record {
            Some(record) => by_source(record, &view.traffic(record.names.matches.len())?),
            None => BTreeMap::new(),
        };
        Ok(Self {
            daemon: None,
            control: view.control()?,
            attachments: view.attachments()?,
            counters: view.counters()?,
            record,
            traffic,
            now: Timestamp::now(),
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = self.headline();
        let filters = self.attachments.iter().any(|one| one.attached);
        text += &match &self.daemon {
            Some(daemon) => format!("daemon: running, process {}\n", daemon.pid),
            None if filters => {
                "daemon: not running; the kernel goes on by the last lists\n".to_owned()
            }
            None => "daemon: not running\n".to_owned(),
        };
        let mut counters = table(&["interface", "verdict", "reason", "packets"], &[3]);
        for (name, of_interface) in &self.counters {
            for verdict in Verdict::ALL {
                for reason in Reason::ALL {
                    let packets = of_interface.get(verdict, reason);
                    if packets != 0 {
                        counters.add_row([
                            name,
                            verdict.name(),
                            reason.name(),
                            &packets.to_string(),
                        ]);
                    }
                }
            }
        }
        text += &format!("\n{counters}\n");
        let Some(record) = &self.record else {
            return text + "\nnothing is known of the sources: no record in this state directory\n";
        };
        let mut sources = table(
            &["source", "prefixes", "age", "passed", "bytes", "from"],
            &[1, 2, 3, 4],
        );
        for (name, source) in &record.sources {
            let traffic = self.traffic.get(name).copied().unwrap_or_default();
            sources.add_row([
                name.clone(),
                source.prefixes.to_string(),
                ago(self.age(source.fetched)),
                traffic.packets.to_string(),
                traffic.bytes.to_string(),
                source.origin.clone(),
            ]);
        }
        text += &format!("\n{sources}\n");
        for (name, source) in &record.sources {
            if let Some(failure) = &source.failure {
                text += &format!("warning: {name}: by its last good list: {failure}\n");
            }
        }
        text
    }

    fn headline(&self) -> String {
        let (on, gone): (Vec<_>, Vec<_>) = self
            .attachments
            .iter()
            .partition(|attachment| attachment.attached);
        let mut text = if on.is_empty() {
            "not filtering: no interface has the filter on it\n".to_owned()
        } else {
            let interfaces: Vec<_> = on
                .iter()
                .map(|attachment| match attachment.mode {
                    Some(mode) => format!("{} ({})", attachment.name, mode.name()),
                    None => attachment.name.clone(),
                })
                .collect();
            format!(
                "{} {}, generation {}; what no service covers: {}\n",
                if self.control.observe {
                    "observing (nothing is dropped)"
                } else {
                    "filtering"
                },
                interfaces.join(", "),
                self.control.generation,
                self.control.default_verdict.name(),
            )
        };
        for attachment in gone {
            text += &format!(
                "warning: {} was removed, and with it the filter on it; a daemon puts it on again when it is back\n",
                attachment.name
            );
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let counters: Map<_, _> = self
            .counters
            .iter()
            .map(|(name, counters)| (name.clone(), counters_json(counters)))
            .collect();
        let sources: Map<_, _> = self
            .record
            .iter()
            .flat_map(|record| &record.sources)
            .map(|(name, source)| {
                let traffic = self.traffic.get(name).copied().unwrap_or_default();
                let value = json!({
                    "origin": source.origin,
                    "prefixes": source.prefixes,
                    "fetched": source.fetched,
                    "age_seconds": self.age(source.fetched),
                    "failure": source.failure,
                    "passed_packets": traffic.packets,
                    "passed_bytes": traffic.bytes,
                });
                (name.clone(), value)
            })
            .collect();
        json!({
            "filtering": self.attachments.iter().any(|one| one.attached) && !self.control.observe,
            "interfaces": self.attachments,
            "generation": self.control.generation,
            "mode": if self.control.observe { "observe" } else { "enforce" },
            "default": self.control.default_verdict.name(),
            "counters": counters,
            "services": self.record.as_ref().map(|record| &record.services),
            "sources": sources,
            "daemon": self.daemon,
        })
    }

    fn age(&self, fetched: Timestamp) -> i64 {
        self.now.duration_since(fetched).as_secs()
    }
}

/// Counters by verdict and reason, all of them, so that a reader need not know which can be missing.
fn counters_json(counters: &Counters) -> Value {
    let verdicts = Verdict::ALL.into_iter().map(|verdict| {
        let reasons = Reason::ALL.into_iter().map(|reason| {
            (
                reason.name().to_owned(),
                json!(counters.get(verdict, reason)),
            )
        });
        (verdict.name().to_owned(), Value::Object(reasons.collect()))
    });
    Value::Object(verdicts.collect())
}

/// What passed, by source. Where sources overlap, a packet counts for each that lists its prefix.
fn by_source(record: &Record, traffic: &[Traffic]) -> BTreeMap<String, Traffic> {
    let mut sums = BTreeMap::<String, Traffic>::new();
    for (sources, passed) in record.names.matches.iter().zip(traffic) {
        for source in sources {
            let sum = sums.entry(source.clone()).or_default();
            sum.packets += passed.packets;
            sum.bytes += passed.bytes;
        }
    }
    sums
}
