//! Which block is notarized, nullified or final in which view: weighted Simplex, as a pure state machine.
//! In: checked proposals, votes and certificates, judgements, time. Out: votes to sign, certificates,
//! what to make durable, timers. Called by: [`GlobalCore`](crate::core::GlobalCore).
//!
//! # Rules
//! Safety rests on two sentences. *A validator notarizes at most one block per view. It never both
//! finalizes and nullifies one view.*
//!
//! * Upon entering view v: start the leader timer and the view timer. If I lead v: propose one block on
//!   the highest notarized block such that every view between is nullified.
//! * Upon the leader's proposal in v: notarize it once, if it is valid and nothing is "not yet" and I
//!   have not nullified v. If it is provably invalid: nullify.
//! * Upon a notarization of v: send it on once, enter v + 1; finalize v unless I nullified v.
//! * Upon timeout in v: nullify v unless I finalized v.
//! * Upon a nullification of v: send it on once, enter v + 1.
//! * Upon a finalization of v: the block and all its ancestors are final; enter v + 1 if behind.
//! * On timeout and on reconnect, resend from my finalized tip upward.
//! * Restart: view = max(own votes, own certificates + 1), and above the floor of the guard, at or below which nothing is
//!   signed: what was signed there is not known any more.
//!
//! Single votes are counted up to [`LOOK_AHEAD`] views ahead; a certificate is taken from any view.
//!
//! # Invariants
//! * `agreement`: no two honest validators finalize different blocks at one height.
//! * `durable_before_sent`: a certificate is persisted when it is first acted on, hence before the finalize
//!   vote that answers it and before any vote in the view it opened; a block is persisted before it
//!   is notarized. (Effects are performed in order.)
//! * All state is above the last final view, one slot per view, one vote per validator, view and kind.
//!
//! # Why
//! Two quorums share more than a third of the weight, hence an honest validator. So one view has at
//! most one notarized block (first sentence), and not both a finalization and a nullification
//! (second). A block that is finalized in v is therefore an ancestor of every block notarized later:
//! such a block needs a notarized parent below it with all views between nullified, and v is not.
//! No locks, no valid-value rule.
//!
//! # Source
//! Chan & Pass, *Simplex Consensus*, TCC 2023 (eprint 2023/463), with weights; the depth cap, the timers
//! and the resting of an empty chain are ours.

mod elector;
mod pacemaker;
mod questions;
mod resend;
mod slot;

use std::collections::{BTreeMap, BTreeSet};

use common::{
    block::{Block, ParentProof, Proposal},
    certificate::{Ballot, Finalization, Notarization, Nullification, NullifyBallot, SignedVote, Signers, Vote},
    ids::{Digest, Height, NodeIdx, View},
    quorum::{holds_honest_validator, is_bft_quorum},
    wire::bft::{BftMessage, Certificate},
};

pub use slot::Held;

use self::{
    elector::Elector,
    pacemaker::Pacemaker,
    slot::{Counted, Slot},
};
use crate::{
    clock::{Instant, Now},
    config::Config,
    effect::{Draft, Effect, Evidence, Recipient, Record},
    guard::{Guard, Signed},
    ledger::Tip,
    mutant::has_fault,
    verify::Checked,
};

/// Views ahead of mine for which single votes and proposals are held.
pub const LOOK_AHEAD: u64 = 16;
/// Blocks above the last final one up to which blocks may refer to batches: it bounds the execution
/// state that is kept.
pub const UNFINALIZED_BLOCKS_MAX: u64 = 16;

/// A fact for the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// By the leader of its view.
    Proposal(Checked<Box<Proposal>>),
    /// By me: written, signed, sent.
    OwnProposal(Box<Proposal>),
    /// By another validator.
    Vote(Checked<SignedVote>),
    /// By me: recorded, signed, sent.
    OwnVote(SignedVote),
    /// By a quorum.
    Certificate(Checked<Certificate>),
    /// The block of [`Core::open_proposal`] is valid, or it never will be.
    Judged {
        /// The block.
        block: Digest,
        /// Which of both.
        is_valid: bool,
    },
    /// The block that I propose on [`Core::open_turn`].
    Built(Block),
    /// All blocks up to this one are final.
    Finalized(Tip),
    /// Something waits for a block: timers that rest start.
    WorkWaits,
    /// A block is not final, and its finalization is late.
    FinalityWaits,
    /// Something that this view needs is being fetched.
    Fetching,
    /// Time has passed.
    Tick,
    /// A round trip to a peer, smoothed, in microseconds.
    RoundTrip(NodeIdx, u64),
    /// A peer is connected anew.
    Connected(NodeIdx),
}

/// My turn to propose, and on what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Turn {
    /// The view.
    pub view: View,
    /// The parent.
    pub parent: Digest,
    /// For the parent.
    pub proof: ParentProof,
    /// For the views between, ascending.
    pub nullifications: Vec<Nullification>,
}

/// The state machine of one validator in one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Core {
    config: Config,
    view: View,
    tip: Tip,
    /// For building on the last final block; `None` right after a sync that ended below a finalization.
    tip_proof: Option<ParentProof>,
    /// At or below this the guard remembers nothing, and signs nothing.
    floor: View,
    /// What I asked the guard to sign, above the last final view.
    own: BTreeMap<View, Signed>,
    slots: BTreeMap<View, Slot>,
    pacemaker: Pacemaker,
    elector: Elector,
    /// View of the last of the older finalize votes that were sent again in turn.
    resent: View,
    /// Validators whose contradiction was reported.
    reported: BTreeSet<NodeIdx>,
}

impl Core {
    /// A core above `tip`, from what was durable: the guard's records, certificates, proposals.
    ///
    /// Asks for the votes of its view to be signed and sent again: everybody may have crashed between
    /// signing them and hearing them.
    #[must_use]
    pub fn new(
        config: Config,
        tip: Tip,
        guard: &Guard,
        certificates: Vec<Certificate>,
        proposals: Vec<Proposal>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Self {
        let mut core = Self {
            pacemaker: Pacemaker::new(config.timing, now.at),
            view: tip.view.next(),
            tip,
            tip_proof: (tip.height == Height(0)).then_some(ParentProof::Genesis),
            floor: View(0),
            resent: View(0),
            own: BTreeMap::new(),
            slots: BTreeMap::new(),
            elector: Elector::default(),
            reported: BTreeSet::new(),
            config,
        };
        for certificate in certificates {
            core.recover_certificate(certificate);
        }
        if !has_fault!(core.config.mutant, VotesNotPersisted) {
            core.recover_votes(guard);
        }
        for proposal in proposals {
            core.recover_proposal(Box::new(proposal));
        }
        core.pacemaker.enter(now.at);
        if !core.own.is_empty() || !core.slots.is_empty() {
            core.start_timers(now.at);
        }
        core.sign_again(effects);
        core
    }

    /// Takes one fact. Effects are appended in the order in which they must be performed.
    pub fn step(&mut self, now: Now, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Proposal(proposal) => self.on_proposal(now, proposal.into_inner(), effects),
            Input::OwnProposal(proposal) => self.hold_proposal(now, proposal, effects),
            Input::Vote(vote) => self.on_vote(now, vote.into_inner(), effects),
            Input::OwnVote(vote) => self.on_vote(now, vote, effects),
            Input::Certificate(certificate) => self.on_certificate(now, certificate.into_inner(), effects),

            // Upon the leader's proposal in v: notarize it once, if it is valid and nothing is "not yet",
            // and I have not nullified v.
            Input::Judged { block, is_valid: true } => self.notarize(&block, effects),

            // If it is provably invalid: nullify.
            Input::Judged { block, is_valid: false } => {
                if self.open_proposal().is_some_and(|held| held.digest == block) {
                    self.nullify(self.view, effects);
                }
            }

            // If I lead v: propose one block on the highest notarized block such that every view between
            // is nullified.
            Input::Built(block) => self.propose(block, effects),

            // The block and all its ancestors are final.
            Input::Finalized(tip) => self.on_final(now, tip),

            Input::WorkWaits => self.start_timers(now.at),
            // A leader that has spoken has started them for good.
            Input::FinalityWaits => self.pacemaker.start_for_finality(now.at, self.is_leader_silent()),
            Input::Fetching => self.pacemaker.fetching(),
            Input::Tick => {}
            Input::RoundTrip(peer, us) => self.pacemaker.measured(peer, us, self.config.me, &self.config.set),

            // On timeout and on reconnect, resend from my finalized tip upward.
            Input::Connected(peer) => self.resend(Recipient::One(peer), effects),
        }
        self.on_time(now.at, effects);
    }

    fn on_time(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        // Upon entering view v: start the timers; they rest while nothing waits.
        if self.pacemaker.is_idle_over(now) {
            self.start_timers(now);
        }
        // The leader was silent for 2D.
        if self.pacemaker.is_leader_due(now) {
            self.pacemaker.leader_spoke();
            self.nullify(self.view, effects);
        }
        // Upon timeout in v: nullify v unless I finalized v. On timeout, resend.
        if self.pacemaker.take_view_due(now) {
            self.nullify(self.view, effects);
            if has_fault!(self.config.mutant, NullifyAfterFinalize) {
                for view in self.own.keys().copied().collect::<Vec<_>>() {
                    self.nullify(view, effects);
                }
            }
            self.resend(Recipient::All, effects);
        }
    }

    fn on_proposal(&mut self, now: Now, proposal: Box<Proposal>, effects: &mut Vec<Effect>) {
        // The certificates in a proposal are certificates: they bring me to its view.
        let parent = match &proposal.parent_proof {
            ParentProof::Genesis => None,
            ParentProof::Notarization(n) => Some(Certificate::Notarization(n.clone())),
            ParentProof::Finalization(f) => Some(Certificate::Finalization(f.clone())),
        };
        let nullifications = proposal.nullifications.iter().cloned().map(Certificate::Nullification);
        for certificate in parent.into_iter().chain(nullifications) {
            self.on_certificate(now, certificate, effects);
        }
        self.hold_proposal(now, proposal, effects);
    }

    /// Holds the first proposal of a view. Another one of the same leader is evidence.
    fn hold_proposal(&mut self, now: Now, proposal: Box<Proposal>, effects: &mut Vec<Effect>) {
        let header = &proposal.block.header;
        let (view, leader) = (header.view, self.config.set.leader(header.view));
        self.elector.heard(leader);
        if view <= self.tip.view || view.0 > self.view.0.saturating_add(LOOK_AHEAD) {
            return;
        }
        let held = Held {
            digest: proposal.block.digest(),
            // Judged on receipt, not when voting after a fetch.
            is_too_old: header.time.0.saturating_add(self.config.timing.block_time_bound_us) < now.clock.0,
            proposal,
        };
        let slot = self.slots.entry(view).or_default();
        match &slot.proposal {
            None => slot.proposal = Some(held),
            Some(before) if before.digest == held.digest => {}
            Some(before) => {
                let evidence = Evidence::Proposals(before.proposal.clone(), held.proposal.clone());
                if has_fault!(self.config.mutant, DoubleNotarize) {
                    slot.proposal = Some(held);
                }
                self.report(leader, evidence, effects);
            }
        }
        if view >= self.view {
            self.start_timers(now.at);
        }
        if view == self.view {
            self.pacemaker.leader_spoke();
        }
    }

    fn on_vote(&mut self, now: Now, signed: SignedVote, effects: &mut Vec<Effect>) {
        let Some(position) = self.config.set.position(signed.voter) else {
            return;
        };
        let view = signed.vote.view();
        // The look-ahead bounds single votes only; certificates are taken from any view.
        if view <= self.tip.view || view.0 > self.view.0.saturating_add(LOOK_AHEAD) {
            return;
        }
        match self.slots.entry(view).or_default().count(position, signed) {
            Counted::Known => return,
            Counted::Conflict(before) => {
                self.report(signed.voter, Evidence::Votes(before, signed), effects);
            }
            Counted::New => {}
        }
        // A valid signed message for my view or a later one starts my timers.
        if view >= self.view && Some(signed.voter) != self.config.me {
            self.start_timers(now.at);
        }
        let slot = &self.slots[&view];
        if slot.has_certificate(&signed.vote) {
            return;
        }
        let supporters = slot.supporters(&signed.vote);
        if self.is_quorum(&supporters) {
            let certificate = self.certify(signed.vote, &supporters);
            self.on_certificate(now, certificate, effects);
        }
    }

    fn on_certificate(&mut self, now: Now, certificate: Certificate, effects: &mut Vec<Effect>) {
        match certificate {
            Certificate::Notarization(notarization) => self.on_notarization(now, notarization, effects),
            Certificate::Nullification(nullification) => self.on_nullification(now, nullification, effects),
            Certificate::Finalization(finalization) => self.on_finalization(now, finalization, effects),
        }
    }

    /// Upon a notarization of v: send it on once, enter v + 1; finalize v unless I nullified v.
    fn on_notarization(&mut self, now: Now, notarization: Notarization, effects: &mut Vec<Effect>) {
        let ballot = notarization.ballot;
        let view = ballot.view;
        if view <= self.tip.view || self.slots.get(&view).is_some_and(|slot| slot.notarization.is_some()) {
            return;
        }
        self.slots.entry(view).or_default().notarization = Some(notarization.clone());
        self.elector.heard(self.config.set.leader(view));
        let depth = ballot.height.0.saturating_sub(self.tip.height.0);
        self.pacemaker.notarized(now.at, depth < UNFINALIZED_BLOCKS_MAX);
        self.pass_on(Certificate::Notarization(notarization), effects);
        self.finalize(ballot, effects);
        self.enter_after(now.at, view);
    }

    /// Upon a nullification of v: send it on once, enter v + 1.
    fn on_nullification(&mut self, now: Now, nullification: Nullification, effects: &mut Vec<Effect>) {
        let view = nullification.ballot.view;
        if view <= self.tip.view || self.slots.get(&view).is_some_and(|slot| slot.nullification.is_some()) {
            return;
        }
        self.slots.entry(view).or_default().nullification = Some(nullification.clone());
        self.pass_on(Certificate::Nullification(nullification), effects);
        self.enter_after(now.at, view);
    }

    /// Upon a finalization of v: the block and all its ancestors are final; enter v + 1 if behind.
    ///
    /// Final they are once all of them are here: the ledger says so with [`Input::Finalized`].
    fn on_finalization(&mut self, now: Now, finalization: Finalization, effects: &mut Vec<Effect>) {
        let view = finalization.ballot.view;
        if view <= self.tip.view || self.slots.get(&view).is_some_and(|slot| slot.finalization.is_some()) {
            return;
        }
        self.slots.entry(view).or_default().finalization = Some(finalization.clone());
        self.pacemaker.finalized(now.at);
        self.pass_on(Certificate::Finalization(finalization), effects);
        self.enter_after(now.at, view);
    }

    /// Sends a certificate on, the first time it is seen, and makes it durable.
    ///
    /// In this order: it proves itself, so it may leave before it is on disk; what I sign because of
    /// it comes after both.
    fn pass_on(&self, certificate: Certificate, effects: &mut Vec<Effect>) {
        if self.config.me.is_some() {
            effects.push(Effect::Send {
                to: Recipient::All,
                message: BftMessage::Certificate(certificate.clone()),
            });
        }
        effects.push(Effect::Persist(Record::Certificate(certificate)));
    }

    /// Enters v + 1 after a certificate of v, unless I am there already.
    fn enter_after(&mut self, now: Instant, view: View) {
        if view < self.view {
            return;
        }
        if view == self.view && self.pacemaker.is_running() {
            let slot = self.slots.get(&view);
            if slot.is_none_or(|slot| slot.proposal.is_none() && slot.notarization.is_none()) {
                self.elector.missed(self.config.set.leader(view));
            }
        }
        self.view = view.next();
        self.pacemaker.enter(now);
        // What came early for this view starts its timers.
        let slot = self.slots.get(&self.view);
        if slot.is_some_and(|slot| slot.proposal.is_some()) || self.is_given_up_by_an_honest_one() {
            self.start_timers(now);
        }
    }

    /// f + 1 weight having nullified this view is something that waits.
    fn is_given_up_by_an_honest_one(&self) -> bool {
        let ballot = Vote::Nullify(self.nullify_ballot(self.view));
        let supporters = self.slots.get(&self.view).map(|slot| slot.supporters(&ballot));
        let weight = supporters.map_or(0, |supporters| self.weight(&supporters));
        holds_honest_validator(weight, self.config.set.total_weight())
    }

    fn start_timers(&mut self, now: Instant) {
        self.pacemaker.start(now, self.is_leader_silent());
        if self.has_leader_spoken() {
            self.pacemaker.leader_spoke();
        }
    }

    fn has_leader_spoken(&self) -> bool {
        self.slots.get(&self.view).is_some_and(|slot| slot.proposal.is_some())
    }

    fn notarize(&mut self, block: &Digest, effects: &mut Vec<Effect>) {
        let Some(held) = self.open_proposal().filter(|held| held.digest == *block) else {
            return;
        };
        let (proposal, ballot) = (held.proposal.clone(), held.proposal.block.header.ballot());
        self.own.entry(self.view).or_default().notarize = Some(ballot);
        // Durable before notarize: the block. (Its batches are, or it would not be valid here.)
        effects.push(Effect::Persist(Record::Proposal(proposal)));
        effects.push(Effect::Vote(Vote::Notarize(ballot)));
    }

    /// Finalize v unless I nullified v.
    fn finalize(&mut self, ballot: Ballot, effects: &mut Vec<Effect>) {
        let own = self.own.get(&ballot.view).copied().unwrap_or_default();
        let is_nullified = own.nullify.is_some() && !has_fault!(self.config.mutant, FinalizeAfterNullify);
        if self.config.me.is_none() || is_nullified || own.finalize.is_some() || ballot.view <= self.floor {
            return;
        }
        self.own.entry(ballot.view).or_default().finalize = Some(ballot);
        effects.push(Effect::Vote(Vote::Finalize(ballot)));
    }

    /// Nullify v unless I finalized v.
    fn nullify(&mut self, view: View, effects: &mut Vec<Effect>) {
        let own = self.own.get(&view).copied().unwrap_or_default();
        let is_finalized = own.finalize.is_some() && !has_fault!(self.config.mutant, NullifyAfterFinalize);
        let is_past = view <= self.tip.view || view <= self.floor;
        if self.config.me.is_none() || is_finalized || own.nullify.is_some() || is_past {
            return;
        }
        let ballot = self.nullify_ballot(view);
        self.own.entry(view).or_default().nullify = Some(ballot);
        effects.push(Effect::Vote(Vote::Nullify(ballot)));
    }

    fn propose(&mut self, block: Block, effects: &mut Vec<Effect>) {
        let Some(turn) = self.open_turn().filter(|turn| turn.parent == block.header.parent) else {
            return;
        };
        assert_eq!(
            block.header.view, turn.view,
            "a block is built for the turn it is asked for"
        );
        self.own.entry(self.view).or_default().proposal = Some(block.header.ballot());
        let nullifications = self.fit_nullifications(turn.nullifications, effects);
        effects.push(Effect::Propose(Box::new(Draft {
            block,
            parent_proof: turn.proof,
            nullifications,
        })));
    }

    fn on_final(&mut self, now: Now, tip: Tip) {
        assert!(tip.height > self.tip.height, "finality goes up");
        let slot = self.slots.get(&tip.view);
        let finalization = slot
            .and_then(|s| s.finalization.clone())
            .filter(|f| f.ballot.digest == tip.digest);
        let notarization = slot
            .and_then(|s| s.notarization.clone())
            .filter(|n| n.ballot.digest == tip.digest);
        self.tip_proof = finalization
            .map(ParentProof::Finalization)
            .or(notarization.map(ParentProof::Notarization));
        self.tip = tip;
        self.slots = self.slots.split_off(&tip.view.next());
        self.own = self.own.split_off(&tip.view.next());
        self.pacemaker.finalized(now.at);
        self.enter_after(now.at, tip.view);
    }

    /// Reports the first contradiction of each validator: a signature is worth its first word.
    fn report(&mut self, who: NodeIdx, evidence: Evidence, effects: &mut Vec<Effect>) {
        if self.reported.insert(who) {
            effects.push(Effect::Evidence(Box::new(evidence)));
        }
    }

    fn nullify_ballot(&self, view: View) -> NullifyBallot {
        NullifyBallot {
            epoch: self.config.set.epoch(),
            view,
        }
    }

    fn weight(&self, supporters: &[(usize, SignedVote)]) -> u64 {
        let members = self.config.set.members();
        supporters.iter().map(|(position, _)| members[*position].weight).sum()
    }

    /// More than two thirds of the weight.
    fn is_quorum(&self, supporters: &[(usize, SignedVote)]) -> bool {
        let (weight, total) = (self.weight(supporters), self.config.set.total_weight());
        is_bft_quorum(weight, total) || (has_fault!(self.config.mutant, QuorumOfHalf) && 2 * weight >= total)
    }

    fn certify(&self, vote: Vote, supporters: &[(usize, SignedVote)]) -> Certificate {
        let signed: Vec<_> = supporters
            .iter()
            .map(|(position, vote)| (*position, vote.signature))
            .collect();
        let signers = Signers::gather(self.config.set.members().len(), &signed);
        match vote {
            Vote::Notarize(ballot) => Certificate::Notarization(Notarization { ballot, signers }),
            Vote::Nullify(ballot) => Certificate::Nullification(Nullification { ballot, signers }),
            Vote::Finalize(ballot) => Certificate::Finalization(Finalization { ballot, signers }),
        }
    }
}

#[cfg(test)]
mod tests;
