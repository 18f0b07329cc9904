//! Messages between validators (`muster-bft/1`). Proposals and votes stand with their types.

use serde::{Deserialize, Serialize};

use crate::{
    batch::BatchHeader,
    block::{FinalizedBlock, Proposal},
    certificate::{Finalization, Notarization, Nullification, SignedVote, Signers},
    codec::{BoundedVec, Wire},
    ids::Height,
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
