//! The shipped kernel programs under `BPF_PROG_TEST_RUN`: hand-made frames with expected decisions (`frames`, `check`), and
//! random scenarios against the model (`random`), nftables (`oracle`) and `explain` (`explain`). The same packet logic,
//! compiled for the host, runs the same frames, so that tests on the host are valid for the kernel.

mod check;
mod egress_root;
mod explain;
mod fast_path;
mod frames;
mod in_place;
mod kernel;
mod map_types;
mod oracle;
mod player;
mod random;
mod under_load;
mod verifier;

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use allowlist_common::verdict::{Reason, Verdict};
use allowlist_policy::Mode;
use allowlist_policy::compile::{IdTable, compile};
use allowlist_tests::model;
use allowlist_tests::model::host::Host;
use allowlist_tests::{require_root, skip};
use allowlist_user::config::Config;
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::{Strategy as _, any};
use proptest::sample::{Index, select};
use proptest::test_runner::{Config as Cases, TestRunner};

use check::Compiled;
use frames::{Group, VENDOR, config, groups, tcp};
use kernel::{INTERFACE, Kernel, XDP_DROP, XDP_PASS};

/// Runs each frame under each configuration, unchanged and lengthened.
#[test]
fn the_kernel_decides_each_row() {
    require_root!();
    check::in_the_kernel(&groups());
}

#[test]
fn the_kernel_decides_each_row_in_two_buffers() {
    require_root!();
    let release = kernel::release();
    if !kernel::supports_linear_size(&release) {
        skip!(
            "Linux {release} cannot run a test frame with a linear part of a chosen size (added in 6.18)"
        );
    }
    check::in_two_buffers(&groups());
}

/// Runs without root.
#[test]
fn the_host_decides_each_row() {
    check::on_the_host(&groups());
}

/// Before the first publish no source is allowed.
#[test]
fn without_a_generation_everything_is_dropped_and_counted() {
    require_root!();
    let kernel = Kernel::new();
    assert_eq!(kernel.run(&tcp(VENDOR, 443)), XDP_DROP);
    assert_eq!(
        kernel.counters().get(Verdict::Drop, Reason::InternalError),
        1
    );
}

/// Before the change the filter was not attached, so the rollback passes all packets.
#[test]
fn an_expired_first_change_passes_everything() {
    require_root!();
    let groups = groups();
    let mut kernel = Kernel::new();
    kernel.arm_rollback(Duration::ZERO);
    Compiled::of(&tracking(&groups).config).publish(&mut kernel);
    let rows = || groups.iter().flat_map(|group| &group.rows);
    for row in rows() {
        assert_eq!(kernel.run(&row.frame), XDP_PASS, "{}", row.description);
    }
    let passed = kernel.counters().get(Verdict::Pass, Reason::Default);
    assert_eq!(passed, rows().count() as u64);
    kernel.arm_rollback(Duration::from_hours(1));
    assert!(kernel.view().control().expect("a word").open);
}

/// Frames with changed, removed and added bytes, in one buffer and in two, with flow tracking: the kernel program and the
/// packet logic on the host have the same decisions.
#[test]
fn the_kernel_and_the_host_agree_on_mutated_frames() {
    require_root!();
    let groups = groups();
    let tracking = tracking(&groups);
    let compiled = Compiled::of(&tracking.config);
    let mut kernel = Kernel::new();
    compiled.publish(&mut kernel);
    let mut host = Host::new(&compiled.tables, &compiled.config.rules, &[INTERFACE]);
    tracking
        .sent
        .iter()
        .for_each(|frame| host.send(INTERFACE, frame));

    let supports_linear_size = kernel::supports_linear_size(&kernel::release());
    let rows = groups.iter().flat_map(|group| &group.rows);
    // Longer frames have fragments, and the kernel program reads only their first 512 bytes.
    let originals: Vec<Vec<u8>> = rows
        .map(|row| row.frame.clone())
        .filter(|frame| frame.len() <= 3000)
        .collect();
    let changes = vec((any::<Index>(), any::<u8>()), 0..4);
    let shape = (select(originals), changes, 14..200_usize, 0..80_usize);
    let mutated = shape.prop_map(|(mut frame, changes, length, first)| {
        for (index, byte) in changes {
            // Usually in the headers, independent of the length of the frame.
            let offset = index.index(frame.len().min(100));
            frame[offset] = byte;
        }
        if length < 100 {
            frame.resize(length, 0xa5);
        }
        (frame, first)
    });
    let cases = if is_long() { 200_000 } else { 4_000 };
    let cases_so_far = Cell::new(0);
    let done = runner(cases).run(&mutated, |(frame, first)| {
        if cases_so_far.get() % 500 == 0 {
            // Repeated, so that no flow expires on a slow machine.
            tracking.sent.iter().for_each(|frame| kernel.send(frame));
        }
        cases_so_far.set(cases_so_far.get() + 1);
        let decision = host.receive(INTERFACE, &frame);
        let mut expected = kernel.counters();
        *expected.cell(decision.verdict, decision.reason) += 1;
        if supports_linear_size && (14..frame.len()).contains(&first) {
            kernel.run_with_linear_size(&frame, first);
        } else {
            kernel.run(&frame);
        }
        proptest::prop_assert_eq!(kernel.counters(), expected, "{} of {:02x?}", first, frame);
        Ok(())
    });
    done.unwrap_or_else(|error| panic!("{error}"));
}

/// The default `max_prefixes` fit; lookups find the prefixes, and not the adjacent addresses.
#[test]
fn a_million_prefixes_fit() {
    require_root!();
    let config = config("").replace("192.0.2.0/28", "203.0.113.1"); // replaced below
    let config = Config::parse(&config, "test.toml".as_ref()).expect("a configuration");
    let mut snapshot = model::static_snapshot(&config.policy);
    let even = |index: u32| Ipv4Addr::from_bits(0x0a00_0000 + 2 * index);
    let vendor = Arc::make_mut(snapshot.get_mut("vendor").expect("a source"));
    vendor.prefixes = (0..1_000_000)
        .map(|index| IpNet::from(IpAddr::from(even(index))))
        .collect();
    let compiled = |limit| compile(&config.policy, &snapshot, limit, &IdTable::default());
    assert!(
        compiled(1_000_000).is_err(),
        "the office's prefixes exceed the limit"
    );
    let tables = compiled(1_000_002).expect("all prefixes fit");
    let mut kernel = Kernel::new();
    kernel.publish(&tables, Mode::Enforce, Verdict::Pass);
    for index in [0, 1, 499_999, 999_999] {
        let address = even(index);
        let adjacent = Ipv4Addr::from_bits(address.to_bits() + 1);
        assert_eq!(
            kernel.run(&tcp(&address.to_string(), 443)),
            XDP_PASS,
            "{address}"
        );
        assert_eq!(
            kernel.run(&tcp(&adjacent.to_string(), 443)),
            XDP_DROP,
            "{adjacent}"
        );
    }
    assert_eq!(kernel.view().entries().expect("a list").len(), 1_000_002);
}

/// Returns the group in which only tracked flows pass.
fn tracking(groups: &[Group]) -> &Group {
    let mut named = groups.iter().filter(|group| group.name == "errors, track");
    named.next().expect("a group of that name")
}

fn is_long() -> bool {
    std::env::var_os("ALLOWLIST_LONG").is_some()
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Cases {
        failure_persistence: None,
        max_shrink_iters: 0,
        ..Cases::with_cases(cases)
    })
}
