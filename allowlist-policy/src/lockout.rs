//! The lockout check: refuses a change that would cut the connection over which it was requested.
//!
//! The check judges the first packet of a new connection with the same addresses and port, since an operator who is
//! cut off connects again. It uses the order of decisions of the kernel's program. Pure: the caller finds the session
//! and the host's interfaces.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use allowlist_common::packet::{Packet, TCP, Transport, tcp_flag};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::compile::Tables;
use crate::explain::{Judge, OnInterface};
use crate::policy::{Mode, Origin, Policy, Rules};

/// The environment variable in which sshd stores the addresses and ports of both ends of a login.
pub const SSH_CONNECTION: &str = "SSH_CONNECTION";

/// A remote login to this host, whose connection a change must not cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The address and port of the remote end. The port is 0 if it is unknown.
    pub peer: SocketAddr,
    /// The address and port of this host's end. The address is unspecified (`0.0.0.0` or `::`) if it is unknown.
    pub local: SocketAddr,
    /// The interface of the connection, from the zone of an address such as `%eth0`; `None` if no address has a zone.
    pub interface: Option<String>,
    /// How the session was found.
    #[serde(rename = "how")]
    pub evidence: Evidence,
}

/// How a session was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// [`SSH_CONNECTION`] in the environment of this process.
    Environment,
    /// [`SSH_CONNECTION`] in the environment of the ancestor with this process id; `sudo` and `su` drop the variable.
    Ancestor(u32),
    /// The record in `utmp` of the login at this terminal.
    Login(String),
}

impl fmt::Display for Evidence {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => write!(out, "{SSH_CONNECTION} of this process"),
            Self::Ancestor(process) => write!(out, "{SSH_CONNECTION} of process {process}"),
            Self::Login(line) => write!(out, "the login at {line}"),
        }
    }
}

/// An interface of this host, with its addresses and the interfaces below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostInterface {
    /// The name of the interface.
    pub name: String,
    /// The IP addresses of the interface.
    pub addresses: Vec<IpAddr>,
    /// The names of the interfaces directly below: the ports of a bridge, the members of a bond, the parent of a VLAN.
    pub below: Vec<String>,
    /// Whether packets arrive on this interface. They do not on loopback and dummy interfaces, whose addresses are
    /// reached over other interfaces.
    pub receives: bool,
}

/// A generation of the filter, as the lockout check sees it: the active one, or one that is about to become active.
#[derive(Clone, Copy)]
pub struct Generation<'a> {
    /// The names of the filtered interfaces.
    pub interfaces: &'a [String],
    /// The services and sources from which the generation was compiled.
    pub policy: &'a Policy,
    /// The settings from which the generation's control word was made.
    pub rules: &'a Rules,
    /// The mode of the filter, which a command may have changed since the configuration was read.
    pub mode: Mode,
    /// The compiled tables of the generation.
    pub tables: &'a Tables,
}

/// Who requested the change that is checked; the suggested remedy depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeOrigin {
    /// A command to the daemon requested the change.
    Command,
    /// The configuration caused the change, by a start or a reload.
    Configuration,
}

/// The refusal of a change that would cut a session. Its text states the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error(
    "the change would cut the connection over which it was requested: {} can connect to tcp/{} on {interface} now, and would be dropped, since {reason}; {remedy}; --force applies the change anyway",
    .session.peer.ip(), .session.local.port()
)]
pub struct LockoutError {
    /// The session whose connection the change would cut.
    pub session: Session,
    /// The interface on which the session's packets would be dropped.
    pub interface: String,
    /// The services that cover the session's port; empty if the default verdict drops its packets.
    pub services: Vec<String>,
    /// The address of the remote end as a prefix, which a source has to list.
    pub prefix: IpNet,
    reason: String,
    /// The action that makes the change safe, as part of the message.
    pub remedy: String,
}

/// Checks whether the change from the generation `before` to `after` would cut `session`; returns the refusal if so.
///
/// The check finds the first filtered interface on which a new connection like `session` passes before the change and
/// would be dropped after it; `None` means that there is none. Without a generation `before`, everything passes before.
pub fn evaluate(
    session: &Session,
    interfaces: &[HostInterface],
    before: Option<Generation<'_>>,
    after: Generation<'_>,
    origin: ChangeOrigin,
) -> Option<LockoutError> {
    let packet = opening_packet(session);
    let judge = after.judge();
    ingress_interfaces(session, interfaces, after.interfaces)
        .into_iter()
        .find(|interface| {
            let passed = before.is_none_or(|before| {
                before
                    .on(interface)
                    .is_none_or(|tables| tables.lets_through(&packet))
            });
            passed && !judge.on(interface).lets_through(&packet)
        })
        .map(|interface| {
            let decision = judge.on(interface).judge(&packet);
            let services = judge.services_of(decision).to_vec();
            let prefix = IpNet::from(session.peer.ip());
            let port = session.local.port();
            LockoutError {
                reason: match &services[..] {
                    [] => format!("no service covers tcp/{port}, and default = \"drop\""),
                    covering => format!(
                        "service {} covers tcp/{port} and does not allow that address",
                        covering.join(" and ")
                    ),
                },
                remedy: remedy(after.policy, &services, prefix, port, origin),
                session: session.clone(),
                interface: interface.clone(),
                services,
                prefix,
            }
        })
}

impl<'a> Generation<'a> {
    fn judge(&self) -> Judge<'a> {
        Judge::new(self.tables, self.mode, self.rules)
    }

    /// Returns the decisions of this generation on `interface`, or `None` if the interface is not filtered.
    fn on(&self, interface: &String) -> Option<OnInterface<'a>> {
        let is_filtered = self.interfaces.contains(interface);
        is_filtered.then(|| self.judge().on(interface))
    }
}

/// Returns the first packet (TCP SYN) of a new connection with the addresses and ports of `session`.
fn opening_packet(session: &Session) -> Packet {
    Packet {
        vlan: 0,
        source: session.peer.ip().into(),
        destination: session.local.ip().into(),
        hops: 64,
        protocol: TCP,
        transport: Transport::Ports {
            source: session.peer.port(),
            destination: session.local.port(),
            flags: tcp_flag::SYN,
        },
    }
}

/// Returns the filtered interfaces on which packets of `session` can arrive.
///
/// If the peer is this host, that is `lo`. Otherwise they are the session's interface, or those with its local address,
/// and the interfaces below; all filtered interfaces if none is known, or if packets do not arrive on one of them.
fn ingress_interfaces<'f>(
    session: &Session,
    interfaces: &[HostInterface],
    filtered: &'f [String],
) -> Vec<&'f String> {
    let with_address = |address: IpAddr| {
        interfaces
            .iter()
            .filter(move |interface| interface.addresses.contains(&address))
    };
    let loopback = filtered.iter().filter(|name| *name == "lo");
    let peer = session.peer.ip();
    if peer.is_loopback() || with_address(peer).next().is_some() {
        return loopback.collect(); // the peer is this host
    }
    let holding: Vec<&HostInterface> = match &session.interface {
        Some(name) => interfaces.iter().filter(|one| one.name == *name).collect(),
        None => with_address(session.local.ip()).collect(),
    };
    if holding.is_empty() || holding.iter().any(|interface| !interface.receives) {
        return filtered.iter().collect();
    }
    let mut ingress = BTreeSet::new();
    let mut left: Vec<&str> = holding.iter().map(|interface| &*interface.name).collect();
    while let Some(name) = left.pop() {
        if ingress.insert(name) {
            let below = interfaces.iter().filter(|interface| interface.name == name);
            left.extend(
                below
                    .flat_map(|interface| &interface.below)
                    .map(String::as_str),
            );
        }
    }
    filtered
        .iter()
        .filter(|name| ingress.contains(name.as_str()))
        .collect()
}

/// Returns the text of the remedy: how to allow `prefix` to reach TCP port `port`, which the services `services` cover.
fn remedy(
    policy: &Policy,
    services: &[String],
    prefix: IpNet,
    port: u16,
    origin: ChangeOrigin,
) -> String {
    let Some(service) = services.first() else {
        return format!(
            "add a service to the configuration with ports = [\"tcp/{port}\"] that allows a source with {prefix}"
        );
    };
    if origin == ChangeOrigin::Command {
        return format!("first run `allowlist add {prefix} --service {service}`");
    }
    let mut covering = policy.services.iter();
    let allowed = covering.find(|one| one.name == *service);
    let allowed = allowed.into_iter().flat_map(|service| &service.allow);
    let own = allowed
        .filter_map(|name| policy.source(name))
        .find(|source| matches!(source.origin, Origin::Prefixes(_) | Origin::File { .. }));
    match own.map(|source| (&source.name, &source.origin)) {
        Some((_, Origin::File { path, .. })) => {
            format!("first add {prefix} to {}", path.display())
        }
        Some((name, _)) => {
            format!("first add \"{prefix}\" to `prefixes` of [sources.{name}]")
        }
        None => format!(
            "first add a source with prefixes = [\"{prefix}\"], and its name to `allow` of [services.{service}]"
        ),
    }
}
