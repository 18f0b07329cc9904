//! A network of cores under virtual time: delays, losses, partitions, crashes; disks that keep what
//! was persisted and nothing else.
//!
//! Nobody signs: the network knows who said what, and takes a certificate for what it is only if its
//! signers did say it. (Signatures are the business of `verify`, which has its own tests.)

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
};

use common::{
    block::{BatchRef, Block, FinalizedBlock, Proposal},
    certificate::{SignedVote, Vote},
    crypto::{Signature, sha256},
    ids::{BatchSeq, BlockTime, ClusterId, Digest, Founding, Height, NodeIdx, View},
    validator_set::ValidatorSet,
    wire::bft::{BftMessage, Certificate},
};

use super::{
    adversary::Adversary,
    fixture::{CHAIN, CLUSTERS, Chained, GENESIS_TIME, config, timing, validator_set},
    rng::Rng,
};
use crate::{
    batch_pool::StoredBatch,
    clock::{Instant, Now},
    config::Timing,
    core::{GlobalCore, Input, Recovered},
    effect::{Effect, Recipient, Record},
    guard::{Guard, GuardRecord},
    mutant::{Fault, Mutant},
    verify::{Checked, CheckedMessage},
};

/// A schedule that needs more events than this goes round in circles.
const EVENTS_MAX: u64 = 2_000_000;

/// One schedule.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub weights: Vec<u64>,
    /// Positions of validators that are in the adversary's hands.
    pub byzantine: Vec<usize>,
    /// Positions that never start.
    pub down: Vec<usize>,
    pub delay_us: u64,
    pub jitter_us: u64,
    /// Before this the network does as it likes.
    pub heals_at_us: u64,
    pub loss_percent: u64,
    /// How much of what crosses a partition is lost.
    pub cut_percent: u64,
    pub crashes_per_validator: u64,
    pub batches_per_cluster: u64,
    /// Everybody stores one batch of each cluster this often; otherwise at random.
    pub feed_us: Option<u64>,
    /// When everybody stops and starts again at once.
    pub power_cuts_us: Vec<u64>,
    /// Until then no finalize vote arrives.
    pub finalize_votes_lost_until_us: u64,
    /// Whether a refusal of the guard is a failure. Without it only agreement and liveness are checked.
    pub is_guarded: bool,
    /// Blocks that everybody finalizes after the network healed.
    pub blocks_after: u64,
    pub mutant: Mutant,
}

impl Plan {
    /// A calm network of equals.
    pub fn calm(n: usize, delay_us: u64) -> Self {
        Self {
            seed: 1,
            weights: vec![1; n],
            byzantine: vec![],
            down: vec![],
            delay_us,
            jitter_us: 0,
            heals_at_us: 0,
            loss_percent: 0,
            cut_percent: 0,
            crashes_per_validator: 0,
            batches_per_cluster: 0,
            feed_us: None,
            power_cuts_us: vec![],
            finalize_votes_lost_until_us: 0,
            is_guarded: true,
            blocks_after: 10,
            mutant: Mutant::default(),
        }
    }
}

/// What a checker found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Two validators finalized different blocks at one height, or one saw that it happened.
    Fork(String),
    /// The network healed, and finality did not come.
    Stall(String),
    /// The core asked its guard for something that must never be signed.
    Guard(String),
}

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

/// What survives a crash.
#[derive(Clone, Debug, Default)]
struct Disk {
    guard: Guard,
    certificates: Vec<Certificate>,
    proposals: BTreeMap<View, Proposal>,
    finalized: Vec<FinalizedBlock>,
    batches: BTreeMap<BatchRef, StoredBatch>,
    /// Written, and not yet synced: lost in a crash.
    unsynced: Vec<Unsynced>,
}

#[derive(Clone, Debug)]
enum Unsynced {
    Record(Record),
    Finalized(Vec<FinalizedBlock>),
}

struct Node {
    core: Option<GlobalCore<Chained>>,
    disk: Disk,
    boot: u64,
    timer: Option<Instant>,
    /// Clock minus virtual time.
    clock_offset_us: u64,
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

    // The shell of one validator.

    fn start(&mut self, of: usize) {
        if self.nodes[of].core.is_some() {
            return;
        }
        let mut config = config(&self.set, of as u32, self.timing);
        config.mutant = self.plan.mutant;
        let disk = &self.nodes[of].disk;
        let mut ledger = Chained::ledger();
        for finalized in &disk.finalized {
            if let Err(error) = ledger.replay(finalized, &()) {
                let failure = Failure::Fork(format!("validator {of} cannot start: {error}"));
                self.failure.get_or_insert(failure);
                return;
            }
        }
        let mut certificates = disk.certificates.clone();
        let last = disk.finalized.last();
        certificates.extend(last.map(|f| Certificate::Finalization(f.proof.finalization.clone())));
        if self.plan.mutant.0 == Some(Fault::CertificatesNotPersisted) {
            certificates.clear();
        }
        let recovered = Recovered {
            guard: disk.guard.clone(),
            certificates,
            proposals: disk.proposals.values().cloned().collect(),
            batches: disk.batches.values().copied().collect(),
        };
        self.nodes[of].boot += 1;
        self.nodes[of].timer = None;
        let (now, mut effects) = (self.now_of(of), Vec::new());
        let core = GlobalCore::new(config, ledger, recovered, now, &mut effects);
        self.nodes[of].core = Some(core);
        let mut feedback = VecDeque::new();
        self.perform(of, effects, &mut feedback);
        let round_trip_us = 2 * (self.plan.delay_us + self.plan.jitter_us);
        for peer in 0..self.nodes.len() as u32 {
            let peer = NodeIdx(peer);
            feedback.push_back(Input::RoundTrip {
                peer,
                us: round_trip_us,
            });
        }
        self.give(of, feedback);
        for peer in 0..self.nodes.len() {
            if self.is_honest(peer) && peer != of {
                self.step(peer, Input::PeerConnected(NodeIdx(of as u32)));
            }
        }
    }

    fn crash(&mut self, of: usize) {
        let node = &mut self.nodes[of];
        node.core = None;
        node.boot += 1;
        node.disk.unsynced.clear();
    }

    fn step(&mut self, of: usize, input: Input) {
        self.give(of, [input].into());
    }

    fn give(&mut self, of: usize, mut inputs: VecDeque<Input>) {
        while let Some(input) = inputs.pop_front() {
            let (now, mut effects) = (self.now_of(of), Vec::new());
            let Some(core) = self.nodes[of].core.as_mut() else {
                return;
            };
            core.step(now, input, &mut effects);
            core.check_invariants();
            self.perform(of, effects, &mut inputs);
        }
    }

    fn drive(&mut self, of: usize, act: impl FnOnce(&mut GlobalCore<Chained>, Now, &mut Vec<Effect>)) {
        let (now, mut effects, mut feedback) = (self.now_of(of), Vec::new(), VecDeque::new());
        let Some(core) = self.nodes[of].core.as_mut() else {
            return;
        };
        act(core, now, &mut effects);
        self.perform(of, effects, &mut feedback);
        self.give(of, feedback);
    }

    /// Performs effects in order. Now and then the machine stops in the middle.
    fn perform(&mut self, of: usize, effects: Vec<Effect>, feedback: &mut VecDeque<Input>) {
        for effect in effects {
            let is_unlucky = self.plan.crashes_per_validator > 0
                && self.now_us < self.plan.heals_at_us
                && self.rng.below(2_000) == 0;
            if is_unlucky {
                let up_at = self.now_us + self.rng.below(30 * self.plan.delay_us);
                self.crash(of);
                self.at(up_at, Event::Start { of });
                feedback.clear();
                return;
            }
            self.perform_one(of, effect, feedback);
        }
    }

    fn perform_one(&mut self, of: usize, effect: Effect, feedback: &mut VecDeque<Input>) {
        let me = NodeIdx(of as u32);
        match effect {
            Effect::Persist(record) => self.nodes[of].disk.unsynced.push(Unsynced::Record(record)),
            Effect::Finalized(blocks) => {
                self.note_finalized(of, &blocks);
                self.nodes[of].disk.unsynced.push(Unsynced::Finalized(blocks));
            }
            Effect::Vote(vote) => {
                self.guard(of, GuardRecord::Vote(vote));
                self.sync_disk(of);
                let signed = SignedVote {
                    vote,
                    voter: me,
                    signature: Signature::default(),
                };
                self.adversary.overhear_vote(of, vote);
                self.broadcast(of, Packet::Message(BftMessage::Vote(signed)));
                feedback.push_back(Input::OwnVote(signed));
            }
            Effect::Propose(draft) => {
                let ballot = draft.block.header.ballot();
                self.guard(of, GuardRecord::Proposal(ballot));
                let proposal = Box::new(draft.sign(Signature::default()));
                self.nodes[of]
                    .disk
                    .unsynced
                    .push(Unsynced::Record(Record::Proposal(proposal.clone())));
                self.sync_disk(of);
                self.seen.proposed.entry(ballot.digest).or_insert(self.now_us);
                for batch in &proposal.block.refs {
                    self.seen.refs.entry(*batch).or_insert(ballot.digest);
                }
                self.adversary.overhear_block(&proposal.block);
                self.broadcast(of, Packet::Message(BftMessage::Proposal(proposal.clone())));
                feedback.push_back(Input::OwnProposal(proposal));
            }
            Effect::Send { to, message } => {
                self.sync_disk(of);
                match to {
                    Recipient::All => self.broadcast(of, Packet::Message(message)),
                    Recipient::One(peer) => self.send(of, peer.0 as usize, Packet::Message(message)),
                }
            }
            Effect::SetTimer(at) => {
                self.nodes[of].timer = at;
                if let Some(at) = at {
                    let boot = self.nodes[of].boot;
                    self.at(at.0, Event::Tick { to: of, boot, at });
                }
            }
            Effect::FetchBlock { digest, from } => self.ask(of, from, &Packet::AskBlock(digest)),
            Effect::FetchBatch(wanted) => self.ask(of, wanted.from, &Packet::AskBatch(wanted.batch)),
            Effect::RequestSync { to, from } => self.send(of, to.0 as usize, Packet::AskSync(from)),
            Effect::Execute(block) => {
                let (boot, digest) = (self.nodes[of].boot, block.digest());
                let pause = self.rng.below(self.plan.jitter_us + 1);
                self.at(self.now_us + pause, Event::Execute { to: of, boot, digest });
            }
            Effect::Executed { .. } => {}
            Effect::Evidence(evidence) => {
                let who = match *evidence {
                    crate::effect::Evidence::Votes(a, _) => a.voter,
                    crate::effect::Evidence::Proposals(a, _) => self.set.leader(a.block.header.view),
                };
                self.seen.evidence.insert(who);
            }
            Effect::Halt(reason) => self.fail(Failure::Fork(format!("validator {of} halts: {reason}"))),
        }
    }

    /// Asks the likely holders, and one more.
    fn ask(&mut self, of: usize, from: Vec<NodeIdx>, packet: &Packet) {
        let anybody = self.rng.below(self.nodes.len() as u64) as usize;
        let mut asked: Vec<usize> = from.iter().take(3).map(|peer| peer.0 as usize).collect();
        asked.push(anybody);
        for to in asked {
            if to != of {
                self.send(of, to, packet.clone());
            }
        }
    }

    fn guard(&mut self, of: usize, record: GuardRecord) {
        if let Err(refusal) = self.nodes[of].disk.guard.admit(record)
            && self.plan.is_guarded
        {
            self.fail(Failure::Guard(format!("validator {of}: {refusal}")));
        }
    }

    fn sync_disk(&mut self, of: usize) {
        let disk = &mut self.nodes[of].disk;
        for unsynced in std::mem::take(&mut disk.unsynced) {
            match unsynced {
                Unsynced::Record(Record::Certificate(certificate)) => disk.certificates.push(certificate),
                Unsynced::Record(Record::Proposal(proposal)) => {
                    disk.proposals.insert(proposal.block.header.view, *proposal);
                }
                Unsynced::Finalized(blocks) => {
                    let last = &blocks.last().expect("never empty").block.header;
                    let (epoch, view) = (last.epoch, last.view);
                    disk.finalized.extend(blocks);
                    disk.guard.compact((epoch, view));
                    disk.proposals = disk.proposals.split_off(&view.next());
                    disk.certificates.retain(|c| match c {
                        Certificate::Notarization(n) => n.ballot.view > view,
                        Certificate::Nullification(n) => n.ballot.view > view,
                        Certificate::Finalization(f) => f.ballot.view > view,
                    });
                }
            }
        }
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

    /// Highest final height.
    pub fn height(&self) -> u64 {
        self.chain.keys().next_back().map_or(0, |height| height.0)
    }

    /// Virtual time, in microseconds.
    pub fn now_us(&self) -> u64 {
        self.now_us
    }
}
