//! Reads the destinations that programs used and that no rule allows, with the names that were queried before, from the
//! maps that the programs of the egress policy fill. Needs no daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use allowlist_common::abi::{
    self, ANSWERED, AnsweredKey, LEARNED, LEARNED_BELOW, Learned, LearnedNames, MAX_SEEN, SEEN,
    SeenCalls, SeenKey,
};
use allowlist_common::dns::Noted;
use allowlist_common::egress::{Call, address_key, learned};
use allowlist_common::packet::Address;
use allowlist_policy::error_code::bail_with;

use super::View;
use super::cgroup::Names;
use super::hash_maps::{clear, entries};
use super::name_maps::address_of;
use super::pins::Pins;
use crate::error::Result;

/// The number of entries at which [`SEEN`] may have evicted others. An LRU hash evicts somewhat before it is full.
const ALMOST_FULL: usize = MAX_SEEN / 10 * 9;

/// The destinations that programs used and that no rule allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenDestinations {
    /// The destinations, by the calling program's cgroup, sorted by address.
    pub destinations: Vec<SeenDestination>,
    /// Whether the kernel's table is so full that destinations may be missing: those not used for the longest time.
    pub is_full: bool,
}

/// The calls of the programs of a cgroup to a destination that no rule allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenDestination {
    /// The path of the cgroup below the root of cgroup v2, without a leading `/`, and `/` for the root itself; if the
    /// cgroup is gone, that of its nearest outer cgroup that exists; `None` if those are gone too.
    pub cgroup: Option<String>,
    /// Whether the cgroup of the programs is gone.
    pub is_gone: bool,
    /// The destination address.
    pub address: IpAddr,
    /// The IP protocol.
    pub protocol: u8,
    /// The destination port; 0 for a protocol without ports.
    pub port: u16,
    /// The number of calls by kind, indexed by the number of the [`Call`].
    pub calls: [u64; Call::ALL.len()],
    /// The time of the first call, since the start of the system.
    pub first: Duration,
    /// The time of the last call, since the start of the system.
    pub last: Duration,
    /// The names for which the address was answered to programs of the cgroup; if there are none, those for which it was
    /// answered to others, such as a local resolver.
    pub names: BTreeSet<String>,
    /// The ids of the listed names for which the address was answered.
    pub listed: BTreeSet<u32>,
}

impl View {
    /// Returns the destinations that programs used and that no rule allows.
    ///
    /// # Errors
    /// Fails with the code `no-egress-policy` if no egress policy is active.
    pub fn seen(&self) -> Result<SeenDestinations> {
        let mut has_maps = self.control()?.egress.is_some();
        for name in abi::EGRESS_PINNED {
            has_maps = has_maps && self.has(name)?;
        }
        if !has_maps {
            bail_with!(
                NoEgressPolicy,
                "no egress policy is active, so no call is judged; add [egress] with mode = \"observe\" to the configuration and run `allowlist reload`"
            );
        }
        let names = answered(&self.pins)?;
        let listed = listed(&self.pins)?;
        let mut cgroups = Names::new();
        let mut destinations: Vec<_> = entries::<SeenKey, SeenCalls>(&self.pins, SEEN)?
            .into_iter()
            .map(|(key, calls)| {
                let address = Address::V6(key.address);
                let answered = address_key(learned(address));
                let own = cgroups.get(key.cgroup);
                let is_gone = own.is_none();
                let outer = calls.levels.iter().rev().filter(|id| **id != 0);
                let cgroup = own.or_else(|| outer.copied().find_map(|id| cgroups.get(id)));
                SeenDestination {
                    cgroup,
                    is_gone,
                    address: IpAddr::from(address).to_canonical(),
                    protocol: key.protocol(),
                    port: key.port(),
                    calls: calls.calls,
                    first: Duration::from_nanos(calls.first),
                    last: Duration::from_nanos(calls.last),
                    names: names_of(&names, key.cgroup, answered),
                    listed: listed.get(&answered).cloned().unwrap_or_default(),
                }
            })
            .collect();
        let order = |one: &SeenDestination| (one.address, one.protocol, one.port, one.first);
        destinations.sort_by_key(order);
        Ok(SeenDestinations {
            is_full: destinations.len() >= ALMOST_FULL,
            destinations,
        })
    }

    /// Opens the pins under `pin_dir` and removes everything that [`Self::seen`] returns, so that it returns later calls
    /// only.
    ///
    /// # Errors
    /// Fails like [`Self::seen`], or if this user may not write to the maps.
    pub fn forget_seen(pin_dir: &Path) -> Result<()> {
        let view = Self::open_for_writing(pin_dir)?;
        view.seen()?;
        clear::<SeenKey, SeenCalls>(&view.pins, SEEN)?;
        clear::<AnsweredKey, Noted>(&view.pins, ANSWERED)
    }
}

/// The names for which an address was answered, with the cgroup of the socket that sent the query.
type AnsweredNames = BTreeMap<[u64; 2], BTreeSet<(u64, String)>>;

/// Returns the names for which an address was answered to a cgroup, or if there are none, to any other.
fn names_of(names: &AnsweredNames, cgroup: u64, address: [u64; 2]) -> BTreeSet<String> {
    let all = names.get(&address).into_iter().flatten();
    let own = all.clone().filter(|(asker, _)| *asker == cgroup);
    let own: BTreeSet<String> = own.map(|(_, name)| name.clone()).collect();
    if own.is_empty() {
        all.map(|(_, name)| name.clone()).collect()
    } else {
        own
    }
}

/// Returns the addresses that were answered for a name that no rule lists, sorted.
pub(super) fn answered_addresses(pins: &Pins, name: &str) -> Result<Vec<IpAddr>> {
    let all = answered(pins)?.into_iter();
    let of_name = all.filter(|(_, names)| names.iter().any(|(_, known)| known == name));
    let addresses = of_name.map(|(key, _)| address_of(key));
    Ok(addresses.collect())
}

fn answered(pins: &Pins) -> Result<AnsweredNames> {
    let mut names = AnsweredNames::new();
    for (key, noted) in entries::<AnsweredKey, Noted>(pins, ANSWERED)? {
        let name = (key.cgroup, noted.text().collect());
        names.entry(key.address).or_default().insert(name);
    }
    Ok(names)
}

/// Returns the ids of the listed names for which each address was answered, also those that are no longer valid.
fn listed(pins: &Pins) -> Result<BTreeMap<[u64; 2], BTreeSet<u32>>> {
    let mut ids: BTreeMap<_, BTreeSet<u32>> = BTreeMap::new();
    for name in [LEARNED, LEARNED_BELOW] {
        for (address, names) in entries::<[u64; 2], LearnedNames>(pins, name)? {
            let used = names.entries.iter().map(|word| Learned(*word).id());
            ids.entry(address)
                .or_default()
                .extend(used.filter(|id| *id != 0));
        }
    }
    Ok(ids)
}
