//! Whole generations one after the other while packets are judged on every CPU: none is judged by a table that is being
//! written, nor by none.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use allowlist_common::verdict::{Reason, Verdict};
use allowlist_tests::lab::with_background_load;
use allowlist_tests::require_root;
use allowlist_user::compile::{Names, Tables, compile};
use allowlist_user::config::Config;
use allowlist_user::policy::{Engine, Mode, Rules};
use aya::maps::Array;
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use ipnet::{IpNet, Ipv4Net};

use super::frames::tcp;
use super::is_long;
use super::kernel::Kernel;

/// Addresses of the same /16, so that all of the changes are in one chunk of the range table.
const FRIEND: &str = "198.18.77.7";
const STRANGER: &str = "198.18.99.9";

/// One of two policies: both let the friend in and not the stranger, and are different in all else that is near.
fn tables(turn: u32) -> Tables {
    let text = "[services.web]\nports = ['tcp/443']\nallow = ['a', 'b']\n\
                [sources.a]\nprefixes = ['198.18.77.0/24']\n\
                [sources.b]\nprefixes = ['192.0.2.1']\n";
    let config = Config::parse(text, "test.toml".as_ref()).expect("a configuration");
    let mut snapshot = allowlist_tests::model::static_snapshot(&config.policy);
    let others = (0..3_000_u32)
        .filter(|number| number % 3 != turn % 3)
        .map(|number| {
            let address = 0xc612_0000 + number * 3 + turn % 2;
            Ipv4Net::new(address.into(), 32).expect("a prefix")
        });
    let other = others
        .filter(|prefix| prefix.addr().octets()[2] != 99)
        .map(IpNet::V4);
    snapshot.get_mut("b").expect("a source").prefixes = other.collect();
    compile(&config.policy, &snapshot, 10_000, &Names::default()).expect("tables")
}

#[test]
fn no_packet_meets_a_table_that_is_written() {
    require_root!();
    for lookup in [Engine::RangeTable, Engine::LpmTrie] {
        publish_under_load(lookup);
    }
}

fn publish_under_load(lookup: Engine) {
    let publishes = match (is_long(), lookup) {
        (true, _) => 1000,
        (false, Engine::RangeTable) => 200,
        (false, Engine::LpmTrie) => 30,
    };
    let rules = Rules {
        lookup,
        ..Rules::default()
    };
    let generations = [0, 1, 2].map(tables);
    let mut kernel = Kernel::new();
    kernel.publish_on(&generations[0], Mode::Enforce, rules, &[]);
    let before = kernel.counters_of(0);
    let (dataplane, program) = kernel.parts();
    let judge = |frame: &[u8], times| {
        program.test_run(TestRunOptions {
            data_in: Some(frame),
            repeat: times,
            ..TestRunOptions::default()
        })?;
        Ok(())
    };
    let frames = [FRIEND, STRANGER].map(|source| tcp(source, 443));
    let runs = with_background_load(judge, frames, || {
        (0..publishes).try_for_each(|turn| {
            let next = &generations[(turn + 1) % generations.len()];
            dataplane
                .publish(next, Mode::Enforce, &rules, &[])
                .map(drop)
        })
    });
    let runs = runs.expect("runs and publishes");
    assert!(runs.iter().all(|runs| *runs > 0), "{runs:?}");
    let after = kernel.counters_of(0);
    let counted = |verdict, reason| after.get(verdict, reason) - before.get(verdict, reason);
    assert_eq!(
        [
            counted(Verdict::Pass, Reason::Allowed),
            counted(Verdict::Drop, Reason::NotAllowed)
        ],
        runs,
        "friends let in and strangers refused, of those that came"
    );
}

/// Programs that exist to be measured, and one that takes its time.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/allowlist-bench-ebpf"));
/// What `linger` is told, for its packet to go.
const GO: u64 = 2;
/// What it stores then, or after some seconds.
const GONE: u64 = 3;

/// A packet that is in the kernel when its slot is left is waited for before that slot is written to again, however long
/// it takes.
#[test]
fn a_slot_is_not_written_while_a_packet_lingers() {
    require_root!();
    let rules = Rules::default();
    let generations = [0, 1, 2].map(tables);
    let mut kernel = Kernel::new();
    let (dataplane, _) = kernel.parts();
    let mut publish = |turn: usize| {
        dataplane
            .publish(&generations[turn], Mode::Enforce, &rules, &[])
            .expect("a publish");
    };
    publish(0);
    publish(1);
    let mut object = aya::Ebpf::load(OBJECT).expect("the benchmark's programs");
    let lingers = object.take_map("LINGERS").expect("the map");
    let lingers: Array<_, u64> = lingers.try_into().expect("an array");
    let linger: &mut Xdp = object
        .program_mut("linger")
        .expect("the program")
        .try_into()
        .expect("an XDP program");
    linger.load().expect("the kernel takes it");
    let lingers = Mutex::new(lingers);
    let lingers = || lingers.lock().expect("no thread failed with it");
    let state = || lingers().get(&0, 0).expect("its state");
    thread::scope(|scope| {
        scope.spawn(|| {
            let options = TestRunOptions {
                data_in: Some(&[0; 64]),
                ..TestRunOptions::default()
            };
            linger.test_run(options).expect("a run");
        });
        while state() == 0 {
            thread::yield_now();
        }
        publish(2); // leaves a slot that a packet may be looking into
        assert_ne!(state(), GONE, "the packet was waited for too early");
        scope.spawn(|| {
            // Longer than two publishes take that wait for nobody.
            thread::sleep(Duration::from_millis(500));
            lingers().set(0, GO, 0).expect("a map that can be written");
        });
        publish(0); // and the next one, or the one after it, writes there
        publish(1);
        assert_eq!(state(), GONE, "the packet was not waited for");
    });
}
