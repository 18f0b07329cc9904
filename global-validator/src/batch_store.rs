//! Certified batches on this validator's disk, by digest.
//! In: verified batches. Out: batches, once asked for by digest. Called by: intake, peers, the driver.
//!
//! # Rules
//! * Upon a batch: durable before anybody is told. The same batch again changes nothing; one that is just being written
//!   is waited for.
//! * Upon a batch wanted for execution: from memory, or from the disk with its certificate checked again
//!   under the roster that its header names. Whether that roster is in force is for the state to say.
//!
//! # Invariants
//! * The index names only durable batches: what it says may be voted on.
//! * What is in the store was certified under a roster that was in force in its cluster: when it came, or before.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use common::{
    batch::{BatchError, CertifiedBatch},
    block::BatchRef,
    codec::{decode, encode},
    crypto::Verified,
    genesis::Genesis,
    global_queue::entered_rosters,
    ids::{BatchSeq, ClusterId, Digest, Founding},
    registry::Registry,
    roster::Roster,
};
use global_core::batch_pool::StoredBatch;
use tokio::sync::Notify;
use transport::ports::{Disk, Spawner};

use crate::{
    exit::Stop,
    halt::Halt,
    segments::{Place, SEGMENT_BYTES, Segments, Stopped},
};

/// Verified batches kept in memory.
const RECENT_MAX: usize = 256;
/// Their encoded bytes.
const RECENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A batch whose certificate was verified here.
pub type SharedBatch = Arc<Verified<CertifiedBatch>>;

#[derive(Default)]
struct Index {
    /// On their way to the disk.
    writing: BTreeSet<Digest>,
    by_digest: BTreeMap<Digest, Place>,
    by_seq: BTreeMap<(ClusterId, Founding, BatchSeq), Vec<StoredBatch>>,
    /// Every roster that a header of a cluster's batch may name.
    rosters: BTreeMap<(ClusterId, Digest), Arc<Roster>>,
    recent: BTreeMap<Digest, SharedBatch>,
    /// With encoded lengths, oldest first.
    recent_order: VecDeque<(Digest, usize)>,
    recent_bytes: usize,
}

impl Index {
    fn insert(&mut self, registry: &Registry, name: &BatchRef, batch: &CertifiedBatch, bytes: usize, place: Place) {
        if self.by_digest.insert(name.digest, place).is_none() {
            self.by_seq
                .entry((name.cluster, name.founding, name.seq))
                .or_default()
                .push(stored(name, batch, bytes));
        }
        let cluster = batch.header.cluster;
        for roster in entered_rosters(registry, cluster, &batch.entries) {
            let place = (cluster, roster.digest());
            self.rosters.entry(place).or_insert_with(|| Arc::new(roster.clone()));
        }
    }

    fn keep(&mut self, digest: Digest, batch: SharedBatch, bytes: usize) {
        if self.recent.insert(digest, batch).is_some() {
            return;
        }
        self.recent_order.push_back((digest, bytes));
        self.recent_bytes += bytes;
        while self.recent_order.len() > RECENT_MAX || self.recent_bytes > RECENT_BYTES_MAX {
            let Some((oldest, bytes)) = self.recent_order.pop_front() else {
                return;
            };
            self.recent.remove(&oldest);
            self.recent_bytes -= bytes;
        }
    }
}

/// What the core wants to know of a batch on the disk; `bytes`: its encoded length.
#[must_use]
pub fn stored(name: &BatchRef, batch: &CertifiedBatch, bytes: usize) -> StoredBatch {
    StoredBatch {
        batch: *name,
        prev_digest: batch.header.prev_digest,
        bytes: bytes as u32,
    }
}

/// Name of the store: its segments are `batches-NNNNNN.seg`.
pub const BATCHES: &str = "batches";

/// Handle of the store; clones share it.
#[derive(Clone)]
pub struct BatchStore {
    genesis: Arc<Genesis>,
    registry: Arc<Registry>,
    segments: Segments,
    index: Arc<Mutex<Index>>,
    /// Somebody has written a batch, or gave it up.
    written: Arc<Notify>,
}

/// A batch that is being written: by whoever holds this, until it is dropped.
struct Writing<'a> {
    store: &'a BatchStore,
    digest: Digest,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.store.index().writing.remove(&self.digest);
        self.store.written.notify_waiters();
    }
}

fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

impl BatchStore {
    /// Opens the store and rebuilds its index.
    ///
    /// # Errors
    /// Of the file system; [`io::ErrorKind::InvalidData`] if a record is no batch.
    pub fn open(
        disk: &Arc<dyn Disk>,
        spawner: &Arc<dyn Spawner>,
        halt: &Halt,
        genesis: Arc<Genesis>,
        registry: Arc<Registry>,
    ) -> io::Result<Self> {
        let mut index = Index::default();
        for cluster in (0..genesis.clusters.len() as u32).map(ClusterId) {
            let founding = genesis.founding_roster(cluster);
            let place = |roster: Roster| ((cluster, roster.digest()), Arc::new(roster));
            index.rosters.extend(founding.map(place));
        }
        let segments = Segments::open(disk, spawner, halt, BATCHES, SEGMENT_BYTES, |place, record| {
            let batch: CertifiedBatch = decode(&record).map_err(damaged)?;
            let name = BatchRef::to(&batch, registry.chain());
            index.insert(&registry, &name, &batch, record.len(), place);
            Ok(())
        })?;
        Ok(Self {
            genesis,
            registry,
            segments,
            index: Arc::new(Mutex::new(index)),
            written: Arc::default(),
        })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Guarded sections only look up and insert.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores `batch` durably and returns what the core wants to know of it, and whether it is new here.
    ///
    /// # Errors
    /// [`Stopped`]: the validator is ending.
    pub async fn put(&self, batch: SharedBatch) -> Result<(StoredBatch, bool), Stopped> {
        let name = BatchRef::to(&batch, self.registry.chain());
        let bytes = encode::<CertifiedBatch>(&batch);
        let len = bytes.len();
        let stored = stored(&name, &batch, len);
        let Some(writing) = self.begin_writing(name.digest).await else {
            return Ok((stored, false));
        };
        let places = self.segments.append(vec![bytes]).await?;
        {
            let mut index = self.index();
            index.insert(&self.registry, &name, &batch, len, places[0]);
            index.keep(name.digest, batch, len);
        }
        drop(writing);
        Ok((stored, true))
    }

    /// The right to write a batch, when nobody else does. `None`: it is here.
    async fn begin_writing(&self, digest: Digest) -> Option<Writing<'_>> {
        loop {
            let mut written = pin!(self.written.notified());
            // What is written between the look and the wait is heard of.
            written.as_mut().enable();
            {
                let mut index = self.index();
                if index.by_digest.contains_key(&digest) {
                    return None;
                }
                if index.writing.insert(digest) {
                    return Some(Writing { store: self, digest });
                }
            }
            written.await;
        }
    }

    /// A batch for execution, or `None` if it is not here, or if no roster known here certifies it.
    ///
    /// # Errors
    /// Of the disk: the caller stops the validator.
    pub fn verified(&self, digest: &Digest) -> Result<Option<SharedBatch>, Stop> {
        if let Some(batch) = self.index().recent.get(digest) {
            return Ok(Some(batch.clone()));
        }
        let Some(bytes) = self.bytes(digest)? else {
            return Ok(None);
        };
        let batch: CertifiedBatch = decode(&bytes).map_err(|error| Stop::storage(BATCHES)(damaged(error)))?;
        let Ok(batch) = self.verify(batch) else {
            return Ok(None);
        };
        let batch = Arc::new(batch);
        self.index().keep(*digest, batch.clone(), bytes.len());
        Ok(Some(batch))
    }

    /// Whether the roster that its header names is, or was, in force in its cluster, as far as the batches here tell.
    #[must_use]
    pub fn knows_roster(&self, batch: &CertifiedBatch) -> bool {
        let place = (batch.header.cluster, batch.header.roster);
        self.index().rosters.contains_key(&place)
    }

    /// Checks content and certificate under the roster that the header names. Whether that is in force is for the state
    /// to say.
    ///
    /// # Errors
    /// [`BatchError`]; `Content` too if no such roster of its cluster is known here.
    pub fn verify(&self, batch: CertifiedBatch) -> Result<Verified<CertifiedBatch>, BatchError> {
        let place = (batch.header.cluster, batch.header.roster);
        let roster = self.index().rosters.get(&place).cloned();
        let cluster = self.genesis.clusters.get(batch.header.cluster.0 as usize);
        let (Some(roster), Some(cluster)) = (roster, cluster) else {
            return Err(BatchError::Content("of a roster that its cluster never had"));
        };
        batch.verify(&self.registry, &roster, cluster.fault_model)
    }

    /// Whether the batch is durable here.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.index().by_digest.contains_key(digest)
    }

    /// Batches of this sequence number that are durable here: more than one is a cluster that
    /// contradicts itself.
    #[must_use]
    pub fn rivals(&self, cluster: ClusterId, founding: Founding, seq: BatchSeq) -> usize {
        self.index().by_seq.get(&(cluster, founding, seq)).map_or(0, Vec::len)
    }

    /// The batches of a cluster's founding from `from` on, ascending.
    #[must_use]
    pub fn from_seq(&self, cluster: ClusterId, founding: Founding, from: BatchSeq) -> Vec<StoredBatch> {
        self.index()
            .by_seq
            .range((cluster, founding, from)..=(cluster, founding, BatchSeq(u64::MAX)))
            .flat_map(|(_, rivals)| rivals)
            .copied()
            .collect()
    }

    /// Encoded bytes of a batch, as they were received.
    ///
    /// # Errors
    /// Of the disk: the caller stops the validator.
    pub fn bytes(&self, digest: &Digest) -> Result<Option<Vec<u8>>, Stop> {
        let Some(place) = self.index().by_digest.get(digest).copied() else {
            return Ok(None);
        };
        self.segments.read(place).map(Some)
    }

    /// A batch.
    ///
    /// # Errors
    /// Of the disk: the caller stops the validator.
    pub fn get(&self, digest: &Digest) -> Result<Option<CertifiedBatch>, Stop> {
        let Some(bytes) = self.bytes(digest)? else {
            return Ok(None);
        };
        decode(&bytes)
            .map(Some)
            .map_err(|error| Stop::storage(BATCHES)(damaged(error)))
    }

    /// Batches held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index().by_digest.len()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use common::{
        genesis::FaultModel,
        task::Scope,
        testing::{ClusterLog, Fleet, task},
    };
    use transport::memory::MemoryDisk;

    use super::*;
    use crate::test_ports::{on, spawner};

    const C1: ClusterId = ClusterId(0);

    fn open(disk: &MemoryDisk, fleet: &Fleet) -> BatchStore {
        let (genesis, registry) = (Arc::new(fleet.genesis.clone()), Arc::new(fleet.registry.clone()));
        BatchStore::open(&on(disk), &spawner(), &Halt::default(), genesis, registry).unwrap()
    }

    fn batches(fleet: &Fleet, count: u64) -> Vec<SharedBatch> {
        let mut log = ClusterLog::new(fleet, C1);
        let roster = fleet.roster(C1);
        (1..=count)
            .map(|i| {
                let entry = fleet.submit("op1", C1, i, Scope::Fleet, &task(&format!("k{i}")));
                let batch = log.granted(fleet, vec![entry]);
                Arc::new(batch.verify(&fleet.registry, &roster, FaultModel::Byzantine).unwrap())
            })
            .collect()
    }

    #[tokio::test]
    async fn batch_that_two_bring_at_once_is_written_once() {
        let (disk, fleet) = (MemoryDisk::new(), Fleet::new(1, 3, 4));
        let store = open(&disk, &fleet);
        let batch = batches(&fleet, 1).remove(0);
        let puts = futures::future::join_all((0..3).map(|_| store.put(batch.clone()))).await;
        let news = puts.into_iter().filter(|put| put.as_ref().unwrap().1);
        assert_eq!(news.count(), 1);
        drop(store);
        let mut records = 0;
        Segments::open(
            &on(&disk),
            &spawner(),
            &Halt::default(),
            BATCHES,
            SEGMENT_BYTES,
            |_, _| {
                records += 1;
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(records, 1);
    }

    #[tokio::test]
    async fn batch_whose_writer_went_away_is_written_by_the_next_one() {
        let (disk, fleet) = (MemoryDisk::new(), Fleet::new(1, 3, 4));
        let store = open(&disk, &fleet);
        let batch = batches(&fleet, 1).remove(0);
        let digest = batch.digest(&fleet.chain);
        let writing = store.begin_writing(digest).await.unwrap();
        let mut put = pin!(store.put(batch));
        assert!(futures::poll!(put.as_mut()).is_pending(), "somebody writes it");
        drop(writing);
        assert!(put.await.unwrap().1);
        assert!(store.contains(&digest));
    }

    #[tokio::test]
    async fn batch_survives_a_restart_and_is_verified_again() {
        let (disk, fleet) = (MemoryDisk::new(), Fleet::new(1, 3, 4));
        let store = open(&disk, &fleet);
        let batches = batches(&fleet, 3);
        for batch in &batches {
            assert!(store.put(batch.clone()).await.unwrap().1);
        }
        disk.crash();
        let store = open(&disk, &fleet);
        for batch in &batches {
            let digest = batch.digest(&fleet.chain);
            assert!(store.contains(&digest));
            assert_eq!(store.bytes(&digest).unwrap().unwrap(), batch.encoded());
            assert_eq!(store.verified(&digest).unwrap().unwrap(), *batch);
        }
        let waiting = store.from_seq(C1, Founding(0), BatchSeq(2));
        let seqs: Vec<u64> = waiting.iter().map(|stored| stored.batch.seq.0).collect();
        assert_eq!(seqs, [2, 3]);
        assert_eq!(waiting[0].prev_digest, batches[0].digest(&fleet.chain));
        assert_eq!(waiting[0].bytes as usize, batches[1].encoded().len());
        assert!(store.bytes(&Digest::default()).unwrap().is_none());
    }

    #[tokio::test]
    async fn same_batch_twice_is_written_once() {
        let (disk, fleet) = (MemoryDisk::new(), Fleet::new(1, 3, 4));
        let store = open(&disk, &fleet);
        let batch = batches(&fleet, 1).remove(0);
        let first = store.put(batch.clone()).await.unwrap();
        let again = store.put(batch).await.unwrap();
        assert_eq!((first.0, true, false), (again.0, first.1, again.1));
        assert_eq!(store.rivals(C1, Founding(0), BatchSeq(1)), 1);
    }

    #[test]
    fn memory_is_bounded_and_keeps_the_newest() {
        let fleet = Fleet::new(1, 3, 4);
        let mut index = Index::default();
        for batch in batches(&fleet, RECENT_MAX as u64 + 5) {
            index.keep(batch.digest(&fleet.chain), batch, 1);
        }
        assert_eq!((index.recent.len(), index.recent_order.len()), (RECENT_MAX, RECENT_MAX));
        let newest = index.recent_order.back().unwrap().0;
        assert_eq!(index.recent[&newest].header.seq, BatchSeq(RECENT_MAX as u64 + 5));
        index.keep(Digest::default(), index.recent[&newest].clone(), RECENT_BYTES_MAX);
        assert_eq!(index.recent.len(), 1, "bytes are bounded as well");
    }
}
