//! Over real UDP on loopback.

mod admission;
pub(crate) mod fleet;
mod frames;
mod lanes;
mod life;
