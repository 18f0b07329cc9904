//! The ten things an author can ask for.

use serde::{Deserialize, Serialize};

use crate::{
    crypto::preimage::Tag,
    ids::{Assignment, Founding, HolderCounter, LogIndex, TaskId},
};

/// Orders the holders of one task: compare `assignment`, then `founding`, then `index`.
///
/// It orders them at a thing that both reach (a dock, a locker). Between two vehicles the lease
/// protects, not the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// How often the task was assigned; 0 for cluster scope.
    pub assignment: Assignment,
    /// Founding of the cluster in whose log the claim stands.
    pub founding: Founding,
    /// Log index of the claim.
    pub index: LogIndex,
}

/// Where a holder is with its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Progress {
    Started,
    Paused,
    Resumed,
    /// 0 to 100.
    Percent(u8),
}

/// Why a claimed or ended task is queued again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// Signed by the leader's device: the lease of this claim has certainly ended.
    LeaseEnded {
        /// The claim meant.
        fence: Fence,
        /// Index of the newest renewal the leader had applied; a newer one makes this a no-op.
        renewed_at: LogIndex,
    },
    /// Signed by an operator: a failed or expired task is tried again.
    Operator,
}

/// What an entry asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Queue a task; its content is the payload.
    Submit,
    /// End a task.
    Cancel {
        /// Which.
        task: TaskId,
    },
    /// Take a task.
    Claim {
        /// Which.
        task: TaskId,
        /// The assignment it saw; 0 for cluster scope.
        assignment: Assignment,
        /// Orders this among the holder's claims, renewals, releases and failures.
        counter: HolderCounter,
    },
    /// Renew all leases of the author. In no batch and no number stream.
    Renew {
        /// As in `Claim`.
        counter: HolderCounter,
    },
    /// Report on a task that is held.
    Progress {
        /// Which.
        task: TaskId,
        /// Under which claim.
        fence: Fence,
        /// What.
        progress: Progress,
    },
    /// The task is done. The payload is a note for people.
    Complete {
        /// Which.
        task: TaskId,
        /// Under which claim.
        fence: Fence,
    },
    /// The task could not be done. The payload is the reason for people.
    Fail {
        /// Which.
        task: TaskId,
        /// Under which claim.
        fence: Fence,
        /// As in `Claim`.
        counter: HolderCounter,
        /// Whether another try makes sense.
        retriable: bool,
    },
    /// Give a task back. The vehicle has stopped.
    Release {
        /// Which.
        task: TaskId,
        /// Under which claim.
        fence: Fence,
        /// As in `Claim`.
        counter: HolderCounter,
    },
    /// Queue a task again.
    Requeue {
        /// Which.
        task: TaskId,
        /// Why.
        cause: Cause,
    },
    /// An operator frees a task whatever its lease says. The payload says why; the history keeps it.
    ForceRequeue {
        /// Which.
        task: TaskId,
    },
}

impl Action {
    /// The purpose its signature is made for.
    #[must_use]
    pub fn tag(&self) -> Tag {
        match self {
            Action::Submit => Tag::Submit,
            Action::Cancel { .. } => Tag::Cancel,
            Action::Claim { .. } => Tag::Claim,
            Action::Renew { .. } => Tag::Renew,
            Action::Progress { .. } => Tag::Progress,
            Action::Complete { .. } => Tag::Complete,
            Action::Fail { .. } => Tag::Fail,
            Action::Release { .. } => Tag::Release,
            Action::Requeue { .. } => Tag::Requeue,
            Action::ForceRequeue { .. } => Tag::ForceRequeue,
        }
    }

    /// The task it names; `None` for `Submit`, whose id is the task's, and for `Renew`.
    #[must_use]
    pub fn task(&self) -> Option<TaskId> {
        match *self {
            Action::Submit | Action::Renew { .. } => None,
            Action::Cancel { task }
            | Action::Claim { task, .. }
            | Action::Progress { task, .. }
            | Action::Complete { task, .. }
            | Action::Fail { task, .. }
            | Action::Release { task, .. }
            | Action::Requeue { task, .. }
            | Action::ForceRequeue { task } => Some(task),
        }
    }

    /// The assignment number it names, which says whether a cluster's verdict still counts.
    #[must_use]
    pub fn assignment(&self) -> Option<Assignment> {
        match *self {
            Action::Claim { assignment, .. } => Some(assignment),
            Action::Progress { fence, .. }
            | Action::Complete { fence, .. }
            | Action::Fail { fence, .. }
            | Action::Release { fence, .. }
            | Action::Requeue {
                cause: Cause::LeaseEnded { fence, .. },
                ..
            } => Some(fence.assignment),
            _ => None,
        }
    }

    /// The claim it speaks for.
    #[must_use]
    pub fn fence(&self) -> Option<Fence> {
        match *self {
            Action::Progress { fence, .. }
            | Action::Complete { fence, .. }
            | Action::Fail { fence, .. }
            | Action::Release { fence, .. }
            | Action::Requeue {
                cause: Cause::LeaseEnded { fence, .. },
                ..
            } => Some(fence),
            _ => None,
        }
    }

    /// The word used in tables, JSON and errors.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Action::Submit => "submit",
            Action::Cancel { .. } => "cancel",
            Action::Claim { .. } => "claim",
            Action::Renew { .. } => "renew",
            Action::Progress {
                progress: Progress::Started,
                ..
            } => "start",
            Action::Progress {
                progress: Progress::Paused,
                ..
            } => "pause",
            Action::Progress {
                progress: Progress::Resumed,
                ..
            } => "resume",
            Action::Progress { .. } => "progress",
            Action::Complete { .. } => "complete",
            Action::Fail { .. } => "fail",
            Action::Release { .. } => "release",
            Action::Requeue { .. } => "requeue",
            Action::ForceRequeue { .. } => "force-requeue",
        }
    }
}
