//! Whether a change would cut the connection that it is given over. Pure.
//!
//! What is judged is the first packet of a new connection like that one: whoever is cut off wants to come
//! back. It is judged by the order of decisions that ships.

use std::collections::BTreeSet;
use std::net::IpAddr;

use allowlist_common::packet::{Packet, TCP, Transport, tcp_flag};
use ipnet::IpNet;
use serde::Serialize;

use super::{Holder, Session};
use crate::compile::Tables;
use crate::config::Config;
use crate::explain::{Judge, OnInterface};
use crate::policy::{Mode, Origin};

/// What is, or would be, in force.
#[derive(Clone, Copy)]
pub struct Generation<'a> {
    /// What it was compiled from.
    pub config: &'a Config,
    /// How it is in force; the configuration's mode may have been changed since.
    pub mode: Mode,
    /// It.
    pub tables: &'a Tables,
}

/// What kind of a change it is: what would make it right differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A command to a daemon.
    Command,
    /// A configuration, by a start or a reload.
    Configuration,
}

/// Why a change is refused. In words it says what would make it right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error(
    "this would cut the connection that it is given over: connections from {} to tcp/{} on {interface} pass now, and would be dropped, since {why}; {remedy}; --force does it all the same",
    .session.peer.ip(), .session.local.port()
)]
pub struct Cut {
    /// What would be cut.
    pub session: Session,
    /// Where.
    pub interface: String,
    /// The services that cover its port; none where the default verdict is to drop.
    pub services: Vec<String>,
    /// What has to be let in for it to live on.
    pub prefix: IpNet,
    why: String,
    /// What to do first.
    pub remedy: String,
}

/// The first interface on which a new connection like `session` passes now, and would not any more; none
/// if there is none. Where nothing is in force `before`, everything passes.
pub fn cut(
    session: &Session,
    holders: &[Holder],
    before: Option<Generation<'_>>,
    after: Generation<'_>,
    by: By,
) -> Option<Cut> {
    let packet = opening(session);
    let judge = after.judge();
    ways_in(session, holders, &after.config.interfaces)
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
            Cut {
                why: match &services[..] {
                    [] => format!("no service covers tcp/{port} and the default is to drop"),
                    covering => format!(
                        "{} covers tcp/{port} and does not let that address in",
                        covering.join(" and ")
                    ),
                },
                remedy: remedy(after.config, &services, prefix, port, by),
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

    /// What it does on an interface; none where it is not filtered.
    fn on(&self, interface: &String) -> Option<OnInterface<'a>> {
        let is_filtered = self.config.interfaces.contains(interface);
        is_filtered.then(|| self.judge().on(interface))
    }
}

/// The packet that would open it again.
fn opening(session: &Session) -> Packet {
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

/// Those of the filtered interfaces by which a session's packets can come in: where its address is, or
/// below that; all of them where nobody can tell.
fn ways_in<'f>(session: &Session, holders: &[Holder], filtered: &'f [String]) -> Vec<&'f String> {
    let has = |holder: &&Holder, address: IpAddr| holder.addresses.contains(&address);
    let at = |address: IpAddr| holders.iter().filter(move |holder| has(holder, address));
    let loopback = filtered.iter().filter(|name| *name == "lo");
    let peer = session.peer.ip();
    if peer.is_loopback() || at(peer).next().is_some() {
        return loopback.collect(); // this host, by whichever of its addresses
    }
    let holding: Vec<&Holder> = match &session.interface {
        Some(name) => holders.iter().filter(|one| one.name == *name).collect(),
        None => at(session.local.ip()).collect(),
    };
    if holding.is_empty() || holding.iter().any(|holder| !holder.receives) {
        return filtered.iter().collect();
    }
    let mut ways = BTreeSet::new();
    let mut left: Vec<&str> = holding.iter().map(|holder| &*holder.name).collect();
    while let Some(name) = left.pop() {
        if ways.insert(name) {
            let below = holders.iter().filter(|holder| holder.name == name);
            left.extend(below.flat_map(|holder| &holder.below).map(String::as_str));
        }
    }
    filtered
        .iter()
        .filter(|name| ways.contains(name.as_str()))
        .collect()
}

/// What would let a prefix reach the port.
fn remedy(config: &Config, services: &[String], prefix: IpNet, port: u16, by: By) -> String {
    let Some(service) = services.first() else {
        return format!(
            "add a service to the configuration with ports = [\"tcp/{port}\"] that allows a source with {prefix}"
        );
    };
    if by == By::Command {
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
