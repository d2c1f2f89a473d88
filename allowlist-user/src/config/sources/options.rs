//! Reads the keys of a source that have defaults: the options of fetching, and those of the gate.
//!
//! Each key overrides the value that the source has from its kind or from the catalogue.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use allowlist_lists::feed;
use allowlist_policy::{Direction, Gate, Http, Origin, Secret, Source};

use super::super::document::{Node, Problems, Table};
use super::super::read::read_list;
use super::format::{read_pattern, read_patterns};
use super::read_path;
use super::size::read_size as read_list_size;

const EVERY_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(24 * 30);
pub(in crate::config) const TIMEOUT_RANGE: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_mins(10);
const GRACE_RANGE: RangeInclusive<Duration> = Duration::ZERO..=Source::LONGEST_GRACE;
const MAX_AGE_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(24 * 3650);
const TTL_FLOOR_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
/// The range of `max_size` in bytes, limited since a list is held in memory while it is read.
const MAX_SIZE_RANGE: RangeInclusive<u64> = 1..=64 << 20;
const MOST_COUNT: u64 = 4_000_000;
/// The HTTP headers that this program sets itself, and that a source cannot set.
const OWN_HEADERS: [&str; 6] = [
    "host",
    "content-length",
    "connection",
    "accept-encoding",
    "if-none-match",
    "if-modified-since",
];

/// Reads all keys of a source's table, except those of the origin, into `source`. Relative paths start in `folder`.
pub(super) fn read_options(
    source: &mut Source,
    table: &Table,
    folder: &Path,
    problems: &mut Problems,
) {
    match &mut source.origin {
        Origin::Http(http) => read_http(http, table, folder, problems),
        Origin::Names(lookup) => {
            read_duration(
                table,
                "timeout",
                &mut lookup.timeout,
                &TIMEOUT_RANGE,
                problems,
            );
            read_duration(
                table,
                "ttl_floor",
                &mut lookup.ttl_floor,
                &TTL_FLOOR_RANGE,
                problems,
            );
        }
        Origin::Prefixes(_) | Origin::Added | Origin::BuiltIn { .. } | Origin::File { .. } => {}
    }
    read_duration(table, "every", &mut source.every, &EVERY_RANGE, problems);
    read_duration(table, "grace", &mut source.grace, &GRACE_RANGE, problems);
    read_duration(
        table,
        "max_age",
        &mut source.max_age,
        &MAX_AGE_RANGE,
        problems,
    );
    read_gate(&mut source.gate, table, problems);
    read_direction(source, table, problems);
}

fn read_http(http: &mut Http, table: &Table, folder: &Path, problems: &mut Problems) {
    let path = |key: &str, problems: &mut Problems| {
        table
            .get(key)
            .and_then(|node| read_path(&node, folder, problems))
    };
    let pattern = |key: &str, problems: &mut Problems| {
        table
            .get(key)
            .and_then(|node| read_pattern(&node, problems))
    };
    let keep = |new, old: &mut Option<_>| {
        if let Some(new) = new {
            *old = Some(new);
        }
    };
    keep(path("ca_file", problems), &mut http.ca_file);
    keep(path("bearer_file", problems), &mut http.bearer_file);
    if let Some(found) = pattern("discover", problems) {
        http.discover = Some(found);
    }
    if let Some(node) = table.get("newest") {
        http.newest = node.boolean(problems).unwrap_or_default();
        if http.newest && http.discover.is_none() {
            let message = "requires `discover`; add the pattern of the links to choose from";
            node.wrong(problems, message);
        }
    }
    if let Some(node) = table.get("unzip") {
        http.unzip = read_patterns(&node, problems);
    }
    if let Some(node) = table.get("allow_plain_http") {
        http.allow_plain_http = node.boolean(problems).unwrap_or_default();
    }
    if let Some(node) = table.get("allow_private") {
        http.allow_private = node.boolean(problems).unwrap_or_default();
    }
    if table.get("ca_only").is_some() {
        http.ca_only = read_ca_only(table, http.ca_file.is_some(), problems);
    }
    read_duration(
        table,
        "timeout",
        &mut http.timeout,
        &TIMEOUT_RANGE,
        problems,
    );
    read_max_size(table, &mut http.max_bytes, problems);
    if let Some(table) = table.get("headers").and_then(|node| node.table(problems)) {
        for (name, node) in table.entries() {
            if let Some(header) = read_header(name, &node, problems) {
                http.headers.retain(|(known, _)| *known != header.0);
                http.headers.push(header);
            }
        }
    }
}

/// Reads `ca_only`: whether only the certificates of `ca_file` are trusted.
pub(in crate::config) fn read_ca_only(
    table: &Table,
    has_ca_file: bool,
    problems: &mut Problems,
) -> bool {
    let Some(node) = table.get("ca_only") else {
        return false;
    };
    let ca_only = node.boolean(problems).unwrap_or_default();
    if ca_only && !has_ca_file {
        let message =
            "requires `ca_file`; add the file with the certificate authority, or remove the key";
        node.wrong(problems, message);
    }
    ca_only
}

/// Reads the HTTP header `name`; returns `None` after a reported mistake. Messages do not repeat the value, as it may
/// be secret.
fn read_header(name: &str, node: &Node, problems: &mut Problems) -> Option<(String, Secret)> {
    let value = node.text(problems)?;
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let name = name.to_ascii_lowercase();
    let message = if name.is_empty() || !name.bytes().all(is_token) {
        "is not a header name; write one such as Accept"
    } else if OWN_HEADERS.contains(&&*name) {
        "is set by this program; remove the header"
    } else if !value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        "is not a header value; write printable ASCII on one line"
    } else {
        return Some((name, Secret(value.to_owned())));
    };
    node.wrong(problems, message);
    None
}

fn read_gate(gate: &mut Gate, table: &Table, problems: &mut Problems) {
    let count = |key: &str, low: u64, problems: &mut Problems| {
        let node = table.get(key)?;
        match node.integer() {
            Some(number) if (low..=MOST_COUNT).contains(&number) => Some(number as usize),
            _ => {
                let high = MOST_COUNT;
                let message = format!("is not a number of prefixes from {low} to {high}");
                node.wrong(problems, message);
                None
            }
        }
    };
    if let Some(min) = count("min", 0, problems) {
        gate.min = min;
    }
    if let Some(max) = count("max", 1, problems) {
        gate.max = Some(max);
    }
    let (min, max) = (gate.min, gate.max.unwrap_or(usize::MAX));
    // One of the two may come from the catalogue.
    if let Some(node) = table.get("max").or_else(|| table.get("min"))
        && max < min
    {
        node.wrong(
            problems,
            format!("rejects every list, since `min` is {min} and `max` is {max}; raise `max`, or lower `min`"),
        );
    }
    let cover = |text: &str| feed::parse_prefix(text).map_err(|error| error.to_string());
    if let Some(node) = table.get("must_cover") {
        gate.must_cover = read_list(&node, problems, cover);
    }
    if let Some(node) = table.get("allow_special_use") {
        gate.allow_special_use = node.boolean(problems).unwrap_or_default();
    }
    read_shrink(table, &mut gate.max_shrink, problems);
    read_list_size(gate, table, problems);
    if let Some(table) = table
        .get("min_prefix_len")
        .and_then(|node| node.table(problems))
    {
        table.only(&["v4", "v6"], problems);
        let lengths = [
            ("v4", &mut gate.min_prefix_len_v4, 32),
            ("v6", &mut gate.min_prefix_len_v6, 128),
        ];
        for (key, length, max) in lengths {
            let Some(node) = table.get(key) else {
                continue;
            };
            match node.integer() {
                Some(number) if number <= max => *length = number as u8,
                _ => node.wrong(problems, format!("is not a prefix length from 0 to {max}")),
            }
        }
    }
}

fn read_shrink(table: &Table, max_shrink: &mut u16, problems: &mut Problems) {
    let Some(node) = table.get("max_shrink") else {
        return;
    };
    match node.fraction() {
        // Stored in thousandths.
        Some(part) if (0.0..=1.0).contains(&part) => {
            #[expect(clippy::cast_sign_loss, reason = "it is from 0 to 1")]
            let thousandths = (part * 1000.0).round() as u16;
            *max_shrink = thousandths;
        }
        _ => node.wrong(problems, "is not a fraction from 0.0 to 1.0, such as 0.5"),
    }
}

fn read_direction(source: &mut Source, table: &Table, problems: &mut Problems) {
    let Some(node) = table.get("direction") else {
        return;
    };
    match node.text(problems) {
        Some("any") => source.direction = Direction::Any,
        Some("inbound") if source.provider.is_none() => source.direction = Direction::Inbound,
        Some("outbound") if source.provider.is_none() => source.direction = Direction::Outbound,
        Some(text) if source.provider.is_some() => {
            let message = format!(
                "the provider sets the direction, so {text:?} is not possible; use \"any\" to allow both directions, or remove the key"
            );
            node.wrong(problems, message);
        }
        Some(text) => node.wrong(
            problems,
            format!("invalid value {text:?}; use \"inbound\" or \"outbound\" or \"any\""),
        ),
        None => {}
    }
}

pub(in crate::config) fn read_duration(
    table: &Table,
    key: &str,
    value: &mut Duration,
    range: &RangeInclusive<Duration>,
    problems: &mut Problems,
) {
    let Some(node) = table.get(key) else {
        return;
    };
    let Some(text) = node.text(problems) else {
        return;
    };
    let message = match humantime::parse_duration(text) {
        Ok(duration) if range.contains(&duration) => {
            *value = duration;
            return;
        }
        Ok(_) => {
            let [low, high] = [range.start(), range.end()].map(|d| humantime::format_duration(*d));
            format!("{text:?} is out of range; use {low} to {high}")
        }
        Err(_) => {
            format!("{text:?} is not a duration; write one such as \"30s\", \"15m\" or \"1h\"")
        }
    };
    node.wrong(problems, message);
}

fn read_max_size(table: &Table, max_bytes: &mut u64, problems: &mut Problems) {
    let Some(node) = table.get("max_size") else {
        return;
    };
    if let Some(bytes) = read_size(&node).filter(|bytes| MAX_SIZE_RANGE.contains(bytes)) {
        *max_bytes = bytes;
        return;
    }
    let message = "is not a size up to \"64MiB\"; write a number of bytes, or a text such as \"512KiB\" or \"4MiB\"";
    node.wrong(problems, message);
}

/// Reads a size in bytes: a number, or a text with a unit. Returns `None` without a report if the value is invalid.
pub(in crate::config) fn read_size(node: &Node) -> Option<u64> {
    match node.string() {
        Some(text) => parse_size(text),
        None => node.integer(),
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let units = [("KiB", 10), ("MiB", 20), ("", 0)];
    let (digits, shift) = units
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))?;
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse::<u64>().ok()?.checked_mul(1 << shift))?
}
