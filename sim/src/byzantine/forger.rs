//! Invents: batches with rows left out or verdicts turned, notices of batches that are not, references to
//! nothing, attestations of other batches. All of it under its own signature, and under others' that do not fit.

use bytes::Bytes;
use common::{
    batch::{Attestation, CertifiedBatch},
    block::{BatchRef, Proposal, refs_root},
    certificate::Signers,
    codec::{decode, encode},
    crypto::sha256,
    ids::{ClusterId, Digest, LogIndex, NodeIdx},
    merkle,
    verdict::Verdict,
    wire::{
        bft::BatchNotice,
        frame::{FrameKind, Refusal},
    },
};

use super::{Actor, Hand};
use crate::ports::Leaves;

/// See the module.
#[derive(Default)]
pub struct Forger;

/// `batch` with other rows, or of another place, under a header that fits them and attestations that do not.
pub(super) fn forged(hand: &mut Hand, batch: &CertifiedBatch) -> Option<CertifiedBatch> {
    let mut forged = batch.clone();
    let mut rows = std::mem::take(&mut forged.entries).into_inner();
    match hand.random.between(0, 3) {
        0 => drop(rows.pop()),
        1 => rows.reverse(),
        2 => forged.header.cluster = ClusterId(1 - forged.header.cluster.0.min(1)),
        _ => {
            let granted = rows.iter_mut().find(|row| row.verdict == Verdict::Granted)?;
            granted.index = LogIndex(granted.index.0 + 1);
        }
    }
    let leaves: Vec<Digest> = rows.iter().map(|row| row.leaf(&hand.chain)).collect();
    let header = &mut forged.header;
    header.count = u32::try_from(rows.len()).ok()?;
    header.first_index = rows.first().map_or(LogIndex(0), |row| row.index);
    header.last_index = rows.last().map_or(LogIndex(0), |row| row.index);
    header.entries_root = merkle::root(&leaves);
    forged.entries = rows.try_into().ok()?;
    if hand.one_in(2) {
        // In everybody's name, with its own signature in every place.
        let members = (hand.members.len() + 1).max(3);
        let count = batch.attestations.signatures.len().min(members);
        let signature = hand.device.sign_attestation(&hand.chain, &forged.header);
        let signed: Vec<_> = (0..count).map(|position| (position, signature)).collect();
        forged.attestations = Signers::gather(members, &signed);
    }
    (forged != *batch).then_some(forged)
}

impl Forger {
    fn refers_to_nothing(hand: &mut Hand, body: &Bytes) -> Option<Bytes> {
        let mut proposal = decode::<Proposal>(body).ok()?;
        let header = &mut proposal.block.header;
        if hand.set.leader(header.view) != hand.me || !hand.one_in(3) {
            return None;
        }
        let mut refs = proposal.block.refs.clone().into_inner();
        let digest = sha256(&[b"nothing", &hand.random.next_u64().to_be_bytes()]);
        match refs.last_mut() {
            Some(last) => last.digest = digest,
            None => refs.push(BatchRef {
                cluster: ClusterId(0),
                digest,
                founding: common::ids::Founding(0),
                seq: common::ids::BatchSeq(hand.random.between(1, 50)),
            }),
        }
        header.refs_root = refs_root(&refs);
        proposal.block.refs = refs.try_into().ok()?;
        hand.sign_again(&mut proposal)?;
        hand.did("proposal that refers to nothing");
        Some(encode(&proposal).into())
    }

    fn notice_of_nothing(hand: &mut Hand, body: &Bytes) -> Option<Bytes> {
        let mut notice = decode::<BatchNotice>(body).ok()?;
        notice.header.entries_root = sha256(&[b"nothing"]);
        notice.header.seq = notice.header.seq.next();
        hand.did("notice of no batch");
        Some(encode(&notice).into())
    }

    fn other_attestation(hand: &mut Hand, body: &Bytes) -> Option<Bytes> {
        let mut attestation = decode::<Attestation>(body).ok()?;
        attestation.digest = sha256(&[b"other", &attestation.digest.0]);
        hand.did("attestation of another batch");
        Some(encode(&attestation).into())
    }
}

impl Actor for Forger {
    fn sends(&mut self, hand: &mut Hand, _to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves {
        let forged = match kind {
            FrameKind::Proposal => Self::refers_to_nothing(hand, body),
            FrameKind::BatchNotice if hand.one_in(2) => Self::notice_of_nothing(hand, body),
            FrameKind::Attest if hand.one_in(2) => Self::other_attestation(hand, body),
            FrameKind::SubmitBatch => {
                if let Some(forged) = decode::<CertifiedBatch>(body)
                    .ok()
                    .and_then(|batch| forged(hand, &batch))
                {
                    hand.did("forged batch");
                    hand.tell_validators(kind, &forged);
                }
                None
            }
            _ => None,
        };
        Leaves::As(forged.unwrap_or_else(|| body.clone()))
    }

    fn answers(
        &mut self,
        hand: &mut Hand,
        _to: NodeIdx,
        kind: FrameKind,
        _request: &[u8],
        answer: Result<Bytes, Refusal>,
    ) -> Result<Bytes, Refusal> {
        let is_batch = matches!(kind, FrameKind::FetchBatch | FrameKind::FeedBatch);
        if is_batch
            && let Ok(body) = &answer
            && let Ok(batch) = decode::<CertifiedBatch>(body)
            && let Some(forged) = forged(hand, &batch)
        {
            hand.did("answered with a forged batch");
            return Ok(encode(&forged).into());
        }
        answer
    }
}
