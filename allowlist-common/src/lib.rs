//! The packet logic of allowlist, and the ABI of its maps.
//!
//! The kernel programs and the userspace program both compile this crate, so that tests, `allowlist explain` and
//! fuzzers on the host run the same code as the kernel. It uses no map type, no system call and no allocation: it
//! reads a frame through the trait [`frame::Frame`], and a policy through the trait [`judge::Tables`].
//!
//! The path of a packet through the modules:
//!
//! 1. [`frame`] gives bounds-checked access to the bytes of a frame.
//! 2. [`packet`] parses a frame to addresses, protocol and ports, or to the reason why it is [malformed].
//! 3. [`judge`] decides on a parsed packet. It looks up the source in the range table ([`ranges`]), and flows of this
//!    host in the flow table ([`flow`]).
//! 4. [`verdict`] has the two verdicts and the reasons, which index the counters.
//!
//! [`egress`] decides on the connections and datagrams that this host's own programs request, by the same tables.
//!
//! All tables are read through [`volatile`], because userspace changes them at the same time.
//!
//! [`abi`] defines the maps: names, layout and version. A change there must keep older loaders and programs working,
//! or raise [`abi::VERSION`].
//!
//! # Examples
//!
//! Parse a UDP packet from 192.0.2.1 to port 53:
//!
//! ```
//! use allowlist_common::packet::{Address, Contents, Malformed, Transport, UDP, parse};
//!
//! let frame = [
//!     [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00].as_slice(), // Ethernet: IPv4 follows
//!     &[0x45, 0, 0, 28, 0, 0, 0, 0, 64, UDP, 0, 0], // IPv4: 28 bytes, TTL 64
//!     &[192, 0, 2, 1, 198, 51, 100, 7],             // source and destination address
//!     &[0x0f, 0xa0, 0, 53, 0, 8, 0, 0],             // UDP: ports 4000 and 53
//! ]
//! .concat();
//!
//! let Ok(Contents::Ip(packet)) = parse(&frame[..]) else {
//!     panic!("the frame is well-formed");
//! };
//! assert_eq!(packet.source, Address::V4(0xc000_0201));
//! assert_eq!(
//!     packet.transport,
//!     Transport::Ports { source: 4000, destination: 53, flags: 0 },
//! );
//!
//! // The IPv4 header states 28 bytes, and the frame ends before.
//! assert_eq!(parse(&frame[..40]), Err(Malformed::PacketLength));
//! ```
//!
//! [malformed]: packet::Malformed
#![no_std]

#[cfg(target_endian = "big")]
compile_error!(
    "the range table's halves and the packed packet are little-endian: allowlist supports no big-endian target"
);

pub mod abi;
pub mod dns;
pub mod egress;
pub mod flow;
pub mod frame;
pub mod judge;
pub mod packet;
pub mod ranges;
pub mod verdict;
pub mod volatile;
