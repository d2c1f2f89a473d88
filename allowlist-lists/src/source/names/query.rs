//! One query to name servers: the records of one type that one name has.
//!
//! Invariants: an address counts only if the chain of aliases from the name leads to it; servers are queried one
//! after another, each for an equal part of the remaining time; and a server that does not understand EDNS is
//! queried again without it (RFC 6891, 7).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use allowlist_policy::Lookup;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup as Found;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use ipnet::IpNet;
use tokio::time::Instant;

use super::RESOLV_CONF;
use super::error::NameError;
use crate::feed;
use crate::source::file;

const MAX_RESOLV_CONF_BYTES: u64 = 1 << 20;
const PORT: u16 = 53;

/// The addresses of a name in one family, from the answer of a name server.
pub(super) struct Addresses {
    pub(super) prefixes: BTreeSet<IpNet>,
    /// The shortest time to live of the records that led to the addresses, in seconds; `u32::MAX` if there are none.
    pub(super) ttl: u32,
    /// The name at the end of the chain of aliases (CNAME records); the queried name if it has no alias.
    pub(super) target: String,
}

/// A name server with two clients for it: one that uses EDNS, and one that does not.
pub(super) struct Server {
    address: SocketAddr,
    resolver: TokioResolver,
    without_edns: TokioResolver,
}

impl Server {
    async fn lookup(&self, name: &Name, record: RecordType) -> Result<Found, NetError> {
        match self.resolver.lookup(name.clone(), record).await {
            // Some servers that do not know EDNS answer with the other code.
            Err(NetError::Dns(DnsError::ResponseCode(
                ResponseCode::FormErr | ResponseCode::NotImp,
            ))) => self.without_edns.lookup(name.clone(), record).await,
            answer => answer,
        }
    }
}

/// Returns the name servers to query, in order: the configured ones, or, if none is configured, those in
/// `/etc/resolv.conf`.
pub(super) async fn servers(lookup: &Lookup) -> Result<Vec<Server>, NameError> {
    let addresses = addresses_of_servers(lookup).await?;
    let server = |address: SocketAddr| Server {
        address,
        resolver: resolver(address, lookup.timeout, true),
        without_edns: resolver(address, lookup.timeout, false),
    };
    Ok(addresses.into_iter().map(server).collect())
}

async fn addresses_of_servers(lookup: &Lookup) -> Result<Vec<SocketAddr>, NameError> {
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

fn resolver(server: SocketAddr, timeout: Duration, edns: bool) -> TokioResolver {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    let server = NameServerConfig::new(server.ip(), true, connections.into());
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let mut options = ResolverOpts::default();
    // `query` watches the clock, and goes on to the next server.
    options.timeout = timeout;
    options.attempts = 0;
    // It lives for one fetch, in which no question comes twice.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.preserve_intermediates = true;
    options.edns0 = edns;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .expect("a resolver without TLS needs nothing that could be missing")
}

/// Queries `servers` one after another, and returns the addresses of `name` in one family from the first that answers.
///
/// `parsed` is the same name, `family` the type of its records (A or AAAA). Each server has an equal part of the time
/// that remains until `deadline`.
pub(super) async fn query(
    servers: &[Server],
    name: &str,
    parsed: Name,
    family: RecordType,
    deadline: Instant,
) -> Result<Addresses, NameError> {
    let mut last = None;
    for (index, server) in servers.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(servers.len() - index).unwrap_or(u32::MAX);
        let answer = tokio::time::timeout(share, server.lookup(&parsed, family)).await;
        let error = match answer.unwrap_or(Err(NetError::Timeout)) {
            Ok(lookup) => return addresses(name, &parsed, family, lookup.answers()),
            Err(error) => error,
        };
        let (name, server, record) = (name.to_owned(), server.address, family);
        last = Some(match error {
            NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
                ResponseCode::NoError => return Ok(Addresses::none(&none)),
                ResponseCode::NXDomain => return Err(NameError::NoSuchName { name }),
                code => refused(name, record, server, code),
            },
            NetError::Dns(DnsError::ResponseCode(code)) => refused(name, record, server, code),
            NetError::Timeout => NameError::Timeout {
                name,
                record,
                server,
            },
            error => NameError::Failed {
                name,
                record,
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

/// Returns the addresses in `records`, a server's answer, to which the name `asked` leads directly or through aliases.
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

fn refused(name: String, record: RecordType, server: SocketAddr, code: ResponseCode) -> NameError {
    NameError::Refused {
        name,
        record,
        server,
        problem: code.to_string(),
    }
}

/// Returns the text of `error`; for an I/O error, only the operating system's text, without that of the resolver.
fn problem(error: &NetError) -> String {
    match error {
        NetError::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn name_servers_are_read_from_resolv_conf() {
        let servers = system_servers(
            b"# by hand\nsearch example.com\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n",
        );
        let expected: [SocketAddr; 2] = [
            "192.0.2.53:53".parse().expect("an address"),
            "[2001:db8::53]:53".parse().expect("an address"),
        ];
        assert_eq!(servers.expect("it names some"), expected);
        let error = system_servers(b"search example.com\n").expect_err("it names none");
        assert!(matches!(error, NameError::NoServers(_)), "{error:?}");
        expect!["/etc/resolv.conf cannot be used: no nameservers found in config; add a name server to it, or set `resolvers`"].assert_eq(&error.to_string());
    }
}
