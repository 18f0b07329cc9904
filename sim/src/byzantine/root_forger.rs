//! Proposes blocks that are right in all but their roots: it claims a state, or outcomes, that nobody computed, or
//! those of an older block. It votes for them, and hands them to whoever asks.
//!
//! Everybody gets the same block: an honest validator must refuse it for its roots alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{
    block::Proposal,
    certificate::{Ballot, SignedVote, Vote},
    codec::{decode, encode},
    crypto::sha256,
    ids::{Digest, NodeIdx, View},
    wire::frame::{FrameKind, Refusal},
};

use super::{Actor, Hand};
use crate::ports::Leaves;

/// Views that are remembered.
const VIEWS_MAX: usize = 256;

/// State and outcomes, as a header carries them.
type Roots = (Digest, Digest);

/// A block with wrong roots, in the place of the real one.
struct Lie {
    real: Ballot,
    proposal: Proposal,
    what: &'static str,
}

/// See the module.
#[derive(Default)]
pub struct RootForger {
    lies: BTreeMap<View, Lie>,
    /// The last roots that anybody proposed, and other ones before.
    last: Option<Roots>,
    older: Option<Roots>,
}

impl RootForger {
    fn note(&mut self, roots: Roots) {
        if self.last != Some(roots) {
            self.older = self.last.replace(roots);
        }
    }

    fn lie(&self, hand: &mut Hand, proposal: &Proposal) -> Option<Lie> {
        let real = proposal.block.header.ballot();
        let mut proposal = proposal.clone();
        let header = &mut proposal.block.header;
        // Where nothing happened the old roots are the right ones.
        let older = (self.older).filter(|older| *older != (header.state_root, header.outcome_root));
        let what = match (hand.random.between(0, 2), older) {
            (0, _) => {
                header.state_root = sha256(&[b"no such state", &header.state_root.0]);
                "proposal with a wrong state root"
            }
            (1, Some(older)) => {
                (header.state_root, header.outcome_root) = older;
                "proposal with older roots"
            }
            _ => {
                header.outcome_root = sha256(&[b"no such outcomes", &header.outcome_root.0]);
                "proposal with a wrong outcome root"
            }
        };
        hand.sign_again(&mut proposal)?;
        Some(Lie { real, proposal, what })
    }

    fn proposes(&mut self, hand: &mut Hand, body: &Bytes) -> Option<Bytes> {
        let proposal = decode::<Proposal>(body).ok()?;
        let header = &proposal.block.header;
        if hand.set.leader(header.view) != hand.me {
            return None;
        }
        if !self.lies.contains_key(&header.view) {
            let lie = self.lie(hand, &proposal)?;
            self.lies.insert(header.view, lie);
        }
        while self.lies.len() > VIEWS_MAX {
            self.lies.pop_first();
        }
        let lie = self.lies.get(&header.view)?;
        hand.did(lie.what);
        Some(encode(&lie.proposal).into())
    }

    fn votes(&self, hand: &mut Hand, body: &Bytes) -> Option<Bytes> {
        let signed = decode::<SignedVote>(body)
            .ok()
            .filter(|signed| signed.voter == hand.me)?;
        let lie = self.lies.get(&signed.vote.view())?;
        let wrong = lie.proposal.block.header.ballot();
        let vote = match signed.vote {
            Vote::Notarize(ballot) if ballot == lie.real => Vote::Notarize(wrong),
            Vote::Finalize(ballot) if ballot == lie.real => Vote::Finalize(wrong),
            _ => return None,
        };
        let signed = hand.sign(vote)?;
        hand.did("vote for wrong roots");
        Some(encode(&signed).into())
    }
}

impl Actor for RootForger {
    fn sends(&mut self, hand: &mut Hand, _to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves {
        let lie = match kind {
            FrameKind::Proposal => self.proposes(hand, body),
            FrameKind::Vote => self.votes(hand, body),
            _ => None,
        };
        Leaves::As(lie.unwrap_or_else(|| body.clone()))
    }

    fn hears(&mut self, _hand: &mut Hand, _from: NodeIdx, kind: FrameKind, body: &[u8]) {
        if kind == FrameKind::Proposal
            && let Ok(proposal) = decode::<Proposal>(body)
        {
            let header = &proposal.block.header;
            self.note((header.state_root, header.outcome_root));
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
        let lies = self.lies.values().map(|lie| &lie.proposal.block);
        Hand::answer_with(lies, kind, request, answer)
    }
}
