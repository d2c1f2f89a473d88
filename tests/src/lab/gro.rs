//! Enables batched receive (NAPI) on an interface; a veth uses NAPI only while GRO is on.
//!
//! With NAPI, a veth accepts redirected XDP frames without an XDP program of its own, and passes packets to the stack as a
//! network card does.

use std::ffi::c_char;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

use anyhow::{Result, ensure};

use super::Namespace;

/// The kernel's `struct ethtool_value`.
#[repr(C)]
struct Setting {
    command: u32,
    value: u32,
}

const ETHTOOL_SGRO: u32 = 0x2c;

/// Enables GRO, and thereby NAPI, on the interface `name`.
#[expect(unsafe_code, reason = "the setting has only an ioctl")]
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
        "{name} is too long for an interface name"
    );
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    // A socket of any kind gives access to the interfaces of its namespace.
    let socket = namespace.run(|| UdpSocket::bind(("127.0.0.1", 0)))?;
    // SAFETY: the kernel reads a NUL-terminated name and a setting of the command's size; both are valid until the call
    // returns.
    let done = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCETHTOOL as libc::Ioctl,
            &raw mut request,
        )
    };
    ensure!(
        done == 0,
        "cannot enable GRO on {name}: {}",
        io::Error::last_os_error()
    );
    Ok(())
}
