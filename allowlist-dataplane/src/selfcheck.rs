//! The self-check: compares the kernel's state with the published state. Pure: the caller reads both.
//!
//! An interface counts as filtered only if the program that the kernel reports on it is the program in this filter's
//! link, and is the published program. An interface index alone identifies no interface, because each network namespace
//! has its own indices.

use allowlist_common::abi::{Identity, PINNED};
use serde::Serialize;
use strum::Display;

use super::link::LinkState;
use crate::netlink;

/// The state that this filter published and that the kernel should have.
#[derive(Clone, Debug, Default)]
pub(super) struct Published {
    /// The last control word that this filter stored; 0 before the first publish.
    pub(super) word: u64,
    /// The interface slots to which a program was attached and not detached on purpose.
    pub(super) slots: Vec<Slot>,
}

/// The published state of one interface slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) number: u32,
    /// The recorded name of the interface in the slot.
    pub(super) name: String,
    /// The recorded index of the interface in the slot.
    pub(super) index: u32,
    /// Whether the flow tracker was attached by a tcx link; false for a clsact filter, or without a flow tracker.
    pub(super) is_tracked_by_tcx: bool,
    /// Whether all packets pass in this slot until a pending change is confirmed or rolled back. The slot's program may
    /// use other maps until then.
    pub(super) is_bypassed: bool,
    pub(super) identity: Identity,
}

/// The state that the kernel reports, for comparison with the published state.
#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    /// The cookie of the network namespace that the devices are in.
    pub(super) namespace: u64,
    /// The control word that the kernel programs read; `None` if its map is not pinned.
    pub(super) word: Option<u64>,
    /// The name of each map that should be pinned, with the id of the map that is pinned; `None` if none is.
    pub(super) maps: Vec<(&'static str, Option<u32>)>,
    /// The kernel's state of each published slot, in the order of [`Published::slots`].
    pub(super) slots: Vec<SlotFacts>,
}

/// The kernel's state of one interface slot.
#[derive(Clone, Debug)]
pub(super) struct SlotFacts {
    pub(super) link: LinkFact,
    /// The state of the pin of the flow tracker's tcx link.
    pub(super) tracker: LinkFact,
    /// The interface with the link's index in this network namespace; `None` if there is none.
    pub(super) device: Option<Device>,
}

/// The result of reading a link's pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkFact {
    /// No link is pinned.
    Missing,
    /// A link is pinned, and cannot be opened because the BPF file system is mounted read-only.
    Unreadable,
    /// A link is pinned, with this state.
    Pinned(LinkState),
}

/// The programs that the kernel reports on an interface.
#[derive(Clone, Debug, Default)]
pub(super) struct Device {
    pub(super) names: Vec<String>,
    /// The ids of the XDP programs on the interface.
    pub(super) programs: Vec<u32>,
    /// The ids of the programs on the interface's tcx egress, in the order in which they run.
    pub(super) chain: Vec<u32>,
}

impl From<netlink::Device> for Device {
    fn from(device: netlink::Device) -> Self {
        let mut names = vec![device.name];
        names.extend(device.other_names);
        Self {
            names,
            programs: device.programs,
            chain: Vec::new(),
        }
    }
}

/// A difference between the kernel and the published state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The kind of the difference, for programs that read the report.
    pub kind: DifferenceKind,
    /// The name of the interface or map that differs; `None` if the difference is about neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The description of the difference, for display.
    pub text: String,
    #[serde(skip)]
    pub(super) slot: Option<u32>,
    /// The ids of the programs whose names [`Self::name_programs`] inserts into the text.
    #[serde(skip)]
    programs: Vec<u32>,
}

/// The kind of a difference between the kernel and the published state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Display)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum DifferenceKind {
    /// The control word is not the one that this filter stored last.
    ControlWord,
    /// A map is not pinned.
    MapPinMissing,
    /// The pinned map is not the map that the attached program uses.
    MapReplaced,
    /// The XDP link is not pinned.
    LinkPinMissing,
    /// The XDP link is detached, although its interface exists.
    LinkDetached,
    /// The program in the XDP link is not the published program.
    ProgramReplaced,
    /// The published program is not attached to the interface.
    ProgramMissing,
    /// The interface no longer exists.
    InterfaceGone,
    /// The interface was moved to another network namespace.
    InterfaceMoved,
    /// The interface was renamed.
    InterfaceRenamed,
    /// The filter was attached in another network namespace than that of this process.
    OtherNamespace,
    /// The flow tracker's link is not pinned.
    TrackerPinMissing,
    /// The flow tracker is not on the interface.
    TrackerDetached,
    /// The program in the flow tracker's link is not the published program.
    TrackerReplaced,
    /// Another program runs before the flow tracker, and could end the chain before it.
    TrackerOrder,
}

impl DifferenceKind {
    /// Returns whether the daemon repairs this kind of difference, because only objects of this filter are affected.
    pub const fn is_ours(self) -> bool {
        !matches!(
            self,
            Self::InterfaceGone
                | Self::InterfaceMoved
                | Self::InterfaceRenamed
                | Self::OtherNamespace
                | Self::TrackerOrder
        )
    }
}

impl Difference {
    fn new(kind: DifferenceKind, object: Option<&str>, text: String) -> Self {
        Self {
            kind,
            object: object.map(str::to_owned),
            text,
            slot: None,
            programs: Vec::new(),
        }
    }

    /// Inserts the names and ids of the other programs into the text; `name_of` returns the name for an id.
    pub(super) fn name_programs(&mut self, name_of: impl Fn(u32) -> String) {
        let programs = std::mem::take(&mut self.programs);
        let named = programs
            .iter()
            .map(|id| format!("id {id} ({})", name_of(*id)));
        self.text = self
            .text
            .replace("{programs}", &named.collect::<Vec<_>>().join(", "));
    }
}

/// Lists the differences between the kernel and the published state, in a fixed order.
pub(super) fn compare(kernel: &Kernel, published: &Published) -> Vec<Difference> {
    let mut differences = Vec::new();
    if let Some(word) = kernel.word.filter(|word| *word != published.word)
        && published.word != 0
    {
        differences.push(Difference::new(
            DifferenceKind::ControlWord,
            None,
            format!(
                "another process has changed the control word, which selects the active policy and mode, from {:#x} to {word:#x}",
                published.word
            ),
        ));
    }
    differences.extend(compare_maps(kernel, published));
    for (slot, facts) in published.slots.iter().zip(&kernel.slots) {
        let mut found = compare_slot(kernel.namespace, slot, facts);
        // The name has gone to another interface, which is filtered.
        if found.iter().any(|one| is_about_absence(one.kind))
            && is_superseded(slot, kernel, published)
        {
            continue;
        }
        for difference in &mut found {
            difference.slot = Some(slot.number);
        }
        differences.extend(found);
    }
    differences
}

const fn is_about_absence(kind: DifferenceKind) -> bool {
    matches!(
        kind,
        DifferenceKind::InterfaceGone | DifferenceKind::InterfaceMoved
    )
}

fn is_superseded(slot: &Slot, kernel: &Kernel, published: &Published) -> bool {
    let mut others = published.slots.iter().zip(&kernel.slots);
    others.any(|(other, facts)| {
        other.number != slot.number
            && other.name == slot.name
            && compare_slot(kernel.namespace, other, facts).is_empty()
    })
}

fn compare_maps(kernel: &Kernel, published: &Published) -> Vec<Difference> {
    let mut differences = Vec::new();
    for (place, (name, pinned)) in kernel.maps.iter().enumerate() {
        debug_assert_eq!(PINNED[place].0, *name);
        let Some(pinned) = pinned else {
            differences.push(Difference::new(
                DifferenceKind::MapPinMissing,
                Some(name),
                format!("the map {name} has no pin, so commands cannot open it; the attached programs still use it"),
            ));
            continue;
        };
        let other = published.slots.iter().zip(&kernel.slots).find(|(slot, facts)| {
            let used = slot.identity.maps[place];
            let runs = matches!(facts.link, LinkFact::Pinned(link) if link.program == slot.identity.program);
            used != 0 && used != *pinned && runs && !slot.is_bypassed
        });
        if let Some((slot, _)) = other {
            differences.push(Difference::new(
                DifferenceKind::MapReplaced,
                Some(name),
                format!(
                    "the pinned map {name} has id {pinned}, and the program on {} uses id {}: a publish would not reach the program",
                    slot.name, slot.identity.maps[place]
                ),
            ));
        }
    }
    differences
}

fn compare_slot(namespace: u64, slot: &Slot, facts: &SlotFacts) -> Vec<Difference> {
    use DifferenceKind as Kind;
    let name = &*slot.name;
    let one = |kind, text| vec![Difference::new(kind, Some(name), text)];
    let identity = &slot.identity;
    let is_other_namespace = !matches!(identity.namespace, 0) && identity.namespace != namespace;
    let link = match facts.link {
        LinkFact::Pinned(link) => Some(link),
        LinkFact::Missing | LinkFact::Unreadable => None,
    };
    if is_other_namespace && link.is_none_or(|link| link.interface.is_some()) {
        return one(
            Kind::OtherNamespace,
            format!(
                "{name} is filtered in another network namespace, net:[{}], and not in this one",
                identity.namespace_inode
            ),
        );
    }
    let gone = || {
        one(
            Kind::InterfaceGone,
            format!(
                "{name} was removed with its filter; a daemon attaches the filter again when {name} is back"
            ),
        )
    };
    let device = match (&facts.device, link.map(|link| link.interface)) {
        (None, Some(Some(_))) => return one(Kind::InterfaceMoved, moved(name)),
        (None, _) => return gone(),
        (Some(device), Some(None)) if !is_called(device, name) => return gone(),
        (Some(device), _) => device,
    };
    let mut differences = match facts.link {
        LinkFact::Missing => one(
            Kind::LinkPinMissing,
            format!("the XDP link of {name} has no pin, so {name} is not filtered"),
        ),
        LinkFact::Unreadable if device.programs.contains(&identity.program) => Vec::new(),
        LinkFact::Unreadable => one(
            Kind::ProgramMissing,
            format!(
                "{name} does not run the published filter program, id {}, so {name} is not filtered",
                identity.program
            ),
        ),
        LinkFact::Pinned(LinkState {
            interface: None, ..
        }) => one(
            Kind::LinkDetached,
            format!(
                "another process has detached the XDP link of {name}, so {name} is not filtered"
            ),
        ),
        LinkFact::Pinned(link) if !device.programs.contains(&link.program) => {
            return one(Kind::InterfaceMoved, moved(name));
        }
        LinkFact::Pinned(link) if link.program != identity.program => {
            let mut found = one(
                Kind::ProgramReplaced,
                format!(
                    "another process has replaced the filter's program, id {}, in the XDP link of {name} by {{programs}}, so the filter does not run on {name}",
                    identity.program
                ),
            );
            found[0].programs = vec![link.program];
            found
        }
        LinkFact::Pinned(_) => Vec::new(),
    };
    if !is_called(device, name) {
        differences.push(Difference::new(
            Kind::InterfaceRenamed,
            Some(name),
            format!(
                "{name} was renamed to {}; services that are limited to an interface use the old name until the daemon publishes again (if none runs, start it with `allowlist run`)",
                device.names.first().map_or("another name", String::as_str)
            ),
        ));
    }
    if slot.is_tracked_by_tcx {
        differences.extend(compare_tracker(slot, facts.tracker, device));
    }
    differences
}

fn compare_tracker(slot: &Slot, tracker: LinkFact, device: &Device) -> Option<Difference> {
    use DifferenceKind as Kind;
    let name = &*slot.name;
    let consequence =
        "so flows of this host are not tracked there, and their return traffic is dropped";
    let one = |kind, text| Some(Difference::new(kind, Some(name), text));
    let program = match tracker {
        LinkFact::Missing => {
            return one(
                Kind::TrackerPinMissing,
                format!("the flow tracker's link of {name} has no pin, {consequence}"),
            );
        }
        LinkFact::Unreadable => slot.identity.tracker,
        LinkFact::Pinned(link) => link.program,
    };
    let Some(place) = device.chain.iter().position(|id| *id == program) else {
        return one(
            Kind::TrackerDetached,
            format!("the flow tracker is detached from {name}, {consequence}"),
        );
    };
    if program != slot.identity.tracker && slot.identity.tracker != 0 {
        let mut found = one(
            Kind::TrackerReplaced,
            format!(
                "another process has replaced the program in the flow tracker's link of {name} by {{programs}}, {consequence}"
            ),
        )?;
        found.programs = vec![program];
        return Some(found);
    }
    if place > 0 {
        let mut found = one(
            Kind::TrackerOrder,
            format!(
                "on the tcx egress of {name} other programs run before the flow tracker: {{programs}}; a program that ends the chain keeps flows of this host from being tracked, so their return traffic is dropped; attach the other programs after the flow tracker"
            ),
        )?;
        found.programs = device.chain[..place].to_vec();
        return Some(found);
    }
    None
}

fn moved(name: &str) -> String {
    format!(
        "{name} was moved to another network namespace, and is filtered there; an interface of this namespace with its name or index is a different one"
    )
}

fn is_called(device: &Device, name: &str) -> bool {
    device.names.iter().any(|one| one == name)
}

#[cfg(test)]
mod tests;
