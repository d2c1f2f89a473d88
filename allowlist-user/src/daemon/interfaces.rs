//! Attaches the filter to its interfaces: at the start, and when a missing one appears.

use std::collections::BTreeMap;

use allowlist_dataplane::interface::{self, InterfaceInfo, Links};
use allowlist_dataplane::netlink::index_of;
use allowlist_dataplane::{AttachedPrograms, Attachment, Dataplane, Difference, View, print_trace};
use allowlist_policy::hints;
use anyhow::Result;
use log::{info, warn};
use tokio::task::JoinHandle;

use super::Daemon;
use super::commit::Transaction;
use super::selfcheck::SelfCheck;

/// The interfaces of the host, as far as the daemon has seen and logged them.
pub(super) struct Interfaces {
    /// The configured interfaces that are missing, or were removed or replaced, and are not filtered yet. By name, with
    /// the last logged reason why the filter cannot be attached, if an attempt has failed.
    lost: BTreeMap<String, Option<String>>,
    pub(super) self_check: SelfCheck,
    /// Notifications of interface changes; `None` if they cannot be received, in which case interfaces are polled.
    links: Option<Links>,
    /// By interface index: the task that prints the trace of the interface.
    traces: BTreeMap<u32, JoinHandle<()>>,
}

impl Interfaces {
    /// Begins to receive notifications of interface changes.
    pub(super) fn listen() -> Self {
        let links = Links::listen().inspect_err(|error| {
            warn!("{error:#}; polling the interfaces every second instead");
        });
        Self {
            lost: BTreeMap::new(),
            self_check: SelfCheck::default(),
            links: links.ok(),
            traces: BTreeMap::new(),
        }
    }

    /// Waits for a change of the host's interfaces; waits forever without notifications.
    pub(super) async fn changed(&mut self) {
        match &mut self.links {
            Some(links) => links.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Logs the modes of programs that were attached, and begins to print their traces instead of those of their
    /// predecessors.
    pub(super) fn note_attached(&mut self, attached: AttachedPrograms) {
        for (InterfaceInfo { name, index, .. }, program) in attached {
            if let Some(warning) = program.warning {
                warn!(target: "allowlist::attach-mode", "{warning}");
            }
            info!("{name}: attached in {} mode", program.mode.name());
            if let Some(old) = self.traces.remove(&index) {
                old.abort();
            }
            let Some(object) = program.object else {
                continue;
            };
            match print_trace(object) {
                Ok(task) => {
                    self.traces.insert(index, task);
                }
                Err(error) => warn!(
                    "{name}: cannot print the trace, so the packets of this interface are not logged: {error:#}"
                ),
            }
        }
    }

    /// Logs each configured interface that does not exist, once.
    pub(super) fn warn_missing(&mut self, configured: &[String]) {
        self.lost.retain(|name, _| configured.contains(name));
        for name in absent(configured) {
            if !self.lost.contains_key(&name) {
                self.lost.insert(name.clone(), None);
                let hint =
                    hints::interface(&name).map_or_else(String::new, |hint| format!("; {hint}"));
                warn!(
                    target: "allowlist::missing-interface",
                    "interface {name} does not exist (there {}); the filter is attached when it appears{hint}",
                    interface::those_there()
                );
            }
        }
    }
}

impl Daemon {
    /// Attaches the filter to an interface. With `trace`, also starts to print its trace.
    pub(super) async fn attach(&mut self, facts: InterfaceInfo, trace: bool) -> Result<()> {
        let mode = self.state.config().attach;
        let attached = self.kernel.attach(facts, mode, trace).await?;
        self.interfaces.note_attached(attached);
        Ok(())
    }

    /// Compares the kernel with the published state and restores it, after interfaces appeared, were removed, renamed
    /// or replaced, or another process changed an object.
    pub(super) async fn look_after_interfaces(&mut self) {
        if self.is_inactive {
            return;
        }
        let now = indices_of(&self.state.config().interfaces);
        let is_new = now != self.kernel.published_on;
        // A new interface may have another slot, which services limited to an interface depend on. If no service is
        // limited, attach first.
        let is_first = self.limits_services();
        if is_new && is_first {
            self.publish_names(&now).await;
        }
        match self.make_as_published().await {
            Ok(()) => self.interfaces.self_check.succeed(),
            Err(error) => self.interfaces.self_check.fail(format!("{error:#}")),
        }
        if is_new && !is_first {
            self.publish_names(&now).await;
        }
    }

    async fn make_as_published(&mut self) -> Result<()> {
        self.kernel.run(Dataplane::follow_names).await?;
        let differences = self.compare().await?;
        self.attach_again(&differences).await?;
        self.repair(differences).await
    }

    /// Publishes again if the name of an interface now belongs to another interface, so that services limited to that
    /// name apply to it. `now` has the index of each name.
    async fn publish_names(&mut self, now: &BTreeMap<String, u32>) {
        for (name, index) in now {
            let before = self.kernel.published_on.get(name);
            if before.is_some_and(|before| before != index) {
                info!(
                    "{name} is a new interface (index {index}); services limited to that name apply to it"
                );
            }
        }
        if let Err(error) = interface::require_distinct(&self.state.config().interfaces) {
            warn!(
                "{error:#}; while both names are configured, the services of the last one apply to the interface"
            );
        }
        let again = Transaction::again(self.state.clone());
        if let Err(error) = self.commit(again).await {
            warn!(
                "the interfaces have changed, but the services that are limited to an interface cannot be updated: {error}; they apply to the earlier interfaces until the next change of a list or of the configuration"
            );
        }
        self.kernel.published_on.clone_from(now); // an error is logged once
    }

    /// Returns whether any service is limited to some interfaces.
    fn limits_services(&self) -> bool {
        let mut services = self.state.config().policy.services.iter();
        services.any(|service| !service.interfaces.is_empty())
    }

    async fn is_attached(&self, index: Option<u32>) -> Result<bool> {
        let pin_dir = self.options.paths.pin_dir.clone();
        let read = move |_: &mut _| View::open(&pin_dir)?.attachments();
        let attachments = self.kernel.run(read).await?;
        let is_on = |one: &Attachment| one.attached && one.index == index;
        Ok(attachments.iter().any(is_on))
    }

    async fn attach_again(&mut self, differences: &[Difference]) -> Result<()> {
        for name in self.state.config().interfaces.clone() {
            let index = index_of(&name);
            // Repeated, since link and interface are not read atomically.
            if index.is_some()
                && (self.is_attached(index).await? || self.is_attached(index).await?)
            {
                self.interfaces.lost.remove(&name);
                continue;
            }
            let is_ours = |differences: &[Difference]| {
                let mut ours = differences.iter().filter(|one| one.kind.is_ours());
                ours.any(|one| one.object.as_ref() == Some(&name))
            };
            // Compared again, since a pin may have been removed since the last comparison.
            let is_lost = self.interfaces.lost.contains_key(&name);
            if !is_lost && (is_ours(differences) || is_ours(&self.compare().await?)) {
                continue; // the same interface; `repair` handles it
            }
            if !is_lost {
                self.interfaces.lost.insert(name.clone(), None);
                warn!(
                    target: "allowlist::missing-interface",
                    "{name}: the interface was removed or replaced, and is not filtered; the filter is attached when it appears"
                );
            }
            if index.is_none() {
                continue;
            }
            let attached = match interface::look_up(&name).await {
                Ok(facts) => self.attach(facts, self.options.trace).await,
                Err(_) if index_of(&name).is_none() => continue, // removed since
                Err(error) => Err(error.into()),
            };
            match attached {
                Ok(()) => {
                    self.interfaces.lost.remove(&name);
                    warn_of_offloads(&name).await;
                }
                Err(error) => {
                    // Log each reason once.
                    let reason = Some(format!("{error:#}"));
                    if self.interfaces.lost.get(&name) != Some(&reason) {
                        warn!("{error:#}; retrying");
                        self.interfaces.lost.insert(name, reason);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Logs the offloads of interface `name` that change frames before the filter sees them.
pub(super) async fn warn_of_offloads(name: &str) {
    warn_of_stripped_tags(name).await;
    if let Some(bytes) = interface::merges_big_packets(name).await {
        warn!(
            target: "allowlist::merged-packets",
            "{name} merges packets up to {bytes} bytes (BIG TCP); in generic mode the kernel linearizes each packet longer than 65536 bytes for the filter, or drops it if memory is short; `ip link set dev {name} gro_max_size 65536 gro_ipv4_max_size 65536 gso_max_size 65536 gso_ipv4_max_size 65536` avoids it"
        );
    }
}

async fn warn_of_stripped_tags(name: &str) {
    if interface::strips_vlan_tags(name).await {
        warn!(
            "{name} strips VLAN tags before the filter, so `watch` shows no VLAN; verdicts do not change; `ethtool -K {name} rxvlan off` keeps the tags"
        );
    }
}

/// Returns the names of the interfaces that do not exist.
pub(super) fn absent(names: &[String]) -> Vec<String> {
    let is_absent = |name: &&String| index_of(name).is_none();
    names.iter().filter(is_absent).cloned().collect()
}

/// Returns the index of each interface that exists, by name.
pub(super) fn indices_of(names: &[String]) -> BTreeMap<String, u32> {
    let found = names
        .iter()
        .filter_map(|name| Some((name.clone(), index_of(name)?)));
    found.collect()
}

/// Looks up the interfaces by name, and skips those that do not exist.
pub(super) async fn present(names: &[String]) -> Result<Vec<InterfaceInfo>> {
    let mut there = Vec::new();
    for name in names {
        if index_of(name).is_some() {
            there.push(interface::look_up(name).await?);
        }
    }
    Ok(there)
}

/// Looks up the interfaces by name.
///
/// # Errors
/// Fails if one of the interfaces does not exist.
pub(super) async fn look_up_all(names: &[String]) -> Result<Vec<InterfaceInfo>> {
    let mut all = Vec::new();
    for name in names {
        all.push(interface::look_up(name).await?);
    }
    Ok(all)
}
