//! Proof files: a task's place in the global order, and what was decided, for somebody who holds
//! only the genesis file.
//!
//! In: a task's history and the stored blocks, batches and outcomes ([`build_proof`]); or the bytes of a
//! file ([`verify`]). Out: the file; or a [`ProofReport`].
//!
//! # Rules
//! * Every block header in the file is final: a quorum of the genesis file's validators signed it, or
//!   a header above it that leads down to it.
//! * Order: entry -> `entries_root` -> batch header -> `refs_root` -> block header.
//! * Decision: outcome -> `outcome_root` of the header [`ROOT_LAG`](crate::limits::ROOT_LAG) above. An
//!   entry can be ordered and rejected, so the one does not stand for the other. Of the last heights
//!   the decision is not signed yet: such an entry is reported as ordered, its outcome as pending.
//! * Every author's signature is checked, and the submitted task is in the file as it was signed.
//! * One flipped bit anywhere in the file makes it worthless.
//!
//! # What it does not say
//! That nothing happened since: who hands out a file may leave out later events. The state in the
//! report is that after the newest event in the file.
//!
//! # Invariants
//! * `verifiable-offline`: the file of every task with a final event verifies with the genesis file alone.

mod build;
#[cfg(test)]
mod tests;
mod verify;

pub use build::{ProofSource, ProveError, build_proof};
pub use verify::{PathName, ProofError, ProofReport, ProvenEntry, ProvenEvent, verify, verify_proof};

use serde::{Deserialize, Serialize};

use crate::{
    batch::{BatchHeader, EntryLeaf},
    block::{BlockHeader, ProofOfFinality},
    codec::{BoundedVec, Wire},
    crypto::Signature,
    entry::{EntryHeader, SignedEntry},
    global_queue::{EVENTS_PER_TASK_MAX, Outcome},
    ids::{ChainId, Height},
    merkle::Climb,
};

/// Version of the format.
pub const PROOF_VERSION: u16 = 2;
/// Longest proof file.
pub const PROOF_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Header runs of a proof: every event could stand alone.
pub const SEGMENTS_MAX: usize = EVENTS_PER_TASK_MAX;
/// Headers of a run: every event brings at most its own and those up to its outcome root.
pub const HEADERS_PER_SEGMENT_MAX: usize = 3 * EVENTS_PER_TASK_MAX;

/// Headers of consecutive heights, and the proof that the last is final.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Ascending, each naming the one before as its parent.
    pub headers: BoundedVec<BlockHeader, HEADERS_PER_SEGMENT_MAX>,
    /// Of the last.
    pub finality: ProofOfFinality,
}

/// An outcome and its way to the outcome root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeProof {
    /// The outcome.
    pub outcome: Outcome,
    /// To the outcome root.
    pub path: Climb,
}

/// The signed part of an entry, with the signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedHeader {
    /// What was signed.
    pub header: EntryHeader,
    /// By the author.
    pub signature: Signature,
}

/// One event of the task, with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)]
pub enum EventProof {
    /// Caused by an entry.
    Entry {
        /// Height of the block.
        height: Height,
        /// The entry; `None` for the submission, which the file holds in full.
        signed: Option<SignedHeader>,
        /// Where the entry stands in its cluster's log, and what the cluster decided.
        leaf: EntryLeaf,
        /// To the batch's entries root.
        leaf_path: Climb,
        /// The batch.
        batch: BatchHeader,
        /// To the block's refs root.
        batch_path: Climb,
        /// What was decided; `None` while the root over it is not final.
        outcome: Option<OutcomeProof>,
    },
    /// Decided by the machinery.
    Machine {
        /// Height of the block.
        height: Height,
        /// What was decided.
        outcome: OutcomeProof,
    },
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskProof {
    /// [`PROOF_VERSION`].
    pub version: u16,
    /// The fleet.
    pub chain: ChainId,
    /// The submission, as its author signed it.
    pub submit: SignedEntry,
    /// Block headers, ascending.
    pub segments: BoundedVec<Segment, SEGMENTS_MAX>,
    /// Events in order; the first is the submission.
    pub events: BoundedVec<EventProof, EVENTS_PER_TASK_MAX>,
}

impl Wire for TaskProof {
    const BYTES_MAX: usize = PROOF_BYTES_MAX;

    fn validate(&self) -> Result<(), &'static str> {
        if self.version != PROOF_VERSION {
            return Err("proof format version is not 1");
        }
        if self.segments.iter().any(|segment| segment.headers.is_empty()) {
            return Err("a run of no headers");
        }
        Ok(())
    }
}
