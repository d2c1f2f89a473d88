//! Captures all frames that a namespace sends or receives.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::Namespace;

/// The size of the receive buffer in bytes: enough for all frames of a test.
const BUFFER: usize = 64 << 20;
/// The time to wait for a wanted frame, long enough for a machine that is busy building.
const PATIENCE: Duration = Duration::from_mins(3);
/// The time without a frame after which all frames have arrived.
const QUIET: TimeVal = TimeVal::new(0, 200_000);

/// A packet socket that captures all frames from its creation on.
pub struct Tap {
    socket: OwnedFd,
}

impl Tap {
    /// Captures on all interfaces of `namespace`. Usable from any thread.
    pub fn new(namespace: &Namespace) -> anyhow::Result<Self> {
        let socket = namespace
            .run(|| {
                socket(
                    AddressFamily::Packet,
                    SockType::Raw,
                    SockFlag::SOCK_CLOEXEC,
                    SockProtocol::EthAll,
                )
            })
            .context("cannot open a packet socket")?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &QUIET)?;
        Ok(Self { socket })
    }

    /// Waits for the next frame that `wanted` accepts, and discards the frames before it.
    pub fn next(&self, wanted: impl Fn(&[u8]) -> bool) -> anyhow::Result<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.receive()? {
                Some(frame) if wanted(&frame) => return Ok(frame),
                None if Instant::now() > deadline => bail!("no matching frame in {PATIENCE:?}"),
                _ => {}
            }
        }
    }

    /// Receives until no more frames arrive, and returns them.
    pub fn drain(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        std::iter::from_fn(|| self.receive().transpose()).collect()
    }

    fn receive(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let mut frame = vec![0; 1 << 16];
        match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error).context("cannot read from a packet socket"),
        }
    }
}
