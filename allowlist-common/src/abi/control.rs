//! The control word: which generation is in force and how, in 64 bits.
//!
//! Invariant: it is stored whole and read once a packet, so a packet sees the old policy or the new
//! one and never a mixture; a change of any part of it is one atomic store.

use crate::verdict::Verdict;

/// What a packet is judged under, besides the tables.
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
    /// What is let in as an answer to this host where the default verdict is to drop.
    pub return_traffic: ReturnTraffic,
    /// What passes whatever the policy says.
    pub keep: Keep,
}

/// Which answers to this host's own traffic pass where no service covers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReturnTraffic {
    /// None.
    #[default]
    Off = 0,
    /// TCP segments that do not open a connection, whoever sends them.
    Established = 1,
    /// What belongs to a flow that this host was seen to send.
    Track = 2,
}

/// A set of the exceptions that keep a host on its network. What is not in the set is judged like
/// anything else; frames without IP, which nothing else could judge, are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep(u8);

impl Keep {
    /// ARP.
    pub const ARP: Self = Self(1);
    /// Every other frame that carries no IP, such as LLDP.
    pub const NOT_IP: Self = Self(1 << 1);
    /// IPv6 neighbour and router discovery, from the same link.
    pub const NEIGHBOUR_DISCOVERY: Self = Self(1 << 2);
    /// ICMP and ICMPv6 errors, path MTU included.
    pub const ICMP_ERRORS: Self = Self(1 << 3);
    /// Answers of DHCP and DHCPv6 servers.
    pub const DHCP: Self = Self(1 << 4);
    /// Group membership: IGMP and MLD.
    pub const MULTICAST: Self = Self(1 << 5);
    /// All of them.
    pub const ALL: Self = Self((1 << 6) - 1);
    /// None of them.
    pub const NONE: Self = Self(0);

    /// Whether all of `other` is in the set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The set with `other`, or without it.
    #[must_use]
    pub const fn set(self, other: Self, included: bool) -> Self {
        if included {
            Self(self.0 | other.0)
        } else {
            Self(self.0 & !other.0)
        }
    }
}

impl Control {
    const SLOT: u64 = 1;
    const DEFAULT_DROP: u64 = 1 << 1;
    const OBSERVE: u64 = 1 << 2;
    const RETURN_TRAFFIC_SHIFT: u32 = 3;
    const RETURN_TRAFFIC: u64 = 0b11;
    const KEEP_SHIFT: u32 = 8;

    /// Before the first publish.
    pub const NONE: Self = Self::decode(0);

    /// The word.
    pub const fn encode(self) -> u64 {
        let mut word = ((self.generation as u64) << 32) | (self.slot as u64 & Self::SLOT);
        if matches!(self.default_verdict, Verdict::Drop) {
            word |= Self::DEFAULT_DROP;
        }
        if self.observe {
            word |= Self::OBSERVE;
        }
        word |= (self.return_traffic as u64) << Self::RETURN_TRAFFIC_SHIFT;
        word | (self.keep.0 as u64) << Self::KEEP_SHIFT
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
            return_traffic: match (word >> Self::RETURN_TRAFFIC_SHIFT) & Self::RETURN_TRAFFIC {
                1 => ReturnTraffic::Established,
                2 => ReturnTraffic::Track,
                _ => ReturnTraffic::Off,
            },
            keep: Keep((word >> Self::KEEP_SHIFT) as u8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_words() {
        for generation in [0, 1, u32::MAX] {
            for slot in [0, 1] {
                for default_verdict in Verdict::ALL {
                    for observe in [false, true] {
                        for return_traffic in [
                            ReturnTraffic::Off,
                            ReturnTraffic::Established,
                            ReturnTraffic::Track,
                        ] {
                            for keep in [Keep::NONE, Keep::DHCP, Keep::ALL] {
                                let control = Control {
                                    generation,
                                    slot,
                                    default_verdict,
                                    observe,
                                    return_traffic,
                                    keep,
                                };
                                assert_eq!(Control::decode(control.encode()), control);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_kept_is_a_set() {
        let some = Keep::NONE.set(Keep::ARP, true).set(Keep::DHCP, true);
        assert!(some.has(Keep::ARP) && some.has(Keep::DHCP) && !some.has(Keep::MULTICAST));
        assert_eq!(some.set(Keep::DHCP, false), Keep::ARP);
        assert!(Keep::ALL.has(some) && Keep::ALL.has(Keep::NOT_IP));
    }
}
