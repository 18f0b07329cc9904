//! The disk port of the Raft log: one queue of operations, durable in order.
//!
//! In: [`LogOp`]s of one writer. Out: a [`Done`] per operation, and reads of what is durable.
//!
//! # Rules
//! * Operations take effect in the order of submission: votes, appends, truncations and purges stand
//!   in one queue. A vote that overtook an append would lose committed entries.
//! * `Done(Ok)` means: this operation and all before it survive a loss of power. Group commit is
//!   welcome: one flush for everything that waits, then the acknowledgements in order.
//! * [`LogOp::Committed`] is a hint. It is written with the next flush and never causes one.
//! * After the first error every operation fails. A failed flush is never tried again: what it
//!   covered is unknown, and only a restart reads the truth.
//!
//! # Invariants
//! * log-contiguous: what is durable is one run of indexes, above the purge marker if there is one.
//! * purge-marked: the purge marker is durable before the first entry under it is gone.

pub mod durable_sled;
pub mod group_commit;
#[cfg(test)]
mod group_commit_tests;
pub mod identity;
pub mod member_log;
pub mod memory;
pub mod segment_log;
mod sled_entries;
mod sled_files;
mod sled_generations;
mod sled_head;
pub mod snapshot;

use std::fmt;

use bytes::Bytes;
use common::{
    codec::take,
    ids::{Digest, LogIndex, RaftNodeId, Term},
    limits::LOG_ENTRY_BYTES_MAX,
};

use super::codec::{EntryRecord, FORMAT_VERSION, WireLogId, WirePayload, WireVote, decode};

/// An encoded log entry; the store does not look inside.
#[derive(Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Position, from 1.
    pub index: LogIndex,
    /// At most [`RECORD_BYTES_MAX`] bytes.
    pub bytes: Bytes,
}

impl fmt::Debug for LogRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} bytes", self.index, self.bytes.len())
    }
}

/// Term and member that led when the record at some index was appended: with the index, the identity of its entry. `None`
/// for bytes that are no record. For whoever compares logs on disks.
#[must_use]
pub fn record_leader(mut record: &[u8]) -> Option<(Term, RaftNodeId)> {
    let (version, _chain, id): (u8, Digest, WireLogId) = take(&mut record).ok()?;
    (version == FORMAT_VERSION).then_some((id.term, id.leader))
}

/// The command in a record; `None` for an entry without one, and for bytes that are no record. For whoever looks for an entry on
/// disks.
#[must_use]
pub fn record_command(record: &[u8]) -> Option<Bytes> {
    match decode::<EntryRecord>(record).ok()?.entry.payload {
        WirePayload::Command(command) => Some(command.into_inner()),
        WirePayload::Blank | WirePayload::Membership(_) => None,
    }
}

/// Term and candidate of a vote as it lies on a disk, and whether that candidate was elected. `None` for bytes that are no vote. For
/// whoever compares votes on disks.
#[must_use]
pub fn record_vote(vote: &[u8]) -> Option<(Term, RaftNodeId, bool)> {
    let vote: WireVote = decode(vote).ok()?;
    Some((vote.term, vote.candidate, vote.is_committed))
}

/// Longest record that a store must accept.
pub const RECORD_BYTES_MAX: usize = 320 * 1024 - 64;

const _: () = assert!(LOG_ENTRY_BYTES_MAX + 64 <= RECORD_BYTES_MAX);

/// One step of the log's history. Byte strings are opaque to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOp {
    /// Replaces the vote. Durable before it is answered.
    Vote(Bytes),
    /// Adds records, ascending without a gap, right above the last one. Above an empty log that was
    /// never purged they may start anywhere.
    Append(Vec<LogRecord>),
    /// Drops every record at or above `from`.
    Truncate {
        /// First index to go.
        from: LogIndex,
    },
    /// Makes `marker` durable, then drops every record at or below `upto`, now or later. `upto` may
    /// lie above the last record: then none is left.
    Purge {
        /// Last index to go.
        upto: LogIndex,
        /// What is kept of the purged part.
        marker: Bytes,
    },
    /// Replaces the hint of what is committed.
    Committed(Bytes),
}

impl LogOp {
    /// Bytes that this operation writes, for bounds of a group.
    #[must_use]
    pub fn bytes_len(&self) -> usize {
        match self {
            Self::Vote(bytes) | Self::Committed(bytes) | Self::Purge { marker: bytes, .. } => bytes.len(),
            Self::Append(records) => records.iter().map(|record| record.bytes.len()).sum(),
            Self::Truncate { .. } => 0,
        }
    }

    /// Records that this operation adds.
    #[must_use]
    pub fn records_put(&self) -> usize {
        match self {
            Self::Append(records) => records.len(),
            Self::Vote(_) | Self::Committed(_) | Self::Purge { .. } | Self::Truncate { .. } => 0,
        }
    }
}

/// Called once per operation, in the order of submission. It must not submit to the same store.
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send + 'static>;

/// What a store holds when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The last durable vote.
    pub vote: Option<Bytes>,
    /// The last durable hint; it may be behind the truth.
    pub committed: Option<Bytes>,
    /// The purge marker and the index it stands for.
    pub purged: Option<(LogIndex, Bytes)>,
    /// First and last record; `None` if there is no record above the purge marker.
    pub records: Option<(LogIndex, LogIndex)>,
}

/// Why a log store refuses or ends. Every variant is final for the opened store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The disk failed. The process must stop; a restart reads what is durable.
    #[error("the log store failed: {0}")]
    Io(String),
    /// An earlier operation failed, so the state of this one is unknown.
    #[error("the log store stopped after an earlier failure: {0}")]
    Poisoned(String),
    /// What is on the disk contradicts itself. Nothing was deleted. Keep the directory for study and
    /// join again with an empty one under a new Raft id.
    #[error("the log store is damaged: {0}")]
    Corrupt(String),
    /// The store was closed.
    #[error("the log store is closed")]
    Closed,
    /// A caller's bug: operations that do not fit the log.
    #[error("operation does not fit the log: {0}")]
    Misuse(String),
}

impl From<StoreError> for std::io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match error {
            StoreError::Corrupt(_) => std::io::ErrorKind::InvalidData,
            StoreError::Closed => std::io::ErrorKind::BrokenPipe,
            StoreError::Io(_) | StoreError::Poisoned(_) | StoreError::Misuse(_) => std::io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// The disk of a Raft log. Production: [`segment_log::SegmentLog`], or
/// [`durable_sled::DurableSled`]; tests: [`memory::MemoryLog`];
/// the simulator brings one with delays and power cuts.
///
/// One task submits; reads may come from anywhere.
pub trait LogStore: Send + Sync + 'static {
    /// What was durable when the store was opened.
    ///
    /// # Errors
    /// [`StoreError`]; the member does not start.
    fn recovered(&self) -> Result<Recovered, StoreError>;

    /// Durable records from `from` up to before `to`, in order, at least one if there is one and then
    /// as many as fit in `bytes_max`. Ends at the first gap.
    ///
    /// # Errors
    /// [`StoreError`].
    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<LogRecord>, StoreError>;

    /// Queues `op`; `done` is called when it is durable or has failed, possibly before this returns.
    /// Never waits for the disk. The caller bounds what it has in flight.
    fn submit(&self, op: LogOp, done: Done);
}
