//! The one writer of rows: keeps holders, task keys and everything derived in step, says what
//! changed, and lets linked tasks follow.

use common::{
    entry::transition::Event,
    ids::{LogIndex, TaskId},
    task::{Scope, TaskState},
};

use super::{
    ClusterQueue, KeyRow, QueueEvent, TaskRow,
    derived::{Sum, key_bytes},
};
use crate::Shared;

impl ClusterQueue {
    /// Replaces a row, or adds one, and keeps everything derived in step. The one writer of rows.
    pub(super) fn put_row(&mut self, task: TaskId, row: TaskRow, events: &mut Vec<QueueEvent>) {
        let row = Shared::new(row);
        let before = self.state.rows.insert(task, row.clone());
        let retired = self.set_retired(&task, None);
        let (from, to) = (before.as_deref().map(TaskRow::state).or(retired), row.state());
        let held = |row: &TaskRow| row.holder().filter(|_| row.cluster == Some(self.state.cluster));
        let (was_held, is_held) = (before.as_deref().and_then(held), held(&row));
        if was_held != is_held {
            if let Some(claim) = was_held {
                let holder = self.state.holders.or_default(&claim.device);
                assert!(
                    holder.claims.remove(&task),
                    "a holder's claims are the rows that name it"
                );
                events.push(QueueEvent::HoldEnded {
                    task,
                    device: claim.device,
                    fence: claim.fence,
                    state: to,
                });
            }
            if let Some(claim) = is_held {
                self.state.holders.or_default(&claim.device).claims.insert(task);
                events.push(QueueEvent::Claimed {
                    task,
                    device: claim.device,
                    fence: claim.fence,
                });
            }
        }
        if from != Some(to) {
            events.push(QueueEvent::TaskChanged { task, from, to });
        }
        if let Some(before) = &before {
            self.derived.remove(&task, before);
        } else if row.scope == Scope::Cluster {
            self.put_key(task, &row);
        }
        self.derived.add(&task, &row);
    }

    /// The key of a row of cluster scope that is new, or back.
    fn put_key(&mut self, task: TaskId, row: &TaskRow) {
        let key = (row.author, row.task.key.clone());
        let new = KeyRow {
            task,
            content: row.content,
            left: None,
        };
        let before = self.state.keys.insert(key.clone(), new);
        if let Some(known) = before
            && let Some(left) = known.left
        {
            self.derived.sum.remove(Sum::of_left_key(&key, &known));
            self.derived.left_keys.remove(&(left, task));
        } else {
            self.derived.key_bytes += key_bytes(&key);
        }
    }

    /// Lets links follow after something happened to `task`. Tasks of this cluster's own queue that
    /// wait for a task of it that ended otherwise than completed fail at once, `task` itself included.
    /// A task elsewhere ends its followers with the block that shows it.
    pub(super) fn follow_links(&mut self, task: TaskId, index: LogIndex, events: &mut Vec<QueueEvent>) {
        let mut worklist: Vec<TaskId> = self.derived.waiting.get(&task).into_iter().flatten().copied().collect();
        if self.derived.linked.contains(&task) {
            worklist.push(task);
        }
        while let Some(task) = worklist.pop() {
            let Some(row) = self.state.rows.get(&task) else {
                continue;
            };
            if !row.task.after.iter().any(|other| self.has_ended_badly(other)) {
                continue;
            }
            let mut row = TaskRow::clone(row);
            if row.life.happen(Event::LinkedTaskEnded).is_ok() {
                row.changed_at = index;
                self.put_row(task, row, events);
                worklist.extend(self.derived.waiting.get(&task).into_iter().flatten());
            }
        }
    }

    /// Whether a task of this cluster's own queue ended otherwise than completed.
    pub(super) fn has_ended_badly(&self, task: &TaskId) -> bool {
        let (scope, state) = match (self.state.rows.get(task), self.global.state_of(task)) {
            (Some(row), _) => (row.scope, row.state()),
            (None, Some((state, scope, through))) if through == self.state.cluster => (scope, state),
            (None, _) => return false,
        };
        scope == Scope::Cluster && !state.is_open() && state != TaskState::Completed
    }

    /// State of a task here, or in the global view.
    pub(super) fn task_state(&self, task: &TaskId) -> Option<TaskState> {
        match self.state.rows.get(task) {
            Some(row) => Some(row.state()),
            None => self.global.state_of(task).map(|(state, _, _)| state),
        }
    }

    /// Whether all tasks are completed that `task` waits for. What the global queue saw completed counts
    /// when nothing is kept of it any more.
    pub(super) fn links_are_completed(&self, task: &TaskId, row: &TaskRow) -> bool {
        let is_completed = |other: &TaskId| self.task_state(other) == Some(TaskState::Completed);
        let global = || self.global.task(task);
        row.task.after.iter().all(is_completed) || global().is_some_and(|row| row.links_open() == 0)
    }
}
