//! The IP address of a packet, as the number that the tables are searched by.
//!
//! Knows nothing of headers.

use core::net::IpAddr;

use super::wire::{ipv4, ipv6};

/// The IP address of a packet, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// An IPv4 address.
    V4(u32),
    /// An IPv6 address: the upper and the lower 64 bits.
    V6([u64; 2]),
}

impl Address {
    /// Returns the address as two words of 64 bits; an IPv4 address is the upper half of the first word, and the other
    /// bits are 0.
    #[inline(always)]
    pub const fn padded(self) -> [u64; 2] {
        match self {
            Self::V4(address) => [(address as u64) << 32, 0],
            Self::V6(halves) => halves,
        }
    }

    /// Returns the IP version, 4 or 6.
    #[inline(always)]
    pub const fn family(self) -> u8 {
        match self {
            Self::V4(_) => ipv4::VERSION,
            Self::V6(_) => ipv6::VERSION,
        }
    }

    /// Reports whether this is an IPv6 link-local address (`fe80::/10`). Routers forward no packets from or to such an
    /// address (RFC 4291, 2.5.6).
    #[inline(always)]
    pub const fn is_link_local(self) -> bool {
        matches!(self, Self::V6([network, _])
            if network >> (u64::BITS - ipv6::LINK_LOCAL_LENGTH) == ipv6::LINK_LOCAL)
    }

    /// Reports whether this is the unspecified address of its family.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        matches!(self, Self::V4(0) | Self::V6([0, 0]))
    }

    /// Returns the address that [`Self::padded`] encoded, for its IP version.
    #[inline(always)]
    pub const fn from_padded(family: u8, padded: [u64; 2]) -> Self {
        if family == ipv4::VERSION {
            Self::V4((padded[0] >> 32) as u32)
        } else {
            Self::V6(padded)
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                Self::V6([(bits >> 64) as u64, bits as u64])
            }
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address {
            Address::V4(number) => Self::V4(number.into()),
            Address::V6([network, host]) => {
                Self::V6((u128::from(network) << 64 | u128::from(host)).into())
            }
        }
    }
}
