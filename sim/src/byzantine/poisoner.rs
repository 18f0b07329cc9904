//! Answers those who catch up with damaged goods: blocks changed, left out or in another order, proofs cut,
//! batches of others, heights that do not exist; and sends followers damaged snapshots.

use bytes::Bytes;
use common::{
    block::{Block, FinalizedBlock},
    codec::{decode, encode},
    ids::{BatchSeq, BlockTime, Height, NodeIdx},
    wire::{
        bft::SyncAnswer,
        feed::Followed,
        frame::{FrameKind, Refusal},
    },
};

use super::{Actor, Hand};
use crate::ports::Leaves;

/// An honest answer in this many.
const HONEST_ONE_IN: u64 = 4;

/// See the module.
#[derive(Default)]
pub struct Poisoner;

impl Poisoner {
    fn damage(hand: &mut Hand, blocks: &mut Vec<FinalizedBlock>) {
        let Some(last) = (blocks.len() as u64).checked_sub(1) else {
            return;
        };
        let at = hand.random.between(0, last) as usize;
        match hand.random.between(0, 5) {
            0 => blocks[at].block.header.time = BlockTime(blocks[at].block.header.time.0 + 1),
            1 => blocks[at].block.header.height = blocks[at].block.header.height.next(),
            2 => drop(blocks.remove(at)),
            3 => blocks.reverse(),
            4 => {
                let mut links = std::mem::take(&mut blocks[at].proof.above).into_inner();
                links.pop();
                blocks[at].proof.above = links.try_into().expect("fewer than there were");
                blocks[at].proof.finalization.ballot.height = Height(1);
            }
            _ => {
                let other = blocks[last as usize].proof.clone();
                blocks[at].proof = other;
                blocks.truncate(at + 1);
            }
        }
    }

    fn poisoned(hand: &mut Hand, kind: FrameKind, body: &[u8]) -> Option<Bytes> {
        match kind {
            FrameKind::Sync => {
                let mut blocks = decode::<SyncAnswer>(body).ok()?.blocks.into_inner();
                Self::damage(hand, &mut blocks);
                let blocks = blocks.try_into().ok()?;
                Some(encode(&SyncAnswer { blocks }).into())
            }
            FrameKind::Follow => {
                let mut followed = decode::<Followed>(body).ok()?;
                let mut blocks = std::mem::take(&mut followed.blocks).into_inner();
                Self::damage(hand, &mut blocks);
                followed.blocks = blocks.try_into().ok()?;
                let mut batches = std::mem::take(&mut followed.batches).into_inner();
                batches.reverse();
                batches.pop();
                followed.batches = batches.try_into().ok()?;
                followed.tip = Height(u64::MAX / 2);
                followed.next_seq = BatchSeq(u64::MAX / 2);
                Some(encode(&followed).into())
            }
            FrameKind::FetchBlock => {
                let mut block = decode::<Block>(body).ok()?;
                block.header.time = BlockTime(block.header.time.0 + 1);
                Some(encode(&block).into())
            }
            _ => None,
        }
    }
}

impl Actor for Poisoner {
    fn sends(&mut self, hand: &mut Hand, _to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves {
        if kind == FrameKind::RaftSnapshot && !body.is_empty() && !hand.one_in(HONEST_ONE_IN) {
            let mut damaged = body.to_vec();
            let at = hand.random.between(damaged.len() as u64 / 2, damaged.len() as u64 - 1) as usize;
            damaged[at] ^= 1 << hand.random.between(0, 7);
            hand.did("damaged piece of a snapshot");
            return Leaves::As(damaged.into());
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
        let Ok(body) = &answer else { return answer };
        if hand.one_in(HONEST_ONE_IN) {
            return answer;
        }
        match Self::poisoned(hand, kind, body) {
            Some(poisoned) => {
                hand.did("poisoned answer");
                Ok(poisoned)
            }
            None => answer,
        }
    }
}
