//! When a closed task leaves the hot rows, and what stands for it afterwards.
//!
//! # Rules
//! * A row may leave when its task is closed, its end is final, nothing of this log about it waits to
//!   become final, and the global queue gives the same row back. A fleet-scope `Submit` that the
//!   global tier rejected has no row there; it leaves as well, and is unknown afterwards.
//! * It leaves with the block that is [`Retention::blocks`] above its end, or earlier, the oldest end
//!   first, while more than [`Retention::rows`] closed rows are kept. Heights stand in the log, so all
//!   members drop the same rows at the same position.
//! * Task keys stay for ever, and number streams know nothing of rows. So a repeated submission gets
//!   the answer it got, and another one under the key is the duplicate that it was.
//! * Every decision about a task whose row has left is taken on the row that the global queue gives. If
//!   it changes the row, the row is back.
//! * Of a task whose row has left, its state is kept: a block may change it further, and counts of tasks by
//!   state are the same as if all rows were kept.

use std::borrow::Cow;

use common::{global_queue::Row, ids::TaskId, task::TaskState, wire::op::Finality};

use super::{ClusterQueue, QueueEvent, TaskRow};

/// How long a closed task keeps its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Blocks above the one that made its end final.
    pub blocks: u64,
    /// Closed rows kept at most.
    pub rows: usize,
}

/// What every member of every cluster uses: part of the replicated machine, like its rules. With a block
/// every 20 ms these are eleven minutes, with an idle block every 5 s almost two days; the rows take
/// some 50 MB.
pub const RETENTION: Retention = Retention {
    blocks: 32_768,
    rows: 65_536,
};

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
            self.set_retired(&task, Some(row.state()));
        }
    }

    /// Notes the state of a task whose row has left, or that the row is back. Returns what was noted before.
    pub(super) fn set_retired(&mut self, task: &TaskId, state: Option<TaskState>) -> Option<TaskState> {
        let before = self.state.retired.get(task).copied();
        if let Some(before) = before {
            self.derived.retired[before as usize] -= 1;
        }
        match state {
            Some(state) => {
                self.derived.retired[state as usize] += 1;
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

    fn is_above(height: common::ids::Height, ended: common::ids::Height, blocks: u64) -> bool {
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
        given.changed_at = row.changed_at;
        given == *row && matches!(row.finality, Finality::Final { .. })
    }
}

#[cfg(test)]
impl ClusterQueue {
    /// Other bounds, for tests that must reach them.
    pub(crate) fn with_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }
}
