//! The audit log: the time, the user and the change of each entry, oldest first.

use std::path::Path;

use allowlist_policy::text::{indented, on_one_line};
use anyhow::Result;
use serde_json::{Value, json};

use super::Report;
use crate::audit::AuditEntry;
use crate::event_log;

/// The report of the audit log.
pub struct AuditLog {
    entries: Vec<AuditEntry>,
    damaged: usize,
}

impl AuditLog {
    /// Reads the audit log in `state_dir`: the newest `count` entries, or all entries without `count`.
    pub fn read(state_dir: &Path, count: Option<usize>) -> Result<Self> {
        let event_log::Records {
            operations: mut entries,
            damaged,
            ..
        } = event_log::read(state_dir)?;
        if let Some(count) = count {
            entries.drain(..entries.len().saturating_sub(count));
        }
        Ok(Self { entries, damaged })
    }
}

impl Report for AuditLog {
    fn text(&self) -> String {
        let mut text = String::new();
        for entry in &self.entries {
            let time = entry.time.strftime("%Y-%m-%d %H:%M:%SZ");
            let line = format!("{time}  {}  {}", entry.actor, entry.summary());
            text += &on_one_line(&line);
            text += &match &entry.refused {
                Some(reason) => format!("  REFUSED: {}\n", indented(reason)),
                None if entry.no_change => "  (no change)\n".to_owned(),
                None => format!("  (generation {})\n", entry.generation),
            };
        }
        if self.damaged > 0 {
            text += &format!(
                "warning: the audit log has {} damaged lines, which are skipped\n",
                self.damaged
            );
        }
        if text.is_empty() {
            text += "no changes yet\n";
        }
        text
    }

    fn json(&self) -> Value {
        json!({ "entries": self.entries, "damaged": self.damaged })
    }
}
