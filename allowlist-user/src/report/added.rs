//! What was let in by command: to which service, until when, by whom.

use std::path::Path;

use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Report, ago, table};
use crate::additions::Additions;
use crate::ledger::Known;
use crate::text::on_one_line;

/// The book of additions.
pub struct Added {
    book: Additions,
    now: Timestamp,
}

impl Added {
    /// As it is on disk.
    pub fn read(state_dir: &Path) -> Result<Self> {
        let now = Timestamp::now();
        let book = Known::peek_additions(state_dir, now)?;
        Ok(Self { book, now })
    }
}

impl Report for Added {
    fn text(&self) -> String {
        if self.book.is_empty() {
            return "nothing is added by command\n".to_owned();
        }
        let header = ["prefix", "service", "goes in", "added", "by", "note"];
        let mut table = table(&header, &[2, 3]);
        for one in self.book.all() {
            table.add_row([
                one.prefix.to_string(),
                one.service.clone(),
                one.until.map_or_else(
                    || "never".to_owned(),
                    |until| ago(until.duration_since(self.now).as_secs()),
                ),
                format!("{} ago", ago(self.now.duration_since(one.added).as_secs())),
                one.by.clone(),
                on_one_line(one.note.as_deref().unwrap_or_default()),
            ]);
        }
        format!("{table}\n")
    }

    fn json(&self) -> Value {
        json!({ "added": self.book.all().collect::<Vec<_>>() })
    }
}
