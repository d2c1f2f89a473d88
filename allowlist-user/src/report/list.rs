//! The active prefixes, with the services that each reaches.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use allowlist_dataplane::{Entry, View};
use allowlist_lists::feed::parse_prefix;
use allowlist_policy::error_code::{CodedError, ErrorCode};
use allowlist_policy::hints;
use allowlist_policy::hints::counted;
use anyhow::Result;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Report, shortened, width};
use crate::generation_meta::GenerationMeta;

/// The prefixes in the kernel's table, with the names of their sources and services.
pub struct List {
    generation: u32,
    rows: Vec<Row>,
    /// The number of all prefixes in the table, including those that the report omits.
    all: usize,
    meta: GenerationMeta,
}

/// The selection of prefixes for `allowlist list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Only {
    /// Prefixes that contain this prefix, or lie within it.
    Prefix(IpNet),
    /// Prefixes that the source with this name lists.
    Source(String),
}

impl FromStr for Only {
    type Err = String;

    /// Parses the selection: an address, a prefix, or otherwise the name of a source.
    fn from_str(text: &str) -> Result<Self, String> {
        match parse_prefix(text) {
            Ok(prefix) => Ok(Self::Prefix(prefix)),
            Err(error) if text.contains(['/', ':']) => Err(error.to_string()),
            Err(_) => Ok(Self::Source(text.to_owned())),
        }
    }
}

impl fmt::Display for Only {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) => prefix.fmt(out),
            Self::Source(name) => out.write_str(name),
        }
    }
}

struct Row {
    prefix: IpNet,
    services: Vec<String>,
    sources: Vec<String>,
}

impl List {
    /// Reads the prefixes and their names from the kernel.
    pub fn read(pin_dir: &Path) -> Result<Self> {
        let lookup = View::open(pin_dir)?.lookup()?;
        let meta = lookup.metadata().and_then(GenerationMeta::decode);
        let meta = meta.unwrap_or_default();
        let control = lookup.control();
        let entries = if control.open { &[] } else { lookup.entries() };
        let rows = rows(entries.to_vec(), &meta);
        Ok(Self {
            generation: control.generation,
            all: rows.len(),
            rows,
            meta,
        })
    }

    /// Removes the prefixes that `only` or `service` does not select.
    ///
    /// # Errors
    /// Fails if no source or service has this name; the error lists the existing names.
    pub fn narrow(mut self, only: Option<&Only>, service: Option<&str>) -> Result<Self> {
        if let Some(Only::Source(name)) = only {
            require(
                ErrorCode::UnknownSource,
                "source",
                name,
                self.meta.sources.keys(),
            )?;
        }
        if let Some(name) = service {
            require(
                ErrorCode::UnknownService,
                "service",
                name,
                self.meta.services.keys(),
            )?;
        }
        self.rows.retain(|row| {
            let is_reached = service.is_none_or(|name| row.services.iter().any(|one| one == name));
            let is_meant = match only {
                Some(Only::Prefix(prefix)) => {
                    row.prefix.contains(prefix) || prefix.contains(&row.prefix)
                }
                Some(Only::Source(name)) => row.sources.contains(name),
                None => true,
            };
            is_reached && is_meant
        });
        Ok(self)
    }
}

fn require<'n>(
    code: ErrorCode,
    kind: &str,
    name: &str,
    known: impl Iterator<Item = &'n String>,
) -> Result<()> {
    let known: Vec<&str> = known.map(String::as_str).collect();
    if known.contains(&name) {
        return Ok(());
    }
    let error = format!(
        "there is no {kind} {name:?}{}; {}",
        hints::did_you_mean(name, &known),
        hints::there_are(&known)
    );
    Err(CodedError::new(code, error).into())
}

impl Report for List {
    fn text(&self) -> String {
        // Without the table library, which is slow for a million rows.
        let columns = |row: &Row| {
            (
                row.prefix.to_string(),
                row.services.join(" "),
                row.sources.join(" "),
            )
        };
        let mut widths = self.rows.iter().map(columns).fold((6, 7), |widths, row| {
            (widths.0.max(row.0.len()), widths.1.max(row.1.len()))
        });
        // On a terminal the columns of names share the width that the prefixes leave.
        let left = width().map(|width| width.saturating_sub(widths.0 + 4));
        if let Some(left) = left {
            widths.1 = widths.1.min(left / 2);
        }
        let line = |prefix: &str, services: &str, sources: &str| {
            let services = shortened(services, widths.1);
            let sources = match left {
                Some(left) => shortened(sources, left.saturating_sub(widths.1)),
                None => sources.to_owned(),
            };
            let blanks = " ".repeat(widths.1 - services.chars().count().min(widths.1));
            let line = format!("{prefix:<0$}  {services}{blanks}  {sources}", widths.0);
            format!("{}\n", line.trim_end())
        };
        let mut text = line("prefix", "reaches", "listed by");
        for row in &self.rows {
            let (prefix, services, sources) = columns(row);
            text += &line(&prefix, &services, &sources);
        }
        let of = if self.rows.len() == self.all {
            String::new()
        } else {
            format!("{} of ", self.rows.len())
        };
        let all = counted(self.all, "prefix");
        text + &format!("{of}{all}, generation {}\n", self.generation)
    }

    fn json(&self) -> Value {
        json!({ "generation": self.generation, "prefixes": rows_json(&self.rows) })
    }
}

/// Returns compiled entries as JSON, with the names of the metadata.
pub(super) fn entries_json(entries: Vec<Entry>, meta: &GenerationMeta) -> Value {
    rows_json(&rows(entries, meta))
}

fn rows(entries: Vec<Entry>, meta: &GenerationMeta) -> Vec<Row> {
    entries
        .into_iter()
        .map(|entry| {
            let sources = meta.ids.sources_of(entry.grant.match_id);
            Row {
                prefix: entry.prefix,
                services: meta.services_of(&sources),
                sources,
            }
        })
        .collect()
}

fn rows_json(rows: &[Row]) -> Value {
    rows.iter()
        .map(
            |row| json!({ "prefix": row.prefix, "services": row.services, "sources": row.sources }),
        )
        .collect()
}
