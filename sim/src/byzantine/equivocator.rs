//! Proposes two blocks in one view: one half of the validators gets the one, the other half the other, and it
//! votes for both.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use bytes::Bytes;
use common::{
    block::{Proposal, refs_root},
    certificate::{Ballot, SignedVote, Vote},
    codec::{decode, encode},
    ids::{BlockTime, NodeIdx, View},
    wire::frame::{FrameKind, Refusal},
};

use super::{Actor, Hand};
use crate::ports::Leaves;

/// Views that are remembered.
const VIEWS_MAX: usize = 256;

struct Double {
    real: Ballot,
    other: Proposal,
    /// Who gets the other one.
    camp: BTreeSet<NodeIdx>,
}

/// See the module.
#[derive(Default)]
pub struct Equivocator {
    doubles: BTreeMap<View, Double>,
}

impl Equivocator {
    /// Another block for the same place, as valid as the first one.
    fn other(hand: &mut Hand, proposal: &Proposal) -> Option<Proposal> {
        let mut other = proposal.clone();
        let header = &mut other.block.header;
        header.time = BlockTime(header.time.0 + 1);
        if hand.one_in(2) {
            other.block.refs = Vec::new().try_into().ok()?;
            header.refs_root = refs_root(&[]);
        }
        hand.sign_again(&mut other)?;
        Some(other)
    }

    fn proposes(&mut self, hand: &mut Hand, to: NodeIdx, body: &Bytes) -> Leaves {
        let honest = || Leaves::As(body.clone());
        let Ok(proposal) = decode::<Proposal>(body) else {
            return honest();
        };
        let view = proposal.block.header.view;
        if hand.set.leader(view) != hand.me {
            return honest();
        }
        if let Entry::Vacant(place) = self.doubles.entry(view) {
            let Some(other) = Self::other(hand, &proposal) else {
                return honest();
            };
            let camp = hand.validators.clone().into_iter().filter(|_| hand.one_in(2)).collect();
            let real = proposal.block.header.ballot();
            place.insert(Double { real, other, camp });
        }
        while self.doubles.len() > VIEWS_MAX {
            self.doubles.pop_first();
        }
        match self.doubles.get(&view) {
            Some(double) if double.camp.contains(&to) => {
                hand.did("second proposal");
                Leaves::As(encode(&double.other).into())
            }
            _ => honest(),
        }
    }

    /// Who got the other block gets a vote for it.
    fn votes(&mut self, hand: &mut Hand, to: NodeIdx, body: &Bytes) -> Leaves {
        let honest = || Leaves::As(body.clone());
        let Ok(signed) = decode::<SignedVote>(body) else {
            return honest();
        };
        let Some(double) = self.doubles.get(&signed.vote.view()) else {
            return honest();
        };
        if signed.voter != hand.me || !double.camp.contains(&to) {
            return honest();
        }
        let other = double.other.block.header.ballot();
        let vote = match signed.vote {
            Vote::Notarize(ballot) if ballot == double.real => Vote::Notarize(other),
            Vote::Finalize(ballot) if ballot == double.real => Vote::Finalize(other),
            _ => return honest(),
        };
        match hand.sign(vote) {
            Some(signed) => {
                hand.did("vote for the second proposal");
                Leaves::As(encode(&signed).into())
            }
            None => honest(),
        }
    }
}

impl Actor for Equivocator {
    fn sends(&mut self, hand: &mut Hand, to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves {
        match kind {
            FrameKind::Proposal => self.proposes(hand, to, body),
            FrameKind::Vote => self.votes(hand, to, body),
            _ => Leaves::As(body.clone()),
        }
    }

    /// Whoever votes for the other block has this validator's votes as well.
    fn hears(&mut self, hand: &mut Hand, _from: NodeIdx, kind: FrameKind, body: &[u8]) {
        if kind != FrameKind::Vote {
            return;
        }
        let Ok(signed) = decode::<SignedVote>(body) else { return };
        let is_other = |ballot: &Ballot| {
            let double = self.doubles.get(&ballot.view);
            double.is_some_and(|double| double.other.block.header.ballot() == *ballot)
        };
        if let Vote::Notarize(ballot) | Vote::Finalize(ballot) = signed.vote
            && is_other(&ballot)
        {
            hand.vote(signed.vote);
        }
    }

    fn answers(
        &mut self,
        _hand: &mut Hand,
        _to: NodeIdx,
        kind: FrameKind,
        request: &[u8],
        answer: Result<Bytes, Refusal>,
    ) -> Result<Bytes, Refusal> {
        let others = self.doubles.values().map(|double| &double.other.block);
        Hand::answer_with(others, kind, request, answer)
    }
}
