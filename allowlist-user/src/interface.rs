//! What the kernel says of a network interface, over netlink. Changes nothing.

use anyhow::{Context as _, Result, bail};
use ethtool::{EthtoolAttr, EthtoolFeatureAttr};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{LinkAttribute, LinkLayerType, LinkXdp};

/// Facts about one interface at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The name that was asked for.
    pub name: String,
    /// The kernel's index of it.
    pub index: u32,
    /// The id of the XDP program on it, whoever put it there.
    pub xdp_program: Option<u32>,
}

/// Looks an interface up by name in this process's network namespace.
pub async fn look_up(name: &str) -> Result<Facts> {
    let (connection, netlink, _) = rtnetlink::new_connection().context("cannot open netlink")?;
    let connection = tokio::spawn(connection);
    let found = netlink
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .try_next()
        .await;
    connection.abort();
    let Ok(Some(link)) = found else {
        bail!("there is no interface {name:?}; there {}", list(&names()));
    };
    let kind = link.header.link_layer_type;
    if !matches!(kind, LinkLayerType::Ether | LinkLayerType::Loopback) {
        bail!(
            "{name} carries no Ethernet frames (its type is {kind}), so the filter could not read what it receives; filter the interface below it"
        );
    }
    let xdp_program = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Xdp(facts) => facts.iter().find_map(|fact| match fact {
                LinkXdp::ProgId(id) if *id != 0 => Some(*id),
                _ => None,
            }),
            _ => None,
        });
    Ok(Facts {
        name: name.to_owned(),
        index: link.header.index,
        xdp_program,
    })
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
