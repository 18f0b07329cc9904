//! Seeded schedules against the whole core: loss, duplication, reordering, partitions and crashes
//! before the network heals, forging adversaries before and after.
//!
//! A failure prints its seed, and the seed is enough to repeat it.

mod adversary;
pub mod bench;
pub mod fixture;
mod network;
mod plan;
mod rng;

mod tests;
