//! The entries of the catalogue that contain an address, as text and as JSON. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;

/// The result of a search for an address in the catalogue's lists.
#[derive(Clone, Debug, Serialize)]
pub struct Holders {
    /// The address that was searched for in the lists.
    pub address: IpAddr,
    /// The prefixes that contain the address; a list may have several.
    pub holders: Vec<Holder>,
    /// The catalogue entries whose lists were not searched.
    pub not_searched: Vec<Skipped>,
}

/// A prefix that contains the address, in the list of a catalogue entry.
#[derive(Clone, Debug, Serialize)]
pub struct Holder {
    /// The name of the catalogue entry.
    pub provider: String,
    /// The region of the prefix; `None` if the list is not divided by region.
    pub region: Option<String>,
    /// The prefix that contains the address.
    pub prefix: IpNet,
    /// The kind of list: `compiled-in`, `last-good` or `fetched`.
    pub from: &'static str,
    /// The name of the configured source for a last-good list; `None` for other lists.
    pub source: Option<String>,
    /// The time at which the list was fetched, or the day of a compiled-in list, for display.
    pub at: String,
}

/// A catalogue entry whose list was not searched.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// The name of the catalogue entry.
    pub provider: String,
    /// The reason why the list was not searched.
    pub reason: String,
}

impl Holders {
    /// Returns the result of a search that has found nothing yet.
    pub fn new(address: IpAddr) -> Self {
        Self {
            address,
            holders: Vec::new(),
            not_searched: Vec::new(),
        }
    }

    /// Adds the prefixes of `list` that contain the address. `from` is the kind of list, and `at` its time.
    pub fn hold(
        &mut self,
        provider: &str,
        source: Option<&str>,
        from: &'static str,
        at: &str,
        list: &[IpNet],
    ) {
        let address = self.address;
        let holding = list.iter().filter(|prefix| prefix.contains(&address));
        self.holders.extend(holding.map(|prefix| Holder {
            provider: provider.to_owned(),
            region: None,
            prefix: *prefix,
            from,
            source: source.map(str::to_owned),
            at: at.to_owned(),
        }));
    }

    /// Adds a catalogue entry that was not searched, for this reason.
    pub fn skip(&mut self, provider: &str, reason: &str) {
        self.not_searched.push(Skipped {
            provider: provider.to_owned(),
            reason: reason.to_owned(),
        });
    }

    /// Returns the result as text: a line for each prefix, and one for the entries that were not searched.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for holder in &self.holders {
            let region = holder.region.as_ref();
            let region = region.map_or_else(String::new, |region| format!(", region {region}"));
            let list = match (&holder.source, holder.from) {
                (Some(source), _) => format!("last-good list of source {source}, {}", holder.at),
                (None, from) => format!("{from}, {}", holder.at),
            };
            text += &format!("{}  {}  {list}{region}\n", holder.provider, holder.prefix);
        }
        if self.holders.is_empty() {
            text += &format!(
                "no searched list of the catalogue contains {}\n",
                self.address
            );
        }
        let reasons: std::collections::BTreeSet<_> =
            self.not_searched.iter().map(|one| &one.reason).collect();
        for reason in reasons {
            let names = self.not_searched.iter().filter(|one| one.reason == *reason);
            let names: Vec<_> = names.map(|one| &*one.provider).collect();
            text += &match names[..] {
                [name] => format!("not searched: the list of provider {name}: {reason}\n"),
                _ => format!(
                    "not searched: the lists of {} providers: {reason}\n",
                    names.len()
                ),
            };
        }
        text
    }

    /// Returns the result of the search as JSON.
    pub fn json(&self) -> Value {
        serde_json::to_value(self).expect("strings and numbers are JSON")
    }
}
