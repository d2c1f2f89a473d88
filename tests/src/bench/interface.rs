//! Measure 3: how much of a flood is dropped through an interface, by what filters it.
//!
//! Two namespaces for each subject, joined by a veth pair: one end sends frames from memory
//! (`BPF_F_TEST_XDP_LIVE_FRAMES`), from sources of which no list knows any; the other has the subject. Sender and
//! receiver take turns on one CPU, 64 frames at a time, so nothing is lost between them, and the rate is
//! that of both together: `XDP drop` shows how much of it is the sender's and the interface's share. Every
//! subject drops by its own rules and says by its own counter how much; that must be all that was sent.
//!
//! Subjects take turns, round after round, with the same addresses in the same order.

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
/// What the interface itself and the sender take.
const FLOOR: &str = "XDP drop";
/// What ships.
pub(crate) const OURS: &str = "allowlist";
const CASE: &str = "UDP flood";

const SEED: u64 = 20_260_102;
pub(crate) const PREFIXES: [usize; 2] = [10_000, 100_000];
/// Frames of a round.
const FRAMES: u32 = 500_000;
const QUICK_FRAMES: u32 = 100_000;
/// Frames that the sender makes at once: as many as the receiver takes at once.
const BATCH: u32 = 64;
/// Any port on which nobody listens; it is open to the prefixes of the list.
const PORT: u16 = 9;

/// What is still there after a measure. Keep it until all is measured: the kernel takes a CPU for as long as
/// it frees prefixes.
pub(crate) struct Remains {
    _subjects: Vec<Subject>,
}

pub(crate) fn run(record: &mut Record, effort: &Effort) -> Result<Remains> {
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
    let mut remains = Vec::new();
    for (place, &count) in prefixes.iter().enumerate() {
        effort.say(&format!("interface: {count} prefixes"));
        let list = List::new(Family::V4, count, SEED + place as u64);
        let strangers = list.addresses(Traffic::Miss, ADDRESSES, SEED);
        programs::set_addresses(
            &mut sender.object,
            Family::V4,
            &strangers.context("a list has misses")?,
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
        remains.extend(subjects);
    }
    Ok(Remains { _subjects: remains })
}

/// What sends.
struct Sender {
    object: Ebpf,
    template: Vec<u8>,
    frames: u32,
}

impl Sender {
    fn new(frames: u32) -> Result<Self> {
        /// Where the datagram has its checksum.
        const CHECKSUM: usize = 14 + 20 + 6;
        // The stack drops what is not for its host, before any rule is asked.
        let [from, to] = ["198.51.100.2", "198.51.100.1"]
            .map(|address| format!("{address}:{PORT}").parse().expect("an address"));
        let mut template = frame::udp(from, to, &[0; 18]);
        // Its checksum would be of one source alone; 0 is for none.
        template[CHECKSUM..CHECKSUM + 2].fill(0);
        Ok(Self {
            object: programs::load(&[])?,
            template,
            frames,
        })
    }

    /// Packets a second that the subject dropped.
    fn flood(&mut self, subject: &Subject) -> Result<f64> {
        let peer = &subject.site.peer;
        let index = peer.run(|| if_nametoindex("eth0"))?;
        let port = self.object.map_mut("PORT").context("no PORT")?;
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
        .context("cannot send")?;
        let took = started.elapsed();
        let dropped = settled(subject, before + u64::from(self.frames))? - before;
        let lost = u64::from(self.frames).abs_diff(dropped);
        ensure!(
            lost <= u64::from(self.frames) / 100,
            "of {} packets it dropped {dropped}",
            self.frames
        );
        Ok(float(dropped) / took.as_secs_f64())
    }
}

/// What a subject has dropped, once that is all that was sent, or no more comes.
fn settled(subject: &Subject, expected: u64) -> Result<u64> {
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
