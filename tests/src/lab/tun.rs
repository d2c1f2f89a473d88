//! A TUN interface, whose frames begin with the IP header.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;

use anyhow::Context as _;

use super::Namespace;

/// A TUN interface. The kernel removes it when the value is dropped.
#[derive(Debug)]
pub struct Tun {
    _file: File,
}

impl Tun {
    /// Creates an interface with this name, down and without addresses.
    pub fn new(namespace: &Namespace, name: &str) -> anyhow::Result<Self> {
        let file = namespace.run(|| open(name));
        Ok(Self {
            _file: file.with_context(|| format!("cannot create the TUN interface {name}"))?,
        })
    }
}

/// The kernel's `struct ifreq`, as `TUNSETIFF` uses it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    unused: [u8; 22],
}

fn open(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short,
        unused: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: the call reads and writes the request, which is valid until it returns.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
