//! Consecutive batches of a cluster, consecutive blocks of the fleet.

use std::collections::BTreeMap;

use super::Fleet;
use crate::{
    batch::{BATCH_VERSION, BatchEntry, BatchHeader, BatchItem, CertifiedBatch, RosterChange},
    block::{BLOCK_VERSION, BatchRef, Block, BlockHeader, genesis_digest, refs_root},
    entry::SignedEntry,
    ids::{BatchSeq, BlockTime, ClusterId, Digest, Epoch, Founding, Height, LogIndex, LogPosition, Term, View},
    merkle,
    roster::Roster,
    verdict::Verdict,
};

/// One cluster's log as the global tier sees it: makes consecutive certified batches.
///
/// Every row takes the next log index; a row's verdict is what the test says the cluster decided.
#[derive(Clone, Debug)]
pub struct ClusterLog {
    /// Whose.
    pub cluster: ClusterId,
    /// Of which founding.
    pub founding: Founding,
    /// Sequence number of the next batch.
    pub next_seq: BatchSeq,
    /// Digest of the last header.
    pub prev_digest: Digest,
    /// Index that the next row takes.
    pub next_index: LogIndex,
    /// Global height that the next batch names.
    pub global_height: Height,
    /// Roster in force.
    pub roster: Roster,
}

impl ClusterLog {
    /// The empty log of a cluster with its founding roster.
    #[must_use]
    pub fn new(fleet: &Fleet, cluster: ClusterId) -> Self {
        Self {
            cluster,
            founding: Founding(0),
            next_seq: BatchSeq(1),
            prev_digest: Digest::default(),
            next_index: LogIndex(1),
            global_height: Height(0),
            roster: fleet.roster(cluster),
        }
    }

    /// The next batch, of author-signed entries with the cluster's verdicts.
    pub fn batch(&mut self, fleet: &Fleet, rows: Vec<(Verdict, SignedEntry)>) -> CertifiedBatch {
        let items = rows
            .into_iter()
            .map(|(verdict, entry)| (verdict, BatchItem::Author(entry)))
            .collect();
        self.batch_of(fleet, items)
    }

    /// The next batch, every entry granted.
    pub fn granted(&mut self, fleet: &Fleet, entries: Vec<SignedEntry>) -> CertifiedBatch {
        self.batch(
            fleet,
            entries.into_iter().map(|entry| (Verdict::Granted, entry)).collect(),
        )
    }

    /// The next batch, empty: a sign of life.
    pub fn beat(&mut self, fleet: &Fleet) -> CertifiedBatch {
        self.batch_of(fleet, Vec::new())
    }

    /// The next batch, of any items. A `Roster` row takes effect after it.
    pub fn batch_of(&mut self, fleet: &Fleet, items: Vec<(Verdict, BatchItem)>) -> CertifiedBatch {
        let mut next_roster = self.roster.clone();
        let mut entries = Vec::new();
        for (verdict, item) in items {
            if let (Verdict::Granted, BatchItem::Roster(RosterChange { roster })) = (verdict, &item) {
                next_roster = roster.clone();
            }
            entries.push(BatchEntry {
                founding: self.founding,
                index: self.next_index,
                verdict,
                item,
            });
            self.next_index = self.next_index.next();
        }
        let leaves: Vec<Digest> = entries.iter().map(|row| row.leaf(&fleet.chain)).collect();
        let cut = self.next_index;
        self.next_index = cut.next();
        let header = BatchHeader {
            version: BATCH_VERSION,
            cluster: self.cluster,
            founding: self.founding,
            seq: self.next_seq,
            prev_digest: self.prev_digest,
            cut: LogPosition {
                term: Term(1),
                index: cut,
            },
            first_index: entries.first().map_or(LogIndex(0), |row| row.index),
            last_index: entries.last().map_or(LogIndex(0), |row| row.index),
            count: entries.len() as u32,
            entries_root: merkle::root(&leaves),
            global_height: self.global_height,
            roster: self.roster.digest(),
            next_roster: next_roster.digest(),
        };
        self.next_seq = self.next_seq.next();
        self.prev_digest = header.digest(&fleet.chain);
        let batch = fleet.certify(header, entries, &self.roster);
        self.roster = next_roster;
        batch
    }
}

/// The chain of blocks: each on the one before, a view and a time step after it.
#[derive(Clone, Debug)]
pub struct BlockChain {
    /// Digest of the last block.
    pub parent: Digest,
    /// Its height.
    pub height: Height,
    /// Its view.
    pub view: View,
    /// Its time.
    pub time: BlockTime,
    /// State and outcome root after each height; heights not set carry those of height 0.
    pub roots: BTreeMap<Height, (Digest, Digest)>,
}

impl BlockChain {
    /// The chain before its first block. `state_root` is the root of the genesis state.
    #[must_use]
    pub fn new(fleet: &Fleet, state_root: Digest) -> Self {
        Self {
            parent: genesis_digest(&fleet.chain),
            height: Height(0),
            view: View(0),
            time: fleet.genesis.genesis_time,
            roots: BTreeMap::from([(Height(0), (state_root, merkle::root(&[])))]),
        }
    }

    /// The next block, `step_ms` after the last, referring to `batches` in their order.
    pub fn block(&mut self, fleet: &Fleet, batches: &[CertifiedBatch], step_ms: u64) -> Block {
        let refs: Vec<BatchRef> = batches.iter().map(|batch| BatchRef::to(batch, &fleet.chain)).collect();
        self.block_of(fleet, refs, step_ms)
    }

    /// The next block with the given references.
    pub fn block_of(&mut self, fleet: &Fleet, refs: Vec<BatchRef>, step_ms: u64) -> Block {
        let height = self.height.next();
        let lagging = Height(height.0.saturating_sub(crate::limits::ROOT_LAG));
        let (state_root, outcome_root) = self.roots.get(&lagging).copied().unwrap_or(self.roots[&Height(0)]);
        let header = BlockHeader {
            version: BLOCK_VERSION,
            chain: fleet.chain,
            epoch: Epoch(0),
            view: self.view.next(),
            height,
            parent: self.parent,
            parent_view: self.view,
            time: self.time.plus_ms(step_ms),
            refs_root: refs_root(&refs),
            state_root,
            outcome_root,
            next_set: None,
        };
        self.parent = header.digest();
        self.height = height;
        self.view = header.view;
        self.time = header.time;
        Block {
            header,
            refs: refs.try_into().expect("a test block is bounded"),
        }
    }
}
