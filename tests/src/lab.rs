//! The laboratory: network namespaces that links connect, with frames, sockets and processes in them.
//!
//! Invariant: this process holds all kernel objects of the laboratory open, so the kernel removes them when the process
//! ends, also by SIGKILL. Several laboratories can run at the same time.

mod background_load;
mod cgroup;
mod clock;
mod confirm_time;
mod foreign;
mod frame_sender;
mod gro;
mod hang;
mod link;
mod manager;
mod map_types;
mod namespace;
mod process;
mod scratch;
mod slow_file;
mod snapshot;
mod tap;
mod testbed;
mod tun;

pub mod frame;
pub mod stream;

pub use background_load::with_background_load;
pub use cgroup::Cgroup;
pub use clock::WallClock;
pub use foreign::{ForeignProgram, attach_first, detach_link, load_foreign, replace_program};
pub use frame_sender::FrameSender;
pub use gro::receive_in_batches;
pub use hang::Hang;
pub use link::{
    HOST_MAC, LinkKind, PEER_MAC, VethEnd, add_addresses, add_ingress, bridge, connect,
    egress_filters, move_to, remove, rename, set_channels, set_mtu, set_packet_limit,
    veth_with_queues,
};
pub use manager::Manager;
pub use map_types::MapTypes;
pub use namespace::Namespace;
pub use process::{Program, allowlist};
pub use scratch::Scratch;
pub use slow_file::SlowFile;
pub use snapshot::{Snapshot, normalized};
pub use tap::Tap;
pub use testbed::{Ended, Testbed, eventually};
pub use tun::Tun;
