//! Tests of the decisions on calls: a table of requests, on tables that each case describes.

extern crate std;

use std::net::IpAddr;
use std::vec::Vec;

use super::*;
use crate::abi::{Control, EgressControl, Refusal};
use crate::packet::ICMP;

/// Tables in which the rule set 1 allows the listed and the answered addresses, and the rule set 2 none.
struct World {
    control: Control,
    own: Vec<Address>,
    is_daemon: bool,
    exempt: Vec<(Address, u8, u16, EgressReason)>,
    received: Vec<(Address, u16)>,
    ports: Vec<(u8, u16)>,
    /// Ports that the rule set 2, for the caller's unit by name, covers.
    ports_by_name: Vec<(u8, u16)>,
    protocols: Vec<u8>,
    /// The ports of the rule set 2.
    other_ports: Vec<(u8, u16)>,
    allowed: Vec<Address>,
    /// The addresses that were answered for a name.
    answered: Vec<Address>,
    /// The rule sets that allow these addresses.
    granted: u64,
}

impl EgressTables for World {
    fn control(&self) -> ControlBits {
        ControlBits(self.control.encode())
    }

    fn is_own(&self, address: &Address) -> bool {
        self.own.contains(address)
    }

    fn is_daemon(&self) -> bool {
        self.is_daemon
    }

    fn exempt_endpoint(&self, address: &Address, protocol: u8, port: u16) -> Option<EgressReason> {
        let mut all = self.exempt.iter();
        all.find(|one| (one.0, one.1, one.2) == (*address, protocol, port))
            .map(|one| one.3)
    }

    fn has_received_from(&self, address: &Address, port: u16) -> bool {
        self.received.contains(&(*address, port))
    }

    fn rules_of_port(&self, protocol: u8, port: u16) -> CoveringRules {
        let by_path = match (protocol, port) {
            covered if self.ports.contains(&covered) => 1,
            covered if self.other_ports.contains(&covered) => 2,
            _ => 0,
        };
        CoveringRules {
            by_path,
            by_name: 2 * u8::from(self.ports_by_name.contains(&(protocol, port))),
        }
    }

    fn rules_of_protocol(&self, protocol: u8) -> CoveringRules {
        CoveringRules {
            by_path: self.protocols.contains(&protocol).into(),
            by_name: 0,
        }
    }

    fn rule_counter_id(&self, rules: ServiceId) -> u32 {
        u32::from(rules) * 7
    }

    fn grant(&self, destination: &Address) -> Option<Grant> {
        let is_allowed = self.allowed.contains(destination);
        Some(Grant::new(
            if is_allowed { self.granted } else { 0 },
            u32::from(is_allowed) * 9,
        ))
    }

    fn learned_name(&self, destination: &Address, rules: u64) -> u32 {
        let is_allowed = rules & 1 != 0 && self.answered.contains(destination);
        u32::from(is_allowed) * 5
    }
}

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().expect("an address").into()
}

fn world(default_verdict: Verdict) -> World {
    World {
        control: Control {
            exemptions: Exemptions::ALL,
            egress: Some(EgressControl {
                observe: false,
                default_verdict,
                refusal: Refusal::NotPermitted,
            }),
            ..Control::NONE
        },
        own: [address("203.0.113.5"), address("2001:db8::5")].into(),
        is_daemon: false,
        exempt: [(address("203.0.113.53"), UDP, 53, EgressReason::Resolver)].into(),
        received: [(address("203.0.113.9"), 5000)].into(),
        ports: [(TCP, 443), (UDP, 443), (SCTP, 443)].into(),
        ports_by_name: Vec::new(),
        protocols: [ICMP].into(),
        other_ports: [(TCP, 8443)].into(),
        allowed: [
            address("198.51.100.7"),
            address("2001:db8:7::7"),
            address("10.1.2.3"),
        ]
        .into(),
        answered: Vec::new(),
        granted: 1,
    }
}

fn request(destination: &str, protocol: u32, port: u16) -> Request {
    Request {
        call: Call::Send,
        destination: address(destination),
        protocol,
        port,
        local_port: 0,
    }
}

#[test]
fn the_first_applicable_rule_decides() {
    use EgressReason::{Allowed, ClosedRange, Default, Essential, Local, Reply, Resolver};
    let (tcp, udp) = (u32::from(TCP), u32::from(UDP));
    let cases = [
        // This host, its link and multicast.
        ("127.1.2.3", tcp, 1, true, Local),
        ("::1", tcp, 1, true, Local),
        ("0.0.0.0", tcp, 1, true, Local),
        ("::", tcp, 1, true, Local),
        ("203.0.113.5", tcp, 1, true, Local),
        ("::ffff:203.0.113.5", tcp, 1, true, Local),
        ("2001:db8::5", tcp, 1, true, Local),
        ("fe80::1", udp, 1, true, Local),
        ("224.0.0.251", udp, 5353, true, Local),
        ("ff02::fb", udp, 5353, true, Local),
        // Endpoints, on their ports only.
        ("203.0.113.53", udp, 53, true, Resolver),
        ("203.0.113.53", udp, 80, false, Default),
        ("203.0.113.53", tcp, 53, false, Default),
        ("203.0.113.9", udp, 5000, true, Reply),
        ("203.0.113.9", udp, 5001, false, Default),
        // Rules: port and destination.
        ("198.51.100.7", tcp, 443, true, Allowed),
        ("::ffff:198.51.100.7", tcp, 443, true, Allowed),
        ("64:ff9b::198.51.100.7", tcp, 443, true, Allowed),
        ("198.51.100.7", MPTCP, 443, true, Allowed),
        ("198.51.100.7", UDP_LITE, 443, true, Allowed),
        ("198.51.100.7", u32::from(SCTP), 443, true, Allowed),
        ("198.51.100.7", u32::from(ICMP), 8, true, Allowed),
        ("198.51.100.7", tcp, 80, false, Default),
        ("198.51.100.7", tcp, 8443, false, Default),
        ("198.51.100.8", tcp, 443, false, Default),
        ("2001:db8:7::7", udp, 443, true, Allowed),
        ("2001:db8:7::8", udp, 443, false, Default),
        // Closed ranges: only by a prefix.
        ("10.1.2.3", tcp, 443, true, Allowed),
        ("10.1.2.4", tcp, 443, false, ClosedRange),
        ("10.1.2.3", tcp, 80, false, ClosedRange),
        ("169.254.169.254", tcp, 443, false, ClosedRange),
        ("::ffff:169.254.169.254", tcp, 443, false, ClosedRange),
        ("64:ff9b::169.254.169.254", tcp, 443, false, ClosedRange),
        ("fd00::1", tcp, 443, false, ClosedRange),
    ];
    for (destination, protocol, port, passes, reason) in cases {
        let request = request(destination, protocol, port);
        let decision = decide(&request, &world(Verdict::Drop));
        let found = (decision.verdict == Verdict::Pass, decision.reason);
        assert_eq!(found, (passes, reason), "{request:?}");
        // With the default pass, nothing is refused.
        let open = decide(&request, &world(Verdict::Pass));
        assert_eq!(open.verdict, Verdict::Pass, "{request:?}");
        let reason = if passes { reason } else { Default };
        assert_eq!(open.reason, reason, "{request:?}");
    }
    let mut dhcp = request("203.0.113.67", udp, 67);
    assert_eq!(decide(&dhcp, &world(Verdict::Drop)).reason, Default);
    dhcp.local_port = 68;
    assert_eq!(decide(&dhcp, &world(Verdict::Drop)).reason, Essential);
}

/// An address that was answered for a name is the last that is allowed, before the default verdict.
#[test]
fn answered_addresses_are_allowed() {
    use EgressReason::{Allowed, AllowedName, ClosedRange, Default, Local, Reply, Resolver};
    let (tcp, udp) = (u32::from(TCP), u32::from(UDP));
    let answered = [
        "198.51.100.7",
        "198.51.100.9",
        "203.0.113.5",
        "203.0.113.9",
        "203.0.113.53",
        "2001:db8:9::9",
        "10.9.9.9",
        "169.254.169.254",
        "127.0.0.9",
        "224.0.0.9",
        "64:ff9b:1::9",
        "fd00::9",
    ];
    let cases = [
        // Earlier rules decide.
        ("127.0.0.9", tcp, 443, Local),
        ("224.0.0.9", udp, 443, Local),
        ("203.0.113.5", tcp, 443, Local),
        ("203.0.113.53", udp, 53, Resolver),
        ("203.0.113.9", udp, 5000, Reply),
        ("198.51.100.7", tcp, 443, Allowed),
        ("64:ff9b::198.51.100.7", tcp, 443, Allowed),
        // Covered ports and protocols only.
        ("198.51.100.9", tcp, 443, AllowedName),
        ("198.51.100.9", udp, 443, AllowedName),
        ("198.51.100.9", MPTCP, 443, AllowedName),
        ("198.51.100.9", u32::from(ICMP), 0, AllowedName),
        ("198.51.100.9", tcp, 80, Default),
        ("198.51.100.9", tcp, 8443, Default),
        ("10.9.9.9", tcp, 8443, ClosedRange),
        ("198.51.100.9", 47, 443, Default),
        ("203.0.113.53", udp, 443, AllowedName),
        ("2001:db8:9::9", tcp, 443, AllowedName),
        ("2001:db8:9::9", tcp, 80, Default),
        ("2001:db8:9::8", tcp, 443, Default),
        // Other forms of an IPv4 address.
        ("::ffff:198.51.100.9", tcp, 443, AllowedName),
        ("64:ff9b::198.51.100.9", tcp, 443, AllowedName),
        ("64:ff9b::198.51.100.9", tcp, 80, Default),
        ("64:ff9b::198.51.100.8", tcp, 443, Default),
        // The name's grant states whether it includes closed ranges; without it, the range is the reason.
        ("10.9.9.9", tcp, 443, AllowedName),
        ("::ffff:10.9.9.9", tcp, 443, AllowedName),
        ("64:ff9b::10.9.9.9", tcp, 443, AllowedName),
        ("169.254.169.254", tcp, 443, AllowedName),
        ("169.254.169.254", tcp, 80, ClosedRange),
        ("64:ff9b:1::9", tcp, 443, AllowedName),
        ("fd00::9", tcp, 443, AllowedName),
        ("10.9.9.8", tcp, 443, ClosedRange),
        ("64:ff9b::10.9.9.8", tcp, 443, ClosedRange),
    ];
    for default_verdict in [Verdict::Drop, Verdict::Pass] {
        let mut world = world(default_verdict);
        world.answered = answered.map(address).into();
        for (destination, protocol, port, reason) in cases {
            let request = request(destination, protocol, port);
            let decision = decide(&request, &world);
            let (verdict, reason) = match (reason, default_verdict) {
                (ClosedRange | Default, Verdict::Pass) => (Verdict::Pass, Default),
                (ClosedRange | Default, Verdict::Drop) => (Verdict::Drop, reason),
                _ => (Verdict::Pass, reason),
            };
            let found = (decision.verdict, decision.reason);
            assert_eq!(found, (verdict, reason), "{request:?}");
            let name = if reason == AllowedName { 5 } else { 0 };
            assert_eq!(decision.name, name, "{request:?}");
            let matched = if reason == Allowed { 9 } else { 0 };
            assert_eq!(decision.match_id, matched, "{request:?}");
        }
    }
}

#[test]
fn answers_are_stored_by_the_address_on_the_wire() {
    for (answered, expected) in [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("64:ff9b::192.0.2.1", "192.0.2.1"),
        ("64:ff9b:1::192.0.2.1", "64:ff9b:1::192.0.2.1"),
        ("64:ff9b::1:192.0.2.1", "64:ff9b::1:192.0.2.1"),
        ("::192.0.2.1", "::192.0.2.1"),
    ] {
        assert_eq!(learned(address(answered)), address(expected), "{answered}");
    }
    let keys = ["192.0.2.1", "2001:db8::1", "::192.0.2.1"].map(|text| address_key(address(text)));
    assert_eq!(keys[0], [0, 0xffff_c000_0201]);
    assert_eq!(keys[1], [0x2001_0db8 << 32, 1]);
    assert_eq!(keys[2], [0, 0xc000_0201]);
}

#[test]
fn replies_are_datagrams() {
    let send = request("203.0.113.9", UDP.into(), 5000);
    for call in [Call::Connect, Call::Probe] {
        let decision = decide(&Request { call, ..send }, &world(Verdict::Drop));
        assert_eq!(decision.reason, EgressReason::Default, "{call:?}");
    }
}

#[test]
fn the_daemon_passes() {
    let mut world = world(Verdict::Drop);
    world.is_daemon = true;
    let decision = decide(&request("10.9.9.9", TCP.into(), 80), &world);
    assert_eq!(
        (decision.verdict, decision.reason),
        (Verdict::Pass, EgressReason::Daemon)
    );
}

#[test]
fn exemptions_can_be_off() {
    let mut world = world(Verdict::Drop);
    world.control.exemptions = Exemptions::NONE;
    let mut dhcp = request("203.0.113.67", UDP.into(), 67);
    dhcp.local_port = 68;
    assert_eq!(decide(&dhcp, &world).verdict, Verdict::Drop);
    let multicast = request("ff02::fb", UDP.into(), 5353);
    assert_eq!(decide(&multicast, &world).verdict, Verdict::Drop);
    let loopback = request("::1", UDP.into(), 5353);
    assert_eq!(decide(&loopback, &world).verdict, Verdict::Pass);
}

#[test]
fn decisions_have_counter_ids() {
    let mut world = world(Verdict::Drop);
    world.answered.push(address("198.51.100.9"));
    let ids = |destination| {
        let decision = decide(&request(destination, TCP.into(), 443), &world);
        (decision.match_id, decision.rules, decision.name)
    };
    assert_eq!(ids("198.51.100.7"), (9, [7, 0], 0));
    assert_eq!(ids("198.51.100.8"), (0, [7, 0], 0));
    assert_eq!(ids("198.51.100.9"), (0, [7, 0], 5));
    assert_eq!(ids("127.0.0.1"), (0, [0, 0], 0));
}

#[test]
fn rules_by_path_and_by_name_are_joined() {
    let mut world = World {
        ports: [(TCP, 443), (TCP, 80)].into(),
        ports_by_name: [(TCP, 443), (TCP, 25)].into(),
        ..world(Verdict::Drop)
    };
    let ids = |world: &World, port| {
        let decision = decide(&request("198.51.100.7", TCP.into(), port), world);
        (decision.verdict, decision.rules)
    };
    // The rule set 1 allows the address.
    assert_eq!(ids(&world, 443), (Verdict::Pass, [7, 14]));
    assert_eq!(ids(&world, 80), (Verdict::Pass, [7, 0]));
    assert_eq!(ids(&world, 25), (Verdict::Drop, [0, 14]));
    world.granted = 0b10;
    assert_eq!(ids(&world, 443), (Verdict::Pass, [7, 14]));
    assert_eq!(ids(&world, 80), (Verdict::Drop, [7, 0]));
    assert_eq!(ids(&world, 25), (Verdict::Pass, [0, 14]));
}

#[test]
fn closed_ranges_end_where_they_should() {
    for (first, last) in [
        ("10.0.0.0", "10.255.255.255"),
        ("100.64.0.0", "100.127.255.255"),
        ("169.254.0.0", "169.254.255.255"),
        ("172.16.0.0", "172.31.255.255"),
        ("192.0.0.0", "192.0.0.255"),
        ("192.168.0.0", "192.168.255.255"),
        ("198.18.0.0", "198.19.255.255"),
    ] {
        let [Address::V4(first), Address::V4(last)] = [address(first), address(last)] else {
            panic!("both are IPv4 addresses");
        };
        for (number, is_inside) in [
            (first - 1, false),
            (first, true),
            (last, true),
            (last + 1, false),
        ] {
            assert_eq!(is_closed(&Address::V4(number)), is_inside, "{number:#x}");
        }
    }
    for (text, is_inside) in [
        ("fbff::1", false),
        ("fc00::1", true),
        ("fdff::1", true),
        ("fe00::1", false),
        ("fec0::1", true),
        ("2001:db8::1", false),
        ("2001::1", true),
        ("2002::1", true),
        ("2003::1", false),
        ("64:ff9b:1::1", true),
        ("64:ff9b::8.8.8.8", false),
        ("100::1", true),
        ("::2", true),
        ("2600::1", false),
    ] {
        assert_eq!(is_closed(&address(text)), is_inside, "{text}");
    }
}
