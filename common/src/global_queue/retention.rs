//! When a closed task leaves the state, and what stands for it afterwards.
//!
//! # Rules
//! * A closed task leaves with the block that is [`Retention::blocks`] above the one that closed it, or
//!   earlier, the oldest end first, while more than [`Retention::rows`] closed tasks are kept or more
//!   than [`Retention::bytes`] of them. Heights and counts are state, so every validator and every agent
//!   drops the same tasks with the same block, and the root says so.
//! * A line stays: [`Retired`], with its state and its task key, until [`Retention::lines`] other tasks
//!   have left after it. Until then a submission under its key is the duplicate or the conflict that it
//!   was, an entry about it is refused because of its state, and a link to it counts for what it was.
//! * Afterwards nothing is kept of it: its key names no task any more and may be used again.
//! * Number streams are not touched. A signed entry that took effect once never does again.
//! * A task of a cluster's own that was not completed leaves in two steps. First it is marked, and its
//!   cluster, whose log applies this block too, refuses what would open it again, and tasks that would
//!   wait for it. It leaves once a batch was executed that stood at the mark's height: nothing that the cluster granted
//!   before is missing then. A cluster that is cut off keeps such tasks here until it is back.
//!
//! # Invariants
//! * bounded: what is kept of closed tasks has the bounds above, whatever a fleet lives through, but
//!   for marked tasks of clusters that are cut off.
//! * agreement-of-state: who leaves is a function of the blocks applied.
//!
//! # Why
//! The state is in the memory of every drone and in every snapshot. Its blocks stay with the
//! validators; the state is for what goes on. `docs/decisions/0028-ended-tasks-leave-the-global-state.md`
//! weighs what is forgotten.

use serde::{Deserialize, Serialize};

use super::{
    GlobalQueue, Row,
    row::TaskKeyId,
    shared_map::{Digested, section},
};
use crate::{
    codec::to_bytes,
    ids::{ClusterId, Digest, Height, TaskId},
    retention_scale::{scaled, scaled_count},
    task::{Scope, TaskState},
};

/// How much is kept of closed tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Blocks above the one that closed the task.
    pub blocks: u64,
    /// Closed tasks kept at most, with content and history.
    pub rows: usize,
    /// Bytes of closed tasks kept at most, content and history as they are encoded.
    pub bytes: usize,
    /// Tasks that left of which a line is kept, with their task keys.
    pub lines: usize,
}

/// What every validator and every agent uses: part of the replicated machine, like its rules. With a block
/// every 20 ms the blocks are an hour and a half, with an idle block every 5 s two weeks. Rows and lines
/// together are below 100 MB in a snapshot.
pub const RETENTION: Retention = Retention {
    blocks: 262_144,
    rows: 65_536,
    bytes: 64 * 1024 * 1024,
    lines: 131_072,
};

impl Retention {
    /// What a state begins with, and what a restored one goes on with: [`RETENTION`], scaled.
    pub(super) fn in_force() -> Self {
        Self {
            blocks: scaled(RETENTION.blocks),
            rows: scaled_count(RETENTION.rows),
            bytes: scaled_count(RETENTION.bytes),
            lines: scaled_count(RETENTION.lines),
        }
    }
}

/// What is kept of a task that left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// Identity.
    pub id: TaskId,
    /// The state in which it ended.
    pub state: TaskState,
    /// The height that closed it.
    pub ended: Height,
    /// The cluster it was submitted through.
    pub through: ClusterId,
    /// How many tasks had left before it.
    pub order: u64,
    /// Its task key; tasks of fleet scope have one here.
    key: Option<TaskKeyId>,
}

impl Retired {
    /// Whose queue it was in.
    #[must_use]
    pub fn scope(&self) -> Scope {
        match self.key {
            Some(_) => Scope::Fleet,
            None => Scope::Cluster,
        }
    }

    pub(super) fn key(&self) -> Option<TaskKeyId> {
        self.key
    }
}

impl Digested for Retired {
    fn digest(&self) -> (Digest, usize) {
        let encoded = to_bytes(self);
        (section(b"muster/v1/task-retired", &encoded), encoded.len())
    }
}

impl Row {
    /// Whether only the log of its cluster says that it stays closed, and that nothing begins to wait for it.
    fn is_closed_for_its_cluster(&self) -> bool {
        self.scope() == Scope::Cluster && self.state() != TaskState::Completed
    }
}

impl GlobalQueue {
    /// What is kept of a task that left.
    #[must_use]
    pub fn retired(&self, id: &TaskId) -> Option<&Retired> {
        self.retired.get(id)
    }

    /// State, scope and first cluster of a task that is kept or of which a line is kept.
    #[must_use]
    pub fn state_of(&self, id: &TaskId) -> Option<(TaskState, Scope, ClusterId)> {
        let kept = self.tasks.get(id);
        let kept = kept.map(|row| (row.state(), row.scope(), row.submitted.through));
        let left = || self.retired.get(id);
        kept.or_else(|| left().map(|line| (line.state, line.scope(), line.through)))
    }

    /// How many tasks left, whether a line is kept of them or not.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left.iter().sum()
    }

    /// Encoded bytes of everything that grows: tasks, lines, task keys and number streams. A snapshot is
    /// longer by what is small, cursors and rosters, and by its frames.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        let maps = [
            self.tasks.bytes(),
            self.retired.bytes(),
            self.task_keys.bytes(),
            self.streams.bytes(),
        ];
        maps.iter().map(|bytes| *bytes as u64).sum()
    }

    /// Lets everything leave whose time has come, and says who left, in order. Called at the end of every block.
    pub(super) fn retire(&mut self) -> Vec<Retired> {
        let mut settled = Vec::new();
        for cluster in self.clusters() {
            let applied = self.cursors[cluster.0 as usize].global_height;
            settled.extend(self.index.leaving(cluster, applied));
        }
        let mut dropped: Vec<Retired> = settled.iter().map(|id| self.leave(id)).collect();
        let height = self.height;
        for id in self.due() {
            let row = self.tasks.get(&id).expect("indexed rows exist");
            if row.is_closed_for_its_cluster() {
                self.update(&id, |row| row.standing.leaving = Some(height));
            } else {
                dropped.push(self.leave(&id));
            }
        }
        self.forget();
        dropped
    }

    /// Closed tasks that are too old, or too many, or too large together.
    fn due(&self) -> Vec<TaskId> {
        let (rows, bytes) = self.index.closed_size();
        let mut rows = rows.saturating_sub(self.retention.rows);
        let mut bytes = bytes.saturating_sub(self.retention.bytes);
        let mut due = Vec::new();
        for (ended, id) in self.index.closed() {
            let is_old = self.height.0 >= ended.0.saturating_add(self.retention.blocks);
            if rows == 0 && bytes == 0 && !is_old {
                break;
            }
            let row = self.tasks.get(id).expect("indexed rows exist");
            rows = rows.saturating_sub(1);
            bytes = bytes.saturating_sub(row.weight());
            due.push(*id);
        }
        due
    }

    fn leave(&mut self, id: &TaskId) -> Retired {
        let row = self.tasks.remove(id).expect("who leaves is there");
        self.index.remove(&row);
        let order = self.left();
        self.left[row.state() as usize] += 1;
        let is_fleet = row.scope() == Scope::Fleet;
        let line = Retired {
            id: *id,
            state: row.state(),
            ended: row.standing.ended.expect("who leaves has ended"),
            through: row.submitted.through,
            order,
            key: is_fleet.then(|| TaskKeyId::of(&row.submitted.author, row.task())),
        };
        self.index.insert_retired(order, *id);
        self.retired.insert(*id, line.clone());
        line
    }

    /// Drops the oldest lines beyond the bound, with their task keys.
    fn forget(&mut self) {
        let excess = self.retired.len().saturating_sub(self.retention.lines);
        let oldest: Vec<TaskId> = self.index.retired().take(excess).collect();
        for id in oldest {
            let line = self.retired.remove(&id).expect("indexed lines exist");
            self.index.remove_retired(line.order, id);
            if let Some(key) = line.key {
                self.task_keys.remove(&key).expect("a fleet-scope task has its key");
            }
        }
    }

    /// Asserts the bounds of this room.
    pub(super) fn check_retention(&self) {
        let (rows, bytes) = self.index.closed_size();
        assert!(
            rows <= self.retention.rows && bytes <= self.retention.bytes,
            "closed tasks are bounded"
        );
        assert!(
            self.retired.len() <= self.retention.lines,
            "lines of tasks that left are bounded"
        );
        if let Some((ended, id)) = self.index.closed().next() {
            let is_old = self.height.0 >= ended.0.saturating_add(self.retention.blocks);
            assert!(!is_old, "{id} has left in time");
        }
        for (id, row) in self.tasks.iter() {
            let (_, encoded) = row.digest();
            assert!(row.weight() >= encoded, "{id} weighs no less than it is long");
        }
    }
}

#[cfg(any(test, feature = "testing"))]
impl GlobalQueue {
    /// Other bounds, for tests that must reach them.
    #[must_use]
    pub fn with_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }
}
