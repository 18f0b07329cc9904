//! The simulator's side of the ports: what a shell touches instead of the machine.

mod clock;
mod disk;
mod lane;
mod links;
mod network;
mod raft_log;
mod snapshots;
mod tap;
mod twins;

pub use clock::{EPOCH, SimClock};
pub use disk::{DiskTiming, DiskTrouble, Rotten, SimDisk};
pub use links::{Direction, Fate, LinkConditions, Links};
pub use network::{Listener, Sender, SharedTap, SimNetwork, SimTransport};
pub use raft_log::{Kept, RecordPool, SimLog};
pub use snapshots::SimSnapshots;
pub use tap::{Leaves, Sending, Tap};
pub use twins::{Host, Sides};
