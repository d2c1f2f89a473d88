//! Random scenarios: compares the kernel programs and the packet logic on the host with the model, which has its own
//! parser. Sent frames run through the flow tracker, so the kernel recognises answers by its own flow table.

use std::cell::RefCell;
use std::collections::BTreeMap;

use allowlist_common::abi::Counters;
use allowlist_common::judge::Decision;
use allowlist_common::verdict::{Reason, Verdict};
use allowlist_policy::Mode;
use allowlist_policy::compile::{IdTable, Tables, compile};
use allowlist_tests::model::dissect::dissect;
use allowlist_tests::model::host::Host;
use allowlist_tests::model::policy_strategies::{INTERFACES, Scenario, scenarios};
use allowlist_tests::model::{DECISIONS, Model, static_snapshot};
use allowlist_tests::require_root;
use allowlist_user::config::Config;
use proptest::test_runner::{TestCaseError, TestError};

use super::kernel::{Kernel, XDP_DROP, XDP_PASS, rules};
use super::{is_long, runner};

/// A service on each interface, so that each gets its slot.
const EVERYWHERE: &str = r#"
    [services.everywhere]
    ports = ["tcp/22"]
    allow = ["some"]
    interfaces = ["lan0", "wan0"]
    [sources.some]
    prefixes = ["192.0.2.1"]
"#;

/// Compares verdict, reason and return code for each frame.
#[test]
fn random_scenarios_agree_with_the_model() {
    require_root!();
    let (cases, frames) = if is_long() { (1000, 2500) } else { (60, 1000) };
    let kernel = RefCell::new(kernel());
    let done = runner(cases).run(&scenarios(frames), |scenario| {
        let mut kernel = kernel.borrow_mut();
        check(&scenario, &mut kernel).map_err(|wrong| {
            let smallest = scenario.smallest(wrong.position, |scenario| {
                check(scenario, &mut kernel).is_err()
            });
            let wrong = check(&smallest, &mut kernel).err().unwrap_or(wrong);
            TestCaseError::fail(format!("{}\n{smallest:?}", wrong.message))
        })
    });
    if let Err(error) = done {
        let (TestError::Abort(reason) | TestError::Fail(reason, _)) = error;
        panic!("{reason}");
    }
    let kernel = kernel.into_inner();
    let counters = [0, 1].map(|slot| kernel.counters_of(slot));
    for (verdict, reason) in DECISIONS {
        for counters in &counters {
            let packets = counters.get(verdict, reason);
            assert!(packets > 0, "never {verdict:?} {reason:?}");
        }
    }
}

/// Loads the programs for all interfaces of a scenario.
pub(crate) fn kernel() -> Kernel {
    let config = Config::parse(EVERYWHERE, "test.toml".as_ref()).expect("a configuration");
    let snapshot = static_snapshot(&config.policy);
    let tables = compile(&config.policy, &snapshot, 10, &IdTable::default()).expect("tables");
    let mut kernel = Kernel::with_slots(INTERFACES.len() as u32);
    kernel.publish_on(&tables, Mode::Enforce, rules(Verdict::Pass), &INTERFACES);
    kernel
}

/// A frame whose decision differs from the model.
struct Wrong {
    /// The position of the frame in the traffic of the scenario.
    position: usize,
    message: String,
}

/// Publishes the policy of a scenario to a kernel without flows, and returns its tables.
pub(crate) fn publish_scenario(scenario: &Scenario, kernel: &mut Kernel) -> Tables {
    let tables = compile(
        &scenario.policy,
        &scenario.snapshot,
        1000,
        &IdTable::default(),
    )
    .expect("a small policy");
    kernel.publish_on(&tables, scenario.mode, scenario.rules, &INTERFACES);
    kernel.clear_flows();
    tables
}

fn check(scenario: &Scenario, kernel: &mut Kernel) -> Result<(), Wrong> {
    let tables = publish_scenario(scenario, kernel);
    let mut host = Host::new(&tables, &scenario.rules, &INTERFACES).in_mode(scenario.mode);
    let model = Model::new(&scenario.policy, &scenario.snapshot, &scenario.rules);
    let mut model = model.in_mode(scenario.mode);
    let mut counted = [0, 1].map(|slot| kernel.counters_of(slot));
    let mut counts = counts(kernel, &tables.ids);
    for (position, moment) in scenario.traffic.iter().enumerate() {
        let (interface, frame) = (moment.interface, &moment.frame);
        let slot = usize::from(interface == INTERFACES[1]);
        let facts = dissect(frame);
        if moment.is_sent {
            kernel.send_on(slot, frame);
            host.send(interface, frame);
            model.send(interface, facts);
            continue;
        }
        let (verdict, reason) = model.receive(interface, &facts);
        let action = match (scenario.mode, verdict) {
            (Mode::Enforce, Verdict::Drop) => XDP_DROP,
            _ => XDP_PASS,
        };
        let by_host = host.receive(interface, frame);
        let by_kernel = kernel.receive(slot, frame);
        let before = counted[slot];
        counted[slot] = kernel.counters_of(slot as u32);
        let decisions = counted_decisions(&before, &counted[slot]);
        if (by_host.verdict, by_host.reason) != (verdict, reason)
            || decisions != [(verdict, reason)]
            || by_kernel != action
        {
            let message = format!(
                "the model: {verdict:?} {reason:?}, action {action}\nthe kernel: {decisions:?}, action {by_kernel}\nthe host: {by_host:?}\n{facts:?}"
            );
            return Err(Wrong { position, message });
        }
        for counter in counted_as(&by_host) {
            *counts.entry(counter).or_default() += 1;
        }
    }
    let by_kernel = self::counts(kernel, &tables.ids);
    if counts != by_kernel {
        let message = format!("counted: {by_kernel:?}, expected: {counts:?}");
        let position = scenario.traffic.len() - 1;
        return Err(Wrong { position, message });
    }
    Ok(())
}

/// The nonzero packet counters of sources and services, by kind and id.
pub(crate) type Counts = BTreeMap<(&'static str, u32), u64>;

/// Returns the source and service counters that a packet with this decision increments.
pub(crate) fn counted_as(decision: &Decision) -> Vec<(&'static str, u32)> {
    let service = if decision.match_id != 0 {
        "passed"
    } else if decision.verdict == Verdict::Drop {
        "dropped"
    } else {
        return Vec::new();
    };
    let mut counters = vec![("sources", decision.match_id), (service, decision.service)];
    counters.retain(|(_, id)| *id != 0);
    counters
}

/// Returns the kernel's counters of all ids with names since the maps were created.
pub(crate) fn counts(kernel: &Kernel, ids: &IdTable) -> Counts {
    let view = kernel.view();
    let sources = view.traffic(ids.matches.len()).expect("counts");
    let services = view.service_traffic(ids.services.len()).expect("counts");
    let sources = (0..)
        .zip(&sources)
        .map(|(id, traffic)| (("sources", id), traffic.packets));
    let passed = (0..)
        .zip(&services)
        .map(|(id, traffic)| (("passed", id), traffic.passed.packets));
    let dropped = (0..)
        .zip(&services)
        .map(|(id, traffic)| (("dropped", id), traffic.dropped_packets));
    let all = sources.chain(passed).chain(dropped);
    all.filter(|(_, packets)| *packets != 0).collect()
}

/// Returns the decisions that were counted between two readings.
pub(crate) fn counted_decisions(before: &Counters, after: &Counters) -> Vec<(Verdict, Reason)> {
    let mut decisions = Vec::new();
    for verdict in Verdict::ALL {
        for reason in Reason::ALL {
            let packets = after.get(verdict, reason) - before.get(verdict, reason);
            decisions.extend((0..packets).map(|_| (verdict, reason)));
        }
    }
    decisions
}
