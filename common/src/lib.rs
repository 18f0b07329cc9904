//! The shared language of Muster: what a task, an entry, a batch, a block and a certificate *are*,
//! how each is encoded and signed, and the one global queue that every machine computes alike.
//!
//! Everything here is pure: no clock, no IO, no randomness, no threads. Time and seeds are
//! arguments. The dependency list in `Cargo.toml` is the proof.
//!
//! Read in the order of the journey: [`task`] -> [`entry`] -> [`batch`] -> [`block`] ->
//! [`certificate`] -> [`global_queue`] -> [`proof`].
#![forbid(unsafe_code)]

pub mod batch;
pub mod block;
pub mod bug;
pub mod certificate;
pub mod codec;
pub mod crypto;
pub mod entry;
pub mod first_bytes;
pub mod genesis;
pub mod global_queue;
pub mod ids;
pub mod lease_terms;
pub mod limits;
pub mod merkle;
pub mod number_stream;
pub mod proof;
pub mod quorum;
pub mod recall;
pub mod registry;
pub mod retention_scale;
pub mod roster;
pub mod task;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod validator_set;
pub mod verdict;
pub mod wire;
