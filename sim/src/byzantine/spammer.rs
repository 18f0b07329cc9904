//! Sends more than anybody asked for: rubbish of every kind, votes for views far ahead, dear questions.

use bytes::Bytes;
use common::{
    certificate::{Ballot, NullifyBallot, Signers, Vote},
    codec::encode,
    crypto::sha256,
    ids::{ClusterId, Digest, Epoch, Height, NodeIdx, View},
    wire::{
        bft::{Certificate, SyncRequest},
        feed::{FetchByDigest, Follow},
        frame::FrameKind,
    },
};

use super::{Actor, Hand};
use crate::ports::Leaves;

/// Between two bursts.
const PAUSE_US: u64 = 25_000;
/// Requests of a burst.
const BURST: usize = 6;
/// Longest piece of rubbish.
const RUBBISH_BYTES_MAX: u64 = 8 * 1024;

/// See the module.
#[derive(Default)]
pub struct Spammer {
    next_us: u64,
}

impl Spammer {
    fn burst(&mut self, hand: &mut Hand) {
        if hand.now_us < self.next_us {
            return;
        }
        self.next_us = hand.now_us + PAUSE_US;
        for _ in 0..BURST {
            let everybody = hand.everybody();
            let Some(to) = hand.pick(&everybody) else { return };
            let (kind, body) = Self::rubbish(hand);
            hand.did("unasked request");
            hand.send(to, kind, body);
        }
    }

    fn digest(hand: &mut Hand) -> Digest {
        sha256(&[&hand.random.next_u64().to_be_bytes()])
    }

    fn rubbish(hand: &mut Hand) -> (FrameKind, Bytes) {
        let (epoch, view) = (Epoch(0), View(hand.random.between(1, 1_000_000)));
        let digest = Self::digest(hand);
        match hand.random.between(0, 7) {
            0 if hand.consensus.is_some() => {
                let vote = if hand.one_in(2) {
                    Vote::Nullify(NullifyBallot { epoch, view })
                } else {
                    Vote::Finalize(Ballot {
                        epoch,
                        view,
                        height: Height(view.0),
                        digest,
                    })
                };
                let signed = hand.sign(vote).expect("it has a consensus key");
                (FrameKind::Vote, encode(&signed).into())
            }
            1 => {
                let signature = hand
                    .device
                    .sign_attestation(&hand.chain, &common::batch::BatchHeader::default());
                let signers = Signers::gather(
                    hand.set.members().len(),
                    &[(0, signature), (1, signature), (2, signature)],
                );
                let ballot = NullifyBallot { epoch, view };
                let certificate = Certificate::Nullification(common::certificate::Nullification { ballot, signers });
                (FrameKind::Certificate, encode(&certificate).into())
            }
            2 => (FrameKind::Sync, encode(&SyncRequest { from: Height(1) }).into()),
            3 => (FrameKind::FetchBatch, encode(&FetchByDigest { digest }).into()),
            4 => (FrameKind::FetchBlock, encode(&FetchByDigest { digest }).into()),
            5 => {
                let follow = Follow {
                    cluster: ClusterId(0),
                    from: Height(hand.random.between(1, 1_000)),
                    wait_ms: 10_000,
                };
                (FrameKind::Follow, encode(&follow).into())
            }
            _ => Self::noise(hand),
        }
    }

    /// Random bytes as some kind of request.
    fn noise(hand: &mut Hand) -> (FrameKind, Bytes) {
        let kinds: Vec<FrameKind> = FrameKind::ALL.iter().copied().filter(|kind| !kind.is_lane()).collect();
        let kind = hand.pick(&kinds).expect("there are kinds");
        let most = RUBBISH_BYTES_MAX.min(kind.request_bytes_max() as u64);
        let bytes = hand.random.between(0, most);
        let noise: Vec<u8> = (0..bytes).map(|_| hand.random.next_u64() as u8).collect();
        (kind, noise.into())
    }
}

impl Actor for Spammer {
    fn sends(&mut self, hand: &mut Hand, _to: NodeIdx, _kind: FrameKind, body: &Bytes) -> Leaves {
        self.burst(hand);
        Leaves::As(body.clone())
    }

    fn hears(&mut self, hand: &mut Hand, _from: NodeIdx, _kind: FrameKind, _body: &[u8]) {
        self.burst(hand);
    }
}
