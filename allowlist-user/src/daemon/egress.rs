//! The daemon's part of the egress policy: the exempt endpoints, this host's addresses and the daemon's own exemption.
//!
//! Addresses and exemption are refreshed every second, since the kernel's notifications can be lost.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use allowlist_common::abi::{EgressSettings, Endpoint, MAX_ENDPOINTS};
use allowlist_common::egress::{EgressReason, address_key};
use allowlist_common::packet::{TCP, UDP};
use allowlist_dataplane::{Dataplane, EgressPublication, kernel_clock};
use allowlist_policy::compile::Tables;
use allowlist_policy::{Egress, Origin, Source};
use log::warn;
use nix::ifaddrs::getifaddrs;

use super::Daemon;
use super::commit::{CommitError, Transaction};
use crate::effective::EffectiveState;

/// The port of DNS over UDP and TCP (RFC 1035, 4.2).
const DNS: u16 = 53;
/// The port of NTP (RFC 5905, 7.2).
const NTP: u16 = 123;

/// Returns the egress policy of a state for the kernel; `None` if it has none.
///
/// `resolvers` are those of this host, for a policy that names none.
pub(super) fn publication(
    state: &EffectiveState,
    tables: Option<Arc<Tables>>,
    resolvers: &[IpAddr],
) -> Option<EgressPublication> {
    let egress = state.policy().egress.as_ref()?;
    let tables = tables?;
    let mut settings = settings(egress, resolvers);
    if !tables.names.listed.is_empty() {
        settings.linger = egress.linger.as_nanos() as u64;
    }
    Some(EgressPublication {
        tables,
        settings,
        control: egress.control(state.egress_mode()),
        cgroups: egress.cgroups.clone(),
        units: egress.unit_places(),
        own_addresses: own_addresses().unwrap_or_default(),
        exempts_publisher: true,
    })
}

/// Returns the settings of an egress policy. `host` are this host's resolvers, which are used if the policy names none.
fn settings(egress: &Egress, host: &[IpAddr]) -> EgressSettings {
    let resolvers: Vec<SocketAddr> = if egress.resolvers.is_empty() {
        host.iter()
            .map(|address| SocketAddr::new(*address, DNS))
            .collect()
    } else {
        egress.resolvers.clone()
    };
    let resolvers = resolvers.iter().flat_map(|resolver| {
        [UDP, TCP].map(|protocol| {
            let address = address_key(resolver.ip().into());
            Endpoint::new(address, protocol, resolver.port(), EgressReason::Resolver)
        })
    });
    let time_servers = egress.time_servers.iter().map(|server| {
        let address = address_key((*server).into());
        Endpoint::new(address, UDP, NTP, EgressReason::Essential)
    });
    let mut settings = EgressSettings {
        has_units: u32::from(!egress.units().is_empty()),
        ..EgressSettings::default()
    };
    let endpoints: Vec<Endpoint> = resolvers.chain(time_servers).collect();
    let without_room = endpoints
        .iter()
        .filter(|one| !settings.exempt(**one))
        .count();
    if without_room > 0 {
        warn!(
            "the egress policy exempts the first {MAX_ENDPOINTS} of {} endpoints of resolvers and time servers only; list fewer in egress.resolvers",
            endpoints.len()
        );
    }
    settings
}

/// Returns the addresses of this host's interfaces.
fn own_addresses() -> nix::Result<BTreeSet<IpAddr>> {
    let addresses = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())))
    });
    Ok(addresses.collect())
}

impl Daemon {
    /// Refreshes this host's addresses and the daemon's own exemption in the kernel, if there is an egress policy.
    pub(super) async fn refresh_egress(&mut self) {
        if self.state.policy().egress.is_none() {
            return;
        }
        let addresses = match own_addresses() {
            Ok(addresses) => addresses,
            Err(error) => {
                warn!(
                    "cannot read this host's addresses for the egress policy: {error}; the previous ones stay in use"
                );
                return;
            }
        };
        let result = self
            .kernel
            .run(move |dataplane| {
                dataplane.exempt_this_process();
                dataplane.set_own_addresses(&addresses)?;
                dataplane.refresh_units()
            })
            .await;
        self.resolve_truncated().await;
        if let Err(error) = self.restore_egress().await {
            warn!(
                target: "allowlist::self-check-failed",
                "self-check: the egress policy is not attached as published, and cannot be attached again: {error}"
            );
        }
        if let Err(error) = result {
            warn!(
                "cannot update this host's addresses and the cgroups of units for the egress policy: {error:#}"
            );
        }
    }

    /// Resolves the names again for which a resolver sent a truncated answer since the last call: the program repeats its
    /// query by TCP, whose answers are not read.
    async fn resolve_truncated(&mut self) {
        let (since, now) = (self.truncated_until, kernel_clock());
        self.truncated_until = now;
        let names = self
            .kernel
            .run(move |dataplane| dataplane.truncated_names(since));
        for id in names.await {
            let Some(name) = self.kernel.ids.egress.names.get(id as usize) else {
                continue;
            };
            let has_name = |source: &&Source| match &source.origin {
                Origin::Names(lookup) => lookup.names.contains(name),
                _ => false,
            };
            let sources = self.state.policy().used_sources().filter(has_name);
            for source in sources {
                self.schedule.make_due(&source.name);
            }
        }
    }

    /// Attaches the egress policy again if its pins were removed, or another process changed its links.
    async fn restore_egress(&mut self) -> Result<(), CommitError> {
        if self.is_inactive || self.kernel.generation() == 0 {
            return Ok(());
        }
        let fault = self.kernel.run(|dataplane| dataplane.egress_fault());
        let Some(fault) = fault.await? else {
            return Ok(());
        };
        warn!(
            target: "allowlist::egress-detached",
            "self-check: {fault}, so it may have refused nothing; it is published and attached again"
        );
        let reopened = self.kernel.run(Dataplane::reopen_egress);
        reopened.await?;
        let transaction = Transaction::again(self.state.clone());
        self.commit(transaction).await?;
        Ok(())
    }

    /// Ends the daemon's own exemption from the egress policy, at the end of the daemon.
    pub(super) async fn end_egress_exemption(&self) {
        self.kernel.run(|dataplane| dataplane.end_exemption()).await;
    }
}
