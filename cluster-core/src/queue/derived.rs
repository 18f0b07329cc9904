//! What follows from the rows, and from what is kept of those that have left, and is rebuilt instead of stored: orders in which they are looked at,
//! counts, and the part of the digest that is over them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use common::{
    ids::{BlockTime, ClusterId, DeviceId, Digest, Height, TaskId},
    task::{Scope, TaskKey, TaskState},
    wire::op::{EventView, Finality},
};

use super::{State, TaskRow, snapshot::row_digest};

/// What follows from the rows, and from what is kept of those that have left, and is rebuilt instead of stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Derived {
    pub(super) cluster: ClusterId,
    /// Cluster-scope tasks that expire, by deadline.
    pub(super) deadlines: BTreeSet<(BlockTime, TaskId)>,
    /// Cluster-scope tasks that wait for a task, by that task.
    pub(super) waiting: BTreeMap<TaskId, BTreeSet<TaskId>>,
    /// Open cluster-scope tasks that wait for others.
    pub(super) linked: BTreeSet<TaskId>,
    /// Tasks of this cluster that nobody holds, the most urgent first.
    pub(super) unclaimed: BTreeSet<Urgency>,
    /// Rows by state, in the order of [`TaskState::ALL`].
    pub(super) counts: [u32; 10],
    /// Tasks whose rows have left, in the same order.
    pub(super) retired: [u32; 10],
    /// Closed rows whose end is final, by the height that made it so: they leave in this order.
    pub(super) closed: BTreeSet<(Height, TaskId)>,
    /// Keys of cluster scope whose rows have left, by height and task: they are forgotten in this order.
    pub(super) left_keys: BTreeMap<(Height, TaskId), (DeviceId, TaskKey)>,
    /// Encoded bytes of all rows.
    pub(super) bytes: u64,
    /// The same of all task keys, about.
    pub(super) key_bytes: u64,
    /// The same of all events that are not final, about.
    pub(super) pending_bytes: u64,
    /// Answers that the number streams remember.
    pub(super) answers: u64,
    /// Sum of the digests of all rows: equal states have equal sums, whatever the order of changes.
    pub(super) sum: [u64; 4],
}

/// Highest priority, then earliest deadline, then task.
pub(super) type Urgency = (Reverse<u8>, u64, TaskId);

impl Derived {
    pub(super) fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            deadlines: BTreeSet::new(),
            waiting: BTreeMap::new(),
            linked: BTreeSet::new(),
            unclaimed: BTreeSet::new(),
            counts: [0; 10],
            retired: [0; 10],
            closed: BTreeSet::new(),
            left_keys: BTreeMap::new(),
            bytes: 0,
            key_bytes: 0,
            pending_bytes: 0,
            answers: 0,
            sum: [0; 4],
        }
    }

    pub(super) fn of(state: &State) -> Self {
        let mut derived = Self::new(state.cluster);
        for state in state.retired.values() {
            derived.retired[*state as usize] += 1;
        }
        for (task, row) in state.rows.iter() {
            derived.add(task, row);
        }
        for (key, row) in state.keys.iter() {
            derived.key_bytes += key_bytes(key);
            if let Some(left) = row.left {
                derived.left_keys.insert((left, row.task), key.clone());
            }
        }
        let pending = state.pending.values().flat_map(|events| events.iter());
        derived.pending_bytes = pending.map(event_bytes).sum();
        derived.answers = state.streams.values().map(|stream| stream.remembered() as u64).sum();
        derived
    }

    /// Where a task stands among those that nobody holds.
    fn urgency(&self, task: &TaskId, row: &TaskRow) -> Option<Urgency> {
        let is_unclaimed = matches!(row.state(), TaskState::Queued | TaskState::Assigned);
        let deadline = row.task.deadline.map_or(u64::MAX, |deadline| deadline.0);
        (is_unclaimed && row.cluster == Some(self.cluster)).then_some((Reverse(row.task.priority), deadline, *task))
    }

    pub(super) fn add(&mut self, task: &TaskId, row: &TaskRow) {
        self.counts[row.state() as usize] += 1;
        self.unclaimed.extend(self.urgency(task, row));
        let (digest, bytes) = row_digest(task, row);
        self.bytes += bytes;
        for (sum, part) in self.sum.iter_mut().zip(digest) {
            *sum = sum.wrapping_add(part);
        }
        if !row.state().is_open() {
            self.closed.extend(closed_key(task, row));
            return;
        }
        if row.scope == Scope::Fleet {
            return;
        }
        if let Some(deadline) = row.task.deadline {
            self.deadlines.insert((deadline, *task));
        }
        if !row.task.after.is_empty() {
            self.linked.insert(*task);
        }
        for other in &row.task.after {
            self.waiting.entry(*other).or_default().insert(*task);
        }
    }

    pub(super) fn remove(&mut self, task: &TaskId, row: &TaskRow) {
        self.counts[row.state() as usize] -= 1;
        if let Some(urgency) = self.urgency(task, row) {
            self.unclaimed.remove(&urgency);
        }
        let (digest, bytes) = row_digest(task, row);
        self.bytes -= bytes;
        for (sum, part) in self.sum.iter_mut().zip(digest) {
            *sum = sum.wrapping_sub(part);
        }
        if !row.state().is_open() {
            if let Some(key) = closed_key(task, row) {
                self.closed.remove(&key);
            }
            return;
        }
        if row.scope == Scope::Fleet {
            return;
        }
        self.linked.remove(task);
        if let Some(deadline) = row.task.deadline {
            self.deadlines.remove(&(deadline, *task));
        }
        for other in &row.task.after {
            if let Some(waiting) = self.waiting.get_mut(other) {
                waiting.remove(task);
                if waiting.is_empty() {
                    self.waiting.remove(other);
                }
            }
        }
    }
}

/// Encoded bytes of a task key with its row, about.
pub(super) fn key_bytes(key: &(DeviceId, TaskKey)) -> u64 {
    let (author, text) = key;
    (size_of_val(author) + text.len() + size_of::<TaskId>() + size_of::<Digest>()) as u64 + 8
}

/// Encoded bytes of an event, about.
pub(super) fn event_bytes(event: &EventView) -> u64 {
    128 + event.note.len() as u64
}

fn closed_key(task: &TaskId, row: &TaskRow) -> Option<(Height, TaskId)> {
    match row.finality {
        Finality::Final { height, .. } => Some((height, *task)),
        _ => None,
    }
}
