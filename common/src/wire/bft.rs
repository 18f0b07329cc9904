//! Messages between validators (`muster-bft/1`). Proposals and votes stand with their types.

use serde::{Deserialize, Serialize};

use crate::{
    batch::BatchHeader,
    block::{FinalizedBlock, Proposal},
    certificate::{Finalization, Notarization, Nullification, SignedVote, Signers},
    codec::{Blob, BoundedVec, Wire},
    ids::Height,
    wire::frame::FrameKind,
};

/// A certificate, sent on once and on request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Certificate {
    /// Of a block.
    Notarization(Notarization),
    /// Of a view.
    Nullification(Nullification),
    /// Of a block, for good.
    Finalization(Finalization),
}

impl Wire for Certificate {
    const BYTES_MAX: usize = 20 * 1024;
}

/// Anything that validators push to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BftMessage {
    /// By the leader of a view.
    Proposal(Box<Proposal>),
    /// By one validator.
    Vote(SignedVote),
    /// By a quorum.
    Certificate(Certificate),
    /// "This batch waits": header and attestations, without the rows.
    BatchNotice(BatchNotice),
}

/// A certified header whose bytes the sender holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchNotice {
    /// The header.
    pub header: BatchHeader,
    /// Its attestations.
    pub attestations: Signers,
}

impl Wire for BatchNotice {
    const BYTES_MAX: usize = 16 * 1024;
}

/// What a bundled message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BundledKind {
    /// By the leader of a view.
    Proposal,
    /// By one validator.
    Vote,
    /// By a quorum.
    Certificate,
    /// "This batch waits."
    BatchNotice,
}

impl BundledKind {
    /// The kind of the frame in which it travels alone.
    #[must_use]
    pub const fn frame_kind(self) -> FrameKind {
        match self {
            Self::Proposal => FrameKind::Proposal,
            Self::Vote => FrameKind::Vote,
            Self::Certificate => FrameKind::Certificate,
            Self::BatchNotice => FrameKind::BatchNotice,
        }
    }
}

/// A message in a bundle, encoded as it travels alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundled {
    /// What it is.
    pub kind: BundledKind,
    /// Its bytes.
    pub body: Blob<{ Bundle::BODIES_BYTES_MAX }>,
}

/// Messages that waited for the same validator, oldest first. Each is judged by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// At least two, by honest hands.
    pub messages: BoundedVec<Bundled, { Bundle::MESSAGES_MAX }>,
}

impl Bundle {
    /// Messages of one bundle.
    pub const MESSAGES_MAX: usize = 64;
    /// Bytes of their bodies; a longer message travels alone.
    pub const BODIES_BYTES_MAX: usize = 64 * 1024;
}

impl Wire for Bundle {
    const BYTES_MAX: usize = Self::BODIES_BYTES_MAX + 1024;
}

/// Asks for finalized blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRequest {
    /// First height wanted.
    pub from: Height,
}

impl Wire for SyncRequest {
    const BYTES_MAX: usize = 64;
}

/// Finalized blocks of consecutive heights; verified by their proofs alone. Batches are fetched by digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncAnswer {
    /// As many as fit.
    pub blocks: BoundedVec<FinalizedBlock, 64>,
}

impl Wire for SyncAnswer {
    const BYTES_MAX: usize = 1024 * 1024;
}
