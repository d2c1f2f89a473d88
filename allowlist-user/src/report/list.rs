//! The prefixes that the kernel has now, and what each reaches.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::Report;
use crate::dataplane::{Entry, View};
use crate::record::Record;

/// The kernel's table of prefixes, in words.
pub struct List {
    generation: u32,
    rows: Vec<Row>,
}

struct Row {
    prefix: ipnet::IpNet,
    services: Vec<String>,
    sources: Vec<String>,
}

impl List {
    /// Reads the table from the kernel and the words from the record.
    pub fn read(pin_dir: &Path, state_dir: &Path) -> Result<Self> {
        let view = View::open(pin_dir)?;
        let record = Record::load(state_dir).unwrap_or_default();
        Ok(Self {
            generation: view.control()?.generation,
            rows: rows(view.entries()?, &record),
        })
    }
}

impl Report for List {
    fn text(&self) -> String {
        // By hand: a million rows are nothing that a table library should lay out.
        let columns = |row: &Row| {
            (
                row.prefix.to_string(),
                row.services.join(" "),
                row.sources.join(" "),
            )
        };
        let widths = self.rows.iter().map(columns).fold((6, 7), |widths, row| {
            (widths.0.max(row.0.len()), widths.1.max(row.1.len()))
        });
        let line = |prefix: &str, services: &str, sources: &str| {
            format!(
                "{prefix:<0$}  {services:<1$}  {sources}\n",
                widths.0, widths.1
            )
        };
        let mut text = line("prefix", "reaches", "listed by");
        for row in &self.rows {
            let (prefix, services, sources) = columns(row);
            text += &line(&prefix, &services, &sources);
        }
        text + &format!(
            "{} prefixes, generation {}\n",
            self.rows.len(),
            self.generation
        )
    }

    fn json(&self) -> Value {
        json!({ "generation": self.generation, "prefixes": rows_json(&self.rows) })
    }
}

/// Entries that were compiled and not read from a kernel, as data.
pub(super) fn entries_json(entries: Vec<Entry>, record: &Record) -> Value {
    rows_json(&rows(entries, record))
}

fn rows(entries: Vec<Entry>, record: &Record) -> Vec<Row> {
    entries
        .into_iter()
        .map(|entry| {
            let sources = record.names.sources_of(entry.grant.matched);
            Row {
                prefix: entry.prefix,
                services: record.services_of(&sources),
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
