//! Drop events, one line each, as text or JSON.

use std::net::IpAddr;
use std::time::Duration;

use allowlist_common::abi::Event;
use allowlist_common::packet::{Address, ICMP, ICMPV6, IGMP, Malformed, SCTP, TCP, UDP};
use allowlist_common::verdict::Reason;
use allowlist_dataplane::Seen;
use jiff::Timestamp;
use serde_json::{Value, json};

/// The names of the TCP flags, from the lowest bit.
const FLAGS: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];

/// The wall-clock time at which the kernel's monotonic clock was zero.
#[derive(Clone, Copy, Debug)]
pub struct Epoch(Timestamp);

impl Epoch {
    /// Returns the epoch for the wall-clock time `now` and the kernel time `monotonic` of the same moment.
    pub fn new(now: Timestamp, monotonic: Duration) -> Self {
        Self(now - monotonic)
    }

    /// Returns the wall-clock time of a kernel time in nanoseconds, with a precision of milliseconds.
    pub fn time(self, nanoseconds: u64) -> Timestamp {
        let time = self.0 + Duration::from_nanos(nanoseconds);
        Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
    }
}

/// Returns an event as text of one line, without a line break.
pub fn seen_text(seen: &Seen, epoch: Epoch) -> String {
    match seen {
        Seen::Drop(event, interface) => drop_text(event, interface, epoch),
        Seen::Suppressed(more) => format!(
            "{more} more dropped packets are not shown, since the rate of this output is limited"
        ),
        Seen::Detached => "the filter was detached".to_owned(),
    }
}

/// Returns an event as JSON.
pub fn seen_json(seen: &Seen, epoch: Epoch) -> Value {
    match seen {
        Seen::Drop(event, interface) => drop_json(event, interface, epoch),
        Seen::Suppressed(more) => json!({ "suppressed": more }),
        Seen::Detached => json!({ "detached": true }),
    }
}

fn drop_text(event: &Event, interface: &str, epoch: Epoch) -> String {
    let mut line = format!("{:.3} {interface} ", epoch.time(event.time));
    if event.vlan != 0 {
        line += &format!("vlan {} ", event.vlan);
    }
    if let Some((source, destination)) = addresses(event) {
        line += &if has_ports(event) {
            let port = |address: IpAddr, port| std::net::SocketAddr::new(address, port);
            format!(
                "{} > {} ",
                port(source, event.source_port),
                port(destination, event.destination_port)
            )
        } else {
            format!("{source} > {destination} ")
        };
        line += &protocol(event.protocol);
        line += " ";
        if is_malformed(event) {
            // The filter did not read its headers.
        } else if event.later_fragment != 0 {
            line += "fragment ";
        } else if is_icmp(event) {
            line += &format!("type {} ", event.icmp_type);
        } else if event.protocol == TCP {
            line += &format!("{} ", flags(event).join("+"));
        }
    }
    line += &format!("{} bytes: {}", event.length, reason(event));
    if let Some(cause) = cause(event) {
        line += &format!(" ({cause})");
    }
    line
}

fn drop_json(event: &Event, interface: &str, epoch: Epoch) -> Value {
    let addresses = addresses(event);
    let ports = has_ports(event).then_some((event.source_port, event.destination_port));
    let is_seen = addresses.is_some();
    json!({
        "time": epoch.time(event.time),
        "interface": interface,
        "vlan": (event.vlan != 0).then_some(event.vlan),
        "source": addresses.map(|(source, _)| source),
        "destination": addresses.map(|(_, destination)| destination),
        "source_port": ports.map(|(source, _)| source),
        "destination_port": ports.map(|(_, destination)| destination),
        "protocol": is_seen.then(|| protocol(event.protocol)),
        "cause": cause(event),
        "tcp_flags": (has_ports(event) && event.protocol == TCP).then(|| flags(event)),
        "icmp_type": (is_icmp(event) && event.later_fragment == 0 && !is_malformed(event))
            .then_some(event.icmp_type),
        "fragment": event.later_fragment != 0,
        "bytes": event.length,
        "reason": reason(event),
    })
}

fn addresses(event: &Event) -> Option<(IpAddr, IpAddr)> {
    let address = |padded| Address::from_padded(event.family, padded).into();
    (event.family != 0).then(|| (address(event.source), address(event.destination)))
}

fn has_ports(event: &Event) -> bool {
    matches!(event.protocol, TCP | UDP | SCTP)
        && event.family != 0
        && event.later_fragment == 0
        && !is_malformed(event)
}

/// Returns whether the event's packet is malformed, so that the event has no ports, TCP flags or ICMP type.
const fn is_malformed(event: &Event) -> bool {
    event.reason == Reason::Malformed as u8
}

/// Returns the cause of an event with the reason `malformed`; `None` for other events.
fn cause(event: &Event) -> Option<&'static str> {
    Malformed::from_number(event.cause).map(Malformed::name)
}

fn is_icmp(event: &Event) -> bool {
    matches!((event.family, event.protocol), (4, ICMP) | (6, ICMPV6))
}

fn flags(event: &Event) -> Vec<&'static str> {
    let is_set = |(bit, _): &(usize, &str)| event.tcp_flags & (1 << bit) != 0;
    FLAGS
        .into_iter()
        .enumerate()
        .filter(is_set)
        .map(|(_, name)| name)
        .collect()
}

/// Returns the name of an IP protocol, or its number.
pub(super) fn protocol(number: u8) -> String {
    match number {
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        SCTP => "sctp".to_owned(),
        ICMP => "icmp".to_owned(),
        ICMPV6 => "icmpv6".to_owned(),
        IGMP => "igmp".to_owned(),
        other => format!("protocol {other}"),
    }
}

fn reason(event: &Event) -> &'static str {
    Reason::ALL
        .get(usize::from(event.reason))
        .map_or("unknown", |reason| reason.name())
}

#[cfg(test)]
mod tests {
    use allowlist_common::packet::tcp_flag;

    use super::*;

    fn check(event: &Event, text: &str, json: &Value) {
        let epoch = Epoch::new(Timestamp::UNIX_EPOCH, Duration::ZERO);
        let seen = Seen::Drop(*event, "eth0".to_owned());
        assert_eq!(seen_text(&seen, epoch), text);
        let found = seen_json(&seen, epoch);
        for (key, value) in json.as_object().expect("an object") {
            assert_eq!(&found[key], value, "{key} of {found}");
        }
    }

    fn padded(text: &str) -> [u64; 2] {
        let address: IpAddr = text.parse().expect("an address");
        Address::from(address).padded()
    }

    #[test]
    fn each_kind_of_packet_has_its_line() {
        let tcp = Event {
            time: 1_234_567_890,
            length: 54,
            source: padded("192.0.2.66"),
            destination: padded("198.51.100.1"),
            source_port: 40_000,
            destination_port: 443,
            vlan: 5,
            family: 4,
            protocol: TCP,
            tcp_flags: tcp_flag::SYN | tcp_flag::ACK,
            reason: Reason::NotAllowed as u8,
            ..Event::EMPTY
        };
        check(
            &tcp,
            "1970-01-01T00:00:01.234Z eth0 vlan 5 192.0.2.66:40000 > 198.51.100.1:443 tcp SYN+ACK 54 bytes: not-allowed",
            &json!({
                "time": "1970-01-01T00:00:01.234Z", "interface": "eth0", "vlan": 5, "source": "192.0.2.66",
                "destination": "198.51.100.1", "source_port": 40_000, "destination_port": 443,
                "protocol": "tcp", "tcp_flags": ["SYN", "ACK"], "icmp_type": null, "fragment": false,
                "bytes": 54, "reason": "not-allowed",
            }),
        );
        let echo = Event {
            source: padded("2001:db8::66"),
            destination: padded("2001:db8::1"),
            family: 6,
            protocol: ICMPV6,
            icmp_type: 128,
            reason: Reason::Default as u8,
            ..Event::EMPTY
        };
        check(
            &echo,
            "1970-01-01T00:00:00.000Z eth0 2001:db8::66 > 2001:db8::1 icmpv6 type 128 0 bytes: default",
            &json!({"source": "2001:db8::66", "source_port": null, "icmp_type": 128, "vlan": null, "tcp_flags": null}),
        );
        let fragment = Event {
            family: 4,
            protocol: UDP,
            later_fragment: 1,
            reason: Reason::NotAllowed as u8,
            ..Event::EMPTY
        };
        check(
            &fragment,
            "1970-01-01T00:00:00.000Z eth0 0.0.0.0 > 0.0.0.0 udp fragment 0 bytes: not-allowed",
            &json!({"source_port": null, "fragment": true}),
        );
        let broken = Event {
            length: 20,
            reason: Reason::Malformed as u8,
            ..Event::EMPTY
        };
        check(
            &broken,
            "1970-01-01T00:00:00.000Z eth0 20 bytes: malformed",
            &json!({"source": null, "protocol": null, "reason": "malformed", "cause": null}),
        );
        let cut = Event {
            length: 40,
            source: padded("192.0.2.66"),
            destination: padded("198.51.100.1"),
            family: 4,
            protocol: TCP,
            vlan: 5,
            cause: Malformed::TransportHeader as u8,
            reason: Reason::Malformed as u8,
            ..Event::EMPTY
        };
        check(
            &cut,
            "1970-01-01T00:00:00.000Z eth0 vlan 5 192.0.2.66 > 198.51.100.1 tcp 40 bytes: malformed (transport-header)",
            &json!({
                "source": "192.0.2.66", "source_port": null, "protocol": "tcp", "tcp_flags": null, "vlan": 5,
                "reason": "malformed", "cause": "transport-header",
            }),
        );
        let cut6 = Event {
            protocol: ICMPV6,
            family: 6,
            ..cut
        };
        check(
            &cut6,
            &format!(
                "1970-01-01T00:00:00.000Z eth0 vlan 5 {} > {} icmpv6 40 bytes: malformed (transport-header)",
                "c000:242::", "c633:6401::"
            ),
            &json!({"icmp_type": null}),
        );
    }
}
