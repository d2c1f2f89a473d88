//! Random lists with the prefix lengths of large real lists, and random source addresses. Deterministic: the same seed
//! gives the same result.
//!
//! An address is a number of 32 or 128 bits, so that both families share the code. [`Ranges`] is the union of a list's
//! prefixes; addresses outside it are drawn by rejection sampling.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fastrand::Rng;
use ipnet::IpNet;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// The distribution of source addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Addresses outside all prefixes.
    Miss,
    /// Random addresses of random prefixes.
    Hit,
    /// Hits and misses, half of each.
    Mix,
    /// Hits whose prefixes follow Zipf's law: the frequency of the n-th prefix is proportional to 1/n.
    Zipf,
}

/// The first address of a prefix, and its length. The family is stored elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Prefix {
    pub(crate) address: u128,
    pub(crate) length: u8,
}

/// A list of prefixes, and the address blocks of their providers.
pub(crate) struct List {
    pub(crate) family: Family,
    pub(crate) prefixes: Vec<Prefix>,
    /// IPv6 only: the providers' allocations, which contain the prefixes.
    blocks: Vec<Prefix>,
    ranges: Ranges,
}

/// A union of prefixes, as sorted ranges of addresses with gaps between them.
struct Ranges(Vec<(u128, u128)>);

/// The number of providers with IPv6 addresses.
const PROVIDERS: usize = 64;
/// The prefixes of one length cover at most 1/2^5 of a provider's block, so that misses inside a block exist.
const COVERED_SHIFT: u32 = 5;

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the endpoints of a packet: a source address and port, and this port of the host.
    pub(crate) fn ends(self, port: u16) -> (SocketAddr, SocketAddr) {
        let [from, to]: [IpAddr; 2] = match self {
            Self::V4 => ["198.51.100.2", "198.51.100.1"],
            Self::V6 => ["2001:db8::2", "2001:db8::1"],
        }
        .map(|text| text.parse().expect("an address"));
        (SocketAddr::new(from, 9), SocketAddr::new(to, port))
    }

    pub(crate) const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Traffic {
    pub(crate) const ALL: [Self; 4] = [Self::Miss, Self::Hit, Self::Mix, Self::Zipf];
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Miss => "miss",
            Self::Hit => "hit",
            Self::Mix => "mix",
            Self::Zipf => "zipf",
        })
    }
}

impl Prefix {
    fn of(family: Family, address: u128, length: u8) -> Self {
        let host = host_mask(family, length);
        Self {
            address: address & !host,
            length,
        }
    }

    /// Converts the prefix to an `IpNet`.
    pub(crate) fn net(self, family: Family) -> IpNet {
        let address: IpAddr = match family {
            Family::V4 => Ipv4Addr::from_bits(self.address as u32).into(),
            Family::V6 => Ipv6Addr::from_bits(self.address).into(),
        };
        IpNet::new(address, self.length).expect("a length is of its family")
    }

    fn last(self, family: Family) -> u128 {
        self.address | host_mask(family, self.length)
    }

    fn any(self, family: Family, rng: &mut Rng) -> u128 {
        self.address | (rng.u128(..) & host_mask(family, self.length))
    }
}

impl List {
    /// Draws a random list of `count` different prefixes; equal seeds give equal lists.
    pub(crate) fn new(family: Family, count: usize, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let (prefixes, blocks) = match family {
            Family::V4 => (prefixes4(count, &mut rng), Vec::new()),
            Family::V6 => prefixes6(count, &mut rng),
        };
        Self {
            ranges: Ranges::of(family, &prefixes),
            family,
            prefixes,
            blocks,
        }
    }

    /// Draws `count` addresses; `None` if the list is empty and the traffic has hits.
    pub(crate) fn addresses(&self, traffic: Traffic, count: usize, seed: u64) -> Option<Vec<u128>> {
        if self.prefixes.is_empty() && traffic != Traffic::Miss {
            return None;
        }
        let rng = &mut Rng::with_seed(seed);
        let weights = match traffic {
            Traffic::Zipf => zipf(self.prefixes.len()),
            _ => Vec::new(),
        };
        let draw = |_| match traffic {
            Traffic::Hit => self.hit(rng),
            Traffic::Mix if rng.bool() => self.hit(rng),
            Traffic::Miss | Traffic::Mix => self.miss(rng),
            Traffic::Zipf => {
                // Prefixes are in random order, so their indices can be their ranks.
                let weight = rng.f64() * weights[weights.len() - 1];
                let rank = weights.partition_point(|sum| *sum <= weight);
                let prefix = self.prefixes[rank.min(self.prefixes.len() - 1)];
                prefix.any(self.family, rng)
            }
        };
        Some((0..count).map(draw).collect())
    }

    fn hit(&self, rng: &mut Rng) -> u128 {
        self.prefixes[rng.usize(..self.prefixes.len())].any(self.family, rng)
    }

    fn miss(&self, rng: &mut Rng) -> u128 {
        loop {
            let address = match self.family {
                Family::V4 => u128::from(public4(rng)),
                Family::V6 if rng.bool() => {
                    self.blocks[rng.usize(..self.blocks.len())].any(self.family, rng)
                }
                Family::V6 => global6(rng),
            };
            if !self.ranges.contain(address) {
                return address;
            }
        }
    }
}

impl Ranges {
    fn of(family: Family, prefixes: &[Prefix]) -> Self {
        let mut sorted: Vec<_> = prefixes
            .iter()
            .map(|prefix| (prefix.address, prefix.last(family)))
            .collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::new();
        for (first, last) in sorted {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    fn contain(&self, address: u128) -> bool {
        let after = self.0.partition_point(|range| range.0 <= address);
        after > 0 && address <= self.0[after - 1].1
    }
}

/// Draws IPv4 prefixes: a quarter are single addresses, the rest have random lengths of /20 to /32.
fn prefixes4(count: usize, rng: &mut Rng) -> Vec<Prefix> {
    distinct(count, || {
        let length = if rng.u8(..4) == 0 {
            32
        } else {
            rng.u8(20..=32)
        };
        Some(Prefix::of(Family::V4, public4(rng).into(), length))
    })
}

/// Draws IPv6 prefixes inside the blocks of some providers: an eighth are single addresses, the rest have random lengths
/// up to /64. An eighth of the providers may list their whole block too.
fn prefixes6(count: usize, rng: &mut Rng) -> (Vec<Prefix>, Vec<Prefix>) {
    let blocks = distinct(PROVIDERS, || {
        let length = rng.u8(29..=32);
        Some(Prefix::of(Family::V6, global6(rng), length))
    });
    // The number of prefixes of each length in each block.
    let mut used = vec![[0_u32; 65]; PROVIDERS];
    let prefixes = distinct(count, || {
        let provider = rng.usize(..PROVIDERS);
        let block = blocks[provider];
        let address = block.any(Family::V6, rng);
        if rng.u8(..8) == 0 {
            return Some(Prefix::of(Family::V6, address, 128));
        }
        let length = rng.u8(29..=64);
        let deeper = u32::from(length.checked_sub(block.length)?);
        let most = if deeper == 0 {
            u32::from(provider.is_multiple_of(8))
        } else {
            1_u32.checked_shl(deeper).unwrap_or(u32::MAX) >> COVERED_SHIFT
        };
        let used = &mut used[provider][usize::from(length)];
        (*used < most).then(|| {
            *used += 1;
            Prefix::of(Family::V6, address, length)
        })
    });
    (prefixes, blocks)
}

/// Draws `count` different prefixes, in the order in which they were drawn.
fn distinct(count: usize, mut draw: impl FnMut() -> Option<Prefix>) -> Vec<Prefix> {
    let mut known = HashSet::with_capacity(count);
    let mut prefixes = Vec::with_capacity(count);
    while prefixes.len() < count {
        if let Some(prefix) = draw()
            && known.insert(prefix)
        {
            prefixes.push(prefix);
        }
    }
    prefixes
}

/// Draws a public IPv4 unicast address.
fn public4(rng: &mut Rng) -> u32 {
    loop {
        let address = Ipv4Addr::from_bits(rng.u32(0x0100_0000..0xe000_0000));
        let [a, b, ..] = address.octets();
        let is_shared = a == 100 && b & 0xc0 == 64;
        let is_benchmark = a == 198 && b & 0xfe == 18;
        if !(address.is_private()
            || address.is_loopback()
            || address.is_link_local()
            || is_shared
            || is_benchmark
            || address.is_documentation())
        {
            return address.to_bits();
        }
    }
}

/// Draws an address of `2000::/3`.
fn global6(rng: &mut Rng) -> u128 {
    1 << 125 | rng.u128(..) >> 3
}

/// Returns the partial sums of 1/n, for n from 1 to `count`.
fn zipf(count: usize) -> Vec<f64> {
    let mut sum = 0.0;
    let mut rank = 0.0;
    (0..count)
        .map(|_| {
            rank += 1.0;
            sum += 1.0 / rank;
            sum
        })
        .collect()
}

const fn host_mask(family: Family, length: u8) -> u128 {
    match family.bits() - length {
        0 => 0,
        host => u128::MAX >> (128 - host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_has_the_promised_share_of_hits() {
        for family in Family::BOTH {
            for count in [28, 5_000] {
                let list = List::new(family, count, 1);
                assert_eq!(list.prefixes.len(), count);
                let inside = |address: u128| {
                    let mut prefixes = list.prefixes.iter();
                    prefixes.any(|one| (one.address..=one.last(family)).contains(&address))
                };
                for (traffic, hits) in [
                    (Traffic::Miss, 0..=0),
                    (Traffic::Hit, 500..=500),
                    (Traffic::Mix, 200..=300),
                    (Traffic::Zipf, 500..=500),
                ] {
                    let addresses = list.addresses(traffic, 500, 2).unwrap();
                    let found = addresses.iter().filter(|&&address| inside(address)).count();
                    assert!(hits.contains(&found), "{family} {traffic}: {found}");
                    assert_eq!(list.addresses(traffic, 500, 2).unwrap(), addresses);
                }
            }
        }
    }

    #[test]
    fn prefixes_have_no_bits_after_their_length() {
        for family in Family::BOTH {
            for prefix in List::new(family, 1000, 3).prefixes {
                let net = prefix.net(family);
                assert_eq!(net.addr(), net.network());
            }
        }
    }
}
