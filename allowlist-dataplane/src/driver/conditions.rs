//! The conditions under which drivers refuse native XDP programs, from the drivers' code in Linux 6.3 to 6.18.
//!
//! The filter's program supports multi-buffer packets (`xdp.frags`), so MTU limits that a driver waives for such
//! programs are omitted. A condition on a fact that the kernel does not report is omitted too; the driver's entry is
//! then not `complete`.

use super::{Channels, Driver, Obstacle, XdpFeatures};

/// The bits of a virtio network card's features, from the virtio specification, 5.1.3.
mod virtio {
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const GUEST_ECN: u64 = 1 << 9;
    pub(super) const GUEST_UFO: u64 = 1 << 10;
    pub(super) const GUEST_USO4: u64 = 1 << 54;
    pub(super) const GUEST_USO6: u64 = 1 << 55;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const ANY_LAYOUT: u64 = 1 << 27;
    pub(super) const VERSION_1: u64 = 1 << 32;
    /// All offloads that the host may apply to received packets.
    pub(super) const HOST_OFFLOADS: u64 =
        GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | GUEST_USO4 | GUEST_USO6;
}

/// The known conditions under which a driver accepts a native XDP program.
pub(super) struct Conditions {
    /// Whether the driver restarts the interface when the first native program is attached.
    pub(super) resets: bool,
    /// Whether [`Driver::obstacle`] checks every condition of the driver, so that the driver accepts a native program
    /// if no obstacle is found.
    pub(super) complete: bool,
    largest_mtu: fn(&Driver) -> Option<u32>,
}

impl Conditions {
    /// Returns the largest MTU with which the driver accepts a native program, in bytes; `None` if no limit is known.
    pub(super) fn largest_mtu(&self, driver: &Driver) -> Option<u32> {
        (self.largest_mtu)(driver)
    }
}

impl Driver {
    pub(super) fn conditions(&self) -> Conditions {
        let entry = |resets, complete| Conditions {
            resets,
            complete,
            largest_mtu: |_| None,
        };
        match self.name.as_deref().unwrap_or_default() {
            "tun" | "veth" => entry(false, true),
            // With mergeable buffers, the driver refuses devices whose headers are in a separate buffer.
            "virtio_net" => entry(
                false,
                self.virtio.is_some_and(|features| {
                    features & virtio::MRG_RXBUF == 0
                        || features & (virtio::ANY_LAYOUT | virtio::VERSION_1) != 0
                }),
            ),
            "ena" => Conditions {
                largest_mtu: ena_mtu,
                ..entry(true, self.channels.is_some() && ena_mtu(self).is_some())
            },
            "gve" => Conditions {
                largest_mtu: |_| Some(GVE_MTU),
                ..entry(false, self.channels.is_some())
            },
            "igc" => entry(true, true),
            // These drivers also refuse programs with SR-IOV, DCB, IPsec, header split or too few resources.
            "bnxt_en" | "i40e" | "ixgbe" => entry(true, false),
            _ => entry(false, false),
        }
    }

    /// Returns the first obstacle to a native program; `None` if no obstacle is known.
    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        let name = self.name.as_deref().unwrap_or_default();
        if let Some(features) = self.xdp
            && !features.has(XdpFeatures::BASIC)
        {
            return Some(if name == "veth" {
                self.few_queues()
            } else {
                Obstacle::NoNative
            });
        }
        let channels = self.channels.unwrap_or_default();
        match name {
            // drivers/net/veth.c, veth_xdp_set; a kernel that reports features clears them for the same reason.
            "veth" => {
                let tx = self.peer.as_ref().and_then(|peer| peer.tx);
                let is_few = self.channels.is_some() && tx.is_some_and(|tx| tx > channels.rx);
                is_few.then(|| self.few_queues())
            }
            // drivers/net/virtio_net.c, virtnet_xdp_set
            "virtio_net" => self
                .virtio
                .filter(|features| {
                    features & virtio::HOST_OFFLOADS != 0
                        && features & virtio::CTRL_GUEST_OFFLOADS == 0
                })
                .map(|_| Obstacle::HostOffloads),
            // drivers/net/ethernet/amazon/ena/ena_xdp.h, ena_xdp_allowed
            "ena" => {
                let mtu = ena_mtu(self).filter(|largest| self.mtu > *largest);
                mtu.map(|largest| Obstacle::Mtu { largest })
                    .or_else(|| few_spare(channels.combined, channels.combined_max, false))
            }
            // drivers/net/ethernet/google/gve/gve_main.c, verify_xdp_configuration
            "gve" => match channels {
                _ if self.lro => Some(Obstacle::Lro),
                Channels { rx, tx, tx_max, .. } if rx != tx => {
                    let most = rx.min(tx).min(tx_max / 2);
                    Some(Obstacle::Queues {
                        most,
                        separate: true,
                    })
                }
                Channels { tx, tx_max, .. } => few_spare(tx, tx_max, true),
            },
            // drivers/net/ethernet/intel/igc/igc_xdp.c, igc_xdp_set_prog
            "igc" => (self.mtu > super::ORDINARY_MTU).then_some(Obstacle::Mtu {
                largest: super::ORDINARY_MTU,
            }),
            // drivers/net/ethernet/intel/ixgbe/ixgbe_main.c, ixgbe_xdp_setup
            "ixgbe" => self.lro.then_some(Obstacle::Lro),
            // drivers/net/ethernet/mellanox/mlx5/core/en_main.c, mlx5e_xdp_allowed
            "mlx5_core" if self.lro => Some(Obstacle::Lro),
            "mlx5_core" => self.hardware_gro.then_some(Obstacle::HardwareGro),
            // drivers/net/ethernet/broadcom/bnxt/bnxt_xdp.c, bnxt_xdp_set
            "bnxt_en" => {
                let is_separate = self.channels.is_some() && channels.combined == 0;
                is_separate.then(|| Obstacle::SeparateQueues {
                    combined: channels.rx.clamp(1, channels.combined_max.max(1)),
                })
            }
            _ => None,
        }
    }

    fn few_queues(&self) -> Obstacle {
        let peer_tx = self.peer.as_ref().and_then(|peer| peer.tx);
        let raise_to = self.channels.and_then(|channels| match peer_tx {
            Some(tx) => (tx <= channels.rx_max).then_some(tx),
            None => (channels.rx_max > channels.rx).then_some(channels.rx_max),
        });
        Obstacle::FewQueues {
            rx: self.channels.map(|channels| channels.rx),
            raise_to,
            peer: self.peer.as_ref().map(|peer| peer.name.clone()),
        }
    }
}

/// Returns an obstacle if more than half of the `max` queues are in use, else `None`; `separate` states whether they
/// are transmit-only queues.
fn few_spare(used: u32, max: u32, separate: bool) -> Option<Obstacle> {
    (2 * used > max).then_some(Obstacle::Queues {
        most: max / 2,
        separate,
    })
}

/// Returns `ENA_XDP_MAX_MTU` of the ena driver: the page size without the Ethernet and VLAN headers, the checksum, the
/// XDP headroom and the kernel's `struct skb_shared_info`.
///
/// Returns `None` if the page size is not 4096 bytes.
const fn ena_mtu(driver: &Driver) -> Option<u32> {
    const ETHERNET_HEADER: u32 = 14;
    const CHECKSUM: u32 = 4;
    const VLAN_HEADER: u32 = 4;
    const HEADROOM: u32 = 256;
    const SHARED_INFO: u32 = 320;
    match driver.page_size {
        4096 => Some(4096 - ETHERNET_HEADER - CHECKSUM - VLAN_HEADER - HEADROOM - SHARED_INFO),
        _ => None,
    }
}

/// The largest MTU that every version of the gve driver accepts: a receive buffer of 2048 bytes without the Ethernet
/// header and 2 bytes of padding. Versions with larger buffers accept more.
const GVE_MTU: u32 = 2048 - 14 - 2;
