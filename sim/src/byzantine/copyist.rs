//! Hands out other copies of certified batches: header, certificate and so the digest are those of the good one, and one
//! entry has another signature or payload. Whoever took such a copy would execute something else than the others.

use bytes::Bytes;
use common::{
    batch::{BatchItem, CertifiedBatch},
    codec::{decode, encode},
    ids::NodeIdx,
    wire::{
        feed::Followed,
        frame::{FrameKind, Refusal},
    },
};

use super::{Actor, Hand};
use crate::ports::Leaves;

/// A good copy in this many.
const HONEST_ONE_IN: u64 = 3;

/// See the module.
#[derive(Default)]
pub struct Copyist;

/// Another copy of `batch`; `None` if it has no author's entry.
fn copied(hand: &mut Hand, batch: &CertifiedBatch) -> Option<CertifiedBatch> {
    let mut rows = batch.entries.clone().into_inner();
    let mut authors = rows.iter_mut().filter_map(|row| match &mut row.item {
        BatchItem::Author(entry) => Some(entry),
        BatchItem::Roster(_) => None,
    });
    let entry = authors.next()?;
    if hand.one_in(2) {
        entry.signature = Default::default();
        hand.did("copy with another signature");
    } else {
        entry.payload = vec![hand.random.between(0, 255) as u8].try_into().ok()?;
        hand.did("copy with another payload");
    }
    Some(CertifiedBatch {
        entries: rows.try_into().ok()?,
        ..batch.clone()
    })
}

impl Actor for Copyist {
    fn sends(&mut self, hand: &mut Hand, _to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves {
        if kind != FrameKind::SubmitBatch || hand.one_in(HONEST_ONE_IN) {
            return Leaves::As(body.clone());
        }
        let Some(batch) = decode::<CertifiedBatch>(body).ok() else {
            return Leaves::As(body.clone());
        };
        // Some are told the one, some the other.
        for to in hand.validators.clone() {
            if hand.one_in(2)
                && let Some(other) = copied(hand, &batch)
            {
                hand.send(to, kind, encode(&other));
            }
        }
        copied(hand, &batch).map_or_else(|| Leaves::As(body.clone()), |other| Leaves::As(encode(&other).into()))
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
        let other: Option<Bytes> = match kind {
            FrameKind::FetchBatch | FrameKind::FeedBatch => {
                let batch = decode::<CertifiedBatch>(body).ok();
                batch.and_then(|batch| Some(encode(&copied(hand, &batch)?).into()))
            }
            FrameKind::Follow => decode::<Followed>(body).ok().and_then(|mut followed| {
                let mut batches = std::mem::take(&mut followed.batches).into_inner();
                let other = batches.iter().find_map(|batch| copied(hand, batch))?;
                let same = batches.iter_mut().find(|batch| batch.header == other.header)?;
                *same = other;
                followed.batches = batches.try_into().ok()?;
                Some(encode(&followed).into())
            }),
            _ => None,
        };
        other.map_or(answer, Ok)
    }
}
