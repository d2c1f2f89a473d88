//! The firewalls that a host could have instead, each with the rules that somebody would write for it: in comes
//! what the set has, and the rest is dropped and counted.

mod xdp_filter;

use std::env;

use allowlist_tests::lab::{Ended, Testbed, receive_in_batches};
use anyhow::{Context as _, Result, ensure};

use super::subject::{Subject, lines};
use crate::traffic::List;

/// One of them, and what it needs.
pub(super) struct Firewall {
    pub(super) name: &'static str,
    /// Programs that must be installed, each with Debian's package that brings it.
    needs: &'static [(&'static str, &'static str)],
    /// How many prefixes it takes.
    pub(super) most: usize,
    /// Puts a list in force in namespaces of its own.
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
    /// What to install for it, if something is missing.
    pub(super) fn missing(&self) -> Result<Option<String>> {
        let path = env::var_os("PATH").context("there is no PATH")?;
        let is_there =
            |program| env::split_paths(&path).any(|folder| folder.join(program).exists());
        let missing = self.needs.iter().find(|(program, _)| !is_there(program));
        Ok(missing.map(|(program, package)| {
            format!(
                "{} is left out: {program} is missing (`apt install {package}`)",
                self.name
            )
        }))
    }
}

/// A set of intervals, and one rule in one chain.
fn nftables(name: &'static str, family: &'static str, hook: &str, list: &List) -> Result<Subject> {
    let site = Testbed::new()?;
    receive_in_batches(&site.host, "eth0")?;
    let elements = lines(list).trim_end().replace('\n', ", ");
    let rules = format!(
        "table {family} bench {{\n\
           counter dropped {{ }}\n\
           set allowed {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {elements} }} }}\n\
           chain filter {{ {hook} ip saddr @allowed accept; counter name dropped drop; }}\n\
         }}\n"
    );
    let path = site.scratch.write("rules.nft", rules)?;
    run(&site, "nft", &["-f", &path.display().to_string()])?;
    let count = move |site: &Testbed| {
        let text = run(
            site,
            "nft",
            &["list", "counter", family, "bench", "dropped"],
        )?;
        number_after(&text, "packets ")
    };
    Ok(Subject::new(name, site, Box::new(count)))
}

/// A set of networks, and two rules of iptables.
fn ipset(name: &'static str, list: &List) -> Result<Subject> {
    let site = Testbed::new()?;
    receive_in_batches(&site.host, "eth0")?;
    let room = list.prefixes.len() * 2;
    let mut commands = format!("create allowed hash:net family inet maxelem {room}\n");
    for line in lines(list).lines() {
        commands += &format!("add allowed {line}\n");
    }
    let path = site.scratch.write("sets", commands)?;
    run(
        &site,
        "ipset",
        &["restore", "-file", &path.display().to_string()],
    )?;
    for rule in [
        "-A INPUT -m set --match-set allowed src -j ACCEPT",
        "-A INPUT -j DROP",
    ] {
        run(&site, "iptables", &rule.split(' ').collect::<Vec<_>>())?;
    }
    let count = |site: &Testbed| {
        let text = run(site, "iptables", &["-nvxL", "INPUT"])?;
        let rule = text.lines().find(|line| line.contains("DROP"));
        number_after(rule.with_context(|| text.clone())?, "")
    };
    Ok(Subject::new(name, site, Box::new(count)))
}

/// What a program prints on the host.
pub(super) fn run(site: &Testbed, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = site.host.command(program)?;
    command.args(arguments);
    let ended = Ended::of(command)?;
    ensure!(
        ended.code == Some(0),
        "{program} {}: {}",
        arguments.join(" "),
        ended.stderr
    );
    Ok(ended.stdout)
}

/// The first number behind these words.
pub(super) fn number_after(text: &str, words: &str) -> Result<u64> {
    let (_, rest) = text
        .split_once(words)
        .with_context(|| format!("no {words:?} in {text}"))?;
    let number = rest.split_whitespace().next().unwrap_or_default();
    number
        .parse()
        .with_context(|| format!("no number in {text}"))
}
