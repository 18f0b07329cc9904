//! Builds proof files from what this validator stores.

use std::cell::RefCell;

use common::{
    batch::CertifiedBatch,
    block::FinalizedBlock,
    global_queue::{GlobalQueue, Outcome},
    ids::{Digest, Height, TaskId},
    proof::{ProofSource, ProveError, TaskProof, build_proof},
};

use crate::{batch_store::BatchStore, block_store::BlockStore, exit::Stop, outcomes::Outcomes};

/// Where proofs are built from.
#[derive(Clone)]
pub struct Prover {
    /// Final blocks.
    pub blocks: BlockStore,
    /// Their batches.
    pub batches: BatchStore,
    /// What they decided.
    pub outcomes: Outcomes,
}

/// The stores, remembering the first failure of the disk: a proof source can only say "not here".
struct Source<'a> {
    prover: &'a Prover,
    failed: RefCell<Option<Stop>>,
}

impl Source<'_> {
    fn found<T>(&self, read: Result<Option<T>, Stop>) -> Option<T> {
        read.unwrap_or_else(|stop| {
            self.failed.borrow_mut().get_or_insert(stop);
            None
        })
    }
}

impl ProofSource for Source<'_> {
    fn finalized(&self, height: Height) -> Option<FinalizedBlock> {
        self.found(self.prover.blocks.at(height))
    }

    fn batch(&self, digest: &Digest) -> Option<CertifiedBatch> {
        self.found(self.prover.batches.get(digest))
    }

    fn outcomes(&self, height: Height) -> Option<Vec<Outcome>> {
        self.prover.outcomes.at(height).map(|outcomes| outcomes.to_vec())
    }
}

impl Prover {
    /// The proof of `task` as `queue` knows it.
    ///
    /// # Errors
    /// [`Stop`] if the disk failed; inside, [`ProveError`] if there is no proof.
    pub fn prove(&self, queue: &GlobalQueue, task: &TaskId) -> Result<Result<TaskProof, ProveError>, Stop> {
        let source = Source {
            prover: self,
            failed: RefCell::new(None),
        };
        let proof = build_proof(task, queue, &source);
        match source.failed.into_inner() {
            Some(stop) => Err(stop),
            None => Ok(proof),
        }
    }
}
