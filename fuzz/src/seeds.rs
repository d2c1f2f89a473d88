//! Initial inputs: without them, a fuzzer spends its first hour on constructing an IP header.
//!
//! Deterministic, and generated at each start. `cargo xtask fuzz` sets the folder.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::{env, fs};

use allowlist_policy::Origin;
use allowlist_tests::model::policy_strategies::INTERFACES;
use allowlist_tests::model::traffic::traffic;
use hickory_proto::rr::{RData, rdata};
use ipnet::IpNet;

use crate::dns::{Entry, Reply, labels, name_of};
use crate::judge::{Item, Setting, WORLDS, encode};

/// The environment variable for the folder of the seeds.
const FOLDER: &str = "ALLOWLIST_FUZZ_SEEDS";
/// The number of frames in an input: few, so that most mutations affect a decision.
const FRAMES: u64 = 16;
/// The maximum frame size in bytes: payload beyond it has no effect.
const MAX_FRAME: usize = 400;

/// Writes seeds to the folder in `ALLOWLIST_FUZZ_SEEDS`, if the variable is set.
///
/// # Panics
/// If a file cannot be written.
pub fn write(seeds: &[Vec<u8>]) {
    let Some(folder) = env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    for (number, seed) in seeds.iter().enumerate() {
        let path = folder.join(format!("{number:03}"));
        if let Err(error) = fs::write(&path, seed) {
            panic!("cannot write {}: {error}", path.display());
        }
    }
}

/// Returns inputs for `judge`: generated traffic between this host and the edges of each policy's prefixes.
pub fn judge() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for world in 0..WORLDS.len() {
        for default in 0..4 {
            for keep in [0, 0, 0, 0x15, 0x2a, 0x3f] {
                let setting = Setting([world as u8 | default << 4, keep]);
                seeds.push(conversation(setting, world, seeds.len() as u64));
            }
        }
    }
    seeds
}

/// Returns an input of generated frames, which differ for each `number`.
fn conversation(setting: Setting, world: usize, number: u64) -> Vec<u8> {
    let numbers: Vec<u64> = (number * FRAMES..(number + 1) * FRAMES).collect();
    let moments = traffic(&remotes(world), &numbers);
    let items: Vec<Item<'_>> = moments
        .iter()
        .filter(|moment| moment.frame.len() <= MAX_FRAME)
        .map(|moment| Item {
            is_sent: moment.is_sent,
            slot: usize::from(moment.interface == INTERFACES[1]),
            number: 8,
            frame: &moment.frame,
        })
        .collect();
    encode(setting, &items)
}

/// Returns the first and last address of each prefix in `WORLDS[world]`, and addresses outside of all its prefixes.
fn remotes(world: usize) -> Vec<IpAddr> {
    let strangers = ["192.0.2.1", "2001:db8:ffff::9"].map(|text| text.parse().expect("an address"));
    let mut remotes = strangers.to_vec();
    for source in &WORLDS[world].policy.sources {
        let Origin::Prefixes(prefixes) = &source.origin else {
            continue;
        };
        let edges = |prefix: &IpNet| [prefix.network(), prefix.broadcast()];
        remotes.extend(prefixes.iter().flat_map(edges));
    }
    remotes
}

/// Returns a configuration with an error in each line, the example configuration, the example with all commented-out
/// keys enabled, and the policies of `judge`.
pub fn config() -> Vec<Vec<u8>> {
    let example = include_str!("../../dist/allowlist.toml");
    let switched_on: Vec<&str> = example
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            // The configuration may not set the direction of a provider.
            Some(shown) if is_toml(shown) && !shown.starts_with("direction") => shown,
            _ => line,
        })
        .collect();
    let wrong = "
        interfaces = [\"\"]
        mode = 7
        nonsense = { a = 1 }
        [services.web]
        ports = [\"tcp/0\", \"udp/9-3\"]
        allow = [\"nobody\"]
        [sources.list]
        prefixes = [\"10.0.0.1/8\", \"::ffff:1.2.3.4\"]
        url = \"http://example.com\"
        every = \"1 moment\"
    ";
    [wrong, example, &switched_on.join("\n")]
        .into_iter()
        .chain(crate::judge::POLICIES)
        .map(|text| text.as_bytes().to_vec())
        .collect()
}

/// Reports whether a comment of the example is a table or a key with a value, and not prose.
fn is_toml(line: &str) -> bool {
    let is_key = line
        .split_once(" = ")
        .is_some_and(|(key, _)| !key.contains(' '));
    is_key || line.starts_with('[')
}

/// Returns responses with each kind of record, with and without compression, and responses that are not believed.
pub fn dns() -> Vec<Vec<u8>> {
    let [www, other] = ["www.example.com", "b.example.net"];
    let entry = |owner: &str, ttl: u32, data: RData| Entry {
        owner: labels(owner),
        class: 1,
        ttl,
        data,
    };
    let a = RData::A(Ipv4Addr::new(192, 0, 2, 1).into());
    let aaaa = RData::AAAA(Ipv6Addr::LOCALHOST.into());
    let cname = RData::CNAME(rdata::CNAME(name_of(&labels(other))));
    let mx = RData::MX(rdata::MX::new(1, name_of(&labels(other))));
    let answers = [
        vec![],
        vec![entry(www, 60, a.clone()), entry("WWW.a.Example", 5, aaaa)],
        vec![entry(www, 50, cname), entry(other, u32::MAX, a.clone())],
        vec![entry(www, 9, mx), entry("", 60, a.clone())],
        vec![entry(other, 1, a.clone()); 40],
    ];
    let mut seeds = Vec::new();
    for (name, kind) in [(www, 1), ("WWW.Example.COM", 28), (other, 1), (www, 16)] {
        for answers in &answers {
            for is_compressed in [false, true] {
                let mut reply = Reply {
                    is_compressed,
                    ..Reply::new(name, kind)
                };
                reply.sections = [answers.clone(), Vec::new(), answers.clone()];
                seeds.push(reply.encode());
            }
        }
    }
    let failed = Reply {
        code: 3,
        ..Reply::new(www, 1)
    };
    let truncated = Reply {
        is_truncated: true,
        ..Reply::new(www, 1)
    };
    seeds.extend([failed.encode(), truncated.encode()]);
    seeds
}

/// Returns valid and invalid lists of each format.
pub fn feed() -> Vec<Vec<u8>> {
    [
        "[\"192.0.2.1\", \"198.51.100.0/24\", \"2001:db8::/32\"]",
        "192.0.2.1\n198.51.100.0/24 # office\r\n\n2001:db8::/32\n",
        "[\"192.0.2.1\", \"192.0.2.0/255.255.255.0\"]",
        "[\"192.0.2.1\", 7]",
        "[\"192.0.2.1\"",
        "[\"192.0.2.1192.0.2.2\", \"1.2.3.4/99\", \"10.0.0.1/8\"]",
        "{\"addresses\": [\"192.0.2.1\"]}",
        "::ffff:192.0.2.1/120\n::/0\n",
        "<!DOCTYPE html><html><body>192.0.2.1</body></html>",
        "\u{feff}[\"192.0.2.1\"]",
        "192.0.2.1-9\n198.51.100.0 - 198.51.100.7 ; two\n2001:db8::1-2001:db8::9\n",
        "{\"cidr\":\"192.0.2.0/24\"}\n{\"type\":\"metadata\"}\n",
        "# ip, country\nip,country\n\"192.0.2.0/24\",NU\n2001:db8::/32,US\n",
        include_str!("../../tests/fixtures/pages/customer-io.html"),
        include_str!("../../tests/fixtures/pages/freshchat.md"),
        include_str!("../../tests/fixtures/pages/pagerduty-export.md"),
        include_str!("../../tests/fixtures/pages/webex.html"),
        include_str!("../../tests/fixtures/pages/workato-2017.md"),
        include_str!("../../tests/fixtures/pages/workato-centers.html"),
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// Returns pages with each text in each markup, after an address.
pub fn pages() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for markup in 0..crate::pages::MARKUP.len() as u8 {
        for text in 0..crate::pages::TEXTS.len() as u8 {
            // An address, a blank, and the text next to another address.
            seeds.push(vec![0, 0, 6, 0, 1, 0, text, markup]);
            seeds.push(vec![0, 0, 6, 0, text, markup, 3, 0]);
        }
    }
    seeds
}

/// Returns transfers with each format, compression, framing and end, complete and truncated.
pub fn transfer() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for kind in 0..4 {
        for framing in 0..5 {
            // Truncated within a line, after a line and within a gzip member, and complete.
            for cut in [0, 1, 9, 29, 31, 101] {
                // Only HTTP/2 has different ways to end a response.
                for how in if framing < 3 { 0..1 } else { 0..5 } {
                    seeds.push(vec![kind, framing, 17, cut, how, 0, 1, 2, 22, 0, 221, 7, 7]);
                }
            }
        }
    }
    seeds
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use allowlist_tests::model::DECISIONS;
    use allowlist_user::config::Config;

    use super::*;

    /// Also keeps the fuzz targets correct in CI, which does not fuzz.
    #[test]
    fn seeds_reach_every_verdict_and_reason() {
        let mut ends = BTreeSet::new();
        for seed in judge() {
            crate::judge::run_to(&seed, |verdict, reason| {
                ends.insert((verdict.name(), reason.name()));
            });
        }
        for (verdict, reason) in DECISIONS {
            let end = (verdict.name(), reason.name());
            assert!(ends.contains(&end), "no seed has the decision {end:?}");
        }
    }

    #[test]
    fn seeds_of_messages_have_addresses() {
        let found: BTreeSet<usize> = dns().iter().map(|seed| crate::dns::run(seed)).collect();
        // Of the message's own question, and of a noted one that is equal.
        assert_eq!(found, [0, 1, 2, 4, 40, 80].into());
    }

    #[test]
    fn only_the_first_configuration_is_invalid() {
        for (index, seed) in config().iter().enumerate() {
            let text = str::from_utf8(seed).expect("text");
            let parsed = Config::parse(text, "fuzz.toml".as_ref());
            assert_eq!(parsed.is_ok(), index != 0, "{text}\n{parsed:?}");
        }
    }

    #[test]
    fn text_seeds_pass() {
        for seed in config() {
            crate::config::run(&seed);
        }
        for seed in dns() {
            crate::dns::run(&seed);
        }
        for seed in feed() {
            crate::feed::run(&seed);
        }
        for seed in pages() {
            crate::pages::run(&seed);
        }
    }

    #[test]
    fn transfer_seeds_pass() {
        for seed in transfer() {
            crate::transfer::run(&seed);
        }
    }
}
