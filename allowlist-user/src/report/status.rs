//! The state of the filter, as text and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use allowlist_common::abi::{
    Calls, Control, Counters, FLOWS, ReturnTraffic, ServiceTraffic, Traffic,
};
use allowlist_common::verdict::{Reason, Verdict};
use allowlist_dataplane::{
    Attachment, Counted, Difference, PendingConfirm, View, by_all_names, kernel_clock,
};
use allowlist_policy::Mode;
use allowlist_policy::compile::IdTable;
use allowlist_policy::hints;
use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::egress::EgressStatus;
use super::{Epoch, Report, ago, table};
use crate::config::Config;
use crate::control::DaemonStatus;
use crate::generation_meta::{GenerationMeta, SourceMeta};
use crate::journal::PolicyHistory;

/// The report of `allowlist status`.
pub struct Status {
    /// The status of the daemon; `None` if no daemon answers.
    pub daemon: Option<DaemonStatus>,
    control: Control,
    attachments: Vec<Attachment>,
    counted: Vec<Counted>,
    /// The differences that the self-check found between the kernel and the published state.
    differences: Vec<Difference>,
    meta: Option<GenerationMeta>,
    traffic: BTreeMap<String, Traffic>,
    services: BTreeMap<String, ServiceTraffic>,
    /// The capacity of the flow table and the number of its flows; `None` if return traffic is not tracked.
    flows: Option<(u32, usize)>,
    pending: Option<PendingConfirm>,
    egress: Option<EgressStatus>,
    /// The mode of the newest policy's configuration, and the name of that configuration; `None` if the journal has no
    /// policy, or it or the configuration cannot be read.
    journal: Option<(Mode, String)>,
    pub(super) now: Timestamp,
    epoch: Epoch,
}

impl Status {
    /// Reads the state of the filter from the kernel, and the configured mode from the journal in `state_dir`.
    pub fn read(pin_dir: &Path, state_dir: &Path) -> Result<Self> {
        let view = View::open(pin_dir)?;
        let meta = GenerationMeta::read(&view)?;
        let ids = meta
            .as_ref()
            .map_or_else(IdTable::default, |meta| meta.ids.clone());
        let traffic = view.traffic(ids.matches.len())?;
        let services = view.service_traffic(ids.services.len())?;
        let control = view.control()?;
        let flows = (control.return_traffic == ReturnTraffic::Track && view.has(FLOWS)?)
            .then(|| view.flows())
            .transpose()?;
        let now = Timestamp::now();
        Ok(Self {
            daemon: None,
            control,
            attachments: view.attachments()?,
            counted: view.counted()?,
            differences: view.self_check()?,
            traffic: by_name(&ids.matches, &traffic, Traffic::plus),
            services: by_name(&ids.services, &services, ServiceTraffic::plus),
            flows,
            pending: view.pending()?,
            egress: EgressStatus::read(&view, &control, meta.as_ref())?,
            journal: configured_mode(state_dir),
            meta,
            now,
            epoch: Epoch::new(now, kernel_clock()),
        })
    }

    /// Returns whether the self-check has found a difference between the kernel and the published state.
    pub const fn differs(&self) -> bool {
        !self.differences.is_empty()
    }

    /// Returns whether the filter is attached as configured, in either mode, and the self-check has found no
    /// difference.
    pub fn is_as_configured(&self) -> bool {
        // An interface that was removed or moved away is a difference, unless another one has taken its place.
        let are_on = |all: &[Attachment]| all.iter().any(|one| one.attached);
        let daemon = self.daemon.as_ref();
        are_on(&self.attachments)
            && self.holds()
            && !self.differs()
            && daemon.is_none_or(|daemon| daemon.missing_interfaces.is_empty() && !daemon.inactive)
    }

    /// Returns whether the filter is attached as configured, and drops packets.
    pub fn is_filtering(&self) -> bool {
        self.is_as_configured() && !self.control.observe
    }

    /// Returns the active mode, as the kernel has it.
    fn mode(&self) -> Mode {
        if self.control.observe {
            Mode::Observe
        } else {
            Mode::Enforce
        }
    }

    /// Returns the mode of the configuration and the configuration's name, if another mode is active; otherwise `None`.
    fn configured_otherwise(&self) -> Option<(Mode, &str)> {
        let (configured, origin) = if let Some(daemon) = &self.daemon {
            (daemon.configured_mode?, &*daemon.configuration)
        } else {
            let (mode, origin) = self.journal.as_ref()?;
            (*mode, &**origin)
        };
        (configured != self.mode()).then_some((configured, origin))
    }

    /// Returns the warnings of the daemon; without a daemon, a warning if the active mode differs from that of the
    /// configuration in the journal.
    fn warnings(&self) -> Vec<String> {
        let daemon = self.daemon.iter().flat_map(|daemon| &daemon.warnings);
        let mut warnings: Vec<String> = daemon.cloned().collect();
        if self.daemon.is_none()
            && let Some((configured, origin)) = self.configured_otherwise()
        {
            let (active, configured) = (self.mode().name(), configured.name());
            warnings.push(format!(
                "mode {active} was set by command, but {origin} states {configured}; to return to mode {configured}, start the daemon, then run `allowlist mode {configured}`"
            ));
        }
        warnings
    }

    /// Returns whether a policy decides about packets: a generation is published, and the kernel does not let every
    /// packet pass, as it does if the first change is not confirmed in time.
    fn holds(&self) -> bool {
        self.control.generation != 0 && !self.control.open
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = (&String, &SourceMeta)> {
        self.meta.iter().flat_map(|meta| &meta.sources)
    }

    pub(super) fn traffic_of(&self, source: &str) -> Traffic {
        self.traffic.get(source).copied().unwrap_or_default()
    }

    fn headline(&self) -> String {
        let on: Vec<_> = self.attachments.iter().filter(|one| one.attached).collect();
        let mut text = if on.is_empty() {
            "not filtering: the filter is attached to no interface\n".to_owned()
        } else if self.control.generation == 0 && !self.control.open {
            "not filtering by a policy: no generation is active, so packets are dropped\n"
                .to_owned()
        } else if !self.holds() {
            "not filtering: the change was not confirmed in time, so every packet passes\n"
                .to_owned()
        } else {
            let interfaces: Vec<_> = on
                .iter()
                .map(|attachment| match attachment.mode {
                    Some(mode) => format!("{} ({})", attachment.name, mode.name()),
                    None => attachment.name.clone(),
                })
                .collect();
            let by_command = self.configured_otherwise().map(|(configured, origin)| {
                let (active, configured) = (self.mode().name(), configured.name());
                format!(
                    "; mode {active} BY COMMAND, {origin} states {configured}: run `allowlist mode {configured}` to return to it"
                )
            });
            format!(
                "{} {}, generation {}{}; default {}\n",
                match self.mode() {
                    Mode::Observe => "observing (nothing is dropped)",
                    Mode::Enforce => "filtering",
                },
                interfaces.join(", "),
                self.control.generation,
                by_command.unwrap_or_default(),
                self.control.default_verdict.name(),
            )
        };
        if let Some(since) = self.meta.as_ref().and_then(|meta| meta.since)
            && !on.is_empty()
            && self.holds()
        {
            text += &format!(
                "since {} ({} ago)\n",
                since.strftime("%Y-%m-%d %H:%M:%SZ"),
                ago(self.age(since))
            );
        }
        if let Some((room, alive)) = self.flows {
            text += &format!("own flows: {alive} tracked, at most {room}\n");
        }
        for difference in &self.differences {
            text += &format!("self-check: {}\n", difference.text);
        }
        let is_explained = |one: &Attachment| {
            let mut objects = self
                .differences
                .iter()
                .filter_map(|found| found.object.as_ref());
            objects.any(|object| *object == one.name)
        };
        for attachment in self.attachments.iter().filter(|one| !is_explained(one)) {
            if attachment.is_elsewhere {
                text += &format!(
                    "interface {} was moved to another network namespace, and stays filtered there until the next start or `allowlist detach`\n",
                    attachment.name
                );
            }
        }
        text
    }

    fn daemon_text(&self) -> String {
        let filters = self.attachments.iter().any(|one| one.attached);
        let Some(daemon) = &self.daemon else {
            let mut text = if filters {
                "daemon: not running; the kernel keeps filtering with the last lists\n".to_owned()
            } else {
                "daemon: not running\n".to_owned()
            };
            match self.pending {
                Some(pending) if pending.fell_back => {
                    text += "a change was not confirmed in time: the kernel rolled it back\n";
                }
                Some(pending) => {
                    text += &format!(
                        "UNCONFIRMED: a change is rolled back in {}; to keep it, start the daemon and run `allowlist confirm`\n",
                        ago(pending.left.as_secs().cast_signed())
                    );
                }
                None => {}
            }
            return text;
        };
        let mut text = format!("daemon: running, process {}\n", daemon.pid);
        if let Some(policy) = daemon.policy {
            text += &format!("policy {policy}, by {}\n", daemon.configuration);
        }
        if daemon.config_suppressed {
            text += "warning: the configuration file was rolled back and is not active; correct it, then run `allowlist reload`\n";
        }
        if let Some(pending) = &daemon.pending {
            text += &format!(
                "UNCONFIRMED: {} by {} is rolled back in {}; `allowlist confirm` keeps it\n",
                pending.what,
                pending.by,
                ago(pending.until.duration_since(self.now).as_secs())
            );
        }
        if daemon.inactive {
            text += &format!(
                "WAITING for lists of {}: the configuration is inactive until these lists are fetched (at_start = \"wait\")\n",
                daemon.missing_sources.join(", ")
            );
        }
        if daemon.failing_open {
            text += &format!(
                "OPEN: until lists of {} are fetched, these sources match every address (at_start = \"pass\")\n",
                daemon.missing_sources.join(", ")
            );
        }
        for name in &daemon.missing_interfaces {
            let hint = hints::interface(name).map_or_else(String::new, |hint| format!("; {hint}"));
            text += &format!(
                "warning: interface {name} does not exist; it is filtered once it appears{hint}\n"
            );
        }
        text
    }

    /// Returns the number of dropped packets by reason, in one line.
    fn drops_text(&self) -> String {
        let reasons = Reason::ALL.into_iter().filter_map(|reason| {
            let of = |counted: &Counted| counted.counters.get(Verdict::Drop, reason);
            let packets: u64 = self.counted.iter().map(of).sum();
            (packets > 0).then(|| format!("{packets} {}", reason.name()))
        });
        let reasons: Vec<_> = reasons.collect();
        let verb = if self.control.observe {
            "would have dropped"
        } else {
            "dropped"
        };
        match &reasons[..] {
            [] => format!("{verb}: nothing\n"),
            some => format!("{verb}: {}\n", some.join(", ")),
        }
    }

    pub(super) fn last_time(&self, traffic: Traffic) -> Option<Timestamp> {
        (traffic.last != 0).then(|| self.epoch.time(traffic.last))
    }

    /// Returns the time of the last call; `None` before the first.
    fn last_call_time(&self, calls: Calls) -> Option<Timestamp> {
        (calls.last != 0).then(|| self.epoch.time(calls.last))
    }

    fn last_call(&self, calls: Calls) -> String {
        self.last_call_time(calls)
            .map_or_else(|| "never".to_owned(), |time| ago(self.age(time)))
    }

    pub(super) fn last(&self, traffic: Traffic) -> String {
        self.last_time(traffic)
            .map_or_else(|| "never".to_owned(), |time| ago(self.age(time)))
    }

    pub(super) fn age(&self, fetched: Timestamp) -> i64 {
        self.now.duration_since(fetched).as_secs()
    }
}

impl Report for Status {
    fn text(&self) -> String {
        let mut text = self.headline();
        text += &self.daemon_text();
        if let Some(egress) = &self.egress {
            text += &egress.headline();
        }
        text += &self.drops_text();
        let mut counters = table(&["interface", "verdict", "reason", "packets"], &[3]);
        for one in &self.counted {
            let name = match &one.former_names[..] {
                [] => one.name.clone(),
                former => format!("{} (was {})", one.name, former.join(", ")),
            };
            for verdict in Verdict::ALL {
                for reason in Reason::ALL {
                    let packets = one.counters.get(verdict, reason);
                    if packets != 0 {
                        counters.add_row([
                            &*name,
                            verdict.name(),
                            reason.name(),
                            &packets.to_string(),
                        ]);
                    }
                }
            }
        }
        text += &format!("\n{counters}\n");
        let Some(meta) = &self.meta else {
            return text
                + "\nthe services and sources are unknown: the kernel has no readable names for the active generation\n";
        };
        let mut services = table(
            &["service", "passed", "bytes", "last", "dropped", "ports"],
            &[1, 2, 3, 4],
        );
        for (name, service) in &meta.services {
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
        if let Some(egress) = &self.egress {
            text += &egress.text(|calls| self.last_call(calls));
        }
        text += &format!("\n{}", self.sources_table());
        text += &self.source_warnings();
        for warning in self.warnings() {
            text += &format!("warning: {warning}\n");
        }
        text
    }

    fn json(&self) -> Value {
        let counters: Map<_, _> = by_all_names(&self.counted)
            .iter()
            .map(|(name, counters)| (name.clone(), counters_json(counters)))
            .collect();
        let services: Map<_, _> = self
            .meta
            .iter()
            .flat_map(|meta| &meta.services)
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
            "as_configured": self.is_as_configured(),
            "filtering": self.is_filtering(),
            "differences": self.differences,
            "since": self.meta.as_ref().and_then(|meta| meta.since),
            "unconfirmed": self.pending.map(|pending| json!({
                "seconds_left": pending.left.as_secs(),
                "rolled_back": pending.fell_back,
            })),
            "interfaces": self.attachments,
            "generation": self.control.generation,
            "mode": self.mode(),
            "configured_mode": self
                .configured_otherwise()
                .map_or(self.mode(), |(configured, _)| configured),
            "default": self.control.default_verdict.name(),
            "counters": counters,
            "return_traffic": return_traffic(self.control.return_traffic),
            "flows": self.flows.map(|(room, alive)| json!({ "room": room, "tracked": alive })),
            "services": services,
            "egress": self.egress.as_ref().map(|egress| egress.json(|calls| self.last_call_time(calls))),
            "sources": self.sources_json(),
            "warnings": self.warnings(),
            "daemon": self.daemon,
        })
    }
}

/// Returns the mode and the name of the newest policy's configuration, from the journal; `None` if the journal has no
/// policy, or it or the configuration cannot be read.
fn configured_mode(state_dir: &Path) -> Option<(Mode, String)> {
    let known = PolicyHistory::load_readonly(state_dir).ok()?;
    let written = known.newest()?.written();
    let file = written.file.as_deref();
    let config =
        Config::parse(&written.text, file.unwrap_or(Path::new("the command line"))).ok()?;
    Some((config.mode, written.origin()))
}

/// Returns the counters by verdict and reason, zeros included.
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

/// Returns the kernel's setting of return traffic in the syntax of the key `return_traffic`.
fn return_traffic(kernels: ReturnTraffic) -> &'static str {
    match kernels {
        ReturnTraffic::Off => "off",
        ReturnTraffic::Established => "established",
        ReturnTraffic::Track => "track",
    }
}

/// Returns the sum of the counters for each name; the counter at an index of `counted` belongs to all names at this
/// index of `names`. Where sources overlap, or services share a port, a packet counts for each.
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
