//! Sees every frame that a namespace sends or receives, as it is.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::Namespace;

/// Room for all that a test sends.
const ROOM: usize = 64 << 20;
/// Long enough for a machine that is busy building.
const PATIENCE: Duration = Duration::from_mins(3);
/// How long nothing has to come for all to have come.
const QUIET: TimeVal = TimeVal::new(0, 200_000);

/// A packet socket that misses nothing from the moment when it is made.
pub struct Tap {
    socket: OwnedFd,
}

impl Tap {
    /// On all interfaces of `namespace`. Usable from any thread.
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
        setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &QUIET)?;
        Ok(Self { socket })
    }

    /// Waits for the next frame that is wanted; those before it are forgotten.
    pub fn next(&self, wanted: impl Fn(&[u8]) -> bool) -> anyhow::Result<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.receive()? {
                Some(frame) if wanted(&frame) => return Ok(frame),
                None if Instant::now() > deadline => bail!("no such frame in {PATIENCE:?}"),
                _ => {}
            }
        }
    }

    /// All frames that have come, once no more come.
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
