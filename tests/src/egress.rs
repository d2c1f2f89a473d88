//! An egress policy without a daemon: published by this process, with the answers of one resolver.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use allowlist_common::abi::{EgressSettings, Endpoint};
use allowlist_common::egress::{EgressReason, address_key};
use allowlist_common::packet::UDP;
use allowlist_dataplane::{Dataplane, EgressPublication};
use allowlist_policy::compile::{IdTable, compile, compile_egress};
use allowlist_user::config::Config;
use anyhow::{Context as _, ensure};

use crate::model::static_snapshot;

/// Publishes the policy of a configuration with `[egress]`, whose sources have static prefixes or names, attached to
/// `cgroups`, or if there are none to the root. The answers of `resolver` are believed; no process is exempt.
pub fn publish(
    pins: &Path,
    config: &Config,
    resolver: SocketAddr,
    cgroups: Vec<PathBuf>,
) -> anyhow::Result<Dataplane> {
    let (policy, ids) = (&config.policy, IdTable::default());
    let lists = static_snapshot(policy);
    let tables = compile(policy, &lists, config.max_prefixes, &ids)?;
    let egress = policy.egress.as_ref().context("no [egress]")?;
    let egress_tables = compile_egress(policy, &lists, config.max_prefixes, &ids)?;
    let mut settings = EgressSettings {
        linger: egress.linger.as_nanos() as u64,
        ..EgressSettings::default()
    };
    let address = address_key(resolver.ip().into());
    let endpoint = Endpoint::new(address, UDP, resolver.port(), EgressReason::Resolver);
    ensure!(settings.exempt(endpoint), "no room for the resolver");
    let publication = EgressPublication {
        tables: Arc::new(egress_tables.context("no [egress]")?),
        settings,
        control: egress.control(egress.mode),
        cgroups,
        units: Vec::new(),
        own_addresses: [IpAddr::V4(Ipv4Addr::LOCALHOST)].into(),
        exempts_publisher: false,
    };
    let max_flows = config.rules.tracks().then_some(config.max_flows);
    let mut dataplane = Dataplane::open(pins, max_flows)?;
    let publication = Some(&publication);
    dataplane.publish_with_egress(&tables, config.mode, &config.rules, &[], &[], publication)?;
    Ok(dataplane)
}
