//! A network of cores under virtual time: delays, losses, partitions, crashes; disks that keep what
//! was persisted and nothing else.
//!
//! Nobody signs: the network knows who said what, and takes a certificate for what it is only if its
//! signers did say it. (Signatures are the business of `verify`, which has its own tests.)

mod shell;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use common::{
    block::{BatchRef, Block, FinalizedBlock},
    certificate::Vote,
    crypto::sha256,
    ids::{BatchSeq, BlockTime, ClusterId, Digest, Founding, Height, NodeIdx},
    validator_set::ValidatorSet,
    wire::bft::BftMessage,
};

use self::shell::{Disk, Node};
use super::{
    adversary::Adversary,
    fixture::{CLUSTERS, GENESIS_TIME, timing, validator_set},
    plan::{Failure, Plan},
    rng::Rng,
};
use crate::{
    batch_pool::StoredBatch,
    clock::{Instant, Now},
    config::Timing,
    core::Input,
    mutant::Mutant,
    verify::{Checked, CheckedMessage},
};

/// A schedule that needs more events than this goes round in circles.
const EVENTS_MAX: u64 = 2_000_000;

#[derive(Clone, Debug)]
pub enum Packet {
    Message(BftMessage),
    Notice(BatchRef),
    AskBlock(Digest),
    Block(Block),
    AskBatch(BatchRef),
    Batch(StoredBatch),
    AskSync(Height),
    Sync(Vec<FinalizedBlock>),
}

#[derive(Clone, Debug)]
enum Event {
    Deliver { to: usize, from: usize, packet: Packet },
    Tick { to: usize, boot: u64, at: Instant },
    Execute { to: usize, boot: u64, digest: Digest },
    Store { to: usize, batch: StoredBatch },
    Crash { of: usize },
    Start { of: usize },
    Adversary,
    Heal,
}

/// When a block was proposed first, and when validators finalized it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub proposed: BTreeMap<Digest, u64>,
    pub finalized: BTreeMap<(usize, Height), (Digest, u64)>,
    pub stored: BTreeMap<BatchRef, u64>,
    pub refs: BTreeMap<BatchRef, Digest>,
    pub evidence: BTreeSet<NodeIdx>,
}

pub struct Network {
    pub plan: Plan,
    pub set: ValidatorSet,
    timing: Timing,
    rng: Rng,
    now_us: u64,
    number: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    nodes: Vec<Node>,
    chain: BTreeMap<Height, Digest>,
    adversary: Adversary,
    partitions: Vec<u64>,
    goal: Option<Height>,
    pub seen: Seen,
    failure: Option<Failure>,
}

impl Network {
    pub fn new(plan: Plan) -> Self {
        let mut rng = Rng::new(plan.seed);
        let set = validator_set(&plan.weights);
        let n = plan.weights.len();
        let nodes = (0..n).map(|_| Node {
            core: None,
            disk: Disk::default(),
            boot: 0,
            timer: None,
            clock_offset_us: GENESIS_TIME.0 + rng.below(plan.delay_us),
        });
        let nodes = nodes.collect();
        let partitions = (0..64).map(|_| rng.below(1 << n)).collect();
        let mut network = Self {
            timing: timing(plan.delay_us + plan.jitter_us),
            adversary: Adversary::new(&plan, set.clone()),
            set,
            rng,
            now_us: 0,
            number: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            nodes,
            chain: BTreeMap::new(),
            partitions,
            goal: None,
            seen: Seen::default(),
            failure: None,
            plan,
        };
        network.schedule();
        network
    }

    /// Runs until everybody has finalized what the plan asks for.
    pub fn run(mut self) -> Result<Self, Failure> {
        // Enough for every leader in turn to be waited for at the longest timer.
        let end_us =
            self.plan.heals_at_us.max(self.plan.finalize_votes_lost_until_us) + 40 * 32 * self.timing.delay_us_max;
        while self.failure.is_none() {
            if self.is_done() {
                return Ok(self);
            }
            let Some(Reverse((at, number))) = self.queue.pop() else {
                break;
            };
            self.now_us = at;
            if at > end_us || number > EVENTS_MAX {
                break;
            }
            let event = self.events.remove(&number).expect("queued with its event");
            self.handle(event);
        }
        Err(self.failure.clone().unwrap_or_else(|| self.stall()))
    }

    fn schedule(&mut self) {
        let heals_at = self.plan.heals_at_us;
        for of in 0..self.nodes.len() {
            if self.plan.byzantine.contains(&of) || self.plan.down.contains(&of) {
                continue;
            }
            self.at(0, Event::Start { of });
            for _ in 0..self.plan.crashes_per_validator {
                let down_at = self.rng.below(heals_at);
                let up_at = down_at + self.rng.below((heals_at - down_at).min(heals_at / 3));
                self.at(down_at, Event::Crash { of });
                self.at(up_at, Event::Start { of });
            }
        }
        for at in self.plan.power_cuts_us.clone() {
            let honest: Vec<usize> = (0..self.nodes.len()).filter(|i| self.is_honest(*i)).collect();
            for of in &honest {
                self.at(at, Event::Crash { of: *of });
            }
            for of in honest {
                self.at(at + 1, Event::Start { of });
            }
        }
        if !self.plan.byzantine.is_empty() {
            self.at(0, Event::Adversary);
        }
        // Everybody is up from here on.
        self.at(heals_at, Event::Heal);
        for cluster in (0..CLUSTERS).map(ClusterId) {
            let mut prev_digest = Digest::default();
            for seq in 1..=self.plan.batches_per_cluster {
                let digest = sha256(&[&cluster.0.to_le_bytes(), &seq.to_le_bytes()]);
                let batch = BatchRef {
                    cluster,
                    founding: Founding(0),
                    seq: BatchSeq(seq),
                    digest,
                };
                let stored = StoredBatch {
                    batch,
                    prev_digest,
                    bytes: 1_000,
                };
                prev_digest = digest;
                self.feed(stored);
            }
        }
    }

    /// A batch reaches validators: all at its time, or some at any time.
    fn feed(&mut self, batch: StoredBatch) {
        let honest: Vec<usize> = (0..self.nodes.len()).filter(|i| self.is_honest(*i)).collect();
        if let Some(feed_us) = self.plan.feed_us {
            for to in honest {
                self.at(batch.batch.seq.0 * feed_us, Event::Store { to, batch });
            }
            return;
        }
        let at = self.rng.below(self.plan.heals_at_us + 20 * self.plan.delay_us);
        // At least one honest validator has it; others hear of it, or must ask.
        let sure = *self.rng.pick(&honest).expect("somebody is honest");
        for to in honest {
            if to == sure || self.rng.chance(50) {
                self.at(at, Event::Store { to, batch });
            }
        }
    }

    fn is_honest(&self, position: usize) -> bool {
        !self.plan.byzantine.contains(&position) && !self.plan.down.contains(&position)
    }

    fn at(&mut self, at_us: u64, event: Event) {
        self.number += 1;
        self.queue.push(Reverse((at_us, self.number)));
        self.events.insert(self.number, event);
    }

    fn now_of(&self, node: usize) -> Now {
        Now {
            at: Instant(self.now_us),
            clock: BlockTime(self.nodes[node].clock_offset_us + self.now_us),
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver { to, from, packet } => self.deliver(to, from, packet),
            Event::Tick { to, boot, at } => {
                if self.nodes[to].boot == boot && self.nodes[to].timer == Some(at) {
                    self.step(to, Input::Tick);
                }
            }
            Event::Execute { to, boot, digest } => {
                if self.nodes[to].boot == boot {
                    self.drive(to, |core, now, effects| core.execute(now, &digest, &(), effects));
                }
            }
            Event::Store { to, batch } => {
                self.seen.stored.entry(batch.batch).or_insert(self.now_us);
                self.store(to, batch);
                self.broadcast(to, Packet::Notice(batch.batch));
            }
            Event::Crash { of } => self.crash(of),
            Event::Start { of } => self.start(of),
            Event::Adversary => {
                let sends = self.adversary.act(&mut self.rng, self.now_us);
                for (to, message) in sends {
                    if self.is_honest(to) {
                        let from = self.plan.byzantine[0];
                        self.send(from, to, Packet::Message(message));
                    }
                }
                let pause = 1 + self.rng.below(2 * self.plan.delay_us);
                self.at(self.now_us + pause, Event::Adversary);
            }
            Event::Heal => {
                for of in 0..self.nodes.len() {
                    if self.is_honest(of) && self.nodes[of].core.is_none() {
                        self.start(of);
                    }
                }
                for a in 0..self.nodes.len() {
                    for b in 0..self.nodes.len() {
                        if a != b && self.is_honest(a) && self.is_honest(b) {
                            self.step(a, Input::PeerConnected(NodeIdx(b as u32)));
                        }
                    }
                }
                let highest = self.chain.keys().next_back().copied().unwrap_or_default();
                self.goal = Some(Height(highest.0 + self.plan.blocks_after));
            }
        }
    }

    fn is_done(&self) -> bool {
        let Some(goal) = self.goal else {
            return false;
        };
        (0..self.nodes.len()).filter(|i| self.is_honest(*i)).all(|i| {
            let core = self.nodes[i].core.as_ref();
            core.is_some_and(|core| {
                let cursors = crate::ledger::Execution::cursors(core.ledger().executed_state());
                let is_drained = cursors.values().all(|c| c.next.0 > self.plan.batches_per_cluster);
                core.ledger().executed_height() >= goal && is_drained
            })
        })
    }

    fn stall(&self) -> Failure {
        let of = |i: usize| {
            let core = self.nodes[i].core.as_ref()?;
            Some((core.view().0, core.tip().height.0, core.ledger().executed_height().0))
        };
        let all: Vec<_> = (0..self.nodes.len()).map(of).collect();
        Failure::Stall(format!("goal {:?}, (view, final, executed): {all:?}", self.goal))
    }

    // Delivery.

    /// Whether a packet arrives, and after how long.
    fn transit(&mut self, from: usize, to: usize) -> Option<u64> {
        let usual = self.plan.delay_us + self.rng.below(self.plan.jitter_us + 1);
        if self.now_us >= self.plan.heals_at_us {
            return Some(usual);
        }
        // The adversary's links are never cut.
        if self.plan.byzantine.contains(&from) || self.plan.byzantine.contains(&to) {
            return Some(usual);
        }
        let partition = self.partitions[(self.now_us / (4 * self.plan.delay_us) % 64) as usize];
        let is_cut = (partition >> from) & 1 != (partition >> to) & 1 && self.rng.chance(self.plan.cut_percent);
        if is_cut || self.rng.chance(self.plan.loss_percent) {
            return None;
        }
        let is_slow = self.rng.chance(12);
        let extra = if is_slow {
            self.rng.below(20 * self.plan.delay_us)
        } else {
            0
        };
        Some(usual + extra)
    }

    fn send(&mut self, from: usize, to: usize, packet: Packet) {
        let copies = if self.now_us < self.plan.heals_at_us && self.rng.chance(5) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            if let Some(delay) = self.transit(from, to) {
                let packet = packet.clone();
                self.at(self.now_us + delay, Event::Deliver { to, from, packet });
            }
        }
    }

    fn broadcast(&mut self, from: usize, packet: Packet) {
        for to in 0..self.nodes.len() {
            if to != from {
                self.send(from, to, packet.clone());
            }
        }
    }

    fn deliver(&mut self, to: usize, from: usize, packet: Packet) {
        if !self.is_honest(to) {
            if let Packet::AskBlock(digest) = packet
                && self.plan.byzantine.contains(&to)
                && let Some(block) = self.adversary.block(&digest)
            {
                self.send(to, from, Packet::Block(block));
            }
            return;
        }
        let is_finalize =
            matches!(&packet, Packet::Message(BftMessage::Vote(v)) if matches!(v.vote, Vote::Finalize(_)));
        if self.nodes[to].core.is_none() || (is_finalize && self.now_us < self.plan.finalize_votes_lost_until_us) {
            return;
        }
        let sender = NodeIdx(from as u32);
        match packet {
            Packet::Message(message) => {
                if let Some(message) = self.check(message) {
                    self.step(to, Input::Message(message));
                }
            }
            Packet::Notice(batch) => {
                if !self.nodes[to].disk.batches.contains_key(&batch) {
                    self.step(to, Input::BatchHeard { batch, from: sender });
                }
            }
            Packet::AskBlock(digest) => {
                if let Some(block) = self.find_block(to, &digest) {
                    self.send(to, from, Packet::Block(block));
                }
            }
            Packet::Block(block) => self.step(to, Input::BlockFetched(Box::new(block))),
            Packet::AskBatch(batch) => {
                if let Some(stored) = self.nodes[to].disk.batches.get(&batch).copied() {
                    self.send(to, from, Packet::Batch(stored));
                }
            }
            Packet::Batch(stored) => self.store(to, stored),
            Packet::AskSync(height) => {
                let finalized = self.nodes[to].disk.finalized.iter();
                let blocks = finalized.filter(|f| f.block.header.height >= height).take(8).cloned();
                let blocks = blocks.collect();
                self.send(to, from, Packet::Sync(blocks));
            }
            Packet::Sync(blocks) => {
                let blocks = blocks.into_iter().map(Checked::assumed).collect();
                self.step(to, Input::SyncAnswered { from: sender, blocks });
            }
        }
    }

    /// What `verify` would say.
    fn check(&self, message: BftMessage) -> Option<CheckedMessage> {
        match message {
            BftMessage::Proposal(proposal) => {
                let is_fit = self.adversary.is_proposal_fit(&proposal);
                is_fit.then(|| CheckedMessage::Proposal(Checked::assumed(proposal)))
            }
            BftMessage::Vote(vote) => Some(CheckedMessage::Vote(Checked::assumed(vote))),
            BftMessage::Certificate(c) => Some(CheckedMessage::Certificate(Checked::assumed(c))),
            BftMessage::BatchNotice(_) => None,
        }
    }

    fn find_block(&self, node: usize, digest: &Digest) -> Option<Block> {
        let disk = &self.nodes[node].disk;
        let held = self.nodes[node]
            .core
            .as_ref()
            .and_then(|core| core.ledger().block(digest).cloned());
        let proposed = || {
            disk.proposals
                .values()
                .map(|p| &p.block)
                .find(|b| b.digest() == *digest)
                .cloned()
        };
        let finalized = || {
            disk.finalized
                .iter()
                .map(|f| &f.block)
                .find(|b| b.digest() == *digest)
                .cloned()
        };
        held.or_else(proposed).or_else(finalized)
    }

    fn store(&mut self, to: usize, batch: StoredBatch) {
        self.nodes[to].disk.batches.insert(batch.batch, batch);
        self.step(to, Input::BatchStored(batch));
    }

    // Checkers.

    /// Agreement: one block per height, each the child of the one below.
    fn note_finalized(&mut self, of: usize, blocks: &[FinalizedBlock]) {
        for finalized in blocks {
            let header = &finalized.block.header;
            let (height, digest) = (header.height, finalized.block.digest());
            let known = *self.chain.entry(height).or_insert(digest);
            if known != digest {
                self.fail(Failure::Fork(format!(
                    "validator {of} at height {height}: {digest}, others {known}"
                )));
            }
            if let Some(below) = height.previous().and_then(|below| self.chain.get(&below))
                && *below != header.parent
            {
                self.fail(Failure::Fork(format!(
                    "validator {of}: the parent of {height} is not {below}"
                )));
            }
            if self.plan.mutant == Mutant::default() {
                self.check_proof(finalized);
            }
            self.seen.finalized.entry((of, height)).or_insert((digest, self.now_us));
        }
    }

    /// The proof is a chain up to a block that a quorum finalized.
    fn check_proof(&mut self, finalized: &FinalizedBlock) {
        let mut tip = finalized.block.digest();
        for link in &finalized.proof.above {
            let common::block::Link::Header(header) = link else {
                panic!("there are no fillers in epoch 0");
            };
            assert_eq!(header.parent, tip, "a proof of finality is a chain");
            tip = header.digest();
        }
        let finalization = &finalized.proof.finalization;
        assert_eq!(finalization.ballot.digest, tip, "it ends at what was finalized");
        let is_quorum = self.adversary.could_certify(&Vote::Finalize(finalization.ballot));
        assert!(is_quorum, "a quorum finalized it");
    }

    fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// Virtual time, in microseconds.
    pub fn now_us(&self) -> u64 {
        self.now_us
    }
}
