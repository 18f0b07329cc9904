//! Holds back what others wait for, some kinds of it at a time: votes, certificates, proposals, notices,
//! attestations, batches on their way up, and the answers to those who fetch.

use bytes::Bytes;
use common::{
    ids::NodeIdx,
    wire::frame::{FrameKind, Refusal, RefusalCode},
};

use super::{Actor, Hand};
use crate::{ports::Leaves, random::Stream};

/// What may be held back.
const KINDS: [FrameKind; 12] = [
    FrameKind::Vote,
    FrameKind::Certificate,
    FrameKind::Proposal,
    FrameKind::BatchNotice,
    FrameKind::FetchBlock,
    FrameKind::FetchBatch,
    FrameKind::Sync,
    FrameKind::Follow,
    FrameKind::FeedBatch,
    FrameKind::Attest,
    FrameKind::SubmitBatch,
    FrameKind::Linearize,
];
/// After this time it holds back other kinds.
const PERIOD_US: u64 = 2_000_000;

/// See the module.
#[derive(Default)]
pub struct Withholder {
    seed: Option<u64>,
}

impl Withholder {
    /// Half of the kinds, others in each period.
    fn holds_back(&mut self, hand: &mut Hand, kind: FrameKind) -> bool {
        let seed = *self.seed.get_or_insert_with(|| hand.random.next_u64());
        let Some(at) = KINDS.iter().position(|known| *known == kind) else {
            return false;
        };
        let period = hand.now_us / PERIOD_US;
        let is_held = Stream::split(seed, period << 8 | at as u64).between(0, 1) == 1;
        if is_held {
            hand.did("held back");
        }
        is_held
    }
}

impl Actor for Withholder {
    fn sends(&mut self, hand: &mut Hand, _to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves {
        let is_own_question = matches!(
            kind,
            FrameKind::FetchBlock | FrameKind::FetchBatch | FrameKind::Sync | FrameKind::Follow | FrameKind::FeedBatch
        );
        if !is_own_question && self.holds_back(hand, kind) {
            return Leaves::Never;
        }
        Leaves::As(body.clone())
    }

    fn answers(
        &mut self,
        hand: &mut Hand,
        _to: NodeIdx,
        kind: FrameKind,
        _request: &[u8],
        answer: Result<Bytes, Refusal>,
    ) -> Result<Bytes, Refusal> {
        if answer.as_ref().is_ok_and(|body| !body.is_empty()) && self.holds_back(hand, kind) {
            return Err(Refusal::new(RefusalCode::NotFound, "not here"));
        }
        answer
    }
}
