//! Which interface of this host has which address, and what it receives by. Changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// An interface, and what is at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The interfaces right below it: a bridge's ports, a bond's members, what a VLAN is on.
    pub below: Vec<String>,
    /// Whether packets come in by it. By loopback and dummy interfaces none does: their addresses are
    /// reached by others.
    pub receives: bool,
}

/// All of them, in order of name.
pub fn holders() -> Result<Vec<Holder>> {
    let mut holders = BTreeMap::new();
    for entry in getifaddrs().context("cannot list this host's addresses")? {
        let name = entry.interface_name;
        let holder: &mut Holder = holders.entry(name).or_default();
        let is_alone = entry.flags.contains(InterfaceFlags::IFF_NOARP)
            && !entry.flags.contains(InterfaceFlags::IFF_POINTOPOINT);
        holder.receives = !is_alone && !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let Some(address) = entry.address else {
            continue;
        };
        if let Some(v4) = address.as_sockaddr_in() {
            holder.addresses.push(v4.ip().into());
        } else if let Some(v6) = address.as_sockaddr_in6() {
            holder.addresses.push(v6.ip().into());
        }
    }
    Ok(holders
        .into_iter()
        .map(|(name, holder)| Holder {
            below: below(&name),
            name,
            ..holder
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
