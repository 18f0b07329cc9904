//! Tier 1, pure: what one regional cluster decides, without a clock, a disk or a network.
//!
//! | room | decides |
//! |---|---|
//! | [`admission`] | may this entry enter here, now |
//! | [`queue`] | the state of the cluster as a function of its log |
//! | [`batcher`] | when a batch closes, what is in flight, what is sent again |
//! | [`attestation`] | what this member signs, once, and when a batch is certified |
//! | [`global_view`] | how finalized blocks come back through the log |
//! | [`membership`] | who takes the place of a member that lost its disk |
//! | [`lease`] | who may run what until when |
//! | [`freshness`] | mode, and how old an answer may be |
//!
//! Time is an argument in microseconds of a clock that never steps back and counts suspend. The
//! dependency list in `Cargo.toml` is the proof that nothing else is read.
#![forbid(unsafe_code)]

pub mod admission;
pub mod attestation;
pub mod batcher;
pub mod freshness;
pub mod global_view;
pub mod lease;
pub mod membership;
pub mod queue;
mod shared;
mod shared_map;
#[cfg(test)]
mod testing;

pub use shared::Shared;
pub use shared_map::SharedMap;
