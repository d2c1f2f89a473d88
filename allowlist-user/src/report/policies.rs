//! The stored policies, newest first.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Report, table};
use crate::journal::PolicyHistory;

/// The report of the policies that the journal stores.
pub struct PolicyList {
    known: PolicyHistory,
}

impl PolicyList {
    /// Reads the policies from the journal in `state_dir`.
    pub fn read(state_dir: &Path) -> Result<Self> {
        Ok(Self {
            known: PolicyHistory::load_readonly(state_dir)?,
        })
    }
}

impl Report for PolicyList {
    fn text(&self) -> String {
        let mut table = table(&["policy", "since", "by", "what"], &[0]);
        for (place, policy) in self.known.policies().rev().enumerate() {
            let mark = if place == 0 { "active: " } else { "" };
            table.add_row([
                policy.number.to_string(),
                policy
                    .change
                    .time
                    .strftime("%Y-%m-%d %H:%M:%SZ")
                    .to_string(),
                policy.change.by.clone(),
                format!("{mark}{}", policy.change.operation),
            ]);
        }
        format!("{table}\n")
    }

    fn json(&self) -> Value {
        let policies = self.known.policies().rev().map(|policy| {
            json!({
                "policy": policy.number,
                "time": policy.change.time,
                "by": policy.change.by,
                "what": policy.change.operation.to_string(),
                "configuration": policy.written().text,
                "file": policy.written().file,
            })
        });
        json!({ "policies": policies.collect::<Vec<_>>() })
    }
}
