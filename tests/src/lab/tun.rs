//! An interface whose frames start with the IP header, as a tunnel's do.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;

use anyhow::Context as _;

use super::Namespace;

/// A TUN interface; it goes when this is dropped.
#[derive(Debug)]
pub struct Tun {
    _file: File,
}

impl Tun {
    /// Makes one with this name, down and without addresses.
    pub fn new(namespace: &Namespace, name: &str) -> anyhow::Result<Self> {
        let file = namespace.run(|| open(name));
        Ok(Self {
            _file: file.with_context(|| format!("cannot make {name}"))?,
        })
    }
}

/// The kernel's `struct ifreq`, as the request below takes it.
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
    // SAFETY: the request is what this call takes and fills in, and lives until it has returned.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
