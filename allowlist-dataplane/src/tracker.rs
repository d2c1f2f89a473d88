//! Attaches, replaces and detaches the flow tracker on an interface.
//!
//! The flow tracker is attached by a pinned tcx link (Linux 6.6), or else by a filter of the clsact queueing
//! discipline, which needs no pin. Invariant: the record of an interface slot states which of the two is used.

use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use allowlist_common::abi::{self, Identity, Interface};
use allowlist_policy::error_code::bail_with;
use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcAttachType, TcError,
    TcHandle, qdisc_add_clsact,
};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier};
use log::warn;
use nix::errno::Errno;
use nix::net::if_::if_indextoname;

use super::Dataplane;
use super::link::{take_off, take_off_if_pinned, tracks};
use super::pins::{Pins, is_pinned};
use super::sys::program_maps;
use crate::error::{Context as _, Error, Result, of_program};
use crate::interface::InterfaceInfo;
use crate::netlink::Netlink;

/// The kernel hook to which the flow tracker is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// tcx, or clsact if the kernel has no tcx.
    Best,
    /// clsact, even if the kernel has tcx.
    Clsact,
}

/// The maximum number of times that an attach is retried, [`WAIT`] apart, while the kernel has not freed a removed
/// link.
const WAITS: u32 = 40;
const WAIT: Duration = Duration::from_millis(50);

pub(super) const BY_TCX: u32 = 1;
const BY_CLSACT: u32 = 2;

/// The priority of the flow tracker's clsact filter: the highest, because another filter can end the chain.
const PRIORITY: u16 = 1;
/// The handle that identifies the flow tracker's filter among clsact filters of the same priority.
const HANDLE: TcHandle = TcHandle::new(0, 0xa110);

impl Dataplane {
    /// Attaches the flow tracker to an interface if the policy tracks flows, and returns whether it was not attached
    /// before.
    ///
    /// [`Self::attach`] attaches it too. Call this function earlier, so that flows are recorded before the first packet
    /// is judged by the recorded flows.
    pub fn enable_tracking(&mut self, facts: &InterfaceInfo) -> Result<bool> {
        if !self.tracking.is_on {
            return Ok(false);
        }
        let _pin_lock = self.pins.lock_exclusive()?;
        let slot = self.reserve(&facts.name)?;
        let recorded = self.interfaces.get(slot)?;
        if self
            .migration
            .previous_tracks(slot, recorded.egress == BY_CLSACT)?
        {
            return Ok(false); // until this version's program is attached
        }
        let was_tracked = self.has_tracker(slot, facts)?;
        let mut object = self.load(slot, false)?;
        self.attach_tracker(&mut object, slot, facts, Hook::Best)?;
        Ok(!was_tracked)
    }

    fn has_tracker(&self, slot: u32, facts: &InterfaceInfo) -> Result<bool> {
        let recorded = self.interfaces.get(slot)?;
        let pin = self.pins.egress(slot);
        Ok(match recorded.egress {
            BY_TCX => tracks(&pin, facts.index)?,
            BY_CLSACT => recorded.index == facts.index,
            _ => false,
        })
    }

    /// Attaches the flow tracker to an interface if the policy tracks flows, and detaches it otherwise.
    pub fn attach_tracker(
        &mut self,
        object: &mut Ebpf,
        slot: u32,
        facts: &InterfaceInfo,
        hook: Hook,
    ) -> Result<()> {
        let recorded = self.interfaces.get(slot)?;
        let egress = if self.tracking.is_on {
            let program = load(object)?;
            self.record_tracker(slot, program)?;
            self.attach_egress(program, slot, (facts, &recorded), hook)
                .with_context(|| {
                    format!(
                        "cannot attach the flow tracker, which only return_traffic = \"track\" needs, to {}",
                        facts.name
                    )
                })?
        } else if self.control.fallback_tracks() {
            recorded.egress // a rollback needs its flows
        } else {
            detach_tracker(&self.pins, slot, &recorded)?;
            0
        };
        // With the interface, so that a filter on it can be removed after any failure below.
        self.interfaces.rename(slot, &facts.name)?;
        let recorded = Interface {
            egress,
            index: facts.index,
            ..self.interfaces.get(slot)?
        };
        self.interfaces.set(slot, recorded)
    }

    /// Replaces the flow tracker on the interface of an interface slot by the one of `object`.
    pub(super) fn replace_tracker(
        &mut self,
        object: &mut Ebpf,
        slot: u32,
        facts: &InterfaceInfo,
    ) -> Result<()> {
        let recorded = self.interfaces.get(slot)?;
        let program = load(object)?;
        self.record_tracker(slot, program)?;
        let egress = self.attach_egress(program, slot, (facts, &recorded), Hook::Best)?;
        self.interfaces.set(slot, Interface { egress, ..recorded })
    }

    fn record_tracker(&mut self, slot: u32, program: &SchedClassifier) -> Result<()> {
        let (tracker, _) = program_maps(program.fd()?.as_fd())
            .context("cannot read the kernel's information about the flow tracker")?;
        let identity = Identity {
            tracker,
            ..self.interfaces.identity(slot)?
        };
        self.interfaces.set_identity(slot, identity)
    }

    /// Detaches the flow tracker from the interface of an interface slot.
    pub(super) fn disable_tracking(&mut self, slot: u32) -> Result<()> {
        let recorded = self.interfaces.get(slot)?;
        detach_tracker(&self.pins, slot, &recorded)?;
        let recorded = Interface {
            egress: 0,
            ..recorded
        };
        self.interfaces.set(slot, recorded)
    }

    fn attach_egress(
        &self,
        program: &mut SchedClassifier,
        slot: u32,
        (facts, recorded): (&InterfaceInfo, &Interface),
        hook: Hook,
    ) -> Result<u32> {
        let pin = self.pins.egress(slot);
        if is_pinned(&pin)? {
            if hook == Hook::Best && tracks(&pin, facts.index)? {
                let link: FdLink = PinnedLink::from_pin(&pin)?.into();
                let id = program.attach_to_link(link.try_into()?)?;
                drop(program.take_link(id)?); // the pin holds it
                return Ok(BY_TCX);
            }
            take_off(&pin)?;
        }
        let mut no_tcx = None;
        if hook == Hook::Best {
            match attach_first(program, &facts.name) {
                Ok(id) => {
                    let link: FdLink = program.take_link(id)?.try_into()?;
                    link.pin(&pin)
                        .context("cannot pin the flow tracker's link")?;
                    if recorded.egress == BY_CLSACT && recorded.index == facts.index {
                        remove_filter(&facts.name); // an older kernel's, or a test's
                    }
                    return Ok(BY_TCX);
                }
                Err(error) if is_there_already(&error) => {
                    return Err(error).context(
                        "the flow tracker is already attached, by a link without a pin; end the process that holds the link",
                    );
                }
                Err(error) => {
                    log::debug!(
                        "{}: cannot attach the flow tracker by tcx, so clsact is used: {error}",
                        facts.name
                    );
                    no_tcx = Some(error);
                }
            }
        }
        attach_filter(program, facts).map_err(|error| match no_tcx {
            None => error,
            Some(no_tcx) => error.context(format!(
                "the kernel refuses the flow tracker as a tcx program ({:#}) and as a clsact filter",
                Error::from(no_tcx)
            )),
        })?;
        Ok(BY_CLSACT)
    }
}

/// Attaches the flow tracker as the first program on the interface's tcx egress, because any other program may end the
/// chain.
///
/// The kernel frees a link some time after its pin was removed, and refuses the same program until then. Therefore the
/// attach is retried before clsact is used.
fn attach_first(
    program: &mut SchedClassifier,
    interface: &str,
) -> Result<SchedClassifierLinkId, ProgramError> {
    let mut waits = 0;
    loop {
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        match program.attach_with_options(interface, TcAttachType::Egress, order) {
            Err(error) if waits < WAITS && is_there_already(&error) => thread::sleep(WAIT),
            attached => return attached,
        }
        waits += 1;
    }
}

fn is_there_already(error: &ProgramError) -> bool {
    of_program(error) == Some(Errno::EEXIST)
}

/// Detaches the flow tracker from the interface of a slot, if it is attached.
pub(super) fn detach_tracker(pins: &Pins, slot: u32, recorded: &Interface) -> Result<()> {
    take_off_if_pinned(&pins.egress(slot))?;
    if recorded.egress == BY_CLSACT
        && let Ok(name) = if_indextoname(recorded.index)
    {
        remove_filter(&name.to_string_lossy());
    }
    Ok(())
}

fn load(object: &mut Ebpf) -> Result<&mut SchedClassifier> {
    // By its type, since its name differs in older objects.
    let program: &mut SchedClassifier = object
        .programs_mut()
        .find_map(|(_, program)| program.try_into().ok())
        .with_context(|| {
            format!(
                "the embedded eBPF object has no program {}; reinstall allowlist",
                abi::TRACKER_PROGRAM
            )
        })?;
    if program.fd().is_err() {
        program
            .load()
            .context("the kernel rejected the flow tracker's program; report this with the verifier log, which follows")?;
    }
    Ok(program)
}

fn attach_filter(program: &mut SchedClassifier, facts: &InterfaceInfo) -> Result<()> {
    match qdisc_add_clsact(&facts.name) {
        // An earlier one of this program, or one of another program.
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(Errno::EEXIST as i32) => {
            require_clsact(facts)?;
        }
        added => added.context("cannot add the clsact queueing discipline")?,
    }
    // Replaces our earlier filter; fails if there is none.
    let replaced = program.attach_to_link(filter(&facts.name)?);
    let id = if let Ok(id) = replaced {
        id
    } else {
        let options = NlOptions {
            priority: PRIORITY,
            handle: HANDLE,
            ..NlOptions::default()
        };
        let options = TcAttachOptions::Netlink(options);
        program
            .attach_with_options(&facts.name, TcAttachType::Egress, options)
            .with_context(|| {
                format!(
                    "cannot add the flow tracker as a clsact filter with priority {PRIORITY} (if `tc filter show dev {} egress` lists another kind of filter with this priority, change the priority of that filter)",
                    facts.name
                )
            })?
    };
    // Its drop would detach the filter.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Requires that the interface has no `ingress` queueing discipline, where the kernel would run a filter for sent
/// packets on received ones.
///
/// # Errors
/// Fails with the commands that replace the `ingress` discipline by clsact.
fn require_clsact(facts: &InterfaceInfo) -> Result<()> {
    let kind = Netlink::open()?.ingress_qdisc(facts.index)?;
    match kind.as_deref() {
        None | Some("clsact") => Ok(()),
        Some(kind) => bail_with!(
            UnsupportedInterface,
            "{} has the queueing discipline {kind}, which excludes clsact; replace it: `tc qdisc del dev {} {kind}`, then attach its filters to the ingress of clsact (`tc qdisc add dev {} clsact`)",
            facts.name,
            facts.name,
            facts.name
        ),
    }
}

fn filter(name: &str) -> Result<SchedClassifierLink> {
    Ok(SchedClassifierLink::attached(
        name,
        TcAttachType::Egress,
        PRIORITY,
        HANDLE,
        None,
    )?)
}

/// Removes the flow tracker's clsact filter from an interface. The queueing discipline stays, because other filters may
/// use it.
fn remove_filter(name: &str) {
    use aya::programs::links::Link as _;
    let removed = filter(name).and_then(|link| Ok(link.detach()?));
    if let Err(error) = removed {
        // It records flows that are not used, which is harmless.
        warn!(
            "{name}: cannot remove the flow tracker's clsact filter: {error:#}; remove it with `tc filter del dev {name} egress pref {PRIORITY}`"
        );
    }
}
