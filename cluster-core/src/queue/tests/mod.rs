//! Claims about the queue, rule by rule. Random logs stand in `random.rs`.

mod batches;
mod conflict;
mod entries;
mod fleet;
mod lives;
mod retention;
mod views;

use common::{
    entry::{Action, Cause, Fence},
    ids::{LogIndex, TaskId},
    task::Task,
    testing::task,
    verdict::{Reason, Verdict},
};

fn rejected(reason: Reason) -> Verdict {
    Verdict::Rejected(reason)
}

fn linked(key: &str, after: TaskId) -> Task {
    Task {
        after: vec![after].try_into().unwrap(),
        ..task(key)
    }
}

fn requeue(task: TaskId, fence: Fence, renewed_at: LogIndex) -> Action {
    let cause = Cause::LeaseEnded { fence, renewed_at };
    Action::Requeue { task, cause }
}
