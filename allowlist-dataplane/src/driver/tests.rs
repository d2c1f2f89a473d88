//! Predictions: a row for each condition, on both of its sides.

use std::fmt::Write as _;

use expect_test::{expect, expect_file};

use super::Prediction::*;
use super::*;
use crate::attach_mode::AttachModeRequest::{Auto, Generic, Native, Offload};

const ALL: u64 = XdpFeatures::BASIC | XdpFeatures::FRAGMENTS;

/// An interface with MTU 1500 and queues to spare, whose driver supports native programs.
fn driver(name: &str) -> Driver {
    Driver {
        interface: "eth0".to_owned(),
        name: Some(name.to_owned()),
        xdp: Some(XdpFeatures(XdpFeatures::BASIC)),
        mtu: 1500,
        page_size: 4096,
        channels: Some(Channels {
            rx: 2,
            rx_max: 4,
            tx: 2,
            tx_max: 4,
            ..Channels::default()
        }),
        ..Driver::default()
    }
}

fn with_channels(name: &str, channels: Channels) -> Driver {
    Driver {
        channels: Some(channels),
        ..driver(name)
    }
}

fn combined(name: &str, combined: u32, combined_max: u32) -> Driver {
    let channels = Channels {
        combined,
        combined_max,
        ..Channels::default()
    };
    with_channels(name, channels)
}

fn separate(name: &str, rx: u32, tx: u32, max: u32) -> Driver {
    let channels = Channels {
        rx,
        rx_max: max,
        tx,
        tx_max: max,
        ..Channels::default()
    };
    with_channels(name, channels)
}

fn with_mtu(mtu: u32, driver: Driver) -> Driver {
    Driver { mtu, ..driver }
}

fn with_xdp(features: u64, driver: Driver) -> Driver {
    Driver {
        xdp: Some(XdpFeatures(features)),
        ..driver
    }
}

/// A veth whose driver withdraws native XDP, with this many receive queues, and its peer.
fn short_veth(rx: u32, rx_max: u32, peer: Option<(&str, Option<u32>)>) -> Driver {
    let channels = Channels {
        rx,
        rx_max,
        ..Channels::default()
    };
    Driver {
        peer: peer.map(|(name, tx)| Peer {
            name: name.to_owned(),
            tx,
        }),
        ..with_xdp(0, with_channels("veth", channels))
    }
}

fn virtio(bits: &[u32]) -> Driver {
    let features = bits.iter().fold(0, |all, bit| all | 1 << bit);
    Driver {
        virtio: Some(features),
        ..driver("virtio_net")
    }
}

fn with_program(name: Option<&str>, mode: Option<XdpMode>) -> Driver {
    Driver {
        program: Some(Program {
            id: 7,
            name: name.map(str::to_owned),
            mode,
            is_filter: name == Some("allowlist"),
        }),
        ..driver("veth")
    }
}

#[track_caller]
fn check(driver: &Driver, wanted: AttachModeRequest, expected: &Prediction) {
    assert_eq!(driver.predict(wanted), *expected, "{wanted:?} {driver:?}");
}

/// Checks that `native` fails and `auto` falls back for the same obstacle, and returns the texts of the obstacle.
#[track_caller]
fn check_obstacle(driver: &Driver, obstacle: Obstacle) -> String {
    check(driver, Auto, &FallsBack(obstacle.clone()));
    // Generic mode does not depend on the driver.
    check(driver, Generic, &Attaches(XdpMode::Generic));
    let text = text(driver, &obstacle);
    check(driver, Native, &Fails(obstacle));
    text
}

/// Returns the texts of an obstacle.
fn text(driver: &Driver, obstacle: &Obstacle) -> String {
    let name = driver.name.as_deref().unwrap_or_default();
    let remedy = obstacle.remedy(&driver.interface);
    let remedy = remedy.as_deref().unwrap_or("-");
    format!("{name}: {obstacle}\nremedy: {remedy}\n\n")
}

#[test]
fn obstacles_of_virtual_interfaces() {
    let mut texts = String::new();
    let few = |rx, raise_to, peer: Option<&str>| Obstacle::FewQueues {
        rx: Some(rx),
        raise_to,
        peer: peer.map(str::to_owned),
    };
    for (driver, obstacle) in [
        (with_xdp(0, driver("e1000e")), Obstacle::NoNative),
        (
            short_veth(1, 1, Some(("vq2", Some(4)))),
            few(1, None, Some("vq2")),
        ),
        (
            short_veth(1, 8, Some(("vq2", Some(4)))),
            few(1, Some(4), Some("vq2")),
        ),
        (short_veth(2, 8, None), few(2, Some(8), None)),
        (short_veth(2, 2, None), few(2, None, None)),
        (virtio(&[7, 32]), Obstacle::HostOffloads),
    ] {
        texts += &check_obstacle(&driver, obstacle);
    }
    expect_file!["snapshots/virtual_interfaces.txt"].assert_eq(&texts);
}

#[test]
fn obstacles_of_network_cards() {
    let mut texts = String::new();
    let queues = |most, separate| Obstacle::Queues { most, separate };
    let lro = |name| Driver {
        lro: true,
        ..driver(name)
    };
    for (driver, obstacle) in [
        (
            with_mtu(9001, combined("ena", 4, 8)),
            Obstacle::Mtu { largest: 3498 },
        ),
        (combined("ena", 8, 8), queues(4, false)),
        (combined("ena", 1, 1), queues(0, false)),
        (
            with_mtu(1501, driver("igc")),
            Obstacle::Mtu { largest: 1500 },
        ),
        (lro("ixgbe"), Obstacle::Lro),
        (lro("mlx5_core"), Obstacle::Lro),
        (
            Driver {
                hardware_gro: true,
                ..driver("mlx5_core")
            },
            Obstacle::HardwareGro,
        ),
        (lro("gve"), Obstacle::Lro),
        (separate("gve", 3, 3, 4), queues(2, true)),
        (separate("gve", 2, 1, 4), queues(1, true)),
        (
            Driver {
                channels: Some(Channels {
                    rx: 6,
                    tx: 6,
                    rx_max: 8,
                    tx_max: 8,
                    combined_max: 4,
                    ..Channels::default()
                }),
                ..driver("bnxt_en")
            },
            Obstacle::SeparateQueues { combined: 4 },
        ),
    ] {
        texts += &check_obstacle(&driver, obstacle);
    }
    expect_file!["snapshots/network_cards.txt"].assert_eq(&texts);
}

#[test]
fn predictions_without_an_obstacle() {
    let unknown = |driver| Driver {
        xdp: None,
        ..driver
    };
    for (driver, expected) in [
        (
            with_mtu(9000, with_xdp(ALL, driver("veth"))),
            Attaches(XdpMode::Native),
        ),
        (driver("tun"), Attaches(XdpMode::Native)),
        (virtio(&[7, 2, 32]), Attaches(XdpMode::Native)),
        (virtio(&[32]), Attaches(XdpMode::Native)),
        (virtio(&[15, 32]), Attaches(XdpMode::Native)),
        (virtio(&[15]), DriverDecides(Undecided::Conditions)),
        (driver("virtio_net"), DriverDecides(Undecided::Conditions)),
        (combined("ena", 4, 8), AttachesAfterReset),
        (with_mtu(3498, combined("ena", 4, 8)), AttachesAfterReset),
        (
            Driver {
                page_size: 65_536,
                ..combined("ena", 4, 8)
            },
            DriverDecides(Undecided::Conditions),
        ),
        (driver("igc"), AttachesAfterReset),
        (separate("gve", 2, 2, 4), Attaches(XdpMode::Native)),
        (
            with_mtu(2032, separate("gve", 2, 2, 4)),
            Attaches(XdpMode::Native),
        ),
        (
            with_mtu(2033, separate("gve", 2, 2, 4)),
            DriverDecides(Undecided::LongPackets),
        ),
        (
            with_mtu(1501, driver("tun")),
            DriverDecides(Undecided::LongPackets),
        ),
        (driver("ixgbe"), DriverDecides(Undecided::Conditions)),
        (driver("mlx5_core"), DriverDecides(Undecided::Conditions)),
        (
            combined("bnxt_en", 8, 8),
            DriverDecides(Undecided::Conditions),
        ),
        (driver("sfc"), DriverDecides(Undecided::Conditions)),
        (
            unknown(driver("veth")),
            DriverDecides(Undecided::FeaturesUnknown),
        ),
        (
            unknown(with_mtu(9001, combined("ena", 4, 8))),
            FallsBack(Obstacle::Mtu { largest: 3498 }),
        ),
        (
            Driver {
                name: None,
                channels: None,
                ..driver("")
            },
            DriverDecides(Undecided::Conditions),
        ),
    ] {
        assert_eq!(driver.predict(Auto), expected, "{driver:?}");
    }
}

#[test]
fn offload_depends_on_the_features() {
    for (driver, expected) in [
        (driver("nfp"), Fails(Obstacle::NoOffload)),
        (
            with_xdp(ALL | XdpFeatures::OFFLOAD, driver("nfp")),
            DriverDecides(Undecided::Conditions),
        ),
        (
            Driver {
                xdp: None,
                ..driver("nfp")
            },
            DriverDecides(Undecided::FeaturesUnknown),
        ),
    ] {
        assert_eq!(driver.predict(Offload), expected, "{driver:?}");
    }
}

#[test]
fn attached_programs_decide_first() {
    let other = Obstacle::OtherProgram {
        id: 7,
        name: "other".to_owned(),
        mode: Some(XdpMode::Native),
    };
    let above = Obstacle::FilteredMaster("br0".to_owned());
    let native = Some(XdpMode::Native);
    let driver = with_program(Some("other"), native);
    let bridged = Driver {
        filtered_master: Some("br0".to_owned()),
        ..with_xdp(ALL, short_veth(2, 2, None))
    };
    for wanted in [Auto, Native, Generic] {
        check(&driver, wanted, &Fails(other.clone()));
        let unnamed = with_program(None, native);
        let expected = DriverDecides(Undecided::ProgramUnknown);
        check(&unnamed, wanted, &expected);
        check(&bridged, wanted, &Fails(above.clone()));
    }
    let own = with_program(Some("allowlist"), native);
    check(&own, Auto, &Attached(native));
    // A start attaches it in the other mode.
    check(&own, Generic, &Attaches(XdpMode::Generic));
    let texts = text(&driver, &other) + &text(&bridged, &above);
    expect_file!["snapshots/programs.txt"].assert_eq(&texts);
}

#[test]
fn outcomes_and_reasons_without_a_prediction_have_texts() {
    let mut texts = String::new();
    for outcome in [
        Outcome::Native,
        Outcome::NativeAfterReset,
        Outcome::Generic,
        Outcome::Offload,
        Outcome::Fails,
        Outcome::Unknown,
    ] {
        let json = serde_json::to_string(&outcome).expect("an outcome is JSON");
        writeln!(texts, "{json}: {outcome}").expect("a string takes any text");
    }
    for reason in [
        Undecided::FeaturesUnknown,
        Undecided::Conditions,
        Undecided::LongPackets,
        Undecided::ProgramUnknown,
    ] {
        writeln!(texts, "{reason:?}: {reason}").expect("a string takes any text");
    }
    writeln!(texts, "{}", Obstacle::NoOffload).expect("a string takes any text");
    expect![[r#"
        "native": native
        "native-after-reset": native, after a link reset
        "generic": generic
        "offload": offload
        "fails": fails
        "unknown": not known
        FeaturesUnknown: the driver decides; its XDP features are unknown, since the kernel is older than Linux 6.3
        Conditions: the driver supports XDP, but has conditions that allowlist cannot check
        LongPackets: the driver supports no multi-buffer XDP, and decides whether the MTU is too large
        ProgramUnknown: an XDP program is attached, and only root can read whether it is the filter
        the driver supports no XDP on the card
    "#]].assert_eq(&texts);
}
