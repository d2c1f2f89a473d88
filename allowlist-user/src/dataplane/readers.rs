//! Waiting until no packet is looked up any more in what was in force before.
//!
//! The kernel stores into an array of maps and returns after an RCU grace period (`maybe_wait_bpf_programs`):
//! then every program that ran at the time of the store has ended. So this has an array of its own, in which
//! no program looks, and stores into it.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use super::calls::{NewMap, make_map, store_map};

/// See the module.
pub(super) struct Readers {
    array: OwnedFd,
    stored: OwnedFd,
}

impl Readers {
    pub(super) fn new() -> Result<Self> {
        const WHAT: &str = "cannot make what to wait for packets with";
        let stored = make_map(NewMap::Array).context(WHAT)?;
        let array = make_map(NewMap::ArrayOf(stored.as_fd())).context(WHAT)?;
        Ok(Self { array, stored })
    }

    /// Returns when every packet that is judged at this moment has been.
    pub(super) fn wait(&self) -> Result<()> {
        store_map(self.array.as_fd(), 0, self.stored.as_fd())
            .context("cannot wait for the packets that are judged")
    }
}
