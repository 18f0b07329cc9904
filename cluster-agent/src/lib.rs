//! Tier 1, shell and binary: Raft in a regional cluster, the uplink and the downlink, the local socket.
#![forbid(unsafe_code)]

pub mod raft;
