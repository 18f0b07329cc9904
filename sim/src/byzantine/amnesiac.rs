//! Lives on a backup of its disk, guard and all, and does not know how it voted since: it votes again, and
//! casts the votes that contradict the forgotten ones besides.

use std::collections::BTreeMap;

use common::{
    block::Proposal,
    certificate::{Ballot, NullifyBallot, Vote},
    codec::decode,
    ids::{NodeIdx, View},
    wire::frame::FrameKind,
};

use super::{Actor, Hand};

/// Views of which it remembers a block.
const VIEWS_MAX: usize = 64;

/// See the module. When the backups are made, and when it falls back on one, is decided in `fleet`.
#[derive(Default)]
pub struct Amnesiac {
    seen: BTreeMap<View, Ballot>,
}

impl Actor for Amnesiac {
    fn hears(&mut self, _hand: &mut Hand, _from: NodeIdx, kind: FrameKind, body: &[u8]) {
        if kind == FrameKind::Proposal
            && let Ok(proposal) = decode::<Proposal>(body)
        {
            let ballot = proposal.block.header.ballot();
            self.seen.insert(ballot.view, ballot);
            while self.seen.len() > VIEWS_MAX {
                self.seen.pop_first();
            }
        }
    }

    fn forgot(&mut self, hand: &mut Hand, forgotten: &[Vote]) {
        for vote in forgotten {
            let contrary = match vote {
                Vote::Notarize(ballot) | Vote::Finalize(ballot) => Some(Vote::Nullify(NullifyBallot {
                    epoch: ballot.epoch,
                    view: ballot.view,
                })),
                Vote::Nullify(ballot) => self.seen.get(&ballot.view).copied().map(Vote::Finalize),
            };
            if let Some(contrary) = contrary {
                hand.did("vote against a forgotten one");
                hand.vote(contrary);
            }
        }
    }
}
