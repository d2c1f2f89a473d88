//! Reads this host's interfaces with their addresses. Changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// An interface of this host, with its addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostInterface {
    /// The name.
    pub name: String,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// The interfaces directly below: the ports of a bridge, the members of a bond, the parent of a VLAN.
    pub below: Vec<String>,
    /// Whether packets arrive on the interface. None arrive on loopback and dummy interfaces, whose addresses are
    /// reached over other interfaces.
    pub receives: bool,
}

/// Returns all interfaces, in order of name.
pub fn host_interfaces() -> Result<Vec<HostInterface>> {
    let mut interfaces = BTreeMap::new();
    for entry in getifaddrs().context("cannot list this host's addresses")? {
        let name = entry.interface_name;
        let interface: &mut HostInterface = interfaces.entry(name).or_default();
        let has_no_link = entry.flags.contains(InterfaceFlags::IFF_NOARP)
            && !entry.flags.contains(InterfaceFlags::IFF_POINTOPOINT);
        interface.receives = !has_no_link && !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let Some(address) = entry.address else {
            continue;
        };
        if let Some(v4) = address.as_sockaddr_in() {
            interface.addresses.push(v4.ip().into());
        } else if let Some(v6) = address.as_sockaddr_in6() {
            interface.addresses.push(v6.ip().into());
        }
    }
    Ok(interfaces
        .into_iter()
        .map(|(name, interface)| HostInterface {
            below: below(&name),
            name,
            ..interface
        })
        .collect())
}

fn below(name: &str) -> Vec<String> {
    let entries = fs::read_dir(format!("/sys/class/net/{name}"));
    let names = entries.into_iter().flatten().flatten().filter_map(|entry| {
        let file = entry.file_name();
        Some(file.to_str()?.strip_prefix("lower_")?.to_owned())
    });
    names.collect()
}
