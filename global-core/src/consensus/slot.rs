//! What is known of one view: the leader's proposal, single votes, certificates.

use std::collections::BTreeMap;

use common::{
    block::Proposal,
    certificate::{Finalization, Notarization, Nullification, SignedVote, Vote},
    ids::Digest,
};

/// The first proposal of a view's leader that reached this validator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    /// As it came.
    pub proposal: Box<Proposal>,
    /// Of its block.
    pub digest: Digest,
    /// Its time was too far below the clock when it came.
    pub is_too_old: bool,
}

/// One view.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The leader's proposal.
    pub proposal: Option<Held>,
    /// Quorum of notarize votes.
    pub notarization: Option<Notarization>,
    /// Quorum of nullify votes.
    pub nullification: Option<Nullification>,
    /// Quorum of finalize votes.
    pub finalization: Option<Finalization>,
    notarize: BTreeMap<usize, SignedVote>,
    nullify: BTreeMap<usize, SignedVote>,
    finalize: BTreeMap<usize, SignedVote>,
}

/// What became of a single vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// It counts.
    New,
    /// It was here.
    Known,
    /// The voter said something else before. The first one counts.
    Conflict(SignedVote),
}

impl Slot {
    /// Counts the vote of the validator at `position`: one per validator and kind.
    pub fn count(&mut self, position: usize, vote: SignedVote) -> Counted {
        let opposite = match vote.vote {
            Vote::Finalize(_) => self.nullify.get(&position),
            Vote::Nullify(_) => self.finalize.get(&position),
            Vote::Notarize(_) => None,
        };
        let opposite = opposite.copied();
        let votes = match vote.vote {
            Vote::Notarize(_) => &mut self.notarize,
            Vote::Nullify(_) => &mut self.nullify,
            Vote::Finalize(_) => &mut self.finalize,
        };
        match votes.get(&position) {
            // Different content only: another signature under the same content says nothing.
            Some(before) if before.vote == vote.vote => Counted::Known,
            Some(before) => Counted::Conflict(*before),
            None => {
                votes.insert(position, vote);
                opposite.map_or(Counted::New, Counted::Conflict)
            }
        }
    }

    /// Whether exactly this vote of the validator at `position` was counted.
    #[must_use]
    pub fn has_counted(&self, position: usize, vote: &Vote) -> bool {
        let votes = match vote {
            Vote::Notarize(_) => &self.notarize,
            Vote::Nullify(_) => &self.nullify,
            Vote::Finalize(_) => &self.finalize,
        };
        votes.get(&position).is_some_and(|counted| counted.vote == *vote)
    }

    /// Whether a quorum of this kind of votes is known already.
    #[must_use]
    pub fn has_certificate(&self, vote: &Vote) -> bool {
        match vote {
            Vote::Notarize(_) => self.notarization.is_some(),
            Vote::Nullify(_) => self.nullification.is_some(),
            Vote::Finalize(_) => self.finalization.is_some(),
        }
    }

    /// Who cast exactly this vote, ascending by position.
    #[must_use]
    pub fn supporters(&self, vote: &Vote) -> Vec<(usize, SignedVote)> {
        let votes = match vote {
            Vote::Notarize(_) => &self.notarize,
            Vote::Nullify(_) => &self.nullify,
            Vote::Finalize(_) => &self.finalize,
        };
        let same = votes.iter().filter(|(_, signed)| signed.vote == *vote);
        same.map(|(position, signed)| (*position, *signed)).collect()
    }

    /// The vote of the validator at `position` if it is exactly this one.
    #[must_use]
    pub fn signed_by(&self, position: usize, vote: &Vote) -> Option<SignedVote> {
        self.supporters(vote)
            .into_iter()
            .find(|(p, _)| *p == position)
            .map(|(_, signed)| signed)
    }

    /// Whether a quorum agreed on this block.
    #[must_use]
    pub fn is_agreed(&self, digest: &Digest) -> bool {
        self.notarization.as_ref().is_some_and(|n| n.ballot.digest == *digest)
            || self.finalization.as_ref().is_some_and(|f| f.ballot.digest == *digest)
    }
}
