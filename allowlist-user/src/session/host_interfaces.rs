//! Reads this host's interfaces with their addresses. Changes nothing.

use std::collections::BTreeMap;
use std::fs;

use allowlist_policy::lockout::HostInterface;
use anyhow::{Context as _, Result};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// Returns all network interfaces of this host, in the order of their names.
pub(super) fn host_interfaces() -> Result<Vec<HostInterface>> {
    let mut interfaces = BTreeMap::new();
    for entry in getifaddrs().context("cannot list the addresses of this host's interfaces")? {
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
