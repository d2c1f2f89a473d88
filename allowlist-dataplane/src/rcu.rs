//! RCU grace periods from userspace: waits until no running program uses a slot that is no longer active.
//!
//! A store into an array of maps returns after an RCU grace period (`maybe_wait_bpf_programs` in the kernel): every
//! program that ran at the time of the store has ended. This module stores into an array of its own, which no program
//! reads. A store takes some milliseconds, so a thread does it: the grace period starts when a slot is left, and has
//! usually ended long before that slot is written to again.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::sys::{NewMap, bpf_map_create, set_inner_map};
use crate::error::{Context as _, Error, Result};

/// The thread that waits for RCU grace periods. A grace period ends once every kernel program that ran at its start has
/// ended.
pub(super) struct GracePeriod {
    /// Sends the thread one message for each grace period to wait for.
    ask: Sender<()>,
    /// Receives one message from the thread for each grace period that has ended.
    over: Receiver<io::Result<()>>,
    /// The number of grace periods that were started, and whose end was not awaited by [`Self::join`] yet.
    waiting: usize,
}

impl GracePeriod {
    pub(super) fn new() -> Result<Self> {
        const WHAT: &str = "cannot create the map for RCU grace periods";
        let stored = bpf_map_create(NewMap::Values {
            words: 1,
            entries: 1,
            types: None,
        })
        .context(WHAT)?;
        let array = bpf_map_create(NewMap::ArrayOf {
            inner: stored.as_fd(),
            entries: 1,
        })
        .context(WHAT)?;
        let (ask, asked) = channel();
        let (tell, over) = channel();
        thread::Builder::new()
            .name("readers".to_owned())
            .spawn(move || run(&array, &stored, &asked, &tell))
            .context("cannot start the thread that waits for RCU grace periods")?;
        Ok(Self {
            ask,
            over,
            waiting: 0,
        })
    }

    /// Starts a grace period for all programs that run now. Call it after the control word was changed to another slot.
    pub(super) fn start(&mut self) {
        if self.ask.send(()).is_ok() {
            self.waiting += 1;
        }
    }

    /// Waits until every grace period that was started has ended.
    pub(super) fn join(&mut self) -> Result<()> {
        while self.waiting > 0 {
            let waited = self.over.recv().map_err(|_| {
                Error::message(
                    "the thread that waits for RCU grace periods has ended; restart the daemon",
                )
            })?;
            self.waiting -= 1;
            waited.context("cannot wait for an RCU grace period")?;
        }
        Ok(())
    }

    /// Waits until all programs that run now have ended.
    pub(super) fn synchronize(&mut self) -> Result<()> {
        self.start();
        self.join()
    }
}

/// Waits for a grace period after each message, by a store into `array`. The thread ends when the sender is dropped.
fn run(array: &OwnedFd, stored: &OwnedFd, asked: &Receiver<()>, tell: &Sender<io::Result<()>>) {
    for () in asked {
        let waited = set_inner_map(array.as_fd(), 0, stored.as_fd());
        if tell.send(waited).is_err() {
            return;
        }
    }
}
