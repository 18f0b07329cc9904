//! Decides when a batch closes, what is in flight, and what is sent again.
//!
//! In: rows of the log with their verdicts, `Cut`, `Beat`, final digests. Out: closed batches.
//! Called by: [`queue`](crate::queue), inside `apply`.
//!
//! # Rules
//! * Upon a row that would make the open batch pass [`ENTRIES_PER_BATCH_MAX`] entries or
//!   [`BATCH_ENTRY_BYTES_MAX`] bytes: the open batch closes first, at the position before the row.
//!   One larger row stands alone.
//! * Upon `Cut{seq}`: if the open batch is `seq` and not empty, it closes.
//! * Upon `Beat{seq}`: if the open batch is `seq`, empty, and the outbox is empty, it closes. A dead
//!   cluster's beats could otherwise be fed to the global tier one by one.
//! * Upon a block that takes effect: a non-empty open batch closes before it, so that a batch stands
//!   on one global height.
//! * A closed batch stays in the outbox, with its rows, until a finalized block holds it. The outbox
//!   is never trimmed; what may enter it is decided at admission.
//!
//! # Invariants
//! * batch-exactly-once: batch `s` holds exactly the rows of the log in `(cut(s - 1), cut(s)]`.
//! * batch-chain: sequence numbers are dense, and each header names the digest before it.
//!
//! # Why
//! The size of a batch is a property of the log and not of a leader, so every member builds the same
//! bytes, whoever led when.

use common::{
    batch::{BATCH_VERSION, BatchEntry, BatchHeader, BatchItem},
    bug::{self, Bug},
    ids::{BatchSeq, ChainId, ClusterId, Digest, Founding, Height, LogIndex, LogPosition},
    limits::{BATCH_ENTRY_BYTES_MAX, ENTRIES_PER_BATCH_MAX},
    merkle,
    roster::Roster,
};
use serde::{Deserialize, Serialize};

use crate::{Shared, SharedMap};

/// A closed batch that is not final yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxBatch {
    /// What the roster attests.
    pub header: BatchHeader,
    /// Digest of the header.
    pub digest: Digest,
    /// The roster that attests it; `header.roster` is its digest.
    pub roster: Roster,
    /// The rows.
    pub entries: Vec<BatchEntry>,
    /// Encoded bytes of the rows.
    pub bytes: u64,
}

/// A batch by its place in the cluster's chain of batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Sequence number, 0 before the first.
    pub seq: BatchSeq,
    /// Digest of its header, zeros before the first.
    pub digest: Digest,
    /// Index of the log position that closed it.
    pub cut: LogIndex,
}

/// A final batch that is not the one this log built: this log was forked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("batch {seq} is final with digest {final_digest}, this log built {held:?}")]
pub struct BatchConflict {
    /// Which batch.
    pub seq: BatchSeq,
    /// What this log built; `None` if it built no such batch.
    pub held: Option<Digest>,
    /// What a finalized block names.
    pub final_digest: Digest,
}

/// The open batch and the outbox of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batcher {
    cluster: ClusterId,
    founding: Founding,
    open: Vec<BatchEntry>,
    open_bytes: u64,
    /// In force before the first open row.
    roster_before: Roster,
    /// In force after the last.
    roster: Roster,
    last_closed: Cursor,
    /// By sequence number, dense. Travels beside the rest: it may be larger than all of it.
    #[serde(skip)]
    outbox: SharedMap<BatchSeq, Shared<OutboxBatch>>,
    outbox_bytes: u64,
    last_final: Cursor,
}

impl Batcher {
    /// Before the first batch of a founding, under `roster`.
    #[must_use]
    pub fn new(cluster: ClusterId, founding: Founding, roster: Roster) -> Self {
        Self {
            cluster,
            founding,
            open: Vec::new(),
            open_bytes: 0,
            roster_before: roster.clone(),
            roster,
            last_closed: Cursor::default(),
            outbox: SharedMap::default(),
            outbox_bytes: 0,
            last_final: Cursor::default(),
        }
    }

    /// Number of the open batch.
    #[must_use]
    pub fn open_seq(&self) -> BatchSeq {
        self.last_closed.seq.next()
    }

    /// Rows in the open batch.
    #[must_use]
    pub fn open_len(&self) -> usize {
        self.open.len()
    }

    /// Encoded bytes of the open rows and of all batches not final.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        let counted = if bug::active(Bug::OutboxUncounted) {
            0
        } else {
            self.outbox_bytes
        };
        self.open_bytes + counted
    }

    /// Encoded bytes of the rows of all closed batches not final.
    #[must_use]
    pub fn outbox_bytes(&self) -> u64 {
        self.outbox_bytes
    }

    /// Closed batches not final, ascending: what is attested, submitted and, from the first on, sent
    /// again after a change of leader.
    pub fn outbox(&self) -> impl DoubleEndedIterator<Item = &Shared<OutboxBatch>> + ExactSizeIterator {
        self.outbox.values()
    }

    /// A closed batch that is not final.
    #[must_use]
    pub fn batch(&self, seq: BatchSeq) -> Option<&Shared<OutboxBatch>> {
        self.outbox.get(&seq)
    }

    /// The newest closed batch, final or not.
    #[must_use]
    pub fn last_closed(&self) -> Cursor {
        self.last_closed
    }

    /// The newest final batch.
    #[must_use]
    pub fn last_final(&self) -> Cursor {
        self.last_final
    }

    /// The roster in force after everything applied.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The roster in force before the first open row: it attests the open batch.
    #[must_use]
    pub fn roster_before(&self) -> &Roster {
        &self.roster_before
    }

    /// Adds a row. `before` is the position applied before the row's own; a full batch closes there.
    /// Returns the batch that closed.
    pub fn add(
        &mut self,
        row: BatchEntry,
        before: LogPosition,
        height: Height,
        chain: &ChainId,
    ) -> Option<Shared<OutboxBatch>> {
        let bytes = row.encoded_len() as u64;
        let is_full = self.open.len() == ENTRIES_PER_BATCH_MAX
            || (!self.open.is_empty() && self.open_bytes + bytes > BATCH_ENTRY_BYTES_MAX as u64);
        let closed = is_full.then(|| self.close(before, height, chain));
        if let BatchItem::Roster(change) = &row.item {
            self.roster = change.roster.clone();
        }
        self.open.push(row);
        self.open_bytes += bytes;
        closed
    }

    /// Closes a non-empty open batch if it is `seq`.
    pub fn cut(
        &mut self,
        seq: BatchSeq,
        at: LogPosition,
        height: Height,
        chain: &ChainId,
    ) -> Option<Shared<OutboxBatch>> {
        (seq == self.open_seq() && !self.open.is_empty()).then(|| self.close(at, height, chain))
    }

    /// Closes an empty open batch if it is `seq` and everything before it is final.
    pub fn beat(
        &mut self,
        seq: BatchSeq,
        at: LogPosition,
        height: Height,
        chain: &ChainId,
    ) -> Option<Shared<OutboxBatch>> {
        (seq == self.open_seq() && self.open.is_empty() && self.outbox.is_empty())
            .then(|| self.close(at, height, chain))
    }

    /// Closes a non-empty open batch before a block takes effect.
    pub fn close_before_block(
        &mut self,
        at: LogPosition,
        height: Height,
        chain: &ChainId,
    ) -> Option<Shared<OutboxBatch>> {
        (!self.open.is_empty()).then(|| self.close(at, height, chain))
    }

    fn close(&mut self, cut: LogPosition, height: Height, chain: &ChainId) -> Shared<OutboxBatch> {
        let mut entries = core::mem::take(&mut self.open);
        if bug::active(Bug::RowDropped) {
            entries.pop();
        }
        // It may stay for long.
        entries.shrink_to_fit();
        let bytes = core::mem::take(&mut self.open_bytes);
        let leaves: Vec<Digest> = entries.iter().map(|row| row.leaf(chain)).collect();
        let header = BatchHeader {
            version: BATCH_VERSION,
            cluster: self.cluster,
            founding: self.founding,
            seq: self.open_seq(),
            prev_digest: self.last_closed.digest,
            cut,
            first_index: entries.first().map_or(LogIndex(0), |row| row.index),
            last_index: entries.last().map_or(LogIndex(0), |row| row.index),
            count: entries.len() as u32,
            entries_root: merkle::root(&leaves),
            global_height: height,
            roster: self.roster_before.digest(),
            next_roster: self.roster.digest(),
        };
        assert!(
            header.last_index <= cut.index,
            "a batch closes at or after its last row"
        );
        assert!(
            header.count == 0 || header.first_index > self.last_closed.cut,
            "a row stands after the cut before"
        );
        let digest = header.digest(chain);
        self.last_closed = Cursor {
            seq: header.seq,
            digest,
            cut: cut.index,
        };
        let batch = Shared::new(OutboxBatch {
            header,
            digest,
            roster: core::mem::replace(&mut self.roster_before, self.roster.clone()),
            entries,
            bytes,
        });
        self.outbox_bytes += bytes;
        self.outbox.insert(batch.header.seq, batch.clone());
        batch
    }

    /// Whether a finalized block may name `digest` as batch `seq`, the next one to become final.
    ///
    /// # Errors
    /// [`BatchConflict`]: this log was forked; the member stops as voter and says so.
    pub fn check_next_final(&self, seq: BatchSeq, digest: Digest) -> Result<&Shared<OutboxBatch>, BatchConflict> {
        let held = self.batch(seq);
        match held {
            Some(batch) if batch.digest == digest => Ok(batch),
            _ => Err(BatchConflict {
                seq,
                held: held.map(|batch| batch.digest),
                final_digest: digest,
            }),
        }
    }

    /// Takes the first batch of the outbox out: it is final.
    ///
    /// # Panics
    /// If the outbox is empty: the caller checked with [`check_next_final`](Self::check_next_final).
    pub fn pop_final(&mut self) -> Shared<OutboxBatch> {
        let first = self.outbox.first().map(|(_, batch)| batch.clone());
        let batch = first.expect("the caller found the batch in the outbox");
        self.outbox.remove(&batch.header.seq);
        self.outbox_bytes -= batch.bytes;
        self.last_final = Cursor {
            seq: batch.header.seq,
            digest: batch.digest,
            cut: batch.header.cut.index,
        };
        batch
    }

    /// Rows of the open batch: what the next header will be over.
    #[must_use]
    pub fn open_rows(&self) -> &[BatchEntry] {
        &self.open
    }

    /// Puts a batch of a snapshot into the outbox. [`check_invariants`](Self::check_invariants) judges
    /// the whole afterwards.
    pub(crate) fn put_back(&mut self, batch: OutboxBatch) {
        self.outbox.insert(batch.header.seq, Shared::new(batch));
    }

    /// Checks the relations between open batch, outbox and cursors.
    ///
    /// # Errors
    /// A phrase that says what is broken: a bug, or a snapshot that was not made by this code.
    pub fn check_invariants(&self, chain: &ChainId) -> Result<(), &'static str> {
        let check = |holds: bool, what| if holds { Ok(()) } else { Err(what) };
        let mut before = self.last_final;
        for (seq, batch) in self.outbox.iter() {
            let header = &batch.header;
            check(
                header.cluster == self.cluster && header.founding == self.founding,
                "foreign batch",
            )?;
            check(
                header.seq == before.seq.next() && header.seq == *seq,
                "the outbox has a gap",
            )?;
            check(header.prev_digest == before.digest, "the chain of batches is broken")?;
            check(header.cut.index > before.cut, "cuts do not ascend")?;
            check(header.digest(chain) == batch.digest, "an outbox digest is wrong")?;
            check(
                batch.roster.digest() == header.roster,
                "an outbox roster is not the header's",
            )?;
            check(
                batch.entries.len() == header.count as usize && batch.entries.len() <= ENTRIES_PER_BATCH_MAX,
                "an outbox batch has another count",
            )?;
            let leaves: Vec<Digest> = batch.entries.iter().map(|row| row.leaf(chain)).collect();
            check(
                merkle::root(&leaves) == header.entries_root,
                "outbox rows are not the header's",
            )?;
            let bytes: u64 = batch.entries.iter().map(|row| row.encoded_len() as u64).sum();
            check(bytes == batch.bytes, "an outbox batch has another size")?;
            check(
                bytes <= BATCH_ENTRY_BYTES_MAX as u64 || batch.entries.len() == 1,
                "an outbox batch is too large",
            )?;
            before = Cursor {
                seq: header.seq,
                digest: batch.digest,
                cut: header.cut.index,
            };
        }
        check(
            before == self.last_closed,
            "the last closed batch is not the outbox's last",
        )?;
        let sum: u64 = self.outbox.values().map(|batch| batch.bytes).sum();
        check(sum == self.outbox_bytes, "outbox bytes do not add up")?;
        let open: u64 = self.open.iter().map(|row| row.encoded_len() as u64).sum();
        check(open == self.open_bytes, "open bytes do not add up")?;
        check(
            self.open.len() <= ENTRIES_PER_BATCH_MAX && (open <= BATCH_ENTRY_BYTES_MAX as u64 || self.open.len() == 1),
            "the open batch is too large",
        )?;
        check(
            self.open.iter().all(|row| row.index > self.last_closed.cut),
            "an open row stands before the last cut",
        )
    }
}
