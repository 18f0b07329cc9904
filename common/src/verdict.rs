//! What was decided about an entry, in words that its author is shown.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{LogIndex, TaskId},
    task::TaskState,
};

/// Decision about one entry at its place in a log or in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// It took effect.
    Granted,
    /// It changed nothing, and this is why.
    Rejected(Reason),
    /// A result that came too late to change the task, kept in its history.
    Late,
}

/// Why an entry changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Reason {
    /// The author is not registered, or never had this key.
    #[error("the author or its key version is not registered")]
    UnknownKey,
    /// The signature or another static rule is broken.
    #[error("the entry is malformed or its signature does not verify")]
    Malformed,
    /// Suspended, revoked, or without the role.
    #[error("the author may not do this")]
    Denied,
    /// Signed under a key that was rotated.
    #[error("the author's key was rotated: sign with the new one")]
    StaleKey,
    /// Names another cluster than the one it was entered in.
    #[error("the entry names another cluster")]
    WrongCluster,
    /// The same number carried other content before.
    #[error("the number was used for other content")]
    Conflict,
    /// The number fell below the window.
    #[error("the number is below the window of remembered numbers")]
    NumberWindow,
    /// Entered above its `not_after_height`.
    #[error("the entry expired before it was committed")]
    Expired,
    /// No such task here.
    #[error("no such task")]
    UnknownTask,
    /// The transition table has no row for the state the task was found in.
    #[error("not possible while the task is {0}")]
    WrongState(TaskState),
    /// The fence or assignment number is not the task's.
    #[error("fenced: the claim it names is not the task's newest")]
    Fenced,
    /// By another device than the holder.
    #[error("the author does not hold the task")]
    NotHolder,
    /// Another cluster has custody.
    #[error("another cluster has custody of the task")]
    NotInCustody,
    /// The holder's counter is not above the ones applied before.
    #[error("a newer claim or renewal of the holder was applied before")]
    OldCounter,
    /// Linked tasks are not completed yet.
    #[error("a linked task is not completed yet")]
    Blocked,
    /// The lease may still be valid.
    #[error("the lease was renewed meanwhile")]
    LeaseRenewed,
    /// The device lacks a capability or is outside the constraints.
    #[error("the task's constraints exclude it")]
    Constrained,
    /// The same author and task key, same content: that task is the one.
    #[error("duplicate of {0}")]
    DuplicateOf(TaskId),
    /// The same author and task key with other content.
    #[error("the task key belongs to {0}, whose content differs")]
    KeyConflict(TaskId),
    /// The device holds as many tasks as it may.
    #[error("the device holds as many tasks as it may")]
    TooManyClaims,
    /// A linked task of the same cluster ended otherwise than completed, so long ago that the global queue lets
    /// go of it: a task that waits for it could never start.
    #[error("linked task {0} ended long ago and was not completed")]
    LinkEnded(TaskId),
}

/// What is remembered of a number in a stream, and answered to a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Answer {
    /// Where the entry stands in its cluster's log.
    pub index: LogIndex,
    /// What was decided there.
    pub verdict: Verdict,
}
