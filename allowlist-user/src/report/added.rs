//! Prefixes that were added by command: the service, the expiry and the user of each.

use std::path::Path;

use allowlist_policy::text::on_one_line;
use anyhow::Result;
use serde_json::{Value, json};

use super::{Report, ago, table};
use crate::additions::{Addition, Additions};
use crate::journal::PolicyHistory;
use crate::time::Now;

/// The report of the prefixes that were added by command.
pub struct Added {
    book: Additions,
    now: Now,
}

impl Added {
    /// Reads the added prefixes from the journal in `state_dir`.
    pub fn read(state_dir: &Path) -> Result<Self> {
        let (book, now) = PolicyHistory::load_additions(state_dir)?;
        Ok(Self { book, now })
    }
}

impl Report for Added {
    fn text(&self) -> String {
        if self.book.is_empty() {
            return "no prefix was added by command\n".to_owned();
        }
        let header = ["prefix", "service", "expires in", "added", "by", "note"];
        let mut table = table(&header, &[2, 3]);
        for one in self.book.all() {
            table.add_row([
                one.prefix.to_string(),
                one.service.clone(),
                one.left(&self.now).map_or_else(
                    || "never".to_owned(),
                    |left| ago(left.as_secs().cast_signed()),
                ),
                format!(
                    "{} ago",
                    ago(self.now.wall.duration_since(one.added).as_secs())
                ),
                one.by.clone(),
                on_one_line(one.note.as_deref().unwrap_or_default()).into_owned(),
            ]);
        }
        format!("{table}\n")
    }

    fn json(&self) -> Value {
        let added = self.book.all().map(|one| Addition {
            // An internal field.
            until_uptime: None,
            ..one.clone()
        });
        json!({ "added": added.collect::<Vec<_>>() })
    }
}
