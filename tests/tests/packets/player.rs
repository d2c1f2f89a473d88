//! A player: random sequences of received and sent packets, mode changes, reloads, restarts and time steps, in the shipped
//! packet logic (`pure`) and in the kernel programs (`in_kernel`), compared with a model (`expected`).
//!
//! Invariant, tested after each step: no flow is alive as the host's own if its first packet was received, or if only
//! answers to stray packets have extended it. Flows that the host has certainly initiated are alive. The test prints its
//! seed and number of steps. `known` has sequences with a fixed result.

mod expected;
mod in_kernel;
mod known;
mod pure;

use std::fmt::{self, Debug, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
    /// TCP, UDP, or ICMP for the echo messages of both families.
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
            remote: rng.u8(..REMOTES.len() as u8),
            remote_port,
        }
    }

    /// Returns the host's and the remote address.
    const fn addresses(self) -> (IpAddr, IpAddr) {
        match REMOTES[self.remote as usize] {
            IpAddr::V4(remote) => (IpAddr::V4(LOCALS[self.local as usize]), IpAddr::V4(remote)),
            IpAddr::V6(remote) => (
                IpAddr::V6(LOCALS_V6[self.local as usize]),
                IpAddr::V6(remote),
            ),
        }
    }

    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for protocol in [TCP, UDP, ICMP] {
            for local in 0..2 {
                for local_port in PORTS {
                    for remote in 0..REMOTES.len() as u8 {
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
        all
    }
}

const LOCALS: [Ipv4Addr; 2] = [
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(198, 51, 100, 2),
];
const LOCALS_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2),
];
const REMOTES: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)),
    IpAddr::V4(Ipv4Addr::new(198, 18, 0, 5)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x16)),
];
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
    /// A packet arrives.
    Receive(Packet),
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

/// The flows of a random sequence.
#[derive(Clone, Debug)]
enum Flows {
    /// Random flows. Half of the packets belong to a flow of one of the last steps, so that the history of a flow matters.
    Many,
    /// These flows only, so that each has a long history.
    Few(Vec<Ends>),
}

impl Flows {
    /// Returns a random flow from each address of the host.
    fn few(seed: u64) -> Self {
        let ends = Ends::random(&mut Rng::with_seed(!seed));
        Self::Few((0..2).map(|local| Ends { local, ..ends }).collect())
    }

    /// Returns all flows that a sequence may contain.
    fn all(&self) -> Vec<Ends> {
        match self {
            Self::Many => Ends::all(),
            Self::Few(flows) => flows.clone(),
        }
    }

    /// Returns the endpoints of the next packet, after steps with the endpoints `last`.
    fn choose(&self, rng: &mut Rng, last: &[Ends]) -> Ends {
        match self {
            Self::Few(flows) => flows[rng.usize(..flows.len())],
            Self::Many => match rng.choice(last) {
                Some(ends) if rng.bool() => *ends,
                _ => Ends::random(rng),
            },
        }
    }
}

impl Step {
    /// Returns a random step after others, and, for a received packet, whether the host replies at once if it passes.
    fn random(rng: &mut Rng, flows: &Flows, steps: &[Self]) -> (Self, bool) {
        let last = steps.iter().rev().filter_map(Self::ends);
        let last: Vec<Ends> = last.take(4).collect();
        let mut packet = |flags: &[u8]| {
            let ends = flows.choose(rng, &last);
            let flags = if ends.protocol == ICMP {
                rng.u8(..2)
            } else {
                flags[rng.usize(..flags.len())]
            };
            Packet { ends, flags }
        };
        let received = packet(&[SYN, ACK, ACK, RST]);
        let sent = packet(&[SYN, SYN, ACK, ACK, RST, FIN | ACK, SYN | ACK]);
        let step = match rng.u8(..100) {
            0..40 => return (Self::Receive(received), rng.bool()),
            40..70 => Self::Send(sent),
            70..78 => Self::Observe(rng.bool()),
            78..84 => {
                let policies = [Policy::Open, Policy::Closed, Policy::Served, Policy::Shared];
                Self::Reload(policies[rng.usize(..4)])
            }
            84..86 => Self::Restart,
            86..88 => Self::Flood,
            _ => Self::Pass([1, 20, 100, 180, 400, 9000][rng.usize(..6)]),
        };
        (step, false)
    }

    /// Returns the endpoints of the packet, if the step has one.
    fn ends(&self) -> Option<Ends> {
        match self {
            Self::Receive(packet) | Self::Send(packet) => Some(packet.ends),
            _ => None,
        }
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

/// A subject and the model, which begin with [`Policy::Closed`] in enforce mode.
struct Game<'a, S> {
    subject: &'a mut S,
    expected: Expected,
}

impl<'a, S: Subject> Game<'a, S> {
    fn begin(subject: &'a mut S) -> Self {
        let mut game = Self {
            subject,
            expected: Expected::new(),
        };
        game.perform(Step::Reload(Policy::Closed));
        game
    }

    /// Performs a step, and reports whether a packet was received and passed.
    fn perform(&mut self, step: Step) -> bool {
        let Self { subject, expected } = self;
        match step {
            Step::Receive(packet) => {
                let passes = subject.receive(&packet);
                expected.receive(&packet, passes);
                return passes;
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
        false
    }

    /// Returns the violated invariant and the flow, if any.
    fn wrong(&mut self, flows: &[Ends]) -> Option<(&'static str, Ends)> {
        flows.iter().find_map(|&ends| {
            let is_own = self.subject.is_own(ends);
            let wrong = self.expected.wrong(ends, is_own)?;
            Some((wrong, ends))
        })
    }
}

/// A sequence of steps after which an invariant is violated.
#[derive(Clone, Debug)]
struct Failure {
    wrong: &'static str,
    ends: Ends,
    /// The steps, with the host's replies as steps of their own.
    steps: Vec<Step>,
}

impl Failure {
    /// Removes steps, as long as the shorter sequence violates an invariant too.
    fn shorten<S: Subject>(mut self, subject: impl Fn() -> S) -> Self {
        let mut place = 0;
        while place < self.steps.len() {
            let mut steps = self.steps.clone();
            steps.remove(place);
            match replay(&mut subject(), &steps) {
                Err(shorter) => {
                    self = *shorter;
                    place = 0;
                }
                Ok(()) => place += 1,
            }
        }
        self
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.wrong, self.ends)?;
        for (place, step) in self.steps.iter().enumerate() {
            write!(f, "\n{place}: {step:?}")?;
        }
        Ok(())
    }
}

/// Plays these steps.
fn replay(subject: &mut impl Subject, steps: &[Step]) -> Result<(), Box<Failure>> {
    let mut game = Game::begin(subject);
    let mut flows: Vec<Ends> = steps.iter().filter_map(Step::ends).collect();
    flows.sort();
    flows.dedup();
    for (place, step) in steps.iter().enumerate() {
        game.perform(*step);
        if let Some((wrong, ends)) = game.wrong(&flows) {
            let steps = steps[..=place].to_vec();
            return Err(Box::new(Failure { wrong, ends, steps }));
        }
    }
    Ok(())
}

/// Plays `count` random steps.
fn play(
    subject: &mut impl Subject,
    seed: u64,
    flows: &Flows,
    count: usize,
) -> Result<(), Box<Failure>> {
    let mut rng = Rng::with_seed(seed);
    let all = flows.all();
    let mut game = Game::begin(subject);
    let (mut chosen, mut steps) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (step, replies) = Step::random(&mut rng, flows, &chosen);
        chosen.push(step);
        steps.push(step);
        let passes = game.perform(step);
        if passes
            && replies
            && let Step::Receive(packet) = step
        {
            let reply = Step::Send(reply(&packet, &mut rng));
            steps.push(reply);
            game.perform(reply);
        }
        if let Some((wrong, ends)) = game.wrong(&all) {
            return Err(Box::new(Failure { wrong, ends, steps }));
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

/// Plays random sequences in the packet logic.
fn play_many(flows: impl Fn(u64) -> Flows, sequences: u64) {
    let seed = seed();
    println!("seed {seed}, {sequences} sequences of {STEPS} steps");
    for place in 0..sequences {
        let seed = seed.wrapping_add(place);
        if let Err(failure) = play(&mut Pure::new(None), seed, &flows(seed), STEPS) {
            panic!("seed {seed}: {}", failure.shorten(|| Pure::new(None)));
        }
    }
}

#[test]
fn only_this_host_initiates_a_flow_by_the_logic_alone() {
    play_many(|_| Flows::Many, if is_long() { 50_000 } else { 1000 });
}

/// All packets of a sequence belong to one flow, whose history is longer therefore.
#[test]
fn only_this_host_initiates_a_flow_with_a_long_history() {
    play_many(Flows::few, if is_long() { 200_000 } else { 10_000 });
}

#[test]
fn each_planted_fault_is_found() {
    let seed = seed();
    for fault in Fault::ALL {
        let found = (0..6000).find(|place| {
            let seed = seed.wrapping_add(*place);
            let flows = if place % 2 == 0 {
                Flows::few(seed)
            } else {
                Flows::Many
            };
            play(&mut Pure::new(Some(fault)), seed, &flows, STEPS).is_err()
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
    if let Err(failure) = play(&mut InKernel::new(), seed, &Flows::Many, steps) {
        panic!("seed {seed}: {failure}");
    }
}
