//! How much of the log survives a loss of power here: what a member may attest.
//!
//! Raft applies an entry once a majority holds it, which may be before this member's own disk does.
//! An attestation says "I hold this durably", so it waits for this position and not for apply.

use std::sync::Arc;

use common::ids::LogIndex;
use transport::watch::Watch;

use crate::raft::store::{Done, LogOp, LogRecord, LogStore, Recovered, StoreError};

/// A log store that tells up to where it is durable.
pub struct DurableLog {
    inner: Arc<dyn LogStore>,
    durable: Watch<LogIndex>,
}

impl DurableLog {
    /// Watches `inner`.
    ///
    /// # Errors
    /// [`StoreError`] of reading what is durable now.
    pub fn new(inner: Arc<dyn LogStore>) -> Result<Self, StoreError> {
        let recovered = inner.recovered()?;
        let purged = recovered.purged.map(|(upto, _)| upto);
        let last = recovered.records.map(|(_, last)| last);
        let durable = Watch::new(last.max(purged).unwrap_or_default());
        Ok(Self { inner, durable })
    }

    /// The last index that is durable.
    #[must_use]
    pub fn durable(&self) -> Watch<LogIndex> {
        self.durable.clone()
    }
}

impl LogStore for DurableLog {
    fn recovered(&self) -> Result<Recovered, StoreError> {
        self.inner.recovered()
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<LogRecord>, StoreError> {
        self.inner.read(from, to, bytes_max)
    }

    fn submit(&self, op: LogOp, done: Done) {
        let reached = match &op {
            LogOp::Append(records) => records.last().map(|last| last.index),
            // What follows is not durable any more, from this moment on.
            LogOp::Truncate { from } => {
                let below = from.previous().unwrap_or_default();
                self.durable.set(self.durable.get().min(below));
                None
            }
            // A purge stands for a snapshot, which was made durable before.
            LogOp::Purge { upto, .. } => Some(self.durable.get().max(*upto)),
            LogOp::Vote(_) | LogOp::Committed(_) => None,
        };
        let durable = self.durable.clone();
        let watched: Done = Box::new(move |outcome: Result<(), StoreError>| {
            if let (Ok(()), Some(reached)) = (&outcome, reached) {
                durable.set_if_changed(reached);
            }
            done(outcome);
        });
        self.inner.submit(op, watched);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::store::memory::MemoryLog;

    fn record(index: u64) -> LogRecord {
        LogRecord {
            index: LogIndex(index),
            bytes: vec![1].into(),
        }
    }

    #[test]
    fn durable_position_follows_appends_that_are_done_and_falls_with_a_truncation() {
        let memory = Arc::new(MemoryLog::new());
        let log = DurableLog::new(memory.clone()).unwrap();
        let durable = log.durable();
        assert_eq!(durable.get(), LogIndex(0));
        log.submit(
            LogOp::Append(vec![record(1), record(2)]),
            Box::new(|done| done.unwrap()),
        );
        assert_eq!(durable.get(), LogIndex(2));
        log.submit(LogOp::Truncate { from: LogIndex(2) }, Box::new(|done| done.unwrap()));
        assert_eq!(durable.get(), LogIndex(1));
        memory.fail("the disk is gone");
        log.submit(LogOp::Append(vec![record(2)]), Box::new(|done| assert!(done.is_err())));
        assert_eq!(durable.get(), LogIndex(1));
    }

    #[test]
    fn what_was_durable_before_a_restart_counts() {
        let memory = Arc::new(MemoryLog::new());
        memory.submit(
            LogOp::Append(vec![record(1), record(2)]),
            Box::new(|done| done.unwrap()),
        );
        assert_eq!(DurableLog::new(memory).unwrap().durable().get(), LogIndex(2));
    }
}
