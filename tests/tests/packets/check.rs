//! Runs groups of frames in the kernel and on the host, and compares verdict, reason and all counters with each row. In the
//! kernel, frames also run in two buffers, and lengthened.

use std::collections::BTreeSet;

use allowlist_common::abi::{Counters, ServiceTraffic, Traffic};
use allowlist_common::verdict::{Reason, Verdict};
use allowlist_policy::Mode;
use allowlist_policy::compile::{IdTable, Tables, compile};
use allowlist_tests::model::host::Host;
use allowlist_tests::model::static_snapshot;
use allowlist_user::config::Config;

use crate::frames::{Expected, Group, Row};
use crate::kernel::{INTERFACE, Kernel, XDP_DROP, XDP_PASS};

/// More than a page, and the size of a jumbo frame: both do not fit into a linear buffer.
const LONGER: [usize; 2] = [4100, 9000];
/// The sizes of the linear part: up to the Ethernet header, into and up to the IP and transport headers.
const LINEAR_SIZES: [usize; 8] = [14, 16, 20, 34, 36, 40, 54, 62];

/// A configuration with its compiled tables.
pub(crate) struct Compiled {
    pub(crate) config: Config,
    pub(crate) tables: Tables,
}

impl Compiled {
    pub(crate) fn of(text: &str) -> Self {
        let config = Config::parse(text, "test.toml".as_ref())
            .unwrap_or_else(|error| panic!("{error}\n{text}"));
        let snapshot = static_snapshot(&config.policy);
        let tables =
            compile(&config.policy, &snapshot, 1000, &IdTable::default()).expect("a small policy");
        Self { config, tables }
    }

    /// Returns the expected verdict, under the default verdict of the configuration.
    pub(crate) fn verdict(&self, end: &Expected) -> Verdict {
        end.verdict.unwrap_or(self.config.rules.default)
    }

    fn action(&self, end: &Expected) -> u32 {
        match (self.config.mode, self.verdict(end)) {
            (Mode::Enforce, Verdict::Drop) => XDP_DROP,
            _ => XDP_PASS,
        }
    }

    pub(crate) fn publish(&self, kernel: &mut Kernel) {
        // The first name gets the first free slot.
        let interfaces = [INTERFACE, "eth1"];
        kernel.publish_on(
            &self.tables,
            self.config.mode,
            self.config.rules,
            &interfaces,
        );
    }
}

/// Checks each row in the kernel, unchanged and lengthened.
pub(crate) fn in_the_kernel(groups: &[Group]) {
    each_row(groups, |compiled, kernel, row, wrong| {
        let mut run_as = |variant: &str, frame: &[u8]| {
            let run = |kernel: &Kernel| kernel.run(frame);
            wrong.extend(check(compiled, kernel, row, (variant, frame.len()), run));
        };
        run_as("whole", &row.frame);
        for length in LONGER {
            if row.frame.len() < length && !row.end.is_cut {
                let frame = lengthened(row, length);
                run_as(&format!("as {length} bytes"), &frame);
            }
        }
    });
}

/// Checks each row in two buffers, the first of which ends in a header.
pub(crate) fn in_two_buffers(groups: &[Group]) {
    each_row(groups, |compiled, kernel, row, wrong| {
        for first in LINEAR_SIZES {
            // If the packet is complete in the first buffer, the second one is padding, which is not counted.
            if first < row.frame.len() && packet_end(&row.frame).is_none_or(|end| first < end) {
                let run = |kernel: &Kernel| kernel.run_with_linear_size(&row.frame, first);
                let variant = format!("linear part of {first} bytes");
                wrong.extend(check(
                    compiled,
                    kernel,
                    row,
                    (&variant, row.frame.len()),
                    run,
                ));
            }
        }
    });
}

/// Lengthens a frame, and its packet unless that is malformed or an ICMP error.
fn lengthened(Row { frame, end, .. }: &Row, length: usize) -> Vec<u8> {
    let mut longer = frame.clone();
    longer.resize(length, 0);
    if !matches!(end.reason, Reason::Malformed | Reason::IcmpError)
        && let Some((ip, before)) = ip_length(frame)
    {
        let bytes = ((length - before) as u16).to_be_bytes();
        longer[ip..ip + 2].copy_from_slice(&bytes);
    }
    longer
}

/// Returns the end of the packet according to its IP header, which may be wrong.
fn packet_end(frame: &[u8]) -> Option<usize> {
    let (at, before) = ip_length(frame)?;
    let bytes = frame.get(at..at + 2)?.try_into().ok()?;
    if bytes == [0, 0] && frame.len() > before + usize::from(u16::MAX) {
        return None; // longer than the field can state
    }
    Some(before + usize::from(u16::from_be_bytes(bytes)))
}

/// Returns the offset of the length field of the IP header, and the number of bytes that the field does not count.
fn ip_length(frame: &[u8]) -> Option<(usize, usize)> {
    let mut start = 14;
    while matches!(frame.get(start - 2..start)?, [0x81, 0] | [0x88, 0xa8]) {
        start += 4;
    }
    match frame[start - 2..start] {
        [8, 0] => Some((start + 2, start)),
        [0x86, 0xdd] => Some((start + 4, start + 40)),
        _ => None,
    }
}

/// Checks each row against the same logic, compiled for the host.
pub(crate) fn on_the_host(groups: &[Group]) {
    let mut wrong = Vec::new();
    for group in groups {
        let compiled = Compiled::of(&group.config);
        let mut host = Host::new(&compiled.tables, &compiled.config.rules, &[INTERFACE]);
        for frame in &group.sent {
            host.send(INTERFACE, frame);
        }
        for Row {
            description,
            frame,
            end,
        } in &group.rows
        {
            let decision = host.receive(INTERFACE, frame);
            let ids = &compiled.tables.ids;
            let found = (
                decision.verdict,
                decision.reason,
                ids.matches[decision.match_id as usize].join(" "),
                ids.services[decision.service as usize].join(" "),
            );
            let expected = (
                compiled.verdict(end),
                end.reason,
                end.sources.to_owned(),
                end.services.to_owned(),
            );
            if found != expected {
                wrong.push(format!(
                    "{}: {description}: {found:?}, not {expected:?}",
                    group.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Calls `run` for each row, under the configuration of its group and after the frames that the group's host sent.
fn each_row(groups: &[Group], mut run: impl FnMut(&Compiled, &Kernel, &Row, &mut Vec<String>)) {
    let mut wrong = Vec::new();
    let mut kernel = Kernel::new();
    for group in groups {
        let compiled = Compiled::of(&group.config);
        // Groups share one kernel, because loading is slow, but no flows.
        kernel.clear_flows();
        compiled.publish(&mut kernel);
        let mut names = BTreeSet::new();
        let mut of_group = Vec::new();
        for row in &group.rows {
            assert!(
                names.insert(&row.description),
                "{}: {} twice",
                group.name,
                row.description
            );
            // Repeated for each row, so that no flow expires on a slow machine.
            group.sent.iter().for_each(|frame| kernel.send(frame));
            run(&compiled, &kernel, row, &mut of_group);
        }
        let elsewhere = kernel.view().counters_of(1).expect("counters");
        assert!(
            elsewhere == Counters::ZERO,
            "{}: counted on another interface",
            group.name
        );
        wrong.extend(
            of_group
                .into_iter()
                .map(|error| format!("{}: {error}", group.name)),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs one frame, and returns the difference from its row.
fn check(
    compiled: &Compiled,
    kernel: &Kernel,
    Row {
        description, end, ..
    }: &Row,
    (variant, bytes): (&str, usize),
    run: impl FnOnce(&Kernel) -> u32,
) -> Option<String> {
    let ids = &compiled.tables.ids;
    let before = Counts::of(kernel, ids);
    let action = run(kernel);
    let counted = Counts::of(kernel, ids).since(&before, ids);
    let expected = expected(compiled, end, bytes);
    if counted != expected {
        return Some(format!(
            "{description}, {variant}: {counted:?}, not {expected:?}"
        ));
    }
    let expected = compiled.action(end);
    (action != expected)
        .then(|| format!("{description}, {variant}: action {action}, not {expected}"))
}

/// Returns the expected changes of the counters, as text.
fn expected(compiled: &Compiled, end: &Expected, bytes: usize) -> Vec<String> {
    let verdict = compiled.verdict(end);
    let mut changes = vec![decision_text(1, verdict, end.reason)];
    if !end.sources.is_empty() {
        changes.push(format!("source {}: passed 1, {bytes} bytes", end.sources));
    }
    if !end.services.is_empty() {
        let verdict = if end.sources.is_empty() {
            "dropped"
        } else {
            "passed"
        };
        changes.push(format!(
            "service {}: {verdict} 1, {bytes} bytes",
            end.services
        ));
    }
    changes
}

fn decision_text(packets: u64, verdict: Verdict, reason: Reason) -> String {
    format!("{packets} {} {}", verdict.name(), reason.name())
}

/// All counters that a frame may change.
struct Counts {
    ends: Counters,
    sources: Vec<Traffic>,
    services: Vec<ServiceTraffic>,
}

impl Counts {
    fn of(kernel: &Kernel, ids: &IdTable) -> Self {
        let view = kernel.view();
        Self {
            ends: view.counters_of(0).expect("counters"),
            sources: view.traffic(ids.matches.len()).expect("traffic"),
            services: view.service_traffic(ids.services.len()).expect("traffic"),
        }
    }

    /// Returns the changes since `before`, as text.
    fn since(&self, before: &Self, ids: &IdTable) -> Vec<String> {
        let mut changes = Vec::new();
        for verdict in Verdict::ALL {
            for reason in Reason::ALL {
                let packets = self.ends.get(verdict, reason) - before.ends.get(verdict, reason);
                if packets != 0 {
                    changes.push(decision_text(packets, verdict, reason));
                }
            }
        }
        let passed = |now: &Traffic, before: &Traffic| {
            let (packets, bytes) = (now.packets - before.packets, now.bytes - before.bytes);
            let is_timed = now.last != 0 && now.last >= before.last;
            let time = if is_timed { "" } else { ", without a time" };
            (*now != *before).then(|| format!("passed {packets}, {bytes} bytes{time}"))
        };
        for (id, (now, before)) in self.sources.iter().zip(&before.sources).enumerate() {
            let source = ids.matches[id].join(" ");
            changes.extend(passed(now, before).map(|change| format!("source {source}: {change}")));
        }
        for (id, (now, before)) in self.services.iter().zip(&before.services).enumerate() {
            let service = ids.services[id].join(" ");
            let change = passed(&now.passed, &before.passed);
            changes.extend(change.map(|change| format!("service {service}: {change}")));
            let packets = now.dropped_packets - before.dropped_packets;
            let bytes = now.dropped_bytes - before.dropped_bytes;
            if (packets, bytes) != (0, 0) {
                changes.push(format!(
                    "service {service}: dropped {packets}, {bytes} bytes"
                ));
            }
        }
        changes
    }
}
