//! Reads drop events, which the kernel programs emit while there is a reader.
//!
//! Invariants: only one process reads at a time, because a ring buffer has one read position. The kernel programs stop
//! a few seconds after the reader last renewed its lease, however it ended. Needs no daemon.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, TryLockError};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use allowlist_common::abi::{self, Event, EventBudget};
use allowlist_policy::error_code::bail_with;
use aya::maps::{MapData, PerCpuArray, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use super::View;
use super::clock::kernel_clock;
use super::control_map::ControlMap;
use super::pins::{Pins, require_privileges};
use super::sys::Access;
use crate::error::{Context as _, Result};

/// The time for which a renewed lease keeps the kernel programs emitting events.
const LEASE: Duration = Duration::from_secs(4);
/// The interval at which the reader renews its lease and reads the number of events that the rate limit suppressed.
const SIGN: Duration = Duration::from_secs(1);

/// The reader of drop events. The kernel programs stop emitting events when it is dropped.
pub struct Watch {
    ring: RingBuf<MapData>,
    ready: AsyncFd<OwnedFd>,
    control: ControlMap,
    budget: PerCpuArray<MapData, EventBudget>,
    suppressed: u64,
    next_sign: Instant,
    view: View,
    names: BTreeMap<u32, String>,
    _lock: File,
}

/// An item that the reader of drop events returns.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// A packet that was dropped, or would have been in enforce mode, and the name of its interface.
    Drop(Event, String),
    /// The number of drops without an event since the last such item, because the rate limit was reached or the ring
    /// buffer was full.
    Suppressed(u64),
    /// The filter was detached. No further item follows.
    Detached,
}

impl Watch {
    /// Starts to read drop events. Earlier events are skipped.
    ///
    /// # Errors
    /// Fails if another process reads events, or if no filter is pinned under `pin_dir`.
    pub fn open(pin_dir: &Path) -> Result<Self> {
        require_privileges()?;
        let pins = Pins::open_for(pin_dir, Access::ReadWrite)?;
        let lock = lock(&pins)?;
        let view = View::open(pin_dir)?;
        let mut ring = RingBuf::try_from(pins.open_map(abi::EVENTS)?)?;
        while ring.next().is_some() {}
        let descriptor = ring
            .as_fd()
            .try_clone_to_owned()
            .context("cannot duplicate the descriptor of the ring buffer of drop events")?;
        #[expect(
            unsafe_code,
            reason = "the only constructor that tokio does not deprecate"
        )]
        // SAFETY: the descriptor is open, is moved in here, and is never replaced.
        let ready = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }
            .map_err(std::io::Error::from)
            .context("cannot wait for drop events of the ring buffer")?;
        let mut watch = Self {
            ring,
            ready,
            control: ControlMap::map(&pins.open_map(abi::CONTROL)?, Access::ReadWrite)?,
            budget: pins.open_map(abi::EVENT_BUDGET)?.try_into()?,
            suppressed: 0,
            next_sign: Instant::now() + SIGN,
            names: BTreeMap::new(),
            view,
            _lock: lock,
        };
        watch.suppressed = watch.suppressed_so_far()?;
        watch.sign();
        Ok(watch)
    }

    /// Renews the reader's lease if it is due, so that the kernel programs continue to emit events. [`Self::next`] does
    /// this too.
    pub fn keep_watching(&mut self) {
        if Instant::now() >= self.next_sign {
            self.next_sign = Instant::now() + SIGN;
            self.sign();
        }
    }

    /// Waits for the next item. Cancel safe: no event is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Seen> {
        loop {
            if Instant::now() >= self.next_sign {
                self.next_sign = Instant::now() + SIGN;
                if self.view.is_detached() {
                    return Ok(Seen::Detached);
                }
                self.sign();
                let now = self.suppressed_so_far()?;
                let more = now.saturating_sub(std::mem::replace(&mut self.suppressed, now));
                if more > 0 {
                    return Ok(Seen::Suppressed(more));
                }
            }
            if let Some(event) = self.take() {
                let name = self.name(event.interface)?;
                return Ok(Seen::Drop(event, name));
            }
            if let Ok(ready) = timeout_at(self.next_sign, self.ready.readable()).await {
                ready?.clear_ready();
            }
        }
    }

    fn take(&mut self) -> Option<Event> {
        let item = self.ring.next()?;
        bytemuck::try_pod_read_unaligned(&item).ok()
    }

    /// Renews the reader's lease, the time until which the kernel programs emit events.
    fn sign(&self) {
        let until = kernel_clock() + LEASE;
        self.control.watch_until(until.as_nanos() as u64);
    }

    fn suppressed_so_far(&self) -> Result<u64> {
        let of_cpus = self.budget.get(&0, 0)?;
        Ok(of_cpus.iter().map(|budget| budget.suppressed).sum())
    }

    fn name(&mut self, slot: u32) -> Result<String> {
        if !self.names.contains_key(&slot) {
            let attachments = self.view.attachments()?.into_iter();
            self.names = attachments.map(|one| (one.slot, one.name)).collect();
        }
        let known = self.names.get(&slot);
        Ok(known.cloned().unwrap_or_else(|| format!("slot {slot}")))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.control.watch_until(0);
    }
}

fn lock(pins: &Pins) -> Result<File> {
    let folder = pins.watchers();
    DirBuilder::new()
        .recursive(true)
        .create(&folder)
        .with_context(|| {
            format!(
                "cannot create {}, the lock of `allowlist watch`",
                folder.display()
            )
        })?;
    let what = || {
        format!(
            "cannot lock {}, which ensures that only one `allowlist watch` runs",
            folder.display()
        )
    };
    let lock = File::open(&folder).with_context(what)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail_with!(
            Busy,
            "another `allowlist watch` is running, and only one at a time can read the drop events; end that one first"
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(what),
    }
}
