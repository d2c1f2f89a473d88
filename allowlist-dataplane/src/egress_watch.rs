//! Reads events of judged calls, which the programs of the egress policy emit while there is a reader.
//!
//! Invariants: only one process reads at a time (`event_reader`). The programs stop a few seconds after the reader last
//! renewed its lease, however it ended. Needs no daemon.

use std::path::Path;

use allowlist_common::abi::{self, EgressEvent, EgressLease};
use allowlist_policy::error_code::bail_with;

use super::View;
use super::cgroup::Names;
use super::egress_maps::EgressMaps;
use super::event_reader::{EventReader, Kind};
use super::memory::Memory;
use super::pins::{Pins, is_pinned, require_privileges};
use super::sys::Access;
use crate::error::Result;

/// The maps over which a reader and the programs of the egress policy communicate.
const MAPS: [&str; 2] = [abi::EGRESS_LEASE, abi::EGRESS_EVENTS];

/// The calls that a reader of events wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantedCalls {
    /// Calls that are refused, or would be in enforce mode.
    Refused,
    /// Every judged call.
    All,
}

/// The reader of judged calls. The kernel programs stop emitting events when it is dropped.
pub struct EgressWatch {
    reader: EventReader<EgressEvent>,
    lease: Memory,
    /// The ids of [`MAPS`].
    maps: [u32; MAPS.len()],
    wanted: WantedCalls,
    pins: Pins,
    view: View,
    cgroups: Names,
}

/// An item that the reader of judged calls returns.
#[derive(Debug, PartialEq, Eq)]
pub enum SeenCall {
    /// A judged call, and the path of its program's cgroup below the root of cgroup v2, without a leading `/`; `None` if
    /// the cgroup is gone.
    Call(EgressEvent, Option<String>),
    /// The number of wanted calls without an event since the last such item, because the rate limit was reached or the
    /// ring buffer was full.
    Suppressed(u64),
    /// The egress policy was removed or detached, or uses other maps after their pins were removed. No further item
    /// follows.
    Detached,
}

impl EgressWatch {
    /// Starts to read the judged calls. Earlier events are skipped.
    ///
    /// # Errors
    /// Fails if another process reads them, if no filter is pinned under `pin_dir`, or with the code `no-egress-policy`
    /// if no egress policy is active.
    pub fn open(pin_dir: &Path, wanted: WantedCalls) -> Result<Self> {
        require_privileges()?;
        let pins = Pins::open_for(pin_dir, Access::ReadWrite)?;
        let view = View::open(pin_dir)?;
        if view.control()?.egress.is_none() || !EgressMaps::are_pinned(&pins)? {
            bail_with!(
                NoEgressPolicy,
                "no egress policy is active, so no call is judged; add [egress] to the configuration and run `allowlist reload`"
            );
        }
        let kind = Kind {
            ring: abi::EGRESS_EVENTS,
            budget: abi::EGRESS_BUDGET,
            lock: &pins.egress_watchers(),
            command: "allowlist watch --egress",
            events: "judged calls",
        };
        let reader = EventReader::open(&pins, &kind)?;
        let words = size_of::<EgressLease>() / size_of::<u64>();
        let watch = Self {
            reader,
            lease: Memory::map(pins.open_data(abi::EGRESS_LEASE)?, words)?,
            maps: map_ids(&pins)?.unwrap_or_default(),
            wanted,
            cgroups: Names::new(),
            pins,
            view,
        };
        watch.sign();
        Ok(watch)
    }

    /// Waits for the next item. Cancel safe: no event is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<SeenCall> {
        loop {
            if self.reader.is_due() {
                if self.has_ended()? {
                    return Ok(SeenCall::Detached);
                }
                self.sign();
                let more = self.reader.newly_suppressed()?;
                if more > 0 {
                    return Ok(SeenCall::Suppressed(more));
                }
            }
            if let Some(event) = self.reader.take() {
                let unit = self.cgroups.get(event.cgroup);
                return Ok(SeenCall::Call(event, unit));
            }
            self.reader.wait().await?;
        }
    }

    /// Returns whether the programs emit no more events to this reader: the filter was detached, the policy has no
    /// egress policy any more, or the maps were replaced after their pins had been removed.
    fn has_ended(&self) -> Result<bool> {
        if self.view.is_detached() || self.view.control()?.egress.is_none() {
            return Ok(true);
        }
        // While a pin is missing, the daemon is about to replace the map.
        Ok(map_ids(&self.pins)?.is_some_and(|maps| maps != self.maps))
    }

    /// Renews the reader's lease, the time until which the kernel programs emit events.
    fn sign(&self) {
        let until = self.reader.lease_end();
        let passed = match self.wanted {
            WantedCalls::Refused => 0,
            WantedCalls::All => until,
        };
        self.set_lease(passed, until);
    }

    fn set_lease(&self, passed: u64, refused: u64) {
        let lease = self.lease.all();
        lease.store(0, passed);
        lease.store(1, refused);
    }
}

/// Returns the ids of the pinned [`MAPS`]; `None` if one is not pinned.
fn map_ids(pins: &Pins) -> Result<Option<[u32; MAPS.len()]>> {
    let mut ids = [0; MAPS.len()];
    for (name, id) in MAPS.iter().zip(&mut ids) {
        if !is_pinned(&pins.map(name))? {
            return Ok(None);
        }
        *id = pins.open_data(name)?.info()?.id();
    }
    Ok(Some(ids))
}

impl Drop for EgressWatch {
    fn drop(&mut self) {
        self.set_lease(0, 0);
    }
}
