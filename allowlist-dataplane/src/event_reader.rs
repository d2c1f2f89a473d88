//! Reads the events that kernel programs emit to a ring buffer while there is a reader, for any kind of event.
//!
//! Invariant: only one process reads a ring buffer at a time, because a ring buffer has one read position. The owner
//! renews the lease, which the kernel programs compare with their clock.

use std::fs::{DirBuilder, File, TryLockError};
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use allowlist_common::abi::EventBudget;
use allowlist_policy::error_code::bail_with;
use aya::maps::{MapData, PerCpuArray, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use super::clock::kernel_clock;
use super::pins::Pins;
use crate::error::{Context as _, Result};

/// The time for which a renewed lease keeps the kernel programs emitting events.
const LEASE: Duration = Duration::from_secs(4);
/// The interval at which a reader renews its lease and reads the number of events that the rate limit suppressed.
const SIGN: Duration = Duration::from_secs(1);

/// The names and the lock of a kind of events.
pub(super) struct Kind<'a> {
    /// The name of the ring buffer map.
    pub(super) ring: &'static str,
    /// The name of the per-CPU map with the [`EventBudget`].
    pub(super) budget: &'static str,
    /// The path of the directory that the reader locks.
    pub(super) lock: &'a Path,
    /// The command that reads the events, for error messages.
    pub(super) command: &'static str,
    /// A noun for the events, for error messages.
    pub(super) events: &'static str,
}

/// The reader of a ring buffer with entries of the type `E`.
pub(super) struct EventReader<E> {
    ring: RingBuf<MapData>,
    ready: AsyncFd<OwnedFd>,
    budget: PerCpuArray<MapData, EventBudget>,
    suppressed: u64,
    next_sign: Instant,
    entries: PhantomData<fn() -> E>,
    _lock: File,
}

impl<E: aya::Pod + bytemuck::AnyBitPattern> EventReader<E> {
    /// Opens the ring buffer, and skips the events in it.
    ///
    /// # Errors
    /// Fails if another process reads these events.
    pub(super) fn open(pins: &Pins, kind: &Kind<'_>) -> Result<Self> {
        let lock = lock(kind)?;
        let mut ring = RingBuf::try_from(pins.open_map(kind.ring)?)?;
        while ring.next().is_some() {}
        let descriptor = ring.as_fd().try_clone_to_owned().with_context(|| {
            format!(
                "cannot duplicate the descriptor of the ring buffer of {}",
                kind.events
            )
        })?;
        #[expect(
            unsafe_code,
            reason = "the only constructor that tokio does not deprecate"
        )]
        // SAFETY: the descriptor is open, is moved in here, and is never replaced.
        let ready = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }
            .map_err(std::io::Error::from)
            .with_context(|| format!("cannot wait for {} of the ring buffer", kind.events))?;
        let mut reader = Self {
            ring,
            ready,
            budget: pins.open_map(kind.budget)?.try_into()?,
            suppressed: 0,
            next_sign: Instant::now() + SIGN,
            entries: PhantomData,
            _lock: lock,
        };
        reader.suppressed = reader.suppressed_so_far()?;
        Ok(reader)
    }

    /// Returns the end of a lease that is renewed now, in nanoseconds of the kernel's clock.
    #[expect(
        clippy::unused_self,
        reason = "only a reader, which holds the lock, may have a lease"
    )]
    pub(super) fn lease_end(&self) -> u64 {
        (kernel_clock() + LEASE).as_nanos() as u64
    }

    /// Returns whether the lease is due to be renewed, at most once per interval.
    pub(super) fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now >= self.next_sign;
        if is_due {
            self.next_sign = now + SIGN;
        }
        is_due
    }

    /// Returns the number of events that were suppressed since the last call.
    pub(super) fn newly_suppressed(&mut self) -> Result<u64> {
        let now = self.suppressed_so_far()?;
        Ok(now.saturating_sub(std::mem::replace(&mut self.suppressed, now)))
    }

    /// Removes and returns the oldest event; `None` if there is none.
    pub(super) fn take(&mut self) -> Option<E> {
        let item = self.ring.next()?;
        bytemuck::try_pod_read_unaligned(&item).ok()
    }

    /// Waits until there may be an event, or until the lease is due. Cancel safe.
    pub(super) async fn wait(&self) -> Result<()> {
        if let Ok(ready) = timeout_at(self.next_sign, self.ready.readable()).await {
            ready?.clear_ready();
        }
        Ok(())
    }

    fn suppressed_so_far(&self) -> Result<u64> {
        let of_cpus = self.budget.get(&0, 0)?;
        Ok(of_cpus.iter().map(|budget| budget.suppressed).sum())
    }
}

fn lock(kind: &Kind<'_>) -> Result<File> {
    let (folder, command) = (kind.lock, kind.command);
    DirBuilder::new()
        .recursive(true)
        .create(folder)
        .with_context(|| {
            format!(
                "cannot create {}, the lock of `{command}`",
                folder.display()
            )
        })?;
    let what = || {
        format!(
            "cannot lock {}, which ensures that only one `{command}` runs",
            folder.display()
        )
    };
    let lock = File::open(folder).with_context(what)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail_with!(
            Busy,
            "another `{command}` is running, and only one at a time can read the {}; end that one first",
            kind.events
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(what),
    }
}
