//! What the kernel says of network interfaces, over netlink: facts about one, and when any changes. Changes
//! nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ethtool::{EthtoolAttr, EthtoolFeatureAttr};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::link::{LinkAttribute, LinkInfo, LinkLayerType, LinkXdp, XdpAttached};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::dataplane::AttachedIn;

/// What follows a change so soon is told with it: an interface that is made changes several times.
const BURST: Duration = Duration::from_millis(50);

/// Facts about one interface at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The name that was asked for.
    pub name: String,
    /// The kernel's index of it.
    pub index: u32,
    /// The id of the XDP program on it, whoever put it there.
    pub xdp_program: Option<u32>,
    /// Where that runs.
    pub xdp_mode: Option<AttachedIn>,
    /// What it is a member of.
    pub master: Option<Master>,
}

/// A bridge, a bond or a team that an interface is a member of: what its members receive is then the
/// master's, and this host's addresses are mostly on that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// Its name.
    pub name: String,
    /// What it is, in the kernel's word: `bridge`, `bond`, `team`; empty if the kernel does not say.
    pub kind: String,
}

/// Looks an interface up by name in this process's network namespace.
pub async fn look_up(name: &str) -> Result<Facts> {
    let (connection, netlink, _) = rtnetlink::new_connection().context("cannot open netlink")?;
    let connection = tokio::spawn(connection);
    let found = facts(&netlink, name).await;
    connection.abort();
    found
}

async fn facts(netlink: &rtnetlink::Handle, name: &str) -> Result<Facts> {
    let wanted = netlink.link().get().match_name(name.to_owned());
    let Ok(Some(link)) = wanted.execute().try_next().await else {
        bail!("there is no interface {name:?}; there {}", list(&names()));
    };
    let kind = link.header.link_layer_type;
    if !matches!(kind, LinkLayerType::Ether | LinkLayerType::Loopback) {
        bail!(
            "{name} carries no Ethernet frames (its type is {kind}), so the filter could not read what it receives; filter the interface below it"
        );
    }
    let mut facts = Facts {
        name: name.to_owned(),
        index: link.header.index,
        xdp_program: None,
        xdp_mode: None,
        master: None,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Xdp(said) => {
                for fact in said {
                    match fact {
                        LinkXdp::ProgId(id) if *id != 0 => facts.xdp_program = Some(*id),
                        LinkXdp::Attached(mode) => facts.xdp_mode = attached_in(*mode),
                        _ => {}
                    }
                }
            }
            LinkAttribute::Controller(index) => facts.master = master(netlink, *index).await,
            _ => {}
        }
    }
    Ok(facts)
}

const fn attached_in(mode: XdpAttached) -> Option<AttachedIn> {
    match mode {
        XdpAttached::Driver => Some(AttachedIn::Native),
        XdpAttached::SocketBuffer => Some(AttachedIn::Generic),
        XdpAttached::Hardware => Some(AttachedIn::Offload),
        _ => None,
    }
}

/// `None` if it is gone by now.
async fn master(netlink: &rtnetlink::Handle, index: u32) -> Option<Master> {
    let wanted = netlink.link().get().match_index(index);
    let link = wanted.execute().try_next().await.ok()??;
    let mut master = Master {
        name: String::new(),
        kind: String::new(),
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => master.name = name,
            LinkAttribute::LinkInfo(said) => {
                for fact in said {
                    if let LinkInfo::Kind(kind) = fact {
                        master.kind = kind.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    Some(master)
}

/// Waits for changes of any interface in the network namespace of the thread that made it.
pub struct Links {
    changed: Arc<Notify>,
    tasks: [JoinHandle<()>; 2],
}

impl Links {
    /// Listens from now on. Needs a runtime.
    pub fn listen() -> Result<Self> {
        let (connection, _, mut messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
                .context("cannot listen to changes of interfaces over netlink")?;
        let changed = Arc::new(Notify::new());
        let tell = Arc::clone(&changed);
        let tell = async move {
            // What a message says may be history by the time it is read, or have been lost where there were
            // too many: it is a reason to look, and no more.
            while messages.next().await.is_some() {
                sleep(BURST).await;
                while let Some(Some(_)) = messages.next().now_or_never() {}
                tell.notify_one();
            }
        };
        Ok(Self {
            changed,
            tasks: [tokio::spawn(connection), tokio::spawn(tell)],
        })
    }

    /// Returns when something has changed since it returned last; what changes in a burst is told once. Nothing
    /// is lost where it is not waited for to its end.
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

/// What the driver's features for taking VLAN tags off are called, and those who show them.
const STRIPS_TAGS: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];

/// Whether the interface takes VLAN tags off frames before any program sees them. A driver that says
/// nothing of it does not.
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

/// The names of all interfaces, in order.
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

fn list(names: &[String]) -> String {
    match names {
        [] => "are none".to_owned(),
        [one] => format!("is only {one}"),
        many => format!("are {}", many.join(", ")),
    }
}
