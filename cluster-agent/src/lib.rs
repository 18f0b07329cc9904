//! Tier 1, shell and binary: Raft in a regional cluster, the uplink and the downlink, the local socket.
//!
//! ```text
//!   operator, on-board software
//!        | api (admission, forwarded once)
//!        v
//!      raft -> machine (cluster-core) -> uplink -> validators
//!        ^                                            |
//!        +---------------- downlink <-----------------+
//! ```
//!
//! Read in the order of the journey: [`peers`] and [`api`] -> [`raft`] -> [`machine`] -> [`uplink`] ->
//! [`downlink`]. [`agent`] wires them; [`ports`] is all they know of the machine below.
#![forbid(unsafe_code)]

pub mod agent;
pub mod api;
pub mod buffer;
pub mod config;
pub mod contact;
mod counters;
pub mod downlink;
mod durable;
mod evidence;
mod fitness;
mod keeper;
pub mod machine;
mod members;
pub mod mode;
pub mod peers;
pub mod ports;
pub mod raft;
pub mod replica;
mod requeue;
pub mod shell;
pub mod signatures;
mod unreleased;
pub mod uplink;
