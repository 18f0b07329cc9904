//! A log store in memory: durable at once. For tests of everything above the disk port.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use common::ids::LogIndex;

use super::{Done, LogOp, LogRecord, LogStore, Recovered, StoreError};

/// A [`LogStore`] that lives as long as the value; "restart" is to use the same value again.
#[derive(Debug, Default)]
pub struct MemoryLog {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    purged: Option<(LogIndex, Bytes)>,
    records: BTreeMap<LogIndex, Bytes>,
    failure: Option<StoreError>,
}

impl MemoryLog {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets every later operation fail as a disk would.
    pub fn fail(&self, why: &str) {
        self.lock().failure = Some(StoreError::Io(why.into()));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply(&mut self, op: LogOp) -> Result<(), StoreError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        match op {
            LogOp::Vote(bytes) => self.vote = Some(bytes),
            LogOp::Committed(bytes) => self.committed = Some(bytes),
            LogOp::Append(records) => {
                for record in records {
                    self.check_fits(record.index)?;
                    self.records.insert(record.index, record.bytes);
                }
            }
            LogOp::Truncate { from } => {
                self.records.split_off(&from);
            }
            LogOp::Purge { upto, marker } => {
                self.purged = Some((upto, marker));
                self.records = self.records.split_off(&upto.next());
            }
        }
        Ok(())
    }

    fn check_fits(&self, index: LogIndex) -> Result<(), StoreError> {
        let last = self.records.last_key_value().map(|(last, _)| *last);
        let below = last.or(self.purged.as_ref().map(|(upto, _)| *upto));
        match below {
            Some(below) if below.next() != index => Err(StoreError::Misuse(format!("append at {index} above {below}"))),
            Some(_) | None => Ok(()),
        }
    }
}

impl LogStore for MemoryLog {
    fn recovered(&self) -> Result<Recovered, StoreError> {
        let state = self.lock();
        let first = state.records.first_key_value().map(|(index, _)| *index);
        let last = state.records.last_key_value().map(|(index, _)| *index);
        Ok(Recovered {
            vote: state.vote.clone(),
            committed: state.committed.clone(),
            purged: state.purged.clone(),
            records: first.zip(last),
        })
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<LogRecord>, StoreError> {
        let state = self.lock();
        let (mut found, mut bytes_used, mut next) = (Vec::new(), 0, from);
        if from >= to {
            return Ok(found);
        }
        for (&index, bytes) in state.records.range(from..to) {
            bytes_used += bytes.len();
            if index != next || (!found.is_empty() && bytes_used > bytes_max) {
                break;
            }
            next = index.next();
            found.push(LogRecord {
                index,
                bytes: bytes.clone(),
            });
        }
        Ok(found)
    }

    fn submit(&self, op: LogOp, done: Done) {
        let outcome = self.lock().apply(op);
        done(outcome);
    }
}
