//! The ports inside of one process, without clock, socket or file: for tests of shells, and what the
//! simulator's own ports build on.

mod disk;
mod lane;
mod network;
#[cfg(test)]
mod tests;

pub use disk::MemoryDisk;
pub use lane::{Fate, Weather, lane_pair};
pub use network::{MemoryNetwork, MemoryTransport};
