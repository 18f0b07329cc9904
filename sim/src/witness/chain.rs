//! The chain as the witness executes it: every final block once, in order, whoever shows it first.
//!
//! # Invariants
//! * The state is the one after the highest block told, so whoever has left by then is known by name.
//!
//! # Why
//! A validator shows its newest state alone. After everything was cut off, blocks of minutes are executed between two looks at
//! it, and a task ends, leaves, and loses even its line within them.

use std::collections::BTreeMap;

use common::{
    block::Block,
    entry::VerifyEach,
    genesis::Genesis,
    global_queue::{ApplyError, BlockOutcome, GlobalQueue, OrderedBatch},
    ids::TaskId,
};
use global_validator::batch_store::SharedBatch;

/// State of the chain, and who left it.
pub(super) struct Chain {
    state: GlobalQueue,
    /// Tasks that left, and how many had left before each.
    left: BTreeMap<TaskId, u64>,
}

impl Chain {
    /// At height 0.
    pub(super) fn begin(genesis: &Genesis) -> Self {
        Self {
            state: GlobalQueue::genesis(genesis),
            left: BTreeMap::new(),
        }
    }

    /// Executes the next block.
    ///
    /// # Errors
    /// It is not the next one, or a batch is missing that it needs.
    pub(super) fn execute(
        &mut self,
        block: &Block,
        batches: &[Option<SharedBatch>],
    ) -> Result<BlockOutcome, ApplyError> {
        let batches: Vec<_> = batches
            .iter()
            .map(|batch| batch.as_deref().map(OrderedBatch::certified))
            .collect();
        let outcome = self.state.apply(block, &batches, &mut VerifyEach)?;
        let left = outcome.dropped.iter().map(|line| (line.id, line.order));
        self.left.extend(left);
        Ok(outcome)
    }

    /// Whether the task has left.
    pub(super) fn has_left(&self, task: &TaskId) -> bool {
        self.left.contains_key(task)
    }

    /// Whether `state`, of this height or below, has the task, or had it and let it leave.
    pub(super) fn is_known_to(&self, state: &GlobalQueue, task: &TaskId) -> bool {
        let has_left = || self.left.get(task).is_some_and(|order| *order < state.left());
        state.state_of(task).is_some() || has_left()
    }
}
