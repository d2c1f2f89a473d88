//! Measure 3: the rate at which a flood through an interface is dropped, by firewall.
//!
//! Each subject has two namespaces that a veth pair connects. One end sends frames from memory
//! (`BPF_F_TEST_XDP_LIVE_FRAMES`), from sources outside all prefixes; the other end has the subject. Sender and receiver
//! take turns on one CPU, 64 frames at a time, so no frame is lost between them, and the rate includes the cost of both:
//! `XDP drop` measures the share of the sender and the interface. Each subject drops by its own rules and reports its own
//! counter, which must match the number of sent frames.
//!
//! Subjects take turns in each round, with the same addresses in the same order.

mod firewalls;
mod subject;

use std::thread;
use std::time::{Duration, Instant};

use allowlist_tests::lab::frame;
use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions};
use nix::net::if_::if_nametoindex;

use self::subject::Subject;
use crate::Effort;
use crate::programs::{self, ADDRESSES};
use crate::record::{Record, Sample, float};
use crate::traffic::{Family, List, Traffic};

pub(crate) const MEASURE: &str = "interface";
pub(crate) const RATE: &str = "packets/s";
pub(crate) const COST: &str = "ns/packet";
/// The name of the baseline subject, which shows the cost of the interface and the sender alone.
const FLOOR: &str = "XDP drop";
/// The name of the subject that is the shipped filter.
pub(crate) const OURS: &str = "allowlist";
const CASE: &str = "UDP flood";

const SEED: u64 = 20_260_102;
pub(crate) const PREFIXES: [usize; 2] = [10_000, 100_000];
/// The number of frames that the sender sends in a round.
const FRAMES: u32 = 500_000;
const QUICK_FRAMES: u32 = 100_000;
/// The batch size of the sender, which is also that of the receiver (`NAPI_POLL_WEIGHT`).
const BATCH: u32 = 64;
/// The destination port: no program listens on it, and the prefixes of the list are allowed there.
const PORT: u16 = 9;

/// The subjects of a finished measure. Keep them until all measures have ended, because the kernel occupies a CPU while
/// it frees their prefixes.
pub(crate) struct FinishedSubjects {
    _subjects: Vec<Subject>,
}

pub(crate) fn run(record: &mut Record, effort: &Effort) -> Result<FinishedSubjects> {
    let frames = if effort.is_quick {
        QUICK_FRAMES
    } else {
        FRAMES
    };
    let prefixes = if effort.is_quick {
        &PREFIXES[..1]
    } else {
        &PREFIXES[..]
    };
    let mut sender = Sender::new(frames)?;
    let mut finished = Vec::new();
    for (index, &count) in prefixes.iter().enumerate() {
        effort.announce(&format!("interface: {count} prefixes"));
        let list = List::new(Family::V4, count, SEED + index as u64);
        let unlisted = list.addresses(Traffic::Miss, ADDRESSES, SEED);
        programs::set_addresses(
            &mut sender.object,
            Family::V4,
            &unlisted.context("the benchmark found no source addresses outside of its list")?,
        )?;
        let subjects = subject::all(record, &list)?;
        for round in 0..effort.rounds {
            for subject in &subjects {
                let rate = sender.flood(subject).context(subject.name)?;
                for (unit, value) in [(RATE, rate), (COST, 1e9 / rate)] {
                    record.add(Sample {
                        measure: MEASURE,
                        subject: subject.name.to_owned(),
                        case: CASE.to_owned(),
                        prefixes: count,
                        round,
                        value,
                        unit,
                    });
                }
            }
        }
        finished.extend(subjects);
    }
    Ok(FinishedSubjects {
        _subjects: finished,
    })
}

/// The sender of the flood: a program that emits frames into the interface.
struct Sender {
    object: Ebpf,
    template: Vec<u8>,
    frames: u32,
}

impl Sender {
    fn new(frames: u32) -> Result<Self> {
        /// The offset of the UDP checksum in a frame, in bytes.
        const CHECKSUM: usize = 14 + 20 + 6;
        // The stack drops packets to other addresses before any firewall rule.
        let [from, to] = ["198.51.100.2", "198.51.100.1"]
            .map(|address| format!("{address}:{PORT}").parse().expect("an address"));
        let mut template = frame::udp(from, to, &[0; 18]);
        // The checksum would depend on the source; 0 means that there is none.
        template[CHECKSUM..CHECKSUM + 2].fill(0);
        Ok(Self {
            object: programs::load(&[])?,
            template,
            frames,
        })
    }

    /// Sends a round of frames, and returns the number of packets that the subject dropped per second.
    fn flood(&mut self, subject: &Subject) -> Result<f64> {
        let peer = &subject.testbed.peer;
        let index = peer.run(|| if_nametoindex("eth0"))?;
        let port = self
            .object
            .map_mut("PORT")
            .with_context(|| programs::no_map("PORT"))?;
        let mut port: Array<&mut MapData, u32> = port.try_into()?;
        port.set(0, index, 0)?;
        let generate = programs::program(&self.object, "generate")?;

        let before = subject.dropped()?;
        let started = Instant::now();
        peer.run(|| {
            generate.test_run(TestRunOptions {
                data_in: Some(&self.template),
                repeat: self.frames,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            })
        })
        .context("cannot send the flood")?;
        let elapsed = started.elapsed();
        let dropped = wait_for_drops(subject, before + u64::from(self.frames))? - before;
        let lost = u64::from(self.frames).abs_diff(dropped);
        ensure!(
            lost <= u64::from(self.frames) / 100,
            "the subject counted {dropped} dropped packets of {} sent ones, a difference of more than 1 %, so the rate is invalid; measure again on an idle machine",
            self.frames
        );
        Ok(float(dropped) / elapsed.as_secs_f64())
    }
}

/// Waits until the subject has dropped all packets or a short time has passed, and returns its counter.
fn wait_for_drops(subject: &Subject, expected: u64) -> Result<u64> {
    const PATIENCE: Duration = Duration::from_millis(300);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let dropped = subject.dropped()?;
        if dropped >= expected || Instant::now() > deadline {
            return Ok(dropped);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
