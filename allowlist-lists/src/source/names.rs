//! Resolves DNS names to their current addresses of the configured families.
//!
//! Invariants: every name has to have addresses, or there is no list; each family is queried separately: if the query
//! for one fails, the addresses of the other are used, and [`Fetched::kept`] names the failed one; nothing is taken
//! from a cache, from `/etc/hosts` or from a search domain; and a fetch ends within `timeout`.
//!
//! Does not know how a query is made (`query`), nor whether a name's addresses rotate: the caller keeps earlier
//! addresses active for the source's grace period.

mod error;
mod query;
mod translated;

use std::time::Duration;

use allowlist_policy::{Family, Lookup};
use futures_util::{StreamExt as _, stream};
use hickory_resolver::proto::rr::{Name, RecordType};
use jiff::Timestamp;
use tokio::time::Instant;

pub use self::error::NameError;
use self::query::{Addresses, Server, query, servers};
use super::{Fetched, union};
use crate::feed::List;

/// The file that configures this host's name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The most addresses that a name may have, both families together; more are [`NameError::TooMany`]. A vendor's
/// endpoint has fewer.
const MAX_ADDRESSES: usize = 1024;
/// The most DNS queries at the same time.
const AT_ONCE: usize = 16;
/// The maximum time until the query that failed for one address family is repeated (unless `ttl_floor` is longer), even
/// if the records of the other family have a longer time to live.
const AGAIN: Duration = Duration::from_mins(1);

/// An address family, with the result of querying a DNS name for its addresses in that family.
type Answered = (Family, Result<Addresses, NameError>);

/// Returns the addresses of all names in `lookup` as a list.
///
/// # Errors
/// A name has no addresses, or every query for it failed.
pub(super) async fn fetch(lookup: &Lookup, now: Timestamp) -> Result<Fetched, NameError> {
    let deadline = Instant::now() + lookup.timeout;
    if lookup.names.is_empty() {
        return Ok(union([List::default()], now)); // only wildcards, which cannot be resolved
    }
    let servers = servers(lookup).await?;
    let mut questions = Vec::new();
    for name in &lookup.names {
        let parsed = parse_name(name)?;
        for &family in &lookup.families {
            let (servers, parsed) = (&servers, parsed.clone());
            questions.push(async move {
                let answer = query(servers, name, parsed, record(family), deadline).await;
                (family, answer)
            });
        }
    }
    let questions = stream::iter(questions).buffered(AT_ONCE);
    let mut answers = questions.collect::<Vec<Answered>>().await.into_iter();
    let mut list = List::default();
    let mut ttl = u32::MAX;
    let mut kept = Vec::new();
    let mut translators = None;
    for name in &lookup.names {
        let mut families: Vec<_> = answers.by_ref().take(lookup.families.len()).collect();
        leave_out_translated(&mut families, &servers, deadline, &mut translators).await;
        check(name, &families)?;
        for (family, answer) in families {
            match answer {
                Ok(addresses) => {
                    list.prefixes.extend(&addresses.prefixes);
                    ttl = ttl.min(addresses.ttl);
                }
                Err(error) => {
                    list.notes.push(note(name, family, &error));
                    if !kept.contains(&family) {
                        kept.push(family);
                    }
                }
            }
        }
    }
    let mut fetched = union([list], now);
    let again = Duration::from_secs(ttl.into()).max(lookup.ttl_floor);
    fetched.again = Some(if kept.is_empty() {
        again
    } else {
        again.min(AGAIN.max(lookup.ttl_floor))
    });
    fetched.kept = kept;
    Ok(fetched)
}

fn record(family: Family) -> RecordType {
    match family {
        Family::V4 => RecordType::A,
        Family::V6 => RecordType::AAAA,
    }
}

/// Checks that the answers of all families for `name` give at least one address, and at most [`MAX_ADDRESSES`].
fn check(name: &str, families: &[Answered]) -> Result<(), NameError> {
    let answered = || {
        families
            .iter()
            .filter_map(|(_, answer)| answer.as_ref().ok())
    };
    let failed = || {
        families
            .iter()
            .filter_map(|(_, answer)| answer.as_ref().err())
    };
    let found = answered().map(|one| one.prefixes.len()).sum();
    if found > MAX_ADDRESSES {
        let name = name.to_owned();
        return Err(NameError::TooMany { name, found });
    }
    if found > 0 {
        return Ok(());
    }
    let is_missing = |error: &&NameError| matches!(error, NameError::NoSuchName { .. });
    if let Some(error) = failed().find(|error| !is_missing(error)) {
        return Err(error.clone());
    }
    match answered().next() {
        Some(none) => Err(NameError::NoAddresses {
            name: name.to_owned(),
            aliases: aliases(name, &none.target),
        }),
        None => Err(NameError::NoSuchName {
            name: name.to_owned(),
        }),
    }
}

/// Returns the note that the query of `family` for `name` failed with `error`, while the other family has an answer.
fn note(name: &str, family: Family, error: &NameError) -> String {
    let (record, other) = (record(family), family.other());
    let problem = match error {
        // The name is right, as it has the other records: its name server contradicts itself (RFC 8020).
        NameError::NoSuchName { .. } => format!(
            "the name server answers the query for {record} records with \"{name} does not exist\", although the name has other records"
        ),
        error => error.to_string(),
    };
    format!(
        "the last known {family} addresses of the source are kept, because those of {name} could not be updated: {problem}; `families = [\"{}\"]` leaves {family} addresses out",
        other.key(),
        family = family.name(),
    )
}

/// Removes the IPv6 addresses that a DNS64 server synthesised from the IPv4 addresses in `families` (RFC 6147).
///
/// The vendor's packets have the IPv4 addresses as their sources. `translators` caches the DNS64 prefixes of this
/// network; `None` means that they were not queried yet.
async fn leave_out_translated(
    families: &mut [Answered],
    servers: &[Server],
    deadline: Instant,
    translators: &mut Option<Vec<ipnet::Ipv6Net>>,
) {
    let [(Family::V4, Ok(v4)), (Family::V6, Ok(v6))] = families else {
        return;
    };
    if v4.prefixes.is_empty() {
        return;
    }
    v6.prefixes
        .retain(|prefix| !translated::is_well_known(prefix));
    if translated::is_suspect(&v4.prefixes, &v6.prefixes) {
        if translators.is_none() {
            *translators = Some(translated::discover(servers, deadline).await);
        }
        let translators = translators.iter().flatten();
        for translator in translators {
            v6.prefixes
                .retain(|prefix| !translated::is_within(prefix, translator));
        }
    }
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

/// Returns a clause for a message: the aliases of `name` end at `target`, which has no addresses.
///
/// The clause is empty if the name has no aliases.
fn aliases(name: &str, target: &str) -> String {
    let target = target.trim_end_matches('.');
    if target.eq_ignore_ascii_case(name.trim_end_matches('.')) {
        String::new()
    } else {
        format!(": its aliases end at {target}, which has no addresses, or form a loop")
    }
}
