//! Orders in which the machinery looks at tasks. Derived from the rows alone; in no digest.

use core::cmp::Reverse;
use std::sync::Arc;

use super::{row::Row, shared_map::ChunkedSet};
use crate::{
    ids::{BlockTime, ClusterId, Height, TaskId},
    task::{Scope, TaskState},
};

/// Priority (highest first), arrival, task.
pub(super) type PoolKey = (Reverse<u8>, u64, TaskId);

/// All orders. A row is taken out before it changes and put in afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index {
    /// Tasks that wait to be assigned.
    pool: ChunkedSet<(Reverse<u8>, u64), PoolKey>,
    /// Tasks that a deadline may still end.
    deadlines: ChunkedSet<u64, (BlockTime, TaskId)>,
    /// Cluster-scope tasks that end in their cluster's log at a height's `GlobalAdvance`.
    ending: ChunkedSet<ClusterId, (ClusterId, Height, TaskId)>,
    /// (linked task, task that waits for it).
    waiting: ChunkedSet<u8, (TaskId, TaskId)>,
    /// Open tasks of each cluster: in its custody, or its own.
    open: ChunkedSet<(ClusterId, u8), (ClusterId, TaskId)>,
    open_count: Arc<Vec<u32>>,
    /// Tasks by state, in the order of [`TaskState::ALL`].
    counts: [u32; 10],
    /// Closed tasks, by the height that closed them.
    closed: ChunkedSet<u64, (Height, TaskId)>,
    closed_len: usize,
    closed_weight: usize,
    /// Closed tasks that leave when their cluster's log is known to have applied a height.
    leaving: ChunkedSet<ClusterId, (ClusterId, Height, TaskId)>,
    /// Tasks that left, in that order.
    retired: ChunkedSet<u64, (u64, TaskId)>,
}

impl Index {
    pub(super) fn new(clusters: usize) -> Self {
        Self {
            pool: ChunkedSet::default(),
            deadlines: ChunkedSet::default(),
            ending: ChunkedSet::default(),
            waiting: ChunkedSet::default(),
            open: ChunkedSet::default(),
            open_count: Arc::new(vec![0; clusters]),
            counts: [0; 10],
            closed: ChunkedSet::default(),
            closed_len: 0,
            closed_weight: 0,
            leaving: ChunkedSet::default(),
            retired: ChunkedSet::default(),
        }
    }

    pub(super) fn insert(&mut self, row: &Row) {
        self.counts[row.state() as usize] += 1;
        let id = row.id;
        if let Some(key) = pool_key(row) {
            self.pool.insert((key.0, key.1 >> 8), key);
        }
        if let Some(deadline) = deadline_key(row) {
            self.deadlines.insert(deadline.0 >> 20, (deadline, id));
        }
        if let Some((cluster, height)) = ending_key(row) {
            self.ending.insert(cluster, (cluster, height, id));
        }
        for linked in waits_for(row) {
            self.waiting.insert(linked.0[0], (*linked, id));
        }
        if let Some(cluster) = open_key(row) {
            self.open.insert((cluster, id.0[0]), (cluster, id));
            Arc::make_mut(&mut self.open_count)[cluster.0 as usize] += 1;
        }
        if let Some(leaving) = leaving_key(row) {
            self.leaving.insert(leaving.0, leaving);
        } else if let Some(ended) = row.standing.ended {
            self.closed.insert(ended.0 >> 8, (ended, id));
            self.closed_len += 1;
            self.closed_weight += row.weight();
        }
    }

    pub(super) fn remove(&mut self, row: &Row) {
        self.counts[row.state() as usize] -= 1;
        let id = row.id;
        if let Some(key) = pool_key(row) {
            self.pool.remove((key.0, key.1 >> 8), &key);
        }
        if let Some(deadline) = deadline_key(row) {
            self.deadlines.remove(deadline.0 >> 20, &(deadline, id));
        }
        if let Some((cluster, height)) = ending_key(row) {
            self.ending.remove(cluster, &(cluster, height, id));
        }
        for linked in waits_for(row) {
            self.waiting.remove(linked.0[0], &(*linked, id));
        }
        if let Some(cluster) = open_key(row) {
            self.open.remove((cluster, id.0[0]), &(cluster, id));
            Arc::make_mut(&mut self.open_count)[cluster.0 as usize] -= 1;
        }
        if let Some(leaving) = leaving_key(row) {
            self.leaving.remove(leaving.0, &leaving);
        } else if let Some(ended) = row.standing.ended {
            self.closed.remove(ended.0 >> 8, &(ended, id));
            self.closed_len -= 1;
            self.closed_weight -= row.weight();
        }
    }

    /// Closed tasks with the height that closed them, the oldest first.
    pub(super) fn closed(&self) -> impl Iterator<Item = &(Height, TaskId)> {
        self.closed.iter()
    }

    /// How many closed tasks there are, and their weight.
    pub(super) fn closed_size(&self) -> (usize, usize) {
        (self.closed_len, self.closed_weight)
    }

    /// Closed tasks of a cluster that leave when its log has applied `height`.
    pub(super) fn leaving(&self, cluster: ClusterId, height: Height) -> Vec<TaskId> {
        self.leaving
            .chunks(cluster..=cluster)
            .take_while(|(_, since, _)| *since <= height)
            .map(|(_, _, id)| *id)
            .collect()
    }

    pub(super) fn insert_retired(&mut self, order: u64, id: TaskId) {
        self.retired.insert(order >> 8, (order, id));
    }

    pub(super) fn remove_retired(&mut self, order: u64, id: TaskId) {
        self.retired.remove(order >> 8, &(order, id));
    }

    /// Tasks that left, the first first.
    pub(super) fn retired(&self) -> impl Iterator<Item = TaskId> {
        self.retired.iter().map(|(_, id)| *id)
    }

    /// Tasks that wait to be assigned, in the order in which they are.
    pub(super) fn pool(&self) -> impl Iterator<Item = TaskId> {
        self.pool.iter().map(|key| key.2)
    }

    /// Tasks whose deadline is below `time`, earliest first.
    pub(super) fn overdue(&self, time: BlockTime) -> Vec<TaskId> {
        self.deadlines
            .chunks(..=time.0 >> 20)
            .take_while(|(deadline, _)| *deadline < time)
            .map(|(_, id)| *id)
            .collect()
    }

    /// Waiting tasks of a cluster's own that end at or below `height`.
    pub(super) fn ending(&self, cluster: ClusterId, height: Height) -> Vec<TaskId> {
        self.ending
            .chunks(cluster..=cluster)
            .take_while(|(_, ends_at, _)| *ends_at <= height)
            .map(|(_, _, id)| *id)
            .collect()
    }

    /// Open tasks that wait for `linked`.
    pub(super) fn waiting_for(&self, linked: &TaskId) -> Vec<TaskId> {
        let all = (*linked, TaskId([0x00; 32]))..=(*linked, TaskId([0xff; 32]));
        self.waiting.within(linked.0[0], all).map(|(_, id)| *id).collect()
    }

    /// Open tasks of a cluster, in order of their ids.
    pub(super) fn open_of(&self, cluster: ClusterId) -> impl Iterator<Item = TaskId> {
        self.open.chunks((cluster, 0)..=(cluster, u8::MAX)).map(|(_, id)| *id)
    }

    pub(super) fn open_count(&self, cluster: ClusterId) -> u32 {
        self.open_count.get(cluster.0 as usize).copied().unwrap_or(0)
    }

    pub(super) fn counts(&self) -> [u32; 10] {
        self.counts
    }
}

const _: () = assert!(TaskState::Unknown as usize == 9 && TaskState::Queued as usize == 0);

fn pool_key(row: &Row) -> Option<PoolKey> {
    row.is_assignable()
        .then(|| (Reverse(row.task().priority), row.standing.arrival, row.id))
}

fn deadline_key(row: &Row) -> Option<BlockTime> {
    let can_end = match row.scope() {
        Scope::Fleet => row.is_waiting(),
        Scope::Cluster => row.state().is_open() && row.standing.ends_at.is_none(),
    };
    row.task().deadline.filter(|_| can_end)
}

fn ending_key(row: &Row) -> Option<(ClusterId, Height)> {
    let (height, _) = row.standing.ends_at.filter(|_| row.is_waiting())?;
    Some((row.submitted.through, height))
}

fn waits_for(row: &Row) -> &[TaskId] {
    if row.state().is_open() && row.links_open() > 0 {
        &row.task().after
    } else {
        &[]
    }
}

fn open_key(row: &Row) -> Option<ClusterId> {
    let is_the_clusters = row.scope() == Scope::Cluster || row.standing.custody.is_some();
    row.standing
        .cluster
        .filter(|_| is_the_clusters && row.state().is_open())
}

fn leaving_key(row: &Row) -> Option<(ClusterId, Height, TaskId)> {
    let since = row.standing.leaving?;
    Some((row.submitted.through, since, row.id))
}
