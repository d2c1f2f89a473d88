//! The environment of tests and demo: network namespaces, the program as a process, a vendor's server on loopback, a name
//! server, and a model of the filter.
//!
//! Invariant: the machine's network and mounts stay unchanged, and the kernel removes everything when the process ends,
//! also by SIGKILL.

pub mod lab;
pub mod model;
pub mod name_server;
pub mod skip;
pub mod vendor;
