//! The BTF types of the pinned maps: with them, `bpftool map dump` prints fields by name.

use std::os::fd::AsFd as _;

use allowlist_common::abi::{self, PINNED};
use allowlist_policy::{Mode, Rules};
use allowlist_tests::lab::MapTypes;
use allowlist_tests::require_root;
use aya::maps::MapData;
use ipnet::{IpNet, Ipv4Net};

use super::kernel::Kernel;
use super::under_load::tables_with;

/// The type of the values of each pinned map; `None` for arrays of maps and the ring buffer, whose values are not typed.
const TYPES: [(&str, Option<&str>); PINNED.len()] = [
    (abi::CONTROL, Some("ControlValue")),
    (abi::FALLBACK, Some("Fallback")),
    (abi::GENERATIONS, Some("Generation")),
    (abi::PREFIXES, None),
    (abi::TRIES_V4, None),
    (abi::TRIES_V6, None),
    (abi::COUNTERS, Some("Counters")),
    (abi::MATCHES, Some("Traffic")),
    (abi::SERVICE_COUNTS, Some("ServiceTraffic")),
    (abi::INTERFACES, Some("Interface")),
    (abi::IDENTITIES, Some("Identity")),
    (abi::PUBLISHED, Some("PublishedValue")),
    (abi::METADATA, None),
    (abi::FLOWS, Some("FlowEntry")),
    (abi::PEERS, Some("FlowEntry")),
    (abi::FOREIGN, Some("FlowEntry")),
    (abi::FOREIGN_PORTS, Some("ForeignPort")),
    (abi::CROWDING, Some("Crowding")),
    (abi::MARKING, Some("Marking")),
    (abi::PORTS, Some("PortsInUse")),
    (abi::EVENTS, None),
    (abi::EVENT_BUDGET, Some("EventBudget")),
];

#[test]
fn maps_have_types() {
    require_root!();
    let mut kernel = Kernel::new();
    for (name, expected) in TYPES {
        check(&kernel, name, expected);
    }

    let bytes = kernel.parts().0.table_bytes();
    let many = (0..60_000_u32).map(|index| {
        let prefix = Ipv4Net::new((0x0a00_0000 + 2 * index).into(), 32).expect("a prefix");
        IpNet::V4(prefix)
    });
    kernel.publish_on(
        &tables_with(many.collect()),
        Mode::Enforce,
        Rules::default(),
        &[],
    );
    assert!(kernel.parts().0.table_bytes() > bytes, "the tables grew");
    check(&kernel, abi::GENERATIONS, Some("Generation"));
}

fn check(kernel: &Kernel, name: &str, expected: Option<&str>) {
    let map = MapData::from_pin(kernel.pin_dir().join(name)).expect("a pinned map");
    let types = MapTypes::of(map.fd().as_fd()).expect("the map's types");
    assert_eq!(types.is_some(), expected.is_some(), "{name} has BTF");
    if let (Some(types), Some(expected)) = (types, expected) {
        assert!(types.values_are(expected), "values of {name}");
    }
}
