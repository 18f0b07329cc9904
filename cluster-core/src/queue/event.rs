//! What an applied entry did, for those who act on it.

use common::{
    entry::Fence,
    ids::{BatchSeq, BlockTime, DeviceId, EntryId, Height, LogIndex, TaskId},
    roster::Roster,
    task::TaskState,
    verdict::{Answer, Verdict},
};

use super::Conflict;
use crate::{Shared, batcher::OutboxBatch};

/// What one log entry did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The author-signed entry, if it was one.
    pub entry: Option<EntryId>,
    /// What its author is answered.
    pub answer: Option<Answer>,
    /// What changed, in order.
    pub events: Vec<QueueEvent>,
}

/// Something that a member of the cluster acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueEvent {
    /// A batch closed: attest it.
    BatchClosed(Shared<OutboxBatch>),
    /// A batch of this cluster is final: records and attestations of it may go.
    BatchFinal {
        /// Which.
        seq: BatchSeq,
        /// Height of the block.
        height: Height,
    },
    /// Author-signed entries of this cluster that became final, with the global tier's decisions.
    EntriesFinal {
        /// Height of the block.
        height: Height,
        /// In order of the block.
        entries: Vec<(EntryId, Verdict)>,
    },
    /// A finalized block took effect.
    BlockApplied {
        /// Its height.
        height: Height,
        /// Its time.
        time: BlockTime,
        /// Index at which the newest batch of this cluster in it was closed.
        own_cut: Option<LogIndex>,
    },
    /// A task has another state.
    TaskChanged {
        /// Which.
        task: TaskId,
        /// `None` for a new row.
        from: Option<TaskState>,
        /// Now.
        to: TaskState,
    },
    /// A drone of this cluster holds a task.
    Claimed {
        /// Which.
        task: TaskId,
        /// Who.
        device: DeviceId,
        /// Its token.
        fence: Fence,
    },
    /// All claims of a drone were renewed.
    Renewed {
        /// Who.
        device: DeviceId,
        /// By the entry at this index.
        index: LogIndex,
    },
    /// A drone holds a task no more. If the task was ended or taken from it, it is told to abort.
    HoldEnded {
        /// Which.
        task: TaskId,
        /// Who held it.
        device: DeviceId,
        /// Its token.
        fence: Fence,
        /// State of the task now.
        state: TaskState,
    },
    /// The roster in force after this entry.
    RosterChanged(Roster),
    /// A finalized block names another batch than this log built, or carries another state than was computed
    /// here: stop as voter, with this proof.
    Quarantined(Conflict),
}
