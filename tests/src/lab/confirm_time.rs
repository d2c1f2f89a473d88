//! Ends the time to confirm a change at a moment that the test chooses, so that no test races against a deadline.

use allowlist_common::abi;
use anyhow::Context as _;
use aya::maps::{Array, Map, MapData};

use super::Testbed;

/// The value of the map `FALLBACK`: the deadline of the pending change, in nanoseconds of the monotonic clock, and
/// three more words.
type Words = [u64; 4];

impl Testbed {
    /// Ends the time to confirm the pending change by moving its deadline to the past: the kernel program reverts at once,
    /// and the daemon at its next check.
    pub fn end_time_to_confirm(&self) -> anyhow::Result<()> {
        let pin = format!("v{}/{}", abi::VERSION, abi::FALLBACK);
        let pin = self.scratch.pin_dir().join(pin);
        let map = MapData::from_pin(&pin)
            .with_context(|| format!("cannot open the pinned map {}", pin.display()))?;
        let mut fallback: Array<_, Words> = Map::Array(map).try_into()?;
        let mut words: Words = fallback.get(&0, 0)?;
        words[0] = 0;
        fallback.set(0, words, 0)?;
        Ok(())
    }
}
