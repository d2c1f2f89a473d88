//! Records, for `allowlist learn`, the destinations that programs used and that no rule allows, and the names that they
//! queried before.
//!
//! Only describes: no decision depends on it.

use allowlist_common::abi::{AnsweredKey, PackedCall, SeenCalls, SeenKey};
use allowlist_common::dns::Noted;
use allowlist_common::egress::{Call, transport};
use aya_ebpf::helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id};

use crate::count::increment;
use crate::maps::{ANSWERED, SEEN};

/// The flag of a map update that fails if the key exists.
const NO_EXIST: u64 = 1;

/// Records a judged call, made at `now`, if no rule allows it.
#[inline(always)]
pub(crate) fn record(call: &PackedCall, now: u64) {
    if call.is_unlisted() {
        let [high, low] = call.destination;
        add(high, low, call.properties, now);
    }
}

/// VERIFIER: a separate function with numbers as arguments, because it is a cold path, and so that the path of an
/// allowed call stores nothing to the stack.
#[inline(never)]
fn add(high: u64, low: u64, properties: u64, now: u64) {
    let key = SeenKey {
        // SAFETY: has no arguments.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        address: [high, low],
        endpoint: SeenKey::endpoint_of(
            transport((properties >> 16) as u32 & 0xffff),
            properties as u16,
        ),
    };
    if SEEN.get_ptr(key).is_none() {
        let mut seen = SeenCalls {
            first: now,
            ..SeenCalls::default()
        };
        for (level, id) in (1..).zip(&mut seen.levels) {
            // SAFETY: has no pointer arguments.
            *id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        }
        let _ = SEEN.insert(key, seen, NO_EXIST); // fails if another CPU was faster, or under contention
    }
    let Some(seen) = SEEN.get_ptr_mut(key) else {
        return;
    };
    // SAFETY: the map lookup returned the pointer; every program changes the value by atomic additions and single
    // stores only.
    unsafe {
        (&raw mut (*seen).last).write_volatile(now);
        let calls = &raw mut (*seen).calls;
        match properties >> 32 & 0xff {
            call if call == Call::Connect as u64 => increment(&mut (*calls)[0]),
            call if call == Call::Probe as u64 => increment(&mut (*calls)[1]),
            _ => increment(&mut (*calls)[2]),
        }
    }
}

/// Records that a resolver answered `address` for a name that no rule lists, to a socket of `cgroup`.
///
/// VERIFIER: a separate function, so that the paths through it are not multiplied by those of its caller.
#[inline(never)]
pub(crate) fn answered(address: &[u64; 2], cgroup: u64, noted: &Noted) {
    let key = AnsweredKey {
        cgroup,
        address: *address,
        hash: noted.hash.into(),
    };
    // A lookup marks the entry as recently used, and is cheaper than an insertion.
    if ANSWERED.get_ptr(key).is_none() {
        let _ = ANSWERED.insert(key, noted, 0); // fails under contention; the name is then not proposed
    }
}
