//! The shipped program in the kernel, with maps of its own, loaded and attached to nothing.

use allowlist_common::abi::{Counters, PROGRAM};
use allowlist_common::verdict::Verdict;
use allowlist_tests::lab::Scratch;
use allowlist_user::compile::Tables;
use allowlist_user::dataplane::{Dataplane, View};
use allowlist_user::policy::{DefaultVerdict, Keep, Mode, ReturnTraffic, Rules};
use aya::Ebpf;
use aya::programs::{TestRun as _, TestRunOptions, Xdp};

/// What the program tells the driver to do.
pub(crate) const XDP_DROP: u32 = 1;
/// Likewise.
pub(crate) const XDP_PASS: u32 = 2;

/// The program, loaded and attached to nothing.
pub(crate) struct Kernel {
    scratch: Scratch,
    dataplane: Dataplane,
    object: Ebpf,
}

impl Kernel {
    pub(crate) fn new() -> Self {
        let scratch = Scratch::new().expect("a folder for pins");
        let dataplane = Dataplane::open(scratch.pin_dir(), Some(1024)).expect("maps");
        let object = dataplane.load_program(0, false).expect("a program");
        Self {
            scratch,
            dataplane,
            object,
        }
    }

    pub(crate) fn publish(&mut self, tables: &Tables, mode: Mode, default: Verdict) {
        let rules = Rules {
            default: match default {
                Verdict::Pass => DefaultVerdict::Pass,
                Verdict::Drop => DefaultVerdict::Drop,
            },
            return_traffic: ReturnTraffic::Off,
            keep: Keep::ALL,
        };
        self.dataplane
            .publish(tables, mode, &rules, &[])
            .expect("a publish");
    }

    /// What the driver is told to do with a frame.
    pub(crate) fn run(&self, frame: &[u8]) -> u32 {
        let program: &Xdp = self
            .object
            .program(PROGRAM)
            .expect("loaded")
            .try_into()
            .expect("an XDP program");
        let run = TestRunOptions {
            data_in: Some(frame),
            ..TestRunOptions::default()
        };
        program.test_run(run).expect("a test run").return_value
    }

    /// Bytes of the program after the verifier, with a trace or without.
    pub(crate) fn program_size(&self, trace: bool) -> u32 {
        let object = self.dataplane.load_program(0, trace).expect("a program");
        let program: &Xdp = object
            .program(PROGRAM)
            .expect("loaded")
            .try_into()
            .expect("an XDP program");
        let info = program.info().expect("the kernel knows it");
        info.size_translated().expect("on this kernel")
    }

    pub(crate) fn counters(&self) -> Counters {
        self.view().counters_of(0).expect("counters")
    }

    /// What the maps hold.
    pub(crate) fn view(&self) -> View {
        View::open(self.scratch.pin_dir()).expect("pinned maps")
    }
}
