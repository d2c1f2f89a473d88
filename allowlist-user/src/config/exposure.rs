//! Warnings about ports that a configuration opens or closes by accident: SSH, services open to everyone, and egress
//! rules that allow every destination.
//! Pure; does not know which programs listen on this host.

use std::collections::BTreeSet;

use allowlist_common::packet::{TCP, UDP};
use allowlist_policy::{Origin, Ports, Service, Snapshot, Verdict};
use ipnet::IpNet;

use super::Config;

const SSH: u16 = 22;

impl Config {
    /// Returns a warning if no service covers SSH and the default verdict drops SSH packets, otherwise `None`.
    pub fn ssh_warning(&self) -> Option<String> {
        let is_closed = self.rules.default == Verdict::Drop && !self.covers_ssh();
        is_closed.then(|| {
            format!(
                "SSH is closed: default = \"drop\", and no service covers tcp/{SSH}; add [services.ssh] with ports = [\"tcp/{SSH}\"], and allow the networks from which you log in"
            )
        })
    }

    /// Returns a note if no service covers SSH and the default verdict passes SSH packets, otherwise `None`. This is no
    /// warning, since another firewall may protect SSH.
    pub fn ssh_note(&self) -> Option<String> {
        let is_open = self.rules.default == Verdict::Pass
            && !self.policy.services.is_empty()
            && !self.covers_ssh();
        is_open.then(|| {
            format!(
                "SSH is allowed from every address: no service covers tcp/{SSH}, and default = \"pass\"; add [services.ssh] to restrict it to the networks from which you log in"
            )
        })
    }

    /// Returns a note if services cover some UDP ports, since these services also decide about fragments to the other
    /// ports; otherwise `None`.
    pub fn fragment_note(&self) -> Option<String> {
        let all = 1..=u16::MAX;
        let mut ports = self.policy.services.iter().flat_map(|one| &one.ports);
        let covers_some = ports.any(|ports| ports.is_of(UDP));
        let mut ports = self.policy.services.iter().flat_map(|one| &one.ports);
        let covers_all = ports.any(|ports| match ports {
            Ports::Udp(range) => *range == all,
            other => other.is_of(UDP),
        });
        let is_partly = self.rules.default == Verdict::Pass && covers_some && !covers_all;
        is_partly.then(|| {
            "later fragments of datagrams to uncovered UDP ports carry no port, so they are dropped (reason \"fragment\") unless a service with UDP ports allows their source; to receive such datagrams, add a service that covers the ports"
                .to_owned()
        })
    }

    /// Returns whether a service covers SSH on at least one filtered interface.
    fn covers_ssh(&self) -> bool {
        let is_filtered = |service: &Service| {
            self.interfaces.is_empty() || self.interfaces.iter().any(|name| service.is_on(name))
        };
        let covers = |ports: &Ports| ports.meets(TCP, &(SSH..=SSH));
        let mut services = self.policy.services.iter();
        services.any(|service| is_filtered(service) && service.ports.iter().any(covers))
    }

    /// Returns the source names of each service and each egress rule, with the first words of the warning if these
    /// sources together cover all addresses of a family.
    pub(super) fn source_users(&self) -> impl Iterator<Item = (String, &[String])> {
        let services = self.policy.services.iter().map(|service| {
            let open = format!("services.{} is open to everyone", service.name);
            (open, &*service.allow)
        });
        let egress = self.policy.egress.iter();
        let rules = egress.flat_map(|egress| &egress.rules).map(|rule| {
            let open = format!("egress.rules.{} allows every destination", rule.name);
            (open, &*rule.to)
        });
        services.chain(rules)
    }

    /// Returns warnings about services and egress rules whose lists cover all addresses of a family.
    ///
    /// Leaves out the prefixes in the configuration itself, which [`Config::warnings`] reports.
    pub fn everyone_warnings(&self, lists: &Snapshot) -> Vec<String> {
        let mut warnings = Vec::new();
        for (open, names) in self.source_users() {
            let allowed = || {
                let names = names.iter();
                names.filter_map(|name| Some((name, lists.get(name)?)))
            };
            let said: BTreeSet<IpNet> = names
                .iter()
                .filter_map(|name| match &self.policy.source(name)?.origin {
                    Origin::Prefixes(prefixes) => Some(prefixes),
                    _ => None,
                })
                .flatten()
                .copied()
                .collect();
            // Two halves cover the family too.
            let all: Vec<IpNet> = allowed().flat_map(|(_, feed)| feed.active()).collect();
            for everyone in IpNet::aggregate(&all) {
                if everyone.prefix_len() != 0 || said.contains(&everyone) {
                    continue;
                }
                let holder = allowed().find(|(_, feed)| {
                    let list: Vec<IpNet> = feed.active().collect();
                    IpNet::aggregate(&list).contains(&everyone)
                });
                warnings.push(match holder {
                    Some((name, _)) => {
                        format!("{open}: the list of sources.{name} covers {everyone}")
                    }
                    None => format!("{open}: its sources together cover {everyone}"),
                });
            }
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use expect_test::expect;
    use jiff::Timestamp;

    use super::*;
    use allowlist_policy::Feed;

    fn config(keys: &str, ports: &str) -> Config {
        let text = format!(
            "interfaces = ['eth0', 'eth1']\n{keys}\n[services.web]\nports = [{ports}]\nallow = ['own', 'list', 'more']\n\
             [sources.own]\nprefixes = ['203.0.113.0/24']\n\
             [sources.list]\nfile = 'list.txt'\n[sources.more]\nfile = 'more.txt'\n"
        );
        Config::parse(&text, Path::new("a.toml")).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn ssh() {
        for (keys, ports, is_closed, is_open) in [
            ("", "'tcp/443'", false, true),
            ("", "'udp/22', 'sctp/22'", false, true),
            ("", "'tcp/22'", false, false),
            ("", "'tcp/20-25'", false, false),
            ("", "'any'", false, false),
            ("", "'ip/tcp'", false, false),
            ("", "'ip/udp', 'vrrp'", false, true),
            ("default = 'drop'", "'tcp/443'", true, false),
            ("default = 'drop'", "'tcp/21', 'tcp/23-65535'", true, false),
            ("default = 'drop'", "'tcp/443', 'tcp/22'", false, false),
            ("default = 'drop'", "'any'", false, false),
        ] {
            let config = config(keys, ports);
            let found = (config.ssh_warning().is_some(), config.ssh_note().is_some());
            assert_eq!(found, (is_closed, is_open), "{keys} {ports}");
        }
    }

    #[test]
    fn fragments_of_uncovered_udp_ports() {
        for (keys, ports, is_said) in [
            ("", "'udp/53'", true),
            ("", "'tcp/443', 'udp/1-443'", true),
            ("", "'tcp/443', 'icmp', 'gre'", false),
            ("", "'udp/1-65535'", false),
            ("", "'ip/udp'", false),
            ("", "'any'", false),
            ("default = 'drop'", "'udp/53'", false),
        ] {
            let note = config(keys, ports).fragment_note();
            assert_eq!(note.is_some(), is_said, "{keys} {ports}");
        }
    }

    #[test]
    fn ssh_on_some_interface_is_enough() {
        for (limited, is_closed) in [("eth1", false), ("eth7", true)] {
            let mut config = config("default = 'drop'", "'tcp/22'");
            config.policy.services[0].interfaces = vec![limited.to_owned()];
            assert_eq!(config.ssh_warning().is_some(), is_closed, "{limited}");
        }
    }

    #[test]
    fn everyone() {
        let mut texts = String::new();
        for (list, more, count) in [
            ("198.51.100.0/24", "2001:db8::/32", 0),
            ("0.0.0.0/0", "2001:db8::/32", 1),
            ("0.0.0.0/1 128.0.0.0/1", "::/1", 1),
            ("0.0.0.0/0 ::/0", "::/0", 2),
            ("0.0.0.0/1", "128.0.0.0/1", 1),
        ] {
            let feed = |text: &str| {
                let prefixes = text.split(' ').map(|one| one.parse().expect("a prefix"));
                Feed::new(prefixes.collect(), Timestamp::UNIX_EPOCH).into()
            };
            let lists = [("list", list), ("more", more), ("own", "203.0.113.0/24")];
            let lists = lists.map(|(name, text)| (name.to_owned(), feed(text)));
            let found = config("", "'tcp/443'").everyone_warnings(&lists.into());
            assert_eq!(found.len(), count, "{list} and {more}: {found:?}");
            texts += &format!("{list} and {more}:\n");
            for warning in found {
                texts += &format!("    {warning}\n");
            }
        }
        expect![[r#"
            198.51.100.0/24 and 2001:db8::/32:
            0.0.0.0/0 and 2001:db8::/32:
                services.web is open to everyone: the list of sources.list covers 0.0.0.0/0
            0.0.0.0/1 128.0.0.0/1 and ::/1:
                services.web is open to everyone: the list of sources.list covers 0.0.0.0/0
            0.0.0.0/0 ::/0 and ::/0:
                services.web is open to everyone: the list of sources.list covers 0.0.0.0/0
                services.web is open to everyone: the list of sources.list covers ::/0
            0.0.0.0/1 and 128.0.0.0/1:
                services.web is open to everyone: its sources together cover 0.0.0.0/0
        "#]]
        .assert_eq(&texts);
    }

    /// Static prefixes are reported by `Config::warnings`, and not a second time by `everyone_warnings`.
    #[test]
    fn static_prefixes_are_reported_once() {
        let text = "[services.web]\nports = ['tcp/443']\nallow = ['all']\n[sources.all]\nprefixes = ['0.0.0.0/0']\n";
        let config = Config::parse(text, Path::new("a.toml")).expect("a configuration");
        let all = Feed::new(
            vec!["0.0.0.0/0".parse().expect("a prefix")],
            Timestamp::UNIX_EPOCH,
        );
        let lists = [("all".to_owned(), all.into())].into();
        assert_eq!(config.everyone_warnings(&lists), [""; 0]);
        let warnings = config.warnings();
        assert!(
            warnings
                .iter()
                .any(|one| one.starts_with("services.web") && one.contains("0.0.0.0/0")),
            "{warnings:?}"
        );
    }
}
