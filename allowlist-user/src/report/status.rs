//! What is in force: a page that answers at a glance, and the same as data.

use std::collections::BTreeMap;
use std::path::Path;

use allowlist_common::abi::{Control, Counters, ReturnTraffic, ServiceTraffic, Traffic};
use allowlist_common::verdict::{Reason, Verdict};
use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Epoch, Report, ago, table};
use crate::compile::Names;
use crate::control::Live;
use crate::dataplane::{Attachment, View, clock};
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
    services: BTreeMap<String, ServiceTraffic>,
    /// With tracking: how many flows there is room for, and how many there are.
    flows: Option<(u32, usize)>,
    now: Timestamp,
    epoch: Epoch,
}

impl Status {
    /// Reads the kernel, and the record for what its numbers mean.
    pub fn read(pin_dir: &Path, state_dir: &Path) -> Result<Self> {
        let view = View::open(pin_dir)?;
        let record = Record::load(state_dir);
        let names = record
            .as_ref()
            .map_or_else(Names::default, |record| record.names.clone());
        let traffic = view.traffic(names.matches.len())?;
        let services = view.service_traffic(names.services.len())?;
        let control = view.control()?;
        let flows = (control.return_traffic == ReturnTraffic::Track)
            .then(|| view.flows())
            .transpose()?;
        let now = Timestamp::now();
        Ok(Self {
            daemon: None,
            control,
            attachments: view.attachments()?,
            counters: view.counters()?,
            record,
            traffic: by_name(&names.matches, &traffic, Traffic::plus),
            services: by_name(&names.services, &services, ServiceTraffic::plus),
            flows,
            now,
            epoch: Epoch::new(now, clock()),
        })
    }

    fn is_stale(&self, source: &SourceRecord) -> bool {
        source
            .max_age_seconds
            .is_some_and(|most| self.age(source.fetched) > most.cast_signed())
    }

    /// The one word that matters most.
    fn state(&self, source: &SourceRecord) -> &'static str {
        if source.refused {
            "refused"
        } else if self.is_stale(source) {
            "stale"
        } else if source.failure.is_some() {
            "failing"
        } else {
            "ok"
        }
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
        if let Some((room, alive)) = self.flows {
            text += &format!("this host's own flows: {alive} tracked, room for {room}\n");
        }
        for attachment in gone {
            text += &format!(
                "warning: {} was removed, and with it the filter on it; a daemon puts it on again when it is back\n",
                attachment.name
            );
        }
        text
    }

    fn last_time(&self, traffic: Traffic) -> Option<Timestamp> {
        (traffic.last != 0).then(|| self.epoch.time(traffic.last))
    }

    fn last(&self, traffic: Traffic) -> String {
        self.last_time(traffic)
            .map_or_else(|| "never".to_owned(), |time| ago(self.age(time)))
    }

    fn age(&self, fetched: Timestamp) -> i64 {
        self.now.duration_since(fetched).as_secs()
    }
}

impl Report for Status {
    fn text(&self) -> String {
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
        let mut services = table(
            &["service", "passed", "bytes", "last", "dropped", "ports"],
            &[1, 2, 3, 4],
        );
        for (name, service) in &record.services {
            let traffic = self.services.get(name).copied().unwrap_or_default();
            services.add_row([
                name.clone(),
                traffic.passed.packets.to_string(),
                traffic.passed.bytes.to_string(),
                self.last(traffic.passed),
                traffic.dropped_packets.to_string(),
                match &service.interfaces[..] {
                    [] => service.ports.join(" "),
                    some => format!("{} on {}", service.ports.join(" "), some.join(" ")),
                },
            ]);
        }
        text += &format!("\n{services}\n");
        let mut sources = table(
            &[
                "source", "state", "prefixes", "age", "passed", "bytes", "last", "from",
            ],
            &[2, 3, 4, 5, 6],
        );
        for (name, source) in &record.sources {
            let traffic = self.traffic.get(name).copied().unwrap_or_default();
            sources.add_row([
                name.clone(),
                source.state(self.now).to_owned(),
                match source.held {
                    0 => source.prefixes.to_string(),
                    held => format!("{} ({held} held)", source.prefixes),
                },
                ago(self.age(source.fetched)),
                traffic.packets.to_string(),
                traffic.bytes.to_string(),
                self.last(traffic),
                source.origin.clone(),
            ]);
        }
        text += &format!("\n{sources}\n");
        for (name, source) in &record.sources {
            if let Some(failure) = &source.failure {
                text += &format!("warning: {name}: by its last good list: {failure}\n");
            }
            if source.is_stale(self.now) {
                text += &format!(
                    "warning: {name}: its list is {} old, and should not be older than {}\n",
                    ago(self.age(source.fetched)),
                    ago(source.max_age_seconds.unwrap_or_default().cast_signed())
                );
            }
            for note in &source.notes {
                text += &format!("note: {name}: {note}\n");
            }
        }
        text
    }

    fn json(&self) -> Value {
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
                    "state": source.state(self.now),
                    "prefixes": source.prefixes,
                    "held": source.held,
                    "notes": source.notes,
                    "max_age_seconds": source.max_age_seconds,
                    "fetched": source.fetched,
                    "age_seconds": self.age(source.fetched),
                    "failure": source.failure,
                    "passed_packets": traffic.packets,
                    "passed_bytes": traffic.bytes,
                    "last_passed": self.last_time(traffic),
                });
                (name.clone(), value)
            })
            .collect();
        let services: Map<_, _> = self
            .record
            .iter()
            .flat_map(|record| &record.services)
            .map(|(name, service)| {
                let traffic = self.services.get(name).copied().unwrap_or_default();
                let value = json!({
                    "ports": service.ports,
                    "interfaces": service.interfaces,
                    "allow": service.allow,
                    "passed_packets": traffic.passed.packets,
                    "passed_bytes": traffic.passed.bytes,
                    "last_passed": self.last_time(traffic.passed),
                    "dropped_packets": traffic.dropped_packets,
                    "dropped_bytes": traffic.dropped_bytes,
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
            "return_traffic": return_traffic(self.control.return_traffic),
            "flows": self.flows.map(|(room, alive)| json!({ "room": room, "tracked": alive })),
            "services": services,
            "sources": sources,
            "daemon": self.daemon,
        })
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

/// The word of the configuration for what counts as an answer.
fn return_traffic(kernels: ReturnTraffic) -> &'static str {
    match kernels {
        ReturnTraffic::Off => "off",
        ReturnTraffic::Established => "established",
        ReturnTraffic::Track => "track",
    }
}

/// What was counted, by name. Where sources overlap, or services share a port, a packet counts for
/// each.
pub(super) fn by_name<T: Copy + Default>(
    names: &[Vec<String>],
    counted: &[T],
    plus: impl Fn(T, T) -> T,
) -> BTreeMap<String, T> {
    let mut sums = BTreeMap::<String, T>::new();
    for (names, traffic) in names.iter().zip(counted) {
        for name in names {
            let sum = sums.entry(name.clone()).or_default();
            *sum = plus(*sum, *traffic);
        }
    }
    sums
}
