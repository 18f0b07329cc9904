//! What validators send, execute and order, and what their disks hold.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use common::{
    block::{BatchRef, Block, Proposal},
    certificate::{SignedVote, Vote},
    codec::decode,
    global_queue::GlobalQueue,
    ids::{BatchSeq, ChainId, ClusterId, Digest, Height, NodeIdx, TaskId, View},
    wire::frame::FrameKind,
};
use global_core::GuardRecord;
use global_validator::{Validator, batch_store::SharedBatch};

use super::Witness;
use crate::{
    batch_disk::BatchDisks,
    checkers::Observation,
    guard_disk::GuardDisks,
    ports::{Sender, SimDisk},
    runtime::Process,
    trace::Event,
};

/// What was told of them.
#[derive(Default)]
pub(super) struct Known {
    /// Highest block told.
    executed: Height,
    /// Highest block whose batches were told.
    ordered: Height,
    /// What proposals refer to, by view and digest; the newest.
    proposals: BTreeMap<(View, Digest), Vec<BatchRef>>,
    /// The last proposal of each validator, which goes to everybody.
    last_proposal: BTreeMap<NodeIdx, Bytes>,
    /// The last votes of each, which do too.
    last_votes: BTreeMap<NodeIdx, VecDeque<Bytes>>,
    batches: BatchDisks,
    guards: GuardDisks,
}

impl Known {
    /// Whether `body` is one of the last votes that left `voter` in this life of it.
    fn has_heard_vote(&mut self, voter: NodeIdx, body: &Bytes) -> bool {
        let last = self.last_votes.entry(voter).or_default();
        if last.contains(body) {
            return true;
        }
        if last.len() == VOTES_MAX {
            last.pop_front();
        }
        last.push_back(body.clone());
        false
    }

    /// Whether `body` is the last proposal that left `sender`.
    fn has_heard_proposal(&mut self, sender: NodeIdx, body: &Bytes) -> bool {
        self.last_proposal.insert(sender, body.clone()).as_ref() == Some(body)
    }
}

/// Proposals remembered.
const PROPOSALS_MAX: usize = 256;
/// Votes of one validator remembered.
const VOTES_MAX: usize = 4;

impl Witness {
    /// Makes the disk of a validator known, to be looked at when it votes.
    pub fn watch_disk(&self, validator: NodeIdx, disk: &SimDisk, chain: ChainId) {
        let known = &mut self.lock().validators;
        known.guards.watch(validator, disk.clone());
        known.batches.watch(validator, disk.clone(), chain);
    }

    /// A frame leaves a device. What others than its signer send says nothing about the signer: honest validators pass
    /// on what an enemy proposed twice, and enemies put any name under anything.
    pub(super) fn hear_validator(&self, from: Sender, kind: FrameKind, body: &Bytes) {
        match kind {
            FrameKind::Vote if !from.is_hacked => {
                // It goes to everybody, and is judged when it first leaves.
                if self.lock().validators.has_heard_vote(from.idx, body) {
                    return;
                }
                if let Ok(signed) = decode::<SignedVote>(body)
                    && signed.voter == from.idx
                {
                    let lacks = self
                        .lock()
                        .validators
                        .guards
                        .lacks(from.idx, &GuardRecord::Vote(signed.vote));
                    self.see(&Observation::Voted {
                        validator: signed.voter,
                        vote: signed.vote,
                        missing: self.missing_batch(&signed),
                        lacks,
                    });
                }
            }
            FrameKind::Proposal => {
                if self.lock().validators.has_heard_proposal(from.idx, body) {
                    return;
                }
                if let Ok(proposal) = decode::<Proposal>(body) {
                    self.tell_proposal(from, &proposal.block);
                }
            }
            _ => {}
        }
    }

    /// Remembers what the block refers to, and tells of it if it is the sender's own.
    fn tell_proposal(&self, from: Sender, block: &Block) {
        let ballot = block.header.ballot();
        let own = {
            let mut inner = self.lock();
            let is_own = inner.set.leader(ballot.view) == from.idx && !from.is_hacked;
            let Known { proposals, guards, .. } = &mut inner.validators;
            proposals.insert((ballot.view, ballot.digest), block.refs.to_vec());
            if proposals.len() > PROPOSALS_MAX {
                proposals.pop_first();
            }
            is_own.then(|| guards.lacks(from.idx, &GuardRecord::Proposal(ballot)))
        };
        if let Some(lacks) = own {
            self.see(&Observation::Proposed {
                validator: from.idx,
                ballot,
                lacks,
            });
        }
    }

    /// A batch of the block that is voted for, if the voter's disk does not hold it.
    fn missing_batch(&self, signed: &SignedVote) -> Option<(ClusterId, BatchSeq)> {
        let Vote::Notarize(ballot) = signed.vote else {
            return None;
        };
        let Known { proposals, batches, .. } = &mut self.lock().validators;
        let refs = proposals.get(&(ballot.view, ballot.digest))?;
        let missing = refs.iter().find(|batch| !batches.holds(signed.voter, &batch.digest))?;
        Some((missing.cluster, missing.seq))
    }

    /// Follows what a validator executes, as part of its process.
    pub fn watch_validator(&self, process: &Process, validator: &Validator, name: &str, idx: NodeIdx) {
        let (witness, validator, name) = (self.clone(), validator.clone(), name.to_owned());
        let mut inner = self.lock();
        // What its disk holds may be less than in its last life.
        inner.validators.last_votes.remove(&idx);
        inner.validators.last_proposal.remove(&idx);
        drop(inner);
        drop(process.spawn(async move {
            let executed = validator.executed().clone();
            // What nobody told yet is told now, if this life begins above it.
            let mut height = executed.get().queue.height().min(witness.lock().validators.executed);
            loop {
                let now = executed.wait_until(|executed| executed.queue.height() > height).await;
                while height < now.queue.height() {
                    height = height.next();
                    witness.tell_block(&validator, &name, height);
                }
                let root = now.queue.state_root();
                witness.trace.record(Event::Applied, idx.0, idx.0, &[&root.0]);
                let mut inner = witness.lock();
                inner.validators.executed = inner.validators.executed.max(height);
                inner.applies += 1;
                drop(inner);
                witness.see(&Observation::Root {
                    validator: name.clone(),
                    height,
                    root,
                });
            }
        }));
    }

    fn tell_block(&self, validator: &Validator, name: &str, height: Height) {
        let Ok(Some(found)) = validator.blocks().at(height) else {
            return self.violate(
                "agreement",
                format!("{name} executed height {height} and has no block there"),
            );
        };
        let refs = found
            .block
            .refs
            .iter()
            .map(|batch| (batch.cluster, batch.seq, batch.digest));
        self.see(&Observation::Executed {
            validator: name.to_owned(),
            height,
            block: found.block.digest(),
            refs: refs.collect(),
            carried_root: found.block.header.state_root,
            time: found.block.header.time,
        });
        self.tell_order(validator, &found.block);
    }

    /// The batches of a block and what becomes of them, if nobody told them before.
    fn tell_order(&self, validator: &Validator, block: &Block) {
        let height = block.header.height;
        {
            let mut inner = self.lock();
            if inner.validators.ordered >= height {
                return;
            }
            inner.validators.ordered = height;
        }
        for batch in &block.refs {
            match validator.batches().get(&batch.digest) {
                Ok(Some(batch)) => self.see(&Observation::Ordered {
                    height,
                    batch: Arc::new(batch),
                }),
                Ok(None) | Err(_) => self.violate(
                    "validity",
                    format!("batch {} of {} is final and not on the disk", batch.seq, batch.cluster),
                ),
            }
        }
        self.execute(validator, block);
    }

    /// Executes a block that nobody told before, and tells the state after it and who left.
    fn execute(&self, validator: &Validator, block: &Block) {
        let batches: Vec<Option<SharedBatch>> = block
            .refs
            .iter()
            .map(|batch| validator.batches().verified(&batch.digest).ok().flatten())
            .collect();
        let executed = self.lock().chain.execute(block, &batches);
        let outcome = match executed {
            Ok(outcome) => outcome,
            Err(error) => return self.violate("agreement", format!("block {}: {error}", block.header.height)),
        };
        self.see(&Observation::Root {
            validator: "the witness".into(),
            height: outcome.height,
            root: outcome.state_root,
        });
        for line in &outcome.dropped {
            self.see(&Observation::Left {
                task: line.id,
                state: line.state,
            });
        }
    }

    /// Whether `state` has the task, or had it and let it leave.
    #[must_use]
    pub fn knows(&self, state: &GlobalQueue, task: &TaskId) -> bool {
        self.lock().chain.is_known_to(state, task)
    }

    /// Highest block that a validator executed.
    #[must_use]
    pub fn height(&self) -> Height {
        self.lock().validators.executed
    }

    /// Whether the task has left a final state, so that machines may say that they do not know it.
    #[must_use]
    pub fn has_left(&self, task: &TaskId) -> bool {
        self.lock().chain.has_left(task)
    }
}
