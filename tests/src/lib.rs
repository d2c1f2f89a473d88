//! The environment of the tests, the demo and the benchmark: network namespaces, the program as a process, a vendor's
//! server on loopback, a name server, a model of the filter, and eBPF programs to measure.
//!
//! Invariant: the machine's network and mounts stay unchanged, and the kernel removes everything when the process ends,
//! also by SIGKILL.

pub mod dns_message;
pub mod egress;
pub mod lab;
pub mod model;
pub mod name_server;
pub mod skip;
pub mod vendor;

/// The object file of `tests/ebpf`: the eBPF programs of the benchmark, and the program `linger`, which runs until a
/// test stops it.
pub static EBPF_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/allowlist-bench-ebpf"));
