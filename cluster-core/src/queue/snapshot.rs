//! The whole state as bytes, and as a digest.
//!
//! # Rules
//! * A snapshot holds rows, number streams, holders, open batch, outbox, cursors, rosters, collected
//!   parts, the chain at its last index, and the global queue. Attestations travel beside it.
//! * Decoding is bounded and canonical, and a snapshot that breaks an invariant is refused: it comes
//!   from another member.

use std::sync::Arc;

use common::{
    codec::{Blob, DecodeError, Wire, decode, encode},
    crypto::sha256,
    genesis::Genesis,
    global_queue::GlobalQueue,
    ids::{BatchSeq, ChainId, ClusterId, DeviceId, Digest, EntryNumber, Height, KeyVersion, LogPosition, TaskId},
    task::Scope,
    validator_set::ValidatorSet,
};
use serde::{Deserialize, Serialize};

use super::{CLAIMS_PER_DEVICE_MAX, ClusterQueue, Derived, HolderRow, State, TaskRow};
use crate::batcher::{Conflict, Cursor};

/// Version of the snapshot format that this build reads and writes.
const SNAPSHOT_VERSION: u16 = 1;
/// Longest encoded snapshot, and longest encoded global queue inside it.
const SNAPSHOT_BYTES_MAX: usize = 512 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Snapshot {
    version: u16,
    state: State,
    global: Blob<SNAPSHOT_BYTES_MAX>,
}

impl Wire for Snapshot {
    const BYTES_MAX: usize = 2 * SNAPSHOT_BYTES_MAX;
}

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
    /// The global queue in it is malformed.
    #[error("the global queue in the snapshot is not valid")]
    Global,
    /// It contradicts itself.
    #[error("the snapshot contradicts itself: {0}")]
    Invariant(&'static str),
}

/// What the digest of a queue is over.
#[derive(Serialize, Deserialize)]
struct Summary {
    applied: LogPosition,
    chain: Digest,
    rows: [u64; 4],
    streams: Vec<(DeviceId, KeyVersion, EntryNumber)>,
    holders: Vec<(DeviceId, HolderRow)>,
    open: (BatchSeq, u64),
    last_closed: Cursor,
    last_final: Cursor,
    roster: Digest,
    collected: (Height, u16),
    conflict: Option<Conflict>,
    global: Digest,
}

impl Wire for Summary {
    const BYTES_MAX: usize = SNAPSHOT_BYTES_MAX;
}

/// Digest of a row in four words, to be added up over all rows.
pub(super) fn row_digest(task: &TaskId, row: &TaskRow) -> [u64; 4] {
    let digest = sha256(&[&task.0, &encode(row)]).0;
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(digest.chunks_exact(8)) {
        *word = u64::from_be_bytes(bytes.try_into().expect("chunks of eight bytes"));
    }
    words
}

impl ClusterQueue {
    /// The whole state, canonical: members that applied the same log give the same bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(&Snapshot {
            version: SNAPSHOT_VERSION,
            state: self.state.clone(),
            global: self
                .global
                .to_bytes()
                .try_into()
                .expect("a global queue fits the bound of a snapshot"),
        })
    }

    /// The state that `bytes` stand for.
    ///
    /// # Errors
    /// [`SnapshotError`]: refuse it; nothing changed.
    pub fn from_bytes(genesis: Arc<Genesis>, cluster: ClusterId, bytes: &[u8]) -> Result<Self, SnapshotError> {
        let Snapshot { version, state, global } = decode(bytes)?;
        if version != SNAPSHOT_VERSION {
            return Err(SnapshotError::Version {
                got: version,
                want: SNAPSHOT_VERSION,
            });
        }
        let chain = genesis.chain_id();
        if state.chain_id != chain {
            return Err(SnapshotError::WrongChain {
                got: state.chain_id,
                want: chain,
            });
        }
        if state.cluster != cluster || genesis.clusters.get(cluster.0 as usize).is_none() {
            return Err(SnapshotError::WrongCluster {
                got: state.cluster,
                want: cluster,
            });
        }
        let global = GlobalQueue::from_bytes(&global, &genesis).map_err(|_| SnapshotError::Global)?;
        let queue = Self {
            set: Arc::new(ValidatorSet::from_genesis(&genesis)),
            derived: Derived::of(state.cluster, &state.rows),
            state,
            global,
            genesis,
        };
        queue.check_invariants().map_err(SnapshotError::Invariant)?;
        Ok(queue)
    }

    /// A digest of the state. Members that applied the same index have the same one. Of a number
    /// stream it covers the highest number, of the outbox the chain of digests.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let state = &self.state;
        let streams = state.streams.iter();
        let summary = Summary {
            applied: state.applied,
            chain: state.chain,
            rows: self.derived.sum,
            streams: streams
                .map(|((author, version), stream)| (*author, *version, stream.highest()))
                .collect(),
            holders: state.holders.iter().map(|(id, row)| (*id, row.clone())).collect(),
            open: (state.batcher.open_seq(), state.batcher.pending_bytes()),
            last_closed: state.batcher.last_closed(),
            last_final: state.batcher.last_final(),
            roster: state.batcher.roster().digest(),
            collected: state.collected.progress(),
            conflict: state.conflict,
            global: self.global.state_root(),
        };
        sha256(&[b"muster/v1/cluster-queue", &encode(&summary)])
    }

    /// Checks everything that must hold between two entries. Run after every step in tests and in
    /// the simulator, and on every snapshot that arrives.
    ///
    /// # Errors
    /// A phrase that says what is broken.
    pub fn check_invariants(&self) -> Result<(), &'static str> {
        let check = |holds: bool, what| if holds { Ok(()) } else { Err(what) };
        let state = &self.state;
        state.batcher.check_invariants(&state.chain_id)?;
        self.check_cursors()?;
        check(
            self.derived == Derived::of(state.cluster, &state.rows),
            "what is derived from the rows differs from them",
        )?;
        let mut held = 0;
        for (task, row) in &state.rows {
            check(row.changed_at <= state.applied.index, "a row was changed in the future")?;
            let is_cluster = row.scope == Scope::Cluster;
            check(
                !is_cluster || (row.cluster == Some(state.cluster) && row.assignment.0 == 0),
                "a cluster-scope task is elsewhere",
            )?;
            check(
                !is_cluster || state.keys.get(&(row.author, row.task.key.clone())) == Some(task),
                "a cluster-scope task is missing among the keys",
            )?;
            if row.state().is_held() {
                let holder = row.holder().ok_or("a held task has no holder")?;
                if row.cluster == Some(state.cluster) {
                    held += 1;
                    let claims = state.holders.get(&holder.device).map(|holder| &holder.claims);
                    check(
                        claims.is_some_and(|claims| claims.contains(task)),
                        "a holder does not know its claim",
                    )?;
                    check(
                        holder.fence.assignment == row.assignment && holder.fence.index <= state.applied.index,
                        "a fence is not of this log",
                    )?;
                }
            }
        }
        let claims: usize = state.holders.values().map(|holder| holder.claims.len()).sum();
        check(claims == held, "a holder has a claim that no row names")?;
        check(
            state
                .holders
                .values()
                .all(|holder| holder.claims.len() <= CLAIMS_PER_DEVICE_MAX),
            "a device holds too many tasks",
        )?;
        let waits: usize = state
            .keys
            .values()
            .filter(|task| !state.rows.contains_key(*task))
            .count();
        check(waits == 0, "a task key names no row")
    }

    /// The outbox begins where the global queue ends.
    fn check_cursors(&self) -> Result<(), &'static str> {
        let check = |holds: bool, what| if holds { Ok(()) } else { Err(what) };
        let batcher = &self.state.batcher;
        let cursor = self
            .global
            .cursor(self.state.cluster)
            .ok_or("the global queue does not know this cluster")?;
        let last = batcher.last_final();
        check(
            cursor.founding == self.state.founding,
            "the global queue is of another founding",
        )?;
        check(
            (cursor.next_seq, cursor.last_digest, cursor.cut.index) == (last.seq.next(), last.digest, last.cut),
            "the outbox does not begin where the global queue ends",
        )?;
        let first = batcher.outbox().next().map(|batch| batch.header.roster);
        check(
            first.unwrap_or_else(|| batcher.roster_before().digest()) == cursor.roster_digest,
            "the first batch that is not final is under another roster than the global queue's",
        )
    }
}
