//! Compares `explain` with the kernel program under random policies. The kernel program gets a frame, and both engines of
//! `explain`, over pinned maps and over compiled tables, get the query that the frame represents. Verdict, reason, service
//! and matching sources must be equal.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};

use allowlist_common::judge::Decision;
use allowlist_policy::explain::{Judge, Target};
use allowlist_tests::lab::frame;
use allowlist_tests::model::policy_strategies::{INTERFACES, Scenario, scenarios};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{TestCaseError, TestError};

use super::random::{Counts, counted_as, counted_decisions, counts, kernel, publish_scenario};
use super::*;

/// Ports at the edges of the services of random scenarios, and ports that no service covers.
const PORTS: [u16; 12] = [1, 2, 21, 22, 23, 80, 443, 444, 445, 8080, 8081, 65535];
const HOSTS: [&str; 2] = ["198.51.100.1", "2001:db8:ffff::1"];

/// A query: whether it is for the second interface, the index of the source address, and the target.
type Query = (bool, Index, Target);

fn queries() -> impl Strategy<Value = Query> {
    let port = || select(PORTS.to_vec());
    let target = prop_oneof![
        5 => port().prop_map(Target::Tcp),
        3 => port().prop_map(Target::Udp),
        2 => port().prop_map(Target::Sctp),
        1 => Just(Target::Icmp),
        1 => Just(Target::Other),
        2 => select(vec![47_u8, 50, 112, 255]).prop_map(Target::Protocol),
    ];
    (any::<bool>(), any::<Index>(), target)
}

#[test]
fn explain_agrees_with_the_kernel() {
    require_root!();
    let (cases, count) = if is_long() { (500, 1000) } else { (60, 250) };
    let kernel = RefCell::new(kernel());
    // The scenario supplies only addresses.
    let scenario = scenarios(1);
    let strategy = (scenario, vec(queries(), count), vec(any::<[u8; 4]>(), 8));
    let done = runner(cases).run(&strategy, |(scenario, queries, others)| {
        check(&scenario, &queries, &others, &mut kernel.borrow_mut())
            .map_err(|wrong| TestCaseError::fail(format!("{wrong}\n{scenario:?}")))
    });
    if let Err(error) = done {
        let (TestError::Abort(reason) | TestError::Fail(reason, _)) = error;
        panic!("{reason}");
    }
    let kernel = kernel.into_inner();
    for (verdict, reason) in [
        (Verdict::Pass, Reason::Allowed),
        (Verdict::Drop, Reason::NotAllowed),
        (Verdict::Pass, Reason::Default),
        (Verdict::Drop, Reason::Default),
    ] {
        for slot in [0, 1] {
            let packets = kernel.counters_of(slot).get(verdict, reason);
            assert!(packets > 0, "never {verdict:?} {reason:?}");
        }
    }
}

fn check(
    scenario: &Scenario,
    queries: &[Query],
    others: &[[u8; 4]],
    kernel: &mut Kernel,
) -> Result<(), String> {
    let tables = publish_scenario(scenario, kernel);
    let lookup = kernel.view().lookup().expect("a generation");
    let judge = Judge::new(&tables, scenario.mode, &scenario.rules);
    let compiled = INTERFACES.map(|name| judge.on(name));
    let mut addresses = scenario.edges();
    addresses.extend(others.iter().map(|&octets| IpAddr::from(octets)));
    let mut counted = counts(kernel, &tables.ids);
    for (is_second, address, target) in queries {
        let slot = usize::from(*is_second);
        let address = addresses[address.index(addresses.len())];
        let packet = target.packet(address);
        let by_view = lookup.judge(slot as u32, [packet]).expect("readable maps");
        let by_tables = compiled[slot].judge(&packet);
        let before = kernel.counters_of(slot as u32);
        kernel.receive(slot, &frame_to(*target, address));
        let found = counted_decisions(&before, &kernel.counters_of(slot as u32));
        let context = format!(
            "{address} to {target} on {}\nthe kernel: {found:?}\nby its maps: {by_view:?}\nby compiled tables: {by_tables:?}",
            INTERFACES[slot]
        );
        if by_view != [by_tables] || found != [(by_tables.verdict, by_tables.reason)] {
            return Err(context);
        }
        // The counters identify the service and the sources.
        expect(&mut counted, &by_tables);
        let by_kernel = counts(kernel, &tables.ids);
        if counted != by_kernel {
            return Err(format!(
                "{context}\ncounted: {by_kernel:?}, expected: {counted:?}"
            ));
        }
    }
    Ok(())
}

fn expect(counted: &mut Counts, decision: &Decision) {
    for counter in counted_as(decision) {
        *counted.entry(counter).or_default() += 1;
    }
}

/// Returns the frame that a query represents.
fn frame_to(target: Target, source: IpAddr) -> Vec<u8> {
    const GRE: u8 = 47;
    const SCTP: u8 = 132;
    const FROM: u16 = 49_152;
    let host: IpAddr = HOSTS[usize::from(source.is_ipv6())]
        .parse()
        .expect("an address");
    let ends = |port| (SocketAddr::new(source, FROM), SocketAddr::new(host, port));
    match target {
        Target::Tcp(port) => frame::tcp_syn(ends(port).0, ends(port).1),
        Target::Udp(port) => frame::udp(ends(port).0, ends(port).1, b"hello"),
        Target::Sctp(port) => {
            let mut header = [FROM.to_be_bytes(), port.to_be_bytes()].concat();
            header.resize(32, 0);
            frame::packet(source, host, SCTP, &header)
        }
        Target::Icmp => frame::echo_request(source, host),
        Target::Other => frame::packet(source, host, GRE, &[0; 32]),
        Target::Protocol(protocol) => frame::packet(source, host, protocol, &[0; 32]),
    }
}
