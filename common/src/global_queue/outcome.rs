//! What executing a block decided, leaf by leaf.

use serde::{Deserialize, Serialize};

use super::Retired;
use crate::{
    block::BatchRef,
    codec::{Wire, to_bytes},
    entry::StaticFault,
    ids::{Assignment, ClusterId, Digest, EntryId, Height, TaskId},
    merkle,
    task::TaskState,
    verdict::{Reason, Verdict},
};

/// Why a reference of a block changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum StaleReason {
    /// No such cluster.
    #[error("no such cluster")]
    UnknownCluster,
    /// The cluster was founded anew, or not yet.
    #[error("of another founding")]
    OtherFounding,
    /// Executed before, or a batch before it is missing.
    #[error("not the next batch of its cluster")]
    NotNext,
    /// Its predecessor is not the batch that was executed last.
    #[error("follows another batch than the last one")]
    OtherPredecessor,
    /// Signed by another roster than the one in force.
    #[error("names another roster than the one in force")]
    OtherRoster,
    /// The roster it says is next is not the one its rows lead to.
    #[error("its rows lead to another roster than it says")]
    OtherNextRoster,
    /// A global height that its cluster cannot have seen, or below that of the batch before.
    #[error("names a global height that its log cannot have stood at")]
    ImpossibleHeight,
    /// The digest is that of a batch with another cluster, founding or number.
    #[error("names a batch otherwise than its header does")]
    Misnamed,
}

/// A decision of the machinery about a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MachineEvent {
    /// Placed with a cluster.
    Assigned {
        /// Which.
        cluster: ClusterId,
        /// The task's new assignment number.
        assignment: Assignment,
    },
    /// Its deadline passed.
    Expired,
    /// A linked task ended otherwise than completed.
    LinkedTaskEnded,
}

impl MachineEvent {
    /// The word used in tables and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Assigned { .. } => "assigned",
            Self::Expired => "expired",
            Self::LinkedTaskEnded => "linked-task-ended",
        }
    }
}

/// One decision of a block. A leaf under its outcome root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// About a reference as a whole.
    Batch {
        /// Position among the block's references.
        reference: u32,
        /// `None`: executed. Otherwise why it changed nothing.
        stale: Option<StaleReason>,
    },
    /// About a row of an executed batch.
    Entry {
        /// Position of the batch among the block's references.
        reference: u32,
        /// Position of the row in the batch.
        row: u32,
        /// The entry.
        id: EntryId,
        /// The task it is about, if there is such a task now.
        task: Option<TaskId>,
        /// What was decided.
        verdict: Verdict,
        /// State of the task afterwards.
        state: Option<TaskState>,
    },
    /// About a task, by the machinery.
    Machine {
        /// The task.
        task: TaskId,
        /// What happened.
        what: MachineEvent,
        /// State of the task afterwards.
        state: TaskState,
    },
}

impl Outcome {
    /// Leaf digest under the outcome root.
    #[must_use]
    pub fn leaf(&self) -> Digest {
        merkle::leaf(&to_bytes(self))
    }
}

impl Wire for Outcome {
    const BYTES_MAX: usize = 256;
}

/// Root over outcomes in their order; [`merkle::root`] of nothing for a block without any, and for height 0.
#[must_use]
pub fn outcome_root(outcomes: &[Outcome]) -> Digest {
    merkle::root(&outcomes.iter().map(Outcome::leaf).collect::<Vec<_>>())
}

/// Something that an honest quorum of a roster does not attest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowFault {
    /// The entry is bad for ever.
    #[error("{0}")]
    Static(#[from] StaticFault),
    /// Its key is in no registry.
    #[error("the author's key is not registered")]
    UnknownKey,
    /// It names another cluster.
    #[error("the entry names cluster {0}")]
    WrongCluster(ClusterId),
    /// A `Renew` travels in no batch.
    #[error("a renewal travels in no batch")]
    Renewal,
    /// A roster with a device that is not of the cluster.
    #[error("the roster names a device that is not enrolled for the cluster")]
    BadRoster,
    /// The cluster granted what the transition table refuses in its own queue.
    #[error("granted by the cluster, refused by the table: {0}")]
    Refused(Reason),
}

/// A fault with the place where it stands. For people, and for later proceedings; it is in no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The batch.
    pub batch: BatchRef,
    /// Position of the row.
    pub row: u32,
    /// The entry.
    pub id: EntryId,
    /// What is wrong with it.
    pub fault: RowFault,
}

/// What [`apply`](super::GlobalQueue::apply) made of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOutcome {
    /// Height of the block.
    pub height: Height,
    /// Every decision, in order.
    pub outcomes: Vec<Outcome>,
    /// Root over them. Stands in the header [`ROOT_LAG`](crate::limits::ROOT_LAG) above.
    pub outcome_root: Digest,
    /// Root of the state afterwards. Stands in the same header.
    pub state_root: Digest,
    /// Faults found in executed batches.
    pub evidence: Vec<Evidence>,
    /// Lines of the tasks that left the state with this block, in order, whether the state still keeps them or not; in no
    /// digest of its own, the state's root says it.
    pub dropped: Vec<Retired>,
}
