//! Blocks: ordered references to certified batches, and what proves that a block is final.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    batch::CertifiedBatch,
    certificate::{Ballot, CertificateError, Finalization, Notarization, Nullification},
    codec::{Blob, BoundedVec, Wire, to_bytes},
    crypto::{
        AdmittedKey, Signature, Verified,
        preimage::{Tag, preimage},
        sha256,
    },
    genesis::padded,
    ids::{BatchSeq, BlockTime, ChainId, ClusterId, Digest, Epoch, Founding, Height, View},
    limits, merkle,
    validator_set::ValidatorSet,
};

/// Version of the block format.
pub const BLOCK_VERSION: u16 = 1;

/// A batch, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BatchRef {
    /// Whose batch.
    pub cluster: ClusterId,
    /// Of which founding.
    pub founding: Founding,
    /// Its number.
    pub seq: BatchSeq,
    /// Digest of its header.
    pub digest: Digest,
}

impl BatchRef {
    /// The name of `batch`.
    #[must_use]
    pub fn to(batch: &CertifiedBatch, chain: &ChainId) -> Self {
        let header = &batch.header;
        Self {
            cluster: header.cluster,
            founding: header.founding,
            seq: header.seq,
            digest: header.digest(chain),
        }
    }

    /// Leaf digest under `refs_root`.
    #[must_use]
    pub fn leaf(&self) -> Digest {
        merkle::leaf(&to_bytes(self))
    }
}

/// What a leader proposes and validators sign, by digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockHeader {
    /// [`BLOCK_VERSION`].
    pub version: u16,
    /// The fleet.
    pub chain: ChainId,
    /// Epoch of the set that signs.
    pub epoch: Epoch,
    /// View in which it was proposed.
    pub view: View,
    /// Parent's height + 1.
    pub height: Height,
    /// Digest of the parent's header; [`genesis_digest`] at height 1.
    pub parent: Digest,
    /// View of the parent; 0 for genesis and for the last block of an epoch.
    pub parent_view: View,
    /// Above the parent's.
    pub time: BlockTime,
    /// Root over [`BatchRef::leaf`].
    pub refs_root: Digest,
    /// State after the block [`ROOT_LAG`](limits::ROOT_LAG) below, on this block's own chain.
    pub state_root: Digest,
    /// Outcomes of the block [`ROOT_LAG`](limits::ROOT_LAG) below.
    pub outcome_root: Digest,
    /// Set that follows, on an epoch-final block.
    pub next_set: Option<Digest>,
}

impl BlockHeader {
    /// Identity of the block.
    #[must_use]
    pub fn digest(&self) -> Digest {
        sha256(&[&padded(b"muster/v1/block"), &to_bytes(self)])
    }

    /// What is voted on.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        Ballot {
            epoch: self.epoch,
            view: self.view,
            height: self.height,
            digest: self.digest(),
        }
    }
}

/// Digests of the global state and of what the last block did to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Roots {
    /// Of the whole state.
    pub state: Digest,
    /// Of the outcomes of the last block.
    pub outcomes: Digest,
}

impl Roots {
    /// The roots that `header` carries: those of the block [`ROOT_LAG`](limits::ROOT_LAG) below.
    #[must_use]
    pub fn carried_by(header: &BlockHeader) -> Self {
        Self {
            state: header.state_root,
            outcomes: header.outcome_root,
        }
    }
}

impl fmt::Display for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.state, self.outcomes)
    }
}

/// The parent of the first block.
#[must_use]
pub fn genesis_digest(chain: &ChainId) -> Digest {
    sha256(&[&padded(b"muster/v1/genesis-block"), &chain.0])
}

/// Root over references in their order.
#[must_use]
pub fn refs_root(refs: &[BatchRef]) -> Digest {
    merkle::root(&refs.iter().map(BatchRef::leaf).collect::<Vec<_>>())
}

/// A header and the references under its root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Block {
    /// The header.
    pub header: BlockHeader,
    /// In the order in which they are executed.
    pub refs: BoundedVec<BatchRef, { limits::REFS_PER_BLOCK_MAX }>,
}

impl Block {
    /// Identity.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.header.digest()
    }
}

impl Wire for Block {
    const BYTES_MAX: usize = 32 * 1024;

    fn validate(&self) -> Result<(), &'static str> {
        if self.header.version != BLOCK_VERSION {
            return Err("block format version is not 1");
        }
        if refs_root(&self.refs) != self.header.refs_root {
            return Err("refs root differs from the references");
        }
        Ok(())
    }
}

/// Why a parent may be built on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ParentProof {
    /// The parent is the genesis state.
    Genesis,
    /// The parent was notarized.
    Notarization(Notarization),
    /// The parent was finalized.
    Finalization(Finalization),
}

/// What a leader sends: a voter can check it alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Proposal {
    /// The block.
    pub block: Block,
    /// The leader's, over the block's ballot.
    pub signature: Signature,
    /// For the parent.
    pub parent_proof: ParentProof,
    /// For every view between the parent's and this one, ascending.
    pub nullifications: BoundedVec<Nullification, { limits::NULLIFICATIONS_PER_PROPOSAL_MAX }>,
}

impl Proposal {
    /// Whether the leader of the view signed the block's ballot.
    #[must_use]
    pub fn is_signed(&self, chain: &ChainId, leader: &AdmittedKey) -> bool {
        leader.verifies(
            &preimage(Tag::Proposal, chain, &self.block.header.ballot()),
            &self.signature,
        )
    }
}

impl Wire for Proposal {
    const BYTES_MAX: usize = limits::PROPOSAL_BYTES_MAX;

    fn validate(&self) -> Result<(), &'static str> {
        self.block.validate()
    }
}

/// A link of the chain from a block up to a finalization.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)]
pub enum Link {
    /// A block above.
    Header(BlockHeader),
    /// A filler above an epoch-final block.
    Filler {
        /// Epoch of the old set.
        epoch: Epoch,
        /// Its view.
        view: View,
        /// Digest of the epoch-final block.
        parent: Digest,
    },
}

impl Link {
    fn digest(&self) -> Digest {
        match self {
            Link::Header(header) => header.digest(),
            Link::Filler { epoch, view, parent } => filler_digest(*epoch, *view, parent),
        }
    }

    fn parent(&self) -> Digest {
        match self {
            Link::Header(header) => header.parent,
            Link::Filler { parent, .. } => *parent,
        }
    }
}

/// Identity of a filler.
#[must_use]
pub fn filler_digest(epoch: Epoch, view: View, parent: &Digest) -> Digest {
    sha256(&[&padded(b"muster/v1/filler"), &to_bytes(&(epoch, view, parent))])
}

/// Shows that a block is final: headers above it up to one with a finalization, and that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProofOfFinality {
    /// Above the block, ascending; empty if it has a finalization of its own.
    pub above: BoundedVec<Link, { limits::HEADERS_PER_FINALITY_PROOF_MAX }>,
    /// Of the last of these.
    pub finalization: Finalization,
}

/// Why a block is not shown to be final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FinalityError {
    /// A link does not name the one below as its parent.
    #[error("link {0} above the block does not follow")]
    BrokenLink(usize),
    /// The finalization is for something else.
    #[error("the finalization is for {got}, the chain ends at {want}")]
    OtherBlock {
        /// Finalized.
        got: Digest,
        /// Last of the chain.
        want: Digest,
    },
    /// Of another fleet.
    #[error("a block of another fleet")]
    WrongChain,
    /// The finalization is no quorum.
    #[error("finalization: {0}")]
    Certificate(#[from] CertificateError),
}

impl ProofOfFinality {
    /// Checks that `header` is final under `set`.
    ///
    /// # Errors
    /// [`FinalityError`].
    pub fn verify(&self, header: &BlockHeader, chain: &ChainId, set: &ValidatorSet) -> Result<(), FinalityError> {
        if header.chain != *chain {
            return Err(FinalityError::WrongChain);
        }
        let mut tip = header.digest();
        for (i, link) in self.above.iter().enumerate() {
            if link.parent() != tip {
                return Err(FinalityError::BrokenLink(i));
            }
            tip = link.digest();
        }
        if self.finalization.ballot.digest != tip {
            return Err(FinalityError::OtherBlock {
                got: self.finalization.ballot.digest,
                want: tip,
            });
        }
        Ok(self.finalization.verify(chain, set)?)
    }
}

/// A block with the proof that it is final.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FinalizedBlock {
    /// The block.
    pub block: Block,
    /// Its proof.
    pub proof: ProofOfFinality,
}

impl FinalizedBlock {
    /// Checks the references against the header and the proof under `set`.
    ///
    /// # Errors
    /// [`FinalityError`].
    pub fn verify(self, chain: &ChainId, set: &ValidatorSet) -> Result<Verified<Self>, FinalityError> {
        self.proof.verify(&self.block.header, chain, set)?;
        Ok(Verified::new(self))
    }
}

impl Wire for FinalizedBlock {
    const BYTES_MAX: usize = 512 * 1024;

    fn validate(&self) -> Result<(), &'static str> {
        self.block.validate()
    }
}

/// How a batch comes down in an [`Advance`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)]
pub enum AdvanceBatch {
    /// Of another cluster: the bytes.
    Full(CertifiedBatch),
    /// Of the cluster's own: the digest is enough, the outbox has the bytes.
    Own(Digest),
}

/// A finalized block with the batches it refers to, as it enters a cluster's log in parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advance {
    /// Block and proof.
    pub finalized: FinalizedBlock,
    /// In the order of the references.
    pub batches: BoundedVec<AdvanceBatch, { limits::REFS_PER_BLOCK_MAX }>,
}

impl Wire for Advance {
    const BYTES_MAX: usize = limits::ADVANCE_PARTS_MAX * limits::ADVANCE_PART_BYTES_MAX;

    fn validate(&self) -> Result<(), &'static str> {
        self.finalized.validate()?;
        if self.batches.len() != self.finalized.block.refs.len() {
            return Err("as many batches as references");
        }
        Ok(())
    }
}

/// Part `part` of `parts` of an encoded [`Advance`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvancePart {
    /// Height of the block.
    pub height: Height,
    /// Digest of the block.
    pub block: Digest,
    /// From 1.
    pub part: u16,
    /// At least 1.
    pub parts: u16,
    /// SHA-256 of all parts together: names the split.
    pub split: Digest,
    /// The bytes.
    pub bytes: Blob<{ limits::ADVANCE_PART_BYTES_MAX }>,
}

impl AdvancePart {
    /// Splits an encoded advance of the block `block` at `height`.
    #[must_use]
    pub fn split(height: Height, block: Digest, encoded: &[u8]) -> Vec<Self> {
        let chunks: Vec<&[u8]> = encoded.chunks(limits::ADVANCE_PART_BYTES_MAX).collect();
        assert!(
            (1..=limits::ADVANCE_PARTS_MAX).contains(&chunks.len()),
            "an advance is bounded and not empty"
        );
        let (parts, split) = (chunks.len() as u16, sha256(&[encoded]));
        (1..)
            .zip(chunks)
            .map(|(part, chunk)| Self {
                height,
                block,
                part,
                parts,
                split,
                bytes: chunk.to_vec().try_into().expect("chunks are cut at the bound"),
            })
            .collect()
    }
}
