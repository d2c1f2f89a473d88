//! What each key of a source means, and which keys go together.
//!
//! Invariants: a source has exactly one origin, and no key that its origin would ignore; a URL is
//! https, or stays on this host. Does no input or output: a path is resolved, never opened.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::document::{Node, Problems, Table};
use super::read::{check_name, read_choice, read_filled, read_list};
use super::{sorted, unknown_provider};
use crate::catalogue::{self, List, Provider, Region};
use crate::feed;
use crate::policy::{Http, Origin, Source, is_loopback};

const EVERY_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(24 * 30);
const TIMEOUT_RANGE: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_mins(10);
/// A feed is held in memory while it is read.
const MAX_SIZE_RANGE: RangeInclusive<u64> = 1..=64 << 20;

/// Every key, and the kinds of source that use it.
const KEYS: &[(&str, &[Kind])] = &[
    ("provider", &[Kind::Fetched, Kind::BuiltIn]),
    ("regions", &[Kind::BuiltIn]),
    ("url", &[Kind::Fetched]),
    ("format", &[Kind::Fetched]),
    ("file", &[Kind::File]),
    ("prefixes", &[Kind::Prefixes]),
    ("every", &[Kind::Fetched, Kind::File]),
    ("timeout", &[Kind::Fetched]),
    ("max_size", &[Kind::Fetched]),
    ("ca_file", &[Kind::Fetched]),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Prefixes,
    File,
    Fetched,
    BuiltIn,
}

/// The `[sources]` table.
pub(super) fn read_sources(root: &Table, folder: &Path, problems: &mut Problems) -> Vec<Source> {
    let Some(table) = root.get("sources").and_then(|node| node.table(problems)) else {
        return Vec::new();
    };
    let mut sources = Vec::new();
    for (name, node) in table.entries() {
        check_name(name, &node, problems);
        if let Some(table) = node.table(problems) {
            sources.extend(read_source(name, &table, folder, problems));
        }
    }
    sources
}

/// None if something is so wrong (and reported) that there is no default for it.
fn read_source(
    name: &str,
    table: &Table,
    folder: &Path,
    problems: &mut Problems,
) -> Option<Source> {
    let keys: Vec<_> = KEYS.iter().map(|(key, _)| *key).collect();
    table.only(&keys, problems);
    let every = read_duration(table, "every", Source::EVERY, &EVERY_RANGE, problems);
    let has = |key: &&str| table.get(key).is_some();
    // A provider with a URL is one origin: the vendor's list from a mirror.
    let origins = ["provider", "file", "prefixes"].into_iter().filter(has);
    let origins: Vec<_> = match table.get("provider") {
        Some(_) => origins.collect(),
        None => origins.chain(["url"].into_iter().filter(has)).collect(),
    };
    let source = match origins[..] {
        ["provider"] => read_provided(name, table, folder, problems)?,
        ["url"] => Source::new(name, read_fetched(table, folder, problems)?),
        ["file"] => {
            only_for(table, Kind::File, "a file", problems);
            let path = read_path(&table.get("file")?, folder, problems)?;
            Source::new(name, Origin::File(path))
        }
        ["prefixes"] => Source::new(name, read_prefixes(table, problems)?),
        [] => {
            let message = "has no origin; add `provider`, `url`, `file` or `prefixes`";
            table.wrong(problems, message);
            return None;
        }
        _ => {
            let origins = origins.join("` and `");
            let message =
                format!("has `{origins}`, and one origin is possible; make each a source");
            table.wrong(problems, message);
            return None;
        }
    };
    Some(Source { every, ..source })
}

fn read_prefixes(table: &Table, problems: &mut Problems) -> Option<Origin> {
    only_for(table, Kind::Prefixes, "a list of prefixes", problems);
    let node = table.get("prefixes")?;
    if node.is_empty_array() {
        node.wrong(
            problems,
            "is empty; write a prefix such as \"203.0.113.0/24\"",
        );
    }
    let prefixes = read_list(&node, problems, |token| {
        feed::parse_prefix(token).map_err(|error| error.to_string())
    });
    Some(Origin::Prefixes(sorted(prefixes)))
}

fn read_fetched(table: &Table, folder: &Path, problems: &mut Problems) -> Option<Origin> {
    only_for(table, Kind::Fetched, "a list that is fetched", problems);
    if table.get("format").is_none() {
        let message = "has a `url` and no `format`; add format = \"json\", an array of addresses";
        table.wrong(problems, message);
    }
    let mut http = Http::new(read_url(&table.get("url")?, problems)?);
    read_options(&mut http, table, folder, problems);
    Some(Origin::Http(http))
}

fn read_provided(
    name: &str,
    table: &Table,
    folder: &Path,
    problems: &mut Problems,
) -> Option<Source> {
    let node = table.get("provider")?;
    let wanted = node.text(problems)?;
    let Some(provider) = catalogue::find(wanted) else {
        node.wrong(problems, unknown_provider(wanted));
        return None;
    };
    let mut regions = Vec::new();
    match provider.list {
        List::Fetched(_) => {
            let what = format!("{wanted}, which has no regions");
            only_for(table, Kind::Fetched, &what, problems);
        }
        List::BuiltIn => {
            let what = format!("{wanted}, whose list is compiled in");
            only_for(table, Kind::BuiltIn, &what, problems);
            if table.get("regions").is_some() {
                regions = read_regions(provider, table, problems);
            }
        }
    }
    let mut source = provider.source(name, &regions);
    if let Origin::Http(http) = &mut source.origin {
        if let Some(node) = table.get("url") {
            http.url = read_url(&node, problems)?;
        }
        read_options(http, table, folder, problems);
    }
    Some(source)
}

fn read_regions(
    provider: &'static Provider,
    table: &Table,
    problems: &mut Problems,
) -> Vec<&'static Region> {
    let codes: Vec<_> = provider
        .regions()
        .iter()
        .map(|region| region.code.as_str())
        .collect();
    let there_are = format!("{} has {}", provider.name, codes.join(", "));
    let otherwise = format!("{there_are}; remove the key to take the usual ones");
    read_filled(table, "regions", &otherwise, problems, |code| {
        let unknown = || format!("there is no region {code:?}; {there_are}");
        provider.region(code).ok_or_else(unknown)
    })
}

/// What a configuration may say about how a list is fetched.
fn read_options(http: &mut Http, table: &Table, folder: &Path, problems: &mut Problems) {
    // There is one format, so that checking it is all there is to do.
    let () = read_choice(table, "format", &[("json", ())], problems);
    http.ca_file = table
        .get("ca_file")
        .and_then(|node| read_path(&node, folder, problems));
    http.timeout = read_duration(table, "timeout", Http::TIMEOUT, &TIMEOUT_RANGE, problems);
    http.max_bytes = read_max_size(table, problems);
}

fn read_url(node: &Node, problems: &mut Problems) -> Option<Url> {
    // The text is not repeated: it may hold a password.
    let message = match Url::parse(node.text(problems)?) {
        Ok(url) if url.scheme() == "https" => return Some(url),
        Ok(url) if url.scheme() == "http" && is_loopback(&url) => return Some(url),
        Ok(url) if url.scheme() == "http" => {
            "would be fetched unprotected; write https:// (http:// is for loopback only)".to_owned()
        }
        Ok(url) => format!("has the scheme {:?}; write https://", url.scheme()),
        Err(error) => {
            format!("is not a URL: {error}; write one such as \"https://example.com/list.json\"")
        }
    };
    node.wrong(problems, message);
    None
}

fn read_path(node: &Node, folder: &Path, problems: &mut Problems) -> Option<PathBuf> {
    let text = node.text(problems)?;
    if text.is_empty() {
        node.wrong(problems, "is empty; write the path of a file");
        return None;
    }
    Some(folder.join(text))
}

fn read_duration(
    table: &Table,
    key: &str,
    default: Duration,
    range: &RangeInclusive<Duration>,
    problems: &mut Problems,
) -> Duration {
    let Some(node) = table.get(key) else {
        return default;
    };
    let Some(text) = node.text(problems) else {
        return default;
    };
    let message = match humantime::parse_duration(text) {
        Ok(duration) if range.contains(&duration) => return duration,
        Ok(_) => {
            let [low, high] = [range.start(), range.end()].map(|d| humantime::format_duration(*d));
            format!("{text:?} is out of range; write {low} to {high}")
        }
        Err(_) => {
            format!("{text:?} is not a duration; write one such as \"30s\", \"15m\" or \"1h\"")
        }
    };
    node.wrong(problems, message);
    default
}

fn read_max_size(table: &Table, problems: &mut Problems) -> u64 {
    let Some(node) = table.get("max_size") else {
        return Http::MAX_BYTES;
    };
    let bytes = match node.string() {
        Some(text) => parse_size(text),
        None => node.integer(),
    };
    if let Some(bytes) = bytes.filter(|bytes| MAX_SIZE_RANGE.contains(bytes)) {
        return bytes;
    }
    let message = "is not a size; write bytes, or \"512KiB\" or \"4MiB\", up to \"64MiB\"";
    node.wrong(problems, message);
    Http::MAX_BYTES
}

fn parse_size(text: &str) -> Option<u64> {
    let units = [("KiB", 10), ("MiB", 20), ("", 0)];
    let (digits, shift) = units
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))?;
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse::<u64>().ok()?.checked_mul(1 << shift))?
}

/// Reports the keys that a source of this kind would ignore.
fn only_for(table: &Table, kind: Kind, what: &str, problems: &mut Problems) {
    for (key, kinds) in KEYS {
        if let Some(node) = table.get(key)
            && !kinds.contains(&kind)
        {
            node.wrong(problems, format!("makes no sense for {what}; remove it"));
        }
    }
}
