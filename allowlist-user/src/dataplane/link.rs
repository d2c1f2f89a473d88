//! A pinned link: what it is on, and how to take it off.
//!
//! Two things of the kernel's that aya does not offer. A link outlives its interface: it stays pinned
//! and filters nothing, and only the kernel knows. And removing a pin takes the program off some
//! time later, but who detaches wants to know that it is off.

use std::ffi::{CString, c_long};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::calls::bpf;

/// The index of the interface that the link pinned at `pin` is on; `None` once that is gone.
pub(super) fn interface_of(pin: &Path) -> Result<Option<u32>> {
    let what = || format!("cannot ask for the link {}", pin.display());
    let info = info(&open(pin).with_context(what)?).with_context(what)?;
    Ok((info.interface != 0).then_some(info.interface))
}

/// Takes the program off the link's interface, now, and removes the pin.
pub(super) fn take_off(pin: &Path) -> Result<()> {
    let what = || format!("cannot take off the link {}", pin.display());
    detach(&open(pin).with_context(what)?).with_context(what)?;
    fs::remove_file(pin).with_context(|| format!("cannot unpin {}", pin.display()))
}

/// The attributes of `BPF_OBJ_GET`, from the kernel's `union bpf_attr`.
#[repr(C)]
struct ObjectGet {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// The attributes of `BPF_LINK_DETACH`, likewise.
#[repr(C)]
struct LinkDetach {
    descriptor: u32,
}

/// The attributes of `BPF_OBJ_GET_INFO_BY_FD`, likewise.
#[repr(C)]
struct InfoByDescriptor {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// The start of the kernel's `struct bpf_link_info`, as it is for an XDP link. The kernel fills in
/// as much as there is room for.
#[derive(Default)]
#[repr(C)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    /// The union that follows begins at a multiple of 8.
    padding: u32,
    interface: u32,
    unused: u32,
}

fn open(pin: &Path) -> io::Result<OwnedFd> {
    const BPF_OBJ_GET: c_long = 7;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attributes = ObjectGet {
        path: path.as_ptr() as u64,
        descriptor: 0,
        flags: 0,
    };
    #[expect(unsafe_code, reason = "a system call that gives an open descriptor")]
    // SAFETY: the attributes are those of this command, and `path` lives until it has returned;
    // what it returns is a new descriptor that nobody else has.
    unsafe {
        let descriptor = bpf(BPF_OBJ_GET, &mut attributes)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

fn detach(link: &OwnedFd) -> io::Result<()> {
    const BPF_LINK_DETACH: c_long = 34;
    let mut attributes = LinkDetach {
        descriptor: link.as_raw_fd().cast_unsigned(),
    };
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: the attributes are those of this command, and hold no pointer.
    unsafe {
        bpf(BPF_LINK_DETACH, &mut attributes)?;
    }
    Ok(())
}

fn info(link: &OwnedFd) -> io::Result<LinkInfo> {
    const BPF_OBJ_GET_INFO_BY_FD: c_long = 15;
    let mut info = LinkInfo::default();
    let mut attributes = InfoByDescriptor {
        descriptor: link.as_raw_fd().cast_unsigned(),
        length: size_of::<LinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    #[expect(unsafe_code, reason = "a system call that writes to `info`")]
    // SAFETY: the attributes are those of this command; it writes at most `length` bytes to `info`,
    // all of which may have any value.
    unsafe {
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    }
    Ok(info)
}
