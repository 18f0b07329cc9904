//! The digest of a state: what members that applied the same log compare.

use common::{
    codec::{Wire, encode},
    crypto::sha256,
    global_queue::GlobalQueue,
    ids::{BatchSeq, DeviceId, Digest, EntryNumber, Height, KeyVersion, LogPosition},
};
use serde::{Deserialize, Serialize};

use super::{ClusterQueue, Conflict, HolderRow, RecentRoots, State, derived::Sum};
use crate::batcher::Cursor;

/// What the digest of a queue is over.
#[derive(Serialize, Deserialize)]
struct Summary {
    applied: LogPosition,
    chain: Digest,
    parts: Sum,
    gone: [u64; 10],
    streams: Vec<(DeviceId, KeyVersion, EntryNumber)>,
    holders: Vec<(DeviceId, HolderRow)>,
    open: (BatchSeq, u64),
    last_closed: Cursor,
    last_final: Cursor,
    roster: Digest,
    collected: (Height, u16),
    conflict: Option<Conflict>,
    roots: RecentRoots,
    global: Digest,
}

impl Wire for Summary {
    const BYTES_MAX: usize = 512 * 1024 * 1024;
}

/// See [`ClusterQueue::digest`].
pub(super) fn digest_of(state: &State, global: &GlobalQueue, parts: Sum) -> Digest {
    let streams = state.streams.iter();
    let summary = Summary {
        applied: state.applied,
        chain: state.chain,
        parts,
        gone: state.gone,
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
        roots: state.roots,
        global: global.state_root(),
    };
    sha256(&[b"muster/v1/cluster-queue", &encode(&summary)])
}

impl ClusterQueue {
    /// A digest of the state. Members that applied the same index have the same one. It covers all that is
    /// replicated; of a number stream the highest number alone, of the outbox the chain of digests, and of the
    /// open batch and the collected parts how far they are: the rest of these follows from the log, whose chain
    /// is covered.
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest_of(&self.state, &self.global, self.derived.sum)
    }
}
