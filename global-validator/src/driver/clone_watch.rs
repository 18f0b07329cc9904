//! Finds messages that were signed with this validator's key by somebody else.
//!
//! Seen in what others send, and in the proofs of the final blocks above this validator's tip, for which
//! it asks at its start: a directory restored from a backup hears there what it signed since.

use common::{
    block::{FinalizedBlock, ParentProof},
    certificate::{Finalization, Notarization, Nullification, SignedVote, Signers, Vote},
    wire::bft::Certificate,
};
use global_core::{Checked, CheckedMessage, Config, GuardRecord};

use crate::guard::{Refusal, SigningGuard};

/// What is compared: the guard, with this validator's place in the set.
pub(super) struct CloneWatch<'a> {
    guard: &'a SigningGuard,
    config: &'a Config,
}

impl<'a> CloneWatch<'a> {
    pub(super) fn new(guard: &'a SigningGuard, config: &'a Config) -> Self {
        Self { guard, config }
    }

    fn is_mine(&self, signers: &Signers) -> bool {
        let set = &self.config.set;
        let Some(position) = self.config.me.and_then(|me| set.position(me)) else {
            return false;
        };
        let positions = signers.positions(set.members().len());
        positions.is_ok_and(|positions| positions.contains(&position))
    }

    fn check_vote(&self, signers: &Signers, vote: Vote) -> Result<(), Refusal> {
        if self.is_mine(signers) {
            self.guard.check_clone(GuardRecord::Vote(vote))
        } else {
            Ok(())
        }
    }

    fn check_certificate(&self, certificate: &Certificate) -> Result<(), Refusal> {
        match certificate {
            Certificate::Notarization(Notarization { ballot, signers }) => {
                self.check_vote(signers, Vote::Notarize(*ballot))
            }
            Certificate::Nullification(Nullification { ballot, signers }) => {
                self.check_vote(signers, Vote::Nullify(*ballot))
            }
            Certificate::Finalization(Finalization { ballot, signers }) => {
                self.check_vote(signers, Vote::Finalize(*ballot))
            }
        }
    }

    /// Checks a verified message: every signature of this validator's key in it must be in the guard.
    ///
    /// # Errors
    /// [`Refusal::Clone`].
    pub(super) fn check_message(&self, message: &CheckedMessage) -> Result<(), Refusal> {
        let Some(me) = self.config.me else { return Ok(()) };
        match message {
            CheckedMessage::Vote(signed) => {
                let SignedVote { vote, voter, .. } = **signed;
                if voter == me {
                    self.guard.check_clone(GuardRecord::Vote(vote))?;
                }
            }
            CheckedMessage::Certificate(certificate) => self.check_certificate(certificate)?,
            CheckedMessage::Proposal(proposal) => {
                let header = &proposal.block.header;
                if self.config.set.leader(header.view) == me {
                    self.guard.check_clone(GuardRecord::Proposal(header.ballot()))?;
                }
                match &proposal.parent_proof {
                    ParentProof::Genesis => {}
                    ParentProof::Notarization(n) => self.check_vote(&n.signers, Vote::Notarize(n.ballot))?,
                    ParentProof::Finalization(f) => self.check_vote(&f.signers, Vote::Finalize(f.ballot))?,
                }
                for n in &proposal.nullifications {
                    self.check_vote(&n.signers, Vote::Nullify(n.ballot))?;
                }
            }
        }
        Ok(())
    }

    /// Checks the finalizations of verified final blocks.
    ///
    /// # Errors
    /// [`Refusal::Clone`].
    pub(super) fn check_finalized(&self, blocks: &[Checked<FinalizedBlock>]) -> Result<(), Refusal> {
        blocks.iter().try_for_each(|block| {
            let finalization = &block.proof.finalization;
            self.check_vote(&finalization.signers, Vote::Finalize(finalization.ballot))
        })
    }
}
