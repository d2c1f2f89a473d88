//! The shipped programs, loaded into the kernel with their own maps, and not attached.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use allowlist_common::abi::{
    COUNTERS, Counters, FLOWS, FOREIGN, FOREIGN_PORTS, MARKING, PEERS, PORTS, PROGRAM,
    TRACKER_PROGRAM, VERSION,
};
use allowlist_common::flow::{Flow, FlowEntry, ForeignPort, Marking, OutboundPacket, PortsInUse};
use allowlist_common::packet::{Contents, parse};
use allowlist_common::verdict::{Reason, Verdict};
use allowlist_dataplane::{AppliedState, Dataplane, View};
use allowlist_policy::compile::Tables;
use allowlist_policy::{Mode, ReturnTraffic, Rules};
use allowlist_tests::lab::Scratch;
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};

/// The return code that drops a packet.
pub(crate) const XDP_DROP: u32 = 1;
/// The return code that passes a packet.
pub(crate) const XDP_PASS: u32 = 2;

/// The interface of slot 0.
pub(crate) const INTERFACE: &str = "eth0";

/// The loaded programs, not attached.
pub(crate) struct Kernel {
    scratch: Scratch,
    dataplane: Dataplane,
    /// The programs of each slot.
    objects: Vec<Ebpf>,
    marking: Marking,
    marks: RefCell<Array<MapData, Marking>>,
    foreign_ports: RefCell<Array<MapData, ForeignPort>>,
    /// Whether the host's ports are trusted at once after a service had them.
    pub(crate) trusts_ports: bool,
    /// Whether the programs detect evicted marks; otherwise the test sets the state.
    pub(crate) keeps_crowding: bool,
}

impl Kernel {
    /// Loads the programs for one interface.
    pub(crate) fn new() -> Self {
        Self::with_slots(1)
    }

    /// Loads the programs for this number of interfaces.
    pub(crate) fn with_slots(slots: u32) -> Self {
        let scratch = Scratch::new().expect("a directory for pins");
        let dataplane = Dataplane::open(scratch.pin_dir(), Some(8192)).expect("maps");
        let objects = load(&dataplane, slots);
        let map = |name: &str| {
            let pin = scratch.pin_dir().join(format!("v{VERSION}")).join(name);
            Map::from_map_data(MapData::from_pin(pin).expect("pinned")).expect("a map")
        };
        let marks = map(MARKING).try_into().expect("an array");
        let foreign_ports = map(FOREIGN_PORTS).try_into().expect("an array");
        Self {
            scratch,
            dataplane,
            objects,
            marking: ARMED,
            marks: RefCell::new(marks),
            foreign_ports: RefCell::new(foreign_ports),
            trusts_ports: true,
            keeps_crowding: false,
        }
    }

    /// Returns the folder of the pinned maps.
    pub(crate) fn pin_dir(&self) -> PathBuf {
        self.scratch.pin_dir().join(format!("v{VERSION}"))
    }

    fn trust_port_of(&self, frame: &[u8]) {
        let Ok(Contents::Ip(packet)) = parse(frame) else {
            return;
        };
        let port =
            OutboundPacket::from_packet(&packet).map_or(0, |sent| u32::from(sent.flow.local_port));
        let mut ports = self.foreign_ports.borrow_mut();
        let known = ports.get(&port, 0).expect("a port");
        if known.unknown != 0 {
            let known = ForeignPort {
                unknown: 0,
                ..known
            };
            ports.set(port, known, 0).expect("a port");
        }
    }

    /// Returns the entry of a local UDP port.
    pub(crate) fn foreign_port(&self, port: u16) -> ForeignPort {
        let ports = self.foreign_ports.borrow();
        ports.get(&port.into(), 0).expect("a port")
    }

    /// Sets the entry of a local UDP port.
    pub(crate) fn set_foreign_port(&self, port: u16, known: ForeignPort) {
        let mut ports = self.foreign_ports.borrow_mut();
        ports.set(port.into(), known, 0).expect("a port");
    }

    /// Reports whether the programs have detected that marks may be evicted.
    pub(crate) fn found_crowding(&self) -> bool {
        let marking = self.marks.borrow().get(&0, 0).expect("an entry");
        marking.crowded_until != 0
    }

    /// Returns the state that [`Self::set_marking`] has set.
    pub(crate) fn marking(&self) -> Marking {
        self.marking
    }

    /// Removes all entries of a flow table.
    pub(crate) fn clear(&mut self, name: &str) {
        let mut table = self.flow_table(name);
        let keys: Vec<Flow> = table.keys().flatten().collect();
        for key in &keys {
            table.remove(key).expect("there");
        }
    }

    /// Sets the state of the marks of foreign flows, for all packets that are sent later.
    pub(crate) fn set_marking(&mut self, marking: Marking) {
        self.marking = marking;
    }

    /// Publishes with a default verdict and no other rules.
    pub(crate) fn publish(&mut self, tables: &Tables, mode: Mode, default: Verdict) {
        self.publish_on(tables, mode, rules(default), &[]);
    }

    /// Publishes for these interfaces. An interface that a service is limited to gets a slot at its first publish, in the
    /// order of names.
    pub(crate) fn publish_on(
        &mut self,
        tables: &Tables,
        mode: Mode,
        rules: Rules,
        interfaces: &[&str],
    ) {
        let interfaces: Vec<String> = interfaces.iter().map(|&name| name.to_owned()).collect();
        let before = self.dataplane.table_bytes();
        self.dataplane
            .publish(tables, mode, &rules, &interfaces, &[])
            .expect("a publish");
        if self.dataplane.table_bytes() != before {
            // The dataplane also replaces programs when the size of the tables changes.
            self.objects = load(&self.dataplane, self.objects.len() as u32);
        }
    }

    /// Returns the dataplane and the program of slot 0, so that a test can use both at the same time.
    pub(crate) fn parts(&mut self) -> (&mut Dataplane, &Xdp) {
        let program = self.objects[0].program(PROGRAM).expect("loaded");
        (
            &mut self.dataplane,
            program.try_into().expect("an XDP program"),
        )
    }

    /// Requires that the next change is confirmed within this time.
    pub(crate) fn arm_rollback(&mut self, within: Duration) {
        self.dataplane.arm_rollback(within).expect("a fallback");
    }

    pub(crate) fn applied_state(&self) -> AppliedState {
        self.dataplane.applied_state().expect("pinned maps")
    }

    pub(crate) fn restore(&mut self, found: &AppliedState) {
        self.dataplane.restore(found).expect("a rollback");
    }

    /// Runs the filter on a frame, and returns its return code.
    pub(crate) fn run(&self, frame: &[u8]) -> u32 {
        self.receive(0, frame)
    }

    /// Runs the filter on a frame, and returns the verdict.
    pub(crate) fn verdict(&self, frame: &[u8]) -> Verdict {
        match self.run(frame) {
            XDP_PASS => Verdict::Pass,
            XDP_DROP => Verdict::Drop,
            action => panic!("action {action}"),
        }
    }

    /// Runs the filter of a slot on a frame, and returns its return code.
    pub(crate) fn receive(&self, slot: usize, frame: &[u8]) -> u32 {
        self.test_run(slot, frame_of(frame))
    }

    /// Runs the filter on a frame whose linear part has this size. Needs Linux 6.18.
    pub(crate) fn run_with_linear_size(&self, frame: &[u8], first: usize) -> u32 {
        // The kernel's `struct xdp_md`, of which a test run reads only `data` and `data_end`.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&(first as u32).to_ne_bytes());
        let run = TestRunOptions {
            ctx_in: Some(&context),
            ..frame_of(frame)
        };
        self.test_run(0, run)
    }

    fn test_run(&self, slot: usize, run: TestRunOptions) -> u32 {
        let program: &Xdp = self.objects[slot]
            .program(PROGRAM)
            .expect("loaded")
            .try_into()
            .expect("an XDP program");
        program.test_run(run).expect("a test run").return_value
    }

    /// Runs the flow tracker on a frame.
    pub(crate) fn send(&self, frame: &[u8]) {
        self.send_on(0, frame);
    }

    /// Runs the flow tracker of a slot on a frame.
    pub(crate) fn send_on(&self, slot: usize, frame: &[u8]) {
        /// The return code that continues with the next program.
        const TCX_NEXT: u32 = u32::MAX;
        // The state does not depend on the number of marks and CPUs.
        if !self.keeps_crowding {
            let mut marks = self.marks.borrow_mut();
            marks.set(0, self.marking, 0).expect("an array");
        }
        if self.trusts_ports {
            self.trust_port_of(frame);
        }
        let program: &SchedClassifier = self.objects[slot]
            .program(TRACKER_PROGRAM)
            .expect("loaded")
            .try_into()
            .expect("a classifier");
        let run = program.test_run(frame_of(frame)).expect("a test run");
        assert_eq!(run.return_value, TCX_NEXT, "of {frame:02x?}");
    }

    /// Removes all flows.
    pub(crate) fn clear_flows(&mut self) {
        let mut ports = std::collections::BTreeSet::new();
        for name in [FLOWS, PEERS, FOREIGN] {
            let mut flows = self.flow_table(name);
            let keys: Vec<Flow> = flows.keys().collect::<Result<_, _>>().expect("keys");
            for key in &keys {
                flows.remove(key).expect("there");
            }
            ports.extend(keys.iter().map(|key| key.local_port));
        }
        let object = &mut self.objects[0];
        if !ports.is_empty() {
            let map = object.map_mut(PORTS).expect("a map");
            let mut in_use: Array<_, PortsInUse> = map.try_into().expect("of ports");
            in_use.set(0, NO_PORTS, 0).expect("an array");
        }
        let mut foreign = self.foreign_ports.borrow_mut();
        for port in ports {
            let nothing = ForeignPort::default();
            foreign.set(port.into(), nothing, 0).expect("a port");
        }
        drop(foreign);
        self.set_marking(ARMED);
    }

    /// Opens a flow table.
    pub(crate) fn flow_table(&mut self, name: &str) -> HashMap<&mut MapData, Flow, FlowEntry> {
        let map = self.objects[0].map_mut(name).expect("a map");
        map.try_into().expect("of flows")
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters_of(0)
    }

    /// Returns the counters of a slot, read from the object's map with one system call.
    pub(crate) fn counters_of(&self, slot: u32) -> Counters {
        let map = self.objects[0].map(COUNTERS).expect("a map");
        let counters: PerCpuArray<_, Counters> = map.try_into().expect("of counters");
        let mut sum = Counters::ZERO;
        for of_cpu in counters.get(&slot, 0).expect("counters").iter() {
            for verdict in Verdict::ALL {
                for reason in Reason::ALL {
                    *sum.cell(verdict, reason) += of_cpu.get(verdict, reason);
                }
            }
        }
        sum
    }

    /// Opens a view of the maps.
    pub(crate) fn view(&self) -> View {
        View::open(self.scratch.pin_dir()).expect("pinned maps")
    }
}

/// The state in which every interface is armed.
const ARMED: Marking = Marking {
    armed: u64::MAX,
    crowded_until: 0,
};

const NO_PORTS: PortsInUse = PortsInUse {
    until: [[0; 1 << 16]; 3],
};

/// Loads the programs for this number of slots.
fn load(dataplane: &Dataplane, slots: u32) -> Vec<Ebpf> {
    (0..slots)
        .map(|slot| {
            let mut object = dataplane.load_program(slot, false).expect("a program");
            let tracker: &mut SchedClassifier = object
                .program_mut(TRACKER_PROGRAM)
                .expect("in the object")
                .try_into()
                .expect("a classifier");
            tracker.load().expect("the flow tracker");
            object
        })
        .collect()
}

/// Returns rules without return traffic.
pub(crate) fn rules(default: Verdict) -> Rules {
    Rules {
        default,
        return_traffic: ReturnTraffic::Off,
        ..Rules::default()
    }
}

fn frame_of(frame: &[u8]) -> TestRunOptions<'_> {
    TestRunOptions {
        data_in: Some(frame),
        ..TestRunOptions::default()
    }
}

/// Returns the kernel's release, such as `6.1.0-50-amd64`.
pub(crate) fn release() -> String {
    let name = nix::sys::utsname::uname().expect("the system information");
    name.release().to_string_lossy().into_owned()
}

/// Reports whether the linear part of a test frame can be shorter than a page (since Linux 6.18).
pub(crate) fn supports_linear_size(release: &str) -> bool {
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (6, 18),
        _ => false,
    }
}
