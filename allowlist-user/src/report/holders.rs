//! The entries of the catalogue that contain an address, as text and as JSON. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;

/// The result of a search.
#[derive(Clone, Debug, Serialize)]
pub struct Holders {
    /// The address that was searched for.
    pub address: IpAddr,
    /// The entries that contain it, each with its prefix.
    pub holders: Vec<Holder>,
    /// The entries that were not searched.
    pub not_searched: Vec<Skipped>,
}

/// An entry that contains the address.
#[derive(Clone, Debug, Serialize)]
pub struct Holder {
    /// The provider's name.
    pub provider: String,
    /// The region of the prefix, if the list is divided.
    pub region: Option<String>,
    /// The prefix that contains the address.
    pub prefix: IpNet,
    /// The kind of list: `compiled-in`, `last-good` or `fetched`.
    pub from: &'static str,
    /// The configured source of a last-good list.
    pub source: Option<String>,
    /// The time or the day of the list.
    pub at: String,
}

/// An entry that was not searched.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// The provider's name.
    pub provider: String,
    /// The reason.
    pub reason: String,
}

impl Holders {
    /// Returns an empty result.
    pub fn new(address: IpAddr) -> Self {
        Self {
            address,
            holders: Vec::new(),
            not_searched: Vec::new(),
        }
    }

    /// Adds the prefixes of a list that contain the address.
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

    /// Adds an entry that was not searched.
    pub fn skip(&mut self, provider: &str, reason: &str) {
        self.not_searched.push(Skipped {
            provider: provider.to_owned(),
            reason: reason.to_owned(),
        });
    }

    /// Returns a line for each prefix, and one for the entries that were not searched.
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
            text += &format!("no searched entry contains {}\n", self.address);
        }
        let reasons: std::collections::BTreeSet<_> =
            self.not_searched.iter().map(|one| &one.reason).collect();
        for reason in reasons {
            let names = self.not_searched.iter().filter(|one| one.reason == *reason);
            let names: Vec<_> = names.map(|one| &*one.provider).collect();
            text += &match names[..] {
                [name] => format!("not searched: {name}: {reason}\n"),
                _ => format!("not searched: {} entries: {reason}\n", names.len()),
            };
        }
        text
    }

    /// Returns the whole result.
    pub fn json(&self) -> Value {
        serde_json::to_value(self).expect("strings and numbers are JSON")
    }
}
