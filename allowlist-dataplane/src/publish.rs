//! Publishes a generation: writes all tables into an idle slot, or changes one prefix of the active tables in place.
//!
//! Invariants: a publish stores the control word last, so a publish that fails has written only to a slot that no
//! packet uses and no rollback needs. A prefix is changed in place only if nothing else changes: each packet then uses
//! the table either with or without the change.

use allowlist_common::abi::{self, Control, GENERATIONS, ReturnTraffic, ServiceTable};
use allowlist_policy::compile::Tables;
use allowlist_policy::{Mode, Rules};
use log::info;

use super::Dataplane;
use super::egress::EgressPublication;
use super::generations::Generations;
use super::tables::Prepared;
use crate::error::Result;
use crate::netlink::index_of;
use crate::sockets;

impl Dataplane {
    /// Publishes `tables` as the next generation, for IPv4 and IPv6 and all interfaces at once, and returns its number.
    ///
    /// Fills a slot that no packet uses, and then switches to it by one atomic store. If only one prefix differs from
    /// the generation that this value published last, changes that prefix in place instead. On an error, the active
    /// generation stays active.
    ///
    /// `interfaces` are the configured names, by which a service can be limited to some interfaces. `metadata`
    /// describes the generation for reports, and becomes active with its tables; if it is empty, the generation has no
    /// metadata. A change in place stores `metadata` only if the tables have new ids; [`Self::set_metadata`] stores it
    /// in any case.
    pub fn publish(
        &mut self,
        tables: &Tables,
        mode: Mode,
        rules: &Rules,
        interfaces: &[String],
        metadata: &[u8],
    ) -> Result<u32> {
        self.publish_with_egress(tables, mode, rules, interfaces, metadata, None)
    }

    /// Publishes like [`Self::publish`], with an egress policy, whose tables become active at the same time.
    ///
    /// Attaches its programs if needed. Without an egress policy, every call passes.
    pub fn publish_with_egress(
        &mut self,
        tables: &Tables,
        mode: Mode,
        rules: &Rules,
        interfaces: &[String],
        metadata: &[u8],
        egress: Option<&EgressPublication>,
    ) -> Result<u32> {
        self.bring_programs_up_to_date()?;
        let own_ports = sockets::own_ports()?;
        let current = self.control.load();
        let mut services = self.service_table(tables, interfaces)?;
        let wanted = rules.control(mode);
        let shares_ports =
            wanted.return_traffic == ReturnTraffic::Track && services.update_shared(&own_ports);
        let next = Control {
            generation: self.next_generation(),
            slot: current.slot,
            pending: current.pending,
            shares_ports,
            egress: egress.map(|egress| egress.control),
            ..wanted
        };
        if self.egress.is_published(egress)
            && self.change_in_place(&services, tables, next, metadata)
        {
            return Ok(next.generation);
        }
        let slot = self.control.idle_slot();
        let prepared = Prepared::new(tables, rules.lookup)?;
        if let Some(words) = prepared.larger_than(self.tables.words()) {
            self.resize_tables(words, slot)?;
        }
        let published = self.tables.write(
            &self.pins,
            slot,
            services.clone(),
            prepared,
            tables,
            metadata,
        )?;
        if let Some(egress) = egress {
            // Attached before the control word: without a policy in it, every call passes.
            self.egress.write(&self.pins, slot, egress)?;
        }
        self.forget_services(current, &services)?;
        self.flip(Control { slot, ..next });
        // Once more, for packets that the last generation let pass until now.
        self.forget_services(current, &services)?;
        self.tables.published = Some(published);
        self.egress.set_published(egress);
        Ok(next.generation)
    }

    /// Records that the origin of a UDP port's flows is unknown, if the generation of `current` does not record the
    /// port's flows because a service covers it, and a generation with `services` does.
    fn forget_services(&self, current: Control, services: &ServiceTable) -> Result<()> {
        if self.tracking.is_on && current.generation != 0 && !current.open {
            let copied = self.tables.services(current.slot)?;
            self.tracking
                .distrust_newly_recorded(copied.services(), services);
        }
        Ok(())
    }

    /// Stores a control word, which may make another generation active, and starts an RCU grace period, after which no
    /// running program uses the previous word.
    pub(super) fn flip(&mut self, control: Control) {
        if control.return_traffic != ReturnTraffic::Track && !control.pending {
            self.tracking.marks.disarm_all(); // nothing is marked any more
        }
        self.control.store(control);
        self.tables.rcu.start();
    }

    /// Replaces the map of generation tables by one with `words` words of 8 bytes per slot, and all programs by ones
    /// that use it.
    ///
    /// Copies every slot except `idle`. The active generation decides on packets throughout.
    fn resize_tables(&mut self, words: usize, idle: u32) -> Result<()> {
        let before = self.tables.words();
        {
            let _pin_lock = self.pins.lock_exclusive()?;
            self.tables.generations.resize(&self.pins, words, idle)?;
            self.keep_open(GENERATIONS)?;
        }
        self.bring_programs_up_to_date()?;
        if self.generation() != 0 {
            info!(
                target: "allowlist::tables-resized",
                "resized the kernel's tables of prefixes from {} to {} KiB each",
                (before * size_of::<u64>()) >> 10,
                (words * size_of::<u64>()) >> 10
            );
        }
        Ok(())
    }

    /// Replaces all attached programs if some may still use the smaller tables from before a resize.
    ///
    /// A process may have ended after it created the larger tables and before it replaced all programs.
    fn bring_programs_up_to_date(&mut self) -> Result<()> {
        if !Generations::resize_pending(&self.pins, GENERATIONS)? {
            return Ok(());
        }
        self.replace_programs()?;
        let _pin_lock = self.pins.lock_exclusive()?;
        Generations::finish_resize(&self.pins, GENERATIONS)
    }

    /// Returns the size of one generation's tables in bytes, including the pool and its spare room.
    ///
    /// If the size changes, programs that [`Self::load_program`] loaded before use the previous tables, which are no
    /// longer written.
    pub const fn table_bytes(&self) -> usize {
        self.tables.words() * size_of::<u64>()
    }

    /// Publishes `next` in place if its tables differ from the active ones in at most one prefix and nothing else
    /// changes.
    ///
    /// Returns whether it was published; if not, nothing has changed.
    fn change_in_place(
        &mut self,
        services: &ServiceTable,
        tables: &Tables,
        next: Control,
        metadata: &[u8],
    ) -> bool {
        let current = self.control.load();
        let is_kept_to_go_back_to =
            current.pending && self.control.fallback().rollback_target().slot == current.slot;
        let by_the_same_word = Control {
            generation: current.generation,
            ..next
        } == current;
        let (slot, generation) = (current.slot % abi::SLOTS, next.generation);
        let changed = !is_kept_to_go_back_to
            && by_the_same_word
            && self
                .tables
                .change_in_place(&self.pins, slot, services, tables, generation, metadata);
        if changed {
            self.control.store(next);
        }
        changed
    }

    /// Returns the services of `tables`, with a row for the slot of each interface.
    fn service_table(
        &mut self,
        tables: &Tables,
        interfaces: &[String],
    ) -> Result<Box<ServiceTable>> {
        let mut table = tables.services.clone();
        self.follow_names()?;
        for name in interfaces.iter().filter(|name| index_of(name).is_some()) {
            self.reserve(name)?;
        }
        for (name, here) in &tables.interfaces {
            if interfaces.contains(name) {
                table.interfaces[self.reserve(name)? as usize] = **here;
            }
        }
        Ok(table)
    }
}
