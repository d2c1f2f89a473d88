//! The reasons for which an XDP program is refused, and the remedy for each.

use std::fmt;

/// A reason for which a native program, or any, is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The driver supports no native program.
    NoNative,
    /// The driver supports no program on the card.
    NoOffload,
    /// A veth has fewer receive queues than its peer has transmit queues.
    FewQueues {
        /// The receive queues.
        rx: Option<u32>,
        /// The number to raise them to; `None` where they cannot be raised enough.
        raise_to: Option<u32>,
        /// The peer's name, if it is in the same namespace.
        peer: Option<String>,
    },
    /// The MTU is too large.
    Mtu {
        /// The largest for native programs.
        largest: u32,
    },
    /// More than half of the queues are in use, and a native program needs one more for each.
    Queues {
        /// The most that leave room.
        most: u32,
        /// Whether the driver has separate queues for receiving and sending.
        separate: bool,
    },
    /// The driver has separate queues for receiving and sending, which have to be combined.
    SeparateQueues {
        /// The number of combined queues.
        combined: u32,
    },
    /// Large receive offload is on.
    Lro,
    /// Receive merging on the card is on.
    HardwareGro,
    /// A virtio card's host merges packets or leaves out checksums, and gives the guest no way to end that.
    HostOffloads,
    /// The interface above has an XDP program.
    FilteredMaster(String),
    /// The interface has another XDP program.
    OtherProgram {
        /// The kernel's id.
        id: u32,
        /// The name.
        name: String,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNative => out.write_str("the driver supports no native XDP"),
            Self::NoOffload => out.write_str("the driver supports no XDP on the card"),
            Self::FewQueues { rx, .. } => {
                let rx = rx.map_or_else(|| "its".to_owned(), |rx| format!("the {rx}"));
                write!(
                    out,
                    "its peer has more transmit queues than {rx} receive queues of this end"
                )
            }
            Self::Mtu { largest } => write!(out, "the MTU is larger than {largest}"),
            Self::Queues { most, .. } => write!(
                out,
                "native XDP needs a second transmit queue for each queue, which leaves at most {most} queues"
            ),
            Self::SeparateQueues { .. } => {
                out.write_str("the queues for receiving and sending are not combined")
            }
            Self::Lro => out.write_str("large receive offload (LRO) is on"),
            Self::HardwareGro => out.write_str("receive merging on the card (rx-gro-hw) is on"),
            Self::HostOffloads => out.write_str(
                "the virtual machine's host merges packets or leaves out checksums, and the guest cannot end that",
            ),
            Self::FilteredMaster(master) => write!(
                out,
                "{master}, of which it is a part, has an XDP program, beside which the kernel allows none here"
            ),
            Self::OtherProgram { id, name } => {
                write!(out, "it has another XDP program, id {id} ({name})")
            }
        }
    }
}

impl Obstacle {
    /// The remedy for an interface: a command in backticks where a command removes the obstacle.
    pub fn remedy(&self, interface: &str) -> Option<String> {
        Some(match self {
            Self::NoNative | Self::NoOffload | Self::Queues { most: 0, .. } => return None,
            Self::FewQueues {
                raise_to: Some(queues),
                ..
            } => format!("`ethtool -L {interface} rx {queues}`"),
            Self::FewQueues {
                rx,
                peer: Some(peer),
                ..
            } => format!("`ethtool -L {peer} tx {}`", rx.unwrap_or(1)),
            Self::FewQueues { rx, .. } => format!(
                "`ethtool -L PEER tx {}` in the network namespace of the peer",
                rx.unwrap_or(1)
            ),
            Self::Mtu { largest } => format!("`ip link set {interface} mtu {largest}`"),
            Self::Queues {
                most,
                separate: false,
            } => format!("`ethtool -L {interface} combined {most}`"),
            Self::Queues { most, .. } => format!("`ethtool -L {interface} rx {most} tx {most}`"),
            Self::SeparateQueues { combined } => {
                format!("`ethtool -L {interface} rx 0 tx 0 combined {combined}`")
            }
            Self::Lro => format!("`ethtool -K {interface} lro off`"),
            Self::HardwareGro => format!("`ethtool -K {interface} rx-gro-hw off`"),
            Self::HostOffloads => {
                "the host has to offer control over offloads (QEMU: `ctrl_guest_offloads=on`), or to switch the offloads off".to_owned()
            }
            Self::FilteredMaster(master) => {
                format!("filter {master} alone, or `ip link set dev {master} xdp off`")
            }
            Self::OtherProgram { .. } => {
                format!("`ip link set dev {interface} xdp off`, or stop the process that attached it")
            }
        })
    }
}
