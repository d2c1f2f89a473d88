//! What the tests and the demo stand on: a laboratory of network namespaces, the program as a
//! process, and a vendor that answers from loopback.
//!
//! Invariant: nothing here changes the machine's own network or mounts, and nothing outlives the
//! process, however it ends. Knows nothing of how `allowlist` works inside.

pub mod lab;
pub mod model;
pub mod name_server;
pub mod skip;
pub mod vendor;
