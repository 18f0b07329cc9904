//! One cluster's log for tests: applies entries one after another, checks every invariant after each.

use std::{collections::BTreeMap, sync::Arc};

use common::{
    batch::CertifiedBatch,
    block::{Advance, AdvanceBatch, AdvancePart, Block},
    codec::encode,
    crypto::sha256,
    entry::{Action, Fence, LogEntry, Progress, SignedEntry},
    global_queue::{GlobalQueue, OrderedBatch},
    ids::{Assignment, BatchSeq, ClusterId, Digest, HolderCounter, LogPosition, RaftNodeId, TaskId, Term},
    task::{Scope, Task, TaskState},
    testing::{BlockChain, Fleet},
    verdict::Verdict,
};

use crate::{
    admission::VerifiedCache,
    queue::{Applied, ClusterQueue, QueueEvent, RETENTION, Retention},
};

/// The cluster that is tested: `c1`, with the agents `c1-1`, `c1-2`, `c1-3`.
pub(crate) const OWN: ClusterId = ClusterId(0);

pub(crate) struct TestCluster {
    pub fleet: Fleet,
    pub queue: ClusterQueue,
    pub blocks: BlockChain,
    /// What validators compute of the same blocks.
    pub validators: GlobalQueue,
    pub term: Term,
    pub leader: RaftNodeId,
    pub oracle: VerifiedCache,
    pub log: Vec<(LogPosition, RaftNodeId, Digest, LogEntry)>,
    pub retention: Retention,
    pub global_retention: common::global_queue::Retention,
    numbers: BTreeMap<String, u64>,
    counters: BTreeMap<String, u64>,
}

impl TestCluster {
    pub fn new() -> Self {
        Self::of(Fleet::dev())
    }

    pub fn of(fleet: Fleet) -> Self {
        let queue = ClusterQueue::genesis(Arc::new(fleet.genesis.clone()), OWN);
        let blocks = BlockChain::new(&fleet, queue.global().state_root());
        Self {
            leader: RaftNodeId::new(fleet.idx("c1-1"), 1),
            blocks,
            validators: GlobalQueue::genesis(&fleet.genesis),
            queue,
            fleet,
            term: Term(1),
            oracle: VerifiedCache::new(100_000),
            log: Vec::new(),
            retention: RETENTION,
            global_retention: common::global_queue::RETENTION,
            numbers: BTreeMap::new(),
            counters: BTreeMap::new(),
        }
    }

    pub fn next_position(&self) -> LogPosition {
        LogPosition {
            term: self.term,
            index: self.queue.applied().0.index.next(),
        }
    }

    pub fn apply(&mut self, entry: LogEntry) -> Applied {
        let position = self.next_position();
        let chain = sha256(&[&self.queue.applied().1.0, &encode(&entry)]);
        self.log.push((position, self.leader, chain, entry.clone()));
        let applied = self.queue.apply(position, self.leader, chain, entry, &mut self.oracle);
        assert_eq!(self.queue.check_invariants(), Ok(()), "after {position:?}");
        applied
    }

    /// Applies a log to a state.
    pub fn replay(
        &mut self,
        mut queue: ClusterQueue,
        log: &[(LogPosition, RaftNodeId, Digest, LogEntry)],
    ) -> ClusterQueue {
        for (position, leader, chain, entry) in log {
            queue.apply(*position, *leader, *chain, entry.clone(), &mut self.oracle);
        }
        queue
    }

    pub fn fresh(&self) -> ClusterQueue {
        ClusterQueue::genesis(Arc::new(self.fleet.genesis.clone()), OWN)
            .with_retention(self.retention, self.global_retention)
    }

    /// Before the first entry: closed tasks leave after other bounds.
    pub fn retain(&mut self, retention: Retention) {
        self.retention = retention;
        self.queue = self.fresh();
    }

    /// The same, and the global queue drops them after other bounds too.
    pub fn retain_globally(&mut self, retention: Retention, global: common::global_queue::Retention) {
        self.global_retention = global;
        self.validators = GlobalQueue::genesis(&self.fleet.genesis).with_retention(global);
        self.retain(retention);
    }

    pub fn number(&mut self, author: &str) -> u64 {
        let number = self.numbers.entry(author.to_owned()).or_default();
        *number += 1;
        *number
    }

    pub fn counter(&mut self, author: &str) -> HolderCounter {
        let counter = self.counters.entry(author.to_owned()).or_default();
        *counter += 1;
        HolderCounter(*counter)
    }

    pub fn entry(&mut self, author: &str, scope: Scope, action: Action) -> SignedEntry {
        let number = self.number(author);
        self.fleet.entry(author, OWN, number, scope, action)
    }

    pub fn author(&mut self, author: &str, scope: Scope, action: Action) -> Verdict {
        let entry = self.entry(author, scope, action);
        verdict(&self.apply(LogEntry::Author(entry)))
    }

    pub fn submit_entry(&mut self, author: &str, scope: Scope, task: &Task) -> SignedEntry {
        let number = self.number(author);
        self.fleet.submit(author, OWN, number, scope, task)
    }

    pub fn submit(&mut self, author: &str, scope: Scope, task: &Task) -> TaskId {
        let entry = self.submit_entry(author, scope, task);
        let id = entry.id(&self.fleet.chain);
        assert_eq!(verdict(&self.apply(LogEntry::Author(entry))), Verdict::Granted);
        id.into()
    }

    pub fn scope(&self, task: &TaskId) -> Scope {
        self.queue.task_row(task).map_or(Scope::Cluster, |row| row.scope)
    }

    pub fn claim_action(&mut self, author: &str, task: TaskId) -> Action {
        let assignment = self.queue.task_row(&task).map_or(Assignment(0), |row| row.assignment);
        Action::Claim {
            task,
            assignment,
            counter: self.counter(author),
        }
    }

    pub fn claim(&mut self, author: &str, task: TaskId) -> Verdict {
        let scope = self.scope(&task);
        let action = self.claim_action(author, task);
        self.author(author, scope, action)
    }

    /// Claims a task that must be claimable.
    pub fn hold(&mut self, author: &str, task: TaskId) -> Fence {
        assert_eq!(self.claim(author, task), Verdict::Granted);
        self.fence(&task)
    }

    pub fn renew(&mut self, author: &str) -> Verdict {
        let counter = self.counter(author);
        self.author(author, Scope::Cluster, Action::Renew { counter })
    }

    pub fn start(&mut self, author: &str, task: TaskId, fence: Fence) -> Verdict {
        let (scope, progress) = (self.scope(&task), Progress::Started);
        self.author(author, scope, Action::Progress { task, fence, progress })
    }

    pub fn complete(&mut self, author: &str, task: TaskId, fence: Fence) -> Verdict {
        let scope = self.scope(&task);
        self.author(author, scope, Action::Complete { task, fence })
    }

    pub fn fail(&mut self, author: &str, task: TaskId, fence: Fence, retriable: bool) -> Verdict {
        let (scope, counter) = (self.scope(&task), self.counter(author));
        let action = Action::Fail {
            task,
            fence,
            counter,
            retriable,
        };
        self.author(author, scope, action)
    }

    pub fn release(&mut self, author: &str, task: TaskId, fence: Fence) -> Verdict {
        let (scope, counter) = (self.scope(&task), self.counter(author));
        self.author(author, scope, Action::Release { task, fence, counter })
    }

    pub fn cancel(&mut self, author: &str, task: TaskId) -> Verdict {
        let scope = self.scope(&task);
        self.author(author, scope, Action::Cancel { task })
    }

    pub fn state(&self, task: &TaskId) -> TaskState {
        self.queue.task_row(task).expect("the task has a row").state()
    }

    pub fn fence(&self, task: &TaskId) -> Fence {
        self.queue.held(task).expect("the task is held").fence
    }

    pub fn cut(&mut self) -> Applied {
        let seq = self.queue.batcher().open_seq();
        self.apply(LogEntry::Cut { seq })
    }

    pub fn beat(&mut self) -> Applied {
        let seq = self.queue.batcher().open_seq();
        self.apply(LogEntry::Beat { seq })
    }

    /// All batches of the outbox, with a quorum's attestations.
    pub fn certified(&self) -> Vec<CertifiedBatch> {
        let outbox = self.queue.batcher().outbox();
        outbox
            .map(|batch| {
                self.fleet
                    .certify(batch.header.clone(), batch.entries.clone(), &batch.roster)
            })
            .collect()
    }

    /// The parts of the next finalized block over `batches`, own ones as digests.
    pub fn parts(&mut self, batches: &[CertifiedBatch], step_ms: u64) -> (Block, Vec<AdvancePart>) {
        let block = self.blocks.block(&self.fleet, batches, step_ms);
        self.execute(&block, batches);
        self.parts_of(block, batches)
    }

    /// The blocks that were made and not applied are no more: the chain begins anew.
    pub fn restart_chain(&mut self) {
        self.validators = GlobalQueue::genesis(&self.fleet.genesis).with_retention(self.global_retention);
        self.blocks = BlockChain::new(&self.fleet, self.validators.state_root());
    }

    /// What validators do with a block before its roots stand in a header.
    fn execute(&mut self, block: &Block, batches: &[CertifiedBatch]) {
        let finalized = self.fleet.finalize(block.clone());
        let finalized = finalized
            .verify(&self.fleet.chain, &self.fleet.set)
            .expect("a quorum signed");
        let batches: Vec<_> = batches
            .iter()
            .enumerate()
            .map(|(at, batch)| OrderedBatch::finalized(&finalized, at, &batch.header, &batch.entries))
            .collect();
        let outcome = self.validators.apply(block, &batches, &mut self.oracle);
        let outcome = outcome.expect("the test's block follows the chain");
        let roots = (outcome.state_root, outcome.outcome_root);
        self.blocks.roots.insert(outcome.height, roots);
    }

    /// The parts of a finalized block over `batches`, own ones as digests.
    pub fn parts_of(&self, block: Block, batches: &[CertifiedBatch]) -> (Block, Vec<AdvancePart>) {
        let batches: Vec<AdvanceBatch> = batches
            .iter()
            .map(|batch| {
                if batch.header.cluster == OWN {
                    AdvanceBatch::Own(batch.digest(&self.fleet.chain))
                } else {
                    AdvanceBatch::Full(batch.clone())
                }
            })
            .collect();
        let advance = Advance {
            finalized: self.fleet.finalize(block.clone()),
            batches: batches.try_into().expect("a test block is bounded"),
        };
        let parts = AdvancePart::split(block.header.height, block.digest(), &encode(&advance));
        (block, parts)
    }

    /// Applies a block over `batches`, `step_ms` after the last.
    pub fn block(&mut self, batches: &[CertifiedBatch], step_ms: u64) -> Applied {
        let (_, parts) = self.parts(batches, step_ms);
        let mut last = Applied::default();
        for part in parts {
            last = self.apply(LogEntry::GlobalAdvance(part));
        }
        last
    }

    /// Closes the open batch and applies a block with the whole outbox.
    pub fn finalize(&mut self, step_ms: u64) -> Applied {
        self.cut();
        let batches = self.certified();
        self.block(&batches, step_ms)
    }

    /// A fleet-scope task of `author`, assigned to this cluster.
    pub fn assigned(&mut self, author: &str, task: &Task) -> TaskId {
        let id = self.submit(author, Scope::Fleet, task);
        self.finalize(20);
        assert_eq!(self.state(&id), TaskState::Assigned);
        id
    }
}

pub(crate) fn verdict(applied: &Applied) -> Verdict {
    applied.answer.expect("an author's entry is answered").verdict
}

pub(crate) fn closed(applied: &Applied) -> Vec<BatchSeq> {
    let batches = applied.events.iter().filter_map(|event| match event {
        QueueEvent::BatchClosed(batch) => Some(batch.header.seq),
        _ => None,
    });
    batches.collect()
}
