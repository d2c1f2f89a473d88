//! The filter on its interfaces: put on at the start, and again when one comes back.

use std::collections::BTreeMap;

use anyhow::Result;
use log::{info, warn};

use super::Daemon;
use crate::dataplane::{Attachment, Difference, View, print_trace};
use crate::hints;
use crate::interface::{self, InterfaceInfo};
use crate::netlink::index_of;

impl Daemon {
    pub(super) fn attach(&mut self, facts: &InterfaceInfo, trace: bool) -> Result<()> {
        let attached = self.dataplane.attach(facts, self.config.attach, trace)?;
        if let Some(warning) = attached.warning {
            warn!(target: "allowlist::attach-mode", "{warning}");
        }
        if let Some(old) = self.traces.remove(&facts.index) {
            old.abort();
        }
        if let Some(object) = attached.object {
            let task = print_trace(object)?;
            self.traces.insert(facts.index, task);
        }
        info!("{}: attached in {} mode", facts.name, attached.mode.name());
        Ok(())
    }

    /// Compares the kernel with the published state, and restores that: for interfaces that have come, gone, changed
    /// names or been replaced, and for objects that another process has changed.
    pub(super) async fn look_after_interfaces(&mut self) {
        if self.waiting {
            return;
        }
        let now = indices_of(&self.config.interfaces);
        let is_new = now != self.published_on;
        // The new interface may have another slot, and services that are limited to a name go by that. Where none
        // is, the filter is on it sooner.
        let is_first = self.limits_services();
        if is_new && is_first {
            self.publish_names(&now);
        }
        match self.make_as_published().await {
            Ok(()) => self.self_check.succeed(),
            Err(error) => self.self_check.fail(&error),
        }
        if is_new && !is_first {
            self.publish_names(&now);
        }
    }

    async fn make_as_published(&mut self) -> Result<()> {
        self.dataplane.follow_names()?;
        let differences = self.compare()?;
        self.attach_again(&differences).await?;
        self.repair(differences).await
    }

    /// Publishes again where a name is another interface than at the last publish, so that services that are
    /// limited to a name follow it.
    fn publish_names(&mut self, now: &BTreeMap<String, u32>) {
        for (name, index) in now {
            let before = self.published_on.get(name);
            if before.is_some_and(|before| before != index) {
                info!(
                    "{name} is another interface now (index {index}); services that are limited to that name follow it"
                );
            }
        }
        if let Err(error) = interface::require_distinct(&self.config.interfaces) {
            warn!("{error:#}; until then it has the services of the name that comes last");
        }
        if let Err(error) = self.with_lists(|daemon, lists| daemon.publish(lists, None)) {
            warn!(
                "the interfaces have changed, and services that are limited to an interface do not follow: {error:#}"
            );
        }
        self.published_on.clone_from(now); // an error is logged once
    }

    /// Whether some service is not everywhere.
    fn limits_services(&self) -> bool {
        let mut services = self.config.policy.services.iter();
        services.any(|service| !service.interfaces.is_empty())
    }

    /// Says of which interfaces there is nothing to filter yet.
    pub(super) fn say_absent(&mut self) {
        for name in absent(&self.config.interfaces) {
            if !self.lost.contains_key(&name) {
                self.lost.insert(name.clone(), None);
                let hint =
                    hints::interface(&name).map_or_else(String::new, |hint| format!("; {hint}"));
                warn!(
                    target: "allowlist::missing-interface",
                    "there is no interface {name} now (there {}); it is filtered as soon as there is one{hint}",
                    interface::those_there()
                );
            }
        }
    }

    fn is_attached(&self, index: Option<u32>) -> Result<bool> {
        let attachments = View::open(&self.options.paths.pin_dir)?.attachments()?;
        let is_on = |one: &Attachment| one.attached && one.index == index;
        Ok(attachments.iter().any(is_on))
    }

    async fn attach_again(&mut self, differences: &[Difference]) -> Result<()> {
        for name in self.config.interfaces.clone() {
            let index = index_of(&name);
            // Once more where it is not: link and interface are read one after the other, and may change between.
            if index.is_some() && (self.is_attached(index)? || self.is_attached(index)?) {
                self.lost.remove(&name);
                continue;
            }
            let is_ours = |differences: &[Difference]| {
                let mut ours = differences.iter().filter(|one| one.kind.is_ours());
                ours.any(|one| one.object.as_ref() == Some(&name))
            };
            // Compared once more, since a pin may have been removed after the last comparison.
            let is_lost = self.lost.contains_key(&name);
            if !is_lost && (is_ours(differences) || is_ours(&self.compare()?)) {
                continue; // the interface is the one that it was
            }
            if !self.lost.contains_key(&name) {
                self.lost.insert(name.clone(), None);
                warn!(
                    target: "allowlist::missing-interface",
                    "{name}: the filter is off, since the interface is gone or is another one now; it is put on again when there is one"
                );
            }
            if index.is_none() {
                continue;
            }
            let attached = match interface::look_up(&name).await {
                Ok(facts) => self.attach(&facts, self.options.trace),
                Err(_) if index_of(&name).is_none() => continue, // removed since
                Err(error) => Err(error),
            };
            match attached {
                Ok(()) => {
                    self.lost.remove(&name);
                    warn_of_offloads(&name).await;
                }
                Err(error) => {
                    // Each reason once, also one that takes the place of another.
                    let reason = Some(format!("{error:#}"));
                    if self.lost.get(&name) != Some(&reason) {
                        warn!("{error:#}; this is tried again");
                        self.lost.insert(name, reason);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Warns of what an interface does to frames before the filter, which has just been attached, sees them.
pub(super) async fn warn_of_offloads(name: &str) {
    warn_of_stripped_tags(name).await;
    if let Some(bytes) = interface::merges_big_packets(name).await {
        warn!(
            target: "allowlist::merged-packets",
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
    let is_absent = |name: &&String| index_of(name).is_none();
    names.iter().filter(is_absent).cloned().collect()
}

/// The indices of the interfaces that are there, by name.
pub(super) fn indices_of(names: &[String]) -> BTreeMap<String, u32> {
    let found = names
        .iter()
        .filter_map(|name| Some((name.clone(), index_of(name)?)));
    found.collect()
}

/// Those of these interfaces that are there.
pub(super) async fn present(names: &[String]) -> Result<Vec<InterfaceInfo>> {
    let mut there = Vec::new();
    for name in names {
        if index_of(name).is_some() {
            there.push(interface::look_up(name).await?);
        }
    }
    Ok(there)
}

pub(super) async fn look_up_all(names: &[String]) -> Result<Vec<InterfaceInfo>> {
    let mut all = Vec::new();
    for name in names {
        all.push(interface::look_up(name).await?);
    }
    Ok(all)
}
