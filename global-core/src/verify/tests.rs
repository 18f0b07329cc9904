//! Real signatures.

use common::{
    block::{BLOCK_VERSION, Block, BlockHeader, ProofOfFinality, refs_root},
    certificate::{Ballot, Finalization, Notarization, Nullification, NullifyBallot, Signers, Vote},
    crypto::Signature,
    ids::BlockTime,
};

use super::*;
use crate::fuzz::fixture::{CHAIN, key, validator_set};

fn verifier() -> Verifier {
    Verifier::new(CHAIN, validator_set(&[1, 1, 1, 1]))
}

fn sign(position: u8, vote: &Vote) -> Signature {
    match vote {
        Vote::Notarize(ballot) => key(position).sign_notarize(&CHAIN, ballot),
        Vote::Finalize(ballot) => key(position).sign_finalize(&CHAIN, ballot),
        Vote::Nullify(ballot) => key(position).sign_nullify(&CHAIN, ballot),
    }
}

fn signers(vote: &Vote, positions: &[u8]) -> Signers {
    let signed: Vec<_> = positions.iter().map(|p| (usize::from(*p), sign(*p, vote))).collect();
    Signers::gather(4, &signed)
}

fn notarization(ballot: Ballot, positions: &[u8]) -> Notarization {
    let signers = signers(&Vote::Notarize(ballot), positions);
    Notarization { ballot, signers }
}

fn nullification(view: u64) -> Nullification {
    let ballot = NullifyBallot {
        epoch: Epoch(0),
        view: View(view),
    };
    let signers = signers(&Vote::Nullify(ballot), &[0, 1, 2]);
    Nullification { ballot, signers }
}

fn block(view: u64, height: u64, parent: Digest, parent_view: u64) -> Block {
    let header = BlockHeader {
        version: BLOCK_VERSION,
        chain: CHAIN,
        epoch: Epoch(0),
        view: View(view),
        height: Height(height),
        parent,
        parent_view: View(parent_view),
        time: BlockTime(height),
        refs_root: refs_root(&[]),
        state_root: Digest::default(),
        outcome_root: Digest::default(),
        next_set: None,
    };
    let refs = Default::default();
    Block { header, refs }
}

/// Signed by the leader of its view.
fn proposal(block: Block, parent_proof: ParentProof, nullifications: Vec<Nullification>) -> Box<Proposal> {
    let leader = validator_set(&[1, 1, 1, 1]).leader(block.header.view).0 as u8;
    Box::new(Proposal {
        signature: key(leader).sign_proposal(&CHAIN, &block.header.ballot()),
        block,
        parent_proof,
        nullifications: nullifications.try_into().unwrap(),
    })
}

/// A block of height 1 in view 1, and a proposal on it in view 4.
fn on_a_notarized_parent() -> Box<Proposal> {
    let parent = block(1, 1, genesis_digest(&CHAIN), 0).header.ballot();
    let child = block(4, 2, parent.digest, 1);
    let proof = ParentProof::Notarization(notarization(parent, &[0, 2, 3]));
    proposal(child, proof, vec![nullification(2), nullification(3)])
}

#[test]
fn a_proposal_with_all_its_certificates_is_taken_once_and_again() {
    let mut verifier = verifier();
    let first = proposal(block(1, 1, genesis_digest(&CHAIN), 0), ParentProof::Genesis, vec![]);
    assert!(verifier.proposal(first).is_ok());
    assert!(verifier.proposal(on_a_notarized_parent()).is_ok());
    assert_eq!(verifier.known.len(), 3, "its certificates are remembered");
    assert!(verifier.proposal(on_a_notarized_parent()).is_ok());
}

#[test]
fn a_proposal_by_anybody_but_the_leader_is_refused() {
    let mut forged = on_a_notarized_parent();
    let leader = verifier().set.leader(View(4));
    let other = (leader.0 as u8 + 1) % 4;
    forged.signature = key(other).sign_proposal(&CHAIN, &forged.block.header.ballot());
    let view = View(4);
    assert_eq!(
        verifier().proposal(forged),
        Err(VerifyError::NotByLeader { view, leader })
    );
}

#[test]
fn a_proposal_without_the_certificates_it_needs_is_refused() {
    let good = on_a_notarized_parent();
    let other_parent = VerifyError::OtherParent {
        parent: good.block.header.parent,
        view: View(1),
    };
    let mut without = good.clone();
    without.parent_proof = ParentProof::Genesis;
    assert_eq!(verifier().proposal(without), Err(other_parent));

    let mut wrong = good.clone();
    let other = block(1, 1, genesis_digest(&CHAIN), 0).header.ballot();
    let other = Ballot {
        digest: Digest([9; 32]),
        ..other
    };
    wrong.parent_proof = ParentProof::Notarization(notarization(other, &[0, 1, 2]));
    assert_eq!(verifier().proposal(wrong), Err(other_parent));

    let mut weak = good;
    let ParentProof::Notarization(proof) = &weak.parent_proof else {
        unreachable!()
    };
    weak.parent_proof = ParentProof::Notarization(notarization(proof.ballot, &[0, 1]));
    let too_few = CertificateError::TooFew { got: 2, needed: 3 };
    assert_eq!(verifier().proposal(weak), Err(VerifyError::Certificate(too_few)));
}

#[test]
fn a_proposal_that_skips_a_height_is_refused() {
    let parent = block(1, 1, genesis_digest(&CHAIN), 0).header.ballot();
    let child = block(2, 3, parent.digest, 1);
    let proof = ParentProof::Notarization(notarization(parent, &[0, 1, 2]));
    let refused = verifier().proposal(proposal(child, proof, vec![]));
    assert!(matches!(refused, Err(VerifyError::OtherParent { .. })), "{refused:?}");
}

#[test]
fn stray_nullifications_are_refused() {
    for views in [vec![1], vec![4], vec![3, 2], vec![2, 2]] {
        let mut stray = on_a_notarized_parent();
        let nullifications: Vec<_> = views.iter().map(|view| nullification(*view)).collect();
        stray.nullifications = nullifications.try_into().unwrap();
        let refused = verifier().proposal(stray);
        assert!(
            matches!(refused, Err(VerifyError::StrayNullification(_))),
            "{views:?}: {refused:?}"
        );
    }
}

#[test]
fn certificates_with_foreign_or_wrong_signatures_are_refused() {
    let ballot = block(1, 1, genesis_digest(&CHAIN), 0).header.ballot();
    let mut verifier = verifier();
    assert!(
        verifier
            .certificate(Certificate::Notarization(notarization(ballot, &[1, 2, 3])))
            .is_ok()
    );

    // A notarize vote is no finalize vote.
    let signers = signers(&Vote::Notarize(ballot), &[0, 1, 2]);
    let refused = verifier.certificate(Certificate::Finalization(Finalization { ballot, signers }));
    assert_eq!(
        refused,
        Err(VerifyError::Certificate(CertificateError::BadSignature(0)))
    );

    let mut other_epoch = ballot;
    other_epoch.epoch = Epoch(1);
    let refused = verifier.certificate(Certificate::Notarization(notarization(other_epoch, &[0, 1, 2])));
    assert!(matches!(
        refused,
        Err(VerifyError::Certificate(CertificateError::WrongEpoch { .. }))
    ));
}

#[test]
fn a_vote_counts_only_for_who_signed_it() {
    let ballot = block(1, 1, genesis_digest(&CHAIN), 0).header.ballot();
    let vote = Vote::Notarize(ballot);
    let signed = |voter| SignedVote {
        vote,
        voter: NodeIdx(voter),
        signature: sign(2, &vote),
    };
    assert!(verifier().vote(signed(2)).is_ok());
    assert_eq!(verifier().vote(signed(1)), Err(VerifyError::Vote(NodeIdx(1))));
    assert_eq!(verifier().vote(signed(7)), Err(VerifyError::Vote(NodeIdx(7))));
}

#[test]
fn a_finalized_block_is_taken_by_its_proof_alone() {
    let low = block(1, 1, genesis_digest(&CHAIN), 0);
    let high = block(2, 2, low.digest(), 1);
    let ballot = high.header.ballot();
    let finalization = Finalization {
        ballot,
        signers: signers(&Vote::Finalize(ballot), &[0, 1, 3]),
    };
    let above = vec![common::block::Link::Header(high.header.clone())];
    let proof = ProofOfFinality {
        above: above.try_into().unwrap(),
        finalization: finalization.clone(),
    };
    let finalized = FinalizedBlock {
        block: low.clone(),
        proof,
    };
    assert!(verifier().finalized(finalized).is_ok());

    let bare = ProofOfFinality {
        above: Default::default(),
        finalization,
    };
    let refused = verifier().finalized(FinalizedBlock {
        block: low,
        proof: bare,
    });
    assert!(matches!(refused, Err(VerifyError::Finality(_))), "{refused:?}");
}
