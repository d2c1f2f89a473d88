//! The shipped kernel program under `BPF_PROG_TEST_RUN`: hand-made frames with the reason that each
//! must end in, and random worlds against the linear model. The host's copy of the same logic is
//! asked the same, so that the two can be trusted to be one.

mod frames;
mod kernel;
mod random;
mod verifier;

use std::net::{IpAddr, Ipv4Addr};

use allowlist_common::abi::Counters;
use allowlist_common::verdict::{Reason, Verdict};
use allowlist_tests::model;
use allowlist_tests::model::host::Host;
use allowlist_tests::require_root;
use allowlist_user::compile::{Names, Tables, compile};
use allowlist_user::config::Config;
use allowlist_user::policy::Mode;
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::{Strategy as _, any};
use proptest::sample::{Index, select};
use proptest::test_runner::{Config as Cases, TestRunner};

use frames::{OFFICE, STRANGER, VENDOR, VENDOR6, frames, tcp};
use kernel::{Kernel, XDP_DROP, XDP_PASS, rules};

const POLICY: &str = r#"
    [services.web]
    ports = ["tcp/443", "tcp/8443-8445"]
    allow = ["vendor", "office"]
    [services.dns]
    ports = ["udp/53"]
    allow = ["office"]
    [services.ping]
    ports = ["icmp"]
    allow = ["office"]
    [sources.vendor]
    prefixes = ["192.0.2.0/28", "2001:db8:1::/64"]
    [sources.office]
    prefixes = ["203.0.113.0/24", "2001:db8:7::/48"]
"#;

fn verdict(reason: Reason, default: Verdict) -> Verdict {
    match reason {
        Reason::Default => default,
        Reason::Malformed | Reason::NotAllowed | Reason::InternalError => Verdict::Drop,
        _ => Verdict::Pass,
    }
}

fn tables() -> Tables {
    let config = Config::parse(POLICY, "test.toml".as_ref()).expect("a configuration");
    let snapshot = model::static_snapshot(&config.policy);
    compile(&config.policy, &snapshot, 1000, &Names::default()).expect("tables")
}

/// Every frame must end in its reason, counted once and nowhere else.
fn check(mode: Mode, default: Verdict) {
    let mut kernel = Kernel::new();
    kernel.publish(&tables(), mode, default);
    let mut wrong = Vec::new();
    for (description, frame, reason) in frames() {
        let verdict = verdict(reason, default);
        let mut expected = kernel.counters();
        *expected.cell(verdict, reason) += 1;
        let action = kernel.run(&frame);
        let counted = kernel.counters();
        if counted != expected {
            wrong.push(format!(
                "{description}: want {} {}, counted otherwise: {}",
                verdict.name(),
                reason.name(),
                ends(&expected, &counted)
            ));
        }
        let wanted = match (mode, verdict) {
            (Mode::Enforce, Verdict::Drop) => XDP_DROP,
            _ => XDP_PASS,
        };
        if action != wanted {
            wrong.push(format!("{description}: action {action}, not {wanted}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where a packet was counted, for a message.
fn ends(expected: &Counters, counted: &Counters) -> String {
    let mut ends = Vec::new();
    for verdict in Verdict::ALL {
        for reason in Reason::ALL {
            if counted.get(verdict, reason) > expected.get(verdict, reason) {
                ends.push(format!("{} {}", verdict.name(), reason.name()));
            }
        }
    }
    ends.join(", ")
}

#[test]
fn every_frame_ends_in_its_reason() {
    require_root!();
    check(Mode::Enforce, Verdict::Pass);
}

#[test]
fn the_default_verdict_decides_what_no_service_covers() {
    require_root!();
    check(Mode::Enforce, Verdict::Drop);
}

#[test]
fn observing_counts_the_same_and_passes_everything() {
    require_root!();
    check(Mode::Observe, Verdict::Drop);
}

/// The same frames by the host's copy of the logic: runs without root.
#[test]
fn the_host_agrees_on_every_frame() {
    let tables = tables();
    for default in Verdict::ALL {
        let host = Host::new(&tables, &rules(default), &["eth0"]);
        for (description, frame, reason) in frames() {
            let decision = host.receive("eth0", &frame);
            assert_eq!(decision.reason, reason, "{description}");
            assert_eq!(decision.verdict, verdict(reason, default), "{description}");
        }
    }
}

/// What a grant lets in is counted under its match id, with the frame's bytes.
#[test]
fn passes_are_counted_by_source() {
    require_root!();
    let mut kernel = Kernel::new();
    let tables = tables();
    kernel.publish(&tables, Mode::Enforce, Verdict::Pass);
    for frame in [
        tcp(VENDOR, 443),
        tcp(VENDOR6, 443),
        tcp(OFFICE, 443),
        tcp(STRANGER, 443),
        tcp(VENDOR, 22),
    ] {
        kernel.run(&frame);
    }
    let view = kernel.view();
    let traffic = view.traffic(tables.names.matches.len()).expect("traffic");
    let packets = |source: &str| {
        let id = tables
            .names
            .matches
            .iter()
            .position(|names| names == &[source])
            .expect("known");
        (traffic[id].packets, traffic[id].bytes)
    };
    assert_eq!(
        packets("vendor"),
        (2, (tcp(VENDOR, 443).len() + tcp(VENDOR6, 443).len()) as u64)
    );
    assert_eq!(packets("office"), (1, tcp(OFFICE, 443).len() as u64));
}

/// Before the first publish there is nothing that could let anybody in.
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

/// Frames with bytes changed, cut and added: whatever the host's copy of the logic says of one, the
/// kernel's says as well, and neither fails.
#[test]
fn the_kernel_and_the_host_agree_on_mutated_frames() {
    require_root!();
    let tables = tables();
    let mut kernel = Kernel::new();
    kernel.publish(&tables, Mode::Enforce, Verdict::Drop);
    let host = Host::new(&tables, &rules(Verdict::Drop), &["eth0"]);
    let originals: Vec<Vec<u8>> = frames().into_iter().map(|(_, frame, _)| frame).collect();
    let changes = vec((any::<Index>(), any::<u8>()), 0..4);
    let mutated =
        (select(originals), changes, 14..120_usize).prop_map(|(mut frame, changes, length)| {
            for (place, byte) in changes {
                let place = place.index(frame.len());
                frame[place] = byte;
            }
            if length < 100 {
                frame.resize(length, 0xa5);
            }
            frame
        });
    let cases = if is_long() { 200_000 } else { 4_000 };
    let done = runner(cases).run(&mutated, |frame| {
        let decision = host.receive("eth0", &frame);
        let mut expected = kernel.counters();
        *expected.cell(decision.verdict, decision.reason) += 1;
        kernel.run(&frame);
        proptest::prop_assert_eq!(kernel.counters(), expected, "{:02x?}", frame);
        Ok(())
    });
    done.unwrap_or_else(|error| panic!("{error}"));
}

/// As many as the configuration promises, each found, and none beside them.
#[test]
fn a_million_prefixes_fit() {
    require_root!();
    let config = POLICY.replace("192.0.2.0/28", "203.0.113.1"); // no room in the text for a million
    let config = Config::parse(&config, "test.toml".as_ref()).expect("a configuration");
    let mut snapshot = model::static_snapshot(&config.policy);
    let even = |place: u32| Ipv4Addr::from_bits(0x0a00_0000 + 2 * place);
    let vendor = snapshot.get_mut("vendor").expect("a source");
    vendor.prefixes = (0..1_000_000)
        .map(|place| IpNet::from(IpAddr::from(even(place))))
        .collect();
    let compiled = |limit| compile(&config.policy, &snapshot, limit, &Names::default());
    assert!(
        compiled(1_000_000).is_err(),
        "the office's do not fit besides"
    );
    let tables = compiled(1_000_002).expect("all of them fit");
    let mut kernel = Kernel::new();
    kernel.publish(&tables, Mode::Enforce, Verdict::Pass);
    for place in [0, 1, 499_999, 999_999] {
        let address = even(place);
        let beside = Ipv4Addr::from_bits(address.to_bits() + 1);
        assert_eq!(
            kernel.run(&tcp(&address.to_string(), 443)),
            XDP_PASS,
            "{address}"
        );
        assert_eq!(
            kernel.run(&tcp(&beside.to_string(), 443)),
            XDP_DROP,
            "{beside}"
        );
    }
    assert_eq!(kernel.view().entries().expect("a list").len(), 1_000_002);
}

/// What is traced costs; what is not traced is not even there.
#[test]
fn a_trace_that_is_off_is_removed_at_load() {
    require_root!();
    let kernel = Kernel::new();
    let (off, on) = (kernel.program_size(false), kernel.program_size(true));
    assert!(off + 10_000 < on, "{off} bytes without a trace, {on} with");
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
