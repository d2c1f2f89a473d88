//! Reads `[egress]`, the destinations that this host's programs may connect to, and warns of settings without effect.
//!
//! Invariants: every rule has a destination and a port; rules, units and exempt endpoints fit the kernel's tables; no
//! cgroup of `cgroups` contains another, whose programs would be judged twice. Does no I/O: does not know whether units
//! and cgroups exist.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use allowlist_common::abi::{MAX_ENDPOINTS, MAX_INTERFACES, MAX_SERVICES, MAX_UNIT_TEXT};
use allowlist_policy::text::is_deceptive;
use allowlist_policy::{
    Direction, Egress, EgressRule, Mode, Refusal, STARTED_UNITS, Source, UnitPlace, Verdict,
};

use super::document::{Node, Problems, Table};
use super::read::{
    MODES, check_name, defined_sources, read_choice, read_filled, read_list, unknown_source,
};
use super::sources::read_duration;
use super::{Config, nearest};

/// The maximum number of units in all rules together: the kernel's table has one row for each, and one for all other
/// programs.
const MAX_UNITS: usize = MAX_INTERFACES as usize - 1;
const LINGER_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(24 * 7);
/// The port of name servers.
const DNS: u16 = 53;
/// The maximum length of a unit's name in systemd, and of a component of a path, in bytes.
const MAX_UNIT_BYTES: usize = 255;
/// The type of units that contain others, and exist before the programs in them.
const SLICE: &str = "slice";
/// The types of units without programs.
const OTHER_TYPES: [&str; 5] = ["automount", "device", "path", "target", "timer"];
/// The usual mount points of cgroup v2, the longer one first.
const MOUNT_POINTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// Reads the table `[egress]`. Returns `None` without one: then every call passes.
pub(super) fn read_egress(
    root: &Table,
    sources: &[Source],
    problems: &mut Problems,
) -> Option<Egress> {
    let table = &root.get("egress")?.table(problems)?;
    let keys = [
        "mode",
        "default",
        "errno",
        "resolvers",
        "time_servers",
        "linger",
        "cgroups",
        "rules",
    ];
    table.only(&keys, problems);
    let verdicts = [("pass", Verdict::Pass), ("refuse", Verdict::Drop)];
    let errors = Refusal::ALL.map(|refusal| (refusal.name(), refusal));
    let egress = Egress {
        mode: read_choice(table, "mode", &MODES, problems),
        default: read_choice(table, "default", &verdicts, problems),
        errno: read_choice(table, "errno", &errors, problems),
        resolvers: read_addresses(table, "resolvers", RESOLVERS, problems, parse_resolver),
        time_servers: read_addresses(table, "time_servers", TIME_SERVERS, problems, |text| {
            let address = text.parse().map_err(|_| {
                format!("{text:?} is not an address; write one such as \"192.0.2.123\"")
            })?;
            check_server(text, address).map(|()| address)
        }),
        linger: read_linger(table, problems),
        cgroups: read_cgroups(table, problems),
        rules: read_rules(table, root, sources, problems),
    };
    let endpoints = 2 * egress.resolvers.len() + egress.time_servers.len();
    if endpoints > MAX_ENDPOINTS {
        table.wrong(
            problems,
            format!(
                "`resolvers` and `time_servers` have {endpoints} endpoints, but the maximum is {MAX_ENDPOINTS} (a resolver \
                 counts twice, for UDP and TCP); remove some"
            ),
        );
    }
    Some(egress)
}

/// Reads the key `linger`.
fn read_linger(table: &Table, problems: &mut Problems) -> Duration {
    let mut linger = Egress::LINGER;
    read_duration(table, "linger", &mut linger, &LINGER_RANGE, problems);
    linger
}

const RESOLVERS: &str =
    "is empty; write the address of a resolver, or remove the key to use those of this host";
const TIME_SERVERS: &str = "is empty; write the address of a time server, or remove the key";

/// Reads an array of addresses. `empty` is the message for an empty array. Reports items with equal values.
fn read_addresses<T: Ord + Copy>(
    table: &Table,
    key: &str,
    empty: &str,
    problems: &mut Problems,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let Some(node) = table.get(key) else {
        return Vec::new();
    };
    if node.is_empty_array() {
        node.wrong(problems, empty);
    }
    let mut seen = BTreeSet::new();
    read_list(&node, problems, |text| {
        let value = parse(text)?;
        let is_new = seen.insert(value);
        is_new.then_some(value).ok_or_else(|| repeated(text))
    })
}

fn repeated(text: &str) -> String {
    format!("{text:?} is repeated; remove one")
}

fn parse_resolver(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS));
    let endpoint = address.or_else(|_| text.parse()).map_err(|_| {
        format!("{text:?} is not a resolver; write its address, such as \"192.0.2.53\", or its address and port, such as \"[2001:db8::53]:5353\"")
    })?;
    check_server(text, endpoint.ip())?;
    if endpoint.port() == 0 {
        return Err(format!(
            "{text:?} has the port 0; write a port from 1 to 65535"
        ));
    }
    if matches!(endpoint, SocketAddr::V6(endpoint) if endpoint.scope_id() != 0) {
        return Err(format!(
            "{text:?} has a zone; remove the entry, as link-local destinations always pass"
        ));
    }
    Ok(endpoint)
}

/// Checks that an address can be that of a server. `text` is its form in the configuration.
fn check_server(text: &str, address: IpAddr) -> Result<(), String> {
    let canonical = address.to_canonical();
    if canonical != address {
        return Err(format!(
            "{text:?} is an IPv4 address in IPv6 form; write it as {canonical}"
        ));
    }
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || is_broadcast {
        return Err(format!(
            "{text:?} is not the address of one server; write one such as \"192.0.2.53\""
        ));
    }
    Ok(())
}

fn read_cgroups(table: &Table, problems: &mut Problems) -> Vec<PathBuf> {
    let Some(node) = table.get("cgroups") else {
        return Vec::new();
    };
    if node.is_empty_array() {
        node.wrong(
            problems,
            "is empty: the policy would apply to no program; add cgroups, or remove the key to apply to all programs",
        );
    }
    let mut seen: Vec<String> = Vec::new();
    read_list(&node, problems, |text| {
        check_cgroup(text)?;
        let contains = |outer: &str, inner: &str| Path::new(inner).starts_with(outer);
        for other in &seen {
            let (inner, outer) = match (contains(other, text), contains(text, other)) {
                (true, true) => return Err(repeated(text)),
                (true, false) => (text, other.as_str()),
                (false, true) => (other.as_str(), text),
                (false, false) => continue,
            };
            return Err(format!(
                "{outer:?} contains {inner:?}, whose programs would be judged twice; remove {inner:?}"
            ));
        }
        seen.push(text.to_owned());
        Ok(PathBuf::from(text))
    })
}

/// Checks a path below the root of cgroup v2.
fn check_cgroup(text: &str) -> Result<(), String> {
    let Some(below) = text.strip_prefix('/') else {
        return Err(format!(
            "{text:?} is not a path below the root of cgroup v2; write one such as \"/system.slice\""
        ));
    };
    if below.is_empty() {
        return Err("\"/\" is the root, which contains all programs; remove the key to apply to all programs".to_owned());
    }
    for mount_point in MOUNT_POINTS {
        match text.strip_prefix(mount_point) {
            Some("" | "/") => {
                return Err(format!(
                    "{text:?} is the root of cgroup v2, which contains all programs; remove the key to apply to all programs"
                ));
            }
            Some(below) if below.starts_with('/') => {
                return Err(format!(
                    "{text:?} begins with the mount point of cgroup v2; write the path below it, {below:?}"
                ));
            }
            _ => {}
        }
    }
    for component in below.split('/') {
        match component {
            "" => {
                return Err(format!(
                    "{text:?} has an empty component; remove the superfluous \"/\""
                ));
            }
            "." | ".." => {
                return Err(format!(
                    "{text:?} has the component {component:?}; write the path without it"
                ));
            }
            _ if component.len() > MAX_UNIT_BYTES || component.contains(is_deceptive) => {
                return Err(format!(
                    "{text:?} is not the path of a cgroup; its components have up to {MAX_UNIT_BYTES} bytes, without \
                     control and invisible characters"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks the name of a unit, or the path of a cgroup. The error is text for the user that states the remedy.
pub fn check_unit(text: &str) -> Result<(), String> {
    check_unit_form(text)?;
    let place = UnitPlace::of(text);
    if place.text().len() >= MAX_UNIT_TEXT {
        return Err(format!(
            "{text:?} has a cgroup whose path has {} bytes, but the maximum is {}; name a slice around it",
            place.text().len(),
            MAX_UNIT_TEXT - 1
        ));
    }
    Ok(())
}

fn check_unit_form(text: &str) -> Result<(), String> {
    if text.starts_with('/') {
        return check_cgroup(text);
    }
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    let (name, kind) = text.rsplit_once('.').unwrap_or((text, ""));
    if name.is_empty() || text.len() > MAX_UNIT_BYTES || !text.bytes().all(is_plain) {
        return Err(format!(
            "{text:?} is not a unit or a cgroup; write a unit such as \"alertd.service\", or a cgroup such as \
             \"/machine/agents\""
        ));
    }
    if OTHER_TYPES.contains(&kind) {
        return Err(format!(
            "{text:?} is a {kind} unit, which has no programs; write the unit of the programs, such as \
             \"{name}.service\""
        ));
    }
    let kinds: Vec<&str> = STARTED_UNITS.into_iter().chain([SLICE]).collect();
    if !kinds.contains(&kind) {
        return Err(match nearest(kind, &kinds) {
            Some(near) => {
                format!("{text:?} is not the name of a unit; did you mean \"{name}.{near}\"?")
            }
            None => format!(
                "{text:?} is not the full name of a unit; write its type too, such as \"{text}.service\""
            ),
        });
    }
    if kind == SLICE && name.contains('@') {
        return Err(format!(
            "{text:?} is not a slice, since slices have no templates; write a slice such as \"batch.slice\""
        ));
    }
    if name.ends_with('@') {
        return Err(format!(
            "{text:?} is a template, which has no programs; write each instance, such as \"{name}1.{kind}\", or the \
             slice of all instances"
        ));
    }
    Ok(())
}

/// Returns whether a cgroup with this name belongs to a unit that gets a new cgroup with each start.
pub(super) fn is_transient(name: &str) -> bool {
    let kind = name.rsplit_once('.').map_or("", |(_, kind)| kind);
    STARTED_UNITS.contains(&kind)
}

fn read_rules(
    egress: &Table,
    root: &Table,
    sources: &[Source],
    problems: &mut Problems,
) -> Vec<EgressRule> {
    let Some(table) = egress.get("rules").and_then(|node| node.table(problems)) else {
        return Vec::new();
    };
    let defined = defined_sources(root);
    let stated = sources.iter().filter(|source| {
        source.direction == Direction::Inbound && states_direction(root, &source.name)
    });
    let inbound: BTreeSet<&str> = stated.map(|source| &*source.name).collect();
    let mut units = BTreeSet::new();
    let mut rules = Vec::new();
    for (count, (name, node)) in table.entries().enumerate() {
        if count == MAX_SERVICES {
            node.wrong(
                problems,
                format!(
                    "is one rule too many: the maximum is {MAX_SERVICES}; merge rules that have the same destinations"
                ),
            );
        }
        check_name(name, &node, problems);
        let Some(table) = node.table(problems) else {
            continue;
        };
        table.only(&["to", "ports", "units"], problems);
        let otherwise = "the rule allows no destination; add its sources, such as to = [\"pagerduty-api\"], or remove the rule";
        let to = read_filled(&table, "to", otherwise, problems, |name| {
            if inbound.contains(name) {
                return Err(inbound_source(name));
            }
            let is_defined = defined.contains(&name);
            is_defined
                .then(|| name.to_owned())
                .ok_or_else(|| unknown_source(name, &defined))
        });
        let otherwise = "the rule allows no port; add its ports, such as ports = [\"tcp/443\"]";
        let ports = read_filled(&table, "ports", otherwise, problems, str::parse);
        let units = match table.get("units") {
            Some(node) => read_units(&node, &mut units, problems),
            None => Vec::new(),
        };
        rules.push(EgressRule {
            name: name.to_owned(),
            to,
            ports,
            units,
        });
    }
    rules
}

/// Returns whether the table of a source, or the provider in it, states the direction of its connections. A list of the
/// operator's own without the key `direction` may be used in both directions.
fn states_direction(root: &Table, name: &str) -> bool {
    let unreported = &mut Problems::default();
    let sources = root.get("sources").and_then(|node| node.table(unreported));
    let source = sources
        .and_then(|sources| sources.get(name))
        .and_then(|node| node.table(unreported));
    source.is_some_and(|source| {
        ["provider", "direction"]
            .iter()
            .any(|key| source.get(key).is_some())
    })
}

/// Reads the units of a rule, and adds them to `all`, which has the units of the earlier rules.
fn read_units(node: &Node, all: &mut BTreeSet<String>, problems: &mut Problems) -> Vec<String> {
    if node.is_empty_array() {
        node.wrong(
            problems,
            "is empty: the rule would apply to no program; add units, or remove the key to apply to all programs",
        );
    }
    let mut seen = BTreeSet::new();
    read_list(node, problems, |text| {
        check_unit(text)?;
        if !seen.insert(text.to_owned()) {
            return Err(repeated(text));
        }
        // Reported once.
        if all.insert(text.to_owned()) && all.len() == MAX_UNITS + 1 {
            return Err(format!(
                "{text:?} is one unit too many: the maximum is {MAX_UNITS} in all rules; name a slice that contains several \
                 units"
            ));
        }
        Ok(text.to_owned())
    })
}

/// Returns the message for a rule that allows the inbound source `name`.
fn inbound_source(name: &str) -> String {
    format!(
        "{name:?} lists origins of inbound connections; to allow outbound connections to them too, set direction = \"any\" in [sources.{name}]"
    )
}

impl Config {
    /// Returns the mode that the configuration sets for the egress policy; enforce without one.
    pub fn egress_mode(&self) -> Mode {
        let egress = self.policy.egress.as_ref();
        egress.map_or_else(Mode::default, |egress| egress.mode)
    }

    /// Returns warnings about an egress policy that is valid but refuses nothing, or everything.
    pub(super) fn egress_warnings(&self) -> Option<&'static str> {
        let egress = self.policy.egress.as_ref()?;
        match egress.default {
            Verdict::Pass => Some(
                "egress.default = \"pass\" refuses no call, and rules only count: set default = \"refuse\" to permit only \
                 the destinations of the rules",
            ),
            Verdict::Drop if egress.rules.is_empty() => Some(
                "egress has no rule, so programs reach only this host, resolvers and time servers: add an \
                 [egress.rules.NAME] table",
            ),
            Verdict::Drop => None,
        }
    }
}
