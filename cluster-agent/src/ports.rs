//! Everything through which an agent touches the machine. `main` gives the machine's, the simulator
//! gives its own; the shell cannot tell.
//!
//! # Rules
//! * Time, tasks, randomness, files and messages come through here and through no other way.
//! * Raft's own timers come from the runtime parameter of [`Agent::start`](crate::agent::Agent::start).

use std::sync::Arc;

pub use transport::ports::{
    BoxFuture, CallError, Clock, Disk, Entropy, Instant, Journal, Lane, LaneReceiver, LaneSender, Peer, Service,
    Spawner, Transport,
};

pub use crate::raft::{
    AsyncRuntime, TokioRuntime,
    store::{LogStore, snapshot::SnapshotStore},
};

/// The ports of one agent. Clones share them.
#[derive(Clone)]
pub struct AgentPorts {
    /// Requests to peers.
    pub transport: Arc<dyn Transport>,
    /// The boot-time clock.
    pub clock: Arc<dyn Clock>,
    /// Starts tasks, which end with the process.
    pub spawner: Arc<dyn Spawner>,
    /// Jitter.
    pub entropy: Arc<dyn Entropy>,
    /// Guard and counters, beside the database.
    pub disk: Arc<dyn Disk>,
    /// Raft's log.
    pub log: Arc<dyn LogStore>,
    /// Raft's snapshots.
    pub snapshots: Arc<dyn SnapshotStore>,
}
