//! The servers on which this host itself depends, and which an egress policy may refuse: directory servers for log-ins,
//! file servers, the proxy, and resolvers by TLS.
//!
//! `read` finds them in the usual files, `warnings` compares them with the rules. A file that cannot be read has none.

use std::net::IpAddr;
use std::path::Path;

use allowlist_common::packet::TCP;
use allowlist_files::bounded::Open;
use allowlist_policy::{Egress, Origin, Ports, Snapshot, Source, Verdict};
use url::{Host, Url};

use crate::config::Config;

/// The maximum size of a file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// The files that name directory servers (sssd.conf(5), sssd-ldap(5), ldap.conf(5), nslcd.conf(5)).
const DIRECTORY_FILES: [&str; 4] = [
    "/etc/sssd/sssd.conf",
    "/etc/ldap/ldap.conf",
    "/etc/openldap/ldap.conf",
    "/etc/nslcd.conf",
];
/// The keys in [`DIRECTORY_FILES`], in lower case, whose values are addresses of directory servers.
const DIRECTORY_KEYS: [&str; 6] = [
    "ldap_uri",
    "ldap_backup_uri",
    "uri",
    "ad_server",
    "ipa_server",
    "krb5_server",
];
/// The mounted file systems (proc(5), `/proc/pid/mounts`).
const MOUNTS: &str = "/proc/self/mounts";
/// The file with the environment of log-ins (environment(5)).
const ENVIRONMENT: &str = "/etc/environment";
/// The variables that name a proxy.
const PROXY_VARIABLES: [&str; 3] = ["https_proxy", "http_proxy", "all_proxy"];
/// The configuration of systemd-resolved (resolved.conf(5)).
const RESOLVED: &str = "/etc/systemd/resolved.conf";
/// The port of DNS over TLS (RFC 7858, 3.1).
const DNS_OVER_TLS: u16 = 853;

/// A server that this host depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Dependency {
    /// What needs it, as the subject of a message.
    user: &'static str,
    /// The file or variable that names it.
    named_by: String,
    /// A host name in lower case, or an address.
    host: Host,
    port: u16,
}

/// Returns a warning for each server that this host depends on and that no rule of the egress policy allows; none if the
/// policy refuses nothing.
pub(super) fn warnings(config: &Config, lists: &Snapshot) -> Vec<String> {
    let Some(egress) = &config.policy.egress else {
        return Vec::new();
    };
    if egress.default == Verdict::Pass {
        return Vec::new();
    }
    let mut warnings: Vec<String> = read()
        .iter()
        .filter(|one| !is_allowed(one, egress, &config.policy.sources, lists))
        .map(warning)
        .collect();
    let uses_tls = text(RESOLVED).is_some_and(|text| has_dns_over_tls(&text));
    if uses_tls
        && !egress
            .resolvers
            .iter()
            .any(|one| one.port() == DNS_OVER_TLS)
    {
        warnings.push(format!(
            "egress: systemd-resolved uses DNS over TLS ({RESOLVED}), but no entry of `resolvers` has the port {DNS_OVER_TLS}, so its queries are refused; add its servers, such as \"192.0.2.53:{DNS_OVER_TLS}\", and \"127.0.0.53\", whose answers to programs are read"
        ));
    }
    warnings
}

fn warning(dependency: &Dependency) -> String {
    let Dependency {
        user,
        named_by,
        host,
        port,
    } = dependency;
    let key = match host {
        Host::Domain(name) => format!("names = [\"{name}\"]"),
        Host::Ipv4(address) => format!("prefixes = [\"{address}/32\"]"),
        Host::Ipv6(address) => format!("prefixes = [\"{address}/128\"]"),
    };
    format!(
        "egress: no rule allows {host} on tcp/{port}, which {user} by {named_by}; add a rule with ports = [\"tcp/{port}\"] and a source with {key}"
    )
}

/// Returns the servers that this host depends on, without repetitions.
fn read() -> Vec<Dependency> {
    let mut found = Vec::new();
    for path in DIRECTORY_FILES {
        found.extend(directory_servers(path, &text(path).unwrap_or_default()));
    }
    found.extend(file_servers(&text(MOUNTS).unwrap_or_default()));
    found.extend(proxies(ENVIRONMENT, &text(ENVIRONMENT).unwrap_or_default()));
    for (name, value) in std::env::vars() {
        found.extend(proxy(&format!("the variable {name}"), &name, &value));
    }
    let mut distinct: Vec<Dependency> = Vec::new();
    for one in found {
        let is_known = |known: &Dependency| (&known.host, known.port) == (&one.host, one.port);
        if !distinct.iter().any(is_known) {
            distinct.push(one);
        }
    }
    distinct
}

fn text(path: &str) -> Option<String> {
    let bytes = Open::configured(MAX_BYTES).read(Path::new(path)).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the directory servers in a file of lines such as `ldap_uri = ldaps://a.example, ldap://b.example` or
/// `URI ldap://a.example`.
fn directory_servers(path: &str, text: &str) -> Vec<Dependency> {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with(['#', ';']));
    let values = lines.filter_map(|line| {
        let (key, value) = line.split_once(|c: char| c == '=' || c.is_whitespace())?;
        let key = key.trim().to_ascii_lowercase();
        DIRECTORY_KEYS.contains(&&*key).then_some((key, value))
    });
    let mut found = Vec::new();
    for (key, value) in values {
        let words = value.split(|c: char| c == ',' || c == '=' || c.is_whitespace());
        for word in words.filter(|word| !word.is_empty()) {
            let default = if key == "krb5_server" { 88 } else { 389 };
            let server = match Url::parse(word) {
                Ok(url) if url.scheme() == "ldaps" => host_of(&url, 636),
                Ok(url) if url.scheme() == "ldap" => host_of(&url, 389),
                // A name or address without a scheme; `_srv_` stands for discovery by DNS.
                _ if !word.contains("://") && word.contains(['.', ':']) => {
                    let url = Url::parse(&format!("ldap://{word}")).ok();
                    url.and_then(|url| host_of(&url, default))
                }
                _ => None,
            };
            found.extend(server.map(|(host, port)| Dependency {
                user: "log-ins need",
                named_by: path.to_owned(),
                host,
                port,
            }));
        }
    }
    found
}

fn host_of(url: &Url, default: u16) -> Option<(Host, u16)> {
    // A URL with a scheme that is not of the web has its host as written.
    let host = Host::parse(url.host_str()?).ok()?;
    Some((host, url.port().unwrap_or(default)))
}

/// Returns the servers of network file systems in the lines of a `mounts` file, by the address that the kernel uses.
fn file_servers(mounts: &str) -> Vec<Dependency> {
    let servers = mounts.lines().filter_map(|line| {
        // Fields: device, mount point, type, options.
        let mut fields = line.split(' ');
        let (point, kind) = (fields.nth(1)?, fields.next()?);
        let options = fields.next()?;
        let default = match kind {
            "nfs" | "nfs4" => 2049,
            "cifs" | "smb3" => 445,
            _ => return None,
        };
        let value = |key: &str| options.split(',').find_map(|one| one.strip_prefix(key));
        let address: IpAddr = value("addr=")?.parse().ok()?;
        let port = value("port=")
            .and_then(|port| port.parse().ok())
            .filter(|port| *port != 0);
        Some(Dependency {
            user: "the kernel needs",
            named_by: format!("the mount of {point}"),
            host: match address {
                IpAddr::V4(address) => Host::Ipv4(address),
                IpAddr::V6(address) => Host::Ipv6(address),
            },
            port: port.unwrap_or(default),
        })
    });
    servers.collect()
}

/// Returns the proxies in lines such as `https_proxy="http://proxy.example:3128"`.
fn proxies(path: &str, text: &str) -> Vec<Dependency> {
    let lines = text.lines().filter_map(|line| line.trim().split_once('='));
    lines
        .filter_map(|(name, value)| {
            let name = name.trim_start_matches("export ").trim();
            proxy(path, name, value.trim().trim_matches(['"', '\'']))
        })
        .collect()
}

/// Returns the proxy that a variable names; `None` for other variables.
fn proxy(named_by: &str, name: &str, value: &str) -> Option<Dependency> {
    if !PROXY_VARIABLES.contains(&&*name.to_ascii_lowercase()) {
        return None;
    }
    let url = Url::parse(value)
        .or_else(|_| Url::parse(&format!("http://{value}")))
        .ok()?;
    let port = url.port_or_known_default().unwrap_or(1080);
    let (host, _) = host_of(&url, port)?;
    Some(Dependency {
        user: "programs use as their proxy",
        named_by: named_by.to_owned(),
        host,
        port,
    })
}

/// Returns whether the configuration of systemd-resolved turns on DNS over TLS, with or without a fallback.
fn has_dns_over_tls(text: &str) -> bool {
    let mut lines = text.lines().filter_map(|line| line.trim().split_once('='));
    lines
        .rfind(|(key, _)| key.trim() == "DNSOverTLS")
        .is_some_and(|(_, value)| !matches!(value.trim(), "" | "no" | "false" | "off" | "0"))
}

/// Returns whether a rule, for all programs or for some units, allows the server: by its name, or by an active prefix
/// of its address.
fn is_allowed(
    dependency: &Dependency,
    egress: &Egress,
    sources: &[Source],
    lists: &Snapshot,
) -> bool {
    let address: Option<IpAddr> = match &dependency.host {
        Host::Ipv4(address) => Some((*address).into()),
        Host::Ipv6(address) => Some((*address).into()),
        Host::Domain(_) => None,
    };
    if address.is_some_and(|address| address.is_loopback())
        || matches!(&dependency.host, Host::Domain(name) if name == "localhost")
    {
        return true;
    }
    let covers = |ports: &Ports| match ports {
        Ports::Tcp(range) => range.contains(&dependency.port),
        other => other.is_of(TCP) && !matches!(other, Ports::Tcp(_)),
    };
    let covering = egress
        .rules
        .iter()
        .filter(|rule| rule.ports.iter().any(covers));
    let mut listed = covering.flat_map(|rule| &rule.to);
    listed.any(|name| {
        let has_address = || {
            let feed = lists.get(name)?;
            let address = address?;
            let mut active = feed.active();
            Some(active.any(|prefix| prefix.contains(&address)))
        };
        let has_name = || {
            let source = sources.iter().find(|source| source.name == *name)?;
            let (Origin::Names(lookup), Host::Domain(host)) = (&source.origin, &dependency.host)
            else {
                return None;
            };
            let is_below = |below: &String| {
                host.strip_suffix(&**below)
                    .is_some_and(|rest| rest.ends_with('.'))
            };
            Some(lookup.names.contains(host) || lookup.wildcards.iter().any(is_below))
        };
        has_address().or_else(has_name).unwrap_or(false) || has_name().unwrap_or(false)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use allowlist_policy::Feed;
    use expect_test::expect;
    use jiff::Timestamp;

    use super::*;

    fn shown(found: &[Dependency]) -> String {
        let lines = found
            .iter()
            .map(|one| format!("{} {} {}\n", one.host, one.port, one.named_by));
        lines.collect()
    }

    #[test]
    fn servers_are_found_in_the_usual_files() {
        let sssd = "[domain/a]\nid_provider = ldap\n# ldap_uri = ldap://old.example\nldap_uri = ldaps://a.example, ldap://b.example:1389\n\
                    ad_server = _srv_, dc1.example.com\nkrb5_server = 192.0.2.88\n";
        let mut found = directory_servers("sssd.conf", sssd);
        found.extend(directory_servers(
            "ldap.conf",
            "URI ldap://[2001:db8::9]\nBASE dc=example\n",
        ));
        found.extend(file_servers(
            "proc /proc proc rw 0 0\n\
             nas:/home /home nfs4 rw,vers=4.2,port=0,addr=192.0.2.9 0 0\n\
             //win/share /mnt cifs rw,addr=192.0.2.10 0 0\n",
        ));
        found.extend(proxies(
            "environment",
            "PATH=/bin\nhttps_proxy=\"http://proxy.example:3128\"\nexport ALL_PROXY=socks5://192.0.2.20\nhttp_proxy=\n",
        ));
        expect![[r#"
            a.example 636 sssd.conf
            b.example 1389 sssd.conf
            dc1.example.com 389 sssd.conf
            192.0.2.88 88 sssd.conf
            [2001:db8::9] 389 ldap.conf
            192.0.2.9 2049 the mount of /home
            192.0.2.10 445 the mount of /mnt
            proxy.example 3128 environment
            192.0.2.20 1080 environment
        "#]]
        .assert_eq(&shown(&found));
    }

    #[test]
    fn a_rule_allows_by_name_or_prefix_on_the_port() {
        let config = r#"
[egress]
default = "refuse"

[egress.rules.directory]
to = ["names", "networks"]
ports = ["tcp/600-700"]

[sources.names]
names = ["a.example.com", "*.b.example.com"]

[sources.networks]
prefixes = ["192.0.2.0/28"]
"#;
        let config = Config::parse(config, Path::new("allowlist.toml")).expect("it is valid");
        let egress = config.policy.egress.as_ref().expect("it has one");
        let mut lists = Snapshot::default();
        let prefixes = vec!["192.0.2.0/28".parse().expect("a prefix")];
        let feed = Feed::new(prefixes, Timestamp::UNIX_EPOCH);
        lists.insert("networks".to_owned(), Arc::new(feed));
        let is_allowed = |host: &str, port| {
            let dependency = Dependency {
                user: "log-ins need",
                named_by: "sssd.conf".to_owned(),
                host: Host::parse(host).expect("a host"),
                port,
            };
            is_allowed(&dependency, egress, &config.policy.sources, &lists)
        };
        for host in [
            "a.example.com",
            "x.b.example.com",
            "192.0.2.7",
            "127.0.0.1",
            "localhost",
        ] {
            assert!(is_allowed(host, 636), "{host}");
        }
        for host in [
            "b.example.com",
            "xb.example.com",
            "192.0.2.16",
            "c.example.com",
        ] {
            assert!(!is_allowed(host, 636), "{host}");
        }
        assert!(!is_allowed("a.example.com", 389));
    }

    #[test]
    fn dns_over_tls_is_found() {
        assert!(has_dns_over_tls("[Resolve]\nDNSOverTLS=opportunistic\n"));
        assert!(!has_dns_over_tls(
            "[Resolve]\n#DNSOverTLS=yes\nDNSOverTLS=yes\nDNSOverTLS=no\n"
        ));
    }
}
