//! What the log holds, durable or not: the newest entries in memory, the rest in the store.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use common::ids::{Digest, LogIndex};

use super::super::{
    codec::{self, APPEND_ENTRY_BYTES_MAX, CommittedRecord, EntryRecord, PurgedRecord, WireLogId, WireVote},
    store::{LogRecord, LogStore, StoreError},
    types::{Entry, chain_of, entry_from_wire, index_from_raft, log_id_to_wire},
};

/// What one entry costs in memory besides its bytes.
const CACHE_OVERHEAD_BYTES: usize = 256;

/// Everything submitted so far, durable or not.
pub(super) struct View {
    pub(super) vote: Option<WireVote>,
    pub(super) committed: Option<WireLogId>,
    pub(super) purged: Option<PurgedRecord>,
    /// Index of the first entry that is not purged; meaningless while `last` is the purge marker.
    pub(super) first: LogIndex,
    /// Last entry or, without one, the purge marker.
    pub(super) last: Option<Tip>,
    /// The newest entries, without a gap up to `last`.
    pub(super) cache: BTreeMap<LogIndex, Arc<Cached>>,
    pub(super) cache_bytes: usize,
    pub(super) cache_bytes_max: usize,
    /// Rises with every truncation and purge, so that a read from the store notices them.
    pub(super) epoch: u64,
    pub(super) hint: Hint,
    /// Chain at the last installed snapshot, for the purge that follows it.
    pub(super) snapshot_mark: Option<PurgedRecord>,
}

#[derive(Clone, Copy)]
pub(super) struct Tip {
    pub(super) id: WireLogId,
    pub(super) chain: Option<Digest>,
}

pub(super) struct Cached {
    pub(super) entry: Entry,
    pub(super) bytes_len: usize,
    pub(super) is_durable: AtomicBool,
}

#[derive(Default)]
pub(super) struct Hint {
    pub(super) unsent: Option<Bytes>,
    pub(super) in_flight: Arc<AtomicBool>,
}

impl View {
    /// First index and the one after the last, or `None` without entries.
    pub(super) fn range(&self) -> Option<(LogIndex, LogIndex)> {
        let tip = self.last?;
        let is_marker = self.purged.is_some_and(|purged| purged.id.index >= tip.id.index);
        (!is_marker).then(|| (self.first, tip.id.index.next()))
    }

    pub(super) fn cached_range(
        &self,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
        mut bytes_used: usize,
    ) -> Vec<Entry> {
        let mut found = Vec::new();
        for cached in self.cache.range(from..to).map(|(_, cached)| cached) {
            let is_first = found.is_empty() && bytes_used == 0;
            bytes_used = bytes_used.saturating_add(cached.bytes_len);
            if !is_first && bytes_used > bytes_max {
                break;
            }
            found.push(cached.entry.clone());
        }
        found
    }

    pub(super) fn extend(&mut self, cached: &[Arc<Cached>], tip: Option<Tip>) {
        if let Some(first) = cached.first()
            && self.range().is_none()
        {
            self.first = index_from_raft(first.entry.id.index);
        }
        self.last = tip;
        for entry in cached {
            self.cache_bytes += entry.bytes_len + CACHE_OVERHEAD_BYTES;
            self.cache.insert(index_from_raft(entry.entry.id.index), entry.clone());
        }
        self.evict();
    }

    /// Forgets the oldest durable entries above the bound.
    pub(super) fn evict(&mut self) {
        while self.cache_bytes > self.cache_bytes_max
            && let Some(oldest) = self.cache.first_entry()
            && oldest.get().is_durable.load(Ordering::Acquire)
        {
            self.cache_bytes -= oldest.remove().bytes_len + CACHE_OVERHEAD_BYTES;
        }
    }

    pub(super) fn retain(&mut self, keep: impl Fn(LogIndex) -> bool) {
        self.cache.retain(|index, _| keep(*index));
        self.cache_bytes = self
            .cache
            .values()
            .map(|cached| cached.bytes_len + CACHE_OVERHEAD_BYTES)
            .sum();
        self.epoch += 1;
    }

    pub(super) fn take_hint(&mut self) -> Option<(Bytes, Arc<AtomicBool>)> {
        if self.hint.unsent.is_none() || self.hint.in_flight.swap(true, Ordering::AcqRel) {
            return None;
        }
        self.hint
            .unsent
            .take()
            .map(|bytes| (bytes, self.hint.in_flight.clone()))
    }
}

/// Decodes records that must start at `from` and have no gap.
pub(super) fn decode_run(records: &[LogRecord], from: LogIndex) -> Result<Vec<Entry>, StoreError> {
    let mut next = from;
    let mut entries = Vec::with_capacity(records.len());
    for record in records {
        let corrupt = |why: &dyn std::fmt::Display| StoreError::Corrupt(format!("entry {}: {why}", record.index));
        let decoded: EntryRecord = codec::decode(&record.bytes).map_err(|error| corrupt(&error))?;
        if record.index != next || decoded.entry.id.index != next {
            return Err(corrupt(&format!("expected index {next}")));
        }
        next = next.next();
        entries.push(entry_from_wire(decoded.entry, Some(decoded.chain), None).map_err(|why| corrupt(&why))?);
    }
    Ok(entries)
}

pub(super) fn recover(store: &dyn LogStore, cache_bytes_max: usize) -> Result<View, StoreError> {
    let found = store.recovered()?;
    let bad = |what: &str, error: common::codec::DecodeError| StoreError::Corrupt(format!("{what}: {error}"));
    let vote = found
        .vote
        .as_deref()
        .map(codec::decode)
        .transpose()
        .map_err(|error| bad("vote", error))?;
    let hint = found
        .committed
        .as_deref()
        .map(codec::decode::<CommittedRecord>)
        .transpose();
    let committed = hint
        .map_err(|error| bad("committed hint", error))?
        .and_then(|record| record.id);
    let marker = found
        .purged
        .as_ref()
        .map(|(_, bytes)| codec::decode::<PurgedRecord>(bytes))
        .transpose();
    let purged = marker.map_err(|error| bad("purge marker", error))?;
    let mut view = View {
        vote,
        committed,
        purged,
        first: LogIndex(1),
        last: purged.map(|record| Tip {
            id: record.id,
            chain: record.chain,
        }),
        cache: BTreeMap::new(),
        cache_bytes: 0,
        cache_bytes_max,
        epoch: 0,
        hint: Hint::default(),
        snapshot_mark: None,
    };
    let Some((first, last)) = found.records else {
        return Ok(view);
    };
    if let Some(purged) = purged
        && first != purged.id.index.next()
    {
        return Err(StoreError::Corrupt(format!(
            "first entry {first} does not follow {}",
            purged.id.index
        )));
    }
    view.first = first;
    let mut next = first;
    while next <= last {
        let records = store.read(next, last.next(), APPEND_ENTRY_BYTES_MAX)?;
        if records.is_empty() {
            return Err(StoreError::Corrupt(format!("entry {next} is missing")));
        }
        let lens: Vec<usize> = records.iter().map(|record| record.bytes.len()).collect();
        for (entry, bytes_len) in decode_run(&records, next)?.into_iter().zip(lens) {
            next = next.next();
            view.recover_entry(entry, bytes_len)?;
        }
    }
    Ok(view)
}

impl View {
    pub(super) fn recover_entry(&mut self, mut entry: Entry, bytes_len: usize) -> Result<(), StoreError> {
        let id = log_id_to_wire(&entry.id);
        let previous = self.last.and_then(|tip| tip.chain).unwrap_or_default();
        let chain = chain_of(&entry, previous);
        if entry.chain != Some(chain) {
            return Err(StoreError::Corrupt(format!(
                "entry {}: its chain does not follow",
                id.index
            )));
        }
        entry.set_chain(previous, chain);
        let tip = Tip { id, chain: Some(chain) };
        let cached = Arc::new(Cached {
            entry,
            bytes_len,
            is_durable: AtomicBool::new(true),
        });
        self.last = Some(tip);
        self.cache_bytes += bytes_len + CACHE_OVERHEAD_BYTES;
        self.cache.insert(id.index, cached);
        self.evict();
        Ok(())
    }
}
