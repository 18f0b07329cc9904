//! What survives a restart, and what is sent twice: the places where protocols of this family stall.
//!
//! # Rules
//! * Restart: view = max(own votes, own certificates + 1). A vote below the highest own vote is never cast.
//! * On timeout and on reconnect, resend from my finalized tip upward: my votes and proposals (byte for
//!   byte), and the certificates and unfinalized blocks that a lagging peer needs.
//!
//! # Why
//! The newest certificate alone brings a peer to my view, its proposal brings the parent's
//! notarization, and blocks are fetched along parents by digest. So it is enough to resend the newest
//! [`RESENT_VIEWS_MAX`] views: older ones matter only through those, and through finalize votes that were lost. At
//! the bound of a proof of finality nothing new is proposed, and only those votes make anything final; so they are sent
//! again in turn, [`RESENT_OLDER_MAX`] at a time.

use common::{
    block::Proposal,
    certificate::{Nullification, SignedVote, Vote},
    codec::encode,
    ids::View,
    limits,
    wire::bft::{BftMessage, Certificate},
};

use super::{Core, Held, ParentProof};
use crate::{
    effect::{Effect, Recipient},
    guard::Guard,
    mutant::has_fault,
};

/// Views whose certificates and finalize votes are sent again.
pub const RESENT_VIEWS_MAX: usize = 64;
/// Finalize votes of older views that are sent again at once; the next time the next ones.
pub const RESENT_OLDER_MAX: usize = 64;
/// Views whose proposals are sent again.
pub const RESENT_PROPOSALS_MAX: usize = 8;
/// Bytes of nullifications in one proposal; the rest of its bound is block and parent proof.
const NULLIFICATION_BYTES_MAX: usize = limits::PROPOSAL_BYTES_MAX - 128 * 1024;

impl Core {
    /// Takes a certificate that was durable: what it proves, and the view it leads to.
    pub(super) fn recover_certificate(&mut self, certificate: Certificate) {
        let view = match &certificate {
            Certificate::Notarization(n) => n.ballot.view,
            Certificate::Nullification(n) => n.ballot.view,
            Certificate::Finalization(f) => f.ballot.view,
        };
        if view <= self.tip.view {
            match certificate {
                Certificate::Finalization(f) if f.ballot.digest == self.tip.digest => {
                    self.tip_proof = Some(ParentProof::Finalization(f));
                }
                Certificate::Notarization(n) if n.ballot.digest == self.tip.digest && self.tip_proof.is_none() => {
                    self.tip_proof = Some(ParentProof::Notarization(n));
                }
                _ => {}
            }
            return;
        }
        let slot = self.slots.entry(view).or_default();
        match certificate {
            Certificate::Notarization(n) => slot.notarization = Some(n),
            Certificate::Nullification(n) => slot.nullification = Some(n),
            Certificate::Finalization(f) => slot.finalization = Some(f),
        }
        if !has_fault!(self.config.mutant, RestartAtOldView) {
            self.view = self.view.max(view.next());
        }
    }

    /// Takes my own votes: they are the floor below which I never vote again.
    pub(super) fn recover_votes(&mut self, guard: &Guard) {
        let epoch = self.config.set.epoch();
        for ((own_epoch, view), signed) in guard.signed() {
            if *own_epoch == epoch && *view > self.tip.view {
                self.own.insert(*view, *signed);
                self.view = self.view.max(*view);
            }
        }
        if let Some((own_epoch, view)) = guard.compacted()
            && own_epoch == epoch
        {
            self.floor = view;
            self.view = self.view.max(view.next());
        }
    }

    /// Takes a proposal that was durable. One of mine counts only if the guard knows of it: otherwise it
    /// never left, and another may be made.
    pub(super) fn recover_proposal(&mut self, proposal: Box<Proposal>) {
        let header = &proposal.block.header;
        let (view, ballot) = (header.view, header.ballot());
        let is_mine = self.config.me == Some(self.config.set.leader(view));
        let own = self.own.get(&view).copied().unwrap_or_default();
        if view <= self.tip.view || (is_mine && own.proposal != Some(ballot)) {
            return;
        }
        let slot = self.slots.entry(view).or_default();
        // The one I voted for is the one to hold on to.
        if slot.proposal.is_none() || own.notarize == Some(ballot) {
            slot.proposal = Some(Held {
                digest: ballot.digest,
                is_too_old: false,
                proposal,
            });
        }
    }

    /// Asks for my votes to be signed and sent again after a restart; the guard knows them.
    pub(super) fn sign_again(&self, effects: &mut Vec<Effect>) {
        if self.config.me.is_none() {
            return;
        }
        for (view, own) in &self.own {
            let is_current = *view == self.view;
            let notarize = own.notarize.filter(|_| is_current).map(Vote::Notarize);
            let nullify = own.nullify.filter(|_| is_current).map(Vote::Nullify);
            let finalize = own.finalize.map(Vote::Finalize);
            for vote in [notarize, nullify, finalize].into_iter().flatten() {
                effects.push(Effect::Vote(vote));
            }
        }
    }

    /// Sends `to` what a peer may lack.
    pub(super) fn resend(&mut self, to: Recipient, effects: &mut Vec<Effect>) {
        if self.config.me.is_none() || has_fault!(self.config.mutant, NoResend) {
            return;
        }
        let mut send = |message| effects.push(Effect::Send { to, message });
        if let Some(ParentProof::Finalization(finalization)) = &self.tip_proof {
            send(BftMessage::Certificate(Certificate::Finalization(finalization.clone())));
        }
        let views: Vec<View> = self.slots.range(..=self.view).map(|(view, _)| *view).collect();
        let (older, newest) = views.split_at(views.len().saturating_sub(RESENT_VIEWS_MAX));
        let with_proposal = &views[views.len().saturating_sub(RESENT_PROPOSALS_MAX)..];
        for view in newest {
            let slot = &self.slots[view];
            let certificates = [
                slot.nullification.clone().map(Certificate::Nullification),
                slot.notarization.clone().map(Certificate::Notarization),
                slot.finalization.clone().map(Certificate::Finalization),
            ];
            for certificate in certificates.into_iter().flatten() {
                send(BftMessage::Certificate(certificate));
            }
            if let Some(held) = slot.proposal.as_ref().filter(|_| with_proposal.contains(view)) {
                let is_needed = *view == self.view || slot.is_agreed(&held.digest);
                if is_needed {
                    send(BftMessage::Proposal(held.proposal.clone()));
                }
            }
            for vote in self.own_signed(*view) {
                send(BftMessage::Vote(vote));
            }
        }
        // After the last one that was sent, and from the lowest again after the highest.
        let (before, after) = older.split_at(older.partition_point(|view| *view <= self.resent));
        let in_turn = after.iter().chain(before).flat_map(|view| self.own_signed(*view));
        let votes: Vec<SignedVote> = in_turn.take(RESENT_OLDER_MAX).collect();
        for vote in votes {
            self.resent = vote.vote.view();
            effects.push(Effect::Send {
                to,
                message: BftMessage::Vote(vote),
            });
        }
    }

    /// My votes of a view that still matter, as I signed them.
    fn own_signed(&self, view: View) -> Vec<SignedVote> {
        let position = self.config.me.and_then(|me| self.config.set.position(me));
        let (Some(position), Some(own), Some(slot)) = (position, self.own.get(&view), self.slots.get(&view)) else {
            return Vec::new();
        };
        let is_current = view == self.view;
        let votes = [
            own.notarize.filter(|_| is_current).map(Vote::Notarize),
            own.nullify.filter(|_| is_current).map(Vote::Nullify),
            own.finalize.map(Vote::Finalize),
        ];
        let signed = |vote: Vote| slot.signed_by(position, &vote);
        votes.into_iter().flatten().filter_map(signed).collect()
    }

    /// Keeps the newest nullifications that a proposal holds; older ones are sent before it.
    pub(super) fn fit_nullifications(
        &self,
        mut nullifications: Vec<Nullification>,
        effects: &mut Vec<Effect>,
    ) -> Vec<Nullification> {
        let mut bytes = 0;
        let fitting = nullifications
            .iter()
            .rev()
            .take(limits::NULLIFICATIONS_PER_PROPOSAL_MAX)
            .take_while(|nullification| {
                bytes += encode(*nullification).len();
                bytes <= NULLIFICATION_BYTES_MAX
            })
            .count();
        let rest = nullifications.len() - fitting;
        for nullification in nullifications.drain(..rest) {
            effects.push(Effect::Send {
                to: Recipient::All,
                message: BftMessage::Certificate(Certificate::Nullification(nullification)),
            });
        }
        nullifications
    }
}
