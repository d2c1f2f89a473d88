//! A pinned link: its interface, and how to detach it.
//!
//! A link outlives its interface: it stays pinned and filters nothing, which only the kernel's information about the link
//! shows. Removing a pin detaches the program at some later time, so a link is detached first, which takes effect at once.
//!
//! A link names its interface by an index alone, which another interface of another network namespace may have too.
//! So a link is on an interface of this namespace only if that one reports the link's program.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use crate::error::{Context as _, Result};

use super::pins::is_pinned;
use super::sys::{Access, detach_link, link_program_and_interface, open_pinned, tcx_egress_chain};
use crate::netlink::Netlink;

/// The kernel's state of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkState {
    /// The id of the program in it.
    pub(super) program: u32,
    /// The index of the interface that it is on; `None` once it is on none.
    pub(super) interface: Option<u32>,
}

/// Reads the state of the link pinned at `pin`; `None` where nothing is pinned.
pub(super) fn state(pin: &Path) -> Result<Option<LinkState>> {
    let what = || format!("cannot read the link {}", pin.display());
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

/// The index of the interface that the link pinned at `pin` is on; `None` once that is gone, or without a pin.
pub(super) fn interface_of(pin: &Path) -> Result<Option<u32>> {
    Ok(state(pin)?.and_then(|link| link.interface))
}

/// Whether the XDP link pinned at `pin` is on the interface with this index in this thread's network namespace.
pub(super) fn filters(pin: &Path, index: u32) -> Result<bool> {
    let Some(link) = state(pin)?.filter(|link| link.interface == Some(index)) else {
        return Ok(false);
    };
    let device = Netlink::open()?.by_index(index)?;
    Ok(device.is_some_and(|device| device.programs.contains(&link.program)))
}

/// Whether the tcx link pinned at `pin` is on the interface with this index in this thread's network namespace.
pub(super) fn tracks(pin: &Path, index: u32) -> Result<bool> {
    let Some(link) = state(pin)?.filter(|link| link.interface == Some(index)) else {
        return Ok(false);
    };
    // Fails where there is no such interface, which is therefore not the link's.
    Ok(tcx_egress_chain(index).is_ok_and(|chain| chain.contains(&link.program)))
}

/// Takes the program off the link's interface, now, and removes the pin.
pub(super) fn take_off(pin: &Path) -> Result<()> {
    let what = || format!("cannot detach the link {}", pin.display());
    let link = open_pinned(pin, Access::ReadWrite).with_context(what)?;
    detach_link(link.as_fd()).with_context(what)?;
    fs::remove_file(pin).with_context(|| format!("cannot unpin {}", pin.display()))
}

/// The same, if there is a link.
pub(super) fn take_off_if_pinned(pin: &Path) -> Result<()> {
    if is_pinned(pin)? {
        take_off(pin)
    } else {
        Ok(())
    }
}
