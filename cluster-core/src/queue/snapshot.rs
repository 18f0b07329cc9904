//! The whole state as a stream of pieces.
//!
//! # Rules
//! * Pieces are bounded and come section by section, so neither side holds the encoded whole in memory.
//! * A snapshot holds rows, the states of those that have left, number streams, holders, open batch, outbox, cursors, rosters, collected
//!   parts, the chain at its last index, the global queue and its roots of the last heights. Attestations travel beside it.
//! * A peer's frames unpack to far more than they are, so what they unpack to is bounded by itself.
//! * Decoding is bounded and canonical, and a snapshot that breaks an invariant is refused: it comes
//!   from another member.

use std::sync::Arc;

#[cfg(feature = "seeded-bugs")]
use common::bug::{self, Bug};
use common::{
    codec::{DecodeError, Wire, take},
    genesis::Genesis,
    global_queue::{GlobalQueue, Pieces, Restoring, Section},
    ids::{BatchSeq, ChainId, ClusterId, DeviceId, Digest, Founding, KeyVersion, LogPosition, TaskId},
    limits::{ADVANCE_PART_BYTES_MAX, ADVANCE_PARTS_MAX},
    number_stream::NumberStream,
    task::{TaskKey, TaskState},
    validator_set::ValidatorSet,
    wire::op::EventView,
};
use serde::{Deserialize, Serialize};

use super::{
    ClusterQueue, Conflict, Derived, HolderRow, KeyRow, RecentRoots, Retention, State, TaskRow, derived::Sum,
    digest::digest_of,
};
use crate::{
    Shared, SharedMap,
    batcher::{Batcher, OutboxBatch},
    global_view::Collected,
};

/// Bytes of all pieces together. Twice what admission lets a state grow to.
const RESTORED_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// Version of the snapshot format that this build reads and writes.
const SNAPSHOT_VERSION: u16 = 7;

/// Everything of the state but its rows: the first record of a snapshot.
#[derive(Serialize, Deserialize)]
struct Small {
    version: u16,
    chain_id: ChainId,
    cluster: ClusterId,
    founding: Founding,
    applied: LogPosition,
    chain: Digest,
    batcher: Batcher,
    collected: Collected,
    roots: RecentRoots,
    conflict: Option<Conflict>,
    gone: [u64; 10],
    /// Records of each section, the global queue's apart.
    counts: [u64; 8],
    /// What [`ClusterQueue::digest`] must give at the end.
    digest: Digest,
}

/// Number of the first record's section.
const SMALL: u8 = 1;
const ROWS: u8 = 2;
const PENDING: u8 = 3;
const KEYS: u8 = 4;
const STREAMS: u8 = 5;
const HOLDERS: u8 = 6;
const OUTBOX: u8 = 7;
const PARTS: u8 = 8;
const GLOBAL: [(u8, Section); 5] = [
    (9, Section::Small),
    (10, Section::Tasks),
    (11, Section::Retired),
    (12, Section::TaskKeys),
    (13, Section::Streams),
];
const RETIRED: u8 = 14;
/// Sections of a snapshot are numbered from 1 to this.
pub const SECTIONS_MAX: u8 = 14;

impl Wire for TaskRow {
    const BYTES_MAX: usize = 16 * 1024;
}

/// Why bytes are no snapshot of this cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Malformed, not canonical or too long.
    #[error("snapshot: {0}")]
    Decode(#[from] DecodeError),
    /// Of a format this build does not read.
    #[error("snapshot format version {got}, this build reads {want}")]
    Version {
        /// Found.
        got: u16,
        /// Read by this build.
        want: u16,
    },
    /// Of another fleet.
    #[error("a snapshot of fleet {got}, this member is of {want}")]
    WrongChain {
        /// Found.
        got: ChainId,
        /// Ours.
        want: ChainId,
    },
    /// Of another cluster.
    #[error("a snapshot of cluster {got}, this member is of {want}")]
    WrongCluster {
        /// Found.
        got: ClusterId,
        /// Ours.
        want: ClusterId,
    },
    /// It unpacks to more than any state has.
    #[error("a snapshot of more than {max} bytes, unpacked")]
    TooLarge {
        /// Bound.
        max: u64,
    },
    /// The global queue in it is malformed.
    #[error("the global queue in the snapshot is not valid")]
    Global,
    /// It contradicts itself.
    #[error("the snapshot contradicts itself: {0}")]
    Invariant(&'static str),
}

/// Gives all records of a section to `put`, in pieces.
fn write<T: Serialize, E>(
    records: impl Iterator<Item = T>,
    mut put: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut pieces = Pieces::new(&mut put);
    for record in records {
        pieces.add(&record)?;
    }
    pieces.finish()
}

/// A state that is being restored from the pieces of a snapshot.
pub struct QueueRestoring {
    genesis: Arc<Genesis>,
    cluster: ClusterId,
    small: Option<Small>,
    rows: SharedMap<TaskId, Shared<TaskRow>>,
    pending: SharedMap<TaskId, Shared<Vec<EventView>>>,
    keys: SharedMap<(DeviceId, TaskKey), KeyRow>,
    streams: SharedMap<(DeviceId, KeyVersion), Shared<NumberStream>>,
    holders: SharedMap<DeviceId, HolderRow>,
    retired: SharedMap<TaskId, TaskState>,
    outbox: Option<BatchSeq>,
    parts: usize,
    global: Restoring,
    newest: u8,
    bytes: u64,
    pub(super) bytes_max: u64,
}

/// Adds a record whose key must be above all others.
fn push<K: Ord + Clone, V: Clone>(map: &mut SharedMap<K, V>, key: K, value: V) -> Result<(), SnapshotError> {
    if map.last().is_some_and(|(last, _)| *last >= key) {
        return Err(SnapshotError::Invariant("records are not in order"));
    }
    map.insert(key, value);
    Ok(())
}

impl QueueRestoring {
    /// Nothing yet, for `cluster` of the fleet of `genesis`.
    #[must_use]
    pub fn new(genesis: Arc<Genesis>, cluster: ClusterId) -> Self {
        Self {
            global: Restoring::new(&genesis),
            genesis,
            cluster,
            small: None,
            rows: SharedMap::default(),
            pending: SharedMap::default(),
            keys: SharedMap::default(),
            streams: SharedMap::default(),
            holders: SharedMap::default(),
            retired: SharedMap::default(),
            outbox: None,
            parts: 0,
            newest: 0,
            bytes: 0,
            bytes_max: RESTORED_BYTES_MAX,
        }
    }

    /// Adds the next piece of section number `section`. The caller has bounded its length.
    ///
    /// # Errors
    /// [`SnapshotError`]: drop the whole; nothing else changed.
    pub fn add(&mut self, section: u8, mut bytes: &[u8]) -> Result<(), SnapshotError> {
        if section < self.newest || (section == SMALL) != self.small.is_none() {
            return Err(SnapshotError::Invariant("sections are not in order"));
        }
        self.newest = section;
        self.bytes += bytes.len() as u64;
        if self.bytes > self.bytes_max {
            return Err(SnapshotError::TooLarge { max: self.bytes_max });
        }
        if let Some((_, section)) = GLOBAL.iter().find(|(number, _)| *number == section) {
            return self.global.add(*section, bytes).map_err(|_| SnapshotError::Global);
        }
        let bytes = &mut bytes;
        while !bytes.is_empty() {
            self.record(section, bytes)?;
        }
        Ok(())
    }

    fn record(&mut self, section: u8, bytes: &mut &[u8]) -> Result<(), SnapshotError> {
        match section {
            SMALL => {
                let small = self.first(bytes)?;
                self.small = Some(small);
                Ok(())
            }
            ROWS => {
                let (task, row): (TaskId, TaskRow) = take(bytes)?;
                push(&mut self.rows, task, Shared::new(row))
            }
            PENDING => {
                let (task, events): (TaskId, Vec<EventView>) = take(bytes)?;
                push(&mut self.pending, task, Shared::new(events))
            }
            KEYS => {
                let (key, row): ((DeviceId, TaskKey), KeyRow) = take(bytes)?;
                push(&mut self.keys, key, row)
            }
            STREAMS => {
                let (key, stream): ((DeviceId, KeyVersion), NumberStream) = take(bytes)?;
                #[cfg(feature = "seeded-bugs")]
                let stream = if bug::active(Bug::SnapshotWithoutAnswers) {
                    stream.without_answers()
                } else {
                    stream
                };
                push(&mut self.streams, key, Shared::new(stream))
            }
            HOLDERS => {
                let (device, holder): (DeviceId, HolderRow) = take(bytes)?;
                push(&mut self.holders, device, holder)
            }
            OUTBOX => {
                let batch: OutboxBatch = take(bytes)?;
                let seq = batch.header.seq;
                if self.outbox.replace(seq).is_some_and(|last| last >= seq) {
                    return Err(SnapshotError::Invariant("records are not in order"));
                }
                self.small_mut().batcher.put_back(batch);
                Ok(())
            }
            PARTS => {
                let part: Vec<u8> = take(bytes)?;
                self.parts += 1;
                if self.parts > ADVANCE_PARTS_MAX || part.len() > ADVANCE_PART_BYTES_MAX {
                    return Err(SnapshotError::Invariant("more parts of a block than it has"));
                }
                self.small_mut().collected.put_back(part);
                Ok(())
            }
            RETIRED => {
                let (task, state): (TaskId, TaskState) = take(bytes)?;
                push(&mut self.retired, task, state)
            }
            _ => Err(SnapshotError::Invariant("an unknown section")),
        }
    }

    fn small_mut(&mut self) -> &mut Small {
        self.small.as_mut().expect("the first section came first")
    }

    /// The first record, if it is of this build's format, fleet and cluster.
    fn first(&self, bytes: &mut &[u8]) -> Result<Small, SnapshotError> {
        let version: u16 = take(&mut &bytes[..])?;
        if version != SNAPSHOT_VERSION {
            return Err(SnapshotError::Version {
                got: version,
                want: SNAPSHOT_VERSION,
            });
        }
        let small: Small = take(bytes)?;
        let chain = self.genesis.chain_id();
        if small.chain_id != chain {
            return Err(SnapshotError::WrongChain {
                got: small.chain_id,
                want: chain,
            });
        }
        let is_known = self.genesis.clusters.get(self.cluster.0 as usize).is_some();
        if small.cluster != self.cluster || !is_known {
            return Err(SnapshotError::WrongCluster {
                got: small.cluster,
                want: self.cluster,
            });
        }
        if bytes.is_empty() {
            Ok(small)
        } else {
            Err(SnapshotError::Invariant("the first section has one record"))
        }
    }

    /// The state, if it keeps every invariant and has the digest that was written.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn finish(self) -> Result<ClusterQueue, SnapshotError> {
        let small = self
            .small
            .ok_or(SnapshotError::Invariant("the first section is missing"))?;
        let (counts, digest) = (small.counts, small.digest);
        let state = State {
            chain_id: small.chain_id,
            cluster: small.cluster,
            founding: small.founding,
            applied: small.applied,
            chain: small.chain,
            rows: self.rows,
            pending: self.pending,
            keys: self.keys,
            streams: self.streams,
            holders: self.holders,
            retired: self.retired,
            batcher: small.batcher,
            collected: small.collected,
            roots: small.roots,
            conflict: small.conflict,
            gone: small.gone,
        };
        if state.section_counts() != counts {
            return Err(SnapshotError::Invariant("records are missing"));
        }
        let queue = ClusterQueue {
            set: Arc::new(ValidatorSet::from_genesis(&self.genesis)),
            derived: Derived::of(&state),
            state,
            global: self.global.finish().map_err(|_| SnapshotError::Global)?,
            retention: Retention::in_force(),
            genesis: self.genesis,
        };
        queue.check_invariants().map_err(SnapshotError::Invariant)?;
        if queue.digest() != digest {
            return Err(SnapshotError::Invariant("it does not have its digest"));
        }
        Ok(queue)
    }
}

impl State {
    fn section_counts(&self) -> [u64; 8] {
        [
            self.rows.len(),
            self.pending.len(),
            self.keys.len(),
            self.streams.len(),
            self.holders.len(),
            self.batcher.outbox().len(),
            self.collected.bytes().len(),
            self.retired.len(),
        ]
        .map(|count| count as u64)
    }
}

/// A state to be written while the queue it was taken of goes on. Taking it takes constant time, however
/// many tasks there are.
#[derive(Clone, Debug)]
pub struct QueueView {
    state: State,
    global: GlobalQueue,
    parts: Sum,
}

impl QueueView {
    /// Gives the whole state to `put`, in pieces of bounded length, each with its section's number from
    /// 1 to [`SECTIONS_MAX`]. Canonical: members that applied the same log give the same pieces.
    ///
    /// # Errors
    /// The first error of `put`.
    pub fn write_pieces<E>(&self, mut put: impl FnMut(u8, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let state = &self.state;
        let small = Small {
            version: SNAPSHOT_VERSION,
            chain_id: state.chain_id,
            cluster: state.cluster,
            founding: state.founding,
            applied: state.applied,
            chain: state.chain,
            batcher: state.batcher.clone(),
            collected: state.collected.clone(),
            roots: state.roots,
            conflict: state.conflict,
            gone: state.gone,
            counts: state.section_counts(),
            digest: self.digest(),
        };
        write([small].iter(), |bytes| put(SMALL, bytes))?;
        write(state.rows.iter(), |bytes| put(ROWS, bytes))?;
        write(state.pending.iter(), |bytes| put(PENDING, bytes))?;
        write(state.keys.iter(), |bytes| put(KEYS, bytes))?;
        write(state.streams.iter(), |bytes| put(STREAMS, bytes))?;
        write(state.holders.iter(), |bytes| put(HOLDERS, bytes))?;
        write(state.batcher.outbox(), |bytes| put(OUTBOX, bytes))?;
        write(state.collected.bytes(), |bytes| put(PARTS, bytes))?;
        self.global.write_sections(|section, bytes| {
            let (number, _) = GLOBAL[section as usize];
            put(number, bytes)
        })?;
        write(state.retired.iter(), |bytes| put(RETIRED, bytes))
    }

    /// See [`ClusterQueue::digest`].
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest_of(&self.state, &self.global, self.parts)
    }
}

impl ClusterQueue {
    /// The state as it is now, to be written later.
    #[must_use]
    pub fn view(&self) -> QueueView {
        QueueView {
            state: self.state.clone(),
            global: self.global.clone(),
            parts: self.derived.sum,
        }
    }

    /// All pieces one after another, each behind its section's number and its length. For states that
    /// fit memory twice; a member's snapshots are files.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let put = |section, bytes: &[u8]| {
            all.push(section);
            let len = u32::try_from(bytes.len()).expect("a piece is short");
            all.extend_from_slice(&len.to_be_bytes());
            all.extend_from_slice(bytes);
            Ok::<_, core::convert::Infallible>(())
        };
        match self.view().write_pieces(put) {
            Ok(()) => all,
            Err(never) => match never {},
        }
    }

    /// The state that `bytes` of [`to_bytes`](Self::to_bytes) stand for.
    ///
    /// # Errors
    /// [`SnapshotError`]: refuse it; nothing changed.
    pub fn from_bytes(genesis: Arc<Genesis>, cluster: ClusterId, bytes: &[u8]) -> Result<Self, SnapshotError> {
        let mut restoring = QueueRestoring::new(genesis, cluster);
        let mut rest = bytes;
        while let Some((section, after)) = rest.split_first() {
            let (len, after) = after.split_first_chunk::<4>().ok_or(DecodeError::Malformed)?;
            let len = u32::from_be_bytes(*len) as usize;
            let (piece, after) = after.split_at_checked(len).ok_or(DecodeError::Malformed)?;
            restoring.add(*section, piece)?;
            rest = after;
        }
        restoring.finish()
    }
}
