//! Votes for everything that anybody votes for or proposes, and against it: every quorum may count on it.

use std::collections::BTreeSet;

use bytes::Bytes;
use common::{
    block::Proposal,
    certificate::{NullifyBallot, SignedVote, Vote},
    codec::decode,
    ids::NodeIdx,
    wire::frame::FrameKind,
};

use super::{Actor, Hand};
use crate::ports::Leaves;

/// Votes that are remembered as cast.
const VOTES_MAX: usize = 2_048;

/// See the module.
#[derive(Default)]
pub struct DoubleVoter {
    cast: BTreeSet<Vote>,
}

impl DoubleVoter {
    fn cast(&mut self, hand: &mut Hand, vote: Vote) {
        if self.cast.insert(vote) {
            hand.did("vote beside its own");
            hand.vote(vote);
        }
        while self.cast.len() > VOTES_MAX {
            let lowest = self.cast.iter().min_by_key(|vote| vote.view()).copied();
            lowest.map(|vote| self.cast.remove(&vote));
        }
    }

    fn against(vote: Vote) -> Vote {
        Vote::Nullify(NullifyBallot {
            epoch: vote.epoch(),
            view: vote.view(),
        })
    }
}

impl Actor for DoubleVoter {
    fn sends(&mut self, hand: &mut Hand, _to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves {
        if kind == FrameKind::Vote
            && let Ok(signed) = decode::<SignedVote>(body)
        {
            self.cast(hand, Self::against(signed.vote));
        }
        Leaves::As(body.clone())
    }

    fn hears(&mut self, hand: &mut Hand, from: NodeIdx, kind: FrameKind, body: &[u8]) {
        match kind {
            FrameKind::Vote => {
                if let Ok(signed) = decode::<SignedVote>(body)
                    && signed.voter != hand.me
                {
                    self.cast(hand, signed.vote);
                    // Once more to the voter: it sends again what it has no answer to.
                    if let Some(mine) = hand.sign(signed.vote) {
                        hand.send(from, kind, common::codec::encode(&mine));
                    }
                }
            }
            FrameKind::Proposal => {
                if let Ok(proposal) = decode::<Proposal>(body) {
                    let ballot = proposal.block.header.ballot();
                    self.cast(hand, Vote::Notarize(ballot));
                    self.cast(hand, Vote::Finalize(ballot));
                    self.cast(hand, Self::against(Vote::Finalize(ballot)));
                }
            }
            _ => {}
        }
    }
}
