//! How finalized blocks come back: collects the parts of a block and checks it.
//!
//! In: `GlobalAdvance` parts. Out: a checked block with its batches. Called by:
//! [`queue`](crate::queue) in `apply`, and by followers before they append.
//!
//! # Rules
//! * Part 1 of the next height discards what was collected. Part k counts only if part k - 1 of the
//!   same split came last. Anything else is a no-op, a height other than the next included.
//! * The block takes effect at its last part, if it is final under the validator set that this log
//!   proves and its batches are those it refers to; otherwise it is a no-op.
//! * The own cluster's batches come as digests only. One unlike the outbox's is [`Quarantined`].
//!
//! # Invariants
//! * agreement: the global queue here is the one of the finalized chain at its height.
//!
//! # Why
//! Whoever leads may have died between two parts, so parts of several leaders may mix; the digest of
//! the split tells them apart. Collected parts are state: every member discards alike.
//!
//! [`Quarantined`]: crate::queue::QueueEvent::Quarantined

use common::{
    batch::{BatchError, CertifiedBatch},
    block::{Advance, AdvanceBatch, AdvancePart, BatchRef, FinalityError, FinalizedBlock},
    codec::{DecodeError, decode},
    crypto::{Verified, sha256},
    ids::{ChainId, ClusterId, Digest, Height},
    limits::{ADVANCE_PART_BYTES_MAX, ADVANCE_PARTS_MAX},
    recall::{Room, recalled},
    validator_set::ValidatorSet,
};
use serde::{Deserialize, Serialize};

use crate::Shared;

/// Parts of the next block that came so far. Part of the replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    height: Height,
    block: Digest,
    split: Digest,
    parts: u16,
    /// Travels beside the rest: up to 32 MiB.
    #[serde(skip)]
    bytes: Vec<Shared<Vec<u8>>>,
}

/// What became of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It changed nothing.
    Ignored,
    /// It was kept, more are needed.
    Kept,
    /// It was the last.
    Complete(Joined),
}

/// The parts of a block one after another, with the digest of their split: an encoded [`Advance`]. Made by
/// [`Collected::take`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined(Vec<u8>);

impl Collected {
    /// Height and number of parts collected.
    #[must_use]
    pub fn progress(&self) -> (Height, u16) {
        (self.height, self.bytes.len() as u16)
    }

    /// The bytes of the parts, in order.
    pub(crate) fn bytes(&self) -> impl ExactSizeIterator<Item = &Vec<u8>> {
        self.bytes.iter().map(|part| &**part)
    }

    /// Puts a part of a snapshot back.
    pub(crate) fn put_back(&mut self, part: Vec<u8>) {
        self.bytes.push(Shared::new(part));
    }

    /// Takes a part for the block at `next`.
    pub fn take(&mut self, next: Height, part: &AdvancePart) -> Taken {
        if part.height != next || check_shape(part).is_err() {
            return Taken::Ignored;
        }
        if part.part == 1 {
            *self = Self {
                height: part.height,
                block: part.block,
                split: part.split,
                parts: part.parts,
                bytes: Vec::new(),
            };
        }
        let is_next = self.height == part.height
            && self.block == part.block
            && self.split == part.split
            && self.parts == part.parts
            && self.bytes.len() + 1 == usize::from(part.part);
        if !is_next {
            return Taken::Ignored;
        }
        if part.part < part.parts {
            self.bytes.push(Shared::new(part.bytes.to_vec()));
            return Taken::Kept;
        }
        let before = core::mem::take(self).bytes;
        let before = before.iter().map(|bytes| bytes.as_slice());
        let bytes = before.chain([&part.bytes[..]]).collect::<Vec<_>>().concat();
        if sha256(&[&bytes]) == part.split {
            Taken::Complete(Joined(bytes))
        } else {
            Taken::Ignored
        }
    }
}

/// Why a part or a block is refused before append, and a no-op in `apply`. The proposer's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdvanceError {
    /// Part numbers or sizes do not fit.
    #[error("part {part} of {parts} with {bytes} bytes is malformed")]
    Part {
        /// Number of the part.
        part: u16,
        /// Of how many.
        parts: u16,
        /// Its size.
        bytes: usize,
    },
    /// The parts do not have the digest they name.
    #[error("the parts do not have the digest of the split")]
    Split,
    /// The parts are no advance.
    #[error("the parts do not decode: {0}")]
    Decode(#[from] DecodeError),
    /// The block is not the one that the parts name.
    #[error("the parts name block {want} at {want_height}, they hold {got} at {got_height}")]
    OtherBlock {
        /// Held.
        got: Digest,
        /// Held height.
        got_height: Height,
        /// Named.
        want: Digest,
        /// Named height.
        want_height: Height,
    },
    /// The block is not shown to be final.
    #[error("{0}")]
    Finality(#[from] FinalityError),
    /// A batch is not the one that the block refers to.
    #[error("batch {0} of the block is not the one it refers to")]
    OtherBatch(usize),
    /// Only the own cluster's batches may come as a digest.
    #[error("batch {0} of the block is of another cluster and came without bytes")]
    MissingBytes(usize),
    /// The rows of a batch are not those of its header.
    #[error("batch {0} of the block: {1}")]
    Content(usize, BatchError),
}

fn check_shape(part: &AdvancePart) -> Result<(), AdvanceError> {
    let is_numbered =
        (1..=ADVANCE_PARTS_MAX).contains(&usize::from(part.parts)) && (1..=part.parts).contains(&part.part);
    let is_full = part.bytes.len() == ADVANCE_PART_BYTES_MAX;
    let is_sized = !part.bytes.is_empty() && (is_full || part.part == part.parts);
    if is_numbered && is_sized {
        return Ok(());
    }
    Err(AdvanceError::Part {
        part: part.part,
        parts: part.parts,
        bytes: part.bytes.len(),
    })
}

/// A block that is final, with batches that are the ones it refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedAdvance {
    /// The block and its proof.
    pub finalized: Verified<FinalizedBlock>,
    /// In the order of the references; `None` for those of the own cluster.
    pub batches: Vec<Option<CertifiedBatch>>,
}

/// Checks a complete block, whose last part is `part`: proof of finality, and batches against references.
///
/// # Errors
/// [`AdvanceError`].
pub fn check_joined(
    joined: &Joined,
    part: &AdvancePart,
    own: ClusterId,
    chain: &ChainId,
    set: &ValidatorSet,
) -> Result<Shared<CheckedAdvance>, AdvanceError> {
    check_advance(&joined.0, part, own, chain, set)
}

/// The same of bytes that have the digest of the split.
fn check_advance(
    bytes: &[u8],
    part: &AdvancePart,
    own: ClusterId,
    chain: &ChainId,
    set: &ValidatorSet,
) -> Result<Shared<CheckedAdvance>, AdvanceError> {
    // A chain has one set of validators in an epoch.
    let question = || {
        let (height, own, epoch) = (part.height.0, own.0, set.epoch().0);
        sha256(&[
            &part.split.0,
            &part.block.0,
            &chain.0,
            &height.to_be_bytes(),
            &own.to_be_bytes(),
            &epoch.to_be_bytes(),
        ])
    };
    recalled(Room::Advance, question, || {
        check_whole(bytes, part, own, chain, set).map(Shared::new)
    })
}

fn check_whole(
    bytes: &[u8],
    part: &AdvancePart,
    own: ClusterId,
    chain: &ChainId,
    set: &ValidatorSet,
) -> Result<CheckedAdvance, AdvanceError> {
    let advance: Advance = decode(bytes)?;
    let block = &advance.finalized.block;
    if block.digest() != part.block || block.header.height != part.height {
        return Err(AdvanceError::OtherBlock {
            got: block.digest(),
            got_height: block.header.height,
            want: part.block,
            want_height: part.height,
        });
    }
    let refs: Vec<BatchRef> = block.refs.iter().copied().collect();
    let finalized = advance.finalized.verify(chain, set)?;
    let mut batches = Vec::with_capacity(refs.len());
    for (i, (batch, named)) in advance.batches.into_inner().into_iter().zip(&refs).enumerate() {
        batches.push(match batch {
            AdvanceBatch::Own(digest) if named.cluster == own => {
                if digest != named.digest {
                    return Err(AdvanceError::OtherBatch(i));
                }
                None
            }
            AdvanceBatch::Own(_) => return Err(AdvanceError::MissingBytes(i)),
            AdvanceBatch::Full(batch) => {
                if BatchRef::to(&batch, chain) != *named {
                    return Err(AdvanceError::OtherBatch(i));
                }
                batch
                    .check_content(chain)
                    .map_err(|error| AdvanceError::Content(i, error))?;
                (named.cluster != own).then_some(batch)
            }
        });
    }
    Ok(CheckedAdvance { finalized, batches })
}

/// What a follower checks before it appends a part: everything that this part alone can show. A block
/// in one part is checked in full.
///
/// # Errors
/// [`AdvanceError`]: refuse the append; the leader is faulty.
pub fn check_part_static(
    part: &AdvancePart,
    own: ClusterId,
    chain: &ChainId,
    set: &ValidatorSet,
) -> Result<(), AdvanceError> {
    check_shape(part)?;
    if part.parts > 1 {
        return Ok(());
    }
    if sha256(&[&part.bytes]) != part.split {
        return Err(AdvanceError::Split);
    }
    check_advance(&part.bytes, part, own, chain, set).map(|_| ())
}

#[cfg(test)]
mod tests;
