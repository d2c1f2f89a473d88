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
    /// Nobody has confirmed it yet: [`super::Fallback`] says until when it holds.
    pub pending: bool,
    /// Everything passes, whatever the tables hold, and counts as what no service covers.
    pub open: bool,
    /// What sources are looked up in.
    pub lookup: Engine,
}

/// Which of the tables of a generation has its prefixes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// The range table ([`crate::ranges`]).
    #[default]
    RangeTable = 0,
    /// The kernel's longest-prefix-match tries.
    LpmTrie = 1,
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
    const SLOT: u64 = 0b11;
    const DEFAULT_DROP: u64 = 1 << 2;
    const OBSERVE: u64 = 1 << 3;
    const RETURN_TRAFFIC_SHIFT: u32 = 4;
    const RETURN_TRAFFIC: u64 = 0b11;
    const PENDING: u64 = 1 << 6;
    const OPEN: u64 = 1 << 7;
    const KEEP_SHIFT: u32 = 8;
    const LPM_TRIE: u64 = 1 << 16;

    /// Before the first publish.
    pub const NONE: Self = Self::decode(0);

    /// Whether there is more to know of a word than what it says: one test of a word, for every packet.
    #[inline(always)]
    pub const fn is_provisional(word: u64) -> bool {
        word & (Self::PENDING | Self::OPEN) != 0
    }

    /// The word.
    pub const fn encode(self) -> u64 {
        let mut word = ((self.generation as u64) << 32) | (self.slot as u64 & Self::SLOT);
        if matches!(self.default_verdict, Verdict::Drop) {
            word |= Self::DEFAULT_DROP;
        }
        if self.observe {
            word |= Self::OBSERVE;
        }
        if self.pending {
            word |= Self::PENDING;
        }
        if self.open {
            word |= Self::OPEN;
        }
        if matches!(self.lookup, Engine::LpmTrie) {
            word |= Self::LPM_TRIE;
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
            pending: word & Self::PENDING != 0,
            open: word & Self::OPEN != 0,
            lookup: if word & Self::LPM_TRIE == 0 {
                Engine::RangeTable
            } else {
                Engine::LpmTrie
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each part alone and with all others: a word keeps them apart.
    #[test]
    fn control_words() {
        let all = Control {
            generation: u32::MAX,
            slot: 2,
            default_verdict: Verdict::Drop,
            observe: true,
            return_traffic: ReturnTraffic::Track,
            keep: Keep::ALL,
            pending: true,
            open: true,
            lookup: Engine::LpmTrie,
        };
        let none = Control::NONE;
        assert_eq!(Control::decode(all.encode()), all);
        assert_eq!(none.encode(), 0);
        let parts: [fn(&mut Control, Control); 9] = [
            |to, from| to.generation = from.generation,
            |to, from| to.slot = from.slot,
            |to, from| to.default_verdict = from.default_verdict,
            |to, from| to.observe = from.observe,
            |to, from| to.return_traffic = from.return_traffic,
            |to, from| to.keep = from.keep,
            |to, from| to.pending = from.pending,
            |to, from| to.open = from.open,
            |to, from| to.lookup = from.lookup,
        ];
        for part in parts {
            for (base, other) in [(none, all), (all, none)] {
                let mut control = base;
                part(&mut control, other);
                assert_ne!(control, base);
                assert_eq!(Control::decode(control.encode()), control);
            }
        }
        for return_traffic in [ReturnTraffic::Off, ReturnTraffic::Established] {
            let control = Control {
                return_traffic,
                ..all
            };
            assert_eq!(Control::decode(control.encode()), control);
        }
    }

    #[test]
    fn what_is_provisional() {
        let plain = Control {
            pending: false,
            open: false,
            ..Control::decode(u64::MAX)
        };
        assert!(!Control::is_provisional(plain.encode()));
        for (pending, open) in [(true, false), (false, true)] {
            let control = Control {
                pending,
                open,
                ..Control::NONE
            };
            assert!(Control::is_provisional(control.encode()));
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
