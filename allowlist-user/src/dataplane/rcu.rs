//! Waiting until no packet is looked up any more in what was in force before.
//!
//! The kernel stores into an array of maps and returns after an RCU grace period (`maybe_wait_bpf_programs`):
//! then every program that ran at the time of the store has ended. So this has an array of its own, in which
//! no program looks, and stores into it. That takes some milliseconds, so a thread does it: it begins to wait once
//! a slot is left, and mostly has waited long before that slot is written to again.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::{Context as _, Result};

use super::sys::{NewMap, bpf_map_create, set_inner_map};

/// See the module.
pub(super) struct GracePeriod {
    /// To the thread: one message, one wait.
    ask: Sender<()>,
    /// From the thread: one message a wait that is over.
    over: Receiver<io::Result<()>>,
    /// Waits that were asked for and not yet heard of.
    waiting: usize,
}

impl GracePeriod {
    pub(super) fn new() -> Result<Self> {
        const WHAT: &str = "cannot create the map for RCU grace periods";
        let stored = bpf_map_create(NewMap::Values {
            words: 1,
            entries: 1,
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
            .context(WHAT)?;
        Ok(Self {
            ask,
            over,
            waiting: 0,
        })
    }

    /// Begins to wait for every packet that is judged at this moment. Call it once a slot is left.
    pub(super) fn start(&mut self) {
        if self.ask.send(()).is_ok() {
            self.waiting += 1;
        }
    }

    /// Returns when everything that was begun is over.
    pub(super) fn join(&mut self) -> Result<()> {
        while self.waiting > 0 {
            let waited = self
                .over
                .recv()
                .context("the thread for RCU grace periods has ended")?;
            self.waiting -= 1;
            waited.context("cannot wait for an RCU grace period")?;
        }
        Ok(())
    }

    /// Returns when every packet that is judged at this moment has been.
    pub(super) fn synchronize(&mut self) -> Result<()> {
        self.start();
        self.join()
    }
}

/// The thread: it ends with what asks it.
fn run(array: &OwnedFd, stored: &OwnedFd, asked: &Receiver<()>, tell: &Sender<io::Result<()>>) {
    for () in asked {
        let waited = set_inner_map(array.as_fd(), 0, stored.as_fd());
        if tell.send(waited).is_err() {
            return;
        }
    }
}
