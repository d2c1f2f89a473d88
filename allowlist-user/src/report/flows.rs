//! Tracked flows, and flows that were removed by `flows cut`.

use allowlist_common::packet::{TCP, UDP};
use allowlist_dataplane::{Side, TrackedFlow};
use serde_json::{Value, json};

use super::{Report, table};

/// The report of tracked flows, or of flows that were removed.
pub struct Flows {
    /// The number of outbound flows that the flow table can hold; `None` in a report of removed flows.
    pub room: Option<u32>,
    /// The flows, in the order in which they are printed.
    pub flows: Vec<TrackedFlow>,
}

impl Report for Flows {
    fn text(&self) -> String {
        let own = self.flows.iter().filter(|flow| flow.side == Side::Own);
        let own = own.count();
        let others = self.flows.len() - own;
        let summary = match self.room {
            Some(room) => {
                format!(
                    "{own} own flows (initiated by this host) of at most {room}; {others} foreign or unknown flows\n"
                )
            }
            None => format!(
                "removed {own} own flows (initiated by this host), and {others} foreign or unknown flows\n"
            ),
        };
        if self.flows.is_empty() {
            return summary;
        }
        let header = [
            "initiated by",
            "protocol",
            "local",
            "remote",
            "state",
            "expires in",
        ];
        let mut table = table(&header, &[5]);
        for flow in &self.flows {
            table.add_row([
                flow.side.name().to_owned(),
                protocol(flow),
                local(flow),
                remote(flow),
                state(flow).unwrap_or("").to_owned(),
                format!("{}s", flow.remaining),
            ]);
        }
        format!("{table}\n{summary}")
    }

    fn json(&self) -> Value {
        let flows: Vec<_> = self.flows.iter().map(flow_json).collect();
        match self.room {
            Some(room) => json!({ "room": room, "flows": flows }),
            None => json!({ "cut": flows }),
        }
    }
}

fn flow_json(one: &TrackedFlow) -> Value {
    let flow = &one.flow;
    let (ports, identifier) = if has_ports(one) {
        ((Some(flow.local_port), Some(flow.remote_port)), None)
    } else {
        ((None, None), Some(flow.local_port))
    };
    json!({
        "initiated_by": one.side.name(),
        "protocol": protocol(one),
        "local": one.local(),
        "local_port": ports.0,
        "remote": one.remote(),
        "remote_port": ports.1,
        "identifier": identifier,
        "state": state(one),
        "remaining_seconds": one.remaining,
    })
}

const fn has_ports(flow: &TrackedFlow) -> bool {
    matches!(flow.flow.protocol, TCP | UDP)
}

fn protocol(flow: &TrackedFlow) -> String {
    match flow.flow.protocol {
        TCP => "tcp",
        UDP => "udp",
        _ => "icmp",
    }
    .to_owned()
}

fn local(flow: &TrackedFlow) -> String {
    let port = flow.flow.local_port;
    match flow.local() {
        Some(address) if has_ports(flow) => std::net::SocketAddr::new(address, port).to_string(),
        Some(address) => format!("{address} id {port}"),
        None if has_ports(flow) => format!("*:{port}"),
        None => format!("* id {port}"),
    }
}

fn remote(flow: &TrackedFlow) -> String {
    if has_ports(flow) {
        std::net::SocketAddr::new(flow.remote(), flow.flow.remote_port).to_string()
    } else {
        flow.remote().to_string()
    }
}

/// Returns the state of a TCP flow that this host initiated, for display; `None` for other flows.
fn state(flow: &TrackedFlow) -> Option<&'static str> {
    let is_connection = flow.flow.protocol == TCP && flow.side == Side::Own;
    is_connection.then_some(if flow.is_closing { "closing" } else { "open" })
}
