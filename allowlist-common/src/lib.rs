//! The contract between the kernel program and userspace: what the maps hold, how a frame is
//! parsed, which packets answer which, and how a packet is judged. Both sides compile this very code.
//!
//! Knows no map type, no system call, no allocation: a frame is a [`frame::Frame`] to read bytes from and
//! the tables are a [`judge::Tables`] to look things up in, so that the logic that runs in the kernel
//! also runs on the host, under tests.
#![no_std]

pub mod abi;
pub mod flow;
pub mod frame;
pub mod judge;
pub mod packet;
pub mod ranges;
pub mod verdict;
