//! The decisions about all ports for one address, grouped into few rows. Pure.

use allowlist_common::egress::{EgressDecision, EgressReason};
use allowlist_common::judge::Decision;
use allowlist_common::verdict::Reason;

use super::Target;

/// One decision about packets from one source address, or on calls to one destination, with all targets that have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row<D = Decision> {
    /// The verdict and its reason for these targets, and the service or the rules that cover them.
    pub decision: D,
    /// The targets with this decision, such as `tcp/443`, `udp/5000-5010`, `icmp` and `other`, or `any` for all.
    pub ports: Vec<String>,
}

/// Groups the targets in `decided` by their decision, in the order of each decision's first target. The decision of
/// targets that no service covers is last.
///
/// Consecutive ports become a range. The most frequent decision of protocols without ports is listed once, as `other`.
pub fn rows(decided: impl IntoIterator<Item = (Target, Decision)>) -> Vec<Row> {
    let decided = without_most_protocols(decided).into_iter();
    let decided = decided.map(|(target, decision)| (Span::of(target), decision));
    let everything = [
        Span::ports(Target::Tcp),
        Span::ports(Target::Udp),
        Span::ports(Target::Sctp),
        Span::of(Target::Icmp),
        Span::of(Target::Other),
    ];
    grouped(decided, |decision| decision.service == 0, &everything)
}

/// Groups ranges of targets by the decision on calls to one destination, in the order of each decision's first target.
/// The decision on targets that no rule covers is last.
pub(super) fn call_rows(
    decided: impl IntoIterator<Item = (Span, EgressDecision)>,
) -> Vec<Row<EgressDecision>> {
    let everything = [
        Span::ports(Target::Tcp),
        Span::ports(Target::Udp),
        Span::of(Target::Icmp),
    ];
    grouped(decided, is_not_covered, &everything)
}

/// Returns whether no rule covers the port of a call that a rule could allow.
pub fn is_not_covered(decision: &EgressDecision) -> bool {
    let could_be = matches!(
        decision.reason,
        EgressReason::Default | EgressReason::ClosedRange
    );
    could_be && decision.rules == [0; 2]
}

/// Groups ranges of targets by their decision. Those with a decision for which `is_rest` is true are last. `everything`
/// has all targets, which become `any` if they have one decision.
fn grouped<D: Copy + PartialEq>(
    decided: impl IntoIterator<Item = (Span, D)>,
    is_rest: impl Fn(&D) -> bool,
    everything: &[Span],
) -> Vec<Row<D>> {
    let mut kinds: Vec<(D, Vec<Span>)> = Vec::new();
    let mut current = 0;
    for (next, decision) in decided {
        // Neighbours usually have the same decision.
        if kinds
            .get(current)
            .is_none_or(|(known, _)| *known != decision)
        {
            let known = kinds.iter().position(|(known, _)| *known == decision);
            current = known.unwrap_or_else(|| {
                kinds.push((decision, Vec::new()));
                kinds.len() - 1
            });
        }
        let spans = &mut kinds[current].1;
        match spans.last_mut().and_then(|span| span.joined(next)) {
            Some(longer) => {
                spans.pop();
                spans.push(longer);
            }
            None => spans.push(next),
        }
    }
    kinds.sort_by_key(|(decision, _)| is_rest(decision));
    // With more than one decision, all ports and `other` are not all protocols.
    let is_single = kinds.len() == 1;
    kinds
        .into_iter()
        .map(|(decision, spans)| Row {
            decision,
            ports: if is_single && spans == everything {
                vec!["any".to_owned()]
            } else {
                spans.into_iter().map(Span::text).collect()
            },
        })
        .collect()
}

/// Replaces the protocols of the most frequent decision by one `other`, and returns the result.
///
/// Protocols that pass under every policy (IGMP) are omitted.
fn without_most_protocols(
    decided: impl IntoIterator<Item = (Target, Decision)>,
) -> Vec<(Target, Decision)> {
    let mut decided: Vec<_> = decided.into_iter().collect();
    let mut counts: Vec<(Decision, usize)> = Vec::new();
    for (target, decision) in &decided {
        if !matches!(target, Target::Protocol(_)) {
            continue;
        }
        match counts.iter_mut().find(|(known, _)| known == decision) {
            Some((_, count)) => *count += 1,
            None => counts.push((*decision, 1)),
        }
    }
    let Some(most) = counts
        .iter()
        .map(|(_, count)| *count)
        .max()
        .filter(|most| *most > 1)
    else {
        return decided; // a single protocol
    };
    let most = counts.iter().find(|(_, count)| *count == most);
    let most = most.map(|(decision, _)| *decision);
    let mut has_other = false;
    decided.retain_mut(|(target, decision)| {
        if !matches!(target, Target::Protocol(_)) {
            return true;
        }
        if decision.reason == Reason::Multicast {
            return false;
        }
        if Some(*decision) != most {
            return true;
        }
        *target = Target::Other;
        !std::mem::replace(&mut has_other, true)
    });
    decided
}

/// A range of consecutive ports of one protocol, or a single target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    first: Target,
    last: Target,
}

impl Span {
    /// Returns the span of one target.
    pub(super) const fn of(target: Target) -> Self {
        Self {
            first: target,
            last: target,
        }
    }

    /// Returns the span of all ports of a protocol.
    fn ports(target: fn(u16) -> Target) -> Self {
        Self {
            first: target(0),
            last: target(u16::MAX),
        }
    }

    /// Returns the first target.
    pub(super) const fn first(self) -> Target {
        self.first
    }

    /// Returns the span extended by `next` if `next` begins with the port after its last one, else `None`.
    pub(super) fn joined(self, next: Self) -> Option<Self> {
        let is_next = match (self.last, next.first) {
            (Target::Tcp(last), Target::Tcp(next))
            | (Target::Udp(last), Target::Udp(next))
            | (Target::Sctp(last), Target::Sctp(next)) => last.checked_add(1) == Some(next),
            _ => false,
        };
        is_next.then_some(Self {
            last: next.last,
            ..self
        })
    }

    fn text(self) -> String {
        match (self.first, self.last) {
            (first, last) if first == last => first.to_string(),
            (first, Target::Tcp(last) | Target::Udp(last) | Target::Sctp(last)) => {
                format!("{first}-{last}")
            }
            (first, _) => first.to_string(),
        }
    }
}
