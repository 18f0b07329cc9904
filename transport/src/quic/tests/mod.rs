//! Over real UDP on loopback.

mod admission;
pub(crate) mod fleet;
mod frames;
#[cfg(feature = "relay")]
mod heal;
mod lanes;
mod life;
