//! Packets that are judged without a pause, each kind by a thread of its own, while something else is done.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Result;

/// Frames that a thread runs at once, between two looks at whether it is to stop: some milliseconds. When the last thread
/// ends its burst, the kernel takes the program out of what it dispatches XDP by, and waits; long bursts overlap.
const BURST: u32 = 50_000;

/// Does `work` while each of the frames is judged by `judge`, which takes a frame and how often.
///
/// # Returns
/// How often each of the frames was judged.
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
            *judged = thread.join().expect("it does not panic")?;
        }
        done?;
        Ok(judged)
    })
}
