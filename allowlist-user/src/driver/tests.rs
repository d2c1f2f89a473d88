//! Predictions: a row for each condition, on both of its sides.

use super::Prediction::*;
use super::*;
use crate::config::AttachMode::{Auto, Generic, Native, Offload};

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

fn with_program(name: Option<&str>, mode: Option<AttachedIn>) -> Driver {
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
fn check(driver: &Driver, wanted: AttachMode, expected: &Prediction, remedy: Option<&str>) {
    let predicted = driver.predict(wanted);
    assert_eq!(predicted, *expected, "{wanted:?} {driver:?}");
    let found = predicted.obstacle();
    let found = found.and_then(|obstacle| obstacle.remedy(&driver.interface));
    assert_eq!(found.as_deref(), remedy, "{wanted:?} {driver:?}");
}

/// Forced native mode fails where the automatic choice falls back, for the same reason.
#[track_caller]
fn check_obstacle(driver: &Driver, obstacle: Obstacle, remedy: Option<&str>) {
    check(driver, Auto, &FallsBack(obstacle.clone()), remedy);
    check(driver, Native, &Fails(obstacle), remedy);
    // Generic mode does not depend on the driver.
    check(driver, Generic, &Attaches(AttachedIn::Generic), None);
}

#[test]
fn an_obstacle_of_a_virtual_interface_has_a_remedy() {
    let few = |rx, raise_to, peer: Option<&str>| Obstacle::FewQueues {
        rx: Some(rx),
        raise_to,
        peer: peer.map(str::to_owned),
    };
    for (driver, obstacle, remedy) in [
        (with_xdp(0, driver("e1000e")), Obstacle::NoNative, None),
        (
            short_veth(1, 1, Some(("vq2", Some(4)))),
            few(1, None, Some("vq2")),
            Some("`ethtool -L vq2 tx 1`"),
        ),
        (
            short_veth(1, 8, Some(("vq2", Some(4)))),
            few(1, Some(4), Some("vq2")),
            Some("`ethtool -L eth0 rx 4`"),
        ),
        (
            short_veth(2, 8, None),
            few(2, Some(8), None),
            Some("`ethtool -L eth0 rx 8`"),
        ),
        (
            short_veth(2, 2, None),
            few(2, None, None),
            Some("`ethtool -L PEER tx 2` in the network namespace of the peer"),
        ),
        (
            virtio(&[7, 32]),
            Obstacle::HostOffloads,
            Some(
                "the host has to offer control over offloads (QEMU: `ctrl_guest_offloads=on`), or to switch the offloads off",
            ),
        ),
    ] {
        check_obstacle(&driver, obstacle, remedy);
    }
}

#[test]
fn an_obstacle_of_a_card_has_a_remedy() {
    let queues = |most, separate| Obstacle::Queues { most, separate };
    let lro = |name| Driver {
        lro: true,
        ..driver(name)
    };
    for (driver, obstacle, remedy) in [
        (
            with_mtu(9001, combined("ena", 4, 8)),
            Obstacle::Mtu { largest: 3498 },
            Some("`ip link set eth0 mtu 3498`"),
        ),
        (
            combined("ena", 8, 8),
            queues(4, false),
            Some("`ethtool -L eth0 combined 4`"),
        ),
        (combined("ena", 1, 1), queues(0, false), None),
        (
            with_mtu(1501, driver("igc")),
            Obstacle::Mtu { largest: 1500 },
            Some("`ip link set eth0 mtu 1500`"),
        ),
        (
            lro("ixgbe"),
            Obstacle::Lro,
            Some("`ethtool -K eth0 lro off`"),
        ),
        (
            lro("mlx5_core"),
            Obstacle::Lro,
            Some("`ethtool -K eth0 lro off`"),
        ),
        (
            Driver {
                hardware_gro: true,
                ..driver("mlx5_core")
            },
            Obstacle::HardwareGro,
            Some("`ethtool -K eth0 rx-gro-hw off`"),
        ),
        (lro("gve"), Obstacle::Lro, Some("`ethtool -K eth0 lro off`")),
        (
            separate("gve", 3, 3, 4),
            queues(2, true),
            Some("`ethtool -L eth0 rx 2 tx 2`"),
        ),
        (
            separate("gve", 2, 1, 4),
            queues(1, true),
            Some("`ethtool -L eth0 rx 1 tx 1`"),
        ),
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
            Some("`ethtool -L eth0 rx 0 tx 0 combined 4`"),
        ),
    ] {
        check_obstacle(&driver, obstacle, remedy);
    }
}

#[test]
fn without_an_obstacle_the_driver_and_its_conditions_decide() {
    let unknown = |driver| Driver {
        xdp: None,
        ..driver
    };
    for (driver, expected) in [
        (
            with_mtu(9000, with_xdp(ALL, driver("veth"))),
            Attaches(AttachedIn::Native),
        ),
        (driver("tun"), Attaches(AttachedIn::Native)),
        (virtio(&[7, 2, 32]), Attaches(AttachedIn::Native)),
        (virtio(&[32]), Attaches(AttachedIn::Native)),
        (virtio(&[15, 32]), Attaches(AttachedIn::Native)),
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
        (separate("gve", 2, 2, 4), Attaches(AttachedIn::Native)),
        (
            with_mtu(2032, separate("gve", 2, 2, 4)),
            Attaches(AttachedIn::Native),
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
fn on_the_card_the_features_decide() {
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
fn a_program_that_is_there_decides_first() {
    let other = || Obstacle::OtherProgram {
        id: 7,
        name: "other".to_owned(),
    };
    let native = Some(AttachedIn::Native);
    for wanted in [Auto, Native, Generic] {
        let remedy = "`ip link set dev eth0 xdp off`, or stop the process that attached it";
        let driver = with_program(Some("other"), native);
        check(&driver, wanted, &Fails(other()), Some(remedy));
        let unnamed = with_program(None, native);
        let expected = DriverDecides(Undecided::ProgramUnknown);
        check(&unnamed, wanted, &expected, None);
        let bridged = Driver {
            filtered_master: Some("br0".to_owned()),
            ..with_xdp(ALL, short_veth(2, 2, None))
        };
        let expected = Fails(Obstacle::FilteredMaster("br0".to_owned()));
        let remedy = "filter br0 alone, or `ip link set dev br0 xdp off`";
        check(&bridged, wanted, &expected, Some(remedy));
    }
    let own = with_program(Some("allowlist"), native);
    check(&own, Auto, &Attached(native), None);
    // A start attaches it in the other mode.
    check(&own, Generic, &Attaches(AttachedIn::Generic), None);
}
