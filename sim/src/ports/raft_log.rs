//! The Raft log's disk in the simulator: operations wait for a sync in virtual time, in one queue.
//!
//! Group commit as in production: what arrives while a sync runs shares the next one. A crash or a failed
//! sync leaves a drawn prefix of what was not synced, and everything that was. After a failure every
//! operation fails until the next life.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use cluster_agent::raft::store::{Done, LogOp, LogRecord, LogStore, Recovered, StoreError};
use common::ids::LogIndex;

use super::{SimDisk, disk::rot};
use crate::runtime::Process;

#[derive(Default)]
struct Durable {
    vote: Option<Bytes>,
    /// Votes that became durable and were not looked at.
    new_votes: Vec<(u64, Bytes)>,
    /// How many disks were lost before this one.
    disk: u64,
    committed: Option<Bytes>,
    purged: Option<(LogIndex, Bytes)>,
    records: BTreeMap<LogIndex, Bytes>,
}

impl Durable {
    fn kept(&self, index: LogIndex) -> Kept {
        match self.records.get(&index) {
            Some(bytes) => Kept::Record(bytes.clone()),
            None if self.purged.as_ref().is_some_and(|(upto, _)| index <= *upto) => Kept::Purged,
            None => Kept::Nothing,
        }
    }

    fn apply(&mut self, op: LogOp) {
        match op {
            LogOp::Vote(bytes) => {
                self.new_votes.push((self.disk, bytes.clone()));
                self.vote = Some(bytes);
            }
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

/// Before the bytes of a field: what it is of, its index and its length.
const FIELD_HEAD_BYTES: usize = 17;

/// Fields of operations, for the trace: two that differ in anything differ here. Their bytes are not copied.
fn fields_of(ops: &[LogOp]) -> Vec<([u8; FIELD_HEAD_BYTES], &[u8])> {
    let mut fields = Vec::with_capacity(ops.len());
    let mut field = |tag: u8, index: LogIndex, bytes| {
        let mut head = [0; FIELD_HEAD_BYTES];
        head[0] = tag;
        head[1..9].copy_from_slice(&index.0.to_be_bytes());
        head[9..].copy_from_slice(&(<[u8]>::len(bytes) as u64).to_be_bytes());
        fields.push((head, bytes));
    };
    for op in ops {
        match op {
            LogOp::Vote(bytes) => field(0, LogIndex(0), bytes),
            LogOp::Committed(bytes) => field(1, LogIndex(0), bytes),
            LogOp::Append(records) => records.iter().for_each(|record| field(2, record.index, &record.bytes)),
            LogOp::Truncate { from } => field(3, *from, &[]),
            LogOp::Purge { upto, marker } => field(4, *upto, marker),
        }
    }
    fields
}

#[derive(Default)]
struct Queue {
    waiting: Vec<(LogOp, Done)>,
    /// What the running sync writes.
    in_flight: Vec<LogOp>,
    is_syncing: bool,
    failed: Option<StoreError>,
}

/// Records of one cluster's logs that are equal are one piece of memory.
#[derive(Clone, Default)]
pub struct RecordPool(Arc<Mutex<BTreeMap<LogIndex, Bytes>>>);

/// Newest indexes of a pool.
const POOLED_MAX: usize = 4_096;

impl RecordPool {
    /// `bytes`, or the equal ones that another log wrote at `index`.
    fn share(&self, index: LogIndex, bytes: Bytes) -> Bytes {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known.get(&index).filter(|same| **same == bytes) {
            return same.clone();
        }
        // A record may be a piece of a larger frame; what is kept is the record alone.
        let own = Bytes::copy_from_slice(&bytes);
        known.insert(index, own.clone());
        if known.len() > POOLED_MAX {
            known.pop_first();
        }
        own
    }
}

/// The log of one member, over all lives of its process. [`SimLog::open`] begins a life.
#[derive(Clone)]
pub struct SimLog {
    disk: SimDisk,
    durable: Arc<Mutex<Durable>>,
    /// What the disk before this one held when it was lost.
    lost: Arc<Mutex<Durable>>,
    queue: Arc<Mutex<Queue>>,
    process: Option<Process>,
    pool: RecordPool,
}

/// What one log holds at one index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// This record.
    Record(Bytes),
    /// Purged: a snapshot stands for it.
    Purged,
    /// Nothing.
    Nothing,
}

impl SimLog {
    /// An empty log on `disk`.
    #[must_use]
    pub fn new(disk: SimDisk) -> Self {
        Self::sharing(disk, RecordPool::default())
    }

    /// The same, with memory shared with the logs of the other members.
    #[must_use]
    pub fn sharing(disk: SimDisk, pool: RecordPool) -> Self {
        Self {
            disk,
            durable: Arc::default(),
            lost: Arc::default(),
            queue: Arc::default(),
            process: None,
            pool,
        }
    }

    /// The log as a new life of its process finds it: of what waited in the old one a prefix is left.
    /// Every life is opened from the same value.
    #[must_use]
    pub fn open(&mut self, process: Process) -> Self {
        self.crash();
        self.queue = Arc::default();
        Self {
            process: Some(process),
            ..self.clone()
        }
    }

    /// Decides what is left of unsynced operations.
    pub fn crash(&self) {
        let mut queue = self.queue();
        let mut unsynced = std::mem::take(&mut queue.in_flight);
        unsynced.extend(std::mem::take(&mut queue.waiting).into_iter().map(|(op, _)| op));
        unsynced.truncate(self.disk.draw(0, unsynced.len() as u64) as usize);
        let mut durable = self.durable();
        for op in unsynced {
            durable.apply(op);
        }
    }

    /// The disk under it is gone, and everything that it held.
    pub fn wipe(&self) {
        *self.queue() = Queue::default();
        let lost = {
            let mut durable = self.durable();
            let next = Durable {
                new_votes: std::mem::take(&mut durable.new_votes),
                disk: durable.disk + 1,
                ..Durable::default()
            };
            std::mem::replace(&mut *durable, next)
        };
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = lost;
    }

    /// What is durable at `index`.
    #[must_use]
    pub fn kept(&self, index: LogIndex) -> Kept {
        self.durable().kept(index)
    }

    /// The same, also of the disk that was lost before this one: what it acknowledged may count a moment later.
    #[must_use]
    pub fn kept_or_lost(&self, index: LogIndex) -> Kept {
        match self.kept(index) {
            Kept::Nothing => self.lost.lock().unwrap_or_else(PoisonError::into_inner).kept(index),
            kept => kept,
        }
    }

    /// The vote that is durable.
    #[must_use]
    pub fn vote(&self) -> Option<Bytes> {
        self.durable().vote.clone()
    }

    /// Every vote that became durable since the last call, in order, each with the number of the disk that holds it or
    /// held it when it was lost.
    #[must_use]
    pub fn take_new_votes(&self) -> Vec<(u64, Bytes)> {
        std::mem::take(&mut self.durable().new_votes)
    }

    /// The last `count` durable records, fewer if there is a gap, and the index of the first of them.
    #[must_use]
    pub fn tail(&self, count: usize) -> Option<(LogIndex, Vec<Bytes>)> {
        let durable = self.durable();
        let last = *durable.records.keys().next_back()?;
        let without_gap = durable.records.iter().rev().zip((0..=last.0).rev());
        let newest = without_gap
            .take_while(|((index, _), want)| index.0 == *want)
            .take(count);
        let mut records: Vec<Bytes> = newest.map(|((_, bytes), _)| bytes.clone()).collect();
        records.reverse();
        Some((LogIndex(last.0 + 1 - records.len() as u64), records))
    }

    /// First and last durable record.
    #[must_use]
    pub fn range(&self) -> Option<(LogIndex, LogIndex)> {
        let durable = self.durable();
        let first = durable.records.keys().next().copied();
        first.zip(durable.records.keys().next_back().copied())
    }

    /// Bytes of all records.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.durable().records.values().map(|bytes| bytes.len() as u64).sum()
    }

    fn durable(&self) -> MutexGuard<'_, Durable> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sync_all(self) {
        loop {
            let (ops, done): (Vec<LogOp>, Vec<Done>) = {
                let mut queue = self.queue();
                if queue.waiting.is_empty() {
                    queue.is_syncing = false;
                    return;
                }
                let group: (Vec<LogOp>, Vec<Done>) = std::mem::take(&mut queue.waiting).into_iter().unzip();
                queue.in_flight.clone_from(&group.0);
                group
            };
            let fields = fields_of(&ops);
            let written: Vec<&[u8]> = fields.iter().flat_map(|(head, bytes)| [&head[..], *bytes]).collect();
            let synced = self.disk.sync(&written).await;
            let outcome = synced.map_err(|error| StoreError::Io(error.to_string()));
            match &outcome {
                Ok(()) => {
                    let in_flight = std::mem::take(&mut self.queue().in_flight);
                    let mut durable = self.durable();
                    for op in in_flight {
                        durable.apply(op);
                    }
                }
                // A part of it may be on the disk: the next life draws which.
                Err(error) => self.queue().failed = Some(error.clone()),
            }
            for done in done {
                done(outcome.clone());
            }
            if let Err(error) = outcome {
                return self.fail_waiting(&error);
            }
        }
    }

    fn fail_waiting(&self, error: &StoreError) {
        let waiting = std::mem::take(&mut self.queue().waiting);
        for (_, done) in waiting {
            done(Err(StoreError::Poisoned(error.to_string())));
        }
    }
}

impl LogStore for SimLog {
    fn recovered(&self) -> Result<Recovered, StoreError> {
        let durable = self.durable();
        // As a real store does, it looks at every record before it says what it has.
        if self.disk.trouble().rotten(durable.records.len()).is_some() {
            return Err(StoreError::Corrupt(rot().to_string()));
        }
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
        let rotten = self.disk.trouble().rotten(durable.records.len());
        let rotten = rotten.and_then(|place| durable.records.keys().nth(place).copied());
        for (index, bytes) in durable.records.range(from..to) {
            if rotten == Some(*index) {
                return Err(StoreError::Corrupt(rot().to_string()));
            }
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

    fn submit(&self, mut op: LogOp, done: Done) {
        if let LogOp::Append(records) = &mut op {
            for record in records {
                record.bytes = self.pool.share(record.index, std::mem::take(&mut record.bytes));
            }
        }
        let mut queue = self.queue();
        if let Some(error) = &queue.failed {
            let poisoned = StoreError::Poisoned(error.to_string());
            drop(queue);
            return done(Err(poisoned));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ports::DiskTiming, runtime::ProcessId, trace::Trace};

    /// The trace hash of a log that was given `op`.
    fn hash_of(op: LogOp) -> common::ids::Digest {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let timing = DiskTiming {
                sync_us_min: 1_000,
                sync_us_max: 1_000,
            };
            let trace = Trace::begin();
            let mut log = SimLog::new(SimDisk::new(0, 1, timing, trace.clone()));
            let log = log.open(Process::new(ProcessId(0), 1));
            let (told, done) = tokio::sync::oneshot::channel();
            log.submit(op, Box::new(move |outcome| drop(told.send(outcome))));
            assert_eq!(done.await, Ok(Ok(())));
            trace.summary().0
        })
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_lost_disk_held_is_not_on_the_next_one_and_is_remembered() {
        let timing = DiskTiming {
            sync_us_min: 1_000,
            sync_us_max: 1_000,
        };
        let mut log = SimLog::new(SimDisk::new(0, 1, timing, Trace::begin()));
        let open = log.open(Process::new(ProcessId(0), 1));
        let record = LogRecord {
            index: LogIndex(1),
            bytes: Bytes::from_static(b"entry"),
        };
        open.submit(LogOp::Vote(Bytes::from_static(b"vote")), Box::new(|_| ()));
        let (told, done) = tokio::sync::oneshot::channel();
        open.submit(
            LogOp::Append(vec![record]),
            Box::new(move |outcome| drop(told.send(outcome))),
        );
        assert_eq!(done.await, Ok(Ok(())));
        log.wipe();
        assert_eq!(log.vote(), None);
        assert_eq!(
            log.take_new_votes(),
            [(0, Bytes::from_static(b"vote"))],
            "of the first disk"
        );
        assert_eq!(log.take_new_votes(), []);
        assert_eq!(log.kept(LogIndex(1)), Kept::Nothing);
        assert_eq!(
            log.kept_or_lost(LogIndex(1)),
            Kept::Record(Bytes::from_static(b"entry"))
        );
        assert_eq!(log.kept_or_lost(LogIndex(2)), Kept::Nothing);
    }

    #[test]
    fn what_is_synced_is_in_the_trace_to_the_last_byte() {
        let record = |index, bytes: &'static [u8]| LogRecord {
            index: LogIndex(index),
            bytes: Bytes::from_static(bytes),
        };
        let append = |bytes| LogOp::Append(vec![record(1, bytes)]);
        assert_eq!(hash_of(append(b"entry")), hash_of(append(b"entry")));
        let others = [
            append(b"entrz"),
            LogOp::Append(vec![record(2, b"entry")]),
            LogOp::Append(vec![record(1, b"ent"), record(2, b"ry")]),
            LogOp::Vote(Bytes::from_static(b"entry")),
            LogOp::Committed(Bytes::from_static(b"entry")),
            LogOp::Truncate { from: LogIndex(1) },
            LogOp::Truncate { from: LogIndex(2) },
        ];
        let mut hashes: Vec<_> = others
            .into_iter()
            .map(hash_of)
            .chain([hash_of(append(b"entry"))])
            .collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 8, "no two are alike");
    }
}
