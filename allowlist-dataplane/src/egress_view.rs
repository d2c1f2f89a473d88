//! Reads the counters and the attachments of the egress policy from its pinned maps and links.

use allowlist_common::abi::{
    self, ANSWER_COUNTERS, AnswerCount, AnswerCounters, Calls, EGRESS_COUNTERS, EGRESS_MATCHES,
    EGRESS_RULES, EgressCounters, MAX_MATCHES, MAX_NAMES, MAX_SERVICE_COUNTS, NAME_CALLS,
    RuleCalls,
};
use allowlist_common::egress::{Call, EgressReason};
use allowlist_common::verdict::Verdict;
use aya::maps::PerCpuArray;

use super::View;
use super::egress_links::{PROGRAMS, attached_cgroups};
use super::name_maps::{LearnedAddress, learned_addresses};
use super::view::sums;
use crate::error::Result;

/// The counters of the egress policy, and whether its programs are attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressCounted {
    /// The number of calls by kind, verdict and reason, since the policy was first active.
    pub calls: Vec<(Call, Verdict, EgressReason, u64)>,
    /// The calls to allowed destinations, indexed by match id ([`MAX_MATCHES`]).
    pub matches: Vec<Calls>,
    /// The calls to ports that rules cover, indexed by the counter id of the rules ([`MAX_SERVICE_COUNTS`]).
    pub rules: Vec<RuleCalls>,
    /// The number of cgroups to which every program of the policy is attached.
    pub cgroups: usize,
    /// What happened to queries, answers and their addresses.
    pub answers: Vec<(AnswerCount, u64)>,
    /// The calls that passed because of a name, indexed by the id of the name ([`MAX_NAMES`]).
    pub names: Vec<Calls>,
    /// The addresses that were learnt for names and are still allowed, sorted by the id of the name.
    pub learned: Vec<LearnedAddress>,
}

impl View {
    /// Returns the counters of the egress policy; `None` if its maps are not pinned.
    ///
    /// Reads the counters of the match ids below `matches`, of the counter ids of rules below `rules`, and of the ids of
    /// names below `names`.
    pub fn egress(
        &self,
        matches: usize,
        rules: usize,
        names: usize,
    ) -> Result<Option<EgressCounted>> {
        for name in abi::EGRESS_PINNED {
            if !self.has(name)? {
                return Ok(None);
            }
        }
        let counters: PerCpuArray<_, EgressCounters> =
            self.pins.open_map(EGRESS_COUNTERS)?.try_into()?;
        let of_cpus = counters.get(&0, 0)?;
        let mut calls = Vec::new();
        for call in Call::ALL {
            for verdict in Verdict::ALL {
                for reason in EgressReason::ALL {
                    let one = |counters: &EgressCounters| counters.get(call, verdict, reason);
                    calls.push((call, verdict, reason, of_cpus.iter().map(one).sum()));
                }
            }
        }
        let by_match: PerCpuArray<_, Calls> = self.pins.open_map(EGRESS_MATCHES)?.try_into()?;
        let by_rules: PerCpuArray<_, RuleCalls> = self.pins.open_map(EGRESS_RULES)?.try_into()?;
        let by_name: PerCpuArray<_, Calls> = self.pins.open_map(NAME_CALLS)?.try_into()?;
        Ok(Some(EgressCounted {
            calls,
            matches: sums(&by_match, matches, MAX_MATCHES, Calls::plus)?,
            rules: sums(&by_rules, rules, MAX_SERVICE_COUNTS, RuleCalls::plus)?,
            cgroups: self.egress_cgroups()?,
            answers: self.answers()?,
            names: sums(&by_name, names, MAX_NAMES as u32, Calls::plus)?,
            learned: learned_addresses(&self.pins)?,
        }))
    }

    fn answers(&self) -> Result<Vec<(AnswerCount, u64)>> {
        let counters: PerCpuArray<_, AnswerCounters> =
            self.pins.open_map(ANSWER_COUNTERS)?.try_into()?;
        let of_cpus = counters.get(&0, 0)?;
        let sum = |count| of_cpus.iter().map(|one| one.get(count)).sum();
        Ok(AnswerCount::ALL.map(|count| (count, sum(count))).to_vec())
    }

    /// Returns the number of cgroups to which every program of the egress policy is attached.
    fn egress_cgroups(&self) -> Result<usize> {
        let mut attached = std::collections::BTreeMap::<usize, usize>::new();
        for (place, _) in attached_cgroups(self.pins.folder())? {
            *attached.entry(place).or_default() += 1;
        }
        let whole = attached.values().filter(|links| **links >= PROGRAMS);
        Ok(whole.count())
    }
}
