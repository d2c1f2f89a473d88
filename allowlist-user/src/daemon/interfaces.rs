//! The filter on its interfaces: put on at the start, and again when one comes back.

use anyhow::Result;
use log::{info, warn};
use nix::net::if_::if_nametoindex;

use super::Daemon;
use crate::dataplane::{View, print_trace};
use crate::interface::{self, Facts};

impl Daemon {
    pub(super) fn attach(&mut self, facts: &Facts, trace: bool) -> Result<()> {
        let attached = self.dataplane.attach(facts, self.config.attach, trace)?;
        if let Some(warning) = attached.warning {
            warn!("{warning}");
        }
        if let Some(old) = self.traces.remove(&facts.index) {
            old.abort();
        }
        if trace {
            let task = print_trace(attached.object)?;
            self.traces.insert(facts.index, task);
        }
        info!("{}: attached in {} mode", facts.name, attached.mode.name());
        Ok(())
    }

    /// Puts the filter on interfaces again that were removed and have come back.
    pub(super) async fn look_after_interfaces(&mut self) {
        if !self.waiting
            && let Err(error) = self.attach_again().await
        {
            warn!("{error:#}");
        }
    }

    /// Says of which interfaces there is nothing to filter yet.
    pub(super) fn say_absent(&mut self) {
        for name in absent(&self.config.interfaces) {
            if self.lost.insert(name.clone()) {
                warn!(
                    "there is no interface {name} now (there {}); it is filtered as soon as there is one",
                    interface::those_there()
                );
            }
        }
    }

    async fn attach_again(&mut self) -> Result<()> {
        let attachments = View::open(&self.options.paths.pin_dir)?.attachments()?;
        for name in self.config.interfaces.clone() {
            let index = if_nametoindex(&*name).ok();
            if index.is_some() && attachments.iter().any(|one| one.index == index) {
                self.lost.remove(&name);
                if self.config.rules.tracks() {
                    self.look_after_egress(&name).await;
                }
                continue;
            }
            let first_seen = self.lost.insert(name.clone());
            if first_seen {
                warn!(
                    "{name}: the filter is off, since the interface is gone or is another one now; it is put on again when there is one"
                );
            }
            let Ok(facts) = interface::look_up(&name).await else {
                continue;
            };
            if self.limits_services() {
                self.with_lists(|daemon, lists| daemon.publish(lists, None))?; // the new interface may have another slot, and its services go by that
            }
            match self.attach(&facts, self.options.trace) {
                Ok(()) => warn_of_offloads(&name).await,
                Err(error) if first_seen => warn!("{error:#}; this is tried again"),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Notes what is sent again, where somebody took off what does.
    async fn look_after_egress(&mut self, name: &str) {
        let Ok(facts) = interface::look_up(name).await else {
            return;
        };
        match self.dataplane.follows(&facts) {
            Ok(true) => {}
            Ok(false) => match self.dataplane.follow(&facts) {
                Ok(_) => warn!(
                    "{name}: what this host sends was not noted any more, so answers to it were dropped; it is again"
                ),
                Err(error) => warn!(
                    "{name}: what this host sends is not noted any more, so answers to it are dropped; this is tried again: {error:#}"
                ),
            },
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Whether some service is not everywhere.
    fn limits_services(&self) -> bool {
        let mut services = self.config.policy.services.iter();
        services.any(|service| !service.interfaces.is_empty())
    }
}

/// Warns of what an interface does to frames before the filter, which has just been attached, sees them.
pub(super) async fn warn_of_offloads(name: &str) {
    warn_of_stripped_tags(name).await;
    if let Some(bytes) = interface::merges_big_packets(name).await {
        warn!(
            "{name} merges packets up to {bytes} bytes (BIG TCP), and in generic mode the kernel copies each that is longer than 65536 into one piece for the filter, or drops it where it finds no memory for that; `ip link set dev {name} gro_max_size 65536 gro_ipv4_max_size 65536 gso_max_size 65536 gso_ipv4_max_size 65536` avoids it"
        );
    }
}

async fn warn_of_stripped_tags(name: &str) {
    if interface::strips_vlan_tags(name).await {
        warn!(
            "{name} takes VLAN tags off before the filter sees them, so `watch` shows no VLAN; verdicts are the same; `ethtool -K {name} rxvlan off` leaves them on"
        );
    }
}

/// Those of these interfaces that are not there.
pub(super) fn absent(names: &[String]) -> Vec<String> {
    let is_absent = |name: &&String| if_nametoindex(&***name).is_err();
    names.iter().filter(is_absent).cloned().collect()
}

/// Those of these interfaces that are there.
pub(super) async fn present(names: &[String]) -> Result<Vec<Facts>> {
    let mut there = Vec::new();
    for name in names {
        if if_nametoindex(&**name).is_ok() {
            there.push(interface::look_up(name).await?);
        }
    }
    Ok(there)
}

pub(super) async fn look_up_all(names: &[String]) -> Result<Vec<Facts>> {
    let mut all = Vec::new();
    for name in names {
        all.push(interface::look_up(name).await?);
    }
    Ok(all)
}
