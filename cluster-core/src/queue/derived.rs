//! What follows from the rows, and from what is kept of those that have left, and is rebuilt instead of stored: orders in which they are looked at,
//! counts, and the part of the digest that is over them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use common::{
    codec::encode,
    crypto::sha256,
    ids::{BlockTime, ClusterId, DeviceId, Digest, Height, TaskId},
    task::{Scope, TaskKey, TaskState},
    wire::op::{EventView, Finality},
};
use serde::{Deserialize, Serialize};

use super::{KeyRow, State, TaskRow};

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
    /// Over all rows, keys whose rows have left, states of rows that have left, and events that are not final.
    /// A key whose row is here follows from the row.
    pub(super) sum: Sum,
}

/// Sum of the digests of many parts of the state: equal states have equal sums, whatever the order of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sum([u64; 4]);

impl Sum {
    /// The sum of one part. `kind` keeps parts of different kinds apart.
    fn of(kind: &[u8; 4], id: &[u8], bytes: &[u8]) -> Self {
        let digest = sha256(&[kind, id, bytes]).0;
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(digest.chunks_exact(8)) {
            *word = u64::from_be_bytes(bytes.try_into().expect("chunks of eight bytes"));
        }
        Self(words)
    }

    pub(super) fn of_left_key(key: &(DeviceId, TaskKey), row: &KeyRow) -> Self {
        let (author, text) = key;
        let mut bytes = Vec::with_capacity(128 + text.len());
        bytes.extend_from_slice(&row.content.0);
        bytes.extend_from_slice(&author.0);
        bytes.extend_from_slice(&row.left.map_or(0, |height| height.0).to_be_bytes());
        bytes.extend_from_slice(text);
        Self::of(b"key ", &row.task.0, &bytes)
    }

    pub(super) fn of_retired(task: &TaskId, state: TaskState) -> Self {
        Self::of(b"left", &task.0, &[state as u8])
    }

    pub(super) fn of_event(task: &TaskId, event: &EventView) -> Self {
        Self::of(b"new ", &task.0, &encode(event))
    }

    pub(super) fn add(&mut self, part: Self) {
        for (sum, part) in self.0.iter_mut().zip(part.0) {
            *sum = sum.wrapping_add(part);
        }
    }

    pub(super) fn remove(&mut self, part: Self) {
        for (sum, part) in self.0.iter_mut().zip(part.0) {
            *sum = sum.wrapping_sub(part);
        }
    }
}

/// Part of the digest for a row, and the encoded length of row and id.
fn of_row(task: &TaskId, row: &TaskRow) -> (Sum, u64) {
    let encoded = encode(row);
    let bytes_len = task.0.len() + encoded.len();
    (Sum::of(b"row ", &task.0, &encoded), bytes_len as u64)
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
            sum: Sum::default(),
        }
    }

    pub(super) fn of(state: &State) -> Self {
        let mut derived = Self::new(state.cluster);
        for (task, state) in state.retired.iter() {
            derived.retired[*state as usize] += 1;
            derived.sum.add(Sum::of_retired(task, *state));
        }
        for (task, row) in state.rows.iter() {
            derived.add(task, row);
        }
        for (key, row) in state.keys.iter() {
            derived.key_bytes += key_bytes(key);
            if let Some(left) = row.left {
                derived.left_keys.insert((left, row.task), key.clone());
                derived.sum.add(Sum::of_left_key(key, row));
            }
        }
        for (task, events) in state.pending.iter() {
            events.iter().for_each(|event| derived.add_event(task, event));
        }
        derived.answers = state.streams.values().map(|stream| stream.remembered() as u64).sum();
        derived
    }

    pub(super) fn add_event(&mut self, task: &TaskId, event: &EventView) {
        self.pending_bytes += event_bytes(event);
        self.sum.add(Sum::of_event(task, event));
    }

    pub(super) fn remove_event(&mut self, task: &TaskId, event: &EventView) {
        self.pending_bytes -= event_bytes(event);
        self.sum.remove(Sum::of_event(task, event));
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
        let (part, bytes) = of_row(task, row);
        self.bytes += bytes;
        self.sum.add(part);
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
        let (part, bytes) = of_row(task, row);
        self.bytes -= bytes;
        self.sum.remove(part);
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
fn event_bytes(event: &EventView) -> u64 {
    128 + event.note.len() as u64
}

fn closed_key(task: &TaskId, row: &TaskRow) -> Option<(Height, TaskId)> {
    match row.finality {
        Finality::Final { height, .. } => Some((height, *task)),
        _ => None,
    }
}
