//! Publishes generations one after the other while packets run on all CPUs: no packet uses a table that is being written,
//! and each packet has a table.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use allowlist_common::verdict::{Reason, Verdict};
use allowlist_policy::compile::{IdTable, Tables, compile};
use allowlist_policy::{Engine, Mode, Rules};
use allowlist_tests::lab::with_background_load;
use allowlist_tests::{EBPF_OBJECT, require_root};
use allowlist_user::config::Config;
use aya::maps::Array;
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use ipnet::{IpNet, Ipv4Net};

use super::frames::tcp;
use super::is_long;
use super::kernel::Kernel;

/// Addresses of the same /16, so that all changes are in one chunk of the range table.
const ALLOWED: &str = "198.18.77.7";
const UNLISTED: &str = "198.18.99.9";

/// The same for IPv6, in the same /16.
const ALLOWED_V6: &str = "2001:db8:77::7";
const UNLISTED_V6: &str = "2001:db8:99::9";

/// Returns a policy for a turn. All policies allow the same one of the two addresses, and differ in the prefixes nearby.
fn tables(turn: u32) -> Tables {
    let others = (0..3_000_u32)
        .filter(|number| number % 3 != turn % 3)
        .map(|number| {
            let address = 0xc612_0000 + number * 3 + turn % 2;
            Ipv4Net::new(address.into(), 32).expect("a prefix")
        });
    let other = others
        .filter(|prefix| prefix.addr().octets()[2] != 99)
        .map(IpNet::V4);
    tables_with(other.collect())
}

/// Returns a policy that allows [`ALLOWED`], [`ALLOWED_V6`] and the prefixes.
pub(crate) fn tables_with(prefixes: Vec<IpNet>) -> Tables {
    let text = "[services.web]\nports = ['tcp/443']\nallow = ['a', 'b']\n\
                [sources.a]\nprefixes = ['198.18.77.0/24', '2001:db8:77::/48']\n\
                [sources.b]\nprefixes = ['192.0.2.1']\n";
    let config = Config::parse(text, "test.toml".as_ref()).expect("a configuration");
    let mut snapshot = allowlist_tests::model::static_snapshot(&config.policy);
    let feed = snapshot.get_mut("b").expect("a source");
    Arc::make_mut(feed).prefixes = prefixes;
    compile(&config.policy, &snapshot, 100_000, &IdTable::default()).expect("tables")
}

#[test]
fn no_packet_uses_a_table_that_is_being_written() {
    require_root!();
    let generations = [0, 1, 2].map(tables);
    for lookup in [Engine::RangeTable, Engine::LpmTrie] {
        let publishes = match (is_long(), lookup) {
            (true, _) => 1000,
            (false, Engine::RangeTable) => 200,
            (false, Engine::LpmTrie) => 30,
        };
        publish_under_load(lookup, &generations, publishes, [ALLOWED, UNLISTED]);
    }
}

/// Changes one prefix at a time in the chunk or block that all packets are looked up in. Each change appends a copy of
/// the chunk: a packet that used the root entry before the chunk was written would miss the allowed prefix.
#[test]
fn no_packet_uses_half_of_a_change_in_place() {
    require_root!();
    let nearby = |number: u32| -> [IpNet; 2] {
        let v4 = format!("198.18.{}.0/24", 2 * number);
        let v6 = format!("2001:db8:{number}::/48");
        [v4, v6].map(|prefix| prefix.parse().expect("a prefix"))
    };
    for (family, addresses) in [(0, [ALLOWED, UNLISTED]), (1, [ALLOWED_V6, UNLISTED_V6])] {
        let prefixes: Vec<IpNet> = (1..12).map(|number| nearby(number)[family]).collect();
        let generations: [Tables; 4] = std::array::from_fn(|turn| {
            // Each differs from the next in one prefix, and the last from the first.
            let missing = [&[][..], &[3], &[3, 7], &[7]][turn];
            let present = prefixes.iter().enumerate();
            let present = present.filter(|(index, _)| !missing.contains(index));
            tables_with(present.map(|(_, prefix)| *prefix).collect())
        });
        let slots = publish_under_load(Engine::RangeTable, &generations, 400, addresses);
        assert_eq!(slots[0], slots[1], "the last publish changed another slot");
    }
}

/// Publishes generations in turns while packets of the two addresses run, of which all generations allow the first one.
/// Checks that each packet has its verdict, and returns the active slot before and after.
fn publish_under_load(
    lookup: Engine,
    generations: &[Tables],
    publishes: usize,
    addresses: [&str; 2],
) -> [u32; 2] {
    let rules = Rules {
        lookup,
        ..Rules::default()
    };
    let mut kernel = Kernel::new();
    kernel.publish_on(&generations[0], Mode::Enforce, rules, &[]);
    let before = kernel.counters_of(0);
    let slot = |kernel: &Kernel| kernel.view().control().expect("a word").slot;
    let slot_before = slot(&kernel);
    let (dataplane, program) = kernel.parts();
    let judge = |frame: &[u8], times| {
        program.test_run(TestRunOptions {
            data_in: Some(frame),
            repeat: times,
            ..TestRunOptions::default()
        })?;
        Ok(())
    };
    let frames = addresses.map(|source| tcp(source, 443));
    let runs = with_background_load(judge, frames, || {
        (0..publishes).try_for_each(|turn| {
            let next = &generations[(turn + 1) % generations.len()];
            dataplane.publish(next, Mode::Enforce, &rules, &[], &[])?;
            Ok(())
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
        "passed and dropped packets, compared with the runs"
    );
    [slot_before, slot(&kernel)]
}

/// The state that makes `linger` end.
const STOP: u64 = 2;
/// The state that `linger` stores when it ends, at the latest after some seconds.
const DONE: u64 = 3;

/// A publish waits for the packets that use a slot before it writes to that slot again, independent of their duration.
#[test]
fn a_slot_is_not_written_while_a_packet_lingers() {
    require_root!();
    let rules = Rules::default();
    let generations = [0, 1, 2].map(tables);
    let mut kernel = Kernel::new();
    let (dataplane, _) = kernel.parts();
    let mut publish = |turn: usize| {
        dataplane
            .publish(&generations[turn], Mode::Enforce, &rules, &[], &[])
            .expect("a publish");
    };
    publish(0);
    publish(1);
    let mut object = aya::Ebpf::load(EBPF_OBJECT).expect("the programs load");
    let lingers = object.take_map("LINGERS").expect("the map");
    let lingers: Array<_, u64> = lingers.try_into().expect("an array");
    let linger: &mut Xdp = object
        .program_mut("linger")
        .expect("the program")
        .try_into()
        .expect("an XDP program");
    linger.load().expect("the program loads");
    let lingers = Mutex::new(lingers);
    let lingers = || lingers.lock().expect("no other thread panicked");
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
        publish(2); // leaves the slot that the program may use
        assert_ne!(
            state(),
            DONE,
            "the publish waited for the program too early"
        );
        scope.spawn(|| {
            // Longer than two publishes without a wait.
            thread::sleep(Duration::from_millis(500));
            lingers().set(0, STOP, 0).expect("a writable map");
        });
        publish(0); // this publish or the next one writes to that slot
        publish(1);
        assert_eq!(state(), DONE, "the publish did not wait for the program");
    });
}
