//! The reasons why the kernel or a driver refuses an XDP program, with a remedy for each.

use std::fmt;

use crate::attach::{XdpMode, off_command};

/// The reason why an interface refuses a native XDP program, or any XDP program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The driver supports no native XDP programs.
    NoNative,
    /// The driver supports no XDP programs on the network card.
    NoOffload,
    /// A veth has fewer receive queues than its peer has transmit queues.
    FewQueues {
        /// The number of the veth's receive queues; `None` if it is not reported.
        rx: Option<u32>,
        /// The sufficient number of receive queues; `None` if the veth's maximum is lower.
        raise_to: Option<u32>,
        /// The name of the peer; `None` if the peer is in another network namespace.
        peer: Option<String>,
    },
    /// The MTU of the interface is too large for a native program.
    Mtu {
        /// The largest MTU for native programs, in bytes.
        largest: u32,
    },
    /// More than half of the queues are in use, and a native program needs a spare queue for each queue in use.
    Queues {
        /// The largest number of queues in use that leaves enough spare queues.
        most: u32,
        /// Whether the driver has separate receive and transmit queues.
        separate: bool,
    },
    /// The driver has separate receive and transmit queues, and requires combined ones.
    SeparateQueues {
        /// The number of combined queues that the remedy sets.
        combined: u32,
    },
    /// Large receive offload is on, by which the card merges received packets.
    Lro,
    /// Hardware GRO is on, by which the card merges received packets.
    HardwareGro,
    /// The host of a virtio card merges packets or omits checksums, and does not let the guest turn this off.
    HostOffloads,
    /// The master of the interface, with this name, has an XDP program.
    FilteredMaster(String),
    /// The interface has another XDP program.
    OtherProgram {
        /// The kernel's id of the program.
        id: u32,
        /// The name of the program.
        name: String,
        /// The mode of the program; `None` if programs are attached in several modes.
        mode: Option<XdpMode>,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNative => out.write_str("the driver supports no native XDP"),
            Self::NoOffload => out.write_str("the driver supports no XDP on the card"),
            Self::FewQueues { rx, .. } => {
                out.write_str("the peer has more transmit queues than this end has receive queues")?;
                rx.map_or(Ok(()), |rx| write!(out, " ({rx})"))
            }
            Self::Mtu { largest } => write!(out, "the MTU of the interface is larger than {largest}"),
            Self::Queues { most, .. } => write!(
                out,
                "native XDP needs a spare transmit queue for each queue in use, so at most {most} queues can be in use"
            ),
            Self::SeparateQueues { .. } => {
                out.write_str("the receive and transmit queues are not combined")
            }
            Self::Lro => out.write_str("large receive offload (LRO) is on"),
            Self::HardwareGro => out.write_str("hardware GRO (rx-gro-hw) is on"),
            Self::HostOffloads => out.write_str(
                "the host of this virtual machine merges packets or omits checksums, and the guest cannot turn this off",
            ),
            Self::FilteredMaster(master) => write!(
                out,
                "the master {master} has an XDP program, so the kernel allows none on its members"
            ),
            Self::OtherProgram { id, name, .. } => {
                write!(out, "another XDP program is attached to the interface: {name}, id {id}")
            }
        }
    }
}

impl Obstacle {
    /// Returns the remedy for an interface, with a command in backticks if a command removes the obstacle; `None` if
    /// there is none.
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
                "on the virtual machine's host, enable control of offloads (QEMU: `ctrl_guest_offloads=on`), or turn the offloads off".to_owned()
            }
            Self::FilteredMaster(master) => {
                format!("filter {master} alone, or {}", off_command(master, None))
            }
            Self::OtherProgram { mode, .. } => format!(
                "{}, or stop the process that attached it",
                off_command(interface, *mode)
            ),
        })
    }
}
