//! Decides to which addresses a request may go.
//!
//! Invariants: no request goes to a link-local address or to the metadata service of a cloud; no redirect or link of a
//! public server leads to a private address, unless the operator allows it. Both rules are applied to the resolved
//! addresses that the client then connects to, so a name cannot change between the check and the connection.
//!
//! If a proxy is used, the proxy resolves names and connects, so only addresses that are written in a URL are checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ipnet::{Ipv4Net, Ipv6Net};
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use thiserror::Error;
use url::Host;

/// The class of an IP address, which decides whether a request may go to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// A public address: any that is neither private nor local.
    Public,
    /// A private address: one of this host or of its owner's networks.
    Private,
    /// A local address: link-local, or that of a cloud's metadata service, which returns secrets to any request.
    Local,
}

/// The reason why a request must not go to the address of its host.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// The address is link-local or that of a metadata service.
    #[error(
        "{host} has the address {address}, a link-local or metadata address, to which no request is sent; configure another URL"
    )]
    Local {
        /// The host of the URL.
        host: String,
        /// The address of the host that is refused.
        address: IpAddr,
    },
    /// The address is private, and a public server led to it by a redirect or link.
    #[error(
        "a redirect or link of a public server leads to {host}, at the private address {address}; configure the URL of the list, or set `allow_private = true`"
    )]
    Private {
        /// The host of the URL.
        host: String,
        /// The private address of the host, to which no request is sent.
        address: IpAddr,
    },
}

/// The IPv4 addresses of clouds' metadata services that are not link-local: Alibaba, Azure, Oracle.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// The private IPv6 addresses of clouds' metadata services: AWS, Google Cloud.
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];
/// The private IPv4 blocks: this host, private networks, and the addresses shared by a provider's customers (RFC 6598).
const PRIVATE_V4: [Ipv4Net; 6] = [
    Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8),
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
];
/// The private IPv6 blocks: unique local and the former site-local addresses.
const PRIVATE_V6: [Ipv6Net; 2] = [
    Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
];

pub(super) fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(address) => reach_v4(address),
        IpAddr::V6(address) => reach_v6(address),
    }
}

fn reach_v4(address: Ipv4Addr) -> Reach {
    if address.is_link_local() || METADATA_V4.contains(&address) {
        Reach::Local
    } else if PRIVATE_V4.iter().any(|net| net.contains(&address)) {
        Reach::Private
    } else {
        Reach::Public
    }
}

fn reach_v6(address: Ipv6Addr) -> Reach {
    if let Some(embedded) = embedded(address) {
        return reach_v4(embedded);
    }
    if address.is_unicast_link_local() || METADATA_V6.contains(&address) {
        Reach::Local
    } else if address.is_loopback()
        || address.is_unspecified()
        || PRIVATE_V6.iter().any(|net| net.contains(&address))
    {
        Reach::Private
    } else {
        Reach::Public
    }
}

/// Returns the IPv4 address in an IPv4-mapped, a translated (RFC 6052) or a 6to4 address, or `None` for other
/// addresses.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = u128::from(address);
    let at = |shift: u32| Some(Ipv4Addr::from((bits >> shift) as u32));
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => at(0),
        [0x2002, ..] => at(80),
        _ => None,
    }
}

/// Returns the IP address in `url`, or `None` if its host is a name, or if it has no host.
pub(super) fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

/// Decides to which addresses of one host a request may go, and remembers whether a permitted one was private.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    host: String,
    may_be_private: bool,
    was_private: Arc<AtomicBool>,
}

impl Guard {
    pub(super) fn new(host: &str, may_be_private: bool) -> Self {
        Self {
            host: host.to_owned(),
            may_be_private,
            was_private: Arc::default(),
        }
    }

    /// Returns the class of the address to which a request may have gone: private if a permitted address of the host
    /// was private; public otherwise, also if the address is unknown because of a proxy.
    pub(super) fn found_at(&self) -> Reach {
        if self.was_private.load(Ordering::Relaxed) {
            Reach::Private
        } else {
            Reach::Public
        }
    }

    /// Returns those of the host's addresses `found` to which a request may go.
    ///
    /// # Errors
    /// The host has addresses, and none is permitted.
    pub(super) fn permitted(
        &self,
        found: Vec<SocketAddr>,
    ) -> Result<Vec<SocketAddr>, AddressError> {
        let mut refused = None;
        let permitted: Vec<SocketAddr> = found
            .into_iter()
            .filter(|found| {
                let (host, address) = (self.host.clone(), found.ip());
                let error = match reach(address) {
                    Reach::Public => return true,
                    Reach::Private if self.may_be_private => {
                        self.was_private.store(true, Ordering::Relaxed);
                        return true;
                    }
                    Reach::Private => AddressError::Private { host, address },
                    Reach::Local => AddressError::Local { host, address },
                };
                refused.get_or_insert(error);
                false
            })
            .collect();
        match refused {
            Some(error) if permitted.is_empty() => Err(error),
            _ => Ok(permitted),
        }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            // Any other name is a proxy's, which the operator chose.
            let permitted = if name.as_str().eq_ignore_ascii_case(&guard.host) {
                guard.permitted(found)?
            } else {
                found
            };
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_classified() {
        let table = [
            (
                Reach::Public,
                "8.8.8.8 100.63.255.255 100.128.0.1 172.32.0.1 169.253.0.1 203.0.113.9 2001:db8::1 \
                 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1",
            ),
            (
                Reach::Private,
                "0.0.0.0 10.1.2.3 127.0.0.1 127.255.0.1 100.64.0.1 172.31.255.255 192.168.0.1 :: ::1 fd00::1 \
                 fec0::1 ::ffff:127.0.0.1 64:ff9b::a00:1 2002:c0a8:1::1",
            ),
            (
                Reach::Local,
                "169.254.169.254 169.254.0.1 fe80::1 febf::1 fd00:ec2::254 fd20:ce::254 100.100.100.200 \
                 168.63.129.16 192.0.0.192 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe::1",
            ),
        ];
        for (expected, addresses) in table {
            for address in addresses.split_whitespace() {
                let parsed = address.parse().expect("an address");
                assert_eq!(reach(parsed), expected, "{address}");
            }
        }
    }

    #[test]
    fn only_permitted_addresses_are_connected_to() {
        let found = |addresses: &[&str]| -> Vec<SocketAddr> {
            let parse = |address: &&str| SocketAddr::new(address.parse().expect("an address"), 0);
            addresses.iter().map(parse).collect()
        };
        let strict = Guard::new("lists.example.com", false);
        let mixed = found(&["10.0.0.1", "203.0.113.9", "169.254.169.254"]);
        assert_eq!(strict.permitted(mixed.clone()), Ok(found(&["203.0.113.9"])));
        assert_eq!(strict.found_at(), Reach::Public);
        let own = Guard::new("lists.example.com", true);
        let expected = found(&["10.0.0.1", "203.0.113.9"]);
        assert_eq!(own.permitted(mixed), Ok(expected));
        assert_eq!(own.found_at(), Reach::Private);
        let refused = strict.permitted(found(&["::1"]));
        assert!(
            matches!(refused, Err(AddressError::Private { .. })),
            "{refused:?}"
        );
        let refused = own.permitted(found(&["fe80::1"]));
        assert!(
            matches!(refused, Err(AddressError::Local { .. })),
            "{refused:?}"
        );
        assert_eq!(strict.permitted(Vec::new()), Ok(Vec::new()));
    }
}
