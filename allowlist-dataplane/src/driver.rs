//! Predicts from facts about a driver the mode in which the filter will attach to its interface. Pure.
//!
//! Invariant: a prediction follows from facts that the kernel reports and from conditions in the driver's code
//! (`conditions`). If these are not sufficient, the prediction is [`Prediction::DriverDecides`].

mod conditions;
mod netdev;
mod obstacle;
mod read;

#[cfg(test)]
mod tests;

use std::fmt;

use serde::Serialize;

use crate::XdpMode;
use crate::attach_mode::AttachModeRequest;

pub use self::obstacle::Obstacle;
pub use self::read::read;

/// The largest MTU, in bytes, whose frames fit into one receive buffer of every driver.
const ORDINARY_MTU: u32 = 1500;

/// The facts about an interface and its driver that decide whether a native program attaches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Driver {
    /// The interface's name.
    pub interface: String,
    /// The name of the driver, or of the kind of a virtual interface, such as `ena` or `veth`; `None` if the kernel
    /// reports neither.
    pub name: Option<String>,
    /// The XDP features of the driver; `None` on a kernel before Linux 6.3, which does not report them.
    pub xdp: Option<XdpFeatures>,
    /// The MTU of the interface, in bytes.
    pub mtu: u32,
    /// The size of a page of memory, in bytes.
    pub page_size: u32,
    /// The numbers of receive and transmit queues; `None` if the driver does not report them.
    pub channels: Option<Channels>,
    /// Whether large receive offload is on, by which the card merges packets; false if this is not reported.
    pub lro: bool,
    /// Whether hardware GRO (`rx-gro-hw`) is on, by which the card merges packets reversibly; false if this is not
    /// reported.
    pub hardware_gro: bool,
    /// The features that a virtio card has negotiated, by bit; `None` for other cards, or if they cannot be read.
    pub virtio: Option<u64>,
    /// The other end of a veth; `None` for other interfaces, or if it is in another network namespace.
    pub peer: Option<Peer>,
    /// The name of the interface's master, such as a bridge, if the master has an XDP program; `None` if it has none,
    /// or if the interface has no master.
    pub filtered_master: Option<String>,
    /// The XDP program that is attached to the interface; `None` if there is none.
    pub program: Option<Program>,
}

/// `NETDEV_XDP_ACT_*` of the kernel's `linux/netdev.h`: the parts of XDP that a driver supports with its present settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    /// The driver supports native programs that pass and drop packets.
    pub const BASIC: u64 = 1 << 0;
    /// The driver supports programs on the network card.
    pub const OFFLOAD: u64 = 1 << 4;
    /// The driver supports native programs for packets in several buffers (multi-buffer XDP).
    pub const FRAGMENTS: u64 = 1 << 5;

    const fn has(self, feature: u64) -> bool {
        self.0 & feature != 0
    }
}

/// The numbers of an interface's queues, as `ethtool -l` shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// The number of receive-only queues.
    pub rx: u32,
    /// The maximum number of receive-only queues.
    pub rx_max: u32,
    /// The number of transmit-only queues.
    pub tx: u32,
    /// The maximum number of transmit-only queues.
    pub tx_max: u32,
    /// The number of combined queues, which receive and transmit.
    pub combined: u32,
    /// The maximum number of combined queues.
    pub combined_max: u32,
}

/// The other end of a veth, in the same network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The name of the peer interface.
    pub name: String,
    /// The number of the peer's transmit queues; `None` if it is not reported.
    pub tx: Option<u32>,
}

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The kernel's id of the program.
    pub id: u32,
    /// The name of the program; `None` if this process may not read it.
    pub name: Option<String>,
    /// The mode of the program; `None` if programs are attached in several modes.
    pub mode: Option<XdpMode>,
    /// Whether the program has the name of the filter's XDP program.
    pub is_filter: bool,
}

/// The expected result of attaching the filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// The filter is attached already, in this mode; `None` if programs are attached in several modes.
    Attached(Option<XdpMode>),
    /// The filter will attach in this mode.
    Attaches(XdpMode),
    /// The filter will attach in native mode, and the driver restarts the link for that.
    AttachesAfterReset,
    /// The filter will attach in generic mode, because of this obstacle to native mode.
    FallsBack(Obstacle),
    /// The filter will not attach, because of this obstacle.
    Fails(Obstacle),
    /// The known facts do not decide in which mode the filter attaches, for this reason.
    DriverDecides(Undecided),
}

/// The reason why the mode of the filter cannot be predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// The kernel does not report XDP features.
    FeaturesUnknown,
    /// The driver has conditions that this program does not know.
    Conditions,
    /// Packets may be longer than one receive buffer, and the driver supports no multi-buffer XDP.
    LongPackets,
    /// This process may not read whether the program on the interface is the filter's.
    ProgramUnknown,
}

impl Driver {
    /// Predicts the result of attaching the filter with this configured mode.
    pub fn predict(&self, wanted: AttachModeRequest) -> Prediction {
        if let Some(program) = &self.program {
            let fits = program.mode.is_none_or(|mode| wanted.fits(mode));
            match &program.name {
                _ if program.is_filter && fits => return Prediction::Attached(program.mode),
                _ if program.is_filter => {} // a start attaches it in the other mode
                Some(name) => {
                    return Prediction::Fails(Obstacle::OtherProgram {
                        id: program.id,
                        name: name.clone(),
                        mode: program.mode,
                    });
                }
                None => return Prediction::DriverDecides(Undecided::ProgramUnknown),
            }
        }
        if let Some(master) = &self.filtered_master {
            return Prediction::Fails(Obstacle::FilteredMaster(master.clone()));
        }
        match wanted {
            AttachModeRequest::Generic => Prediction::Attaches(XdpMode::Generic),
            AttachModeRequest::Offload => match self.xdp {
                Some(features) if features.has(XdpFeatures::OFFLOAD) => {
                    Prediction::DriverDecides(Undecided::Conditions)
                }
                Some(_) => Prediction::Fails(Obstacle::NoOffload),
                None => Prediction::DriverDecides(Undecided::FeaturesUnknown),
            },
            AttachModeRequest::Auto => match self.obstacle() {
                Some(obstacle) => Prediction::FallsBack(obstacle),
                None => self.native(),
            },
            AttachModeRequest::Native => match self.obstacle() {
                Some(obstacle) => Prediction::Fails(obstacle),
                None => self.native(),
            },
        }
    }

    /// Returns the prediction for native mode if no obstacle is known.
    fn native(&self) -> Prediction {
        let conditions = self.conditions();
        let Some(features) = self.xdp else {
            return Prediction::DriverDecides(Undecided::FeaturesUnknown);
        };
        if !conditions.complete {
            return Prediction::DriverDecides(Undecided::Conditions);
        }
        let is_long = self.mtu > conditions.largest_mtu(self).unwrap_or(ORDINARY_MTU);
        if is_long && !features.has(XdpFeatures::FRAGMENTS) {
            return Prediction::DriverDecides(Undecided::LongPackets);
        }
        if conditions.resets {
            Prediction::AttachesAfterReset
        } else {
            Prediction::Attaches(XdpMode::Native)
        }
    }

    /// Returns whether the driver is known to restart the link when the first native program is attached.
    pub fn resets(&self) -> bool {
        self.conditions().resets
    }
}

impl Prediction {
    /// Returns the short form of the prediction.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Attached(Some(XdpMode::Native)) | Self::Attaches(XdpMode::Native) => {
                Outcome::Native
            }
            Self::Attached(Some(XdpMode::Generic))
            | Self::Attaches(XdpMode::Generic)
            | Self::FallsBack(_) => Outcome::Generic,
            Self::Attached(Some(XdpMode::Offload)) | Self::Attaches(XdpMode::Offload) => {
                Outcome::Offload
            }
            Self::AttachesAfterReset => Outcome::NativeAfterReset,
            Self::Fails(_) => Outcome::Fails,
            Self::Attached(None) | Self::DriverDecides(_) => Outcome::Unknown,
        }
    }

    /// Returns the obstacle that the prediction is based on; `None` if there is none.
    pub fn obstacle(&self) -> Option<&Obstacle> {
        match self {
            Self::FallsBack(obstacle) | Self::Fails(obstacle) => Some(obstacle),
            _ => None,
        }
    }
}

/// The short form of a prediction, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The filter will run in native mode.
    Native,
    /// The filter will run in native mode, and the driver restarts the link for that.
    NativeAfterReset,
    /// The filter will run in generic mode.
    Generic,
    /// The filter will run on the network card.
    Offload,
    /// The attach will fail.
    Fails,
    /// The mode is not known before the attach.
    Unknown,
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Native => "native",
            Self::NativeAfterReset => "native, after a link reset",
            Self::Generic => "generic",
            Self::Offload => "offload",
            Self::Fails => "fails",
            Self::Unknown => "not known",
        })
    }
}

impl fmt::Display for Undecided {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::FeaturesUnknown => {
                "the driver decides; its XDP features are unknown, since the kernel is older than Linux 6.3"
            }
            Self::Conditions => "the driver supports XDP, but has conditions that allowlist cannot check",
            Self::LongPackets => {
                "the driver supports no multi-buffer XDP, and decides whether the MTU is too large"
            }
            Self::ProgramUnknown => {
                "an XDP program is attached, and only root can read whether it is the filter"
            }
        })
    }
}
