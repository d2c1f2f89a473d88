//! Reads the keys of sources, and checks their combinations.
//!
//! Invariants: a source has exactly one origin, and no key that its origin would ignore; a URL is https, or
//! loopback, or has `allow_plain_http`. A provider of the catalogue is a table of the same keys, read by the same
//! code; keys of the configuration override it. Does no I/O: paths are resolved, never opened.

mod format;
mod options;
mod size;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use allowlist_lists::catalogue::{self, FORMAT_KEYS, List, Provider, Region};
use allowlist_lists::feed;
use allowlist_policy::{Family, Format, Http, Lookup, Origin, Source, is_loopback};
use url::Url;

use self::format::read_format;
use self::options::read_options;
pub(super) use self::options::{TIMEOUT_RANGE, read_ca_only, read_duration, read_size};
use super::document::{self, Node, Problems, Table};
use super::read::{check_name, read_choice, read_filled, read_list};
use super::{sorted, unknown_provider};

/// All keys of a source, each group with the kinds of source that accept it.
const KEYS: &[(&[&str], &[Kind])] = &[
    (
        &["provider", "regions"],
        &[Kind::Fetched, Kind::Names, Kind::BuiltIn],
    ),
    (&["parameters"], &[Kind::Fetched, Kind::Names]),
    (&["prefixes"], &[Kind::Prefixes]),
    (&["file"], &[Kind::File]),
    (&["url"], &[Kind::Fetched]),
    (&["names"], &[Kind::Names]),
    (&["answers"], &[Kind::Names]),
    (FORMAT_KEYS, &[Kind::Fetched, Kind::File]),
    (FINDING_KEYS, &[Kind::Fetched]),
    (
        &[
            "headers",
            "bearer_file",
            "allow_plain_http",
            "allow_private",
            "ca_file",
            "ca_only",
            "max_size",
        ],
        &[Kind::Fetched],
    ),
    (&["timeout"], &[Kind::Fetched, Kind::Names]),
    (&["families", "resolvers", "ttl_floor"], &[Kind::Names]),
    (&["every", "grace"], CHANGING),
    (
        &["max_age"],
        &[Kind::Fetched, Kind::File, Kind::Names, Kind::BuiltIn],
    ),
    (
        &[
            "min",
            "max",
            "must_cover",
            "min_prefix_len",
            "allow_special_use",
            "max_shrink",
            "max_growth",
            "growth_window",
            "max_addresses",
        ],
        CHANGING,
    ),
    (
        &["direction"],
        &[
            Kind::Prefixes,
            Kind::File,
            Kind::Fetched,
            Kind::Names,
            Kind::BuiltIn,
        ],
    ),
];

const CHANGING: &[Kind] = &[Kind::Fetched, Kind::File, Kind::Names];

/// The keys that locate the list behind a URL.
const FINDING_KEYS: &[&str] = &["discover", "newest", "unzip"];

/// The groups of keys that only the catalogue may set for a provider.
const PROVIDERS: [&[&str]; 3] = [&["names"], FORMAT_KEYS, FINDING_KEYS];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Prefixes,
    File,
    Fetched,
    Names,
    BuiltIn,
}

impl Kind {
    fn of(origin: &Origin) -> Self {
        match origin {
            // No configuration has a table for added prefixes.
            Origin::Prefixes(_) | Origin::Added => Self::Prefixes,
            Origin::File { .. } => Self::File,
            Origin::Http(_) => Self::Fetched,
            Origin::Names(_) => Self::Names,
            Origin::BuiltIn { .. } => Self::BuiltIn,
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Prefixes => "a list of prefixes",
            Self::File => "a file",
            Self::Fetched => "a fetched list",
            Self::Names => "a list of DNS names",
            Self::BuiltIn => "a built-in list",
        }
    }
}

/// Reads the `[sources]` table. Relative paths start in `folder`.
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

/// Returns the source `name` for a provider of the catalogue.
///
/// # Errors
/// Fails if a parameter is missing or invalid.
pub fn provided(
    name: &str,
    provider: &Provider,
    regions: &[&Region],
    parameters: &BTreeMap<String, String>,
) -> Result<Source, String> {
    let source = match &provider.list {
        List::BuiltIn => {
            let prefixes = provider.prefixes(regions);
            let checked = provider.checked;
            Source::new(name, Origin::BuiltIn { prefixes, checked })
        }
        List::Fetched(_) => {
            let table = provider.table(regions, parameters)?;
            let text = toml::to_string(&table).map_err(|error| error.to_string())?;
            parse_source(name, &text)?
        }
    };
    let mut gate = source.gate;
    let (notable, max) = (&mut gate.notable_addresses, gate.max_addresses);
    // A list within the size that the catalogue states needs no note.
    notable.v4 = notable.v4.max(max.v4.saturating_add(1));
    notable.v6 = notable.v6.max(max.v6.saturating_add(1));
    Ok(Source {
        gate,
        provider: Some(provider.name.clone()),
        regions: regions.iter().map(|region| region.code.clone()).collect(),
        direction: provider.direction,
        warning: provider.warning.clone(),
        ..source
    })
}

/// Reads the table of a provider in the catalogue as the source `name`. Errors are mistakes in the catalogue.
fn parse_source(name: &str, text: &str) -> Result<Source, String> {
    let mut problems = Problems::default();
    let source = document::parse(text, &mut problems).and_then(|document| {
        read_source(name, &Table::root(&document), Path::new(""), &mut problems)
    });
    match problems.result((), text, Path::new("catalogue")) {
        Ok(()) => source.ok_or_else(|| "has no origin".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads the table of source `name`. Returns `None` if a reported mistake leaves no usable source.
fn read_source(
    name: &str,
    table: &Table,
    folder: &Path,
    problems: &mut Problems,
) -> Option<Source> {
    let keys: Vec<_> = KEYS.iter().map(|(keys, _)| *keys).collect();
    table.only(&keys.concat(), problems);
    let has = |key: &&str| table.get(key).is_some();
    // A provider with a `url` is one origin: a mirror of the vendor's list.
    let origins = ["provider", "file", "prefixes", "names"]
        .into_iter()
        .filter(has);
    let origins: Vec<_> = match table.get("provider") {
        Some(_) => origins.filter(|key| *key != "names").collect(),
        None => origins.chain(["url"].into_iter().filter(has)).collect(),
    };
    let mut source = match origins[..] {
        ["provider"] => read_provided(name, table, problems)?,
        ["url"] => Source::new(name, read_fetched(table, problems)?),
        ["names"] => Source::new(name, read_names(table, problems)),
        ["file"] => {
            let path = read_path(&table.get("file")?, folder, problems)?;
            let format = read_format(table, problems).unwrap_or(Format::Text);
            Source::new(name, Origin::File { path, format })
        }
        ["prefixes"] => Source::new(name, read_prefixes(table, problems)?),
        [] => {
            let message =
                "has no origin; add one of `provider`, `url`, `names`, `file` and `prefixes`";
            table.wrong(problems, message);
            return None;
        }
        _ => {
            let origins = origins.join("` and `");
            let message =
                format!("has more than one origin, `{origins}`; define a source for each");
            table.wrong(problems, message);
            return None;
        }
    };
    only_for(table, &source, problems);
    if let Origin::Names(lookup) = &mut source.origin {
        read_lookup(lookup, table, problems);
        if lookup.names.is_empty() {
            source.gate.min = 0; // nothing can be resolved
        }
    }
    read_options(&mut source, table, folder, problems);
    Some(source)
}

fn read_prefixes(table: &Table, problems: &mut Problems) -> Option<Origin> {
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

fn read_fetched(table: &Table, problems: &mut Problems) -> Option<Origin> {
    if table.get("format").is_none() {
        let message = "`format` is missing; add format = \"json\", \"jsonl\", \"text\", \"csv\", \"xml\", \"html\" or \"markdown\"";
        table.wrong(problems, message);
    }
    let format = read_format(table, problems).unwrap_or_else(Format::json_array);
    let urls = read_urls(table, &table.get("url")?, problems)?;
    Some(Origin::Http(Http::new(urls, format)))
}

fn read_names(table: &Table, problems: &mut Problems) -> Origin {
    let otherwise =
        "the source has no name to resolve; add one, such as names = [\"egress.example.com\"]";
    let patterns = read_filled(table, "names", otherwise, problems, |text| {
        match text.strip_prefix("*.") {
            Some(below) => check_host(below)
                .map(|name| (name, true))
                .map_err(|error| format!("after \"*.\", {error}")),
            None => check_host(text).map(|name| (name, false)),
        }
    });
    let of_kind = |is_wildcard| {
        let patterns = patterns.iter().filter(move |one| one.1 == is_wildcard);
        patterns.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let mut lookup = Lookup::new(of_kind(false));
    lookup.wildcards = of_kind(true);
    Origin::Names(lookup)
}

/// Reads the keys of a source of names that override those of a provider.
fn read_lookup(lookup: &mut Lookup, table: &Table, problems: &mut Problems) {
    let answers = [("believe", true), ("poll", false)];
    if table.get("answers").is_some() {
        lookup.believes_answers = read_choice(table, "answers", &answers, problems);
    }
    if !lookup.believes_answers
        && !lookup.wildcards.is_empty()
        && let Some(node) = table.get("answers")
    {
        node.wrong(
            problems,
            "prevents the use of the wildcards in `names`, whose names are known only from answers; remove the key, or the wildcards",
        );
    }
    if table.get("families").is_some() {
        lookup.families = read_families(table, problems);
    }
    if let Some(node) = table.get("resolvers") {
        lookup.resolvers = read_list(&node, problems, |text| {
            let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
            address.or_else(|_| text.parse()).map_err(|_| {
                format!("{text:?} is not a name server; write its address, such as \"192.0.2.53\" or \"127.0.0.1:5353\"")
            })
        });
        if node.is_empty_array() {
            node.wrong(
                problems,
                "is empty; write the address of a name server, or remove the key to use those of this host",
            );
        }
    }
}

/// Reads the array `families`; returns the families sorted and without repetitions.
fn read_families(table: &Table, problems: &mut Problems) -> Vec<Family> {
    let otherwise = "the source would have no addresses; write families = [\"ipv4\"] or [\"ipv6\"], or remove the key for both";
    let families = read_filled(table, "families", otherwise, problems, |text| {
        let known = Family::ALL.into_iter().find(|family| family.key() == text);
        known.ok_or_else(|| format!("{text:?} is not an address family; use \"ipv4\" or \"ipv6\""))
    });
    let is_named = |family: &Family| families.contains(family);
    Family::ALL.into_iter().filter(is_named).collect()
}

/// Returns a host name in lower case without the final dot.
///
/// # Errors
/// Fails if the text is not a full host name in the ASCII form of the DNS; the message has the remedy.
pub(super) fn check_host(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!("{text:?} is an address; write it under `prefixes`"));
    }
    if !name.is_ascii()
        && let Ok(url) = Url::parse(&format!("https://{name}/"))
        && let Some(ascii) = url.host_str()
    {
        return Err(format!(
            "{text:?} is not in the ASCII form of the DNS; write {ascii:?}"
        ));
    }
    if name.len() > 253 || !name.split('.').all(is_label) || !name.contains('.') {
        return Err(format!(
            "{text:?} is not a full host name; write one such as \"egress.example.com\""
        ));
    }
    Ok(name.to_ascii_lowercase())
}

fn read_provided(name: &str, table: &Table, problems: &mut Problems) -> Option<Source> {
    let node = table.get("provider")?;
    let wanted = node.text(problems)?;
    let Some(provider) = catalogue::find(wanted) else {
        node.wrong(problems, unknown_provider(wanted));
        return None;
    };
    for key in PROVIDERS.concat() {
        if let Some(node) = table.get(key) {
            node.wrong(
                problems,
                format!("is set by the provider; remove the key, or replace `provider` by the table that `allowlist providers show {wanted}` prints"),
            );
        }
    }
    let mut regions = Vec::new();
    if let Some(node) = table.get("regions") {
        if provider.regions().is_empty() {
            node.wrong(
                problems,
                format!("does not apply to {wanted}, which has no regions; remove the key"),
            );
        } else {
            regions = read_regions(provider, table, problems);
        }
    }
    let parameters = read_parameters(table, problems);
    match provided(name, provider, &regions, &parameters) {
        Ok(mut source) => {
            if let (Origin::Http(http), Some(node)) = (&mut source.origin, table.get("url")) {
                http.urls = read_urls(table, &node, problems)?;
                // A mirror serves the list itself.
                http.discover = None;
            }
            Some(source)
        }
        Err(message) => {
            let at = table.get("parameters").unwrap_or(node);
            at.wrong(problems, message);
            None
        }
    }
}

fn read_parameters(table: &Table, problems: &mut Problems) -> BTreeMap<String, String> {
    let Some(table) = table
        .get("parameters")
        .and_then(|node| node.table(problems))
    else {
        return BTreeMap::new();
    };
    let mut parameters = BTreeMap::new();
    for (name, node) in table.entries() {
        if let Some(text) = node.text(problems) {
            parameters.insert(name.to_owned(), text.to_owned());
        }
    }
    parameters
}

fn read_regions(
    provider: &'static Provider,
    table: &Table,
    problems: &mut Problems,
) -> Vec<&'static Region> {
    let codes: Vec<_> = provider
        .regions()
        .iter()
        .map(|region| &*region.code)
        .collect();
    let there_are = format!("{} has the regions {}", provider.name, codes.join(", "));
    let otherwise = format!("{there_are}; remove the key to use the default regions");
    read_filled(table, "regions", &otherwise, problems, |code| {
        let unknown = || format!("there is no region {code:?}; {there_are}");
        provider.region(code).ok_or_else(unknown)
    })
}

/// Whether the URL of another host may be plain HTTP instead of https.
#[derive(Clone, Copy)]
enum PlainHttp {
    Allowed,
    /// Plain HTTP is an error, which `allow_plain_http = true` in the source would permit.
    Refused,
    /// Plain HTTP is an error, and no key permits it, such as for the URL of a webhook.
    Never,
}

/// Reads a URL, or an array of URLs whose lists are merged. Returns `None` after a reported mistake.
fn read_urls(table: &Table, node: &Node, problems: &mut Problems) -> Option<Vec<Url>> {
    let is_allowed = table
        .get("allow_plain_http")
        .and_then(|node| node.boolean(&mut Problems::default()));
    let plain = match is_allowed {
        Some(true) => PlainHttp::Allowed,
        _ => PlainHttp::Refused,
    };
    if let Some(text) = node.string() {
        let url = read_url(text, plain);
        return url
            .map_err(|message| node.wrong(problems, message))
            .ok()
            .map(|url| vec![url]);
    }
    if node.is_empty_array() {
        node.wrong(problems, "is empty; write the URL of a list");
    }
    let urls = read_list(node, problems, |text| read_url(text, plain));
    (!urls.is_empty()).then_some(urls)
}

/// Reads a URL, which must be https, or http to a loopback address. Returns `None` after a reported mistake.
pub(super) fn read_one_url(node: &Node, problems: &mut Problems) -> Option<Url> {
    let url = read_url(node.text(problems)?, PlainHttp::Never);
    url.map_err(|message| node.wrong(problems, message)).ok()
}

/// Parses a URL. Errors do not repeat the text, as it may contain a password.
fn read_url(text: &str, plain: PlainHttp) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if url.scheme() == "https" => Ok(url),
        Ok(url) if url.scheme() == "http" => match plain {
            PlainHttp::Allowed => Ok(url),
            PlainHttp::Refused | PlainHttp::Never if is_loopback(&url) => Ok(url),
            PlainHttp::Refused => Err(
                "is plain HTTP; use https:// (http:// requires a loopback address, or a source with allow_plain_http = true)"
                    .to_owned(),
            ),
            PlainHttp::Never => Err(
                "is plain HTTP; use https:// (http:// requires a loopback address)".to_owned(),
            ),
        },
        Ok(url) => Err(format!("has the unsupported scheme {:?}; use https://", url.scheme())),
        Err(error) => Err(format!(
            "is not a URL: {error}; write one such as \"https://example.com/list.json\""
        )),
    }
}

pub(super) fn read_path(node: &Node, folder: &Path, problems: &mut Problems) -> Option<PathBuf> {
    let text = node.text(problems)?;
    if text.is_empty() {
        node.wrong(problems, "is empty; write the path of a file");
        return None;
    }
    Some(folder.join(text))
}

/// Reports the keys of the table that do not apply to this kind of source.
fn only_for(table: &Table, source: &Source, problems: &mut Problems) {
    let kind = Kind::of(&source.origin);
    let what = match &source.provider {
        Some(provider) => format!("{provider}, which is {}", kind.describe()),
        None => kind.describe().to_owned(),
    };
    let keys = KEYS.iter();
    let keys = keys.flat_map(|(keys, kinds)| keys.iter().map(move |key| (key, *kinds)));
    for (key, kinds) in keys {
        let is_provided = source.provider.is_none() && ["regions", "parameters"].contains(key);
        let is_said = source.provider.is_some() && PROVIDERS.concat().contains(key);
        if let Some(node) = table.get(key)
            && (!kinds.contains(&kind) || is_provided)
            && !is_said
        {
            node.wrong(
                problems,
                format!("does not apply to {what}; remove the key"),
            );
        }
    }
}
