//! The errors of name resolution.

use std::net::SocketAddr;

use hickory_resolver::proto::rr::RecordType;
use thiserror::Error;

use super::{MAX_ADDRESSES, RESOLV_CONF};
use crate::feed::PrefixError;

/// The reason why names yield no addresses.
#[derive(Clone, Debug, Error)]
pub enum NameError {
    /// No name server is configured.
    #[error("{RESOLV_CONF} cannot be used: {0}; it must list a name server, or set `resolvers`")]
    NoServers(String),
    /// The text is not a valid name.
    #[error("{name:?} is not a name: {problem}; write one such as \"hooks.example.com\"")]
    NotAName {
        /// The configured text.
        name: String,
        /// The reason.
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
    /// No records of the families that were requested.
    #[error(
        "{name} has no addresses{aliases}; check its spelling, and the vendor's documentation for a new name"
    )]
    NoAddresses {
        /// The name.
        name: String,
        /// The end of its chain of aliases, as a clause.
        aliases: String,
    },
    /// The name has more addresses than the limit.
    #[error(
        "{name} has {found} addresses, more than the limit of {MAX_ADDRESSES}; check that it is the right name"
    )]
    TooMany {
        /// The name.
        name: String,
        /// The number of addresses.
        found: usize,
    },
    /// A record has an address that no packet carries.
    #[error("{name} has an address that cannot be used: {error}; report it to the vendor")]
    Address {
        /// The name.
        name: String,
        /// The reason.
        error: PrefixError,
    },
    /// SERVFAIL, REFUSED and the like.
    #[error(
        "{name} cannot be resolved: the name server {server} answers {problem:?} for its {record} records; check \
         that server, or set `resolvers`"
    )]
    Refused {
        /// The name.
        name: String,
        /// The type of the records.
        record: RecordType,
        /// The server that answered.
        server: SocketAddr,
        /// The response code.
        problem: String,
    },
    /// No valid answer arrived in time.
    #[error(
        "{name} cannot be resolved: no answer for its {record} records from the name server {server} in time; \
         check that it is reachable, raise `timeout`, or set `resolvers`"
    )]
    Timeout {
        /// The name.
        name: String,
        /// The type of the records.
        record: RecordType,
        /// The last server that was queried.
        server: SocketAddr,
    },
    /// The communication with the server failed.
    #[error(
        "{name} cannot be resolved: the name server {server} fails for its {record} records: {problem}; check \
         that server, or set `resolvers`"
    )]
    Failed {
        /// The name.
        name: String,
        /// The type of the records.
        record: RecordType,
        /// The last server that was queried.
        server: SocketAddr,
        /// The reason.
        problem: String,
    },
}
