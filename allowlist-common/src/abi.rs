//! What the maps hold: their names, their values, their sizes.
//!
//! A change of anything here that an older program or an older loader would misread raises
//! [`VERSION`], which is part of the pin path, so that two versions never share a map.

use crate::packet::TCP;
use crate::verdict::{Reason, Verdict};

/// The version of everything in this module.
pub const VERSION: u32 = 1;

/// The XDP program's name in the object file and in the kernel.
pub const PROGRAM: &str = "allowlist";

/// Array of one `u64`: the [`Control`] word.
pub const CONTROL: &str = "CONTROL";
/// Two slots of an array of one [`ServiceTable`].
pub const SERVICES: &str = "SERVICES";
/// Two slots of a trie from IPv4 prefixes to [`Grant`]s.
pub const SOURCES_V4: &str = "SOURCES_V4";
/// Two slots of a trie from IPv6 prefixes to [`Grant`]s.
pub const SOURCES_V6: &str = "SOURCES_V6";
/// Per-CPU array of [`Counters`], by interface slot.
pub const COUNTERS: &str = "COUNTERS";
/// Per-CPU array of [`Traffic`], by match id.
pub const MATCHES: &str = "MATCHES";
/// Array of [`Interface`], by interface slot. Userspace alone reads and writes it.
pub const INTERFACES: &str = "INTERFACES";

/// Every map that outlives the program that made it, and is pinned under its name.
pub const PINNED: [&str; 7] = [
    CONTROL, SERVICES, SOURCES_V4, SOURCES_V6, COUNTERS, MATCHES, INTERFACES,
];

/// Load-time constant, `u32`: the slot of the interface that this copy of the program serves.
pub const GLOBAL_INTERFACE: &str = "INTERFACE";
/// Load-time constant, `u8`: 1 makes the program log a line a packet.
pub const GLOBAL_TRACE: &str = "TRACE";

/// Generations that the maps have room for: the one in use and the one being filled.
pub const SLOTS: u32 = 2;
/// The most services, since a set of them is one `u64`.
pub const MAX_SERVICES: usize = 64;
/// The most interfaces that one set of maps serves.
pub const MAX_INTERFACES: u32 = 64;
/// The most match ids. Id 0 is nobody's.
pub const MAX_MATCHES: u32 = 4096;

/// A service's number in the kernel: 0 is no service, `n` is bit `n - 1` of a set.
pub type ServiceId = u8;

/// The set of one service; empty for 0 and for what cannot be a service.
pub const fn service_set(id: ServiceId) -> u64 {
    if id == 0 || id as usize > MAX_SERVICES {
        0
    } else {
        1 << (id - 1)
    }
}

/// One word that says which generation is in force and how: stored whole, read once a packet,
/// so a packet sees the old policy or the new one and never a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Counts publishes; 0 before the first.
    pub generation: u32,
    /// The slot that holds the generation.
    pub slot: u32,
    /// For traffic that no service covers.
    pub default_verdict: Verdict,
    /// Decide and count, but let everything pass.
    pub observe: bool,
}

impl Control {
    const SLOT: u64 = 1;
    const DEFAULT_DROP: u64 = 1 << 1;
    const OBSERVE: u64 = 1 << 2;

    /// The word.
    pub const fn encode(self) -> u64 {
        let mut word = ((self.generation as u64) << 32) | (self.slot as u64 & Self::SLOT);
        if matches!(self.default_verdict, Verdict::Drop) {
            word |= Self::DEFAULT_DROP;
        }
        if self.observe {
            word |= Self::OBSERVE;
        }
        word
    }

    /// What a word means.
    #[inline(always)]
    pub const fn decode(word: u64) -> Self {
        Self {
            generation: (word >> 32) as u32,
            slot: (word & Self::SLOT) as u32,
            default_verdict: if word & Self::DEFAULT_DROP == 0 {
                Verdict::Pass
            } else {
                Verdict::Drop
            },
            observe: word & Self::OBSERVE != 0,
        }
    }
}

/// What a source may reach, and the id to count it under.
///
/// The set is two words since a trie's value has the alignment of its key, 4 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Grant {
    low: u32,
    high: u32,
    /// Index into [`MATCHES`].
    pub matched: u32,
}

impl Grant {
    /// A grant of a set of services.
    pub const fn new(services: u64, matched: u32) -> Self {
        Self {
            low: services as u32,
            high: (services >> 32) as u32,
            matched,
        }
    }

    /// The set of services.
    #[inline(always)]
    pub const fn services(self) -> u64 {
        (self.high as u64) << 32 | self.low as u64
    }
}

/// What each protocol and port belongs to, one load for each question.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ServiceTable {
    /// By TCP destination port.
    pub tcp: [ServiceId; 1 << 16],
    /// By UDP destination port.
    pub udp: [ServiceId; 1 << 16],
    /// By protocol number, for protocols without ports.
    pub protocol: [ServiceId; 1 << 8],
    /// By protocol number: all services that cover any of it. Judges fragments without ports.
    pub any_of_protocol: [u64; 1 << 8],
}

#[expect(
    clippy::large_stack_arrays,
    reason = "a constant, which is copied to where it is boxed"
)]
impl ServiceTable {
    /// A table in which no service covers anything. A constant: never on a stack.
    pub const EMPTY: Self = Self {
        tcp: [0; 1 << 16],
        udp: [0; 1 << 16],
        protocol: [0; 1 << 8],
        any_of_protocol: [0; 1 << 8],
    };

    /// The service that covers a destination port of TCP or, for any other `protocol`, UDP.
    #[inline(always)]
    pub const fn of_port(&self, protocol: u8, port: u16) -> ServiceId {
        if protocol == TCP {
            self.tcp[port as usize]
        } else {
            self.udp[port as usize]
        }
    }
}

/// Packets by verdict and reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    packets: [[u64; Reason::ALL.len()]; Verdict::ALL.len()],
}

impl Counters {
    /// Nothing counted.
    pub const ZERO: Self = Self {
        packets: [[0; Reason::ALL.len()]; Verdict::ALL.len()],
    };

    /// How many packets had that end.
    pub const fn get(&self, verdict: Verdict, reason: Reason) -> u64 {
        self.packets[verdict as usize][reason as usize]
    }

    /// Where to count packets of that end.
    #[inline(always)]
    pub const fn cell(&mut self, verdict: Verdict, reason: Reason) -> &mut u64 {
        &mut self.packets[verdict as usize][reason as usize]
    }
}

/// What passed under one match id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Traffic {
    /// Frames.
    pub packets: u64,
    /// Bytes of frames, link-layer header included.
    pub bytes: u64,
}

/// An interface that the filter is, or was, attached to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Interface {
    /// The kernel's index of it; 0 marks a free slot.
    pub index: u32,
    /// The attach mode in force: 1 native, 2 generic, 3 offload.
    pub attach_mode: u32,
    /// Zero-padded.
    pub name: [u8; 16],
}

#[cfg(feature = "user")]
mod user {
    use super::{Counters, Grant, Interface, ServiceTable, Traffic};

    macro_rules! plain_old_data {
        ($($value:ty),*) => {$(
            // SAFETY: `#[repr(C)]`, integers and arrays of them only, so no bit pattern is
            // invalid; without padding, since the test below holds the sizes.
            #[expect(unsafe_code, reason = "aya asks for a promise about the memory layout")]
            unsafe impl aya::Pod for $value {}
        )*};
    }

    plain_old_data!(Counters, Grant, Interface, ServiceTable, Traffic);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout is what older pins hold: a new size means a new `VERSION`.
    #[test]
    fn sizes() {
        assert_eq!(VERSION, 1);
        assert_eq!(size_of::<Grant>(), 12);
        assert_eq!(size_of::<ServiceTable>(), 2 * 65536 + 256 + 8 * 256);
        assert_eq!(size_of::<Counters>(), 8 * 20);
        assert_eq!(size_of::<Traffic>(), 16);
        assert_eq!(size_of::<Interface>(), 24);
    }

    #[test]
    fn control_words() {
        for generation in [0, 1, u32::MAX] {
            for slot in [0, 1] {
                for default_verdict in Verdict::ALL {
                    for observe in [false, true] {
                        let control = Control {
                            generation,
                            slot,
                            default_verdict,
                            observe,
                        };
                        assert_eq!(Control::decode(control.encode()), control);
                    }
                }
            }
        }
    }

    #[test]
    fn grants_keep_all_64_services() {
        for services in [0, 1, 1 << 31, 1 << 32, 1 << 63, u64::MAX] {
            assert_eq!(Grant::new(services, 7).services(), services);
        }
    }

    #[test]
    fn sets_of_one_service() {
        assert_eq!(service_set(0), 0);
        assert_eq!(service_set(1), 1);
        assert_eq!(service_set(64), 1 << 63);
        assert_eq!(service_set(65), 0);
    }
}
