//! The state as bytes, and back.
//!
//! # Rules
//! * Equal states have equal bytes; restoring gives a state that is equal in everything, caches too.
//! * The registry does not change yet, so it comes from the genesis file and not from the bytes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    Cursor, EVENTS_PER_TASK_MAX, GlobalQueue, Row, Standing, Submitted,
    index::Index,
    row::{StreamRow, TaskKeyRow},
    shared_map::HashedMap,
};
use crate::{
    codec::{Wire as _, to_bytes},
    genesis::Genesis,
    ids::{BatchSeq, BlockTime, ChainId, Digest, Founding, Height, LogPosition, TaskId},
    registry::Registry,
    roster::Roster,
};

/// Version of the format.
const SNAPSHOT_VERSION: u16 = 1;

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
struct CursorBytes {
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
    cursors: Vec<CursorBytes>,
    tasks: Vec<(TaskId, Submitted, Standing)>,
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
            cursors: self.cursors.iter().map(cursor_bytes).collect(),
            tasks: self
                .tasks
                .iter()
                .map(|(id, row)| (*id, Submitted::clone(&row.submitted), row.standing.clone()))
                .collect(),
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
        let registry = Registry::from_genesis(genesis);
        if snapshot.chain != *registry.chain() {
            return Err(RestoreError::WrongFleet {
                got: snapshot.chain,
                want: *registry.chain(),
            });
        }
        check_parts(&snapshot, genesis)?;
        let want = snapshot.root;
        let queue = rebuild(snapshot, genesis, registry);
        if queue.root != want {
            return Err(RestoreError::WrongRoot { got: queue.root, want });
        }
        Ok(queue)
    }
}

fn check_parts(snapshot: &Snapshot, genesis: &Genesis) -> Result<(), RestoreError> {
    let check = |holds: bool, what| {
        if holds {
            Ok(())
        } else {
            Err(RestoreError::Inconsistent(what))
        }
    };
    let clusters = genesis.clusters.len();
    check(snapshot.cursors.len() == clusters, "cursors of other clusters")?;
    check(
        snapshot.time >= genesis.genesis_time && snapshot.stretch_us <= snapshot.time.0 - genesis.genesis_time.0,
        "a time before genesis",
    )?;
    check(
        snapshot.tasks.is_sorted_by(|a, b| a.0 < b.0),
        "tasks are not in order of their ids",
    )?;
    check(
        snapshot.task_keys.is_sorted_by(|a, b| a.key < b.key),
        "task keys are not in order",
    )?;
    check(
        snapshot.streams.is_sorted_by(|a, b| a.key < b.key),
        "number streams are not in order",
    )?;
    let has_row = |id: &TaskId| snapshot.tasks.binary_search_by_key(id, |row| row.0).is_ok();
    check(
        snapshot.task_keys.iter().all(|key| has_row(&key.task)),
        "a task key without its task",
    )?;
    check(
        snapshot.tasks.iter().all(|(_, submitted, standing)| {
            (submitted.through.0 as usize) < clusters && standing.cluster.is_none_or(|id| (id.0 as usize) < clusters)
        }),
        "a task of an unknown cluster",
    )?;
    check(
        snapshot.tasks.iter().all(|(_, submitted, standing)| {
            submitted.task.validate().is_ok() && standing.events.len() <= EVENTS_PER_TASK_MAX
        }),
        "a task that could not have been submitted, or with too many events",
    )
}

fn rebuild(snapshot: Snapshot, genesis: &Genesis, registry: Registry) -> GlobalQueue {
    let mut tasks = HashedMap::new();
    let mut index = Index::new(genesis.clusters.len());
    for (id, submitted, standing) in snapshot.tasks {
        let row = Row::new(id, submitted, standing);
        index.insert(&row);
        tasks.insert(id, row);
    }
    let mut task_keys = HashedMap::new();
    for row in snapshot.task_keys {
        task_keys.insert(row.key, row);
    }
    let mut streams = HashedMap::new();
    for row in snapshot.streams {
        streams.insert(row.key, row);
    }
    let mut queue = GlobalQueue {
        genesis: Arc::new(genesis.clone()),
        registry: Arc::new(registry),
        height: snapshot.height,
        time: snapshot.time,
        tip: snapshot.tip,
        stretch_us: snapshot.stretch_us,
        arrivals: snapshot.arrivals,
        cursors: Arc::new(snapshot.cursors.into_iter().map(cursor_from).collect()),
        tasks,
        task_keys,
        streams,
        index,
        root: Digest::default(),
    };
    queue.refresh();
    queue
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
