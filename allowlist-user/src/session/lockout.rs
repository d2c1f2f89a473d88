//! The lockout check: refuses a change that would cut the connection over which it was requested.
//!
//! The check judges the first packet of a new connection with the same addresses and port, since an operator who is
//! cut off connects again. It uses the shipped order of decisions. [`evaluate`] is pure; [`check`] also reads this
//! host's interfaces.

use std::collections::BTreeSet;
use std::net::IpAddr;

use allowlist_common::packet::{Packet, TCP, Transport, tcp_flag};
use ipnet::IpNet;
use log::warn;
use serde::Serialize;

use super::{HostInterface, Session, host_interfaces};
use crate::compile::Tables;
use crate::config::Config;
use crate::explain::{Judge, OnInterface};
use crate::policy::{Mode, Origin};

/// The active generation, or one that is about to become active.
#[derive(Clone, Copy)]
pub struct Generation<'a> {
    /// The configuration that it was compiled from.
    pub config: &'a Config,
    /// The mode, which a command may have changed since the configuration was read.
    pub mode: Mode,
    /// The compiled tables.
    pub tables: &'a Tables,
}

/// The origin of a change, on which the remedy depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeOrigin {
    /// A command to a daemon.
    Command,
    /// A configuration, by a start or a reload.
    Configuration,
}

/// The refusal of a change that would cut the session; its text has the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error(
    "this would cut the connection over which it was requested: {} can connect to tcp/{} on {interface} now, and would be dropped, since {reason}; {remedy}; --force applies the change anyway",
    .session.peer.ip(), .session.local.port()
)]
pub struct LockoutError {
    /// The session that would be cut.
    pub session: Session,
    /// The interface on which its packets would be dropped.
    pub interface: String,
    /// The services that cover its port; empty if the default verdict drops it.
    pub services: Vec<String>,
    /// The prefix that has to be allowed.
    pub prefix: IpNet,
    reason: String,
    /// The action that makes the change safe.
    pub remedy: String,
}

/// Checks a change against this host's present interfaces. Without a session every change is safe.
///
/// # Errors
/// Fails if the change would cut the session.
pub fn check(
    session: Option<&Session>,
    before: Option<Generation<'_>>,
    after: Generation<'_>,
    origin: ChangeOrigin,
) -> Result<(), Box<LockoutError>> {
    let Some(session) = session else {
        return Ok(());
    };
    let interfaces = host_interfaces().unwrap_or_else(|error| {
        warn!("{error:#}; the lockout check assumes that the session can use any interface");
        Vec::new()
    });
    match evaluate(session, &interfaces, before, after, origin) {
        Some(error) => Err(Box::new(error)),
        None => Ok(()),
    }
}

/// Returns the refusal for the first interface on which a new connection like `session` passes before the change and not
/// after it, or `None` if there is no such interface. Without a generation `before`, everything passes.
pub fn evaluate(
    session: &Session,
    interfaces: &[HostInterface],
    before: Option<Generation<'_>>,
    after: Generation<'_>,
    origin: ChangeOrigin,
) -> Option<LockoutError> {
    let packet = opening_packet(session);
    let judge = after.judge();
    ingress_interfaces(session, interfaces, &after.config.interfaces)
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
                    [] => format!("no service covers tcp/{port} and the default is to drop"),
                    covering => format!(
                        "{} covers tcp/{port} and does not allow that address",
                        covering.join(" and ")
                    ),
                },
                remedy: remedy(after.config, &services, prefix, port, origin),
                session: session.clone(),
                interface: interface.clone(),
                services,
                prefix,
            }
        })
}

impl<'a> Generation<'a> {
    fn judge(&self) -> Judge<'a> {
        Judge::new(self.tables, self.mode, &self.config.rules)
    }

    /// Returns the judge of an interface, or `None` if the interface is not filtered.
    fn on(&self, interface: &String) -> Option<OnInterface<'a>> {
        let is_filtered = self.config.interfaces.contains(interface);
        is_filtered.then(|| self.judge().on(interface))
    }
}

/// Returns the first packet of a new connection like the session.
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

/// Returns the filtered interfaces on which a session's packets can arrive: the one with its local address and those
/// below it, or all filtered interfaces if the local address does not determine them.
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

/// Returns the action that allows a prefix to reach the port.
fn remedy(
    config: &Config,
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
        return format!("first `allowlist add {prefix} --service {service}`");
    }
    let mut covering = config.policy.services.iter();
    let allowed = covering.find(|one| one.name == *service);
    let allowed = allowed.into_iter().flat_map(|service| &service.allow);
    let own = allowed
        .filter_map(|name| config.policy.source(name))
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
