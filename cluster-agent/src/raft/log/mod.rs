//! openraft's log storage over the disk port: the chain, the cache of recent entries, the hints.
//!
//! # Rules
//! * Upon an append: compute each entry's chain; if a leader claimed another, refuse and store
//!   nothing. Entries are readable before they are durable; openraft is told when they are.
//! * Upon a truncation at or below what is committed: refuse. Committed entries do not change.
//! * Upon a vote: answer only when it is durable.
//! * The hint of what is committed travels with the next write; one of them is in flight at most.
//!
//! # Invariants
//! * log-forks-refused: two members that store the same log id store the same bytes below it, or one
//!   of them refused the append.
//!
//! # Why
//! Raft compares terms and indexes only, so a lying leader can give two followers different bytes
//! under one id. The chain makes the id of an entry cover everything below it.

mod view;

use std::{
    fmt::Debug,
    io,
    marker::PhantomData,
    ops::{Bound, RangeBounds},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use common::{
    bug::{self, Bug},
    ids::{Digest, LogIndex, LogPosition, Term},
};
use futures::channel::oneshot;
use openraft::{
    OptionalSend, RaftLogReader,
    storage::{IOFlushed, LogState, RaftLogStorage},
};
use openraft_rt::AsyncRuntime;

use self::view::{Cached, Tip, View, decode_run, recover};
use super::{
    alarm::{AlarmSink, RaftAlarm},
    codec::{self, APPEND_ENTRY_BYTES_MAX, CommittedRecord, EntryRecord, PurgedRecord, WireLogId, WireVote},
    store::{LogOp, LogRecord, LogStore, StoreError},
    types::{
        Entry, LogId, TypeConfig, Vote, entry_to_wire, index_from_raft, log_id_from_wire, log_id_to_wire,
        vote_from_wire, vote_to_wire,
    },
};

/// The log of this member. Clones share it: openraft's readers, the server's checks and the network
/// client look at the same log.
pub(super) struct RaftLog<R> {
    inner: Arc<Inner>,
    runtime: PhantomData<fn() -> R>,
}

impl<R> Clone for RaftLog<R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            runtime: PhantomData,
        }
    }
}

struct Inner {
    store: Arc<dyn LogStore>,
    alarms: AlarmSink,
    view: Mutex<View>,
}

/// What this member has at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Purged and not the last purged one: nothing can be compared.
    Below,
    /// An entry or the purge marker with this id and chain.
    At(WireLogId, Option<Digest>),
    /// Beyond the log.
    Beyond,
}

impl<R: AsyncRuntime> RaftLog<R> {
    /// Reads the log back and recomputes its chain. Durable entries are kept in memory up to `cache_bytes_max`.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the log contradicts itself; the member must not start.
    pub fn open_with(store: Arc<dyn LogStore>, alarms: AlarmSink, cache_bytes_max: usize) -> Result<Self, StoreError> {
        let view = recover(&*store, cache_bytes_max)?;
        let inner = Inner {
            store,
            alarms,
            view: Mutex::new(view),
        };
        Ok(Self {
            inner: Arc::new(inner),
            runtime: PhantomData,
        })
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.inner.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Term of the last vote given or seen, 0 before the first.
    pub fn term(&self) -> Term {
        self.view().vote.map_or(Term(0), |vote| vote.term)
    }

    /// Whether the last vote given or seen is above `vote`.
    pub fn is_vote_above(&self, vote: WireVote) -> bool {
        let ours = self.view().vote;
        ours.is_some_and(|ours| (ours.term, ours.candidate) > (vote.term, vote.candidate))
    }

    /// Last entry or purge marker.
    pub fn last(&self) -> Option<WireLogId> {
        self.view().last.map(|tip| tip.id)
    }

    /// What is known to be committed.
    pub fn committed(&self) -> Option<WireLogId> {
        self.view().committed
    }

    /// Position of the last purged entry.
    pub fn purged(&self) -> Option<LogPosition> {
        self.view().purged.map(|record| LogPosition {
            term: record.id.term,
            index: record.id.index,
        })
    }

    /// Remembers the chain at a snapshot that is being installed, for the purge that follows.
    pub fn note_snapshot(&self, id: WireLogId, chain: Digest) {
        self.view().snapshot_mark = Some(PurgedRecord { id, chain: Some(chain) });
    }

    /// The id and chain at `index`.
    pub fn held(&self, index: LogIndex) -> Result<Held, StoreError> {
        {
            let view = self.view();
            if let Some(cached) = view.cache.get(&index) {
                return Ok(Held::At(log_id_to_wire(&cached.entry.id), cached.entry.chain));
            }
            if let Some(purged) = view.purged
                && index <= purged.id.index
            {
                let is_marker = index == purged.id.index;
                return Ok(if is_marker {
                    Held::At(purged.id, purged.chain)
                } else {
                    Held::Below
                });
            }
            if view.last.is_none_or(|tip| index > tip.id.index) {
                return Ok(Held::Beyond);
            }
        }
        let found = self.entries(index, index.next(), usize::MAX)?;
        Ok(found
            .first()
            .map_or(Held::Beyond, |entry| Held::At(log_id_to_wire(&entry.id), entry.chain)))
    }

    /// Whether the entry `id` is durable here and others follow it, all under `vote`.
    pub fn is_beyond(&self, id: WireLogId, vote: WireVote) -> bool {
        let is_led_by = |ours: WireVote| (ours.term, ours.candidate) == (vote.term, vote.candidate);
        let is_durable = {
            let view = self.view();
            let is_beyond = view.last.is_some_and(|tip| tip.id.index > id.index);
            let cached = view.cache.get(&id.index);
            is_beyond
                && view.vote.is_some_and(is_led_by)
                && cached.is_none_or(|entry| entry.is_durable.load(Ordering::Acquire))
        };
        is_durable && matches!(self.held(id.index), Ok(Held::At(held, _)) if held == id)
    }

    /// The chain at exactly this entry, if it is known here.
    pub fn chain_at(&self, id: WireLogId) -> Option<Digest> {
        match self.held(id.index) {
            Ok(Held::At(held, chain)) if held == id => chain,
            Ok(_) | Err(_) => None,
        }
    }

    /// Entries from `from` up to before `to`, clipped to the log.
    fn entries(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<Entry>, StoreError> {
        loop {
            let (from, to, cached_from, epoch) = {
                let view = self.view();
                let Some((first, end)) = view.range() else {
                    return Ok(Vec::new());
                };
                let (from, to) = (from.max(first), to.min(end));
                if from >= to {
                    return Ok(Vec::new());
                }
                let cached_from = view.cache.keys().next().copied().unwrap_or(end);
                if from >= cached_from {
                    return Ok(view.cached_range(from, to, bytes_max, 0));
                }
                (from, to, cached_from, view.epoch)
            };
            let records = self.inner.store.read(from, to.min(cached_from), bytes_max)?;
            let view = self.view();
            if view.epoch != epoch {
                continue;
            }
            let bytes_used = records.iter().map(|record| record.bytes.len()).sum();
            let mut entries = decode_run(&records, from)?;
            let next = LogIndex(from.0 + entries.len() as u64);
            if entries.is_empty() {
                return Err(StoreError::Corrupt(format!("entry {from} is missing")));
            }
            if next == cached_from && next < to && bytes_used < bytes_max {
                entries.extend(view.cached_range(next, to, bytes_max, bytes_used));
            }
            // The store ends at its byte bound, or at a gap; a caller that asked without a bound
            // must not take the second for the first.
            if bytes_max == usize::MAX && entries.len() as u64 != to.0 - from.0 {
                return Err(StoreError::Corrupt(format!("entries after {next} are missing")));
            }
            return Ok(entries);
        }
    }

    fn submit(&self, op: LogOp, mut done: super::store::Done) {
        if bug::active(Bug::VoteNotDurable) && matches!(op, LogOp::Vote(_)) {
            return done(Ok(()));
        }
        if bug::active(Bug::AppendAckedEarly) && matches!(op, LogOp::Append(_)) {
            std::mem::replace(&mut done, Box::new(|_| ()))(Ok(()));
        }
        let hint = self.view().take_hint();
        if let Some((bytes, in_flight)) = hint {
            let landed = Box::new(move |_| in_flight.store(false, Ordering::Release));
            self.inner.store.submit(LogOp::Committed(bytes), landed);
        }
        self.inner.store.submit(op, done);
    }

    fn push(&self, entries: impl IntoIterator<Item = Entry>) -> Result<(Vec<LogRecord>, Vec<Arc<Cached>>), StoreError> {
        let mut view = self.view();
        let (mut records, mut cached) = (Vec::new(), Vec::new());
        let mut tip = view.last;
        for mut entry in entries {
            let wire = entry_to_wire(&entry).map_err(|error| StoreError::Misuse(error.to_string()))?;
            if let Some(tip) = tip
                && tip.id.index.next() != wire.id.index
            {
                return Err(StoreError::Misuse(format!(
                    "append at {} above {}",
                    wire.id.index, tip.id.index
                )));
            }
            let previous = tip.and_then(|tip| tip.chain).unwrap_or_default();
            let chain = entry.chain_above(previous);
            if let Some(claimed) = entry.chain
                && claimed != chain
            {
                (self.inner.alarms)(RaftAlarm::ForkedLog {
                    index: wire.id.index,
                    ours: chain,
                    theirs: claimed,
                });
                return Err(StoreError::Misuse(format!(
                    "forked log at {}: nothing was stored",
                    wire.id.index
                )));
            }
            entry.set_chain(previous, chain);
            tip = Some(Tip {
                id: wire.id,
                chain: Some(chain),
            });
            let index = wire.id.index;
            let bytes = Bytes::from(codec::encode(EntryRecord { chain, entry: wire }));
            let bytes_len = bytes.len();
            cached.push(Arc::new(Cached {
                entry,
                bytes_len,
                is_durable: AtomicBool::new(false),
            }));
            records.push(LogRecord { index, bytes });
        }
        view.extend(&cached, tip);
        Ok((records, cached))
    }
}

impl<R: AsyncRuntime> RaftLogReader<TypeConfig<R>> for RaftLog<R> {
    async fn try_get_log_entries<B: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: B,
    ) -> Result<Vec<Entry>, io::Error> {
        let from = match range.start_bound() {
            Bound::Included(index) => index_from_raft(*index),
            Bound::Excluded(index) => index_from_raft(*index).next(),
            Bound::Unbounded => LogIndex(0),
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index_from_raft(*index).next(),
            Bound::Excluded(index) => index_from_raft(*index),
            Bound::Unbounded => LogIndex(u64::MAX),
        };
        Ok(self.entries(from, to, usize::MAX)?)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.view().vote.map(vote_from_wire))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        Ok(self.entries(index_from_raft(start), index_from_raft(end), APPEND_ENTRY_BYTES_MAX)?)
    }
}

impl<R: AsyncRuntime> RaftLogStorage<TypeConfig<R>> for RaftLog<R> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig<R>>, io::Error> {
        let view = self.view();
        Ok(LogState {
            last_purged_log_id: view.purged.map(|record| log_id_from_wire(record.id)),
            last_log_id: view.last.map(|tip| log_id_from_wire(tip.id)),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let wire = vote_to_wire(vote);
        let (sender, receiver) = oneshot::channel();
        let done = Box::new(move |outcome| drop(sender.send(outcome)));
        self.submit(LogOp::Vote(codec::encode(wire).into()), done);
        receiver.await.map_err(|_| StoreError::Closed)??;
        self.view().vote = Some(wire);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let id = committed.as_ref().map(log_id_to_wire);
        let bytes = Bytes::from(codec::encode(CommittedRecord { id }));
        // It goes with the next operation: a write of its own would cost as much as an append, for a hint.
        let mut view = self.view();
        view.committed = id;
        view.hint.unsent = Some(bytes);
        drop(view);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.view().committed.map(log_id_from_wire))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig<R>>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (records, cached) = self.push(entries)?;
        let done = Box::new(move |outcome: Result<(), StoreError>| {
            if outcome.is_ok() {
                cached
                    .iter()
                    .for_each(|entry| entry.is_durable.store(true, Ordering::Release));
            }
            callback.io_completed(outcome.map_err(io::Error::from));
        });
        self.submit(LogOp::Append(records), done);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(LogIndex(1), |id| index_from_raft(id.index).next());
        if self.view().last.is_none_or(|tip| tip.id.index < from) {
            return Ok(());
        }
        if let Some(committed) = self.committed()
            && from <= committed.index
        {
            (self.inner.alarms)(RaftAlarm::ConflictBelowCommitted {
                index: from,
                committed: committed.index,
            });
            return Err(StoreError::Misuse(format!("truncation at {from} below committed {}", committed.index)).into());
        }
        let below = match from.previous() {
            Some(index) if index > LogIndex(0) => self.held(index)?,
            Some(_) | None => Held::Beyond,
        };
        let mut view = self.view();
        view.last = match below {
            Held::At(id, chain) => Some(Tip { id, chain }),
            Held::Below | Held::Beyond => None,
        };
        view.retain(|index| index < from);
        drop(view);
        self.submit(LogOp::Truncate { from }, Box::new(|_| ()));
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let id = log_id_to_wire(&upto);
        let held = self.held(id.index)?;
        let mut view = self.view();
        let chain = match (held, view.snapshot_mark) {
            (Held::At(found, chain), _) if found == id => chain,
            (_, Some(mark)) if mark.id == id => mark.chain,
            _ => None,
        };
        let marker = PurgedRecord { id, chain };
        view.purged = Some(marker);
        view.retain(|index| index > id.index);
        view.first = id.index.next();
        if view.last.is_none_or(|tip| tip.id.index <= id.index) {
            view.last = Some(Tip { id, chain });
        }
        drop(view);
        let op = LogOp::Purge {
            upto: id.index,
            marker: codec::encode(marker).into(),
        };
        self.submit(op, Box::new(|_| ()));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
