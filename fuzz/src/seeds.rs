//! Inputs to begin with: without them a fuzzer spends its first hour on finding out what an IP header is.
//!
//! Made anew by each start, the same each time. `cargo xtask fuzz` names the folder.

use std::net::IpAddr;
use std::path::PathBuf;
use std::{env, fs};

use allowlist_tests::model::traffic::traffic;
use allowlist_tests::model::worlds::INTERFACES;
use allowlist_user::policy::Origin;
use ipnet::IpNet;

use crate::judge::{Item, Setting, WORLDS, encode};

/// The variable that names the folder which seeds are written to.
const FOLDER: &str = "ALLOWLIST_FUZZ_SEEDS";
/// Frames in an input: few, so that most changes to it matter.
const FRAMES: u64 = 16;
/// Longer frames are left out, as there is nothing to find in their payload.
const LONGEST: usize = 400;

/// Writes these seeds to the folder that was named, if one was.
///
/// # Panics
/// Where that cannot be done.
pub fn leave(seeds: &[Vec<u8>]) {
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

/// Traffic of the model's, between this host and the edges of each policy's prefixes.
pub fn judge() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for world in 0..WORLDS.len() {
        for default in 0..4 {
            for keep in [0, 0, 0, 0x15, 0x2a, 0x3f] {
                let setting = Setting([world as u8 | default << 4, keep]);
                seeds.push(talk(setting, world, seeds.len() as u64));
            }
        }
    }
    seeds
}

/// Some frames, which are others for each number.
fn talk(setting: Setting, world: usize, number: u64) -> Vec<u8> {
    let numbers: Vec<u64> = (number * FRAMES..(number + 1) * FRAMES).collect();
    let moments = traffic(&remotes(world), &numbers);
    let items: Vec<Item<'_>> = moments
        .iter()
        .filter(|moment| moment.frame.len() <= LONGEST)
        .map(|moment| Item {
            is_sent: moment.is_sent,
            slot: usize::from(moment.interface == INTERFACES[1]),
            number: 8,
            frame: &moment.frame,
        })
        .collect();
    encode(setting, &items)
}

/// The first and last address of each prefix, and some of nobody.
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

/// One with a mistake in each line; the example, as it is and with all that it shows switched on; and the
/// policies of `judge`.
pub fn config() -> Vec<Vec<u8>> {
    let example = include_str!("../../dist/allowlist.toml");
    let switched_on: Vec<&str> = example
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            // A provider knows its direction, and lets nobody say it again.
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

/// Whether a line of the example is a table or a key with a value, and no sentence.
fn is_toml(line: &str) -> bool {
    let is_key = line
        .split_once(" = ")
        .is_some_and(|(key, _)| !key.contains(' '));
    is_key || line.starts_with('[')
}

/// Lists of each kind, and what comes instead of them.
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

/// Pages with each text in each markup, behind an address.
pub fn pages() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for markup in 0..crate::pages::MARKUP.len() as u8 {
        for text in 0..crate::pages::TEXTS.len() as u8 {
            // An address alone, and a blank, and this one beside another.
            seeds.push(vec![0, 0, 6, 0, 1, 0, text, markup]);
            seeds.push(vec![0, 0, 6, 0, text, markup, 3, 0]);
        }
    }
    seeds
}

/// Each format, compression, framing and end, whole and cut.
pub fn transfer() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for kind in 0..4 {
        for framing in 0..5 {
            // Within a line, behind a line, within a member, and whole.
            for cut in [0, 1, 9, 29, 31, 101] {
                // Only HTTP/2 has several ends.
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

    use allowlist_tests::model::ENDS;
    use allowlist_user::config::Config;

    use super::*;

    /// Also what keeps all of this compiling and true where nobody fuzzes.
    #[test]
    fn seeds_reach_every_end() {
        let mut ends = BTreeSet::new();
        for seed in judge() {
            crate::judge::run_to(&seed, |verdict, reason| {
                ends.insert((verdict.name(), reason.name()));
            });
        }
        for (verdict, reason) in ENDS {
            let end = (verdict.name(), reason.name());
            assert!(ends.contains(&end), "no seed ends in {end:?}");
        }
    }

    #[test]
    fn all_configurations_but_the_wrong_one_are_right() {
        for (place, seed) in config().iter().enumerate() {
            let text = str::from_utf8(seed).expect("text");
            let parsed = Config::parse(text, "fuzz.toml".as_ref());
            assert_eq!(parsed.is_ok(), place != 0, "{text}\n{parsed:?}");
        }
    }

    #[test]
    fn seeds_of_texts_keep_the_promises() {
        for seed in config() {
            crate::config::run(&seed);
        }
        for seed in feed() {
            crate::feed::run(&seed);
        }
        for seed in pages() {
            crate::pages::run(&seed);
        }
    }

    #[test]
    fn seeds_of_transfers_keep_the_promises() {
        for seed in transfer() {
            crate::transfer::run(&seed);
        }
    }
}
