//! The packet logic: for each frame that a host sends or receives under one of a few policies, the product and the
//! model must make the same decision.
//!
//! - `parsing` compares parsed frames
//! - `flow_history` compares flow entries
//!
//! An input is a setting of two bytes, then items: one byte, the frame's length in two bytes, the frame. Any bytes are a
//! valid input; a truncated last frame ends with the input.

mod flow_history;
mod parsing;

use std::fmt::Write as _;
use std::sync::LazyLock;

use allowlist_common::flow::OutboundPacket;
use allowlist_common::packet::{Contents, parse};
use allowlist_common::verdict::{Reason, Verdict};
use allowlist_policy::compile::{IdTable, Tables, compile};
use allowlist_policy::{Keep, Policy, ReturnTraffic, Rules, Snapshot};
use allowlist_tests::model::dissect::dissect;
use allowlist_tests::model::host::Host;
use allowlist_tests::model::policy_strategies::INTERFACES;
use allowlist_tests::model::{Model, static_snapshot};
use allowlist_user::config::Config;
use flow_history::FlowHistory;

/// The policies, as configurations.
pub(crate) const POLICIES: [&str; 4] = [
    "",
    r#"
    [services.web]
    ports = ["tcp/443", "udp/443", "tcp/8080-8081", "icmp"]
    allow = ["v4", "v6"]
    [services.ssh]
    ports = ["tcp/22"]
    allow = ["v4"]
    interfaces = ["lan0"]
    [sources.v4]
    prefixes = ["10.0.0.0/30", "10.128.0.0/9", "10.0.16.1"]
    [sources.v6]
    prefixes = ["2001:db8::/64", "2001:db8:0:0:8000::/65", "2001:db8:4000::1"]
    "#,
    r#"
    [services.signalling]
    ports = ["sctp/80-444", "tcp/1-80"]
    allow = ["wide"]
    interfaces = ["wan0"]
    [services.web]
    ports = ["tcp/80", "tcp/443"]
    allow = ["narrow"]
    [services.names]
    ports = ["udp/1-65535", "ip/gre", "ip/51"]
    allow = ["narrow"]
    interfaces = ["lan0"]
    [sources.wide]
    prefixes = ["10.0.0.0/8", "2001:db8::/32"]
    [sources.narrow]
    prefixes = ["10.0.8.0/24", "10.0.8.1", "2001:db8:8000::/33", "a00::"]
    "#,
    r#"
    [services.all]
    ports = ["any"]
    allow = ["some"]
    [services.ping]
    ports = ["icmp"]
    allow = ["everybody"]
    interfaces = ["wan0"]
    [sources.some]
    prefixes = ["10.64.0.0/10", "2001:db8::/48"]
    [sources.everybody]
    prefixes = ["0.0.0.0/0", "::/0"]
    "#,
];

/// A compiled policy.
pub(crate) struct World {
    pub(crate) policy: Policy,
    snapshot: Snapshot,
    tables: Tables,
}

pub(crate) static WORLDS: LazyLock<[World; POLICIES.len()]> = LazyLock::new(|| {
    POLICIES.map(|text| {
        let config = Config::parse(text, "fuzz.toml".as_ref()).expect("a configuration");
        let snapshot = static_snapshot(&config.policy);
        let tables = compile(&config.policy, &snapshot, 100, &IdTable::default()).expect("tables");
        World {
            policy: config.policy,
            snapshot,
            tables,
        }
    })
});

/// The first two bytes of an input, which select the policy and the rules; zeros select the first policy and the
/// defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting(pub(crate) [u8; 2]);

impl Setting {
    const fn world(self) -> usize {
        self.0[0] as usize % POLICIES.len()
    }

    fn rules(self) -> Rules {
        let (default, return_traffic) = match self.0[0] >> 4 & 3 {
            0 => (Verdict::Pass, ReturnTraffic::Track),
            1 => (Verdict::Drop, ReturnTraffic::Track),
            2 => (Verdict::Drop, ReturnTraffic::Established),
            _ => (Verdict::Drop, ReturnTraffic::Off),
        };
        let keeps = |bit: u8| self.0[1] >> bit & 1 == 0;
        Rules {
            default,
            return_traffic,
            keep: Keep {
                arp: keeps(0),
                neighbour_discovery: keeps(1),
                icmp_errors: keeps(2),
                dhcp: keeps(3),
                multicast: keeps(4),
                not_ip: keeps(5),
            },
            ..Rules::default()
        }
    }
}

/// A frame that is sent or received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item<'a> {
    /// Whether this host sends the frame, or receives it.
    pub(crate) is_sent: bool,
    /// The interface, as an index into [`INTERFACES`].
    pub(crate) slot: usize,
    /// For a sent frame, the seconds since the previous one. For a received frame, the size of its linear part (the
    /// first buffer, the only one that can be read directly) in units of 8 bytes.
    pub(crate) number: u8,
    pub(crate) frame: &'a [u8],
}

/// Returns the first item of an input, and the rest.
fn split(input: &[u8]) -> Option<(Item<'_>, &[u8])> {
    let (head, rest) = input.split_first_chunk::<3>()?;
    let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
    let (frame, rest) = rest.split_at(length.min(rest.len()));
    let item = Item {
        is_sent: head[0] & 1 != 0,
        slot: usize::from(head[0] >> 1 & 1),
        number: head[0] >> 2,
        frame,
    };
    Some((item, rest))
}

/// Returns the input with these items, whose frames must be shorter than 64 KiB.
pub(crate) fn encode(setting: Setting, items: &[Item<'_>]) -> Vec<u8> {
    let mut input = setting.0.to_vec();
    for item in items {
        input.push(u8::from(item.is_sent) | (item.slot as u8) << 1 | item.number << 2);
        input.extend((item.frame.len() as u16).to_be_bytes());
        input.extend(item.frame);
    }
    input
}

/// Runs the sent and received frames of an input through the product's packet logic and through the model.
///
/// # Panics
/// If the decisions of the product and of the model differ, or if one of them panics.
pub fn run(input: &[u8]) {
    run_to(input, |_, _| {});
}

/// Runs an input as [`run`] does, and calls `end` with the decision on each received frame.
pub(crate) fn run_to(input: &[u8], mut end: impl FnMut(Verdict, Reason)) {
    let Some((setting, mut rest)) = input.split_first_chunk() else {
        return;
    };
    let setting = Setting(*setting);
    let (world, rules) = (&WORLDS[setting.world()], setting.rules());
    let mut host = Host::new(&world.tables, &rules, &INTERFACES);
    let mut model = Model::new(&world.policy, &world.snapshot, &rules);
    let mut history = FlowHistory::default();
    while let Some((item, next)) = split(rest) {
        rest = next;
        let (interface, frame) = (INTERFACES[item.slot], item.frame);
        let facts = dissect(frame);
        parsing::check(frame, &facts);
        parsing::check_parsers(frame, usize::from(item.number) * 8);
        if item.is_sent {
            history.advance(u32::from(item.number));
            if let Ok(Contents::Ip(packet)) = parse(frame)
                && let Some(sent) = OutboundPacket::from_packet(&packet)
            {
                history.record(&sent);
            }
            host.send(interface, frame);
            model.send(interface, facts);
            continue;
        }
        let decision = host.receive(interface, frame);
        let (verdict, reason) = model.receive(interface, &facts);
        assert!(
            (decision.verdict, decision.reason) == (verdict, reason),
            "model: {verdict:?} {reason:?}\nproduct: {decision:?}\n{rules:?}\npolicy {}, {interface}: {}\n{facts:?}",
            setting.world(),
            hex(frame),
        );
        end(verdict, reason);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_round_trip() {
        let long = vec![7; 300];
        let items = [
            (true, 1, 63, &[][..]),
            (false, 0, 0, &[1, 2, 3]),
            (true, 0, 5, &long),
        ]
        .map(|(is_sent, slot, number, frame)| Item {
            is_sent,
            slot,
            number,
            frame,
        });
        let input = encode(Setting([1, 2]), &items);
        let mut rest = &input[2..];
        for item in items {
            let (found, next) = split(rest).expect("an item");
            assert_eq!(found, item);
            rest = next;
        }
        assert_eq!(split(rest), None);
    }

    #[test]
    fn inputs_may_be_truncated() {
        let item = Item {
            is_sent: false,
            slot: 0,
            number: 0,
            frame: &[0xff; 14],
        };
        let input = encode(Setting([0, 0]), &[item, item]);
        let ends = |input: &[u8]| {
            let mut ends = 0;
            run_to(input, |_, _| ends += 1);
            ends
        };
        for (length, expected) in [(0, 0), (1, 0), (2, 0), (4, 0), (5, 1), (19, 1), (22, 2)] {
            assert_eq!(ends(&input[..length]), expected, "{length} bytes");
        }
    }
}
