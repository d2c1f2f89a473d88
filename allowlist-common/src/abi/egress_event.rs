//! Events of the egress policy: the description of a judged call, and the lease of their reader.
//!
//! The lease is separate from that of drop events, so a reader of dropped packets does not make the programs of the
//! egress policy emit events, nor the other way round.

use super::MAX_SERVICE_COUNTS;
use crate::egress::{Call, EgressDecision, EgressReason, Request, address_key};
use crate::verdict::Verdict;
use crate::volatile::{VolatileRef, field};

/// Array of one [`EgressLease`]: the times until which a reader wants events of judged calls.
pub const EGRESS_LEASE: &str = "EGRESS_LEASE";
/// Ring buffer of [`EgressEvent`]s, one for each judged call that the lease includes.
pub const EGRESS_EVENTS: &str = "EGRESS_EVENTS";
/// Per-CPU array of one [`EventBudget`](super::EventBudget), which limits the rate of [`EGRESS_EVENTS`].
pub const EGRESS_BUDGET: &str = "EGRESS_BUDGET";

/// The size of the ring buffer [`EGRESS_EVENTS`] in bytes.
pub const EGRESS_EVENT_BYTES: u32 = 1 << 18;

/// The times until which calls cause events, in nanoseconds of the monotonic clock; 0 without a reader.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EgressLease {
    /// The time until which calls that pass cause events.
    pub passed: u64,
    /// The time until which calls that are refused, or would be in enforce mode, cause events.
    pub refused: u64,
}

impl VolatileRef<'_, EgressLease> {
    /// Returns the time until which calls with a verdict cause events.
    #[inline(always)]
    pub fn until(self, verdict: Verdict) -> u64 {
        match verdict {
            Verdict::Pass => field!(self, passed).load(),
            Verdict::Drop => field!(self, refused).load(),
        }
    }
}

/// An entry of the ring buffer [`EGRESS_EVENTS`]: a judged call and the program that made it.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EgressEvent {
    /// The time of the event, in nanoseconds of the monotonic clock.
    pub time: u64,
    /// The id of the calling program's cgroup of version 2.
    pub cgroup: u64,
    /// The destination address, as [`crate::egress::address_key`] returns it.
    pub destination: [u64; 2],
    /// The process id (that of the thread group) in the initial PID namespace.
    pub process: u32,
    /// The user id in the initial user namespace.
    pub user: u32,
    /// The command name of the calling thread, zero-padded.
    pub command: [u8; 16],
    /// The match id of the destination, if a rule allows it; else 0 ([`EgressDecision::match_id`]).
    pub match_id: u32,
    /// The counter ids of the two sets of rules that cover the port; else 0 ([`EgressDecision::rules`]).
    pub rules: [u16; 2],
    /// The destination port; without meaning for a protocol without ports.
    pub port: u16,
    /// The IP protocol of the socket, as the kernel numbers it ([`Request::protocol`]).
    pub protocol: u16,
    /// The number of the [`Call`].
    pub call: u8,
    /// The number of the [`EgressReason`](crate::egress::EgressReason).
    pub reason: u8,
    /// The number of the [`Verdict`].
    pub verdict: u8,
    /// 1 in observe mode, in which a call passes despite the verdict [`Verdict::Drop`]; else 0.
    pub observe: u8,
}

/// A request and its decision in four words, so that a kernel program can pass them to a function in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedCall {
    /// The destination address, as [`crate::egress::address_key`] returns it.
    pub destination: [u64; 2],
    /// The port in bits 0 to 15, the protocol in 16 to 31, the call in 32 to 39, the reason in 40 to 47, the verdict in
    /// 48 to 55, and observe mode in 56 to 63.
    pub properties: u64,
    /// The match id in bits 0 to 31, and the counter ids of the rules in 32 to 47 and 48 to 63.
    pub ids: u64,
}

impl PackedCall {
    /// Packs a request and its decision; `observes` is true in observe mode.
    #[inline(always)]
    pub const fn new(request: &Request, decision: &EgressDecision, observes: bool) -> Self {
        const { assert!(MAX_SERVICE_COUNTS <= 1 << u16::BITS) };
        let [by_path, by_name] = decision.rules;
        Self {
            destination: address_key(request.destination),
            properties: request.port as u64
                | (request.protocol as u64 & 0xffff) << 16
                | (request.call as u64) << 32
                | (decision.reason as u64) << 40
                | (decision.verdict as u64) << 48
                | (observes as u64) << 56,
            ids: decision.match_id as u64
                | (by_path as u64 & 0xffff) << 32
                | (by_name as u64) << 48,
        }
    }

    /// Returns the verdict on the call.
    #[inline(always)]
    pub const fn verdict(&self) -> Verdict {
        if self.properties >> 48 & 0xff == Verdict::Drop as u64 {
            Verdict::Drop
        } else {
            Verdict::Pass
        }
    }

    /// Reports whether no rule allows the call: it is refused, would be in enforce mode, or passes by the default verdict.
    #[inline(always)]
    pub const fn is_unlisted(&self) -> bool {
        let reason = self.properties >> 40 & 0xff;
        reason == EgressReason::Default as u64 || reason == EgressReason::ClosedRange as u64
    }

    /// Sets the fields of an event that describe the call, in place; those about the program stay.
    #[inline(always)]
    pub const fn describe(self, event: &mut EgressEvent) {
        event.destination = self.destination;
        event.port = self.properties as u16;
        event.protocol = (self.properties >> 16) as u16;
        event.call = (self.properties >> 32) as u8;
        event.reason = (self.properties >> 40) as u8;
        event.verdict = (self.properties >> 48) as u8;
        event.observe = (self.properties >> 56) as u8;
        event.match_id = self.ids as u32;
        event.rules = [(self.ids >> 32) as u16, (self.ids >> 48) as u16];
    }
}

impl EgressEvent {
    /// An event with all fields 0.
    pub const EMPTY: Self = Self {
        time: 0,
        cgroup: 0,
        destination: [0; 2],
        process: 0,
        user: 0,
        command: [0; 16],
        match_id: 0,
        rules: [0; 2],
        port: 0,
        protocol: 0,
        call: 0,
        reason: 0,
        verdict: 0,
        observe: 0,
    };

    /// Reports whether the call is refused, or would be in enforce mode.
    pub const fn is_refused(&self) -> bool {
        self.verdict == Verdict::Drop as u8
    }

    /// Reports whether the call connects a datagram socket ([`Call::Probe`]).
    pub const fn is_probe(&self) -> bool {
        self.call == Call::Probe as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::MPTCP;
    use crate::packet::Address;

    #[test]
    fn a_call_keeps_its_properties_when_packed() {
        let request = Request {
            call: Call::Send,
            destination: Address::V4(0xcb00_7109),
            protocol: MPTCP,
            port: 65_443,
            local_port: 7,
        };
        let decision = EgressDecision {
            verdict: Verdict::Drop,
            reason: EgressReason::InternalError,
            match_id: u32::MAX - 1,
            rules: [1022, 1023],
            name: 5,
        };
        for observes in [false, true] {
            let mut event = EgressEvent {
                process: 5,
                ..EgressEvent::EMPTY
            };
            PackedCall::new(&request, &decision, observes).describe(&mut event);
            let expected = EgressEvent {
                destination: [0, 0xffff_cb00_7109],
                process: 5,
                match_id: u32::MAX - 1,
                rules: [1022, 1023],
                port: 65_443,
                protocol: 262,
                call: 2,
                reason: 9,
                verdict: 1,
                observe: observes.into(),
                ..EgressEvent::EMPTY
            };
            assert_eq!(event, expected);
        }
    }
}
