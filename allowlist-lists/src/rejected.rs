//! Lists that the gate rejected and that wait for the operator, each with an id that names exactly this list.
//!
//! Invariants: two lists have one id only if their source and their prefixes are the same, even if a vendor
//! chooses the prefixes; the id does not depend on the process or the time. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use allowlist_policy::difference::Difference;
use ipnet::IpNet;
use jiff::Timestamp;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

/// The length of an id in bytes: half of a SHA-256, which is long enough that no vendor finds two lists with one id.
const ID_BYTES: usize = 16;

/// The rejected lists of all sources that wait for the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedLists {
    /// The rejected lists, by the name of their source.
    pub sources: BTreeMap<String, RejectedList>,
}

/// A list that the gate rejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedList {
    /// The id of the rejected list: a checksum of the source's name and the prefixes, which `allowlist accept` takes.
    pub id: String,
    /// The time at which the list was fetched.
    pub fetched: Timestamp,
    /// The reason why the gate rejected the list.
    pub reason: String,
    /// Whether the operator may accept this list by command; if false, only a change of the configuration can allow it.
    pub acceptable: bool,
    /// The number of prefixes in the list.
    pub prefixes: usize,
    /// The difference from the active list to this one.
    #[serde(flatten)]
    pub difference: Difference,
}

/// Returns the command line that accepts the list with the id `id` of the source `source`.
pub fn command(source: &str, id: &str) -> String {
    format!("allowlist accept {source} {id}")
}

/// Returns the id of the list `prefixes` of the source named `source`. `prefixes` must be sorted and distinct.
pub fn list_id(source: &str, prefixes: &[IpNet]) -> String {
    let mut context = Context::new(&SHA256);
    context.update(source.as_bytes());
    context.update(b"\n");
    for prefix in prefixes {
        context.update(prefix.to_string().as_bytes());
        context.update(b"\n");
    }
    let digest = context.finish();
    let mut id = String::with_capacity(2 * ID_BYTES);
    for byte in digest.as_ref().iter().take(ID_BYTES) {
        write!(id, "{byte:02x}").expect("a string takes any text");
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_one_list_of_one_source() {
        let list = |texts: &[&str]| -> Vec<IpNet> {
            let prefix = |text: &&str| text.parse().expect("a prefix");
            texts.iter().map(prefix).collect()
        };
        let one = list_id("a", &list(&["192.0.2.0/24", "192.0.2.0/25"]));
        assert_eq!(one.len(), 2 * ID_BYTES);
        assert_eq!(one, list_id("a", &list(&["192.0.2.0/24", "192.0.2.0/25"])));
        for (source, other) in [
            ("b", &["192.0.2.0/24", "192.0.2.0/25"][..]),
            ("a", &["192.0.2.0/24"]),
            ("a", &["192.0.2.0/24", "192.0.2.0/26"]),
            ("a", &[]),
        ] {
            assert_ne!(one, list_id(source, &list(other)), "{source} {other:?}");
        }
    }
}
