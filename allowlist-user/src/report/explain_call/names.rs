//! Which rules list a name, and which of their names is meant if none does. Pure.

use allowlist_policy::hints::nearest;

use crate::generation_meta::{GenerationMeta, covers};

/// A rule that lists a name, by one of its sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) rule: String,
    pub(super) source: String,
    /// The name or the wildcard that the source lists.
    pub(super) pattern: String,
    /// Whether the addresses that resolvers answer are allowed, and not only those that the daemon polls.
    pub(super) believes_answers: bool,
    pub(super) ports: Vec<String>,
    /// The units that the rule is limited to; empty for all programs.
    pub(super) units: Vec<String>,
}

/// Returns the rules that list a name, sorted by rule, in the order of their sources.
pub(super) fn listings(name: &str, meta: &GenerationMeta) -> Vec<Listing> {
    let mut found = Vec::new();
    for (rule, of_rule) in &meta.egress_rules {
        for source in &of_rule.to {
            let names = meta.sources.get(source);
            let Some(names) = names.and_then(|source| source.names.as_ref()) else {
                continue;
            };
            if let Some(pattern) = names.covering(name) {
                found.push(Listing {
                    rule: rule.clone(),
                    source: source.clone(),
                    pattern: pattern.to_owned(),
                    believes_answers: names.believes_answers,
                    ports: of_rule.ports.clone(),
                    units: of_rule.units.clone(),
                });
            }
        }
    }
    found
}

/// Returns a clause about the name or wildcard in the rules that is probably meant by a name that no rule lists; `None` if
/// there is none.
pub(super) fn hint(name: &str, meta: &GenerationMeta) -> Option<String> {
    let mut listed: Vec<(&str, &str)> = Vec::new();
    for (rule, of_rule) in &meta.egress_rules {
        let sources = of_rule
            .to
            .iter()
            .filter_map(|source| meta.sources.get(source));
        let names = sources.filter_map(|source| source.names.as_ref());
        let patterns = names.flat_map(|names| &names.patterns);
        listed.extend(patterns.map(|pattern| (rule.as_str(), pattern.as_str())));
    }
    let is_below = |name: &str, outer: &str| covers(&format!("*.{outer}"), name);
    let find = |is_meant: &dyn Fn(&str) -> bool| {
        let mut all = listed.iter().copied();
        all.find(|(_, pattern)| is_meant(pattern))
    };
    if let Some((rule, pattern)) = find(&|pattern| pattern.strip_prefix("*.") == Some(name)) {
        return Some(format!(
            "rule {rule} lists {pattern}, which does not include {name} itself"
        ));
    }
    if let Some((rule, pattern)) = find(&|pattern| is_below(name, pattern)) {
        return Some(format!(
            "rule {rule} lists {pattern}, which does not include the names below it, as *.{pattern} does"
        ));
    }
    if let Some((rule, pattern)) = find(&|pattern| is_below(pattern, name)) {
        return Some(format!("rule {rule} lists {pattern}, which is below it"));
    }
    let patterns: Vec<&str> = listed.iter().map(|(_, pattern)| *pattern).collect();
    let near = nearest(name, &patterns)?;
    let (rule, pattern) = find(&|pattern| pattern == near)?;
    Some(format!("rule {rule} lists {pattern}; did you mean that?"))
}
