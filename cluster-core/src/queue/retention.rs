//! When a closed task leaves the hot rows, and what stands for it afterwards.
//!
//! # Rules
//! * A row may leave when its task is closed, its end is final, nothing of this log about it waits to
//!   become final, and the global queue gives the same row back. A fleet-scope `Submit` that the
//!   global tier rejected has no row there; it leaves as well, and is unknown afterwards.
//! * It leaves with the block that is [`Retention::blocks`] above its end, or earlier, the oldest end
//!   first, while more than [`Retention::rows`] closed rows are kept. Heights stand in the log, so all
//!   members drop the same rows at the same position.
//! * A task key stays with the row, and with the [`Retention::keys`] rows that left last. Until then
//!   another submission under the key is the duplicate that it was; afterwards the key is free. Number
//!   streams know nothing of rows: a signed entry that took effect once never does again.
//! * Every decision about a task whose row has left is taken on the row that the global queue gives. If
//!   it changes the row, the row is back.
//! * Of a task whose row has left, its state is kept as long as the global queue keeps the task: a block may
//!   change it further. Counts of tasks by state are the same as if all rows were kept.
//! * The global queue drops closed tasks after a retention of its own. Nothing opens a task again, or
//!   changes its row, that the global queue has dropped or has marked as leaving: it is refused because
//!   of the task's state, in both tiers. For the same reason no task of cluster scope begins to wait for one
//!   that ended so otherwise than completed: [`Reason::LinkEnded`](common::verdict::Reason::LinkEnded).

use std::borrow::Cow;

use common::{
    global_queue::{Retired, Row},
    ids::{Height, TaskId},
    retention_scale::{scaled, scaled_count},
    task::{Scope, TaskState},
    wire::op::Finality,
};

use super::{
    ClusterQueue, QueueEvent, TaskRow,
    derived::{Sum, key_bytes},
};

/// How long a closed task keeps its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Blocks above the one that made its end final.
    pub blocks: u64,
    /// Closed rows kept at most.
    pub rows: usize,
    /// Task keys of cluster scope kept at most of rows that left.
    pub keys: usize,
}

/// What every member of every cluster uses: part of the replicated machine, like its rules. With a block
/// every 20 ms these are eleven minutes, with an idle block every 5 s almost two days; the rows take
/// some 50 MB.
pub const RETENTION: Retention = Retention {
    blocks: 32_768,
    rows: 65_536,
    keys: 131_072,
};

impl Retention {
    /// What a queue begins with, and what a restored one goes on with: [`RETENTION`], scaled.
    pub(super) fn in_force() -> Self {
        Self {
            blocks: scaled(RETENTION.blocks),
            rows: scaled_count(RETENTION.rows),
            keys: scaled_count(RETENTION.keys),
        }
    }
}

impl ClusterQueue {
    /// The row of a task of this cluster: the hot one, or what the global queue gives for it.
    pub(super) fn known_row(&self, task: &TaskId) -> Option<Cow<'_, TaskRow>> {
        match self.state.rows.get(task) {
            Some(row) => Some(Cow::Borrowed(&**row)),
            None => self.retired_row(task).map(Cow::Owned),
        }
    }

    /// What the global queue gives for a closed task of this cluster.
    pub(super) fn retired_row(&self, task: &TaskId) -> Option<TaskRow> {
        let global = self.global.task(task)?;
        let cluster = self.state.cluster;
        let is_ours = global.submitted.through == cluster || global.standing.cluster == Some(cluster);
        if !is_ours || global.state().is_open() {
            return None;
        }
        if global.scope() == Scope::Cluster {
            // Its key may be another task's by now: then it stays as it ended.
            let key = (global.submitted.author, global.task().key.clone());
            self.state.keys.get(&key).filter(|known| known.task == *task)?;
        }
        Some(self.row_from(global, self.global.finality_of(global)))
    }

    /// Drops the rows whose time has come. Called after a block took effect.
    pub(super) fn retire(&mut self) {
        let height = self.global.height();
        let excess = self.derived.closed.len().saturating_sub(self.retention.rows);
        let blocks = self.retention.blocks;
        let is_due = |(at, (ended, _)): &(usize, &(_, _))| *at < excess || Self::is_above(height, *ended, blocks);
        let due = self.derived.closed.iter().enumerate().take_while(is_due);
        let leaving: Vec<TaskId> = due
            .map(|(_, (_, task))| *task)
            .filter(|task| self.may_retire(task))
            .collect();
        for task in leaving {
            let row = self.state.rows.get(&task).expect("closed rows are rows").clone();
            self.derived.remove(&task, &row);
            self.state.rows.remove(&task);
            if self.global.task(&task).is_some() {
                self.set_retired(&task, Some(row.state()));
            } else {
                self.state.gone[row.state() as usize] += 1;
            }
            if row.scope == Scope::Cluster {
                self.keep_key(task, &row, height);
            }
        }
        self.forget_keys();
    }

    /// Counts the tasks that the global queue has just dropped, and whose rows left before.
    pub(super) fn follow_dropped(&mut self, dropped: &[Retired]) {
        for line in dropped {
            if let Some(state) = self.set_retired(&line.id, None) {
                self.state.gone[state as usize] += 1;
            }
        }
    }

    /// Notes the state of a task whose row has left, or that the row is back. Returns what was noted before.
    pub(super) fn set_retired(&mut self, task: &TaskId, state: Option<TaskState>) -> Option<TaskState> {
        let before = self.state.retired.get(task).copied();
        if let Some(before) = before {
            self.derived.retired[before as usize] -= 1;
            self.derived.sum.remove(Sum::of_retired(task, before));
        }
        match state {
            Some(state) => {
                self.derived.retired[state as usize] += 1;
                self.derived.sum.add(Sum::of_retired(task, state));
                self.state.retired.insert(*task, state);
            }
            None if before.is_some() => {
                self.state.retired.remove(task);
            }
            None => {}
        }
        before
    }

    /// A task whose row has left, and stays away, is in another state by a block.
    pub(super) fn follow_retired(&mut self, task: TaskId, to: TaskState, events: &mut Vec<QueueEvent>) {
        if let Some(from) = self.state.retired.get(&task).copied()
            && from != to
        {
            self.set_retired(&task, Some(to));
            let from = Some(from);
            events.push(QueueEvent::TaskChanged { task, from, to });
        }
    }

    /// The key of a row that leaves stays for a while.
    fn keep_key(&mut self, task: TaskId, row: &TaskRow, height: Height) {
        let key = (row.author, row.task.key.clone());
        let known = self
            .state
            .keys
            .get_mut(&key)
            .expect("a row of cluster scope has its key");
        known.left = Some(height);
        self.derived.sum.add(Sum::of_left_key(&key, known));
        self.derived.left_keys.insert((height, task), key);
    }

    fn forget_keys(&mut self) {
        while self.derived.left_keys.len() > self.retention.keys {
            if let Some((_, key)) = self.derived.left_keys.pop_first() {
                let known = self.state.keys.get(&key).expect("a key that left is a key");
                self.derived.sum.remove(Sum::of_left_key(&key, known));
                self.state.keys.remove(&key);
                self.derived.key_bytes -= key_bytes(&key);
            }
        }
    }

    /// Whether nothing opens or changes a closed task any more: the global queue has dropped it, or says
    /// that it will.
    pub(super) fn is_settled(&self, task: &TaskId, row: &TaskRow) -> bool {
        let is_dropped = || self.global.retired(task).is_some() || matches!(row.finality, Finality::Final { .. });
        let is_leaving = match self.global.task(task) {
            Some(global) => global.standing.leaving.is_some(),
            None => is_dropped(),
        };
        !row.state().is_open() && is_leaving
    }

    /// Whether a task of this cluster's own queue ended otherwise than completed, and nothing will open it again.
    pub(super) fn has_ended_for_good(&self, task: &TaskId) -> bool {
        let is_settled = || match self.known_row(task) {
            Some(row) => self.is_settled(task, &row),
            // A line is all that is kept of it, or its key is another task's.
            None => true,
        };
        self.has_ended_badly(task) && is_settled()
    }

    fn is_above(height: Height, ended: Height, blocks: u64) -> bool {
        height.0 >= ended.0.saturating_add(blocks)
    }

    fn may_retire(&self, task: &TaskId) -> bool {
        let Some(row) = self.state.rows.get(task) else {
            return false;
        };
        if row.changed_at > self.state.batcher.last_final().cut || self.state.pending.contains_key(task) {
            return false;
        }
        match self.global.task(task) {
            None => true,
            Some(global) => self.gives_back(global, row),
        }
    }

    fn gives_back(&self, global: &Row, row: &TaskRow) -> bool {
        let mut given = self.row_from(global, row.finality);
        // Of no weight in a closed row; an entry that opens it again writes both.
        (given.changed_at, given.queued_at) = (row.changed_at, row.queued_at);
        given == *row && matches!(row.finality, Finality::Final { .. })
    }
}

#[cfg(test)]
impl ClusterQueue {
    /// Other bounds, for tests that must reach them: of this queue, and of the global one.
    pub(crate) fn with_retention(mut self, retention: Retention, global: common::global_queue::Retention) -> Self {
        self.retention = retention;
        self.global = self.global.with_retention(global);
        self
    }
}
