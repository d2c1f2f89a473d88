//! What another configuration changes, a line each: for whoever asked for it. Pure.

use std::collections::BTreeMap;

use super::Config;
use crate::policy::{Service, Source};

/// What `new` has other than `old`.
pub fn differences(old: &Config, new: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    if old.interfaces != new.interfaces {
        lines.push(format!(
            "interfaces: {}, before {}",
            new.interfaces.join(" "),
            old.interfaces.join(" ")
        ));
    }
    let mut changed = |key: &str, is_other: bool| {
        if is_other {
            lines.push(format!("{key}: changed"));
        }
    };
    changed("mode", old.mode != new.mode);
    changed("default", old.rules.default != new.rules.default);
    changed(
        "return_traffic",
        old.rules.return_traffic != new.rules.return_traffic,
    );
    changed("keep", old.rules.keep != new.rules.keep);
    changed("attach_mode", old.attach != new.attach);
    changed("lookup", old.rules.lookup != new.rules.lookup);
    changed("max_prefixes", old.max_prefixes != new.max_prefixes);
    changed("max_flows", old.max_flows != new.max_flows);
    changed("on_change", old.hook != new.hook);
    changed("history_size", old.history_bytes != new.history_bytes);
    changed("log_size", old.log_bytes != new.log_bytes);
    changed("at_start", old.at_start != new.at_start);
    changed("control_group", old.control_group != new.control_group);
    let services = |config: &Config| -> BTreeMap<String, Service> {
        let named = |service: &Service| (service.name.clone(), service.clone());
        config.policy.services.iter().map(named).collect()
    };
    compare("services", &services(old), &services(new), &mut lines);
    let sources = |config: &Config| -> BTreeMap<String, Source> {
        let named = |source: &Source| (source.name.clone(), source.clone());
        config.policy.sources.iter().map(named).collect()
    };
    compare("sources", &sources(old), &sources(new), &mut lines);
    if lines.is_empty() {
        lines.push("nothing but words is other than before".to_owned());
    }
    lines
}

fn compare<T: PartialEq>(
    table: &str,
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
    lines: &mut Vec<String>,
) {
    for (name, item) in new {
        match old.get(name) {
            None => lines.push(format!("{table}.{name}: new")),
            Some(before) if before != item => lines.push(format!("{table}.{name}: changed")),
            Some(_) => {}
        }
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        lines.push(format!("{table}.{name}: gone"));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const OLD: &str = "interfaces = ['eth0']\n[services.web]\nports = ['tcp/443']\nallow = ['a']\n\
                       [services.ssh]\nports = ['tcp/22']\nallow = ['a']\n[sources.a]\nprefixes = ['192.0.2.0/24']\n";

    #[track_caller]
    fn check(new: &str, expected: &[&str]) {
        let parse = |text| Config::parse(text, Path::new("x")).expect("a configuration");
        assert_eq!(differences(&parse(OLD), &parse(new)), expected, "{new}");
    }

    #[test]
    fn what_changed() {
        check(OLD, &["nothing but words is other than before"]);
        check(
            &format!("# why\n{OLD}"),
            &["nothing but words is other than before"],
        );
        check(
            &OLD.replace("'eth0'", "'eth0', 'eth1'"),
            &["interfaces: eth0 eth1, before eth0"],
        );
        check(
            &format!("mode = 'observe'\ndefault = 'drop'\nat_start = 'drop'\n{OLD}"),
            &["mode: changed", "default: changed", "at_start: changed"],
        );
        check(
            &OLD.replace("services.ssh", "services.shell"),
            &["services.shell: new", "services.ssh: gone"],
        );
        check(
            &OLD.replace("tcp/443", "tcp/8443")
                .replace("192.0.2.0/24", "192.0.2.0/25"),
            &["services.web: changed", "sources.a: changed"],
        );
    }
}
