//! Alternative firewalls, each with its usual rules for the task: allow the sources in a set, drop and count the rest.

mod xdp_filter;

use std::env;

use allowlist_tests::lab::{Ended, Testbed, receive_in_batches};
use anyhow::{Context as _, Result, ensure};

use super::subject::{Subject, lines};
use crate::traffic::List;

/// A firewall to compare with, and the programs and limits that it has.
pub(super) struct Firewall {
    pub(super) name: &'static str,
    /// The programs that the firewall requires, each with its Debian package.
    needs: &'static [(&'static str, &'static str)],
    /// The maximum number of prefixes that the firewall supports; it is skipped for a longer list.
    pub(super) most: usize,
    /// Creates a testbed and loads the firewall's rules for a list.
    pub(super) make: fn(&'static str, &List) -> Result<Subject>,
}

const NFT: (&str, &str) = ("nft", "nftables");

pub(super) const ALL: [Firewall; 4] = [
    Firewall {
        name: "nftables ingress",
        needs: &[NFT],
        most: usize::MAX,
        make: |name, list| {
            let hook = "type filter hook ingress device \"eth0\" priority 0; policy accept;";
            nftables(name, "netdev", hook, list)
        },
    },
    Firewall {
        name: "nftables input",
        needs: &[NFT],
        most: usize::MAX,
        make: |name, list| {
            let hook = "type filter hook input priority 0; policy accept;";
            nftables(name, "inet", hook, list)
        },
    },
    Firewall {
        name: "ipset",
        needs: &[("ipset", "ipset"), ("iptables", "iptables")],
        most: usize::MAX,
        make: ipset,
    },
    Firewall {
        name: xdp_filter::NAME,
        needs: &[("xdp-filter", "xdp-tools")],
        most: xdp_filter::MOST,
        make: xdp_filter::make,
    },
];

impl Firewall {
    /// Returns a note about the first required program that is not installed, with its package; `None` if all are.
    pub(super) fn missing(&self) -> Result<Option<String>> {
        let path = env::var_os("PATH").context("the environment variable PATH is not set")?;
        let is_there =
            |program| env::split_paths(&path).any(|folder| folder.join(program).exists());
        let missing = self.needs.iter().find(|(program, _)| !is_there(program));
        Ok(missing.map(|(program, package)| {
            format!(
                "the firewall {} is skipped, because the program {program} is not installed; run `apt install {package}`",
                self.name
            )
        }))
    }
}

/// Loads nftables with an interval set of the list, and one chain with two rules.
fn nftables(name: &'static str, family: &'static str, hook: &str, list: &List) -> Result<Subject> {
    let testbed = Testbed::new()?;
    receive_in_batches(&testbed.host, "eth0")?;
    let elements = lines(list).trim_end().replace('\n', ", ");
    let rules = format!(
        "table {family} bench {{\n\
           counter dropped {{ }}\n\
           set allowed {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {elements} }} }}\n\
           chain filter {{ {hook} ip saddr @allowed accept; counter name dropped drop; }}\n\
         }}\n"
    );
    let path = testbed.scratch.write("rules.nft", rules)?;
    run(&testbed, "nft", &["-f", &path.display().to_string()])?;
    let count = move |testbed: &Testbed| {
        let text = run(
            testbed,
            "nft",
            &["list", "counter", family, "bench", "dropped"],
        )?;
        number_after(&text, "packets ")
    };
    Ok(Subject::new(name, testbed, Box::new(count)))
}

/// Loads an ipset of the type `hash:net` with the list, and two iptables rules.
fn ipset(name: &'static str, list: &List) -> Result<Subject> {
    let testbed = Testbed::new()?;
    receive_in_batches(&testbed.host, "eth0")?;
    let capacity = list.prefixes.len() * 2;
    let mut commands = format!("create allowed hash:net family inet maxelem {capacity}\n");
    for line in lines(list).lines() {
        commands += &format!("add allowed {line}\n");
    }
    let path = testbed.scratch.write("sets", commands)?;
    run(
        &testbed,
        "ipset",
        &["restore", "-file", &path.display().to_string()],
    )?;
    for rule in [
        "-A INPUT -m set --match-set allowed src -j ACCEPT",
        "-A INPUT -j DROP",
    ] {
        run(&testbed, "iptables", &rule.split(' ').collect::<Vec<_>>())?;
    }
    let count = |testbed: &Testbed| {
        let text = run(testbed, "iptables", &["-nvxL", "INPUT"])?;
        let rule = text.lines().find(|line| line.contains("DROP"));
        number_after(
            rule.with_context(|| format!("iptables lists no DROP rule: {text}"))?,
            "",
        )
    };
    Ok(Subject::new(name, testbed, Box::new(count)))
}

/// Runs a program on the host, and returns its output.
pub(super) fn run(testbed: &Testbed, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = testbed.host.command(program)?;
    command.args(arguments);
    let ended = Ended::of(command)?;
    ensure!(
        ended.code == Some(0),
        "`{program} {}` failed: {}",
        arguments.join(" "),
        ended.stderr
    );
    Ok(ended.stdout)
}

/// Returns the number that directly follows the first `words` in `text`, a firewall's output.
pub(super) fn number_after(text: &str, words: &str) -> Result<u64> {
    let (_, rest) = text
        .split_once(words)
        .with_context(|| format!("the firewall's output has no {words:?}: {text}"))?;
    let number = rest.split_whitespace().next().unwrap_or_default();
    number
        .parse()
        .with_context(|| format!("no number follows {words:?} in the firewall's output: {text}"))
}
