//! Messages between members of one cluster (`muster-cluster/1`).

use serde::{Deserialize, Serialize};

use crate::{
    codec::Wire,
    entry::SignedEntry,
    ids::{ClusterId, Founding, LogIndex, RaftNodeId, Term},
    verdict::Answer,
    wire::op::WriteRefusal,
};

/// An entry on its one hop to the leader; never forwarded twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Cluster of the sender.
    pub cluster: ClusterId,
    /// Founding of the sender.
    pub founding: Founding,
    /// The entry, as its author signed it.
    pub entry: SignedEntry,
}

impl Wire for Forward {
    const BYTES_MAX: usize = 16 * 1024;
}

/// How a write ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteOutcome {
    /// On the disks of a majority, with this decision.
    Committed(Answer),
    /// Not in the log, and will not be.
    Refused(WriteRefusal),
    /// May be in the log: ask again with the same signed bytes.
    Unknown,
}

impl Wire for WriteOutcome {
    const BYTES_MAX: usize = 1024;
}

/// How soon a leader confirms itself for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Confirmation {
    /// It asks all members at once.
    AtOnce,
    /// By the answers to what it sends from now on anyway, within a heartbeat: costs no message.
    InPassing,
}

/// Asks the leader for a position that includes every write acknowledged before now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linearize {
    /// Cluster of the sender.
    pub cluster: ClusterId,
    /// Founding of the sender.
    pub founding: Founding,
    /// How soon it is answered.
    pub confirmation: Confirmation,
}

impl Wire for Linearize {
    const BYTES_MAX: usize = 64;
}

/// Answer to [`Linearize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Linearized {
    /// Wait until this index is applied.
    At {
        /// Term of the leader that answers.
        term: Term,
        /// The position.
        index: LogIndex,
    },
    /// Ask that member.
    NotLeader {
        /// The leader, if known.
        leader: Option<RaftNodeId>,
    },
    /// No majority answered the leader in time.
    NoQuorum,
}

impl Wire for Linearized {
    const BYTES_MAX: usize = 64;
}

/// Asks to be a member under the Raft id of the sender's hello. Sent while the sender's log is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Cluster of the sender.
    pub cluster: ClusterId,
    /// Founding of the sender.
    pub founding: Founding,
}

impl Wire for Join {
    const BYTES_MAX: usize = 64;
}

/// Answer to [`Join`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Joined {
    /// It is one.
    IsMember,
    /// Ask that member.
    NotLeader {
        /// The leader, if known.
        leader: Option<RaftNodeId>,
    },
    /// The leader will see to it: ask again until the log has come.
    NotNow,
    /// A later data directory of the same device is a member already.
    Retired {
        /// Its incarnation.
        incarnation: u32,
    },
    /// The member of this Raft id held entries, which an empty log has lost: its vote cannot be trusted.
    HadEntries {
        /// Last index it was known to hold.
        upto: LogIndex,
    },
}

impl Wire for Joined {
    const BYTES_MAX: usize = 64;
}
