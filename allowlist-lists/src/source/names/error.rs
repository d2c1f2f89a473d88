//! The errors of name resolution.

use std::net::SocketAddr;

use hickory_resolver::proto::rr::RecordType;
use thiserror::Error;

use super::{MAX_ADDRESSES, RESOLV_CONF};
use crate::feed::PrefixError;

/// The reason why DNS names give no list of addresses.
#[derive(Clone, Debug, Error)]
pub enum NameError {
    /// The system's file of name servers cannot be used, for this reason.
    #[error("{RESOLV_CONF} cannot be used: {0}; add a name server to it, or set `resolvers`")]
    NoServers(String),
    /// A configured text is not a valid DNS name.
    #[error("{name:?} is not a DNS name: {problem}; write one such as \"hooks.example.com\"")]
    NotAName {
        /// The configured text.
        name: String,
        /// The reason why the text is no name.
        problem: String,
    },
    /// The name does not exist (NXDOMAIN).
    #[error(
        "the DNS name {name} does not exist; check its spelling, and the vendor's documentation for a new name"
    )]
    NoSuchName {
        /// The DNS name that was queried.
        name: String,
    },
    /// The name exists, but has no records of the requested address families.
    #[error(
        "the DNS name {name} has no addresses{aliases}; check its spelling, and the vendor's documentation for a new name"
    )]
    NoAddresses {
        /// The DNS name that was queried.
        name: String,
        /// A clause about the end of the name's chain of aliases; empty if it has no aliases.
        aliases: String,
    },
    /// The name has more addresses than the limit.
    #[error(
        "the DNS name {name} has {found} addresses, more than the limit of {MAX_ADDRESSES}; check its spelling"
    )]
    TooMany {
        /// The DNS name that was queried.
        name: String,
        /// The number of addresses of the name.
        found: usize,
    },
    /// The name has an address that cannot be the source address of a packet, such as an IPv4-mapped one.
    #[error("the DNS name {name} has an unusable address: {error}; report it to the vendor")]
    Address {
        /// The DNS name that was queried.
        name: String,
        /// The reason why the address cannot be used.
        error: PrefixError,
    },
    /// No name server could be used, and the one that was queried last answered with an error code, such as SERVFAIL or
    /// REFUSED.
    #[error(
        "{name} cannot be resolved: the name server {server} answers {problem:?} to the query for {record} records; check that server, or set `resolvers`"
    )]
    Refused {
        /// The DNS name that was queried.
        name: String,
        /// The type of the records that were requested.
        record: RecordType,
        /// The address of the name server that answered.
        server: SocketAddr,
        /// The response code of the answer.
        problem: String,
    },
    /// No name server could be used, and the one that was queried last did not answer in time.
    #[error(
        "{name} cannot be resolved: the name server {server} did not answer the query for {record} records in time; check that it is reachable, raise `timeout`, or set `resolvers`"
    )]
    Timeout {
        /// The DNS name that was queried.
        name: String,
        /// The type of the records that were requested.
        record: RecordType,
        /// The address of the name server that was queried last.
        server: SocketAddr,
    },
    /// No name server could be used, and the communication with the one that was queried last failed.
    #[error(
        "{name} cannot be resolved: the query to the name server {server} for {record} records failed: {problem}; check that server, or set `resolvers`"
    )]
    Failed {
        /// The DNS name that was queried.
        name: String,
        /// The type of the records that were requested.
        record: RecordType,
        /// The address of the name server that was queried last.
        server: SocketAddr,
        /// The reason why the communication failed.
        problem: String,
    },
}
