//! An interface's own way of receiving packets in batches (NAPI), which a veth has only while it is asked to
//! merge packets (GRO).
//!
//! So a frame that an XDP program sends to it arrives though no XDP program receives there, as on a network
//! card; and the stack takes packets up as it does there.

use std::ffi::c_char;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

use anyhow::{Result, ensure};

use super::Namespace;

/// What the kernel reads for one setting (`struct ethtool_value`).
#[repr(C)]
struct Setting {
    command: u32,
    value: u32,
}

const ETHTOOL_SGRO: u32 = 0x2c;

/// Turns it on.
#[expect(unsafe_code, reason = "there is no other way than this system call")]
pub fn receive_in_batches(namespace: &Namespace, name: &str) -> Result<()> {
    let mut setting = Setting {
        command: ETHTOOL_SGRO,
        value: 1,
    };
    let mut request = libc::ifreq {
        ifr_name: [0; _],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut setting).cast(),
        },
    };
    ensure!(
        name.len() < request.ifr_name.len(),
        "{name} is no interface's name"
    );
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    // Any socket leads to the interfaces of its namespace.
    let socket = namespace.run(|| UdpSocket::bind(("127.0.0.1", 0)))?;
    // SAFETY: the kernel reads a name that ends with a 0, and a setting of the size that goes with its
    // command; both live until it returns.
    let done = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCETHTOOL as libc::Ioctl,
            &raw mut request,
        )
    };
    ensure!(done == 0, io::Error::last_os_error());
    Ok(())
}
