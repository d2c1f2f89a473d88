//! Why names have no addresses to give.

use std::net::SocketAddr;

use hickory_resolver::proto::rr::RecordType;
use thiserror::Error;

use super::{MAX_ADDRESSES, RESOLV_CONF};
use crate::feed::PrefixError;

/// Why names have no addresses to give.
#[derive(Clone, Debug, Error)]
pub enum NameError {
    /// No name server is configured.
    #[error("{RESOLV_CONF} cannot be used: {0}; it must name a name server, or set `resolvers`")]
    NoServers(String),
    /// No name looks like that.
    #[error("{name:?} is not a name: {problem}; write one such as \"hooks.example.com\"")]
    NotAName {
        /// As configured.
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
        /// The number of addresses.
        found: usize,
    },
    /// An address that no packet has.
    #[error("{name} has an address that cannot be used: {error}; report it to the vendor")]
    Address {
        /// The name.
        name: String,
        /// The reason.
        error: PrefixError,
    },
    /// SERVFAIL, REFUSED and the like.
    #[error(
        "{name} cannot be looked up: the name server {server} answers {problem:?} for its {record} records; check \
         that server, or set `resolvers`"
    )]
    Refused {
        /// The name.
        name: String,
        /// The type of the records.
        record: RecordType,
        /// The server that answered so.
        server: SocketAddr,
        /// The response code.
        problem: String,
    },
    /// No answer that was one.
    #[error(
        "{name} cannot be looked up: no answer for its {record} records from the name server {server} in time; \
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
    /// It cannot be talked to.
    #[error(
        "{name} cannot be looked up: the name server {server} fails for its {record} records: {problem}; check \
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
