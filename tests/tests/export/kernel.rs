//! nftables, ipset and both variants of iptables: their contents after each load, and the addresses that the proposed
//! rules admit.

use std::collections::BTreeSet;

use allowlist_tests::lab::Ended;
use allowlist_user::export::Format;
use anyhow::{Context, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;

use crate::{
    AFTER, BEFORE, EVERYBODY, Machine, NAME, exported, merged, prefixes, require_programs, visitors,
};

const PORT: u16 = 443;
/// The longest name for the formats with a limit.
const LONGEST: &str = "a-name-of-twenty-eight-chars";

/// Reads the contents of a tool after a load.
type Contents = fn(&Machine) -> anyhow::Result<BTreeSet<IpNet>>;

/// Loads several lists, each twice. `rules` are added after the first load.
fn check_loads(
    machine: &Machine,
    format: Format,
    loads: &[&str],
    rules: impl FnOnce(&Machine) -> anyhow::Result<()>,
    contents: Contents,
) -> anyhow::Result<()> {
    let load = |texts: &[&str]| {
        machine.write(format, texts)?;
        for command in loads.iter().chain(loads) {
            machine.run(command)?;
        }
        ensure!(
            !machine.folder().join("mine").exists(),
            "a comment was executed"
        );
        anyhow::Ok(())
    };
    let _listener = visitors::listen(&machine.namespace, PORT)?;
    load(BEFORE)?;
    assert_eq!(contents(machine)?, merged(BEFORE), "{format}");
    assert_eq!(
        visitors::admitted(&machine.namespace, PORT)?,
        visitors::everybody(),
        "no rule uses the set yet"
    );
    rules(machine)?;
    for texts in [BEFORE, AFTER, EVERYBODY, &BEFORE[4..], BEFORE] {
        load(texts)?;
        assert_eq!(contents(machine)?, merged(texts), "{format}");
        assert_eq!(
            visitors::admitted(&machine.namespace, PORT)?,
            visitors::listed(texts),
            "{format} of {texts:?}"
        );
    }
    Ok(())
}

#[test]
fn nft_loads_the_export() -> anyhow::Result<()> {
    require_programs!("nft" from "nftables");
    let machine = Machine::new()?;
    machine.type_in(
        "nft 'add table inet other; add set inet other v4 { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }'",
    )?;
    let other = machine.run("nft list table inet other")?;
    machine.write(Format::Nft, BEFORE)?;
    machine.run("nft --check --file FILE")?;
    let rules = |machine: &Machine| {
        for line in machine.examples("nft")? {
            machine.type_in(&line)?;
        }
        Ok(())
    };
    check_loads(
        &machine,
        Format::Nft,
        &["nft --file FILE"],
        rules,
        nft_contents,
    )?;
    assert_eq!(machine.run("nft list table inet other")?, other);
    machine.type_in(&format!(
        "nft get element inet {NAME} v4 '{{ 192.0.2.200 }}'"
    ))?;
    let stranger = format!("nft get element inet {NAME} v4 '{{ 192.0.3.0 }}'");
    assert!(machine.type_in(&stranger).is_err());
    Ok(())
}

/// nft refuses its keywords as names of tables, and changes nothing.
#[test]
fn nft_refuses_keywords_as_names() -> anyhow::Result<()> {
    require_programs!("nft" from "nftables");
    let machine = Machine::new()?;
    machine
        .scratch
        .write("FILE", exported(Format::Nft, "tcp", BEFORE)?)?;
    let ended = Ended::of(machine.command("nft --file FILE")?)?;
    assert_ne!(ended.code, Some(0));
    assert!(
        ended.stderr.contains("syntax error, unexpected tcp"),
        "{ended:?}"
    );
    assert_eq!(machine.run("nft list ruleset")?, "");
    Ok(())
}

fn nft_contents(machine: &Machine) -> anyhow::Result<BTreeSet<IpNet>> {
    let mut contents = BTreeSet::new();
    for set in ["v4", "v6"] {
        let json = machine.run(&format!("nft --json list set inet {NAME} {set}"))?;
        let document: Value = serde_json::from_str(&json)?;
        let objects = document["nftables"].as_array().context("an array")?;
        let found = objects
            .iter()
            .find_map(|object| object.get("set"))
            .context("a set")?;
        for element in found["elem"].as_array().into_iter().flatten() {
            contents.insert(nft_prefix(element).with_context(|| element.to_string())?);
        }
    }
    Ok(contents)
}

fn nft_prefix(element: &Value) -> Option<IpNet> {
    if let Some(address) = element.as_str() {
        return Some(address.parse::<std::net::IpAddr>().ok()?.into());
    }
    let prefix = element.get("prefix")?;
    let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
    IpNet::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()
}

#[test]
fn ipset_loads_the_export() -> anyhow::Result<()> {
    require_programs!("ipset" from "ipset", "iptables" from "iptables");
    let machine = Machine::new()?;
    machine.run("ipset create other hash:net")?;
    machine.run("ipset add other 10.0.0.0/8")?;
    // The state after an aborted load.
    machine.run(&format!(
        "ipset create {NAME}-t4 hash:net family inet hashsize 4096 maxelem 16777216"
    ))?;
    machine.run(&format!("ipset add {NAME}-t4 10.0.0.0/8"))?;
    let load = "ipset restore -file FILE";
    machine.write(Format::Ipset, BEFORE)?;
    machine.run(load)?;
    assert_eq!(ipset_contents(&machine)?, merged(BEFORE));
    let rules = |machine: &Machine| {
        let examples = machine.examples("iptables")?;
        ensure!(examples.len() == 2, "{examples:?}");
        for line in examples {
            machine.type_in(&line)?;
            machine.type_in(&line.replace("iptables", "ip6tables").replace("-v4", "-v6"))?;
        }
        Ok(())
    };
    check_loads(&machine, Format::Ipset, &[load], rules, ipset_contents)?;
    machine.run(&format!("ipset test {NAME}-v4 192.0.2.200"))?;
    assert!(
        machine
            .run(&format!("ipset test {NAME}-v4 192.0.3.0"))
            .is_err()
    );
    let names = machine.run("ipset list -name")?;
    let names: BTreeSet<_> = names.lines().collect();
    assert_eq!(names, BTreeSet::from(["other", "ven-dor-v4", "ven-dor-v6"]));
    machine.run("ipset test other 10.0.0.1")?;

    let longest = exported(Format::Ipset, LONGEST, BEFORE)?;
    machine.scratch.write("FILE", longest)?;
    machine.run(load)?;

    // A set with another limit is refused and stays.
    machine.run("ipset create odd-v4 hash:net maxelem 9")?;
    machine.run("ipset add odd-v4 10.0.0.0/8")?;
    machine
        .scratch
        .write("FILE", exported(Format::Ipset, "odd", BEFORE)?)?;
    assert!(machine.run(load).is_err());
    machine.run("ipset test odd-v4 10.0.0.1")?;
    Ok(())
}

/// Returns the merged contents of both sets.
fn ipset_contents(machine: &Machine) -> anyhow::Result<BTreeSet<IpNet>> {
    let mut contents = Vec::new();
    for (set, length) in [("v4", 32), ("v6", 128)] {
        let text = machine.run(&format!("ipset save {NAME}-{set}"))?;
        for line in text.lines().filter(|line| line.starts_with("add ")) {
            let token = line.rsplit(' ').next().context("a word")?;
            let prefix = if token.contains('/') {
                token.parse()?
            } else {
                format!("{token}/{length}").parse()?
            };
            contents.push(prefix);
        }
    }
    Ok(IpNet::aggregate(&contents).into_iter().collect())
}

#[test]
fn iptables_nft_loads_the_export() -> anyhow::Result<()> {
    require_programs!("iptables-nft" from "iptables");
    check_iptables("nft", |machine| iptables_contents(machine, "nft"))
}

#[test]
fn iptables_legacy_loads_the_export() -> anyhow::Result<()> {
    require_programs!("iptables-legacy" from "iptables");
    check_iptables("legacy", |machine| iptables_contents(machine, "legacy"))
}

fn check_iptables(kind: &str, contents: Contents) -> anyhow::Result<()> {
    let machine = Machine::new()?;
    let tools = ["iptables", "ip6tables"];
    for tool in tools {
        machine.run(&format!("{tool}-{kind} -N OTHER"))?;
        machine.run(&format!("{tool}-{kind} -A OTHER -p tcp --dport 1 -j DROP"))?;
        machine.run(&format!("{tool}-{kind} -A INPUT -j OTHER"))?;
    }
    let loads = tools.map(|tool| format!("{tool}-{kind}-restore --noflush FILE"));
    machine.write(Format::Iptables, BEFORE)?;
    for load in &loads {
        machine.run(&load.replace("--noflush", "--noflush --test"))?;
    }
    let rules = |machine: &Machine| {
        let examples = machine.examples("iptables")?;
        ensure!(examples.len() == 2, "{examples:?}");
        for line in examples {
            for tool in tools {
                machine.type_in(&line.replace("iptables", &format!("{tool}-{kind}")))?;
            }
        }
        Ok(())
    };
    let loads = loads.each_ref().map(String::as_str);
    check_loads(&machine, Format::Iptables, &loads, rules, contents)?;
    for tool in tools {
        let rules = machine.run(&format!("{tool}-{kind} -S"))?;
        let others: Vec<_> = rules
            .lines()
            .filter(|line| !line.starts_with("-A VEN-DOR "))
            .collect();
        assert_eq!(
            others,
            [
                "-P INPUT ACCEPT",
                "-P FORWARD ACCEPT",
                "-P OUTPUT ACCEPT",
                "-N OTHER",
                "-N VEN-DOR",
                "-A INPUT -j OTHER",
                "-A INPUT -p tcp -m tcp --dport 443 -j VEN-DOR",
                "-A INPUT -p tcp -m tcp --dport 443 -j DROP",
                "-A OTHER -p tcp -m tcp --dport 1 -j DROP",
            ]
        );
    }
    let longest = exported(Format::Iptables, LONGEST, BEFORE)?;
    machine.scratch.write("FILE", longest)?;
    for load in loads {
        machine.run(load)?;
    }

    // The reason for `--noflush` in the comments.
    for (tool, load) in tools.iter().zip(loads) {
        machine.run(&load.replace(" --noflush", ""))?;
        let rules = machine.run(&format!("{tool}-{kind} -S"))?;
        ensure!(!rules.contains("OTHER"), "{rules}");
    }
    Ok(())
}

/// Returns the sources that the chain of each family accepts.
fn iptables_contents(machine: &Machine, kind: &str) -> anyhow::Result<BTreeSet<IpNet>> {
    let mut contents = BTreeSet::new();
    for (tool, everybody) in [
        ("iptables", IpNet::from(Ipv4Net::default())),
        ("ip6tables", Ipv6Net::default().into()),
    ] {
        let rules = machine.run(&format!("{tool}-{kind} -S VEN-DOR"))?;
        let rules: Vec<_> = rules
            .lines()
            .map(|rule| rule.split(' ').collect::<Vec<_>>())
            .collect();
        let (last, accepting) = rules.split_last().context("a rule")?;
        ensure!(last[..] == ["-A", "VEN-DOR", "-j", "RETURN"], "{rules:?}");
        for rule in &accepting[1..] {
            match rule[..] {
                ["-A", _, "-s", prefix, "-j", "ACCEPT"] => contents.extend(prefixes(&[prefix])),
                // The source of all addresses is not shown.
                ["-A", _, "-j", "ACCEPT"] => contents.extend([everybody]),
                _ => anyhow::bail!("{rule:?}"),
            }
        }
    }
    Ok(contents)
}
