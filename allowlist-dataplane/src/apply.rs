//! Applies a write as a whole: publishes a generation, attaches it, and goes back if a step fails.
//!
//! Invariant: a write that fails leaves the kernel's state as it was before.

use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use allowlist_policy::compile::Tables;
use allowlist_policy::{Mode, Rules};
use log::{info, warn};

use super::{AttachModeRequest, Attached, Dataplane, EgressPublication};
use crate::error::Result;
use crate::interface::InterfaceInfo;

/// The time for which outbound flows are tracked before the filter judges its first packet.
const LISTEN: Duration = Duration::from_secs(1);

/// A generation to publish.
pub struct Publication {
    /// The tables of the generation.
    pub tables: Arc<Tables>,
    /// The mode of the generation.
    pub mode: Mode,
    /// The settings from which the control word is made.
    pub rules: Rules,
    /// The names of the configured interfaces, by which a service can be limited to some interfaces.
    pub names: Vec<String>,
    /// Whether the counters of sources and services restart at 0, because the ids under which they count cannot be
    /// mapped to names any more.
    pub forgets_counts: bool,
    /// The description of the generation for reports, such as the names of its ids.
    pub metadata: Vec<u8>,
    /// The egress policy; `None` if this host's programs may connect to every destination.
    pub egress: Option<Box<EgressPublication>>,
    /// The interfaces to attach to; `None` if the attached interfaces stay as they are.
    pub attachments: Option<Attachments>,
}

/// The interfaces that a generation is attached to.
pub struct Attachments {
    /// The configured interfaces that exist.
    pub interfaces: Vec<InterfaceInfo>,
    /// The requested attach mode.
    pub mode: AttachModeRequest,
    /// Whether the program is replaced on interfaces that have it already; if false, it is only attached to the others.
    pub renews: bool,
    /// The new maximum number of tracked flows, where an inner `None` disables tracking; the outer `None` leaves
    /// tracking as it is.
    pub tracking: Option<Option<u32>>,
    /// Whether the program logs one line per packet.
    pub trace: bool,
}

/// A write to the kernel.
pub enum Write {
    /// Sets the modes by one store of the control word.
    Mode {
        /// The mode for packets.
        mode: Mode,
        /// The mode of the egress policy; ignored if there is none.
        egress: Mode,
    },
    /// Publishes a generation.
    Generation(Publication),
}

/// The programs that were attached, each with its interface.
pub type AttachedPrograms = Vec<(InterfaceInfo, Attached)>;

impl Dataplane {
    /// Applies a write, and returns the programs that were attached. With `confirm_within`, the kernel rolls the write
    /// back after this time unless it is confirmed.
    ///
    /// # Errors
    /// An error leaves the kernel as it was, unless its text states that the earlier state could not be restored.
    pub fn apply(
        &mut self,
        write: &Write,
        confirm_within: Option<Duration>,
    ) -> Result<AttachedPrograms> {
        let control = self.control.effective();
        // Links are read only if the write concerns them: a change of a prefix is to be fast.
        let found = match write {
            Write::Generation(one) if one.attachments.is_some() => Some(self.applied_state()?),
            _ => None,
        };
        let mut attached = Vec::new();
        let Err(error) = self.try_apply(write, confirm_within, &mut attached) else {
            return Ok(attached);
        };
        let restored = match &found {
            Some(found) => self.restore(found),
            None => self.restore_tables(control),
        };
        match restored {
            Ok(()) => Err(error),
            Err(again) => Err(again.context(format!(
                "{error:#}; the change may be active in part (see `allowlist status`), because the earlier state of the filter could not be restored either"
            ))),
        }
    }

    fn try_apply(
        &mut self,
        write: &Write,
        confirm_within: Option<Duration>,
        attached: &mut AttachedPrograms,
    ) -> Result<()> {
        if let Some(within) = confirm_within {
            self.arm_rollback(within)?;
        }
        match write {
            Write::Mode { mode, egress } => self.set_modes(*mode, *egress),
            Write::Generation(publication) => {
                if publication.forgets_counts {
                    warn!(
                        target: "allowlist::counters-reset",
                        "sources and services have new ids in the kernel, so their counters restart at 0"
                    );
                    self.forget_counts()?;
                }
                match &publication.attachments {
                    Some(attachments) => {
                        self.publish_and_attach(publication, attachments, attached)?;
                    }
                    None => self.publish_tables(publication)?,
                }
            }
        }
        Ok(())
    }

    /// Publishes the tables of a generation; the attached interfaces stay as they are.
    fn publish_tables(&mut self, publication: &Publication) -> Result<()> {
        let Publication {
            tables,
            mode,
            rules,
            names,
            metadata,
            egress,
            ..
        } = publication;
        self.publish_with_egress(tables, *mode, rules, names, metadata, egress.as_deref())?;
        if egress.is_none() && self.control.pending().is_none() {
            // Not while a change is pending: a rollback would need it.
            let _pin_lock = self.pins.lock_exclusive()?;
            self.egress.detach(&self.pins)?;
        }
        Ok(())
    }

    /// Publishes a generation, then attaches the filter to its interfaces.
    ///
    /// If this attaches a flow tracker to an interface, outbound flows are tracked for [`LISTEN`] before the publish,
    /// so that connections that exist already continue.
    fn publish_and_attach(
        &mut self,
        publication: &Publication,
        attachments: &Attachments,
        attached: &mut AttachedPrograms,
    ) -> Result<()> {
        if let Some(max_flows) = attachments.tracking {
            self.track(max_flows)?;
        }
        // Filtered interfaces change to this program first, with the present tables.
        let (mut filtered, mut new) = (Vec::new(), Vec::new());
        let mut is_news = false;
        self.prepare_tracking()?;
        for facts in &attachments.interfaces {
            is_news |= self.enable_tracking(facts)?;
            if self.filters(facts)? {
                filtered.push(facts);
            } else {
                new.push(facts);
            }
        }
        if self.is_patched() {
            new.append(&mut filtered); // its maps are empty before the publish
        }
        for facts in filtered.into_iter().filter(|_| attachments.renews) {
            self.attach_one(facts, attachments, attached)?;
        }
        self.finish_flow_migration()?;
        self.adopt_clients()?;
        if is_news {
            sleep(LISTEN);
            self.adopt_clients()?; // those since the first call
        }
        self.publish_tables(publication)?;
        // Interfaces with another version's program last, so that a failure before leaves them as they were.
        let (others, new) = self.those_of_another_version(new)?;
        for facts in new.into_iter().chain(others) {
            self.attach_one(facts, attachments, attached)?;
        }
        self.arm()?;
        let indices: Vec<u32> = attachments.interfaces.iter().map(|one| one.index).collect();
        let mut detached = self.detach_others(&indices)?;
        detached.extend(self.remove_previous()?);
        for name in detached {
            info!(
                target: "allowlist::detached",
                "{name}: the filter is detached, because the interface is not configured any more"
            );
        }
        Ok(())
    }

    fn attach_one(
        &mut self,
        facts: &InterfaceInfo,
        attachments: &Attachments,
        attached: &mut AttachedPrograms,
    ) -> Result<()> {
        let one = self.attach(facts, attachments.mode, attachments.trace)?;
        attached.push((facts.clone(), one));
        Ok(())
    }

    /// Splits interfaces into those that have the program of another version attached, and the rest.
    fn those_of_another_version<'a>(
        &self,
        interfaces: Vec<&'a InterfaceInfo>,
    ) -> Result<(Vec<&'a InterfaceInfo>, Vec<&'a InterfaceInfo>)> {
        let (mut others, mut new) = (Vec::new(), Vec::new());
        for facts in interfaces {
            if self.has_previous_link(facts.index)? {
                others.push(facts);
            } else {
                new.push(facts);
            }
        }
        Ok((others, new))
    }
}
