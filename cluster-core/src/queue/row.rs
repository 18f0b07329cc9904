//! Rows of the queue: tasks and holders.

use std::collections::BTreeSet;

use common::{
    entry::{
        Fence,
        life::{Holder, Life},
    },
    ids::{Assignment, ClusterId, DeviceId, Digest, Height, HolderCounter, LogIndex, TaskId},
    lease_terms::LeaseTerms,
    task::{Scope, Task, TaskState},
    wire::op::Finality,
};
use serde::{Deserialize, Serialize};

use crate::Shared;

/// One task, as this cluster's log says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRow {
    /// Who submitted it.
    pub author: DeviceId,
    /// Whose queue it is in.
    pub scope: Scope,
    /// Cluster it was submitted through.
    pub through: ClusterId,
    /// Digest of its content: tells a retry under the same key from a conflict.
    pub content: Digest,
    /// Its content.
    pub task: Shared<Task>,
    /// State, holder, tries and progress.
    pub life: Life,
    /// Cluster whose it is, or that has custody of it.
    pub cluster: Option<ClusterId>,
    /// How often it was assigned or taken back; 0 for cluster scope.
    pub assignment: Assignment,
    /// C, L, G and t_stop, written with the assignment or at `Submit`.
    pub terms: LeaseTerms,
    /// How final.
    pub finality: Finality,
    /// Index of the newest entry of this log that this row's state rests on.
    pub changed_at: LogIndex,
    /// Cluster scope: global height of this log at the entry that queued the task last. An ended link that was marked
    /// up to there does not end it.
    pub queued_at: Height,
}

impl TaskRow {
    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> TaskState {
        self.life.state
    }

    /// Who holds the task now.
    #[must_use]
    pub fn holder(&self) -> Option<Holder> {
        self.life.holder.filter(|_| self.life.state.is_held())
    }
}

/// The one task of a task key of cluster scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyRow {
    /// The task.
    pub(super) task: TaskId,
    /// Digest of its content: tells a repeated key from a conflict.
    pub(super) content: Digest,
    /// Height at which its row left; `None` while it is here.
    pub(super) left: Option<Height>,
}

/// What is kept of a drone as a holder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderRow {
    /// Highest counter of a granted `Claim` or `Renew`.
    pub counter: HolderCounter,
    /// Index of the newest granted `Renew`.
    pub renewed_at: LogIndex,
    /// Tasks it holds in this cluster.
    pub claims: BTreeSet<TaskId>,
}

/// A claim that holds a task of this cluster, with what its lease depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which task.
    pub task: TaskId,
    /// Its scope.
    pub scope: Scope,
    /// The drone.
    pub device: DeviceId,
    /// The claim.
    pub fence: Fence,
    /// Index of the newest renewal: the claim's own, or that of a later `Renew`.
    pub renewed_at: LogIndex,
    /// C, L, G and t_stop.
    pub terms: LeaseTerms,
    /// Whether the vehicle stops by itself at a deadline.
    pub stops_by_itself: bool,
}
