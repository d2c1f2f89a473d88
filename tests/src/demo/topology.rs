//! The topology: a host with the filter, a namespace with the addresses of all senders, and a link between them.
//!
//! Invariant: uses neither the machine's own network nor its disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use allowlist_common::abi::Counters;
use allowlist_lists::catalogue;
use allowlist_lists::source::{self, fetch};
use allowlist_tests::lab::{
    LinkKind, Namespace, Program, Scratch, VethEnd, add_addresses, allowlist, connect,
};
use allowlist_tests::vendor::{Answer, Vendor};
use allowlist_user::config::provided;
use anyhow::Context;
use ipnet::IpNet;

use super::counters;
use super::egress::{Attempt, Programs};
use super::fixtures::{OFFICE, PAGERDUTY, Packet, networks};

/// The description of the topology for users.
pub(crate) const SUMMARY: &str = "\
A host and an internet, two network namespaces with a link between them. On the host allowlist
filters what eth0 receives, in native mode: tcp/443 is for pagerduty, workato, freshchat and the
office, tcp/22 for the office alone; tcp/8080 and udp/9000 are not protected. PagerDuty's list comes
over HTTP from loopback, as its documentation once showed it (from PagerDuty with --online); the
lists of Workato and Freshchat are compiled in, as published on the date in `allowlist providers`.";

/// The interface's name at both ends.
pub(crate) const INTERFACE: &str = "eth0";
/// The host's addresses, one of each family.
const HOST: [&str; 2] = ["198.51.100.1/24", "2001:db8:1::1/64"];
const INTERNET: [&str; 2] = ["198.51.100.2/24", "2001:db8:1::2/64"];
/// The vendor whose list is not compiled in.
const FETCHED: &str = "pagerduty-webhooks-us";
/// The time to wait until the filter is ready, long enough for a machine that is busy building.
const START: Duration = Duration::from_secs(30);

/// The host, the internet and the filter. Fields are dropped in this order.
pub(crate) struct Topology {
    _filter: Program,
    _vendor: Vendor,
    /// The programs that the egress policy judges; `None` without cgroup v2.
    programs: Option<Programs>,
    scratch: Scratch,
    /// The namespace of the filter.
    pub(crate) host: Namespace,
    /// The namespace of all senders.
    pub(crate) internet: Namespace,
}

impl Topology {
    /// Creates the topology, and returns when the filter is ready. `pagerduty` has the prefixes of that vendor's list.
    pub(crate) fn new(pagerduty: &[IpNet], packets: &[Packet]) -> anyhow::Result<Self> {
        let scratch = Scratch::new()?;
        let (host, internet) = (Namespace::new()?, Namespace::new()?);
        connect(
            LinkKind::Silent,
            VethEnd {
                namespace: &host,
                name: INTERFACE,
                addresses: &networks(&HOST),
            },
            VethEnd {
                namespace: &internet,
                name: INTERFACE,
                addresses: &networks(&INTERNET),
            },
        )?;
        let senders: BTreeSet<IpAddr> = packets.iter().map(|packet| packet.source).collect();
        add_addresses(&internet, INTERFACE, &Vec::from_iter(senders))?;

        let list = Answer::json(serde_json::to_string(pagerduty)?);
        let vendor = host.run(|| Vendor::start([("/webhook_ips", list)]))?;
        let programs = Programs::new(&host, &internet)?;
        let egress = programs.as_ref().map(Programs::configuration);
        let config = scratch.write(
            "allowlist.toml",
            configuration(&vendor.url("/webhook_ips")) + &egress.unwrap_or_default(),
        )?;
        let mut command = host.command(allowlist()?)?;
        command
            .arg("run")
            .args(["--iface", INTERFACE, "--attach-mode", "native", "--config"])
            .arg(config)
            .args(scratch.arguments());
        let filter = Program::start(command)?;
        filter
            .wait_for_line("ready", START)
            .context("the daemon of the demo has not become ready")?;
        Ok(Self {
            _filter: filter,
            _vendor: vendor,
            programs,
            scratch,
            host,
            internet,
        })
    }

    /// Runs the programs that the egress policy judges, and returns the result of each; `None` without cgroup v2.
    pub(crate) fn attempts(&self) -> anyhow::Result<Option<Vec<Attempt>>> {
        let programs = self.programs.as_ref();
        programs
            .map(|programs| programs.run(&self.host))
            .transpose()
    }

    /// Returns the counters of the host's interface.
    pub(crate) fn counters(&self) -> anyhow::Result<Counters> {
        counters::read(self.scratch.pin_dir(), INTERFACE)
    }
}

/// Returns the host's address of the same family as `source`, with a port.
pub(crate) fn host_address(source: IpAddr, port: u16) -> SocketAddr {
    let addresses = networks(&HOST).into_iter().map(|network| network.addr());
    let mut same_family = addresses.filter(|address| address.is_ipv4() == source.is_ipv4());
    SocketAddr::new(
        same_family.next().expect("the host has one of each family"),
        port,
    )
}

/// Returns PagerDuty's prefixes: the current ones, or those of the example in its documentation.
pub(crate) fn pagerduty(online: bool) -> anyhow::Result<Vec<IpNet>> {
    if !online {
        return Ok(networks(&PAGERDUTY));
    }
    let provider = catalogue::find(FETCHED).with_context(|| {
        format!("the catalogue has no provider {FETCHED}, which the demo needs")
    })?;
    let source =
        provided("pagerduty", provider, &[], &BTreeMap::new()).map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = runtime
        .block_on(fetch(&source, &[]))
        .context("cannot fetch PagerDuty's list (without --online, the demo needs no internet)")?;
    match answer {
        source::Answer::List(fetched) => Ok(fetched.prefixes),
        source::Answer::Unchanged(_) => {
            anyhow::bail!("the vendor answered an unconditional request with 304")
        }
    }
}

fn configuration(pagerduty: &str) -> String {
    format!(
        r#"[services.webhooks]
ports = ["tcp/443"]
allow = ["pagerduty", "workato", "freshchat", "office"]

[services.ssh]
ports = ["tcp/22"]
allow = ["office"]

# The host's namespace has no route to the internet: loopback serves the vendor's list.
[sources.pagerduty]
provider = "{FETCHED}"
url = "{pagerduty}"

[sources.workato]
provider = "workato"
regions = ["US"]

[sources.freshchat]
provider = "freshchat"

[sources.office]
prefixes = {OFFICE:?}
"#
    )
}
