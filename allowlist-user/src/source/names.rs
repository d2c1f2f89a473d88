//! Looks names up: the addresses that they have now, of both families.
//!
//! Invariants: every name has to have addresses, or there is no list; an address counts only if the chain
//! of aliases from its name leads to it; nothing is taken from a cache, from `/etc/hosts` or from a search
//! domain. Servers are asked one after another, and all of it ends within `timeout`.
//!
//! Does not know whether a name's addresses rotate: what was there lately stays for the source's grace
//! period, which is the caller's.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use ipnet::IpNet;
use jiff::Timestamp;
use thiserror::Error;
use tokio::time::Instant;

use super::{Fetched, file, union};
use crate::feed::{self, List, PrefixError};
use crate::policy::Lookup;

/// Whom this host asks.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const MAX_RESOLV_CONF_BYTES: u64 = 1 << 20;
const PORT: u16 = 53;
/// A name with more is not one vendor's door.
const MAX_ADDRESSES: usize = 1024;
/// Questions under way at once.
const AT_ONCE: usize = 16;

/// Why names have no addresses to give.
#[derive(Debug, Error)]
pub enum NameError {
    /// Nobody says whom this host asks.
    #[error("{RESOLV_CONF} cannot be used: {0}; it must name a name server, or set `resolvers`")]
    NoServers(String),
    /// No name looks like that.
    #[error("{name:?} is not a name: {problem}; write one such as \"hooks.example.com\"")]
    NotAName {
        /// As configured.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// NXDOMAIN.
    #[error(
        "{name} does not exist; check its spelling, and the vendor's documentation for a new name"
    )]
    NoSuchName {
        /// The name.
        name: String,
    },
    /// Neither A nor AAAA records.
    #[error(
        "{name} has no addresses{aliases}; check its spelling, and the vendor's documentation for a new name"
    )]
    NoAddresses {
        /// The name.
        name: String,
        /// Where its aliases lead.
        aliases: String,
    },
    /// Not a vendor's door.
    #[error(
        "{name} has {found} addresses, and at most {MAX_ADDRESSES} are taken; check that it is the right name"
    )]
    TooMany {
        /// The name.
        name: String,
        /// What it has.
        found: usize,
    },
    /// An address that no packet has.
    #[error("{name} has an address that cannot be used: {error}; ask the vendor")]
    Address {
        /// The name.
        name: String,
        /// What is wrong with it.
        error: PrefixError,
    },
    /// SERVFAIL, REFUSED and the like.
    #[error(
        "{name} cannot be looked up: the name server {server} answers {problem:?}; check that server, or set `resolvers`"
    )]
    Refused {
        /// The name.
        name: String,
        /// Who said so.
        server: SocketAddr,
        /// What it said.
        problem: String,
    },
    /// No answer that was one.
    #[error(
        "{name} cannot be looked up: no answer from the name server {server} in time; check that it is reachable, raise `timeout`, or set `resolvers`"
    )]
    Timeout {
        /// The name.
        name: String,
        /// Who was asked last.
        server: SocketAddr,
    },
    /// It cannot be talked to.
    #[error(
        "{name} cannot be looked up: the name server {server} fails: {problem}; check that server, or set `resolvers`"
    )]
    Failed {
        /// The name.
        name: String,
        /// Who was asked last.
        server: SocketAddr,
        /// What the resolver said.
        problem: String,
    },
}

/// What one family of a name has.
struct Addresses {
    prefixes: BTreeSet<IpNet>,
    /// The least time to live of the records that led there.
    ttl: u32,
    /// The end of the chain of aliases.
    target: String,
}

/// The addresses of all names.
pub(super) async fn fetch(lookup: &Lookup, now: Timestamp) -> Result<Fetched, NameError> {
    let deadline = Instant::now() + lookup.timeout;
    let servers = servers(lookup).await?;
    let resolvers = servers
        .iter()
        .map(|server| (*server, resolver(*server, lookup.timeout)))
        .collect::<Vec<_>>();
    let mut questions = Vec::new();
    for name in &lookup.names {
        let parsed = parse_name(name)?;
        for family in [RecordType::A, RecordType::AAAA] {
            questions.push(ask(&resolvers, name, parsed.clone(), family, deadline));
        }
    }
    let answers: Vec<Addresses> = stream::iter(questions)
        .buffered(AT_ONCE)
        .try_collect()
        .await?;

    let mut list = List::default();
    let mut ttl = u32::MAX;
    for (name, families) in lookup.names.iter().zip(answers.chunks(2)) {
        let found = families.iter().map(|family| family.prefixes.len()).sum();
        if found == 0 {
            return Err(NameError::NoAddresses {
                name: name.clone(),
                aliases: aliases(name, &families[0].target),
            });
        }
        if found > MAX_ADDRESSES {
            let name = name.clone();
            return Err(NameError::TooMany { name, found });
        }
        for family in families {
            list.prefixes.extend(&family.prefixes);
            ttl = ttl.min(family.ttl);
        }
    }
    let mut fetched = union([list], now);
    fetched.again = Some(Duration::from_secs(ttl.into()).max(lookup.ttl_floor));
    Ok(fetched)
}

/// Whom to ask, in that order.
async fn servers(lookup: &Lookup) -> Result<Vec<SocketAddr>, NameError> {
    if !lookup.resolvers.is_empty() {
        return Ok(lookup.resolvers.clone());
    }
    let text = file::read(Path::new(RESOLV_CONF), MAX_RESOLV_CONF_BYTES)
        .await
        .map_err(|error| NameError::NoServers(error.to_string()))?;
    system_servers(&text)
}

fn system_servers(resolv_conf: &[u8]) -> Result<Vec<SocketAddr>, NameError> {
    let (config, _) =
        parse_resolv_conf(resolv_conf).map_err(|error| NameError::NoServers(problem(&error)))?;
    let servers = config.name_servers().iter();
    Ok(servers
        .map(|server| SocketAddr::new(server.ip, PORT))
        .collect())
}

fn resolver(server: SocketAddr, timeout: Duration) -> TokioResolver {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    let server = NameServerConfig::new(server.ip(), true, connections.into());
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let mut options = ResolverOpts::default();
    // `ask` watches the clock, and goes on to the next server.
    options.timeout = timeout;
    options.attempts = 0;
    // It lives for one fetch, in which no question comes twice.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.preserve_intermediates = true;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .expect("a resolver without TLS needs nothing that could be missing")
}

fn parse_name(text: &str) -> Result<Name, NameError> {
    let mut name = Name::from_utf8(text).map_err(|error| NameError::NotAName {
        name: text.to_owned(),
        problem: error.to_string(),
    })?;
    // Without search domains: the configuration means the same on every host.
    name.set_fqdn(true);
    Ok(name)
}

/// One family of one name, by the first server that knows. Each has an equal part of the time that is left.
async fn ask(
    resolvers: &[(SocketAddr, TokioResolver)],
    name: &str,
    parsed: Name,
    family: RecordType,
    deadline: Instant,
) -> Result<Addresses, NameError> {
    let mut last = None;
    for (index, (server, resolver)) in resolvers.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(resolvers.len() - index).unwrap_or(u32::MAX);
        let answer = tokio::time::timeout(share, resolver.lookup(parsed.clone(), family)).await;
        let error = match answer.unwrap_or(Err(NetError::Timeout)) {
            Ok(lookup) => return addresses(name, &parsed, family, lookup.answers()),
            Err(error) => error,
        };
        let (name, server) = (name.to_owned(), *server);
        last = Some(match error {
            NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
                ResponseCode::NoError => return Ok(Addresses::none(&none)),
                ResponseCode::NXDomain => return Err(NameError::NoSuchName { name }),
                code => refused(name, server, code),
            },
            NetError::Dns(DnsError::ResponseCode(code)) => refused(name, server, code),
            NetError::Timeout => NameError::Timeout { name, server },
            error => NameError::Failed {
                name,
                server,
                problem: problem(&error),
            },
        });
    }
    Err(last.expect("there is a name server"))
}

impl Addresses {
    fn none(records: &NoRecords) -> Self {
        Self {
            prefixes: BTreeSet::new(),
            ttl: u32::MAX,
            target: records.query.name().to_string(),
        }
    }
}

/// What belongs to the name among what a server sent along.
fn addresses(
    name: &str,
    asked: &Name,
    family: RecordType,
    records: &[Record],
) -> Result<Addresses, NameError> {
    let mut ttl = u32::MAX;
    let mut at = asked;
    // No chain is longer than there are records, so that one that leads back ends too.
    for _ in records {
        let next = records.iter().find_map(|record| match &record.data {
            RData::CNAME(alias) if record.name == *at => Some((&alias.0, record.ttl)),
            _ => None,
        });
        let Some((target, target_ttl)) = next else {
            break;
        };
        at = target;
        ttl = ttl.min(target_ttl);
    }
    let mut prefixes = BTreeSet::new();
    for record in records {
        let address = match &record.data {
            RData::A(address) if family == RecordType::A => IpAddr::from(address.0),
            RData::AAAA(address) if family == RecordType::AAAA => IpAddr::from(address.0),
            _ => continue,
        };
        if record.name != *at {
            continue;
        }
        let prefix =
            feed::check_prefix(IpNet::from(address)).map_err(|error| NameError::Address {
                name: name.to_owned(),
                error,
            })?;
        prefixes.insert(prefix);
        ttl = ttl.min(record.ttl);
    }
    Ok(Addresses {
        prefixes,
        ttl,
        target: at.to_string(),
    })
}

/// Where the aliases of a name that has no addresses lead.
fn aliases(name: &str, target: &str) -> String {
    let target = target.trim_end_matches('.');
    if target.eq_ignore_ascii_case(name.trim_end_matches('.')) {
        String::new()
    } else {
        format!(": its aliases lead to {target}, which has none, or in a circle")
    }
}

fn refused(name: String, server: SocketAddr, code: ResponseCode) -> NameError {
    NameError::Refused {
        name,
        server,
        problem: code.to_string(),
    }
}

/// Without the resolver's own words around what the system says.
fn problem(error: &NetError) -> String {
    match error {
        NetError::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_asks_whom_its_resolv_conf_names() {
        let servers = system_servers(
            b"# by hand\nsearch example.com\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n",
        );
        let expected: [SocketAddr; 2] = [
            "192.0.2.53:53".parse().expect("an address"),
            "[2001:db8::53]:53".parse().expect("an address"),
        ];
        assert_eq!(servers.expect("it names some"), expected);
        let error = system_servers(b"search example.com\n").expect_err("it names none");
        assert_eq!(
            error.to_string(),
            "/etc/resolv.conf cannot be used: no nameservers found in config; it must name a name \
             server, or set `resolvers`"
        );
    }
}
