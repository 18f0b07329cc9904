//! Messages between a cluster's member and a validator (`muster-feed/1`): batches up, blocks down.

use serde::{Deserialize, Serialize};

use crate::{
    batch::CertifiedBatch,
    block::FinalizedBlock,
    codec::{BoundedVec, Wire},
    ids::{BatchSeq, ClusterId, Digest, Founding, Height},
};

/// What a validator says to a submitted batch ([`CertifiedBatch`] is the request's body).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BatchReceipt {
    /// Durably stored here.
    Stored,
    /// Executed before.
    Final,
    /// Held until the batches before it arrive.
    Parked {
        /// The first one missing.
        next: BatchSeq,
    },
}

impl Wire for BatchReceipt {
    const BYTES_MAX: usize = 64;
}

/// Asks for finalized blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// Cluster of the asker.
    pub cluster: ClusterId,
    /// First height wanted.
    pub from: Height,
    /// Wait this long for it to be finalized, at most 10,000 ms.
    pub wait_ms: u32,
}

impl Wire for Follow {
    const BYTES_MAX: usize = 64;
}

/// Finalized blocks of consecutive heights, and as many of their batches as fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// From the height asked for; empty if none was finalized in time.
    pub blocks: BoundedVec<FinalizedBlock, 64>,
    /// Batches of these blocks, the asker's own left out; the rest is fetched by digest.
    pub batches: BoundedVec<CertifiedBatch, 1024>,
    /// Height of the validator's last finalized block.
    pub tip: Height,
    /// Next batch that the validator's state expects of the asker's cluster.
    pub next_seq: BatchSeq,
    /// Founding of the asker's cluster in that state.
    pub founding: Founding,
}

impl Wire for Followed {
    const BYTES_MAX: usize = 1024 * 1024;
}

/// Asks for a batch by the digest of its header. Answered with a [`CertifiedBatch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchByDigest {
    /// Digest.
    pub digest: Digest,
}

impl Wire for FetchByDigest {
    const BYTES_MAX: usize = 64;
}
