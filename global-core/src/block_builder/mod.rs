//! What a leader proposes: references for a block on a given parent, and its header.
//! In: the cursors on the parent's chain, the pool, roots. Out: a block.
//!
//! # Rules
//! * One reference per cluster and turn, clusters in order from one that changes with the height, so
//!   that a busy cluster does not keep a quiet one waiting.
//! * At most [`REFS_PER_BLOCK_MAX`](limits::REFS_PER_BLOCK_MAX) references and [`BATCH_BYTES_PER_BLOCK_MAX`]
//!   bytes behind them.

use std::collections::BTreeMap;

use common::{
    block::{BLOCK_VERSION, BatchRef, Block, BlockHeader, refs_root},
    bug::{self, Bug},
    ids::{BlockTime, ChainId, ClusterId, Digest, Epoch, Height, View},
    limits,
};

use crate::{
    batch_pool::BatchPool,
    ledger::{Cursor, Roots},
};

/// Bytes of the batches that one block refers to: what a voter may have to fetch within a view.
pub const BATCH_BYTES_PER_BLOCK_MAX: u64 = 4 * 1024 * 1024;

/// Where a block stands, apart from what it refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    /// The fleet.
    pub chain: ChainId,
    /// Of the set.
    pub epoch: Epoch,
    /// The leader's.
    pub view: View,
    /// The parent's digest.
    pub parent: Digest,
    /// The parent's view.
    pub parent_view: View,
    /// The parent's height.
    pub parent_height: Height,
    /// The parent's time.
    pub parent_time: BlockTime,
    /// State and outcomes of the block two below, on this chain.
    pub roots: Roots,
}

/// References that are next after `cursors`, in fair order.
#[must_use]
pub fn pick_refs(pool: &BatchPool, cursors: &BTreeMap<ClusterId, Cursor>, height: Height) -> Vec<BatchRef> {
    let mut runs: Vec<_> = cursors
        .iter()
        .map(|(cluster, cursor)| pool.run(*cluster, cursor).peekable())
        .collect();
    if runs.is_empty() {
        return Vec::new();
    }
    let first = (height.0 % runs.len() as u64) as usize;
    runs.rotate_left(first);
    let (mut refs, mut bytes) = (Vec::new(), 0u64);
    loop {
        let before = refs.len();
        for run in &mut runs {
            let Some((batch, len)) = run.peek().copied() else {
                continue;
            };
            let fits = bytes + u64::from(len) <= BATCH_BYTES_PER_BLOCK_MAX;
            if refs.len() == limits::REFS_PER_BLOCK_MAX || !fits {
                continue;
            }
            run.next();
            bytes += u64::from(len);
            refs.push(batch);
        }
        if refs.len() == before {
            return refs;
        }
    }
}

/// A block at `site` that refers to `refs`, at time max(parent + 1 us, clock).
///
/// # Panics
/// If there are more references than a block holds: [`pick_refs`] returns no more.
#[must_use]
pub fn build(site: &Site, refs: Vec<BatchRef>, clock: BlockTime) -> Block {
    let header = BlockHeader {
        version: BLOCK_VERSION,
        chain: site.chain,
        epoch: site.epoch,
        view: site.view,
        height: site.parent_height.next(),
        parent: site.parent,
        parent_view: site.parent_view,
        time: BlockTime(clock.0.max(site.parent_time.0.saturating_add(1))),
        refs_root: refs_root(&refs),
        state_root: if bug::active(Bug::WrongRoots) {
            site.parent
        } else {
            site.roots.state
        },
        outcome_root: site.roots.outcomes,
        next_set: None,
    };
    let refs = refs.try_into().expect("references are picked within the bound");
    Block { header, refs }
}

#[cfg(test)]
mod tests {
    use common::ids::{BatchSeq, Founding};

    use super::*;
    use crate::batch_pool::StoredBatch;

    fn first() -> Cursor {
        Cursor {
            founding: Founding(0),
            next: BatchSeq(1),
            prev_digest: Digest::default(),
        }
    }

    /// A pool with `counts[c]` batches of cluster c, each of `bytes`.
    fn pool(counts: &[u64], bytes: u32) -> (BatchPool, BTreeMap<ClusterId, Cursor>) {
        let mut pool = BatchPool::default();
        let mut cursors = BTreeMap::new();
        for (cluster, count) in (0..).map(ClusterId).zip(counts) {
            cursors.insert(cluster, first());
            let mut cursor = first();
            for seq in 1..=*count {
                let mut digest = [cluster.0 as u8; 32];
                digest[..8].copy_from_slice(&seq.to_le_bytes());
                let batch = BatchRef {
                    cluster,
                    founding: Founding(0),
                    seq: BatchSeq(seq),
                    digest: Digest(digest),
                };
                pool.insert(StoredBatch {
                    batch,
                    prev_digest: cursor.prev_digest,
                    bytes,
                });
                cursor = cursor.after(&batch);
            }
        }
        (pool, cursors)
    }

    fn picked(counts: &[u64], bytes: u32, height: u64) -> Vec<(u32, u64)> {
        let (pool, cursors) = pool(counts, bytes);
        let refs = pick_refs(&pool, &cursors, Height(height));
        refs.iter().map(|batch| (batch.cluster.0, batch.seq.0)).collect()
    }

    #[test]
    fn clusters_take_turns_and_the_first_changes_with_the_height() {
        assert_eq!(
            picked(&[3, 1, 2], 10, 0),
            [(0, 1), (1, 1), (2, 1), (0, 2), (2, 2), (0, 3)]
        );
        assert_eq!(
            picked(&[3, 1, 2], 10, 1),
            [(1, 1), (2, 1), (0, 1), (2, 2), (0, 2), (0, 3)]
        );
        assert_eq!(picked(&[], 10, 1), []);
    }

    #[test]
    fn references_are_bounded_by_count_and_by_bytes() {
        assert_eq!(picked(&[300, 300], 10, 0).len(), limits::REFS_PER_BLOCK_MAX);
        let quarter = (BATCH_BYTES_PER_BLOCK_MAX / 4) as u32;
        assert_eq!(picked(&[300, 300], quarter, 0).len(), 4);
    }

    #[test]
    fn time_is_above_the_parent_even_if_the_clock_is_not() {
        let mut site = Site {
            chain: ChainId::default(),
            epoch: Epoch(0),
            view: View(3),
            parent: Digest::default(),
            parent_view: View(2),
            parent_height: Height(2),
            parent_time: BlockTime(100),
            roots: Roots::default(),
        };
        assert_eq!(build(&site, vec![], BlockTime(50)).header.time, BlockTime(101));
        site.parent_time = BlockTime(10);
        assert_eq!(build(&site, vec![], BlockTime(50)).header.time, BlockTime(50));
    }
}
