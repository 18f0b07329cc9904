//! One core on a bench: others' votes and blocks are put in by hand, its own votes come back at once.

use std::collections::BTreeMap;

use common::{
    block::{BatchRef, Block, FinalizedBlock, ParentProof, ProofOfFinality, Proposal, genesis_digest},
    certificate::{Ballot, Finalization, Notarization, Nullification, NullifyBallot, SignedVote, Signers, Vote},
    crypto::Signature,
    ids::{BatchSeq, BlockTime, ClusterId, Digest, Epoch, Founding, NodeIdx, View},
    validator_set::ValidatorSet,
    wire::bft::{BftMessage, Certificate},
};

use super::fixture::{CHAIN, Chained, GENESIS_TIME, config, timing, validator_set};
use crate::{
    batch_pool::StoredBatch,
    block_builder::build,
    clock::{Instant, Now},
    core::{GlobalCore, Input, Recovered},
    effect::{Effect, Record},
    guard::{Guard, GuardRecord},
    ledger::Ledger,
    verify::{Checked, CheckedMessage},
};

/// D, in microseconds: D_min of the bench. Round trips are measured as twice that.
pub const D_US: u64 = 10_000;

/// See the module.
pub struct Bench {
    pub core: GlobalCore<Chained>,
    pub set: ValidatorSet,
    pub me: NodeIdx,
    pub now: Now,
    pub guard: Guard,
    /// All blocks of the test, whoever knows them.
    pub world: Ledger<Chained>,
    /// Persisted so far.
    pub records: Vec<Record>,
    pub blocks: BTreeMap<Digest, Block>,
}

impl Bench {
    /// Four equals, and the core of whoever leads `view`.
    pub fn leader_of(view: u64) -> Self {
        let set = validator_set(&[1, 1, 1, 1]);
        let me = set.leader(View(view));
        Self::new(&[1, 1, 1, 1], me)
    }

    /// Four equals, and the core of one who leads none of these views.
    pub fn follower_of(views: &[u64]) -> Self {
        let set = validator_set(&[1, 1, 1, 1]);
        let leads = |device: NodeIdx| views.iter().any(|view| set.leader(View(*view)) == device);
        let me = (0..4).map(NodeIdx).find(|device| !leads(*device));
        Self::new(&[1, 1, 1, 1], me.expect("one of four leads none of three views"))
    }

    pub fn new(weights: &[u64], me: NodeIdx) -> Self {
        let set = validator_set(weights);
        let now = Now {
            at: Instant(0),
            clock: BlockTime(GENESIS_TIME.0 + 1),
        };
        let config = config(&set, me.0, timing(D_US));
        let core = GlobalCore::new(config, Chained::ledger(), Recovered::default(), now, &mut Vec::new());
        let mut bench = Self {
            core,
            set,
            me,
            now,
            guard: Guard::default(),
            world: Chained::ledger(),
            records: Vec::new(),
            blocks: BTreeMap::new(),
        };
        for peer in 0..weights.len() as u32 {
            let peer = NodeIdx(peer);
            bench.give(Input::RoundTrip { peer, us: 2 * D_US });
        }
        bench
    }

    /// The same validator after a crash: what was persisted and recorded is all it has.
    pub fn restart(&mut self) -> Vec<Effect> {
        self.restart_on(&[])
    }

    /// The same, with these final blocks on the disk and none of their batches.
    pub fn restart_on(&mut self, stored: &[Block]) -> Vec<Effect> {
        let mut ledger = Chained::ledger();
        for block in stored {
            let finalization = self.finalization(&block.header.ballot());
            let proof = ProofOfFinality {
                above: Default::default(),
                finalization,
            };
            let finalized = FinalizedBlock {
                block: block.clone(),
                proof,
            };
            ledger.restore(&finalized).expect("the blocks follow each other");
        }
        let recovered = Recovered {
            guard: self.guard.clone(),
            certificates: self.certificates(),
            proposals: self.proposals(),
            batches: vec![],
        };
        let config = config(&self.set, self.me.0, timing(D_US));
        let mut effects = Vec::new();
        self.core = GlobalCore::new(config, ledger, recovered, self.now, &mut effects);
        self.settle(effects)
    }

    fn certificates(&self) -> Vec<Certificate> {
        let certificate = |record: &Record| match record {
            Record::Certificate(certificate) => Some(certificate.clone()),
            Record::Proposal(_) => None,
        };
        self.records.iter().filter_map(certificate).collect()
    }

    fn proposals(&self) -> Vec<Proposal> {
        let proposal = |record: &Record| match record {
            Record::Proposal(proposal) => Some((**proposal).clone()),
            Record::Certificate(_) => None,
        };
        self.records.iter().filter_map(proposal).collect()
    }

    /// Gives one input; performs what comes out; returns all of it in order.
    pub fn give(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.core.step(self.now, input, &mut effects);
        self.settle(effects)
    }

    fn settle(&mut self, mut effects: Vec<Effect>) -> Vec<Effect> {
        let mut done = 0;
        while done < effects.len() {
            let mut more = Vec::new();
            match effects[done].clone() {
                Effect::Vote(vote) => {
                    self.guard
                        .admit(GuardRecord::Vote(vote))
                        .expect("the core asks for nothing else");
                    let own = signed(self.me.0, vote);
                    self.core.step(self.now, Input::OwnVote(own), &mut more);
                }
                Effect::Propose(draft) => {
                    let ballot = draft.block.header.ballot();
                    self.guard
                        .admit(GuardRecord::Proposal(ballot))
                        .expect("the core asks for nothing else");
                    let proposal = Box::new(draft.sign(Signature::default()));
                    self.know(&proposal.block);
                    self.records.push(Record::Proposal(proposal.clone()));
                    self.core.step(self.now, Input::OwnProposal(proposal), &mut more);
                }
                Effect::Persist(record) => self.records.push(record),
                Effect::Execute(block) => self.core.execute(self.now, &block.digest(), &(), &mut more),
                _ => {}
            }
            self.core.check_invariants();
            effects.extend(more);
            done += 1;
        }
        effects
    }

    /// Time passes, timers run out on the way.
    pub fn wait(&mut self, us: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        let end = self.now.at.plus_us(us);
        while self.now.at < end {
            let step = (end.0 - self.now.at.0).min(D_US / 10);
            self.now.at = self.now.at.plus_us(step);
            self.now.clock.0 += step;
            effects.extend(self.give(Input::Tick));
        }
        effects
    }

    fn know(&mut self, block: &Block) {
        let digest = block.digest();
        self.blocks.insert(digest, block.clone());
        self.world.insert(block.clone());
        self.world.mark_agreed(&digest);
        self.world.execute(&digest, &()).expect("blocks of the bench are valid");
    }

    /// A valid block, known to the test only.
    pub fn block(&mut self, view: u64, parent: Digest, refs: Vec<BatchRef>) -> Block {
        let block = self.unknown_block(view, parent, refs);
        self.know(&block);
        block
    }

    /// A block that may be changed before anybody knows it.
    pub fn unknown_block(&mut self, view: u64, parent: Digest, refs: Vec<BatchRef>) -> Block {
        let site = self
            .world
            .site_on(&parent, Epoch(0), View(view))
            .expect("the parent was executed");
        build(&site, refs, self.now.clock)
    }

    pub fn genesis(&self) -> Digest {
        genesis_digest(&CHAIN)
    }

    /// The proposal of `block` with all certificates that it needs.
    pub fn proposal(&self, block: &Block) -> Input {
        let header = &block.header;
        let parent = self.blocks.get(&header.parent);
        let parent_proof = parent.map_or(ParentProof::Genesis, |parent| {
            ParentProof::Notarization(self.notarization(&parent.header.ballot()))
        });
        let between = (header.parent_view.0 + 1..header.view.0).map(|view| self.nullification(view));
        propose(block, parent_proof, between.collect())
    }

    fn others(&self) -> Vec<u32> {
        (0..self.set.members().len() as u32)
            .filter(|d| NodeIdx(*d) != self.me)
            .collect()
    }

    fn signers(&self) -> Signers {
        let signed: Vec<_> = self
            .others()
            .into_iter()
            .map(|d| (d as usize, Signature::default()))
            .collect();
        Signers::gather(self.set.members().len(), &signed)
    }

    pub fn notarization(&self, ballot: &Ballot) -> Notarization {
        let (ballot, signers) = (*ballot, self.signers());
        Notarization { ballot, signers }
    }

    pub fn nullification(&self, view: u64) -> Nullification {
        let (ballot, signers) = (nullify_ballot(view), self.signers());
        Nullification { ballot, signers }
    }

    pub fn finalization(&self, ballot: &Ballot) -> Finalization {
        let (ballot, signers) = (*ballot, self.signers());
        Finalization { ballot, signers }
    }

    /// A certificate by all others.
    pub fn certify(&mut self, vote: Vote) -> Vec<Effect> {
        let certificate = match vote {
            Vote::Notarize(ballot) => Certificate::Notarization(self.notarization(&ballot)),
            Vote::Nullify(ballot) => Certificate::Nullification(self.nullification(ballot.view.0)),
            Vote::Finalize(ballot) => Certificate::Finalization(self.finalization(&ballot)),
        };
        self.give(Input::Message(CheckedMessage::Certificate(Checked::assumed(
            certificate,
        ))))
    }

    /// One vote by each of the first `count` others.
    pub fn votes(&mut self, count: usize, vote: Vote) -> Vec<Effect> {
        let voters = self.others().into_iter().take(count);
        voters.flat_map(|voter| self.vote(voter, vote)).collect()
    }

    pub fn vote(&mut self, voter: u32, vote: Vote) -> Vec<Effect> {
        self.give(Input::Message(CheckedMessage::Vote(Checked::assumed(signed(
            voter, vote,
        )))))
    }

    pub fn view(&self) -> u64 {
        self.core.view().0
    }
}

pub fn propose(block: &Block, parent_proof: ParentProof, nullifications: Vec<Nullification>) -> Input {
    let proposal = Proposal {
        block: block.clone(),
        signature: Signature::default(),
        parent_proof,
        nullifications: nullifications.try_into().unwrap(),
    };
    Input::Message(CheckedMessage::Proposal(Checked::assumed(Box::new(proposal))))
}

pub fn signed(voter: u32, vote: Vote) -> SignedVote {
    SignedVote {
        vote,
        voter: NodeIdx(voter),
        signature: Signature::default(),
    }
}

pub fn nullify_ballot(view: u64) -> NullifyBallot {
    NullifyBallot {
        epoch: Epoch(0),
        view: View(view),
    }
}

pub fn notarize(block: &Block) -> Vote {
    Vote::Notarize(block.header.ballot())
}

pub fn finalize(block: &Block) -> Vote {
    Vote::Finalize(block.header.ballot())
}

pub fn nullify(view: u64) -> Vote {
    Vote::Nullify(nullify_ballot(view))
}

/// What the core asked to be signed.
pub fn votes_in(effects: &[Effect]) -> Vec<Vote> {
    let vote = |effect: &Effect| match effect {
        Effect::Vote(vote) => Some(*vote),
        _ => None,
    };
    effects.iter().filter_map(vote).collect()
}

/// Blocks that the core proposed.
pub fn proposed_in(effects: &[Effect]) -> Vec<Block> {
    let block = |effect: &Effect| match effect {
        Effect::Propose(draft) => Some(draft.block.clone()),
        _ => None,
    };
    effects.iter().filter_map(block).collect()
}

/// Heights that became final, in order.
pub fn finalized_in(effects: &[Effect]) -> Vec<u64> {
    let heights = |effect: &Effect| match effect {
        Effect::Finalized(blocks) => blocks.iter().map(|f| f.block.header.height.0).collect(),
        _ => Vec::new(),
    };
    effects.iter().flat_map(heights).collect()
}

/// Messages sent.
pub fn sent_in(effects: &[Effect]) -> Vec<BftMessage> {
    let message = |effect: &Effect| match effect {
        Effect::Send { message, .. } => Some(message.clone()),
        _ => None,
    };
    effects.iter().filter_map(message).collect()
}

/// Batch `seq` of cluster 0.
pub fn batch(seq: u64) -> BatchRef {
    BatchRef {
        cluster: ClusterId(0),
        founding: Founding(0),
        seq: BatchSeq(seq),
        digest: Digest([seq as u8 + 50; 32]),
    }
}

pub fn stored(seq: u64) -> Input {
    Input::BatchStored(StoredBatch {
        batch: batch(seq),
        prev_digest: if seq == 1 {
            Digest::default()
        } else {
            batch(seq - 1).digest
        },
        bytes: 100,
    })
}
