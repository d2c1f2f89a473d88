//! Ends the time to confirm a change at the moment that a test chooses: no test races against a deadline.

use allowlist_common::abi;
use anyhow::Context as _;
use aya::maps::{Array, Map, MapData};

use super::Testbed;

/// The fallback's place in its map, as the kernel program reads it: when the time is over, and three words more.
type Words = [u64; 4];

impl Testbed {
    /// Ends the time to confirm the change that waits, as if its clock had moved on: the kernel reverts at once,
    /// and a daemon at its next look.
    pub fn end_time_to_confirm(&self) -> anyhow::Result<()> {
        let pin = format!("v{}/{}", abi::VERSION, abi::FALLBACK);
        let pin = self.scratch.pin_dir().join(pin);
        let map = MapData::from_pin(&pin).with_context(|| pin.display().to_string())?;
        let mut fallback: Array<_, Words> = Map::Array(map).try_into()?;
        let mut words: Words = fallback.get(&0, 0)?;
        words[0] = 0;
        fallback.set(0, words, 0)?;
        Ok(())
    }
}
