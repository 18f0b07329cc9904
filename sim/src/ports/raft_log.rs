//! The Raft log's disk in the simulator: operations wait for a sync in virtual time, in one queue.
//!
//! Group commit as in production: what arrives while a sync runs shares the next one. A crash loses
//! what was not synced, and nothing else.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use cluster_agent::raft::store::{Done, LogOp, LogRecord, LogStore, Recovered, StoreError, snapshot::SnapshotStore};
use common::ids::{LogIndex, LogPosition};
use transport::ports::BoxFuture;

use super::SimDisk;
use crate::runtime::Process;

#[derive(Default)]
struct Durable {
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    purged: Option<(LogIndex, Bytes)>,
    records: BTreeMap<LogIndex, Bytes>,
}

impl Durable {
    fn apply(&mut self, op: LogOp) {
        match op {
            LogOp::Vote(bytes) => self.vote = Some(bytes),
            LogOp::Committed(bytes) => self.committed = Some(bytes),
            LogOp::Append(records) => self.records.extend(records.into_iter().map(|r| (r.index, r.bytes))),
            LogOp::Truncate { from } => drop(self.records.split_off(&from)),
            LogOp::Purge { upto, marker } => {
                self.records = self.records.split_off(&upto.next());
                self.purged = Some((upto, marker));
            }
        }
    }
}

#[derive(Default)]
struct Queue {
    waiting: Vec<(LogOp, Done)>,
    is_syncing: bool,
}

/// The log of one member, over all lives of its process. [`SimLog::open`] begins a life.
#[derive(Clone)]
pub struct SimLog {
    disk: SimDisk,
    durable: Arc<Mutex<Durable>>,
    queue: Arc<Mutex<Queue>>,
    process: Option<Process>,
}

impl SimLog {
    /// An empty log on `disk`.
    #[must_use]
    pub fn new(disk: SimDisk) -> Self {
        Self {
            disk,
            durable: Arc::default(),
            queue: Arc::default(),
            process: None,
        }
    }

    /// The log as a new life of its process finds it: what waited in the old one is lost.
    #[must_use]
    pub fn open(&self, process: Process) -> Self {
        Self {
            queue: Arc::default(),
            process: Some(process),
            ..self.clone()
        }
    }

    fn durable(&self) -> MutexGuard<'_, Durable> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sync_all(self) {
        loop {
            let group = {
                let mut queue = self.queue();
                if queue.waiting.is_empty() {
                    queue.is_syncing = false;
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            let written: Vec<u8> = group
                .iter()
                .flat_map(|(op, _)| (op.bytes_len() as u64).to_be_bytes())
                .collect();
            self.disk.sync(&written).await;
            let mut acknowledged = Vec::with_capacity(group.len());
            {
                let mut durable = self.durable();
                for (op, done) in group {
                    durable.apply(op);
                    acknowledged.push(done);
                }
            }
            for done in acknowledged {
                done(Ok(()));
            }
        }
    }
}

impl LogStore for SimLog {
    fn recovered(&self) -> Result<Recovered, StoreError> {
        let durable = self.durable();
        let records = durable
            .records
            .keys()
            .next()
            .copied()
            .zip(durable.records.keys().next_back().copied());
        Ok(Recovered {
            vote: durable.vote.clone(),
            committed: durable.committed.clone(),
            purged: durable.purged.clone(),
            records,
        })
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<LogRecord>, StoreError> {
        let durable = self.durable();
        let mut read: Vec<LogRecord> = Vec::new();
        let mut bytes_read = 0;
        if from >= to {
            return Ok(read);
        }
        for (index, bytes) in durable.records.range(from..to) {
            let is_gap = read.last().map_or(*index != from, |last| last.index.next() != *index);
            if is_gap || (!read.is_empty() && bytes_read + bytes.len() > bytes_max) {
                break;
            }
            bytes_read += bytes.len();
            read.push(LogRecord {
                index: *index,
                bytes: bytes.clone(),
            });
        }
        Ok(read)
    }

    fn submit(&self, op: LogOp, done: Done) {
        let mut queue = self.queue();
        queue.waiting.push((op, done));
        if !queue.is_syncing {
            queue.is_syncing = true;
            let process = self
                .process
                .as_ref()
                .expect("a log is opened by a process before it is written");
            process.spawn(self.clone().sync_all());
        }
    }
}

/// The last snapshot of one member.
#[derive(Clone)]
pub struct SimSnapshots {
    disk: SimDisk,
    last: Arc<Mutex<Option<Bytes>>>,
}

impl SimSnapshots {
    /// None yet.
    #[must_use]
    pub fn new(disk: SimDisk) -> Self {
        Self {
            disk,
            last: Arc::default(),
        }
    }
}

impl SnapshotStore for SimSnapshots {
    fn load(&self) -> BoxFuture<Result<Option<Bytes>, StoreError>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move { Ok(last) })
    }

    fn save(&self, _at: LogPosition, bytes: Bytes) -> BoxFuture<Result<(), StoreError>> {
        let store = self.clone();
        Box::pin(async move {
            store.disk.sync(&bytes).await;
            *store.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
            Ok(())
        })
    }
}
