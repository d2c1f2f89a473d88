//! Foreign programs and links, as another root process on the host could attach them.
//!
//! Uses system calls directly, because a library would detach its links.

use std::ffi::{CString, c_long};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The hook of a program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ForeignProgram {
    /// An XDP program.
    Xdp,
    /// A classifier for tcx egress.
    Classifier,
    /// A program for datagrams by IPv4 from sockets of a cgroup (`sendmsg4`).
    Send,
}

#[derive(Default)]
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u32; 4],
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    revision: u64,
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
struct Get {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// Loads a program that returns this verdict for every packet.
pub fn load_foreign(hook: ForeignProgram, verdict: i32) -> io::Result<OwnedFd> {
    const XDP: (u32, u32) = (6, 37);
    const CLASSIFIER: (u32, u32) = (3, 0);
    const SEND: (u32, u32) = (18, 14);
    // `r0 = verdict`, `exit`
    let code = [0xb7 | u64::from(verdict.cast_unsigned()) << 32, 0x95_u64];
    let license = CString::new("GPL")?;
    let (kind, expected_attach_type) = match hook {
        ForeignProgram::Xdp => XDP,
        ForeignProgram::Classifier => CLASSIFIER,
        ForeignProgram::Send => SEND,
    };
    let mut load = Load {
        kind,
        expected_attach_type,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    load.name[..7].copy_from_slice(b"foreign");
    descriptor(5, &mut load)
}

/// Replaces the program of a pinned link.
pub fn replace_program(link: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = open_link(link)?;
    let mut update = LinkUpdate {
        link: link.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_program: 0,
    };
    call(29, &mut update).map(drop)
}

/// Detaches a pinned link from its interface; the pin remains.
pub fn detach_link(link: &Path) -> io::Result<()> {
    let link = open_link(link)?;
    let mut detach = link.as_raw_fd().cast_unsigned();
    call(34, &mut detach).map(drop)
}

/// Attaches a classifier to the tcx egress hook of an interface, before all others, until the result is dropped.
pub fn attach_first(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    const TCX_EGRESS: u32 = 47;
    const BEFORE: u32 = 1 << 3;
    let mut create = LinkCreate {
        program: program.as_raw_fd().cast_unsigned(),
        interface,
        attach_type: TCX_EGRESS,
        flags: BEFORE,
        relative: 0,
        padding: 0,
        revision: 0,
    };
    descriptor(28, &mut create)
}

fn open_link(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut get = Get {
        path: path.as_ptr() as u64,
        descriptor: 0,
        flags: 0,
    };
    descriptor(7, &mut get)
}

fn descriptor<Attributes>(command: c_long, attributes: &mut Attributes) -> io::Result<OwnedFd> {
    let descriptor = call(command, attributes)?;
    #[expect(
        unsafe_code,
        reason = "takes ownership of the descriptor that the system call returns"
    )]
    // SAFETY: these commands return a new descriptor, which has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn call<Attributes>(command: c_long, attributes: &mut Attributes) -> io::Result<i32> {
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: each command gets the part of `union bpf_attr` that it reads, and the caller keeps its pointers valid until
    // the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}
