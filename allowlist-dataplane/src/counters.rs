//! The counters by source and service, under the ids of the tables.

use allowlist_common::abi::{MAX_MATCHES, MAX_SERVICE_COUNTS, ServiceTraffic, Traffic};
use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;

use crate::error::{Error, Result};

/// The maps of counters by match id ([`MAX_MATCHES`]) and by service counter id ([`MAX_SERVICE_COUNTS`]).
pub(super) struct Counters {
    pub(super) matches: PerCpuArray<MapData, Traffic>,
    pub(super) services: PerCpuArray<MapData, ServiceTraffic>,
}

impl Counters {
    /// Resets the counters of all match ids and of all service counter ids to 0.
    pub(super) fn reset(&mut self) -> Result<()> {
        let cpus = nr_cpus().map_err(|(path, error)| {
            Error::from(error).context(format!("cannot read the number of CPUs from {path}"))
        })?;
        for id in 0..MAX_MATCHES {
            let nothing = PerCpuValues::try_from(vec![Traffic::default(); cpus])?;
            self.matches.set(id, nothing, 0)?;
        }
        for id in 0..MAX_SERVICE_COUNTS {
            let nothing = PerCpuValues::try_from(vec![ServiceTraffic::default(); cpus])?;
            self.services.set(id, nothing, 0)?;
        }
        Ok(())
    }
}
