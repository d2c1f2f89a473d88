//! Reads the keys of a configuration, except those of sources (`sources`).
//!
//! Invariant: an invalid value is reported with its remedy and replaced by its default, and reading
//! continues. Does no I/O.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

use allowlist_common::abi::MAX_SERVICES;
use allowlist_dataplane::AttachModeRequest;
use allowlist_policy::{
    AtStart, Direction, Egress, Engine, Keep, MAX_NAME_BYTES, Mode, Origin, Policy, ReturnTraffic,
    Rules, Service, Source, Verdict, is_name,
};
use toml::Spanned;
use toml::de::DeTable;

use super::document::{Node, Problems, Table};
use super::egress::read_egress;
use super::sources::{
    TIMEOUT_RANGE, read_ca_only, read_duration, read_one_url, read_path, read_size, read_sources,
};
use super::{
    Config, HISTORY_BYTES, LOG_BYTES, MAX_FLOWS, MAX_PREFIXES, check_interface, nearest, outbound,
};
use crate::hook::Hook;

const MAX_PREFIXES_RANGE: RangeInclusive<u64> = 1..=4_000_000;
const MAX_FLOWS_RANGE: RangeInclusive<u64> = 1024..=16_000_000;
const KEPT_RANGE: RangeInclusive<u64> = 4096..=1 << 30;
/// The values of the keys `mode`.
pub(super) const MODES: [(&str, Mode); 2] =
    [("enforce", Mode::Enforce), ("observe", Mode::Observe)];

/// Reads a configuration from a parsed document. Adds mistakes to `problems`, and uses the default for each invalid
/// value. Relative paths start in `folder`.
pub(super) fn config(
    document: &Spanned<DeTable>,
    folder: &Path,
    problems: &mut Problems,
) -> Config {
    let root = &Table::root(document);
    let keys = [
        "interfaces",
        "mode",
        "default",
        "return_traffic",
        "keep",
        "attach_mode",
        "lookup",
        "max_prefixes",
        "max_flows",
        "history_size",
        "log_size",
        "at_start",
        "control_group",
        "on_change",
        "services",
        "egress",
        "sources",
    ];
    root.only(&keys, problems);
    let verdicts = [("pass", Verdict::Pass), ("drop", Verdict::Drop)];
    let return_traffics = [
        ("track", ReturnTraffic::Track),
        ("established", ReturnTraffic::Established),
        ("off", ReturnTraffic::Off),
    ];
    let attach_modes = [
        ("auto", AttachModeRequest::Auto),
        ("native", AttachModeRequest::Native),
        ("generic", AttachModeRequest::Generic),
        ("offload", AttachModeRequest::Offload),
    ];
    let lookups = [
        ("range-table", Engine::RangeTable),
        ("lpm-trie", Engine::LpmTrie),
    ];
    let at_starts = [
        ("wait", AtStart::Wait),
        ("pass", AtStart::Pass),
        ("drop", AtStart::Drop),
    ];
    let sources = read_sources(root, folder, problems);
    let services = read_services(root, &sources, problems);
    let egress = read_egress(root, &sources, problems);
    let mut sources = sources;
    if let Some(egress) = &egress {
        set_grace(&mut sources, &services, egress, root);
    }
    Config {
        interfaces: read_interfaces(root, problems),
        mode: read_choice(root, "mode", &MODES, problems),
        rules: Rules {
            default: read_choice(root, "default", &verdicts, problems),
            return_traffic: read_choice(root, "return_traffic", &return_traffics, problems),
            keep: read_keep(root, problems),
            lookup: read_choice(root, "lookup", &lookups, problems),
        },
        attach: read_choice(root, "attach_mode", &attach_modes, problems),
        max_prefixes: read_number(root, "max_prefixes", &MAX_PREFIXES_RANGE, problems)
            .unwrap_or(MAX_PREFIXES),
        max_flows: read_number(root, "max_flows", &MAX_FLOWS_RANGE, problems).unwrap_or(MAX_FLOWS),
        hook: read_hook(root, folder, problems),
        history_bytes: read_kept_size(root, "history_size", HISTORY_BYTES, problems),
        log_bytes: read_kept_size(root, "log_size", LOG_BYTES, problems),
        at_start: read_choice(root, "at_start", &at_starts, problems),
        control_group: read_control_group(root, problems),
        policy: Policy {
            services,
            sources,
            egress,
        },
    }
}

/// Sets the grace period of sources of names that only rules of the egress policy use to `linger`, unless `grace` is
/// configured: then an address that a name no longer has is refused after the same time, however it became known.
fn set_grace(sources: &mut [Source], services: &[Service], egress: &Egress, root: &Table) {
    let unreported = &mut Problems::default();
    let tables = root.get("sources").and_then(|node| node.table(unreported));
    for source in sources {
        let table = tables
            .as_ref()
            .and_then(|tables| tables.get(&source.name))
            .and_then(|node| node.table(unreported));
        let has_grace = table.is_some_and(|table| table.get("grace").is_some());
        let is_of_names = matches!(source.origin, Origin::Names(_));
        let is_allowed = services
            .iter()
            .any(|service| service.allow.contains(&source.name));
        if is_of_names && !has_grace && !is_allowed && egress.user_of(source).is_some() {
            source.grace = egress.linger.min(Source::LONGEST_GRACE);
        }
    }
}

fn read_kept_size(root: &Table, key: &str, default: u64, problems: &mut Problems) -> u64 {
    let Some(node) = root.get(key) else {
        return default;
    };
    if let Some(bytes) = read_size(&node).filter(|bytes| KEPT_RANGE.contains(bytes)) {
        return bytes;
    }
    let message = "is not a size from \"4KiB\" to \"1024MiB\"; write a number of bytes, or a text such as \"64KiB\" or \"8MiB\"";
    node.wrong(problems, message);
    default
}

/// Reads the key `control_group`. Whether the group exists is checked by the daemon.
fn read_control_group(root: &Table, problems: &mut Problems) -> Option<String> {
    let node = root.get("control_group")?;
    let name = node.text(problems)?;
    if name.is_empty() || name.contains(|c: char| c == ':' || c == '/' || c.is_whitespace()) {
        let message =
            "is not a group name; write a group of this host, or remove the key to allow only root";
        node.wrong(problems, message);
        return None;
    }
    Some(name.to_owned())
}

fn read_hook(root: &Table, folder: &Path, problems: &mut Problems) -> Hook {
    let mut hook = Hook::default();
    let Some(table) = root.get("on_change").and_then(|node| node.table(problems)) else {
        return hook;
    };
    table.only(
        &["command", "webhook", "timeout", "ca_file", "ca_only"],
        problems,
    );
    if table.get("command").is_none() && table.get("webhook").is_none() {
        table.wrong(
            problems,
            "has neither `command` nor `webhook`; add one, or remove the table",
        );
    }
    if let Some(node) = table.get("command") {
        hook.command = read_list(&node, problems, |word| Ok(word.to_owned()));
        match hook.command.first() {
            None if !node.is_empty_array() => {} // its items were reported
            None => node.wrong(
                problems,
                "is empty; write the path of a program and its arguments, such as [\"/usr/local/bin/notify\", \"--quiet\"]",
            ),
            Some(program) if !Path::new(program).is_absolute() => node.wrong(
                problems,
                format!("{program:?} is not an absolute path; write the full path of the program"),
            ),
            Some(_) => {}
        }
    }
    hook.webhook = table
        .get("webhook")
        .and_then(|node| read_one_url(&node, problems));
    hook.ca_file = table
        .get("ca_file")
        .and_then(|node| read_path(&node, folder, problems));
    hook.ca_only = read_ca_only(&table, hook.ca_file.is_some(), problems);
    read_duration(
        &table,
        "timeout",
        &mut hook.timeout,
        &TIMEOUT_RANGE,
        problems,
    );
    hook
}

fn read_interfaces(table: &Table, problems: &mut Problems) -> Vec<String> {
    let Some(node) = table.get("interfaces") else {
        return Vec::new();
    };
    read_distinct(&node, problems, |name| {
        check_interface(name).map(|()| name.to_owned())
    })
}

/// Reads a key that has one of the values in `choices`. Returns the first choice if the key is missing or invalid.
pub(super) fn read_choice<T: Copy, const N: usize>(
    table: &Table,
    key: &str,
    choices: &[(&str, T); N],
    problems: &mut Problems,
) -> T {
    let default = choices[0].1;
    let Some(node) = table.get(key) else {
        return default;
    };
    let Some(text) = node.text(problems) else {
        return default;
    };
    let choice = choices.iter().find(|(name, _)| *name == text);
    if choice.is_none() {
        let names: Vec<_> = choices
            .iter()
            .map(|(name, _)| format!("\"{name}\""))
            .collect();
        node.wrong(
            problems,
            format!("invalid value {text:?}; use {}", names.join(" or ")),
        );
    }
    choice.map_or(default, |(_, value)| *value)
}

/// Reads an integer key within `range`. Returns `None` if the key is missing or invalid, which is reported.
fn read_number(
    root: &Table,
    key: &str,
    range: &RangeInclusive<u64>,
    problems: &mut Problems,
) -> Option<u32> {
    let node = root.get(key)?;
    match node.integer() {
        Some(number) if range.contains(&number) => Some(number as u32),
        _ => {
            let what = match node.string() {
                Some(_) => "is a string; ",
                None => "",
            };
            let (low, high) = (range.start(), range.end());
            node.wrong(
                problems,
                format!("{what}must be an integer from {low} to {high}"),
            );
            None
        }
    }
}

fn read_keep(root: &Table, problems: &mut Problems) -> Keep {
    let mut keep = Keep::ALL;
    let Some(table) = root.get("keep").and_then(|node| node.table(problems)) else {
        return keep;
    };
    let keys = [
        ("arp", &mut keep.arp),
        ("neighbour_discovery", &mut keep.neighbour_discovery),
        ("icmp_errors", &mut keep.icmp_errors),
        ("dhcp", &mut keep.dhcp),
        ("multicast", &mut keep.multicast),
        ("not_ip", &mut keep.not_ip),
    ];
    table.only(&keys.each_ref().map(|(name, _)| *name), problems);
    for (name, value) in keys {
        if let Some(is_on) = table.get(name).and_then(|node| node.boolean(problems)) {
            *value = is_on;
        }
    }
    keep
}

fn read_services(root: &Table, sources: &[Source], problems: &mut Problems) -> Vec<Service> {
    let Some(table) = root.get("services").and_then(|node| node.table(problems)) else {
        return Vec::new();
    };
    let defined = defined_sources(root);
    let mut services = Vec::new();
    for (count, (name, node)) in table.entries().enumerate() {
        if count == MAX_SERVICES {
            node.wrong(
                problems,
                format!(
                    "is one service too many: the maximum is {MAX_SERVICES}; merge services that allow \
                     the same sources"
                ),
            );
        }
        check_name(name, &node, problems);
        if let Some(table) = node.table(problems) {
            services.push(read_service(name, &table, &defined, sources, problems));
        }
    }
    services
}

/// Returns the first wildcard of a source with this name; `None` if it has another name or no wildcard.
fn wildcard_of<'s>(source: &'s Source, name: &str) -> Option<&'s str> {
    match &source.origin {
        Origin::Names(lookup) if source.name == name => lookup.wildcards.first().map(|one| &**one),
        _ => None,
    }
}

/// Returns the names of the tables under `[sources]`, including tables with mistakes.
pub(super) fn defined_sources<'d>(root: &Table<'d>) -> Vec<&'d str> {
    let sources = root
        .get("sources")
        .and_then(|node| node.table(&mut Problems::default()));
    let entries = sources.iter().flat_map(Table::entries);
    entries.map(|(name, _)| name).collect()
}

fn read_service(
    name: &str,
    table: &Table,
    defined: &[&str],
    sources: &[Source],
    problems: &mut Problems,
) -> Service {
    table.only(&["ports", "interfaces", "allow"], problems);
    let otherwise = "the service protects nothing; add its ports, such as ports = [\"tcp/443\"]";
    let ports = read_filled(table, "ports", otherwise, problems, str::parse);
    let otherwise = "no client could reach the service; add its sources, such as allow = [\"office\"], or remove the service";
    let allow = read_filled(table, "allow", otherwise, problems, |name| {
        let mut named = sources.iter().filter(|source| source.name == name);
        if named.any(|source| source.direction == Direction::Outbound) {
            return Err(outbound(name));
        }
        if let Some(wildcard) = sources.iter().find_map(|source| wildcard_of(source, name)) {
            return Err(format!(
                "{name:?} has the wildcard \"*.{wildcard}\", whose names are known only from the answers to this host's programs; use the source in a rule of [egress] only, or write the full names"
            ));
        }
        let is_defined = defined.contains(&name);
        is_defined
            .then(|| name.to_owned())
            .ok_or_else(|| unknown_source(name, defined))
    });
    let interfaces = read_interfaces(table, problems);
    if let Some(node) = table.get("interfaces")
        && node.is_empty_array()
    {
        node.wrong(
            problems,
            "is empty: the service would apply to no interface; add interfaces, or remove the key to apply to all",
        );
    }
    Service {
        name: name.to_owned(),
        ports,
        interfaces,
        allow,
    }
}

/// Reads an array of strings, and parses each item with `read`. Reports and omits the items that `read` refuses.
pub(super) fn read_list<T>(
    node: &Node,
    problems: &mut Problems,
    mut read: impl FnMut(&str) -> Result<T, String>,
) -> Vec<T> {
    let items = node.items(problems).unwrap_or_default();
    let mut read_item = |item: Node| {
        let value = read(item.text(problems)?);
        value.map_err(|message| item.wrong(problems, message)).ok()
    };
    items.into_iter().filter_map(&mut read_item).collect()
}

/// Reads an array of strings like [`read_list`], but also reports repeated items. Not for prefixes, which may be
/// concatenated from several lists.
fn read_distinct<T>(
    node: &Node,
    problems: &mut Problems,
    read: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let mut seen = BTreeSet::new();
    read_list(node, problems, |text| {
        if !seen.insert(text.to_owned()) {
            return Err(format!("{text:?} is repeated; remove one"));
        }
        read(text)
    })
}

/// Reads the array `key` like [`read_distinct`], but also reports a missing or empty array; `otherwise` is the
/// consequence and the remedy in that message.
pub(super) fn read_filled<T>(
    table: &Table,
    key: &str,
    otherwise: &str,
    problems: &mut Problems,
    read: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let Some(node) = table.get(key) else {
        table.wrong(problems, format!("`{key}` is missing: {otherwise}"));
        return Vec::new();
    };
    if node.is_empty_array() {
        node.wrong(problems, format!("is empty: {otherwise}"));
    }
    read_distinct(&node, problems, read)
}

pub(super) fn check_name(name: &str, node: &Node, problems: &mut Problems) {
    if !is_name(name) {
        node.wrong(
            problems,
            format!(
                "is not a valid name; use a-z, 0-9, - and _, up to {MAX_NAME_BYTES} characters"
            ),
        );
    }
}

pub(super) fn unknown_source(name: &str, defined: &[&str]) -> String {
    match nearest(name, defined) {
        Some(near) => format!("there is no source {name:?}; did you mean {near:?}?"),
        None => format!("there is no source {name:?}; add a [sources.{name}] table"),
    }
}
