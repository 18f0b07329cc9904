//! The state as bytes, and back.
//!
//! # Rules
//! * Equal states have equal bytes; restoring gives a state that is equal in everything, caches too.
//! * The registry does not change yet, so it comes from the genesis file and not from the bytes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    Cursor, EVENTS_PER_TASK_MAX, GlobalQueue, Retention, Retired, Row, Standing, Submitted,
    index::Index,
    row::{StreamKey, StreamRow, TaskKeyId, TaskKeyRow},
    shared_map::HashedMap,
};
use crate::{
    codec::{Wire as _, to_bytes},
    genesis::Genesis,
    ids::{BatchSeq, BlockTime, ChainId, Digest, Founding, Height, LogPosition, TaskId},
    registry::Registry,
    roster::Roster,
    task::Scope,
};

/// Version of the format.
const SNAPSHOT_VERSION: u16 = 2;

/// Why bytes are no state of this fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Truncated, of another shape, or not the one encoding.
    #[error("malformed encoding of the global queue")]
    Malformed,
    /// Unknown format.
    #[error("global queue format version {got}, this build reads {SNAPSHOT_VERSION}")]
    Version {
        /// Found.
        got: u16,
    },
    /// Of another fleet.
    #[error("the global queue of fleet {got}, this is {want}")]
    WrongFleet {
        /// Found.
        got: ChainId,
        /// Ours.
        want: ChainId,
    },
    /// Parts that contradict each other.
    #[error("inconsistent: {0}")]
    Inconsistent(&'static str),
    /// The contents are not those that the root was over.
    #[error("the state's root is {got}, the bytes say {want}")]
    WrongRoot {
        /// Computed.
        got: Digest,
        /// Written.
        want: Digest,
    },
}

#[derive(Serialize, Deserialize)]
pub(super) struct CursorBytes {
    founding: Founding,
    next_seq: BatchSeq,
    last_digest: Digest,
    roster: Roster,
    cut: LogPosition,
    global_height: Height,
    last_contact: Option<BlockTime>,
    contact_at_us: u64,
}

#[derive(Serialize, Deserialize)]
struct Snapshot {
    version: u16,
    chain: ChainId,
    height: Height,
    time: BlockTime,
    tip: Digest,
    stretch_us: u64,
    arrivals: u64,
    left: [u64; 10],
    cursors: Vec<CursorBytes>,
    tasks: Vec<(TaskId, Submitted, Standing)>,
    retired: Vec<Retired>,
    task_keys: Vec<TaskKeyRow>,
    streams: Vec<StreamRow>,
    root: Digest,
}

impl GlobalQueue {
    /// The state as canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(&Snapshot {
            version: SNAPSHOT_VERSION,
            chain: *self.registry.chain(),
            height: self.height,
            time: self.time,
            tip: self.tip,
            stretch_us: self.stretch_us,
            arrivals: self.arrivals,
            left: self.left,
            cursors: self.cursors.iter().map(cursor_bytes).collect(),
            tasks: self
                .tasks
                .iter()
                .map(|(id, row)| (*id, Submitted::clone(&row.submitted), row.standing.clone()))
                .collect(),
            retired: self.retired.iter().map(|(_, line)| line.clone()).collect(),
            task_keys: self.task_keys.iter().map(|(_, row)| *row).collect(),
            streams: self.streams.iter().map(|(_, row)| row.clone()).collect(),
            root: self.root,
        })
    }

    /// The state of `bytes`, for the fleet of `genesis`.
    ///
    /// The root is recomputed and compared with the one in the bytes: that finds damage, not a liar.
    /// A caller that has the bytes from somebody else compares [`state_root`](Self::state_root) with
    /// the header two heights above.
    ///
    /// # Errors
    /// [`RestoreError`]: do not use the bytes.
    pub fn from_bytes(bytes: &[u8], genesis: &Genesis) -> Result<Self, RestoreError> {
        let (version, _) = postcard::take_from_bytes::<u16>(bytes).map_err(|_| RestoreError::Malformed)?;
        if version != SNAPSHOT_VERSION {
            return Err(RestoreError::Version { got: version });
        }
        let (snapshot, rest) = postcard::take_from_bytes::<Snapshot>(bytes).map_err(|_| RestoreError::Malformed)?;
        if !rest.is_empty() || to_bytes(&snapshot) != bytes {
            return Err(RestoreError::Malformed);
        }
        let mut builder = Builder::new(genesis);
        builder.check_version(snapshot.version, snapshot.chain)?;
        for (id, submitted, standing) in snapshot.tasks {
            builder.task(id, submitted, standing)?;
        }
        for line in snapshot.retired {
            builder.retired(line)?;
        }
        for row in snapshot.task_keys {
            builder.task_key(row)?;
        }
        for row in snapshot.streams {
            builder.stream(row)?;
        }
        builder.finish(Small {
            version: snapshot.version,
            chain: snapshot.chain,
            height: snapshot.height,
            time: snapshot.time,
            tip: snapshot.tip,
            stretch_us: snapshot.stretch_us,
            arrivals: snapshot.arrivals,
            left: snapshot.left,
            cursors: snapshot.cursors,
            root: snapshot.root,
        })
    }
}

/// Builds a state row by row, so that no second copy of all rows is needed, and checks each on the way.
pub(super) struct Builder {
    genesis: Arc<Genesis>,
    registry: Registry,
    tasks: HashedMap<TaskId, Row>,
    retired: HashedMap<TaskId, Retired>,
    task_keys: HashedMap<TaskKeyId, TaskKeyRow>,
    streams: HashedMap<StreamKey, StreamRow>,
    index: Index,
    last: (Option<TaskId>, Option<TaskId>, Option<TaskKeyId>, Option<StreamKey>),
}

/// Everything of a state but its rows.
#[derive(Serialize, Deserialize)]
pub(super) struct Small {
    pub(super) version: u16,
    pub(super) chain: ChainId,
    height: Height,
    time: BlockTime,
    tip: Digest,
    stretch_us: u64,
    arrivals: u64,
    left: [u64; 10],
    cursors: Vec<CursorBytes>,
    root: Digest,
}

impl Small {
    pub(super) fn of(queue: &GlobalQueue) -> Self {
        Self {
            version: SNAPSHOT_VERSION,
            chain: *queue.registry.chain(),
            height: queue.height,
            time: queue.time,
            tip: queue.tip,
            stretch_us: queue.stretch_us,
            arrivals: queue.arrivals,
            left: queue.left,
            cursors: queue.cursors.iter().map(cursor_bytes).collect(),
            root: queue.root,
        }
    }
}

fn check(holds: bool, what: &'static str) -> Result<(), RestoreError> {
    if holds {
        Ok(())
    } else {
        Err(RestoreError::Inconsistent(what))
    }
}

impl Builder {
    pub(super) fn new(genesis: &Genesis) -> Self {
        Self {
            genesis: Arc::new(genesis.clone()),
            registry: Registry::from_genesis(genesis),
            tasks: HashedMap::new(),
            retired: HashedMap::new(),
            task_keys: HashedMap::new(),
            streams: HashedMap::new(),
            index: Index::new(genesis.clusters.len()),
            last: (None, None, None, None),
        }
    }

    pub(super) fn check_version(&self, version: u16, chain: ChainId) -> Result<(), RestoreError> {
        if version != SNAPSHOT_VERSION {
            return Err(RestoreError::Version { got: version });
        }
        let want = *self.registry.chain();
        if chain == want {
            Ok(())
        } else {
            Err(RestoreError::WrongFleet { got: chain, want })
        }
    }

    pub(super) fn task(&mut self, id: TaskId, submitted: Submitted, standing: Standing) -> Result<(), RestoreError> {
        check(
            self.last.0.replace(id).is_none_or(|last| last < id),
            "tasks are not in order of their ids",
        )?;
        let clusters = self.genesis.clusters.len();
        check(
            (submitted.through.0 as usize) < clusters && standing.cluster.is_none_or(|id| (id.0 as usize) < clusters),
            "a task of an unknown cluster",
        )?;
        check(
            submitted.task.validate().is_ok() && standing.events.len() <= EVENTS_PER_TASK_MAX,
            "a task that could not have been submitted, or with too many events",
        )?;
        let is_closed = !standing.life.state.is_open();
        check(
            standing.ended.is_some() == is_closed
                && standing
                    .leaving
                    .is_none_or(|_| is_closed && submitted.scope == Scope::Cluster)
                && u32::from(standing.links_done) >> submitted.task.after.len() == 0,
            "a task that has ended and has not, or with links that it does not have",
        )?;
        let row = Row::new(id, submitted, standing);
        self.index.insert(&row);
        self.tasks.insert(id, row);
        Ok(())
    }

    pub(super) fn retired(&mut self, line: Retired) -> Result<(), RestoreError> {
        check(
            self.last.1.replace(line.id).is_none_or(|last| last < line.id),
            "tasks that left are not in order of their ids",
        )?;
        check(
            self.tasks.get(&line.id).is_none() && !line.state.is_open(),
            "a task that left and did not",
        )?;
        self.index.insert_retired(line.order, line.id);
        self.retired.insert(line.id, line);
        Ok(())
    }

    pub(super) fn task_key(&mut self, row: TaskKeyRow) -> Result<(), RestoreError> {
        check(
            self.last.2.replace(row.key).is_none_or(|last| last < row.key),
            "task keys are not in order",
        )?;
        let is_known = self.tasks.get(&row.task).is_some() || self.retired.get(&row.task).is_some();
        check(is_known, "a task key without its task")?;
        self.task_keys.insert(row.key, row);
        Ok(())
    }

    pub(super) fn stream(&mut self, row: StreamRow) -> Result<(), RestoreError> {
        check(
            self.last.3.replace(row.key).is_none_or(|last| last < row.key),
            "number streams are not in order",
        )?;
        self.streams.insert(row.key, row);
        Ok(())
    }

    pub(super) fn finish(self, small: Small) -> Result<GlobalQueue, RestoreError> {
        self.check_version(small.version, small.chain)?;
        check(
            small.cursors.len() == self.genesis.clusters.len(),
            "cursors of other clusters",
        )?;
        let genesis_time = self.genesis.genesis_time;
        check(
            small.time >= genesis_time && small.stretch_us <= small.time.0 - genesis_time.0,
            "a time before genesis",
        )?;
        let mut queue = GlobalQueue {
            genesis: self.genesis,
            registry: Arc::new(self.registry),
            height: small.height,
            time: small.time,
            tip: small.tip,
            stretch_us: small.stretch_us,
            arrivals: small.arrivals,
            left: small.left,
            retention: Retention::in_force(),
            retired: self.retired,
            cursors: Arc::new(small.cursors.into_iter().map(cursor_from).collect()),
            tasks: self.tasks,
            task_keys: self.task_keys,
            streams: self.streams,
            index: self.index,
            root: Digest::default(),
        };
        queue.refresh();
        if queue.root != small.root {
            return Err(RestoreError::WrongRoot {
                got: queue.root,
                want: small.root,
            });
        }
        Ok(queue)
    }
}

fn cursor_bytes(cursor: &Cursor) -> CursorBytes {
    CursorBytes {
        founding: cursor.founding,
        next_seq: cursor.next_seq,
        last_digest: cursor.last_digest,
        roster: Roster::clone(&cursor.roster),
        cut: cursor.cut,
        global_height: cursor.global_height,
        last_contact: cursor.last_contact,
        contact_at_us: cursor.contact_at_us,
    }
}

fn cursor_from(bytes: CursorBytes) -> Cursor {
    Cursor {
        founding: bytes.founding,
        next_seq: bytes.next_seq,
        last_digest: bytes.last_digest,
        roster_digest: bytes.roster.digest(),
        roster: Arc::new(bytes.roster),
        cut: bytes.cut,
        global_height: bytes.global_height,
        last_contact: bytes.last_contact,
        contact_at_us: bytes.contact_at_us,
    }
}
