//! The decisions about all ports for one source address, grouped into few rows. Pure.

use allowlist_common::judge::Decision;
use allowlist_common::verdict::Reason;

use super::Target;

/// One decision about packets from one source address, with all targets that have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The verdict, its reason and the service for these targets.
    pub decision: Decision,
    /// The targets with this decision, such as `tcp/443`, `udp/5000-5010`, `icmp` and `other`, or `any` for all.
    pub ports: Vec<String>,
}

/// Groups the targets in `decided` by their decision, in the order of each decision's first target. The decision of
/// targets that no service covers is last.
///
/// Consecutive ports become a range. The most frequent decision of protocols without ports is listed once, as `other`.
pub fn rows(decided: impl IntoIterator<Item = (Target, Decision)>) -> Vec<Row> {
    let mut kinds: Vec<(Decision, Vec<Span>)> = Vec::new();
    let mut current = 0;
    for (target, decision) in without_most_protocols(decided) {
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
        match spans.last_mut().and_then(|span| span.followed_by(target)) {
            Some(longer) => {
                spans.pop();
                spans.push(longer);
            }
            None => spans.push(Span {
                first: target,
                last: target,
            }),
        }
    }
    kinds.sort_by_key(|(decision, _)| decision.service == 0);
    let everything = everything();
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
#[derive(Clone, Copy, PartialEq, Eq)]
struct Span {
    first: Target,
    last: Target,
}

fn everything() -> [Span; 5] {
    let ports = |target: fn(u16) -> Target| Span {
        first: target(0),
        last: target(u16::MAX),
    };
    let one = |target| Span {
        first: target,
        last: target,
    };
    [
        ports(Target::Tcp),
        ports(Target::Udp),
        ports(Target::Sctp),
        one(Target::Icmp),
        one(Target::Other),
    ]
}

impl Span {
    /// Returns the span extended by `target` if `target` is the port after its last one, else `None`.
    fn followed_by(self, target: Target) -> Option<Self> {
        let is_next = match (self.last, target) {
            (Target::Tcp(last), Target::Tcp(next))
            | (Target::Udp(last), Target::Udp(next))
            | (Target::Sctp(last), Target::Sctp(next)) => last.checked_add(1) == Some(next),
            _ => false,
        };
        is_next.then_some(Self {
            last: target,
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
