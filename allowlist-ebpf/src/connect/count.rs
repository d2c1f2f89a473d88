//! Counters of calls: by kind, verdict and reason; by match id; by name; by rules. Counters of answers.
//!
//! Invariant: every counter is per CPU. A program of a cgroup can be preempted by another one on the same CPU, so
//! counters are incremented atomically.

use core::arch::asm;

use allowlist_common::abi::{AnswerCount, Calls};
use allowlist_common::egress::{Call, EgressDecision};
use allowlist_common::verdict::Verdict;

use crate::maps::{ANSWER_COUNTERS, EGRESS_COUNTERS, EGRESS_MATCHES, EGRESS_RULES, NAME_CALLS};

/// Counts a judged call, made at `now`: the only place that does.
#[inline(always)]
pub(crate) fn record(call: Call, decision: &EgressDecision, now: u64) {
    if let Some(counters) = EGRESS_COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's copy; every program changes it by atomic additions only.
        increment(unsafe { (*counters).cell(call, decision.verdict, decision.reason) });
    }
    if decision.match_id != 0
        && let Some(calls) = EGRESS_MATCHES.get_ptr_mut(decision.match_id)
    {
        // SAFETY: as above.
        add(unsafe { &mut *calls }, now);
    }
    if decision.name != 0
        && let Some(calls) = NAME_CALLS.get_ptr_mut(decision.name)
    {
        // SAFETY: as above.
        add(unsafe { &mut *calls }, now);
    }
    let [by_path, by_name] = decision.rules;
    count_rules(by_path, decision.verdict, now);
    if by_name != by_path {
        count_rules(by_name, decision.verdict, now);
    }
}

#[inline(always)]
fn count_rules(rules: u32, verdict: Verdict, now: u64) {
    if rules != 0
        && let Some(calls) = EGRESS_RULES.get_ptr_mut(rules)
    {
        // SAFETY: this CPU's copy; every program changes it by atomic additions only.
        let calls = unsafe { &mut *calls };
        match verdict {
            Verdict::Pass => add(&mut calls.passed, now),
            Verdict::Drop => add(&mut calls.refused, now),
        }
    }
}

/// Counts a query, an answer, or an address in an answer.
#[inline(always)]
pub(crate) fn answers(count: AnswerCount) {
    if let Some(counters) = ANSWER_COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's copy; every program changes it by atomic additions only.
        increment(unsafe { (*counters).cell(count) });
    }
}

#[inline(always)]
fn add(calls: &mut Calls, now: u64) {
    increment(&mut calls.count);
    calls.last = now;
}

/// Adds 1 atomically.
///
/// The compiler offers no atomic addition for this target, whose instruction set has one.
#[inline(always)]
pub(crate) fn increment(counter: &mut u64) {
    // SAFETY: an aligned 8-byte value in a map; the instruction changes nothing else.
    unsafe {
        asm!(
            "lock *(u64 *)({counter} + 0) += {one}",
            counter = in(reg) core::ptr::from_mut(counter),
            one = in(reg) 1_u64,
        );
    }
}

/// Replaces a word atomically if it has the value `old`; returns whether it had.
#[inline(always)]
pub(crate) fn replace(word: *mut u64, old: u64, new: u64) -> bool {
    let found: u64;
    // SAFETY: an aligned 8-byte value in a map; the instruction changes nothing else.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") old => found,
        );
    }
    found == old
}
