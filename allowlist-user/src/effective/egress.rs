//! Compares the egress policies of two states.

use std::fmt::Display;

use allowlist_policy::{Egress, EgressRule};

use super::{EffectiveState, Lines, or_none};

/// Adds a line for each difference between the egress policies.
pub(super) fn compare(old: &EffectiveState, new: &EffectiveState, lines: &mut Lines) {
    let (before, after) = (old.policy.egress.as_ref(), new.policy.egress.as_ref());
    match (before, after) {
        (None, None) => {}
        (None, Some(egress)) => {
            lines.push(format!(
                "egress: added, mode {}, default {}",
                new.egress_mode.name(),
                default(egress)
            ));
            rules(&[], &egress.rules, lines);
        }
        (Some(_), None) => lines.push("egress: removed".to_owned()),
        (Some(before), Some(after)) => {
            let mode = |state: &EffectiveState, configured: &Egress| {
                let by = if state.egress_mode == configured.mode {
                    "by the configuration"
                } else {
                    "by command"
                };
                format!("{} {by}", state.egress_mode.name())
            };
            lines.value(
                "egress mode",
                &mode(old, before),
                &mode(new, after),
                String::clone,
            );
            settings(before, after, lines);
            rules(&before.rules, &after.rules, lines);
        }
    }
}

fn settings(old: &Egress, new: &Egress, lines: &mut Lines) {
    // Exhaustive, so that the compiler reports a new key that is not compared.
    let Egress {
        mode: _,
        default: _,
        errno,
        resolvers,
        time_servers,
        linger,
        cgroups,
        rules: _,
    } = old;
    lines.value("egress default", &default(old), &default(new), |word| {
        (*word).to_owned()
    });
    lines.word("egress errno", errno, &new.errno);
    lines.set("egress resolvers", resolvers, &new.resolvers);
    lines.set("egress time_servers", time_servers, &new.time_servers);
    lines.value("egress linger", linger, &new.linger, super::time);
    let paths = |paths: &[std::path::PathBuf]| -> Vec<String> {
        paths
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    };
    lines.set("egress cgroups", &paths(cgroups), &paths(&new.cgroups));
}

/// Returns the default verdict of the egress policy as the configuration spells it.
fn default(egress: &Egress) -> &'static str {
    match egress.default {
        allowlist_policy::Verdict::Pass => "pass",
        allowlist_policy::Verdict::Drop => "refuse",
    }
}

fn rules(old: &[EgressRule], new: &[EgressRule], lines: &mut Lines) {
    let find = |rules: &[EgressRule], name: &str| -> Option<EgressRule> {
        rules.iter().find(|rule| rule.name == name).cloned()
    };
    for rule in old.iter().filter(|rule| find(new, &rule.name).is_none()) {
        lines.push(format!("egress rule {}: removed", rule.name));
    }
    for rule in new {
        let Some(before) = find(old, &rule.name) else {
            let units = if rule.units.is_empty() {
                "all programs".to_owned()
            } else {
                rule.units.join(" ")
            };
            lines.push(format!(
                "egress rule {}: added, {units} may reach {} on {}",
                rule.name,
                rule.to.join(" "),
                words(&rule.ports)
            ));
            continue;
        };
        let key = |key: &str| format!("egress rule {}: {key}", rule.name);
        lines.set(&key("to"), &before.to, &rule.to);
        lines.set(&key("ports"), &before.ports, &rule.ports);
        lines.set(&key("units"), &before.units, &rule.units);
    }
}

fn words<T: Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    or_none(items.join(" "))
}
