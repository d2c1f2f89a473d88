//! What the kernel programs of the packet filter (`main.rs`) and of the egress policy (`connect.rs`) share: the control
//! word, the lookup in a range table, and the clock.
#![no_std]
#![allow(
    unsafe_code,
    reason = "map values and symbols for the loader; each block has a SAFETY comment"
)]

pub mod clock;
pub mod control;
pub mod ranges;
