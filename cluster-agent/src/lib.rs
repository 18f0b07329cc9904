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
#![forbid(unsafe_code)]

pub mod config;
pub mod counters;
pub mod peers;
pub mod ports;
pub mod raft;
pub mod replica;
pub mod signatures;
