//! A player: random sequences of received and sent packets, mode changes, reloads, restarts and time steps, in the shipped
//! packet logic (`pure`) and in the kernel programs (`in_kernel`), compared with a model (`expected`).
//!
//! Invariant, tested after each step: no flow is alive as the host's own if its first packet was received, or if only
//! answers to stray packets have extended it. Flows that the host has certainly initiated are alive. The test prints its
//! seed and number of steps.

mod expected;
mod in_kernel;
mod pure;

use std::fmt::Debug;

use allowlist_common::packet::{ICMP, TCP, UDP, tcp_flag};
use allowlist_tests::require_root;
use fastrand::Rng;

use self::expected::Expected;
use self::in_kernel::InKernel;
use self::pure::{Fault, Pure};
use crate::is_long;

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const RST: u8 = tcp_flag::RST;
const FIN: u8 = tcp_flag::FIN;

/// The endpoints of a flow, as seen by the host. There are few values, so that flows recur often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Ends {
    protocol: u8,
    /// The index of the host's address.
    local: u8,
    local_port: u16,
    /// The index of the remote address.
    remote: u8,
    /// The remote port; 0 for ICMP.
    remote_port: u16,
}

impl Ends {
    fn random(rng: &mut Rng) -> Self {
        let protocol = [TCP, UDP, UDP, ICMP][rng.usize(..4)];
        let remote_port = if protocol == ICMP {
            0
        } else {
            [53, 4000][rng.usize(..2)]
        };
        Self {
            protocol,
            local: rng.u8(..2),
            local_port: PORTS[rng.usize(..PORTS.len())],
            remote: rng.u8(..REMOTES),
            remote_port,
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        let mut all = Vec::new();
        for protocol in [TCP, UDP, ICMP] {
            for local in 0..2 {
                for local_port in PORTS {
                    for remote in 0..REMOTES {
                        for remote_port in [53, 4000] {
                            let remote_port = if protocol == ICMP { 0 } else { remote_port };
                            all.push(Self {
                                protocol,
                                local,
                                local_port,
                                remote,
                                remote_port,
                            });
                        }
                    }
                }
            }
        }
        all.dedup();
        all.into_iter()
    }
}

const REMOTES: u8 = 3;
/// The index of the remote address that services allow.
const FRIEND: u8 = 0;
/// The port of the service in [`Policy::Served`].
const SERVED: u16 = 5353;
/// The local ports: that of the service, that of another server, and two ephemeral ports.
const PORTS: [u16; 4] = [SERVED, 7000, 40_000, 50_000];

/// A received or sent packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    ends: Ends,
    /// The TCP flags; for ICMP 1 for an echo request and 0 for a reply.
    flags: u8,
}

/// The policy for packets that are not tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// `default = "pass"`, without tracking.
    Open,
    /// `default = "drop"` and no service.
    Closed,
    /// `default = "drop"` and a service for UDP port [`SERVED`], which allows [`FRIEND`].
    Served,
    /// `default = "drop"` and a service for all ports, which allows [`FRIEND`].
    Shared,
}

impl Policy {
    pub(super) const fn tracks(self) -> bool {
        !matches!(self, Self::Open)
    }

    /// Reports whether a service alone decides packets to the port, so that flows from the port are not tracked.
    pub(super) fn is_served(self, ends: Ends) -> bool {
        self == Self::Served && self.covers(ends)
    }

    /// Reports whether a service covers the local port.
    pub(super) fn covers(self, ends: Ends) -> bool {
        match self {
            Self::Open | Self::Closed => false,
            Self::Served => (ends.protocol, ends.local_port) == (UDP, SERVED),
            Self::Shared => true,
        }
    }
}

/// One step.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A packet arrives. If it passes and `replies` is set, the host replies at once.
    Receive { packet: Packet, replies: bool },
    /// The host sends a packet.
    Send(Packet),
    /// Observe mode is switched on or off.
    Observe(bool),
    /// Another policy is published.
    Reload(Policy),
    /// The filter is detached and started again.
    Restart,
    /// Seconds pass.
    Pass(u32),
    /// Many other addresses send, so that marks are evicted.
    Flood,
}

impl Step {
    /// Half of the packets belong to a flow of one of the last steps, so that the history of a flow matters.
    fn random(rng: &mut Rng, steps: &[Self]) -> Self {
        let last = steps.iter().rev().filter_map(Self::ends);
        let last: Vec<Ends> = last.take(4).collect();
        let mut packet = |flags: &[u8]| {
            let ends = match rng.choice(&last) {
                Some(ends) if rng.bool() => *ends,
                _ => Ends::random(rng),
            };
            let flags = if ends.protocol == ICMP {
                rng.u8(..2)
            } else {
                flags[rng.usize(..flags.len())]
            };
            Packet { ends, flags }
        };
        let received = packet(&[SYN, ACK, ACK, RST]);
        let sent = packet(&[SYN, SYN, ACK, ACK, RST, FIN | ACK, SYN | ACK]);
        match rng.u8(..100) {
            0..40 => Self::Receive {
                packet: received,
                replies: rng.bool(),
            },
            40..70 => Self::Send(sent),
            70..78 => Self::Observe(rng.bool()),
            78..84 => {
                let policies = [Policy::Open, Policy::Closed, Policy::Served, Policy::Shared];
                Self::Reload(policies[rng.usize(..4)])
            }
            84..86 => Self::Restart,
            86..88 => Self::Flood,
            _ => Self::Pass([1, 20, 100, 180, 400, 9000][rng.usize(..6)]),
        }
    }
}

impl Step {
    /// Returns the endpoints of the packet, if the step has one.
    fn ends(&self) -> Option<Ends> {
        match self {
            Self::Receive { packet, .. } | Self::Send(packet) => Some(packet.ends),
            _ => None,
        }
    }

    /// Reports whether the step concerns these endpoints with any address of the host, or all packets.
    fn concerns(&self, ends: Ends) -> bool {
        self.ends()
            .is_none_or(|others| Ends { local: 0, ..others } == Ends { local: 0, ..ends })
    }
}

/// The implementation under test.
pub(super) trait Subject {
    /// Receives a packet, and reports whether it passes.
    fn receive(&mut self, packet: &Packet) -> bool;
    fn send(&mut self, packet: &Packet);
    /// Publishes a policy in enforce or observe mode.
    fn set(&mut self, policy: Policy, observes: bool);
    /// Detaches, and starts with the same policy.
    fn restart(&mut self);
    fn pass(&mut self, seconds: u32);
    fn flood(&mut self);
    /// Reports whether a flow is alive as the host's own.
    fn is_own(&mut self, ends: Ends) -> bool;
}

/// Plays `count` steps.
fn play(subject: &mut impl Subject, seed: u64, count: usize) -> Result<(), String> {
    let mut rng = Rng::with_seed(seed);
    let mut expected = Expected::new();
    expected.reload(Policy::Closed);
    subject.set(Policy::Closed, false);
    let mut steps = Vec::new();
    for place in 0..count {
        let step = Step::random(&mut rng, &steps);
        steps.push(step);
        match step {
            Step::Receive { packet, replies } => {
                let passes = subject.receive(&packet);
                expected.receive(&packet, passes);
                if passes && replies {
                    let reply = reply(&packet, &mut rng);
                    subject.send(&reply);
                    expected.send(&reply);
                }
            }
            Step::Send(packet) => {
                subject.send(&packet);
                expected.send(&packet);
            }
            Step::Observe(observes) => {
                expected.observes = observes;
                subject.set(expected.policy, observes);
            }
            Step::Reload(policy) => {
                expected.reload(policy);
                subject.set(policy, expected.observes);
            }
            Step::Restart => {
                expected.restart();
                subject.restart();
            }
            Step::Pass(seconds) => {
                expected.pass(seconds);
                subject.pass(seconds);
            }
            Step::Flood => {
                expected.flood();
                subject.flood();
            }
        }
        for ends in Ends::all() {
            let is_own = subject.is_own(ends);
            if let Some(wrong) = expected.wrong(ends, is_own) {
                let steps = steps.iter().enumerate();
                let steps: Vec<String> = steps
                    .filter(|(_, step)| step.concerns(ends))
                    .map(|(place, step)| format!("{place}: {step:?}"))
                    .collect();
                return Err(format!(
                    "seed {seed}, step {place}: {wrong}: {ends:?}\n{}",
                    steps.join("\n")
                ));
            }
        }
    }
    Ok(())
}

/// Returns the reply of the host's network stack.
fn reply(packet: &Packet, rng: &mut Rng) -> Packet {
    let mut ends = packet.ends;
    let flags = match ends.protocol {
        TCP if packet.flags & SYN != 0 => SYN | ACK,
        TCP => [RST, ACK][rng.usize(..2)],
        ICMP => 0,
        _ => {
            // From the address of its route.
            ends.local = rng.u8(..2);
            0
        }
    };
    Packet { ends, flags }
}

/// The number of steps in a sequence.
const STEPS: usize = 120;

fn seed() -> u64 {
    let given = std::env::var("ALLOWLIST_SEED").ok();
    given
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..))
}

#[test]
fn only_this_host_initiates_a_flow_by_the_logic_alone() {
    let sequences = if is_long() { 50_000 } else { 1000 };
    let seed = seed();
    println!("seed {seed}, {sequences} sequences of {STEPS} steps");
    for place in 0..sequences {
        if let Err(wrong) = play(&mut Pure::new(None), seed.wrapping_add(place), STEPS) {
            panic!("{wrong}");
        }
    }
}

#[test]
fn each_planted_fault_is_found() {
    let seed = seed();
    for fault in Fault::ALL {
        let found = (0..3000).find(|place| {
            play(
                &mut Pure::new(Some(fault)),
                seed.wrapping_add(*place),
                STEPS,
            )
            .is_err()
        });
        println!("{fault:?}: seed {seed}, found in sequence {found:?}");
        assert!(found.is_some(), "{fault:?} is not found, seed {seed}");
    }
}

#[test]
fn only_this_host_initiates_a_flow_in_the_kernel() {
    require_root!();
    let steps = if is_long() { 10_000 } else { 600 };
    let seed = seed();
    println!("seed {seed}, {steps} steps");
    if let Err(wrong) = play(&mut InKernel::new(), seed, steps) {
        panic!("{wrong}");
    }
}
