//! Reads the state of pinned links, and detaches them.
//!
//! A link outlives its interface: it stays pinned and filters nothing, which only the kernel's information about the
//! link shows. Removing the last pin of a link detaches its program some time later; therefore a link is detached
//! first, which takes effect at once.
//!
//! The kernel's information names the interface only by its index, which another interface in another network namespace
//! may have too. Therefore a link counts as attached in this namespace only if the interface with that index reports
//! the link's program.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use super::pins::is_pinned;
use super::sys::{Access, detach_link, link_program_and_interface, open_pinned, tcx_egress_chain};
use crate::error::{Context as _, Result};
use crate::netlink::Netlink;

/// The kernel's state of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkState {
    /// The id of the program in the link.
    pub(super) program: u32,
    /// The index of the interface that the link is attached to; `None` once the link is detached or the interface is
    /// gone.
    pub(super) interface: Option<u32>,
}

/// Reads the state of the link pinned at `pin`; `None` if nothing is pinned there.
pub(super) fn state(pin: &Path) -> Result<Option<LinkState>> {
    let what = || format!("cannot read the BPF link {}", pin.display());
    let link = match open_pinned(pin, Access::ReadWrite) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        link => link.with_context(what)?,
    };
    let (program, interface) = link_program_and_interface(link.as_fd()).with_context(what)?;
    Ok(Some(LinkState {
        program,
        interface: (interface != 0).then_some(interface),
    }))
}

/// Returns the index of the interface of the link pinned at `pin`; `None` if the interface is gone or nothing is pinned
/// there.
pub(super) fn interface_of(pin: &Path) -> Result<Option<u32>> {
    Ok(state(pin)?.and_then(|link| link.interface))
}

/// Returns whether the XDP link pinned at `pin` is attached to the interface with this index in the calling thread's
/// network namespace.
pub(super) fn filters(pin: &Path, index: u32) -> Result<bool> {
    let Some(link) = state(pin)?.filter(|link| link.interface == Some(index)) else {
        return Ok(false);
    };
    let device = Netlink::open()?.by_index(index)?;
    Ok(device.is_some_and(|device| device.programs.contains(&link.program)))
}

/// Returns whether the tcx link pinned at `pin` is attached to the interface with this index in the calling thread's
/// network namespace.
pub(super) fn tracks(pin: &Path, index: u32) -> Result<bool> {
    let Some(link) = state(pin)?.filter(|link| link.interface == Some(index)) else {
        return Ok(false);
    };
    // Fails where there is no such interface, which is therefore not the link's.
    Ok(tcx_egress_chain(index).is_ok_and(|chain| chain.contains(&link.program)))
}

/// Detaches the link pinned at `pin` from its interface at once, and removes the pin.
pub(super) fn take_off(pin: &Path) -> Result<()> {
    let what = || format!("cannot detach the BPF link {}", pin.display());
    let link = open_pinned(pin, Access::ReadWrite).with_context(what)?;
    detach_link(link.as_fd()).with_context(what)?;
    fs::remove_file(pin).with_context(|| format!("cannot remove the pin {}", pin.display()))
}

/// Detaches the link pinned at `pin` and removes the pin, if there is one.
pub(super) fn take_off_if_pinned(pin: &Path) -> Result<()> {
    if is_pinned(pin)? {
        take_off(pin)
    } else {
        Ok(())
    }
}
