//! Gathers a proof from what a validator has stored.

use std::collections::{BTreeMap, BTreeSet};

use super::{EventProof, OutcomeProof, PROOF_BYTES_MAX, PROOF_VERSION, Segment, SignedHeader, TaskProof};
use crate::{
    batch::{BatchEntry, BatchItem, CertifiedBatch},
    block::{BlockHeader, FinalizedBlock},
    bug::{self, Bug},
    codec::encoded_len,
    entry::SignedEntry,
    global_queue::{EventEntry, GlobalQueue, HistoryEvent, Outcome},
    ids::{Digest, Height, TaskId},
    limits::ROOT_LAG,
    merkle::Climb,
};

/// What a validator stores of the finalized chain.
pub trait ProofSource {
    /// The finalized block at a height, with the proof that it is final; `None` if it is not final here.
    fn finalized(&self, height: Height) -> Option<FinalizedBlock>;

    /// The batch whose header has this digest.
    fn batch(&self, digest: &Digest) -> Option<CertifiedBatch>;

    /// The outcomes of the finalized block at a height, in their order.
    fn outcomes(&self, height: Height) -> Option<Vec<Outcome>>;
}

/// Why there is no proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProveError {
    /// No such task in this state.
    #[error("no such task: {0}")]
    UnknownTask(TaskId),
    /// A finalized block that the history names is not stored.
    #[error("the block at height {0} is not stored")]
    MissingBlock(Height),
    /// A batch that the history names is not stored.
    #[error("batch {0} is not stored")]
    MissingBatch(Digest),
    /// The outcomes of a block are not stored.
    #[error("the outcomes of height {0} are not stored")]
    MissingOutcomes(Height),
    /// What is stored is not what the history says: damage.
    #[error("what is stored at height {0} contradicts the task's history")]
    Contradiction(Height),
    /// Longer than a proof may be.
    #[error("the proof has {got} bytes, at most {max} allowed")]
    TooLarge {
        /// Length.
        got: usize,
        /// Bound.
        max: usize,
    },
}

/// Gathers the proof of a task from the state at the finalized tip and what is stored of the chain.
///
/// # Errors
/// [`ProveError`].
pub fn build_proof(task: &TaskId, queue: &GlobalQueue, source: &impl ProofSource) -> Result<TaskProof, ProveError> {
    let row = queue.task(task).ok_or(ProveError::UnknownTask(*task))?;
    let mut builder = Builder {
        queue,
        source,
        blocks: BTreeMap::new(),
        outcomes: BTreeMap::new(),
        heights: BTreeSet::new(),
        submit: None,
    };
    let mut events = Vec::with_capacity(row.standing.events.len());
    for event in &row.standing.events {
        events.extend(builder.event(event)?);
    }
    let first = row.standing.events.first().map_or(Height(0), |event| event.height);
    let proof = TaskProof {
        version: PROOF_VERSION,
        chain: *queue.registry().chain(),
        submit: builder.submit.take().ok_or(ProveError::Contradiction(first))?,
        segments: builder.segments()?.try_into().expect("as many runs as events at most"),
        events: events.try_into().expect("a row keeps no more events"),
    };
    let got = encoded_len(&proof);
    if got > PROOF_BYTES_MAX {
        return Err(ProveError::TooLarge {
            got,
            max: PROOF_BYTES_MAX,
        });
    }
    Ok(proof)
}

struct Builder<'a, S> {
    queue: &'a GlobalQueue,
    source: &'a S,
    blocks: BTreeMap<Height, FinalizedBlock>,
    outcomes: BTreeMap<Height, Vec<Outcome>>,
    /// Heights whose headers the proof needs.
    heights: BTreeSet<Height>,
    submit: Option<SignedEntry>,
}

impl<S: ProofSource> Builder<'_, S> {
    /// The proof of one event; `None` for a decision of the machinery whose root is not final yet.
    fn event(&mut self, event: &HistoryEvent) -> Result<Option<EventProof>, ProveError> {
        let height = event.height;
        let outcome = self.outcome(height, event.outcome as usize)?;
        let proof = match (event.entry, outcome) {
            (Some(entry), outcome) => Some(self.entry(height, &entry, outcome)?),
            (None, Some(outcome)) => Some(EventProof::Machine { height, outcome }),
            (None, None) => None,
        };
        if proof.is_some() {
            self.heights.insert(height);
        }
        Ok(proof)
    }

    fn entry(
        &mut self,
        height: Height,
        entry: &EventEntry,
        outcome: Option<OutcomeProof>,
    ) -> Result<EventProof, ProveError> {
        let chain = *self.queue.registry().chain();
        let contradiction = ProveError::Contradiction(height);
        let source = self.source;
        let block = &self.block(height)?.block;
        let named = *block.refs.get(entry.reference as usize).ok_or(contradiction)?;
        let refs: Vec<Digest> = block.refs.iter().map(|named| named.leaf()).collect();
        let batch_path = Climb::from_leaf(&refs, entry.reference as usize).ok_or(contradiction)?;
        let batch = source
            .batch(&named.digest)
            .ok_or(ProveError::MissingBatch(named.digest))?;
        let row = batch.entries.get(entry.row as usize).ok_or(contradiction)?;
        let BatchItem::Author(signed) = &row.item else {
            return Err(contradiction);
        };
        if row.id(&chain) != entry.id {
            return Err(contradiction);
        }
        let leaves: Vec<Digest> = batch.entries.iter().map(|row: &BatchEntry| row.leaf(&chain)).collect();
        let signed_header = if self.submit.is_none() {
            self.submit = Some(signed.clone());
            None
        } else {
            Some(SignedHeader {
                header: signed.header.clone(),
                signature: signed.signature,
            })
        };
        Ok(EventProof::Entry {
            height,
            signed: signed_header,
            leaf: row.entry_leaf(entry.id),
            leaf_path: Climb::from_leaf(&leaves, entry.row as usize).ok_or(contradiction)?,
            batch: batch.header.clone(),
            batch_path,
            outcome,
        })
    }

    /// An outcome with its path, if the header with the root over it is final.
    fn outcome(&mut self, height: Height, at: usize) -> Result<Option<OutcomeProof>, ProveError> {
        let root_at = Height(height.0 + ROOT_LAG);
        if self.block(root_at).is_err() || bug::active(Bug::DecisionUnproven) {
            return Ok(None);
        }
        let source = self.source;
        let outcomes = match self.outcomes.entry(height) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(source.outcomes(height).ok_or(ProveError::MissingOutcomes(height))?)
            }
        };
        let leaves: Vec<Digest> = outcomes.iter().map(Outcome::leaf).collect();
        let contradiction = ProveError::Contradiction(height);
        let proof = OutcomeProof {
            outcome: *outcomes.get(at).ok_or(contradiction)?,
            path: Climb::from_leaf(&leaves, at).ok_or(contradiction)?,
        };
        // The heights between stand in the file too: one proof of finality then serves all.
        self.heights.extend((height.0..=root_at.0).map(Height));
        Ok(Some(proof))
    }

    fn block(&mut self, height: Height) -> Result<&FinalizedBlock, ProveError> {
        let source = self.source;
        match self.blocks.entry(height) {
            std::collections::btree_map::Entry::Occupied(known) => Ok(known.into_mut()),
            std::collections::btree_map::Entry::Vacant(slot) => {
                Ok(slot.insert(source.finalized(height).ok_or(ProveError::MissingBlock(height))?))
            }
        }
    }

    /// Runs of consecutive heights, each with the proof that its last block is final.
    fn segments(&mut self) -> Result<Vec<Segment>, ProveError> {
        let mut runs: Vec<Vec<BlockHeader>> = Vec::new();
        for height in core::mem::take(&mut self.heights) {
            let header = self.block(height)?.block.header.clone();
            match runs.last_mut() {
                Some(run) if run.last().is_some_and(|last| last.height.next() == height) => run.push(header),
                _ => runs.push(vec![header]),
            }
        }
        runs.into_iter()
            .map(|run| {
                let last = run.last().expect("a run begins with a header").height;
                Ok(Segment {
                    finality: self.block(last)?.proof.clone(),
                    headers: run.try_into().expect("three headers per event at most"),
                })
            })
            .collect()
    }
}
