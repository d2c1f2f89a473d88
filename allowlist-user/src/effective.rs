//! The effective state of the filter, the difference between two states, and the plan of a change.
//!
//! - this file has the state, and compares the keys of the configuration, the mode, services and added prefixes
//! - `sources` compares sources and their lists
//! - `plan` derives the writes to the kernel
//!
//! Invariant: the difference is empty if and only if `status`, `list` and `explain` have equal output for both states.
//! Pure: does not know the daemon, the kernel, the disk or the clock.

mod egress;
mod known_ids;
mod plan;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;

use allowlist_lists::states::SourceStates;
use allowlist_policy::compile::{
    CompileError, IdTable, Tables, compile, compile_egress, require_room,
};
use allowlist_policy::{Feed, Keep, Mode, Policy, Rules, Service, public_url};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;

pub use self::known_ids::KnownIds;
pub(crate) use self::plan::tracking;
pub use self::plan::{KernelWrites, Plan, Scope, plan};
use crate::additions::{Addition, Additions, SOURCE_PREFIX, source_name};
use crate::config::Config;
use crate::hook::Hook;
use crate::journal::{Change, ConfigText};
use crate::time::Now;

/// The maximum number of prefixes of a list or service that a difference names; the rest are counted.
const NAMED: usize = 20;

/// All inputs of verdicts: the configuration, the mode, the added prefixes and the lists of sources.
///
/// A change of verdicts makes a new state; if the change fails, the old state stays in use. Only the health and the
/// fetch times of lists are modified in place. A copy is cheap, since copies share their parts.
#[derive(Clone, Debug)]
pub struct EffectiveState {
    config: Arc<Config>,
    /// The text from which the configuration was read.
    written: Arc<ConfigText>,
    mode: Mode,
    /// The active mode of the egress policy; ignored if the configuration has no egress policy.
    egress_mode: Mode,
    additions: Arc<Additions>,
    sources: SourceStates,
    /// The policy of the configuration, with a source of added prefixes for each service that has some.
    policy: Arc<Policy>,
}

impl EffectiveState {
    /// Returns the state with these inputs. `mode` may differ from the configuration's mode; `sources` may lack lists.
    /// The egress policy has the configuration's mode.
    /// The lists of added prefixes in `sources` are replaced by those of `additions`.
    pub fn new(
        config: Arc<Config>,
        written: Arc<ConfigText>,
        mode: Mode,
        additions: Arc<Additions>,
        mut sources: SourceStates,
    ) -> Self {
        let added = sources.feeds().keys();
        let added: BTreeSet<String> = added
            .filter_map(|name| name.strip_prefix(SOURCE_PREFIX))
            .map(str::to_owned)
            .chain(additions.services().cloned())
            .collect();
        for service in added {
            let (name, feed) = (source_name(&service), additions.feed(&service));
            // States share a list that has not changed.
            if sources.feed(&name) != feed.as_ref() {
                sources.set_feed(&name, feed);
            }
        }
        Self {
            policy: Arc::new(additions.with(&config.policy)),
            egress_mode: config.egress_mode(),
            config,
            written,
            mode,
            additions,
            sources,
        }
    }

    /// Returns this state with the mode and the added prefixes of a change. The change's configuration is ignored.
    #[must_use]
    pub fn with_change(&self, change: &Change) -> Self {
        let next = Self {
            mode: change.mode.unwrap_or(self.config.mode),
            egress_mode: change
                .egress_mode
                .unwrap_or_else(|| self.config.egress_mode()),
            ..self.clone()
        };
        if change.edits.is_empty() {
            return next;
        }
        let mut additions = Additions::clone(&self.additions);
        additions.apply(&change.edits);
        next.with_additions(additions)
    }

    /// Returns this state with other added prefixes.
    #[must_use]
    pub fn with_additions(&self, additions: Additions) -> Self {
        let (config, written) = (Arc::clone(&self.config), Arc::clone(&self.written));
        let (additions, sources) = (Arc::new(additions), self.sources.clone());
        Self::new(config, written, self.mode, additions, sources).with_egress_mode(self.egress_mode)
    }

    /// Returns this state with another mode of the egress policy.
    #[must_use]
    pub fn with_egress_mode(self, egress_mode: Mode) -> Self {
        Self {
            egress_mode,
            ..self
        }
    }

    /// Returns this state with other lists of sources.
    #[must_use]
    pub fn with_sources(&self, sources: SourceStates) -> Self {
        Self {
            sources,
            ..self.clone()
        }
    }

    /// Returns the configuration.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// Returns the text from which the configuration was read.
    pub fn written(&self) -> &Arc<ConfigText> {
        &self.written
    }

    /// Returns the active mode, which a command may have set.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns the active mode of the egress policy, which a command may have set.
    pub fn egress_mode(&self) -> Mode {
        self.egress_mode
    }

    /// Returns the prefixes that were added by command.
    pub fn additions(&self) -> &Arc<Additions> {
        &self.additions
    }

    /// Returns the lists and the health of the sources.
    pub fn sources(&self) -> &SourceStates {
        &self.sources
    }

    /// Returns the lists and the health of the sources, to record the result of a fetch that changes no verdict.
    pub fn sources_mut(&mut self) -> &mut SourceStates {
        &mut self.sources
    }

    /// Returns the policy of the configuration, with a source of added prefixes for each service that has some.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns the names of the used sources that have no list.
    pub fn missing(&self) -> Vec<String> {
        let sources = self.policy.used_sources().map(|source| &source.name);
        let missing = sources.filter(|name| self.sources.feed(name).is_none());
        missing.cloned().collect()
    }

    /// Compiles the state into tables.
    ///
    /// Sets of sources and services keep the ids that they have in `known`. If the ids run out, which takes thousands
    /// of changes of the overlaps between sources, all sets get new ids. A missing list is replaced as `at_start`
    /// defines. `index_of` returns the index of the interface with a name.
    pub fn compile(
        &self,
        known: &KnownIds,
        index_of: impl Fn(&str) -> Option<u32>,
    ) -> Result<Compiled, CompileError> {
        let policy = self.policy.on_interfaces(&self.config.interfaces, index_of);
        let mut lists = self.sources.feeds().clone();
        for name in self.missing() {
            let stand_in = Feed::new(self.config.at_start.stand_in(), Timestamp::UNIX_EPOCH);
            lists.insert(name, Arc::new(stand_in));
        }
        require_room(&policy, &lists, self.config.max_prefixes)?;
        let compile = |ids: &KnownIds| -> Result<_, CompileError> {
            let tables = compile(&policy, &lists, u32::MAX, &ids.packets)?;
            let egress = compile_egress(&policy, &lists, u32::MAX, &ids.egress)?;
            Ok((Arc::new(tables), egress.map(Arc::new)))
        };
        let ((tables, egress), is_renumbered) = match compile(known) {
            Err(CompileError::TooManyMatches | CompileError::TooManyServiceCounts) => {
                (compile(&known.only_names())?, true)
            }
            compiled => (compiled?, false),
        };
        Ok(Compiled {
            tables,
            egress,
            is_renumbered,
        })
    }

    /// Returns whether a command has set a mode other than that of the configuration.
    fn is_mode_by_command(&self) -> bool {
        self.mode != self.config.mode
    }

    /// Returns the added prefixes of the services that the configuration has, by service and prefix, without those that
    /// have expired at `now`.
    fn added(&self, now: &Now) -> BTreeMap<(&str, IpNet), &Addition> {
        let services = &self.config.policy.services;
        let has_expired = |one: &Addition| one.left(now).is_some_and(|left| left.is_zero());
        self.additions
            .all()
            .filter(|one| services.iter().any(|service| service.name == one.service))
            .filter(|one| !has_expired(one))
            .map(|one| ((&*one.service, one.prefix), one))
            .collect()
    }
}

/// An effective state, compiled.
#[derive(Clone)]
pub struct Compiled {
    /// The tables for packets.
    pub tables: Arc<Tables>,
    /// The tables of the egress policy; `None` without one.
    pub egress: Option<Arc<Tables>>,
    /// Whether all ids are new, so that the counters restart at 0.
    pub is_renumbered: bool,
}

impl Compiled {
    /// Returns the ids of the tables.
    pub fn ids(&self) -> KnownIds {
        KnownIds {
            packets: self.tables.ids.clone(),
            egress: self
                .egress
                .as_ref()
                .map_or_else(IdTable::default, |tables| tables.ids.clone()),
        }
    }
}

/// Returns a line for each difference between two effective states; no line if verdicts and reports are equal. Added
/// prefixes that have expired at `now` are ignored.
pub fn difference(old: &EffectiveState, new: &EffectiveState, now: Timestamp) -> Vec<String> {
    let mut lines = Lines::default();
    mode(old, new, &mut lines);
    egress::compare(old, new, &mut lines);
    configuration(&old.config, &new.config, &mut lines);
    services(&old.config.policy, &new.config.policy, &mut lines);
    sources::compare(old, new, &mut lines);
    added(old, new, &Now::by_wall(now), &mut lines);
    lines.0
}

/// The lines that describe a difference, in display order.
#[derive(Default)]
struct Lines(Vec<String>);

impl Lines {
    fn push(&mut self, line: String) {
        self.0.push(line);
    }

    /// Adds a line if the value of a key differs. For values with equal texts, such as secrets, the line states only
    /// that the value has changed.
    fn value<T: PartialEq>(&mut self, key: &str, old: &T, new: &T, show: impl Fn(&T) -> String) {
        if old == new {
            return;
        }
        let (old, new) = (show(old), show(new));
        self.push(if old == new {
            format!("{key}: changed")
        } else {
            format!("{key}: {old} -> {new}")
        });
    }

    /// Adds a line if the value of a key differs; the value is displayed as in the configuration.
    fn plain<T: PartialEq + Display>(&mut self, key: &str, old: &T, new: &T) {
        self.value(key, old, new, T::to_string);
    }

    /// Adds a line if the value of a key differs; the value serializes to a string as in the configuration.
    fn word<T: PartialEq + Serialize>(&mut self, key: &str, old: &T, new: &T) {
        self.value(key, old, new, |value| match serde_json::json!(value) {
            serde_json::Value::String(word) => word,
            other => other.to_string(),
        });
    }

    /// Adds a line if the values of a key differ; their order does not matter.
    fn set<T: Display>(&mut self, key: &str, old: &[T], new: &[T]) {
        let [old, new] = [old, new].map(|items| {
            let items: BTreeSet<String> = items.iter().map(ToString::to_string).collect();
            items
        });
        self.value(key, &old, &new, |items| {
            let items: Vec<_> = items.iter().map(String::as_str).collect();
            or_none(items.join(" "))
        });
    }

    /// Adds a line for each of the first prefixes, and a line with the number of the rest.
    fn prefixes(&mut self, prefixes: &[IpNet], line: impl Fn(&str) -> String) {
        for prefix in prefixes.iter().take(NAMED) {
            self.push(line(&prefix.to_string()));
        }
        match prefixes.len().saturating_sub(NAMED) {
            0 => {}
            1 => self.push(line("1 more prefix")),
            more => self.push(line(&format!("{more} more prefixes"))),
        }
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() {
        "none".to_owned()
    } else {
        text
    }
}

#[expect(clippy::ref_option, reason = "the signature of a field's formatter")]
fn path(path: &Option<PathBuf>) -> String {
    let text = path.as_ref().map(|path| path.display().to_string());
    or_none(text.unwrap_or_default())
}

/// Returns a size in bytes in the syntax of the configuration.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature of a field's formatter"
)]
fn size(bytes: &u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        bytes if bytes % (1 << 20) == 0 => format!("{}MiB", bytes >> 20),
        bytes if bytes % (1 << 10) == 0 => format!("{}KiB", bytes >> 10),
        bytes => bytes.to_string(),
    }
}

fn time(time: &std::time::Duration) -> String {
    humantime::format_duration(*time).to_string()
}

fn mode(old: &EffectiveState, new: &EffectiveState, lines: &mut Lines) {
    if old.mode != new.mode {
        lines.push(format!("mode: {} -> {}", old.mode.name(), new.mode.name()));
        return;
    }
    let with_origin = |state: &EffectiveState| {
        let by = if state.is_mode_by_command() {
            "by command"
        } else {
            "by the configuration"
        };
        format!("{} {by}", state.mode.name())
    };
    lines.value("mode", &with_origin(old), &with_origin(new), String::clone);
}

fn configuration(old: &Config, new: &Config, lines: &mut Lines) {
    // Exhaustive, so that the compiler reports a new key that is not compared.
    let Config {
        interfaces,
        mode: _,
        rules,
        attach,
        max_prefixes,
        max_flows,
        hook,
        history_bytes,
        log_bytes,
        at_start,
        control_group,
        policy: _,
    } = old;
    let first_line = lines.0.len();
    lines.set("interfaces", interfaces, &new.interfaces);
    let Rules {
        default,
        return_traffic,
        keep,
        lookup,
    } = rules;
    lines.word("default", default, &new.rules.default);
    lines.word("return_traffic", return_traffic, &new.rules.return_traffic);
    keeps(*keep, new.rules.keep, lines);
    lines.word("attach_mode", attach, &new.attach);
    lines.word("lookup", lookup, &new.rules.lookup);
    lines.plain("max_prefixes", max_prefixes, &new.max_prefixes);
    lines.plain("max_flows", max_flows, &new.max_flows);
    on_change(hook, &new.hook, lines);
    lines.value("history_size", history_bytes, &new.history_bytes, size);
    lines.value("log_size", log_bytes, &new.log_bytes, size);
    lines.word("at_start", at_start, &new.at_start);
    lines.value("control_group", control_group, &new.control_group, |name| {
        or_none(name.clone().unwrap_or_default())
    });
    // A key that has no line of its own yet.
    let same_policy = Config {
        mode: old.mode,
        policy: old.policy.clone(),
        ..new.clone()
    };
    if lines.0.len() == first_line && same_policy != *old && !same_sets(old, new) {
        lines.push("configuration: changed".to_owned());
    }
}

/// Returns whether two configurations have the same interfaces in different orders.
fn same_sets(old: &Config, new: &Config) -> bool {
    let set = |config: &Config| config.interfaces.iter().cloned().collect::<BTreeSet<_>>();
    old.interfaces != new.interfaces && set(old) == set(new)
}

fn keeps(old: Keep, new: Keep, lines: &mut Lines) {
    let Keep {
        arp,
        neighbour_discovery,
        icmp_errors,
        dhcp,
        multicast,
        not_ip,
    } = old;
    for (key, old, new) in [
        ("arp", arp, new.arp),
        (
            "neighbour_discovery",
            neighbour_discovery,
            new.neighbour_discovery,
        ),
        ("icmp_errors", icmp_errors, new.icmp_errors),
        ("dhcp", dhcp, new.dhcp),
        ("multicast", multicast, new.multicast),
        ("not_ip", not_ip, new.not_ip),
    ] {
        lines.plain(&format!("keep.{key}"), &old, &new);
    }
}

fn on_change(old: &Hook, new: &Hook, lines: &mut Lines) {
    let Hook {
        command,
        webhook,
        timeout,
        ca_file,
        ca_only,
    } = old;
    // Arguments and the path of a webhook may be secret.
    lines.value("on_change.command", command, &new.command, |command| {
        or_none(command.first().cloned().unwrap_or_default())
    });
    lines.value("on_change.webhook", webhook, &new.webhook, |url| {
        let host = url.as_ref().and_then(|url| {
            let mut url = url.clone();
            url.set_path("");
            Some(public_url(&url)).filter(|text| !text.is_empty())
        });
        or_none(host.unwrap_or_default())
    });
    lines.value("on_change.timeout", timeout, &new.timeout, time);
    lines.value("on_change.ca_file", ca_file, &new.ca_file, path);
    lines.plain("on_change.ca_only", ca_only, &new.ca_only);
}

fn services(old: &Policy, new: &Policy, lines: &mut Lines) {
    let by_name = |policy: &Policy| -> BTreeMap<String, Service> {
        let named = |service: &Service| (service.name.clone(), service.clone());
        policy.services.iter().map(named).collect()
    };
    let (old, new) = (by_name(old), by_name(new));
    for (name, service) in &new {
        let Service {
            name: _,
            ports,
            interfaces,
            allow,
        } = service;
        let Some(before) = old.get(name) else {
            let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
            lines.push(format!(
                "services.{name}: added, {} for {}",
                ports.join(" "),
                allow.join(" ")
            ));
            continue;
        };
        lines.set(&format!("services.{name}.ports"), &before.ports, ports);
        lines.value(
            &format!("services.{name}.interfaces"),
            &before.interfaces.iter().collect::<BTreeSet<_>>(),
            &interfaces.iter().collect(),
            |names| {
                if names.is_empty() {
                    return "all".to_owned();
                }
                let names: Vec<_> = names.iter().map(|name| name.as_str()).collect();
                names.join(" ")
            },
        );
        lines.set(&format!("services.{name}.allow"), &before.allow, allow);
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        lines.push(format!("services.{name}: removed"));
    }
}

fn added(old: &EffectiveState, new: &EffectiveState, now: &Now, lines: &mut Lines) {
    let (before, after) = (old.added(now), new.added(now));
    let names: BTreeSet<&str> = before.keys().chain(after.keys()).map(|key| key.0).collect();
    for service in names {
        let of = |all: &BTreeMap<(&str, IpNet), &Addition>, other: &BTreeMap<_, _>| {
            all.keys()
                .filter(|key| key.0 == service && !other.contains_key(*key))
                .map(|key| key.1)
                .collect::<Vec<_>>()
        };
        let ends = |prefix: &str| {
            let prefix: Option<IpNet> = prefix.parse().ok();
            let addition = prefix.and_then(|prefix| after.get(&(service, prefix)));
            match addition.and_then(|addition| addition.until) {
                Some(until) => format!(" until {}", at(until)),
                None => String::new(),
            }
        };
        lines.prefixes(&of(&after, &before), |prefix| {
            format!("added {prefix} to {service}{}", ends(prefix))
        });
        lines.prefixes(&of(&before, &after), |prefix| {
            format!("removed {prefix} from {service}")
        });
    }
    let kept = after
        .iter()
        .filter_map(|(key, new)| Some((key, *before.get(key)?, *new)))
        .filter(|(_, old, new)| (old.until, &old.note) != (new.until, &new.note));
    let kept: Vec<_> = kept.collect();
    for ((service, prefix), old, new) in kept.iter().take(NAMED) {
        let key = format!("{prefix} to {service}");
        lines.value(&key, &old.until, &new.until, |until| match until {
            Some(until) => format!("until {}", at(*until)),
            None => "no end".to_owned(),
        });
        lines.value(&key, &old.note, &new.note, |note| match note {
            Some(note) => format!("note {note:?}"),
            None => "no note".to_owned(),
        });
    }
    if let Some(more @ 1..) = kept.len().checked_sub(NAMED) {
        lines.push(format!("{more} more added prefixes: changed end or note"));
    }
}

fn at(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}
