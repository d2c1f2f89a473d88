//! The kernel programs. Time passes by subtraction from the times in the tables.

use std::net::{IpAddr, SocketAddr};

use allowlist_common::abi::{FLOWS, FOREIGN, PEERS};
use allowlist_common::flow::{FOREIGN_FLOWS, Flow, FlowEntry, ForeignPort, Marking, UDP_IDLE};
use allowlist_common::packet::wire::{icmp, icmpv6};
use allowlist_common::packet::{TCP, UDP};
use allowlist_dataplane::kernel_clock;
use allowlist_tests::lab::frame;
use allowlist_tests::require_root;

use super::pure::flow;
use super::{Ends, FRIEND, LOCALS, PORTS, Packet, Policy, REMOTES, SERVED, Subject};
use crate::check::Compiled;
use crate::frames::{echo, ported};
use crate::kernel::{Kernel, XDP_PASS};

pub(super) struct InKernel {
    kernel: Kernel,
    policy: Policy,
}

impl InKernel {
    pub(super) fn new() -> Self {
        let mut kernel = Kernel::new();
        kernel.trusts_ports = false;
        Self {
            kernel,
            policy: Policy::Open,
        }
    }

    fn distrust(&mut self, ports: &[u16]) {
        let unknown = kernel_clock().as_secs() as u32 + UDP_IDLE;
        for &port in ports {
            let known = self.kernel.foreign_port(port);
            self.kernel
                .set_foreign_port(port, ForeignPort { unknown, ..known });
        }
    }
}

/// Returns the frame of a packet.
fn frame(packet: &Packet, is_sent: bool) -> Vec<u8> {
    let ends = &packet.ends;
    let (local, remote) = ends.addresses();
    let (local, remote) = (local.to_string(), remote.to_string());
    let local = (local.as_str(), ends.local_port);
    let remote = (remote.as_str(), ends.remote_port);
    let (from, to) = if is_sent {
        (local, remote)
    } else {
        (remote, local)
    };
    match ends.protocol {
        TCP => ported(TCP, from, to, packet.flags),
        UDP => ported(UDP, from, to, 0),
        _ => {
            let kind = match (ends.addresses().1, packet.flags) {
                (IpAddr::V4(_), 1) => icmp::ECHO,
                (IpAddr::V4(_), _) => icmp::ECHO_REPLY,
                (IpAddr::V6(_), 1) => icmpv6::ECHO,
                (IpAddr::V6(_), _) => icmpv6::ECHO_REPLY,
            };
            echo(from.0, to.0, kind, ends.local_port)
        }
    }
}

fn text(policy: Policy, observes: bool) -> String {
    let service = |ports: &str| {
        format!(
            "[services.some]\nports = [\"{ports}\"]\nallow = [\"friend\"]\n\
             [sources.friend]\nprefixes = [\"{}\"]\n",
            REMOTES[usize::from(FRIEND)]
        )
    };
    let (default, services) = match policy {
        Policy::Open => ("pass", String::new()),
        Policy::Closed => ("drop", String::new()),
        Policy::Served => ("drop", service(&format!("udp/{SERVED}"))),
        Policy::Shared => ("drop", service("any")),
    };
    let mode = if observes { "observe" } else { "enforce" };
    format!("mode = \"{mode}\"\ndefault = \"{default}\"\n{services}")
}

impl Subject for InKernel {
    fn receive(&mut self, packet: &Packet) -> bool {
        self.kernel.run(&frame(packet, false)) == XDP_PASS
    }

    fn send(&mut self, packet: &Packet) {
        if self.policy.tracks() {
            self.kernel.send(&frame(packet, true));
        }
    }

    fn set(&mut self, policy: Policy, observes: bool) {
        if policy.tracks() && !self.policy.tracks() {
            // As at a start.
            for name in [FLOWS, PEERS] {
                self.kernel.clear(name);
            }
            self.distrust(&PORTS);
        }
        Compiled::of(&text(policy, observes)).publish(&mut self.kernel);
        if self.policy == Policy::Served && policy != Policy::Served {
            self.distrust(&[SERVED]); // as at a publish
        }
        self.policy = policy;
    }

    fn restart(&mut self) {
        self.kernel.clear_flows();
        self.distrust(&PORTS);
    }

    fn pass(&mut self, seconds: u32) {
        for name in [FLOWS, PEERS, FOREIGN] {
            let mut table = self.kernel.flow_table(name);
            let entries: Vec<(Flow, FlowEntry)> = table.iter().flatten().collect();
            for (key, entry) in entries {
                // 0 would mean that the entry never existed.
                let expires = entry.expires.saturating_sub(seconds).max(1);
                table
                    .insert(key, FlowEntry { expires, ..entry }, 0)
                    .expect("room");
            }
        }
        for port in PORTS {
            let ForeignPort { received, unknown } = self.kernel.foreign_port(port);
            let earlier = ForeignPort {
                received: received.saturating_sub(seconds),
                unknown: unknown.saturating_sub(seconds),
            };
            self.kernel.set_foreign_port(port, earlier);
        }
        let marking = self.kernel.marking();
        self.kernel.set_marking(Marking {
            crowded_until: marking.crowded_until.saturating_sub(seconds.into()),
            ..marking
        });
    }

    fn flood(&mut self) {
        self.kernel.clear(FOREIGN);
        let marking = self.kernel.marking();
        self.kernel.set_marking(Marking {
            crowded_until: kernel_clock().as_secs() + u64::from(UDP_IDLE),
            ..marking
        });
    }

    fn is_own(&mut self, ends: Ends) -> bool {
        let now = kernel_clock().as_secs() as u32;
        let table = self.kernel.flow_table(FLOWS);
        let entry = table.get(&flow(ends), 0);
        self.policy.tracks() && entry.is_ok_and(|entry| entry.is_alive(now))
    }
}

/// With more foreign flows than marks, the host's flows remain, replies create no flow, and the tables stay within their
/// limits.
#[test]
fn a_flood_evicts_no_flow_of_the_host() {
    require_root!();
    let mut kernel = Kernel::new();
    Compiled::of("mode = \"observe\"\ndefault = \"drop\"\nmax_flows = 1024\n").publish(&mut kernel);
    let server = |port: u16| SocketAddr::new(LOCALS[0].into(), port);
    let stranger =
        |number: u32| SocketAddr::new(std::net::Ipv4Addr::from(0x0a00_0000 + number).into(), 4000);
    let remote = SocketAddr::new(REMOTES[1], 53);
    kernel.send(&frame::udp(server(40_000), remote, b"question"));
    kernel.run(&frame::udp(stranger(0), server(SERVED), b"first"));
    for number in 1..2 * FOREIGN_FLOWS {
        kernel.run(&frame::udp(stranger(number), server(7000), b"flood"));
    }
    assert!(kernel.found_crowding(), "marks were evicted");
    let marks = kernel.flow_table(FOREIGN).keys().flatten().count();
    assert!(marks <= FOREIGN_FLOWS as usize, "{marks} marks");
    // The mark of one reply has been evicted.
    kernel.keeps_crowding = true;
    kernel.send(&frame::udp(server(SERVED), stranger(0), b"reply"));
    kernel.send(&frame::udp(server(7000), stranger(FOREIGN_FLOWS), b"reply"));
    // No foreign datagram was sent to this port.
    kernel.send(&frame::udp(server(50_000), remote, b"question"));
    let own: Vec<u16> = kernel
        .flow_table(FLOWS)
        .keys()
        .flatten()
        .map(|flow| flow.local_port)
        .collect();
    assert_eq!(own.len(), 2, "{own:?}");
    assert!(own.contains(&40_000) && own.contains(&50_000), "{own:?}");
}
