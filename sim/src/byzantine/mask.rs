//! Hides from a hacked process what was signed with its key behind its back.
//!
//! # Rules
//! * Every vote and proposal that the process itself sends is noted: its guard knows these.
//! * A message that bears another signature of its key is not heard by it.
//! * In finalized blocks, a finalization that bears one is replaced by a later one that bears none.
//!
//! # Why
//! A validator that meets its own signature under something that it never signed stops for good, as it
//! should. An enemy would not let it see that.

use std::collections::BTreeSet;

use bytes::Bytes;
use common::{
    block::{FinalizedBlock, Link, ParentProof, Proposal},
    certificate::{Ballot, Finalization, Notarization, Nullification, SignedVote, Signers, Vote},
    codec::{decode, encode},
    ids::NodeIdx,
    validator_set::ValidatorSet,
    wire::{
        bft::{Bundle, Certificate, SyncAnswer},
        frame::FrameKind,
    },
};

/// What the process itself signed.
#[derive(Clone)]
pub struct Mask {
    me: NodeIdx,
    set: ValidatorSet,
    votes: BTreeSet<Vote>,
    proposals: BTreeSet<Ballot>,
}

impl Mask {
    /// For the process `me`, a validator of `set` or not.
    #[must_use]
    pub fn new(me: NodeIdx, set: ValidatorSet) -> Self {
        Self {
            me,
            set,
            votes: BTreeSet::new(),
            proposals: BTreeSet::new(),
        }
    }

    /// The process sends this.
    pub fn note(&mut self, kind: FrameKind, body: &[u8]) {
        match kind {
            FrameKind::Vote => {
                if let Ok(signed) = decode::<SignedVote>(body)
                    && signed.voter == self.me
                {
                    self.votes.insert(signed.vote);
                }
            }
            FrameKind::Proposal => {
                if let Ok(proposal) = decode::<Proposal>(body)
                    && self.set.leader(proposal.block.header.view) == self.me
                {
                    self.proposals.insert(proposal.block.header.ballot());
                }
            }
            _ => {}
        }
    }

    /// Votes that it cast and `before` did not.
    #[must_use]
    pub fn votes_beyond(&self, before: &Self) -> Vec<Vote> {
        self.votes.difference(&before.votes).copied().collect()
    }

    fn is_secret(&self, signers: &Signers, vote: Vote) -> bool {
        let Some(position) = self.set.position(self.me) else {
            return false;
        };
        let positions = signers.positions(self.set.members().len());
        !self.votes.contains(&vote) && positions.is_ok_and(|positions| positions.contains(&position))
    }

    fn is_secret_certificate(&self, certificate: &Certificate) -> bool {
        match certificate {
            Certificate::Notarization(Notarization { ballot, signers }) => {
                self.is_secret(signers, Vote::Notarize(*ballot))
            }
            Certificate::Nullification(Nullification { ballot, signers }) => {
                self.is_secret(signers, Vote::Nullify(*ballot))
            }
            Certificate::Finalization(Finalization { ballot, signers }) => {
                self.is_secret(signers, Vote::Finalize(*ballot))
            }
        }
    }

    fn is_secret_proposal(&self, proposal: &Proposal) -> bool {
        let header = &proposal.block.header;
        let is_secret_parent = match &proposal.parent_proof {
            ParentProof::Genesis => false,
            ParentProof::Notarization(n) => self.is_secret(&n.signers, Vote::Notarize(n.ballot)),
            ParentProof::Finalization(f) => self.is_secret(&f.signers, Vote::Finalize(f.ballot)),
        };
        let is_mine = self.set.leader(header.view) == self.me;
        is_secret_parent
            || is_mine && !self.proposals.contains(&header.ballot())
            || (proposal.nullifications.iter()).any(|n| self.is_secret(&n.signers, Vote::Nullify(n.ballot)))
    }

    /// Whether the process must not see this request.
    #[must_use]
    pub fn hides(&self, kind: FrameKind, body: &[u8]) -> bool {
        match kind {
            FrameKind::Vote => decode::<SignedVote>(body)
                .is_ok_and(|signed| signed.voter == self.me && !self.votes.contains(&signed.vote)),
            FrameKind::Certificate => {
                decode::<Certificate>(body).is_ok_and(|certificate| self.is_secret_certificate(&certificate))
            }
            FrameKind::Proposal => decode::<Proposal>(body).is_ok_and(|proposal| self.is_secret_proposal(&proposal)),
            FrameKind::Bundle => decode::<Bundle>(body).is_ok_and(|bundle| {
                let mut messages = bundle.messages.iter();
                messages.any(|message| self.hides(message.kind.frame_kind(), &message.body))
            }),
            _ => false,
        }
    }

    /// An answer without what the process must not see.
    #[must_use]
    pub fn clean(&self, kind: FrameKind, answer: Bytes) -> Bytes {
        if kind != FrameKind::Sync {
            return answer;
        }
        let Ok(sync) = decode::<SyncAnswer>(&answer) else {
            return answer;
        };
        let blocks = self.clean_blocks(sync.blocks.into_inner());
        let blocks = blocks.try_into().expect("not more than there were");
        encode(&SyncAnswer { blocks }).into()
    }

    /// The blocks with proofs that bear no secret of mine, up to the first that has none.
    fn clean_blocks(&self, mut blocks: Vec<FinalizedBlock>) -> Vec<FinalizedBlock> {
        let is_clean = |block: &FinalizedBlock| {
            let finalization = &block.proof.finalization;
            !self.is_secret(&finalization.signers, Vote::Finalize(finalization.ballot))
        };
        let mut clean: Option<FinalizedBlock> = None;
        let mut dirty_above = blocks.len();
        for at in (0..blocks.len()).rev() {
            if is_clean(&blocks[at]) {
                clean = Some(blocks[at].clone());
                continue;
            }
            let proof = clean.as_ref().and_then(|above| {
                let mut proof = above.proof.clone();
                let mut links = vec![Link::Header(above.block.header.clone())];
                links.extend(proof.above.iter().cloned());
                proof.above = links.try_into().ok()?;
                Some(proof)
            });
            match proof {
                Some(proof) => {
                    blocks[at].proof = proof;
                    clean = Some(blocks[at].clone());
                }
                None => {
                    dirty_above = at;
                    clean = None;
                }
            }
        }
        blocks.truncate(dirty_above);
        blocks
    }
}

#[cfg(test)]
mod tests {
    use common::{
        certificate::NullifyBallot,
        ids::{Digest, Epoch, View},
        testing::{BlockChain, Fleet},
    };

    use super::*;

    fn mask(fleet: &Fleet) -> Mask {
        Mask::new(fleet.idx("v1"), fleet.set.clone())
    }

    #[test]
    fn own_votes_are_heard_and_secret_ones_are_not() {
        let fleet = Fleet::dev();
        let mut mask = mask(&fleet);
        let vote = |label, view| {
            let ballot = NullifyBallot {
                epoch: Epoch(0),
                view: View(view),
            };
            encode(&fleet.vote(label, Vote::Nullify(ballot)))
        };
        mask.note(FrameKind::Vote, &vote("v1", 4));
        assert!(!mask.hides(FrameKind::Vote, &vote("v1", 4)));
        assert!(mask.hides(FrameKind::Vote, &vote("v1", 5)));
        assert!(!mask.hides(FrameKind::Vote, &vote("v2", 5)));
        let certificate = |view| encode(&Certificate::Nullification(fleet.nullification(View(view))));
        assert!(!mask.hides(FrameKind::Certificate, &certificate(4)));
        assert!(mask.hides(FrameKind::Certificate, &certificate(5)));
    }

    #[test]
    fn finalizations_with_a_secret_vote_give_way_to_later_ones() {
        let fleet = Fleet::dev();
        let mut chain = BlockChain::new(&fleet, Digest::default());
        let blocks: Vec<FinalizedBlock> = (0..3).map(|_| fleet.finalize(chain.block(&fleet, &[], 20))).collect();
        let answer = encode(&SyncAnswer {
            blocks: blocks.clone().try_into().unwrap(),
        });
        let mut mask = mask(&fleet);
        let cleaned = |mask: &Mask| {
            let bytes = mask.clean(FrameKind::Sync, answer.clone().into());
            decode::<SyncAnswer>(&bytes).unwrap().blocks.into_inner()
        };
        assert!(cleaned(&mask).is_empty(), "v1 signed all of them");
        // The last finalization is its own; the two below rest on it then.
        let last = fleet.vote("v1", Vote::Finalize(blocks[2].block.header.ballot()));
        mask.note(FrameKind::Vote, &encode(&last));
        let cleaned = cleaned(&mask);
        assert_eq!(cleaned.len(), 3);
        for block in cleaned {
            assert_eq!(block.proof.finalization, blocks[2].proof.finalization);
            assert!(block.verify(&fleet.chain, &fleet.set).is_ok());
        }
    }
}
