//! Runs frames through a program continuously during another operation, each frame in its own thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Result;

/// The number of runs between two checks of the stop flag: some milliseconds. When the last thread ends its burst, the
/// kernel removes the program from the XDP dispatcher and waits, so bursts must be long enough to overlap.
const BURST: u32 = 50_000;

/// Runs `work` while threads call `judge` with a frame and a number of repetitions. Returns the number of runs of each
/// frame.
pub fn with_background_load<const N: usize>(
    judge: impl Fn(&[u8], u32) -> Result<()> + Sync,
    frames: [Vec<u8>; N],
    work: impl FnOnce() -> Result<()>,
) -> Result<[u64; N]> {
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        let (judge, stopped) = (&judge, &stopped);
        let running = frames.map(|frame| {
            scope.spawn(move || -> Result<u64> {
                let mut runs = 0;
                while !stopped.load(Ordering::Relaxed) {
                    judge(&frame, BURST)?;
                    runs += u64::from(BURST);
                }
                Ok(runs)
            })
        });
        let done = work();
        stopped.store(true, Ordering::Relaxed);
        let mut judged = [0; N];
        for (judged, thread) in judged.iter_mut().zip(running) {
            *judged = thread.join().expect("the thread does not panic")?;
        }
        done?;
        Ok(judged)
    })
}
