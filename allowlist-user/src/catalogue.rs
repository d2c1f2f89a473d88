//! Providers: vendors whose addresses are known here, so that a configuration needs only a name.
//!
//! Invariants: names and region codes are unique; every entry says where its vendor documents it and
//! on which day somebody last compared the two; only sources of traffic *towards* this host are
//! listed, never the addresses that a vendor's customers connect to. Fetches nothing: an entry is
//! turned into a [`Source`] like one that was written out in the configuration.

use ipnet::IpNet;
use serde::Serialize;
use url::Url;

use crate::feed;
use crate::policy::{Format, Http, Origin, Source};

/// A catalogued source with everything filled in.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Provider {
    /// What `provider = "…"` says.
    pub name: &'static str,
    /// The vendor's own name for the thing.
    pub title: &'static str,
    /// Who calls whom, and what for.
    pub direction: &'static str,
    /// Where the prefixes come from.
    pub list: List,
    /// The vendor's page about the list.
    pub documented: &'static str,
    /// The day on which this entry was last compared with that page, `YYYY-MM-DD`.
    pub checked: &'static str,
    /// What the operator should know whenever this is used.
    pub warning: Option<&'static str>,
}

/// Where a provider's prefixes come from.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum List {
    /// The vendor serves a JSON array of addresses there.
    Url(&'static str),
    /// The vendor has only a page for people: what it said on the day it was checked.
    BuiltIn(&'static [Region]),
}

/// A part of a provider that can be chosen by itself: a region, a data centre.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Region {
    /// What `regions = ["…"]` says.
    pub code: &'static str,
    /// What the same vendor calls it elsewhere.
    pub aliases: &'static [&'static str],
    /// Whether it is left out unless it is named.
    pub only_if_named: bool,
    /// Its prefixes.
    pub prefixes: &'static [&'static str],
}

/// Every provider, in order of name.
pub fn all() -> &'static [Provider] {
    PROVIDERS
}

/// The provider of that name.
pub fn find(name: &str) -> Option<&'static Provider> {
    PROVIDERS.iter().find(|provider| provider.name == name)
}

impl Provider {
    /// Its regions; none if it cannot be divided.
    pub fn regions(&self) -> &'static [Region] {
        match self.list {
            List::Url(_) => &[],
            List::BuiltIn(regions) => regions,
        }
    }

    /// The region of that code or alias, in capitals or not.
    pub fn region(&self, code: &str) -> Option<&'static Region> {
        let is_named = |name: &str| name.eq_ignore_ascii_case(code);
        self.regions()
            .iter()
            .find(|region| is_named(region.code) || region.aliases.iter().any(|a| is_named(a)))
    }

    /// A source called `name` of these regions, or of all those that need not be named.
    pub fn source(&self, name: &str, regions: &[&Region]) -> Source {
        let origin = match self.list {
            List::Url(url) => {
                let url = Url::parse(url).expect("a test parses every provider's URL");
                Origin::Http(Http::new(vec![url], Format::json_array()))
            }
            List::BuiltIn(every) => {
                let usual = || {
                    every
                        .iter()
                        .filter(|region| !region.only_if_named)
                        .collect()
                };
                let regions = if regions.is_empty() {
                    usual()
                } else {
                    regions.to_vec()
                };
                Origin::BuiltIn {
                    prefixes: prefixes(&regions),
                    checked: self.checked.parse().expect("a test parses it"),
                }
            }
        };
        Source {
            provider: Some(self.name.to_owned()),
            warning: self.warning.map(str::to_owned),
            ..Source::new(name, origin)
        }
    }
}

fn prefixes(regions: &[&Region]) -> Vec<IpNet> {
    let tokens = regions.iter().flat_map(|region| region.prefixes);
    let mut prefixes: Vec<_> = tokens
        .map(|token| feed::parse_prefix(token).expect("a test parses every compiled-in prefix"))
        .collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}

/// `Region::new("EU").alias(&["EUC"])`, so that the tables below hold facts only.
impl Region {
    const fn new(code: &'static str, prefixes: &'static [&'static str]) -> Self {
        Self {
            code,
            aliases: &[],
            only_if_named: false,
            prefixes,
        }
    }

    const fn also(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn only_if_named(self) -> Self {
        Self {
            only_if_named: true,
            ..self
        }
    }
}

static PROVIDERS: &[Provider] = &[
    Provider {
        name: "freshchat",
        title: "Freshworks Freshchat and Freddy",
        direction: "Freshworks calls you: webhooks and bot actions",
        list: List::BuiltIn(FRESHCHAT),
        documented: "https://crmsupport.freshworks.com/support/solutions/articles/50000006158-allowlisting-ips-for-freshchat",
        checked: "2026-11-22",
        warning: None,
    },
    Provider {
        name: "pagerduty-webhooks-eu",
        title: "PagerDuty webhooks, EU service region",
        direction: "PagerDuty calls you: webhooks and workflow actions",
        list: List::Url(
            "https://developer.pagerduty.com/ip-safelists/webhooks-eu-service-region-json",
        ),
        documented: "https://support.pagerduty.com/docs/safelist-ips",
        checked: "2026-11-22",
        warning: None,
    },
    Provider {
        name: "pagerduty-webhooks-legacy",
        title: "PagerDuty webhooks, the list of before May 2022",
        direction: "PagerDuty called you: webhooks",
        list: List::Url("https://app.pagerduty.com/webhook_ips"),
        documented: "https://support.pagerduty.com/docs/safelist-ips",
        checked: "2026-11-22",
        warning: Some(
            "PagerDuty has not updated this list since 2022-05-05: webhooks now come from other \
             addresses; use pagerduty-webhooks-us or pagerduty-webhooks-eu",
        ),
    },
    Provider {
        name: "pagerduty-webhooks-us",
        title: "PagerDuty webhooks, US service region",
        direction: "PagerDuty calls you: webhooks and workflow actions",
        list: List::Url(
            "https://developer.pagerduty.com/ip-safelists/webhooks-us-service-region-json",
        ),
        documented: "https://support.pagerduty.com/docs/safelist-ips",
        checked: "2026-11-22",
        warning: None,
    },
    Provider {
        name: "workato",
        title: "Workato, by data centre",
        direction: "Workato calls you: recipes and API requests",
        list: List::BuiltIn(WORKATO),
        documented: "https://docs.workato.com/en/security/ip-allowlists",
        checked: "2026-11-22",
        warning: None,
    },
];

static FRESHCHAT: &[Region] = &[
    Region::new(
        "US",
        &[
            "18.208.240.77",
            "34.231.139.135",
            "34.231.245.167",
            "44.206.73.232",
            "44.206.73.233",
            "44.206.73.234",
            "44.206.73.235",
            "44.206.73.236",
            "44.206.73.237",
            "44.206.73.238",
            "44.206.73.239",
            "52.1.32.88",
            "52.1.37.96",
            "52.201.75.8",
        ],
    ),
    Region::new(
        "EU",
        &[
            "3.71.140.232",
            "3.74.148.8",
            "3.74.148.9",
            "3.74.148.10",
            "3.74.148.11",
            "18.184.146.22",
            "18.194.170.216",
            "18.197.127.133",
            "52.29.254.13",
            "52.57.253.205",
        ],
    )
    .also(&["EUC"]),
    Region::new(
        "IN",
        &[
            "13.126.85.255",
            "13.232.152.211",
            "13.234.127.182",
            "35.154.161.243",
            "43.204.166.208",
            "43.204.166.209",
            "43.204.166.210",
            "43.204.166.211",
            "52.66.184.184",
        ],
    )
    .also(&["IND"]),
    Region::new(
        "AU",
        &[
            "3.26.254.196",
            "3.26.254.197",
            "3.26.254.198",
            "3.26.254.199",
            "3.104.16.220",
            "3.105.197.171",
            "13.210.157.231",
            "13.238.97.24",
            "13.238.188.219",
            "54.206.10.178",
        ],
    ),
];

static WORKATO: &[Region] = &[
    Region::new("US", &["34.226.132.221", "52.5.142.59", "52.54.43.157"]),
    Region::new("EU", &["3.65.225.246", "3.66.45.94", "18.198.249.58"]),
    Region::new("JP", &["13.113.30.44", "18.176.45.101", "52.193.168.95"]),
    Region::new("SG", &["13.215.42.244", "18.141.131.114", "52.74.226.121"]),
    Region::new("AU", &["13.236.115.248", "13.238.90.15", "54.253.214.156"]),
    Region::new("IL", &["51.16.210.3", "51.17.208.207", "51.84.133.176"]),
    Region::new("CN", &["52.82.72.174", "52.83.128.24", "161.189.63.116"]),
    Region::new("KR", &["3.36.217.81", "43.200.205.181", "43.201.190.232"]),
    // Where anybody may try Workato out: nobody should admit it by naming the vendor alone.
    Region::new(
        "SANDBOX",
        &["3.234.79.251", "13.216.205.222", "174.129.15.46"],
    )
    .only_if_named(),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::civil::Date;

    use super::*;

    fn count(name: &str, regions: &[&str]) -> usize {
        let provider = find(name).expect("is in the catalogue");
        let region = |code: &&str| provider.region(code).expect("is a region");
        let regions: Vec<_> = regions.iter().map(region).collect();
        match provider.source("x", &regions).origin {
            Origin::BuiltIn { prefixes, .. } => prefixes.len(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_entry_is_sound() {
        assert!(
            all().is_sorted_by(|a, b| a.name < b.name),
            "in order, and distinct"
        );
        for provider in all() {
            let name = provider.name;
            assert!(
                provider
                    .documented
                    .parse::<Url>()
                    .is_ok_and(|url| url.scheme() == "https")
            );
            assert!(provider.checked.parse::<Date>().is_ok(), "{name}");
            let codes = provider.regions().iter();
            let codes: Vec<_> = codes
                .flat_map(|r| r.aliases.iter().chain([&r.code]))
                .collect();
            assert_eq!(
                codes.iter().collect::<BTreeSet<_>>().len(),
                codes.len(),
                "{name}"
            );
            match provider.source("x", &[]).origin {
                Origin::Http(http) => assert_eq!(http.urls[0].scheme(), "https", "{name}"),
                Origin::BuiltIn { prefixes, checked } => {
                    assert!(!prefixes.is_empty(), "{name}");
                    assert_eq!(checked.to_string(), provider.checked);
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn regions_hold_what_the_vendors_publish() {
        let cases: [(&str, &[&str], usize); 11] = [
            ("freshchat", &[], 43),
            ("freshchat", &["US"], 14),
            ("freshchat", &["EU"], 10),
            ("freshchat", &["euc"], 10),
            ("freshchat", &["IN"], 9),
            ("freshchat", &["IN", "IND"], 9),
            ("freshchat", &["AU"], 10),
            ("workato", &[], 8 * 3),
            ("workato", &["SANDBOX"], 3),
            ("workato", &["KR"], 3),
            (
                "workato",
                &["US", "EU", "JP", "SG", "AU", "IL", "CN", "SANDBOX"],
                8 * 3,
            ),
        ];
        for (name, regions, expected) in cases {
            assert_eq!(count(name, regions), expected, "{name} {regions:?}");
        }
    }
}
