//! Reads network interfaces over netlink, and reports when any interface changes. Changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use allowlist_policy::error_code::bail_with;
use allowlist_policy::hints;
use ethtool::{EthtoolAttr, EthtoolFeatureAttr};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::XdpMode;
use crate::error::{Context as _, Error, Result};
use crate::netlink::index_of;

/// Changes within this time after a reported change are reported together: a new interface changes several times.
const BURST: Duration = Duration::from_millis(50);

/// The properties of a network interface at the time of the lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceInfo {
    /// The name under which the interface was looked up.
    pub name: String,
    /// The interface index, which is unique within a network namespace.
    pub index: u32,
    /// The kernel's id of the attached XDP program, of this filter or another; `None` if none is attached, or if
    /// programs are attached in several modes.
    pub xdp_program: Option<u32>,
    /// The mode of the attached XDP program; `None` if none is attached, or if programs are attached in several modes.
    pub xdp_mode: Option<XdpMode>,
}

/// Looks up an interface by name in this process's network namespace.
pub async fn look_up(name: &str) -> Result<InterfaceInfo> {
    let (connection, netlink, _) =
        rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let found = info(&netlink, name).await;
    connection.abort();
    found
}

async fn info(netlink: &rtnetlink::Handle, name: &str) -> Result<InterfaceInfo> {
    let request = netlink.link().get().match_name(name.to_owned());
    let found = request.execute().try_next().await.map_err(Error::from);
    let Some(link) = found_link(name, found)? else {
        let hint = hints::interface(name).map_or_else(String::new, |hint| format!("; {hint}"));
        bail_with!(
            UnknownInterface,
            "there is no interface {name:?}; there {}{hint}",
            those_there()
        );
    };
    let kind = link.header.link_layer_type;
    if kind == LinkLayerType::Loopback {
        bail_with!(UnsupportedInterface, "{}", loopback(name));
    }
    if kind != LinkLayerType::Ether {
        bail_with!(
            UnsupportedInterface,
            "{name} carries no Ethernet frames (its link type is {kind}), so the filter cannot parse its packets; filter the interface below it"
        );
    }
    let mut info = InterfaceInfo {
        name: name.to_owned(),
        index: link.header.index,
        xdp_program: None,
        xdp_mode: None,
    };
    for attribute in &link.attributes {
        let LinkAttribute::Xdp(attributes) = attribute else {
            continue;
        };
        for attribute in attributes {
            match attribute {
                LinkXdp::ProgId(id) if *id != 0 => info.xdp_program = Some(*id),
                LinkXdp::Attached(mode) => info.xdp_mode = attached_in(*mode),
                _ => {}
            }
        }
    }
    Ok(info)
}

/// Returns the answer to a request for the interface `name`, or `None` if the kernel has no such interface.
///
/// # Errors
/// Fails if the request failed for another reason.
fn found_link(name: &str, answer: Result<Option<LinkMessage>>) -> Result<Option<LinkMessage>> {
    match answer {
        // ERANGE is for a name that is too long.
        Err(error) if matches!(error.errno(), Some(Errno::ENODEV | Errno::ERANGE)) => Ok(None),
        answer => answer.with_context(|| format!("cannot read the interface {name}")),
    }
}

/// The name of the loopback interface in each network namespace.
pub const LOOPBACK: &str = "lo";

/// Returns the error message for a configured loopback interface, with the remedy.
pub fn loopback(name: &str) -> String {
    format!(
        "{name} is the loopback interface, on which all packets come from this host: the filter would drop this host's connections to itself; leave it out"
    )
}

/// Returns the size limit for merged packets (BIG TCP) of an interface with the filter in generic mode, in bytes.
///
/// Returns `None` if no packet can be longer than the length field of an IP header can state, if the interface cannot
/// be read, or if no program runs in generic mode: in another mode, the filter sees packets before they are merged.
pub async fn merges_big_packets(name: &str) -> Option<u32> {
    /// The kernel's default size limit in bytes.
    const ORDINARY: u32 = 65_536;
    let (connection, netlink, _) = rtnetlink::new_connection().ok()?;
    let connection = tokio::spawn(connection);
    let info = info(&netlink, name).await;
    let request = netlink.link().get().match_name(name.to_owned());
    let link = request.execute().try_next().await;
    connection.abort();
    if info.ok()?.xdp_mode != Some(XdpMode::Generic) {
        return None;
    }
    let sizes = link
        .ok()??
        .attributes
        .into_iter()
        .map(|attribute| match attribute {
            LinkAttribute::GroMaxSize(bytes)
            | LinkAttribute::GroIpv4MaxSize(bytes)
            | LinkAttribute::GsoMaxSize(bytes)
            | LinkAttribute::GsoIpv4MaxSize(bytes) => bytes,
            _ => 0,
        });
    sizes.max().filter(|bytes| *bytes > ORDINARY)
}

pub(crate) const fn attached_in(mode: XdpAttached) -> Option<XdpMode> {
    match mode {
        XdpAttached::Driver => Some(XdpMode::Native),
        XdpAttached::SocketBuffer => Some(XdpMode::Generic),
        XdpAttached::Hardware => Some(XdpMode::Offload),
        _ => None,
    }
}

/// Waits for changes of any interface in the network namespace of the thread that calls [`Links::listen`].
pub struct Links {
    changed: Arc<Notify>,
    tasks: [JoinHandle<()>; 2],
}

impl Links {
    /// Subscribes to changes of interfaces over netlink. Must be called in a Tokio runtime.
    pub fn listen() -> Result<Self> {
        let (connection, _, mut messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
                .context("cannot subscribe to changes of interfaces over netlink")?;
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        let forward = async move {
            // A message can be outdated when it is read, and the kernel drops messages under load. Each one is
            // only a reason to read the interfaces again.
            while messages.next().await.is_some() {
                notify.notify_one(); // at once: a new interface is not filtered yet
                sleep(BURST).await;
                let mut is_burst = false;
                while let Some(Some(_)) = messages.next().now_or_never() {
                    is_burst = true;
                }
                if is_burst {
                    notify.notify_one();
                }
            }
        };
        Ok(Self {
            changed,
            tasks: [tokio::spawn(connection), tokio::spawn(forward)],
        })
    }

    /// Waits for a change of an interface since the last call.
    ///
    /// Returns at once for the first change of a burst, and once more after the rest of the burst. Cancel safe: a
    /// change is not lost if the future is dropped.
    pub async fn changed(&mut self) {
        self.changed.notified().await;
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The membership of an interface in another one, its master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The name of the interface.
    pub name: String,
    /// The name of the master.
    pub master: String,
    /// The link type of the master, such as `bridge`; empty if the kernel does not report it.
    pub kind: String,
    /// All members of the master, in order of name.
    pub members: Vec<String>,
}

/// Returns the membership of an interface, or `None` if it has no master or does not exist.
pub async fn membership(name: &str) -> Option<Membership> {
    let (connection, netlink, _) = rtnetlink::new_connection().ok()?;
    let connection = tokio::spawn(connection);
    let links: Result<Vec<LinkMessage>, _> = netlink.link().get().execute().try_collect().await;
    connection.abort();
    let links = links.ok()?;
    let own = links.iter().find(|link| name_of(link) == name)?;
    let index = master_of(own)?;
    let master = links.iter().find(|link| link.header.index == index)?;
    let members = links.iter().filter(|link| master_of(link) == Some(index));
    let mut members: Vec<String> = members.map(|link| name_of(link).to_owned()).collect();
    members.sort();
    Some(Membership {
        name: name.to_owned(),
        master: name_of(master).to_owned(),
        kind: kind_of(master),
        members,
    })
}

impl Membership {
    /// Returns a warning if filtering only `filtered` has side effects or gaps.
    ///
    /// An XDP program on a member sees frames before the master does.
    pub fn warning(&self, filtered: &[String]) -> Option<String> {
        let Self {
            name, master, kind, ..
        } = self;
        match kind.as_str() {
            "bridge" | "openvswitch" => Some(format!(
                "{name} is a port of the {kind} {master}: the filter also judges packets that {master} only forwards between its ports, as if they were sent to this host; to filter only packets to this host, filter {master} instead"
            )),
            "bond" | "team" => {
                let others = self.members.iter().filter(|one| !filtered.contains(one));
                let others: Vec<&str> = others.map(String::as_str).collect();
                (!others.is_empty()).then(|| {
                    format!(
                        "{name} is a member of the {kind} {master}: packets that arrive on {} are not filtered; filter {master} or all its members",
                        others.join(" and ")
                    )
                })
            }
            // A VRF only selects the routing table; frames arrive on its members.
            _ => None,
        }
    }
}

fn name_of(link: &LinkMessage) -> &str {
    let names = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(&**name),
            _ => None,
        });
    names.unwrap_or_default()
}

fn master_of(link: &LinkMessage) -> Option<u32> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Controller(index) if *index != 0 => Some(*index),
            _ => None,
        })
}

fn kind_of(link: &LinkMessage) -> String {
    let infos = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
    let kind = infos.into_iter().flatten().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    });
    kind.unwrap_or_default()
}

/// The names of the features by which a driver strips VLAN tags.
const STRIPS_TAGS: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];

/// Returns whether the driver strips VLAN tags before an XDP program sees the frame; false if it does not report this.
pub async fn strips_vlan_tags(name: &str) -> bool {
    let Ok((connection, mut netlink, _)) = ethtool::new_connection() else {
        return false;
    };
    let connection = tokio::spawn(connection);
    let mut strips = false;
    if let Ok(mut answers) = netlink.feature().get(Some(name)).execute().await {
        while let Ok(Some(answer)) = answers.try_next().await {
            strips |= answer.payload.nlas.iter().any(|attribute| {
                let EthtoolAttr::Feature(EthtoolFeatureAttr::Active(bits)) = attribute else {
                    return false;
                };
                bits.iter()
                    .any(|bit| bit.value && STRIPS_TAGS.contains(&&*bit.name))
            });
        }
    }
    connection.abort();
    strips
}

/// Requires that no two of the configured names belong to one interface.
///
/// Otherwise the services that are limited to the one name would replace the services that are limited to the other.
///
/// # Errors
/// Fails with both names and the index of the interface.
pub fn require_distinct(names: &[String]) -> Result<()> {
    let mut known: BTreeMap<u32, &str> = BTreeMap::new();
    for name in names {
        let Some(index) = index_of(name) else {
            continue;
        };
        if let Some(other) = known.insert(index, name)
            && other != name
        {
            bail_with!(
                ConfigInvalid,
                "interfaces: {other} and {name} are two names of one interface (index {index}); leave one out"
            );
        }
    }
    Ok(())
}

/// Returns the names of all interfaces, sorted.
fn names() -> Vec<String> {
    let mut names: Vec<String> = nix::net::if_::if_nameindex()
        .map(|all| {
            all.iter()
                .map(|one| one.name().to_string_lossy().into_owned())
                .collect()
        })
        .unwrap_or_default();
    names.sort();
    names
}

/// Returns the names of all interfaces as the end of a message that begins with "there", such as "are eth0, lo".
pub fn those_there() -> String {
    list(&names())
}

fn list(names: &[String]) -> String {
    match names {
        [] => "are none".to_owned(),
        [one] => format!("is only {one}"),
        many => format!("are {}", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::expect;

    use super::*;

    /// Only the kernel's answer that there is no such interface means that it is missing.
    #[test]
    fn other_errors_are_no_missing_interface() {
        for missing in [Errno::ENODEV, Errno::ERANGE] {
            let found = found_link("eth0", Err(missing.into()));
            assert!(matches!(found, Ok(None)), "{found:?}");
        }
        for errno in [Errno::EPERM, Errno::ENOBUFS] {
            let error = found_link("eth0", Err(errno.into())).expect_err("the request failed");
            assert_eq!(error.errno(), Some(errno));
            assert!(error.to_string().contains("eth0"), "{error}");
        }
    }

    #[test]
    fn warnings_about_members_of_other_interfaces() {
        let mut warnings = String::new();
        for (kind, filtered, is_expected) in [
            ("bridge", &["eth0"][..], true),
            ("bridge", &["eth0", "eth1"], true),
            ("openvswitch", &["eth0"], true),
            ("bond", &["eth0"], true),
            ("bond", &["eth0", "eth1"], false),
            ("team", &["eth0"], true),
            ("team", &["eth1", "eth0"], false),
            ("vrf", &["eth0"], false),
            ("", &["eth0"], false),
        ] {
            let membership = Membership {
                name: "eth0".to_owned(),
                master: "up0".to_owned(),
                kind: kind.to_owned(),
                members: vec!["eth0".to_owned(), "eth1".to_owned()],
            };
            let filtered: Vec<String> = filtered.iter().map(|&name| name.to_owned()).collect();
            let warning = membership.warning(&filtered);
            assert_eq!(warning.is_some(), is_expected, "{kind} {filtered:?}");
            if let Some(warning) = warning {
                writeln!(warnings, "{kind} {filtered:?}: {warning}").expect("a string");
            }
        }
        expect![[r#"
            bridge ["eth0"]: eth0 is a port of the bridge up0: the filter also judges packets that up0 only forwards between its ports, as if they were sent to this host; to filter only packets to this host, filter up0 instead
            bridge ["eth0", "eth1"]: eth0 is a port of the bridge up0: the filter also judges packets that up0 only forwards between its ports, as if they were sent to this host; to filter only packets to this host, filter up0 instead
            openvswitch ["eth0"]: eth0 is a port of the openvswitch up0: the filter also judges packets that up0 only forwards between its ports, as if they were sent to this host; to filter only packets to this host, filter up0 instead
            bond ["eth0"]: eth0 is a member of the bond up0: packets that arrive on eth1 are not filtered; filter up0 or all its members
            team ["eth0"]: eth0 is a member of the team up0: packets that arrive on eth1 are not filtered; filter up0 or all its members
        "#]].assert_eq(&warnings);
    }

    #[test]
    fn texts_about_interfaces() {
        let names: Vec<String> = ["eth0", "eth1"].map(str::to_owned).into();
        let mut texts = loopback("lo");
        for names in [&[][..], &names[..1], &names] {
            write!(texts, "\nthere {}", list(names)).expect("a string");
        }
        expect![[r#"
            lo is the loopback interface, on which all packets come from this host: the filter would drop this host's connections to itself; leave it out
            there are none
            there is only eth0
            there are eth0, eth1"#]].assert_eq(&texts);
    }
}
