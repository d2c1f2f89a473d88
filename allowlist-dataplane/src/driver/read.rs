//! Reads facts about an interface's driver: over rtnetlink, the generic netlink families of ethtool and netdev, and from
//! sysfs.
//!
//! Any fact except the interface itself may be missing, if the kernel or the driver does not report it.

use std::fs;
use std::path::{Path, PathBuf};

use allowlist_common::abi;
use ethtool::{EthtoolAttr, EthtoolChannelAttr, EthtoolFeatureAttr, EthtoolHandle};
use futures_util::TryStreamExt as _;
use nix::errno::Errno;
use rtnetlink::packet_route::link::{LinkAttribute, LinkInfo, LinkMessage};

use super::netdev::xdp_features;
use super::{Channels, Driver, Peer, Program};
use crate::error::{Context as _, Result};
use crate::interface::InterfaceInfo;
use crate::name_of_program;
use crate::netlink::Netlink;

/// Reads the facts about the driver of an interface in this process's network namespace.
///
/// # Errors
/// Fails if the interface cannot be read.
pub async fn read(interface: &InterfaceInfo) -> Result<Driver> {
    let (connection, netlink, _) =
        rtnetlink::new_connection().context("cannot open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let get = netlink.link().get().match_index(interface.index).execute();
    let link = Box::pin(get).try_next().await;
    connection.abort();
    let what = || format!("cannot read the interface {}", interface.name);
    let link = link
        .with_context(what)?
        .ok_or(Errno::ENODEV)
        .with_context(what)?;
    let mut driver = Driver {
        interface: interface.name.clone(),
        page_size: page_size(),
        program: interface.xdp_program.map(|id| {
            let name = name_of_program(id);
            Program {
                id,
                mode: interface.xdp_mode,
                is_filter: name.as_deref() == Some(abi::PROGRAM),
                name,
            }
        }),
        ..Driver::default()
    };
    let mut peer = None;
    let mut is_peer_elsewhere = false;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(bytes) => driver.mtu = *bytes,
            LinkAttribute::Controller(index) => driver.filtered_master = filtered(*index),
            LinkAttribute::Link(index) => peer = Some(*index),
            LinkAttribute::LinkNetNsId(_) => is_peer_elsewhere = true,
            _ => {}
        }
    }
    match parent(&link) {
        Some(parent) => {
            driver.name = target(&parent.join("driver"));
            driver.virtio = fs::read_to_string(parent.join("features"))
                .ok()
                .and_then(|text| bits(&text));
        }
        None => driver.name = kind(&link),
    }
    let Ok((connection, mut netlink, _)) = ethtool::new_connection() else {
        return Ok(driver);
    };
    let connection = tokio::spawn(connection);
    driver.xdp = xdp_features(&mut netlink, interface.index).await;
    driver.channels = channels(&mut netlink, &interface.name).await;
    (driver.lro, driver.hardware_gro) = merging(&mut netlink, &interface.name).await;
    if driver.name.as_deref() == Some("veth")
        && !is_peer_elsewhere
        && let Some(name) = peer.and_then(name_of)
    {
        let channels = channels(&mut netlink, &name).await;
        driver.peer = Some(Peer {
            name,
            tx: channels.map(|channels| channels.tx),
        });
    }
    connection.abort();
    Ok(driver)
}

/// Returns the name of the interface with this index if an XDP program is attached to it, else `None`.
fn filtered(index: u32) -> Option<String> {
    let device = Netlink::open().ok()?.by_index(index).ok()??;
    (!device.programs.is_empty()).then_some(device.name)
}

fn name_of(index: u32) -> Option<String> {
    Some(Netlink::open().ok()?.by_index(index).ok()??.name)
}

/// Returns the sysfs directory of the hardware device of an interface, a path that is the same in each network
/// namespace; `None` for an interface without one.
fn parent(link: &LinkMessage) -> Option<PathBuf> {
    let mut name = None;
    let mut bus = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::ParentDevName(text) => name = Some(text),
            LinkAttribute::ParentDevBusName(text) => bus = Some(text),
            _ => {}
        }
    }
    Some(Path::new("/sys/bus").join(bus?).join("devices").join(name?))
}

/// Returns the last component of a symbolic link's target; `None` if the link cannot be read.
fn target(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

fn kind(link: &LinkMessage) -> Option<String> {
    let infos = link
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
    infos.flatten().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

/// Parses the features of a virtio device: one character for each bit, bit 0 first; `None` if one is neither 0 nor 1.
fn bits(text: &str) -> Option<u64> {
    let mut value = 0;
    for (place, bit) in text.trim().bytes().take(64).enumerate() {
        match bit {
            b'0' => {}
            b'1' => value |= 1 << place,
            _ => return None,
        }
    }
    Some(value)
}

async fn channels(netlink: &mut EthtoolHandle, name: &str) -> Option<Channels> {
    let mut answers = Box::pin(netlink.channel().get(Some(name)).execute().await.ok()?);
    let answer = answers.try_next().await.ok()??;
    let mut channels = Channels::default();
    for attribute in answer.payload.nlas {
        let EthtoolAttr::Channel(attribute) = attribute else {
            continue;
        };
        match attribute {
            EthtoolChannelAttr::RxCount(count) => channels.rx = count,
            EthtoolChannelAttr::RxMax(count) => channels.rx_max = count,
            EthtoolChannelAttr::TxCount(count) => channels.tx = count,
            EthtoolChannelAttr::TxMax(count) => channels.tx_max = count,
            EthtoolChannelAttr::CombinedCount(count) => channels.combined = count,
            EthtoolChannelAttr::CombinedMax(count) => channels.combined_max = count,
            _ => {}
        }
    }
    Some(channels)
}

/// Returns whether large receive offload is on, and whether hardware GRO (`rx-gro-hw`) is on.
async fn merging(netlink: &mut EthtoolHandle, name: &str) -> (bool, bool) {
    let mut found = (false, false);
    let Ok(answers) = netlink.feature().get(Some(name)).execute().await else {
        return found;
    };
    let mut answers = Box::pin(answers);
    while let Ok(Some(answer)) = answers.try_next().await {
        for attribute in &answer.payload.nlas {
            let EthtoolAttr::Feature(EthtoolFeatureAttr::Active(bits)) = attribute else {
                continue;
            };
            for bit in bits.iter().filter(|bit| bit.value) {
                found.0 |= bit.name == "rx-lro";
                found.1 |= bit.name == "rx-gro-hw";
            }
        }
    }
    found
}

/// Returns the size of a page of memory, in bytes.
fn page_size() -> u32 {
    #[expect(unsafe_code, reason = "a call of the C library")]
    // SAFETY: `sysconf` takes a number and returns one.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u32::try_from(size).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::bits;

    #[test]
    fn virtio_features_are_parsed_from_bit_0() {
        for (text, expected) in [
            ("", Some(0)),
            ("0110\n", Some(0b0110)),
            (&format!("{}1", "0".repeat(63)), Some(1 << 63)),
            (&format!("1{}1", "0".repeat(127)), Some(1)),
            ("0x12", None),
        ] {
            assert_eq!(bits(text), expected, "{text}");
        }
    }
}
