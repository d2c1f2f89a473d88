//! The lists that the gate rejected and that wait for the operator.

use allowlist_lists::rejected::{RejectedList, RejectedLists, command};
use allowlist_policy::hints::counted;
use serde_json::Value;

use super::{Report, widest_first};

/// Returns a rejected list of `source` as text: its changes, and the command that accepts it.
pub fn rejected_text(source: &str, list: &RejectedList) -> String {
    let difference = &list.difference;
    let mut text = format!(
        "{source}: rejected list {} of {}, {} added, {} removed: {}\n",
        list.id,
        counted(list.prefixes, "prefix"),
        difference.added.len(),
        difference.removed.len(),
        list.reason,
    );
    text += &widest_first(difference);
    if list.acceptable {
        text += &format!(
            "  to accept exactly this list: {}\n",
            command(source, &list.id)
        );
    }
    text
}

impl Report for RejectedLists {
    fn text(&self) -> String {
        if self.sources.is_empty() {
            return "no rejected list\n".to_owned();
        }
        let lists = self.sources.iter();
        lists
            .map(|(source, list)| rejected_text(source, list))
            .collect()
    }

    fn json(&self) -> Value {
        serde_json::to_value(self).expect("strings and numbers are JSON")
    }
}
