//! The ports of a shell. `main` gives the machine's, the simulator gives its own; a shell cannot tell.

mod clock;
mod disk;
mod lane;
mod message;

pub use clock::{Clock, Entropy, Instant, Spawner};
pub use disk::{Disk, Journal};
pub use lane::{Lane, LaneReceiver, LaneSender};
pub use message::{CallError, Peer, Service, Transport};

/// A boxed future that owns what it needs.
pub type BoxFuture<T> = futures::future::BoxFuture<'static, T>;
