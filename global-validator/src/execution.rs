//! The state that blocks are executed on: the global queue, as the core's ledger wants it.

use std::{collections::BTreeMap, sync::Arc};

use common::{
    block::Block,
    global_queue::{GlobalQueue, OrderedBatch, Outcome, outcome_root},
    ids::{ClusterId, Digest},
};
use global_core::{Cursor, Execution, Roots};

use crate::{batch_store::SharedBatch, verified_entries::VerifiedEntries};

/// A global queue with the root of the outcomes of its last block.
#[derive(Clone, Debug)]
pub struct ChainState {
    queue: GlobalQueue,
    outcome_root: Digest,
    outcomes: Arc<Vec<Outcome>>,
    /// As the queue says it; shared by copies.
    cursors: Arc<BTreeMap<ClusterId, Cursor>>,
}

/// What executing a block needs beside it.
pub struct Gathered {
    /// The batches of its references, in their order; `None` where it is not here, which the state
    /// accepts only for references that are not next.
    pub batches: Vec<Option<SharedBatch>>,
    /// Which author signatures are known to be good.
    pub verified: VerifiedEntries,
}

impl ChainState {
    /// The state at height 0.
    #[must_use]
    pub fn genesis(queue: GlobalQueue) -> Self {
        Self {
            cursors: Arc::new(cursors_of(&queue)),
            queue,
            outcome_root: outcome_root(&[]),
            outcomes: Arc::default(),
        }
    }

    /// What the last block decided, in order.
    #[must_use]
    pub fn outcomes(&self) -> &Arc<Vec<Outcome>> {
        &self.outcomes
    }

    /// The queue.
    #[must_use]
    pub fn queue(&self) -> &GlobalQueue {
        &self.queue
    }
}

/// What is next of every cluster.
fn cursors_of(queue: &GlobalQueue) -> BTreeMap<ClusterId, Cursor> {
    let cursors = queue
        .clusters()
        .filter_map(|cluster| Some((cluster, queue.cursor(cluster)?)));
    cursors
        .map(|(cluster, cursor)| {
            let cursor = Cursor {
                founding: cursor.founding,
                next: cursor.next_seq,
                prev_digest: cursor.last_digest,
            };
            (cluster, cursor)
        })
        .collect()
}

impl Execution for ChainState {
    type Batches = Gathered;

    fn apply(&mut self, block: &Block, gathered: &Gathered) {
        let ordered: Vec<Option<OrderedBatch<'_>>> = gathered
            .batches
            .iter()
            .map(|batch| batch.as_deref().map(OrderedBatch::certified))
            .collect();
        let outcome = match self.queue.apply(block, &ordered, &mut gathered.verified.clone()) {
            Ok(outcome) => outcome,
            // The ledger applies each block on its parent, and only when its batches are here.
            Err(error) => panic!("block {} at height {}: {error}", block.digest(), block.header.height),
        };
        self.outcome_root = outcome.outcome_root;
        self.outcomes = Arc::new(outcome.outcomes);
        self.cursors = Arc::new(cursors_of(&self.queue));
        for evidence in &outcome.evidence {
            tracing::warn!(
                cluster = %evidence.batch.cluster,
                seq = %evidence.batch.seq,
                row = evidence.row,
                entry = %evidence.id,
                "a roster attested a bad entry: {}",
                evidence.fault
            );
        }
    }

    fn roots(&self) -> Roots {
        Roots {
            state: self.queue.state_root(),
            outcomes: self.outcome_root,
        }
    }

    fn cursors(&self) -> &BTreeMap<ClusterId, Cursor> {
        &self.cursors
    }
}
