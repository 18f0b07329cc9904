//! A fleet's history in one value, for tests of what comes out of it.

use std::collections::{BTreeMap, BTreeSet};

use super::{BlockChain, ClusterLog, Fleet};
use crate::{
    batch::CertifiedBatch,
    block::{Block, FinalizedBlock, Link, ProofOfFinality},
    entry::{Action, SignedEntry, VerifyEach},
    global_queue::{BlockOutcome, GlobalQueue, OrderedBatch, Outcome},
    ids::{ClusterId, Digest, Height},
    proof::ProofSource,
    task::{Scope, Task},
    verdict::Verdict,
};

/// A whole fleet's history in one value: every cluster's log, the chain, the state after it, and all
/// that a validator would have stored.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The fleet.
    pub fleet: Fleet,
    /// State after the last block.
    pub queue: GlobalQueue,
    /// The chain.
    pub chain: BlockChain,
    /// Every cluster's log, by cluster.
    pub logs: Vec<ClusterLog>,
    /// Finalized blocks by height, each with a finalization of its own.
    pub blocks: BTreeMap<Height, FinalizedBlock>,
    /// Batches by digest.
    pub batches: BTreeMap<Digest, CertifiedBatch>,
    /// Outcomes by height.
    pub outcomes: BTreeMap<Height, BlockOutcome>,
    /// Heights that have no finalization of their own: their proof leads over the block above.
    pub without_finalization: BTreeSet<Height>,
    numbers: BTreeMap<(String, ClusterId), u64>,
}

impl Ledger {
    /// Height 0.
    #[must_use]
    pub fn new(fleet: Fleet) -> Self {
        let queue = GlobalQueue::genesis(&fleet.genesis);
        Self {
            chain: BlockChain::new(&fleet, queue.state_root()),
            logs: queue.clusters().map(|id| ClusterLog::new(&fleet, id)).collect(),
            queue,
            fleet,
            blocks: BTreeMap::new(),
            batches: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            without_finalization: BTreeSet::new(),
            numbers: BTreeMap::new(),
        }
    }

    /// The next number of `author` through `cluster`.
    pub fn number(&mut self, author: &str, cluster: ClusterId) -> u64 {
        let number = self.numbers.entry((author.to_owned(), cluster)).or_default();
        *number += 1;
        *number
    }

    /// A submission under the author's next number.
    pub fn submit(&mut self, author: &str, cluster: ClusterId, scope: Scope, task: &Task) -> SignedEntry {
        let number = self.number(author, cluster);
        self.fleet.submit(author, cluster, number, scope, task)
    }

    /// An entry under the author's next number.
    pub fn entry(&mut self, author: &str, cluster: ClusterId, scope: Scope, action: Action) -> SignedEntry {
        let number = self.number(author, cluster);
        self.fleet.entry(author, cluster, number, scope, action)
    }

    /// The next batch of a cluster, every entry granted, at the global height of this state.
    pub fn granted(&mut self, cluster: ClusterId, entries: Vec<SignedEntry>) -> CertifiedBatch {
        let log = &mut self.logs[cluster.0 as usize];
        log.global_height = self.queue.height();
        log.granted(&self.fleet, entries)
    }

    /// The next batch of a cluster with the given verdicts, at the global height of this state.
    pub fn batch(&mut self, cluster: ClusterId, rows: Vec<(Verdict, SignedEntry)>) -> CertifiedBatch {
        let log = &mut self.logs[cluster.0 as usize];
        log.global_height = self.queue.height();
        log.batch(&self.fleet, rows)
    }

    /// A sign of life of a cluster, at the global height of this state.
    pub fn beat(&mut self, cluster: ClusterId) -> CertifiedBatch {
        self.granted(cluster, Vec::new())
    }

    /// Executes and finalizes the next block, `step_ms` after the last.
    pub fn block(&mut self, batches: Vec<CertifiedBatch>, step_ms: u64) -> BlockOutcome {
        let block = self.chain.block(&self.fleet, &batches, step_ms);
        self.batches.extend(
            batches
                .into_iter()
                .map(|batch| (batch.digest(&self.fleet.chain), batch)),
        );
        self.execute(block)
    }

    /// Executes and finalizes a block made by [`BlockChain`].
    pub fn execute(&mut self, block: Block) -> BlockOutcome {
        let finalized = self.fleet.finalize(block);
        let proof = finalized
            .clone()
            .verify(&self.fleet.chain, &self.fleet.set)
            .expect("a quorum signed");
        let bodies: Vec<Option<OrderedBatch<'_>>> = finalized
            .block
            .refs
            .iter()
            .enumerate()
            .map(|(at, named)| {
                let batch = self.batches.get(&named.digest)?;
                OrderedBatch::finalized(&proof, at, &batch.header, &batch.entries)
            })
            .collect();
        let outcome = self
            .queue
            .apply(&finalized.block, &bodies, &mut VerifyEach)
            .expect("the test's block follows the chain");
        self.queue.check_invariants();
        let height = outcome.height;
        self.chain
            .roots
            .insert(height, (outcome.state_root, outcome.outcome_root));
        self.blocks.insert(height, finalized);
        self.outcomes.insert(height, outcome.clone());
        outcome
    }
}

impl ProofSource for Ledger {
    fn finalized(&self, height: Height) -> Option<FinalizedBlock> {
        let mut finalized = self.blocks.get(&height)?.clone();
        if self.without_finalization.contains(&height) {
            let above = self.finalized(height.next())?;
            let mut links = vec![Link::Header(above.block.header)];
            links.extend(above.proof.above.into_inner());
            finalized.proof = ProofOfFinality {
                above: links.try_into().ok()?,
                finalization: above.proof.finalization,
            };
        }
        Some(finalized)
    }

    fn batch(&self, digest: &Digest) -> Option<CertifiedBatch> {
        self.batches.get(digest).cloned()
    }

    fn outcomes(&self, height: Height) -> Option<Vec<Outcome>> {
        self.outcomes.get(&height).map(|outcome| outcome.outcomes.clone())
    }
}
