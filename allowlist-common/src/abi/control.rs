//! The control word: which generation is in force and how, in 64 bits.
//!
//! Invariant: it is stored whole and read once a packet, so a packet sees the old policy or the new
//! one and never a mixture; a change of any part of it is one atomic store.

use crate::verdict::Verdict;

/// What a packet is judged under, besides the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a bit of the word, and independent of the others"
)]
pub struct Control {
    /// Counts publishes; 0 before the first.
    pub generation: u32,
    /// The slot that holds the generation; before the first, one that does not exist.
    pub slot: u32,
    /// For traffic that no service covers.
    pub default_verdict: Verdict,
    /// Decide and count, but let everything pass.
    pub observe: bool,
    /// What is let in as an answer to this host where the default verdict is to drop.
    pub return_traffic: ReturnTraffic,
    /// What passes whatever the policy says.
    pub exemptions: Exemptions,
    /// Nobody has confirmed it yet: [`super::Fallback`] says until when it holds.
    pub pending: bool,
    /// Everything passes, whatever the tables hold, and counts as what no service covers.
    pub open: bool,
    /// What sources are looked up in.
    pub lookup: Engine,
    /// Some service covers ports from which this host connects, so tracked answers pass there too:
    /// [`super::ServiceTable::shared`].
    pub shares_ports: bool,
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
pub struct Exemptions(u8);

impl Exemptions {
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

/// The control word itself, to be asked for a part where that is used: a kernel program that took it apart at once would
/// run out of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlBits(pub u64);

impl ControlBits {
    const SLOT: u64 = 0b11;
    const DEFAULT_DROP: u64 = 1 << 2;
    const OBSERVE: u64 = 1 << 3;
    const ESTABLISHED: u64 = 1 << 4;
    const TRACK: u64 = 1 << 5;
    const PENDING: u64 = 1 << 6;
    const OPEN: u64 = 1 << 7;
    const EXEMPTIONS_SHIFT: u32 = 8;
    const LPM_TRIE: u64 = 1 << 16;
    const SHARES_PORTS: u64 = 1 << 17;
    /// Follows from the others, so that one test for every packet finds that flows are marked as foreign.
    const MARKS: u64 = 1 << 18;

    #[inline(always)]
    const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    /// Whether it says all that there is to know, and sources are looked up in the range table, as on nearly every
    /// host at nearly every time: one test, for every packet.
    #[inline(always)]
    pub const fn allows_fast_path(self) -> bool {
        !self.has(Self::PENDING | Self::OPEN | Self::LPM_TRIE | Self::SHARES_PORTS | Self::MARKS)
    }

    /// Whether there is more to know of it than what it says.
    #[inline(always)]
    pub const fn is_pending_or_open(self) -> bool {
        self.has(Self::PENDING | Self::OPEN)
    }

    /// As [`Control::open`].
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.has(Self::OPEN)
    }

    /// As [`Control::shares_ports`].
    #[inline(always)]
    pub const fn shares_ports(self) -> bool {
        self.has(Self::SHARES_PORTS)
    }

    /// As [`Control::observe`].
    #[inline(always)]
    pub const fn observes(self) -> bool {
        self.has(Self::OBSERVE)
    }

    /// As [`Control::slot`].
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        // Counted from 1, so that a word that nobody has written names none.
        ((self.0 & Self::SLOT) as u32).wrapping_sub(1)
    }

    /// As [`Control::default_verdict`].
    #[inline(always)]
    pub const fn default_verdict(self) -> Verdict {
        if self.has(Self::DEFAULT_DROP) {
            Verdict::Drop
        } else {
            Verdict::Pass
        }
    }

    /// Whether [`Control::return_traffic`] is [`ReturnTraffic::Track`].
    #[inline(always)]
    pub const fn tracks(self) -> bool {
        self.has(Self::TRACK)
    }

    /// Whether it is [`ReturnTraffic::Established`].
    #[inline(always)]
    pub const fn passes_established(self) -> bool {
        self.has(Self::ESTABLISHED)
    }

    /// Whether [`Control::exemptions`] has all of a set.
    #[inline(always)]
    pub const fn exempts(self, exemption: Exemptions) -> bool {
        self.exemptions().has(exemption)
    }

    #[inline(always)]
    const fn exemptions(self) -> Exemptions {
        Exemptions((self.0 >> Self::EXEMPTIONS_SHIFT) as u8)
    }

    /// As [`Control::lookup`].
    #[inline(always)]
    pub const fn lookup(self) -> Engine {
        if self.has(Self::LPM_TRIE) {
            Engine::LpmTrie
        } else {
            Engine::RangeTable
        }
    }
}

impl Control {
    /// Before the first publish.
    pub const NONE: Self = Self::decode(0);

    /// The word.
    pub const fn encode(self) -> u64 {
        let mut word = ((self.generation as u64) << 32)
            | (self.slot.wrapping_add(1) as u64 & ControlBits::SLOT);
        if matches!(self.default_verdict, Verdict::Drop) {
            word |= ControlBits::DEFAULT_DROP;
        }
        if self.observe {
            word |= ControlBits::OBSERVE;
        }
        if self.pending {
            word |= ControlBits::PENDING;
        }
        if self.open {
            word |= ControlBits::OPEN;
        }
        if matches!(self.lookup, Engine::LpmTrie) {
            word |= ControlBits::LPM_TRIE;
        }
        if self.shares_ports {
            word |= ControlBits::SHARES_PORTS;
        }
        if self.observe && matches!(self.return_traffic, ReturnTraffic::Track) {
            word |= ControlBits::MARKS;
        }
        word |= match self.return_traffic {
            ReturnTraffic::Off => 0,
            ReturnTraffic::Established => ControlBits::ESTABLISHED,
            ReturnTraffic::Track => ControlBits::TRACK,
        };
        word | (self.exemptions.0 as u64) << ControlBits::EXEMPTIONS_SHIFT
    }

    /// What a word means.
    pub const fn decode(word: u64) -> Self {
        let word = ControlBits(word);
        Self {
            generation: (word.0 >> 32) as u32,
            slot: word.slot(),
            default_verdict: word.default_verdict(),
            observe: word.observes(),
            return_traffic: if word.tracks() {
                ReturnTraffic::Track
            } else if word.passes_established() {
                ReturnTraffic::Established
            } else {
                ReturnTraffic::Off
            },
            exemptions: word.exemptions(),
            pending: word.has(ControlBits::PENDING),
            open: word.is_open(),
            lookup: word.lookup(),
            shares_ports: word.shares_ports(),
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
            exemptions: Exemptions::ALL,
            pending: true,
            open: true,
            lookup: Engine::LpmTrie,
            shares_ports: true,
        };
        let none = Control::NONE;
        assert_eq!(Control::decode(all.encode()), all);
        assert_eq!(none.encode(), 0);
        let parts: [fn(&mut Control, Control); 10] = [
            |to, from| to.generation = from.generation,
            |to, from| to.slot = from.slot,
            |to, from| to.default_verdict = from.default_verdict,
            |to, from| to.observe = from.observe,
            |to, from| to.return_traffic = from.return_traffic,
            |to, from| to.exemptions = from.exemptions,
            |to, from| to.pending = from.pending,
            |to, from| to.open = from.open,
            |to, from| to.lookup = from.lookup,
            |to, from| to.shares_ports = from.shares_ports,
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
        assert!(
            !ControlBits(plain.encode()).is_pending_or_open()
                && !ControlBits(plain.encode()).allows_fast_path()
        );
        assert!(ControlBits(Control::NONE.encode()).allows_fast_path());
        for (pending, open) in [(true, false), (false, true)] {
            let control = Control {
                pending,
                open,
                ..Control::NONE
            };
            assert!(
                ControlBits(control.encode()).is_pending_or_open()
                    && !ControlBits(control.encode()).allows_fast_path()
            );
        }
    }

    /// Packets take the longer way where it may have to mark their flows.
    #[test]
    fn what_marks_flows_is_not_plain() {
        let observing = Control {
            observe: true,
            ..Control::NONE
        };
        let tracking = Control {
            return_traffic: ReturnTraffic::Track,
            ..Control::NONE
        };
        let both = Control {
            observe: true,
            ..tracking
        };
        let sharing = Control {
            shares_ports: true,
            ..tracking
        };
        let allows_fast_path = |control: Control| ControlBits(control.encode()).allows_fast_path();
        assert!(allows_fast_path(observing) && allows_fast_path(tracking));
        assert!(!allows_fast_path(both) && !allows_fast_path(sharing));
    }

    #[test]
    fn what_is_kept_is_a_set() {
        let some = Exemptions::NONE
            .set(Exemptions::ARP, true)
            .set(Exemptions::DHCP, true);
        assert!(
            some.has(Exemptions::ARP)
                && some.has(Exemptions::DHCP)
                && !some.has(Exemptions::MULTICAST)
        );
        assert_eq!(some.set(Exemptions::DHCP, false), Exemptions::ARP);
        assert!(Exemptions::ALL.has(some) && Exemptions::ALL.has(Exemptions::NOT_IP));
    }
}
