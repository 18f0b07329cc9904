//! Packs bundles that nobody should send: full of rubbish, of one message again and again, of bundles, of more messages
//! than one may hold, or of none. Between the rubbish stand messages of its own that are good.

use std::collections::VecDeque;

use bytes::Bytes;
use common::{
    codec::{Blob, BoundedVec, Wire, encode},
    ids::NodeIdx,
    wire::{
        bft::{Bundle, Bundled, BundledKind},
        frame::FrameKind,
    },
};
use serde::{Deserialize, Serialize};

use super::{Actor, Hand};
use crate::ports::Leaves;

/// Between two bundles.
const PAUSE_US: u64 = 25_000;
/// Messages that it remembers.
const KEPT_MAX: usize = 64;
/// Longest piece of rubbish: as many as one bundle holds fit in it.
const RUBBISH_BYTES_MAX: u64 = (Bundle::BODIES_BYTES_MAX / Bundle::MESSAGES_MAX) as u64;
/// One above what a bundle holds.
const TOO_MANY: usize = Bundle::MESSAGES_MAX + 1;

const KINDS: [BundledKind; 4] = [
    BundledKind::Proposal,
    BundledKind::Vote,
    BundledKind::Certificate,
    BundledKind::BatchNotice,
];

/// A bundle as it is encoded, with another bound.
#[derive(Serialize, Deserialize)]
struct Wide {
    messages: BoundedVec<Bundled, TOO_MANY>,
}

impl Wire for Wide {
    const BYTES_MAX: usize = Bundle::BYTES_MAX;
}

/// See the module.
#[derive(Default)]
pub struct Packer {
    next_us: u64,
    kept: VecDeque<Bundled>,
}

fn rubbish(hand: &mut Hand) -> Bundled {
    let kind = hand.pick(&KINDS).expect("there are kinds");
    let count = hand.random.between(0, RUBBISH_BYTES_MAX);
    let noise: Vec<u8> = (0..count).map(|_| hand.random.next_u64() as u8).collect();
    let body = noise.try_into().expect("shorter than a bundle");
    Bundled { kind, body }
}

fn bundle(messages: Vec<Bundled>) -> Vec<u8> {
    let messages = messages.try_into().expect("no more than a bundle holds");
    encode(&Bundle { messages })
}

impl Packer {
    fn keep(&mut self, kind: FrameKind, body: &Bytes) {
        let kind = KINDS.into_iter().find(|known| known.frame_kind() == kind);
        let small = (body.len() as u64 <= RUBBISH_BYTES_MAX).then(|| body.to_vec().try_into().ok());
        if let (Some(kind), Some(Some(body))) = (kind, small) {
            self.kept.push_back(Bundled { kind, body });
            while self.kept.len() > KEPT_MAX {
                self.kept.pop_front();
            }
        }
    }

    fn good(&self, hand: &mut Hand) -> Option<Bundled> {
        let kept: Vec<Bundled> = self.kept.iter().cloned().collect();
        hand.pick(&kept)
    }

    fn pack(&self, hand: &mut Hand) -> Option<(&'static str, Vec<u8>)> {
        let full = Bundle::MESSAGES_MAX;
        Some(match hand.random.between(0, 4) {
            0 => {
                let mut messages: Vec<Bundled> = (0..full).map(|_| rubbish(hand)).collect();
                let at = hand.random.between(0, full as u64 - 1) as usize;
                messages[at] = self.good(hand)?;
                ("bundle of rubbish", bundle(messages))
            }
            1 => (
                "bundle of one message again and again",
                bundle(vec![self.good(hand)?; full]),
            ),
            2 => {
                let kind = hand.pick(&KINDS)?;
                let inner = bundle(self.kept.iter().take(8).cloned().collect());
                let body = inner.try_into().ok()?;
                ("bundle of bundles", bundle(vec![Bundled { kind, body }; 4]))
            }
            3 => {
                let (kind, body) = (hand.pick(&KINDS)?, Blob::default());
                let messages = vec![Bundled { kind, body }; TOO_MANY].try_into().ok()?;
                ("bundle of too many", encode(&Wide { messages }))
            }
            _ => ("bundle of nothing", bundle(Vec::new())),
        })
    }
}

impl Actor for Packer {
    fn sends(&mut self, hand: &mut Hand, _to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves {
        self.keep(kind, body);
        if hand.now_us >= self.next_us
            && let Some(to) = hand.pick(&hand.validators.clone())
            && let Some((what, packed)) = self.pack(hand)
        {
            self.next_us = hand.now_us + PAUSE_US;
            hand.did(what);
            hand.send(to, FrameKind::Bundle, packed);
        }
        Leaves::As(body.clone())
    }
}

#[cfg(test)]
mod tests {
    use common::codec::decode;

    use super::*;

    #[test]
    fn only_the_bundle_of_too_many_is_none() {
        let message = |body: Vec<u8>| Bundled {
            kind: BundledKind::Vote,
            body: body.try_into().unwrap(),
        };
        let full = bundle(vec![message(vec![1; RUBBISH_BYTES_MAX as usize]); Bundle::MESSAGES_MAX]);
        assert!(decode::<Bundle>(&full).is_ok() && full.len() <= FrameKind::Bundle.request_bytes_max());
        let wide = |count| Wide {
            messages: vec![message(Vec::new()); count].try_into().unwrap(),
        };
        assert!(decode::<Bundle>(&encode(&wide(TOO_MANY - 1))).is_ok());
        assert!(decode::<Bundle>(&encode(&wide(TOO_MANY))).is_err());
    }
}
