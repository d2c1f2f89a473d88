//! Sends raw frames, which bypass the sender's network stack.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, ensure};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

use super::Namespace;

/// A packet socket, and the interface on which it sends.
pub struct FrameSender {
    socket: OwnedFd,
    interface: LinkAddr,
}

impl FrameSender {
    /// Opens a socket for the interface `name` of `namespace`. Usable from any thread.
    pub fn new(namespace: &Namespace, name: &str) -> anyhow::Result<Self> {
        namespace.run(|| {
            let interface = getifaddrs()?
                .filter(|entry| entry.interface_name == name)
                .find_map(|entry| entry.address?.as_link_addr().copied())
                .with_context(|| format!("there is no interface {name}"))?;
            // No protocol: the socket receives nothing.
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .context("cannot open a packet socket")?;
            Ok(Self { socket, interface })
        })
    }

    /// Sends one frame, which starts with its Ethernet header.
    pub fn send(&self, frame: &[u8]) -> anyhow::Result<()> {
        let sent = sendto(
            self.socket.as_raw_fd(),
            frame,
            &self.interface,
            MsgFlags::empty(),
        )
        .with_context(|| format!("cannot send a frame of {} bytes", frame.len()))?;
        ensure!(sent == frame.len(), "sent {sent} bytes of {}", frame.len());
        Ok(())
    }
}
