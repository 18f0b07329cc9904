//! What the ledger needs of the state that blocks are executed on.

use std::collections::BTreeMap;

use common::{
    block::{BatchRef, Block, Roots},
    ids::{BatchSeq, ClusterId, Digest, Founding},
};

/// Which batch of a cluster is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor {
    /// Founding in force.
    pub founding: Founding,
    /// Its number.
    pub next: BatchSeq,
    /// Digest of the batch before it; zeros before the first.
    pub prev_digest: Digest,
}

impl Cursor {
    /// Whether `batch` can be no next one any more: its number was executed, or its founding is over.
    #[must_use]
    pub fn is_past(&self, batch: &BatchRef) -> bool {
        batch.founding < self.founding || (batch.founding == self.founding && batch.seq < self.next)
    }

    /// The cursor after `batch`.
    #[must_use]
    pub fn after(&self, batch: &BatchRef) -> Self {
        Self {
            founding: self.founding,
            next: batch.seq.next(),
            prev_digest: batch.digest,
        }
    }

    /// Whether `batch` has the number that is next.
    #[must_use]
    pub fn is_next(&self, batch: &BatchRef) -> bool {
        (batch.founding, batch.seq) == (self.founding, self.next)
    }
}

/// A state that blocks are applied to. A pure function of the blocks and their batches.
///
/// Cloned once per unfinalized block, so cloning should be cheap.
pub trait Execution: Clone {
    /// What applying needs beside the block: the batches it refers to, and which signatures verify.
    type Batches: ?Sized;

    /// Executes `block` on this state. `batches`: those of its references, in their order.
    fn apply(&mut self, block: &Block, batches: &Self::Batches);

    /// Digests of this state and of the outcomes of the block applied last.
    fn roots(&self) -> Roots;

    /// What is next of every cluster. Asked for in every step, so it should be at hand.
    fn cursors(&self) -> &BTreeMap<ClusterId, Cursor>;
}
