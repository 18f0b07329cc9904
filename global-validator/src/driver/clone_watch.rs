//! Finds messages that were signed with this validator's key by somebody else.

use common::{
    block::ParentProof,
    certificate::{Finalization, Notarization, Nullification, SignedVote, Signers, Vote},
    wire::bft::Certificate,
};
use global_core::{CheckedMessage, Config, GuardRecord};

use crate::guard::{Refusal, SigningGuard};

/// Checks a verified message: every signature of this validator's key in it must be in the guard.
///
/// # Errors
/// [`Refusal::Clone`].
pub(super) fn check(guard: &SigningGuard, config: &Config, message: &CheckedMessage) -> Result<(), Refusal> {
    let Some(me) = config.me else { return Ok(()) };
    let Some(position) = config.set.position(me) else {
        return Ok(());
    };
    let is_mine = |signers: &Signers| {
        let positions = signers.positions(config.set.members().len());
        positions.is_ok_and(|positions| positions.contains(&position))
    };
    let check_vote = |signers: &Signers, vote: Vote| {
        if is_mine(signers) {
            guard.check_clone(GuardRecord::Vote(vote))
        } else {
            Ok(())
        }
    };
    let check_certificate = |certificate: &Certificate| match certificate {
        Certificate::Notarization(Notarization { ballot, signers }) => check_vote(signers, Vote::Notarize(*ballot)),
        Certificate::Nullification(Nullification { ballot, signers }) => check_vote(signers, Vote::Nullify(*ballot)),
        Certificate::Finalization(Finalization { ballot, signers }) => check_vote(signers, Vote::Finalize(*ballot)),
    };
    match message {
        CheckedMessage::Vote(signed) => {
            let SignedVote { vote, voter, .. } = **signed;
            if voter == me {
                guard.check_clone(GuardRecord::Vote(vote))?;
            }
        }
        CheckedMessage::Certificate(certificate) => check_certificate(certificate)?,
        CheckedMessage::Proposal(proposal) => {
            let header = &proposal.block.header;
            if config.set.leader(header.view) == me {
                guard.check_clone(GuardRecord::Proposal(header.ballot()))?;
            }
            match &proposal.parent_proof {
                ParentProof::Genesis => {}
                ParentProof::Notarization(n) => check_vote(&n.signers, Vote::Notarize(n.ballot))?,
                ParentProof::Finalization(f) => check_vote(&f.signers, Vote::Finalize(f.ballot))?,
            }
            for n in &proposal.nullifications {
                check_vote(&n.signers, Vote::Nullify(n.ballot))?;
            }
        }
    }
    Ok(())
}
