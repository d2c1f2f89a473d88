//! Sequences with a fixed result, which random sequences contain too rarely: UDP exchanges in which the filter's two
//! records of the origin, the mark of the flow and the time of its port, end at different times.

use allowlist_common::packet::UDP;
use allowlist_tests::require_root;

use super::Step::{Flood, Observe, Pass, Receive, Reload, Restart, Send};
use super::{Ends, Fault, InKernel, Packet, Policy, Pure, SERVED, Step, Subject, replay};

/// A sequence with one flow, [`ENDS`].
struct Known {
    what: &'static str,
    steps: &'static [Step],
    /// Whether the flow is alive as the host's own after the steps.
    is_own: bool,
}

/// A flow from the service's port to an address that the service does not allow.
const ENDS: Ends = Ends {
    protocol: UDP,
    local: 0,
    local_port: SERVED,
    remote: 1,
    remote_port: 53,
};
/// The same flow from another address of the host.
const OTHER: Packet = Packet {
    ends: Ends { local: 1, ..ENDS },
    flags: 0,
};
const DATAGRAM: Packet = Packet {
    ends: ENDS,
    flags: 0,
};

/// In each, less than [`UDP_IDLE`](allowlist_common::flow::UDP_IDLE) seconds pass between two datagrams of the exchange,
/// unless its text mentions a pause.
const KNOWN: &[Known] = &[
    Known {
        what: "a mark is kept while flows are not tracked, and replies extend it",
        steps: &[
            Observe(true),
            Receive(DATAGRAM),
            Reload(Policy::Open),
            Receive(DATAGRAM),
            Reload(Policy::Closed),
            Pass(180),
            Send(DATAGRAM),
            Pass(180),
            Send(DATAGRAM),
            Send(OTHER),
        ],
        is_own: false,
    },
    Known {
        what: "a datagram that a service does not allow marks its flow",
        steps: &[
            Reload(Policy::Served),
            Observe(true),
            Receive(DATAGRAM),
            Reload(Policy::Closed),
            Pass(180),
            Send(DATAGRAM),
            Pass(180),
            Send(DATAGRAM),
        ],
        is_own: false,
    },
    Known {
        what: "a pause ends the mark",
        steps: &[
            Observe(true),
            Receive(DATAGRAM),
            Reload(Policy::Open),
            Receive(DATAGRAM),
            Reload(Policy::Closed),
            Pass(180),
            Send(DATAGRAM),
            Pass(400),
            Send(DATAGRAM),
        ],
        is_own: true,
    },
    Known {
        what: "datagrams that are not recorded do not extend the mark, and the port's time ends",
        steps: &[
            Observe(true),
            Receive(DATAGRAM),
            Reload(Policy::Served),
            Pass(180),
            Send(DATAGRAM),
            Reload(Policy::Closed),
            Pass(180),
            Send(DATAGRAM),
            Pass(180),
            Send(DATAGRAM),
        ],
        is_own: true,
    },
    Known {
        what: "a flood after a time without tracking leaves the port's time",
        steps: &[
            Observe(true),
            Receive(DATAGRAM),
            Reload(Policy::Open),
            Pass(180),
            Receive(DATAGRAM),
            Reload(Policy::Closed),
            Flood,
            Pass(180),
            Send(DATAGRAM),
        ],
        is_own: false,
    },
    Known {
        what: "a restart leaves the port's time",
        steps: &[
            Observe(true),
            Receive(DATAGRAM),
            Pass(180),
            Restart,
            Pass(180),
            Send(DATAGRAM),
        ],
        is_own: false,
    },
];

impl Known {
    fn play(&self, subject: &mut impl Subject) {
        if let Err(failure) = replay(subject, self.steps) {
            panic!("{}: {failure}", self.what);
        }
        assert_eq!(subject.is_own(ENDS), self.is_own, "{}", self.what);
    }
}

#[test]
fn known_sequences_have_their_result_by_the_logic_alone() {
    for known in KNOWN {
        known.play(&mut Pure::new(None));
    }
}

#[test]
fn known_sequences_have_their_result_in_the_kernel() {
    require_root!();
    for known in KNOWN {
        known.play(&mut InKernel::new());
    }
}

/// The model finds faults that are too rare in random sequences.
#[test]
fn known_sequences_show_rare_faults() {
    for fault in Fault::RARE {
        let found = KNOWN
            .iter()
            .find(|known| replay(&mut Pure::new(Some(fault)), known.steps).is_err());
        println!("{fault:?}: {:?}", found.map(|known| known.what));
        assert!(found.is_some(), "{fault:?} is not found");
    }
}
