//! A veth pair between two namespaces.
//!
//! Invariants: a silent link carries only packets that a test sends (no ARP, no neighbour or router discovery, no group
//! membership); and each end has a default route through the other end. Uses netlink, not the `ip` command.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage, State};
use rtnetlink::packet_route::tc::TcAttribute;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::Namespace;

/// The MAC address of the filtered end.
pub const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0a];
/// The MAC address of the other end.
pub const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0b];

/// One end of a link.
#[derive(Clone, Copy)]
pub struct VethEnd<'a> {
    /// The namespace of this end.
    pub namespace: &'a Namespace,
    /// The name, such as `eth0`; both ends may have the same.
    pub name: &'a str,
    /// The addresses, with the prefix length of the network that both ends share. The other end routes through the first
    /// one of each family; on a silent link it also has static neighbour entries for all.
    pub addresses: &'a [IpNet],
}

/// The traffic of a link besides a test's own packets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// No traffic besides the test's own packets.
    Silent,
    /// The kernels' own packets, such as ARP and neighbour discovery.
    Ordinary,
}

/// Connects `host` and `peer`, and returns when the link carries packets.
pub fn connect(kind: LinkKind, host: VethEnd, peer: VethEnd) -> anyhow::Result<()> {
    create(host, peer).context("cannot create a veth pair")?;
    for (end, index) in [(host, index_of(host)?), (peer, index_of(peer)?)] {
        raise(kind, end, index)?;
    }
    wait_for_carrier(host)?;
    wait_for_carrier(peer)?;
    address(kind, host, peer, PEER_MAC)?;
    address(kind, peer, host, HOST_MAC)
}

/// Adds addresses to the interface `name`, each with a full-length prefix.
pub fn add_addresses(
    namespace: &Namespace,
    name: &str,
    addresses: &[IpAddr],
) -> anyhow::Result<()> {
    namespace.netlink(async |handle| {
        let index = get(&handle, name).await?.header.index;
        for &address in addresses {
            add_address(&handle, index, address.into()).await?;
        }
        Ok(())
    })
}

fn create(host: VethEnd, peer: VethEnd) -> anyhow::Result<()> {
    let far_side = LinkUnspec::new_with_name(peer.name)
        .address(PEER_MAC.to_vec())
        .setns_by_fd(peer.namespace.as_fd().as_raw_fd())
        .build();
    let pair = LinkVeth::new(host.name, peer.name)
        .address(HOST_MAC.to_vec())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(far_side)))
        .build();
    host.namespace
        .netlink(async |handle| Ok(handle.link().add(pair).execute().await?))
}

fn index_of(end: VethEnd) -> anyhow::Result<u32> {
    end.namespace
        .netlink(async |handle| Ok(get(&handle, end.name).await?.header.index))
}

/// Brings an end up. Without ARP, the kernel joins no group and resolves no neighbour, so the link is silent.
fn raise(kind: LinkKind, end: VethEnd, index: u32) -> anyhow::Result<()> {
    let is_ordinary = kind == LinkKind::Ordinary;
    if is_ordinary {
        let setting = |name| format!("ipv6/conf/{}/{name}", end.name);
        // A link-local address, without duplicate address detection.
        end.namespace.set(&setting("addr_gen_mode"), "0")?;
        end.namespace.set(&setting("accept_dad"), "0")?;
    }
    end.namespace.netlink(async |handle| {
        let up = LinkUnspec::new_with_index(index)
            .arp(is_ordinary)
            .up()
            .build();
        let raised = handle.link().set(up).execute().await;
        raised.with_context(|| format!("cannot bring {} up", end.name))
    })
}

/// Waits until the interface is operationally up: before, its queueing discipline drops all packets.
fn wait_for_carrier(end: VethEnd) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    end.namespace.netlink(async |handle| {
        loop {
            let link = get(&handle, end.name).await?;
            if link
                .attributes
                .contains(&LinkAttribute::OperState(State::Up))
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} is not operationally up after 5 s", end.name);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
}

/// Adds the addresses and the routes through the other end, and on a silent link permanent neighbour entries.
fn address(kind: LinkKind, end: VethEnd, other: VethEnd, other_mac: [u8; 6]) -> anyhow::Result<()> {
    let known: &[IpNet] = match kind {
        LinkKind::Silent => other.addresses,
        LinkKind::Ordinary => &[],
    };
    end.namespace.netlink(async |handle| {
        let index = get(&handle, end.name).await?.header.index;
        for &network in end.addresses {
            add_address(&handle, index, network).await?;
        }
        for network in known {
            let neighbour = handle
                .neighbours()
                .add(index, network.addr())
                .link_layer_address(&other_mac);
            neighbour
                .execute()
                .await
                .with_context(|| format!("cannot add neighbour {network}"))?;
        }
        let gateways = other.addresses.iter().map(IpNet::addr);
        let first = [
            gateways.clone().find(IpAddr::is_ipv4),
            gateways.clone().find(IpAddr::is_ipv6),
        ];
        for gateway in first.into_iter().flatten() {
            add_default_route(&handle, index, gateway).await?;
        }
        Ok(())
    })
}

/// Renames an interface.
pub fn rename(namespace: &Namespace, from: &str, to: &str) -> anyhow::Result<()> {
    namespace.netlink(async |handle| {
        let index = get(&handle, from).await?.header.index;
        let message = LinkUnspec::new_with_index(index).name(to.to_owned());
        handle
            .link()
            .set(message.build())
            .execute()
            .await
            .with_context(|| format!("cannot rename {from} to {to}"))
    })
}

/// Removes an interface; the kernel then also removes the other end of a veth pair.
pub fn remove(namespace: &Namespace, name: &str) -> anyhow::Result<()> {
    namespace.netlink(async |handle| {
        let index = get(&handle, name).await?.header.index;
        let removed = handle.link().del(index).execute().await;
        removed.with_context(|| format!("cannot remove {name}"))
    })
}

/// Moves an interface to another namespace. It keeps its index if no interface there has the same one.
pub fn move_to(from: &Namespace, name: &str, to: &Namespace) -> anyhow::Result<()> {
    from.netlink(async |handle| {
        let index = get(&handle, name).await?.header.index;
        let message = LinkUnspec::new_with_index(index).setns_by_fd(to.as_fd().as_raw_fd());
        let moved = handle.link().set(message.build()).execute().await;
        moved.with_context(|| format!("cannot move {name} to another namespace"))
    })
}

/// Creates a bridge with these interfaces as ports.
pub fn bridge(namespace: &Namespace, name: &str, ports: &[&str]) -> anyhow::Result<()> {
    namespace.netlink(async |handle| {
        let bridge = LinkBridge::new(name).build();
        let made = handle.link().add(bridge).execute().await;
        made.with_context(|| format!("cannot create the bridge {name}"))?;
        let index = get(&handle, name).await?.header.index;
        for port in ports {
            let port_index = get(&handle, port).await?.header.index;
            let message = LinkUnspec::new_with_index(port_index).controller(index);
            let joined = handle.link().set(message.build()).execute().await;
            joined.with_context(|| format!("cannot add {port} to the bridge {name}"))?;
        }
        Ok(())
    })
}

/// Creates a veth pair in one namespace, each end with its own number of receive and transmit queues.
pub fn veth_with_queues(
    namespace: &Namespace,
    (name, queues): (&str, u32),
    (peer, peer_queues): (&str, u32),
) -> anyhow::Result<()> {
    let other = LinkUnspec::new_with_name(peer)
        .append_extra_attribute(LinkAttribute::NumRxQueues(peer_queues))
        .append_extra_attribute(LinkAttribute::NumTxQueues(peer_queues))
        .build();
    let pair = LinkVeth::new(name, peer)
        .append_extra_attribute(LinkAttribute::NumRxQueues(queues))
        .append_extra_attribute(LinkAttribute::NumTxQueues(queues))
        .set_info_data(InfoData::Veth(InfoVeth::Peer(other)))
        .build();
    namespace.netlink(async |handle| {
        let made = handle.link().add(pair).execute().await;
        made.with_context(|| format!("cannot create the veth pair {name} and {peer}"))
    })
}

/// Sets the number of transmit queues of an interface, as `ethtool -L NAME tx COUNT` does.
pub fn set_channels(namespace: &Namespace, name: &str, count: u32) -> anyhow::Result<()> {
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let (connection, mut handle, _) = ethtool::new_connection()?;
            tokio::spawn(connection);
            let request = handle.channel().set(name).tx_count(count);
            let set = request.execute().await;
            set.with_context(|| format!("cannot set the transmit queues of {name} to {count}"))
        })
    })
}

/// Adds the ingress queueing discipline, which excludes clsact.
pub fn add_ingress(namespace: &Namespace, name: &str) -> anyhow::Result<()> {
    namespace.netlink(async |handle| {
        let index = get(&handle, name).await?.header.index;
        let added = handle.qdisc().add(index.cast_signed()).ingress();
        let added = added.execute().await;
        added.with_context(|| format!("cannot add the ingress queueing discipline to {name}"))
    })
}

/// Sets the MTU of an interface.
pub fn set_mtu(namespace: &Namespace, name: &str, mtu: u32) -> anyhow::Result<()> {
    namespace.netlink(async |handle| {
        let index = get(&handle, name).await?.header.index;
        let message = LinkUnspec::new_with_index(index).mtu(mtu);
        let set = handle.link().set(message.build()).execute().await;
        set.with_context(|| format!("cannot set the MTU of {name} to {mtu}"))
    })
}

/// Sets the GSO and GRO size limits of an interface for both families.
pub fn set_packet_limit(namespace: &Namespace, name: &str, bytes: u32) -> anyhow::Result<()> {
    namespace.netlink(async |handle| {
        let index = get(&handle, name).await?.header.index;
        let limits = [
            LinkAttribute::GsoMaxSize(bytes),
            LinkAttribute::GsoIpv4MaxSize(bytes),
            LinkAttribute::GroMaxSize(bytes),
            LinkAttribute::GroIpv4MaxSize(bytes),
        ];
        let message = limits
            .into_iter()
            .fold(LinkUnspec::new_with_index(index), |message, limit| {
                message.append_extra_attribute(limit)
            });
        let set = handle.link().set(message.build()).execute().await;
        set.with_context(|| format!("cannot set the packet limits of {name} to {bytes}"))
    })
}

/// Returns the kinds of the egress filters of an interface, as `tc` lists them.
pub fn egress_filters(namespace: &Namespace, name: &str) -> anyhow::Result<Vec<String>> {
    namespace.netlink(async |handle| {
        let index = get(&handle, name).await?.header.index;
        let mut filters = handle.traffic_filter(index.cast_signed());
        let mut listed = filters.get().egress().execute();
        let mut kinds = Vec::new();
        while let Some(filter) = listed.try_next().await? {
            // The kernel also lists an entry without a handle for each priority.
            if u32::from(filter.header.handle) != 0 {
                kinds.extend(filter.attributes.into_iter().find_map(|one| match one {
                    TcAttribute::Kind(kind) => Some(kind),
                    _ => None,
                }));
            }
        }
        Ok(kinds)
    })
}

async fn get(handle: &Handle, name: &str) -> anyhow::Result<LinkMessage> {
    let found = handle
        .link()
        .get()
        .match_name(name)
        .execute()
        .try_next()
        .await;
    found
        .ok()
        .flatten()
        .with_context(|| format!("there is no interface {name}"))
}

async fn add_address(handle: &Handle, index: u32, network: IpNet) -> anyhow::Result<()> {
    let mut request = handle
        .address()
        .add(index, network.addr(), network.prefix_len());
    // Without this flag, an IPv6 address cannot be bound until the kernel's workqueue has processed it.
    request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    request
        .execute()
        .await
        .with_context(|| format!("cannot add address {network}"))
}

async fn add_default_route(handle: &Handle, index: u32, gateway: IpAddr) -> anyhow::Result<()> {
    let everywhere: IpAddr = match gateway {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(everywhere, 0)?
        .gateway(gateway)?
        .output_interface(index)
        // Different for each interface, so that a namespace can have several such routes.
        .priority(index)
        .build();
    let added = handle.route().add(route).execute().await;
    added.with_context(|| format!("cannot route through {gateway}"))
}
