//! The simulator's side of the ports: what a shell touches instead of the machine.

mod clock;
mod disk;
mod network;
mod raft_log;

pub use clock::SimClock;
pub use disk::{DiskTiming, SimDisk};
pub use network::{LinkConditions, SimNetwork, SimTransport};
pub use raft_log::{SimLog, SimSnapshots};
