//! Each way in which the kernel can differ from the published state, one at a time.

use super::*;
use DifferenceKind as Kind;

const HERE: u64 = 7;

/// Returns a published state of `eth0` with index 3: program 10 in its link, flow tracker 11, and all maps with the ids
/// from 100 on.
fn published() -> Published {
    let mut identity = Identity {
        namespace: HERE,
        namespace_inode: 4_026_531_840,
        program: 10,
        tracker: 11,
        ..Identity::default()
    };
    for (id, place) in (100..).zip(0..PINNED.len()) {
        identity.maps[place] = id;
    }
    Published {
        word: 0x1_0000_0001,
        slots: vec![Slot {
            number: 0,
            name: "eth0".to_owned(),
            index: 3,
            is_tracked_by_tcx: true,
            is_bypassed: false,
            identity,
        }],
    }
}

fn link(program: u32, interface: Option<u32>) -> LinkFact {
    LinkFact::Pinned(LinkState { program, interface })
}

#[expect(clippy::unnecessary_wraps, reason = "rows have none too")]
fn device(names: &[&str], programs: &[u32], chain: &[u32]) -> Option<Device> {
    Some(Device {
        names: names.iter().map(|&name| name.to_owned()).collect(),
        programs: programs.to_vec(),
        chain: chain.to_vec(),
    })
}

/// Returns the kernel state without any difference from the published state.
fn kernel() -> Kernel {
    let maps = (100..).zip(PINNED);
    Kernel {
        namespace: HERE,
        word: Some(0x1_0000_0001),
        maps: maps.map(|(id, (name, _))| (name, Some(id))).collect(),
        slots: vec![SlotFacts {
            link: link(10, Some(3)),
            tracker: link(11, Some(3)),
            device: device(&["eth0"], &[10], &[11]),
        }],
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut Kernel), expected: &[Kind]) {
    let mut kernel = kernel();
    change(&mut kernel);
    let found = compare(&kernel, &published());
    let kinds: Vec<_> = found.iter().map(|difference| difference.kind).collect();
    assert_eq!(kinds, expected, "{found:#?}");
}

#[test]
fn nothing_differs() {
    check(|_| {}, &[]);
    // On a read-only file system the interface and the chain are enough.
    check(
        |kernel| {
            kernel.slots[0].link = LinkFact::Unreadable;
            kernel.slots[0].tracker = LinkFact::Unreadable;
        },
        &[],
    );
    // A name that is an alternative one, and a program of another mode beside ours.
    check(
        |kernel| kernel.slots[0].device = device(&["enp3s0", "eth0"], &[9, 10], &[11, 12]),
        &[],
    );
}

#[test]
fn the_control_word() {
    check(|kernel| kernel.word = Some(0), &[Kind::ControlWord]);
    check(
        |kernel| {
            kernel.word = None;
            kernel.maps[0].1 = None;
        },
        &[Kind::MapPinMissing],
    );
    let published = Published {
        word: 0,
        ..Published::default()
    };
    let kernel = Kernel {
        word: Some(0),
        ..Kernel::default()
    };
    assert_eq!(compare(&kernel, &published), []);
}

#[test]
fn each_map() {
    for place in 0..PINNED.len() {
        check(|kernel| kernel.maps[place].1 = None, &[Kind::MapPinMissing]);
        check(
            |kernel| kernel.maps[place].1 = Some(7),
            &[Kind::MapReplaced],
        );
    }
}

#[test]
fn the_link_and_the_interface() {
    let cases: [(LinkFact, Option<Device>, &[Kind]); 12] = [
        (
            LinkFact::Missing,
            device(&["eth0"], &[], &[11]),
            &[Kind::LinkPinMissing],
        ),
        (
            link(10, None),
            device(&["eth0"], &[], &[11]),
            &[Kind::LinkDetached],
        ),
        (
            link(10, None),
            device(&["new0"], &[], &[]),
            &[Kind::InterfaceGone],
        ),
        (link(10, None), None, &[Kind::InterfaceGone]),
        (LinkFact::Missing, None, &[Kind::InterfaceGone]),
        (
            link(12, Some(3)),
            device(&["eth0"], &[12], &[11]),
            &[Kind::ProgramReplaced],
        ),
        (link(10, Some(3)), None, &[Kind::InterfaceMoved]),
        (
            link(10, Some(3)),
            device(&["eth0"], &[], &[]),
            &[Kind::InterfaceMoved],
        ),
        (
            link(10, Some(3)),
            device(&["eth0"], &[44], &[]),
            &[Kind::InterfaceMoved],
        ),
        (
            link(10, Some(3)),
            device(&["wan"], &[10], &[11]),
            &[Kind::InterfaceRenamed],
        ),
        (
            link(12, Some(3)),
            device(&["wan"], &[12], &[11]),
            &[Kind::ProgramReplaced, Kind::InterfaceRenamed],
        ),
        (
            LinkFact::Unreadable,
            device(&["eth0"], &[12], &[11]),
            &[Kind::ProgramMissing],
        ),
    ];
    for (link, device, expected) in cases {
        check(
            |kernel| {
                kernel.slots[0].link = link;
                kernel.slots[0].device = device;
            },
            expected,
        );
    }
}

#[test]
fn the_flow_tracker() {
    let cases: [(LinkFact, &[u32], &[Kind]); 5] = [
        (LinkFact::Missing, &[], &[Kind::TrackerPinMissing]),
        (link(11, None), &[], &[Kind::TrackerDetached]),
        (link(12, Some(3)), &[12], &[Kind::TrackerReplaced]),
        (link(11, Some(3)), &[5, 6, 11, 8], &[Kind::TrackerOrder]),
        (link(11, Some(3)), &[11, 8], &[]),
    ];
    for (tracker, chain, expected) in cases {
        check(
            |kernel| {
                kernel.slots[0].tracker = tracker;
                kernel.slots[0].device = device(&["eth0"], &[10], chain);
            },
            expected,
        );
    }
    let mut found = compare(
        &Kernel {
            slots: vec![SlotFacts {
                device: device(&["eth0"], &[10], &[5, 6, 11]),
                ..kernel().slots[0].clone()
            }],
            ..kernel()
        },
        &published(),
    );
    found[0].name_programs(|id| format!("name{id}"));
    assert!(
        found[0].text.contains("id 5 (name5), id 6 (name6)"),
        "{found:?}"
    );
    assert!(!found[0].kind.is_ours());
}

/// An interface with the same index in another namespace is a different interface.
#[test]
fn another_namespace() {
    check(
        |kernel| kernel.namespace = HERE + 1,
        &[Kind::OtherNamespace],
    );
    // A removed interface is gone in every namespace.
    check(
        |kernel| {
            kernel.namespace = HERE + 1;
            kernel.slots[0].link = link(10, None);
            kernel.slots[0].device = None;
        },
        &[Kind::InterfaceGone],
    );
}

/// An interface that was moved away is no difference once another one has its name, and the filter.
#[test]
fn a_name_that_went_to_another_interface() {
    let mut published = published();
    let mut second = published.slots[0].clone();
    second.number = 1;
    second.identity.program = 20;
    second.identity.tracker = 21;
    published.slots.push(second);
    let mut kernel = kernel();
    kernel.slots[0].device = device(&["eth0"], &[20], &[21]);
    kernel.slots.push(SlotFacts {
        link: link(20, Some(3)),
        tracker: link(21, Some(3)),
        device: device(&["eth0"], &[20], &[21]),
    });
    assert_eq!(compare(&kernel, &published), []);
    kernel.slots[1].link = LinkFact::Missing;
    let found = compare(&kernel, &published);
    let kinds: Vec<_> = found.iter().map(|one| one.kind).collect();
    assert_eq!(kinds, [Kind::InterfaceMoved, Kind::LinkPinMissing]);
}
