//! The shell of one validator: performs effects in order, on a disk that keeps what was synced.

use std::collections::{BTreeMap, VecDeque};

use common::{
    block::{BatchRef, FinalizedBlock, Proposal},
    certificate::SignedVote,
    crypto::Signature,
    ids::{NodeIdx, View},
    wire::bft::{BftMessage, Certificate},
};

use super::{Event, Failure, Network, Packet};
use crate::{
    batch_pool::StoredBatch,
    clock::{Instant, Now},
    core::{GlobalCore, Input, Recovered},
    effect::{Effect, Evidence, Recipient, Record},
    fuzz::fixture::{Chained, config},
    guard::{Guard, GuardRecord},
    mutant::Fault,
};

/// What survives a crash.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    pub(super) guard: Guard,
    pub(super) certificates: Vec<Certificate>,
    pub(super) proposals: BTreeMap<View, Proposal>,
    pub(super) finalized: Vec<FinalizedBlock>,
    pub(super) batches: BTreeMap<BatchRef, StoredBatch>,
    /// Written, and not yet synced: lost in a crash.
    pub(super) unsynced: Vec<Unsynced>,
}

#[derive(Clone, Debug)]
pub(super) enum Unsynced {
    Record(Record),
    Finalized(Vec<FinalizedBlock>),
}

pub(super) struct Node {
    pub(super) core: Option<GlobalCore<Chained>>,
    pub(super) disk: Disk,
    pub(super) boot: u64,
    pub(super) timer: Option<Instant>,
    /// Clock minus virtual time.
    pub(super) clock_offset_us: u64,
}

impl Network {
    pub(super) fn start(&mut self, of: usize) {
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

    pub(super) fn crash(&mut self, of: usize) {
        let node = &mut self.nodes[of];
        node.core = None;
        node.boot += 1;
        node.disk.unsynced.clear();
    }

    pub(super) fn step(&mut self, of: usize, input: Input) {
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

    pub(super) fn drive(&mut self, of: usize, act: impl FnOnce(&mut GlobalCore<Chained>, Now, &mut Vec<Effect>)) {
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
                    Evidence::Votes(a, _) => a.voter,
                    Evidence::Proposals(a, _) => self.set.leader(a.block.header.view),
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
}
