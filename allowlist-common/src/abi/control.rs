//! The control word: the active generation and the mode, in 64 bits.
//!
//! Invariant: userspace writes the word with one atomic store, and the kernel program reads it once per packet, so a
//! packet is judged by the old policy or by the new one, never by a mixture.

use crate::verdict::Verdict;
use crate::volatile::{VolatileRef, field};

/// The decoded control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the word"
)]
pub struct Control {
    /// The number of publishes so far; 0 before the first.
    pub generation: u32,
    /// The slot of the active generation; an invalid slot before the first publish.
    pub slot: u32,
    /// The verdict for traffic that no service covers.
    pub default_verdict: Verdict,
    /// Observe mode: packets are judged and counted, and none is dropped.
    pub observe: bool,
    /// Which return traffic passes.
    pub return_traffic: ReturnTraffic,
    /// Essential traffic that passes regardless of the policy.
    pub exemptions: Exemptions,
    /// The active generation is an unconfirmed change. [`super::Fallback`] has its deadline, and the control word that
    /// is effective afterwards. The bit also remains set after the deadline, until userspace stores another word.
    pub pending: bool,
    /// All packets pass regardless of the tables, and are counted with the reason
    /// [`Reason::Default`](crate::verdict::Reason::Default).
    pub open: bool,
    /// The data structure in which source addresses are looked up.
    pub lookup: Engine,
    /// A service covers ports from which this host connects, so tracked answers pass to these ports too:
    /// [`super::InterfaceServices::shared`].
    pub shares_ports: bool,
    /// The settings of the egress policy; `None` without one, so that every call of a program passes.
    pub egress: Option<EgressControl>,
}

/// The egress policy's settings in the control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EgressControl {
    /// Observe mode: calls are judged and counted, and none is refused.
    pub observe: bool,
    /// The verdict for destinations that no rule allows.
    pub default_verdict: Verdict,
    /// The error that a refused program gets.
    pub refusal: Refusal,
}

/// The error that a program gets for a refused call: `errno = "…"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Refusal {
    /// `EPERM`: "Operation not permitted".
    #[default]
    #[cfg_attr(feature = "serde", serde(rename = "EPERM"))]
    NotPermitted = 0,
    /// `EACCES`: "Permission denied".
    #[cfg_attr(feature = "serde", serde(rename = "EACCES"))]
    AccessDenied = 1,
    /// `ECONNREFUSED`: "Connection refused", as from a closed port.
    #[cfg_attr(feature = "serde", serde(rename = "ECONNREFUSED"))]
    ConnectionRefused = 2,
}

impl Refusal {
    /// All errors, in the order of their numbers.
    pub const ALL: [Self; 3] = [
        Self::NotPermitted,
        Self::AccessDenied,
        Self::ConnectionRefused,
    ];

    /// Returns the name of the error, as in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotPermitted => "EPERM",
            Self::AccessDenied => "EACCES",
            Self::ConnectionRefused => "ECONNREFUSED",
        }
    }

    /// Returns the number of the error on Linux.
    #[inline(always)]
    pub const fn errno(self) -> i32 {
        match self {
            Self::NotPermitted => 1,
            Self::AccessDenied => 13,
            Self::ConnectionRefused => 111,
        }
    }
}

/// The data structure in which source addresses are looked up: `lookup = "…"`. Does not affect verdicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub enum Engine {
    /// The range table ([`crate::ranges`]), whose cost does not depend on the source addresses of a flood.
    #[default]
    RangeTable = 0,
    /// The kernel's longest-prefix-match tries: the reference, and the fallback for kernels without the range table.
    LpmTrie = 1,
}

/// The answers to this host's own traffic that pass without a service that allows them: `return_traffic = "…"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "lowercase")
)]
pub enum ReturnTraffic {
    /// No answers pass.
    Off = 0,
    /// TCP segments with ACK or RST pass, from any source address.
    Established = 1,
    /// Packets of flows that this host initiated pass, as recorded by the flow tracker.
    Track = 2,
}

/// A set of the kinds of essential traffic, which a host needs to stay on its network.
///
/// Kinds outside the set are judged by the policy, except frames without IP, which are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemptions(u8);

impl Exemptions {
    /// The kind: ARP.
    pub const ARP: Self = Self(1);
    /// The kind: frames that are neither IP nor ARP, such as LLDP.
    pub const NOT_IP: Self = Self(1 << 1);
    /// The kind: IPv6 neighbour and router discovery from the same link.
    pub const NEIGHBOUR_DISCOVERY: Self = Self(1 << 2);
    /// The kind: ICMP and ICMPv6 errors, including those of path MTU discovery.
    pub const ICMP_ERRORS: Self = Self(1 << 3);
    /// The kind: responses of DHCP and DHCPv6 servers.
    pub const DHCP: Self = Self(1 << 4);
    /// The kind: group membership, IGMP and MLD.
    pub const MULTICAST: Self = Self(1 << 5);
    /// The set of all kinds.
    pub const ALL: Self = Self((1 << 6) - 1);
    /// The empty set.
    pub const NONE: Self = Self(0);

    /// Reports whether the set contains all of `other`.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the set with `other` added if `included`, and removed otherwise.
    #[must_use]
    pub const fn set(self, other: Self, included: bool) -> Self {
        if included {
            Self(self.0 | other.0)
        } else {
            Self(self.0 & !other.0)
        }
    }
}

/// The encoded control word.
///
/// The kernel program reads single bits where it uses them, because decoding the word to [`Control`] at once would need
/// more registers than a BPF program has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlBits(pub u64);

/// The value of the map [`CONTROL`](super::CONTROL).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ControlValue {
    /// The control word, encoded.
    pub control_word: u64,
    /// The time until which drop events are emitted, in nanoseconds of the monotonic clock; 0 without a reader.
    pub events_until: u64,
}

/// The value of the map [`PUBLISHED`](super::PUBLISHED).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PublishedValue {
    /// The control word that userspace stored last, encoded.
    pub control_word: u64,
    /// 1 once `detach` has started, else 0.
    pub is_detached: u64,
}

impl VolatileRef<'_, ControlValue> {
    /// Loads the control word. Called once per packet.
    #[inline(always)]
    pub fn bits(self) -> ControlBits {
        ControlBits(field!(self, control_word).load())
    }

    /// Loads [`ControlValue::events_until`].
    #[inline(always)]
    pub fn events_until(self) -> u64 {
        field!(self, events_until).load()
    }
}

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
    /// The flag for observe mode with flow tracking: packets that only enforce mode would drop mark their flows as
    /// foreign (initiated by the other side).
    ///
    /// Follows from the flags for these two. A flag of its own, so that one test per packet detects the combination.
    const MARKS: u64 = 1 << 18;
    const EGRESS: u64 = 1 << 19;
    const EGRESS_OBSERVE: u64 = 1 << 20;
    const EGRESS_DROP: u64 = 1 << 21;
    const REFUSAL_SHIFT: u32 = 22;
    const REFUSAL: u64 = 0b11 << Self::REFUSAL_SHIFT;

    #[inline(always)]
    const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    /// Reports whether packets may take the fast path. Tested once per packet.
    ///
    /// They may not if a change is pending, if all packets pass ([`Control::open`]), if addresses are looked up in
    /// tries, if a service shares ports with this host's own connections ([`Control::shares_ports`]), or in observe
    /// mode with flow tracking.
    #[inline(always)]
    pub const fn allows_fast_path(self) -> bool {
        !self.has(Self::PENDING | Self::OPEN | Self::LPM_TRIE | Self::SHARES_PORTS | Self::MARKS)
    }

    /// Reports whether a change is pending ([`Control::pending`]) or all packets pass ([`Control::open`]).
    #[inline(always)]
    pub const fn is_pending_or_open(self) -> bool {
        self.has(Self::PENDING | Self::OPEN)
    }

    /// Returns [`Control::open`].
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.has(Self::OPEN)
    }

    /// Returns [`Control::shares_ports`].
    #[inline(always)]
    pub const fn shares_ports(self) -> bool {
        self.has(Self::SHARES_PORTS)
    }

    /// Returns [`Control::observe`].
    #[inline(always)]
    pub const fn observes(self) -> bool {
        self.has(Self::OBSERVE)
    }

    /// Returns [`Control::slot`].
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        // Stored plus 1, so that the initial word 0 has an invalid slot.
        ((self.0 & Self::SLOT) as u32).wrapping_sub(1)
    }

    /// Returns [`Control::default_verdict`].
    #[inline(always)]
    pub const fn default_verdict(self) -> Verdict {
        if self.has(Self::DEFAULT_DROP) {
            Verdict::Drop
        } else {
            Verdict::Pass
        }
    }

    /// Reports whether [`Control::return_traffic`] is [`ReturnTraffic::Track`].
    #[inline(always)]
    pub const fn tracks(self) -> bool {
        self.has(Self::TRACK)
    }

    /// Reports whether [`Control::return_traffic`] is [`ReturnTraffic::Established`].
    #[inline(always)]
    pub const fn passes_established(self) -> bool {
        self.has(Self::ESTABLISHED)
    }

    /// Reports whether [`Control::exemptions`] contains all of `exemption`.
    #[inline(always)]
    pub const fn exempts(self, exemption: Exemptions) -> bool {
        self.exemptions().has(exemption)
    }

    /// Reports whether there is an egress policy ([`Control::egress`]).
    #[inline(always)]
    pub const fn has_egress(self) -> bool {
        self.has(Self::EGRESS)
    }

    /// Returns [`EgressControl::observe`].
    #[inline(always)]
    pub const fn egress_observes(self) -> bool {
        self.has(Self::EGRESS_OBSERVE)
    }

    /// Returns [`EgressControl::default_verdict`].
    #[inline(always)]
    pub const fn egress_default(self) -> Verdict {
        if self.has(Self::EGRESS_DROP) {
            Verdict::Drop
        } else {
            Verdict::Pass
        }
    }

    /// Reports whether names that no rule lists are recorded for proposals of rules: in observe mode, and with the default
    /// verdict pass. In enforce mode a program with an unlisted name is refused anyway, and recording costs time.
    #[inline(always)]
    pub const fn egress_learns(self) -> bool {
        self.egress_observes() || matches!(self.egress_default(), Verdict::Pass)
    }

    /// Returns [`EgressControl::refusal`].
    #[inline(always)]
    pub const fn refusal(self) -> Refusal {
        match (self.0 & Self::REFUSAL) >> Self::REFUSAL_SHIFT {
            1 => Refusal::AccessDenied,
            2 => Refusal::ConnectionRefused,
            _ => Refusal::NotPermitted,
        }
    }

    #[inline(always)]
    const fn exemptions(self) -> Exemptions {
        Exemptions((self.0 >> Self::EXEMPTIONS_SHIFT) as u8)
    }

    /// Returns [`Control::lookup`].
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
    /// The control word before the first publish.
    pub const NONE: Self = Self::decode(0);

    /// Returns the control word, as the map stores it.
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
        if let Some(egress) = self.egress {
            word |= ControlBits::EGRESS | (egress.refusal as u64) << ControlBits::REFUSAL_SHIFT;
            if egress.observe {
                word |= ControlBits::EGRESS_OBSERVE;
            }
            if matches!(egress.default_verdict, Verdict::Drop) {
                word |= ControlBits::EGRESS_DROP;
            }
        }
        word |= match self.return_traffic {
            ReturnTraffic::Off => 0,
            ReturnTraffic::Established => ControlBits::ESTABLISHED,
            ReturnTraffic::Track => ControlBits::TRACK,
        };
        word | (self.exemptions.0 as u64) << ControlBits::EXEMPTIONS_SHIFT
    }

    /// Decodes a control word.
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
            egress: if word.has_egress() {
                Some(EgressControl {
                    observe: word.egress_observes(),
                    default_verdict: word.egress_default(),
                    refusal: word.refusal(),
                })
            } else {
                None
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each field alone, and all fields but one: no field changes another.
    #[test]
    fn control_words_round_trip() {
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
            egress: Some(EgressControl {
                observe: true,
                default_verdict: Verdict::Drop,
                refusal: Refusal::ConnectionRefused,
            }),
        };
        let none = Control::NONE;
        assert_eq!(Control::decode(all.encode()), all);
        assert_eq!(none.encode(), 0);
        let parts: [fn(&mut Control, Control); 11] = [
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
            |to, from| to.egress = from.egress,
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
    fn egress_settings_round_trip() {
        for observe in [false, true] {
            for default_verdict in Verdict::ALL {
                for refusal in Refusal::ALL {
                    let control = Control {
                        egress: Some(EgressControl {
                            observe,
                            default_verdict,
                            refusal,
                        }),
                        ..Control::NONE
                    };
                    let bits = ControlBits(control.encode());
                    assert_eq!(Control::decode(bits.0), control);
                    assert!(bits.allows_fast_path(), "packets are not affected");
                }
            }
        }
    }

    #[test]
    fn pending_and_open_words_need_the_slow_path() {
        let neither = Control {
            pending: false,
            open: false,
            ..Control::decode(u64::MAX)
        };
        assert!(
            !ControlBits(neither.encode()).is_pending_or_open()
                && !ControlBits(neither.encode()).allows_fast_path()
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

    #[test]
    fn words_that_mark_flows_need_the_slow_path() {
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
    fn exemptions_are_a_set() {
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
