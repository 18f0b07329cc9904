//! Which certified batches this validator holds, which come next, and which are missing.
//! In: names of stored and heard-of batches. Out: what a leader may refer to, what must be fetched.
//!
//! The bytes are the shell's: it stores a batch durably, then reports it here.
//!
//! # Rules
//! * Upon a batch: known by its digest once, however often it comes.
//! * Upon a batch with a gap before it: parked, at most [`PARKED_PER_CLUSTER_MAX`] per cluster, and the
//!   one before it is asked for by the digest that its successor names.
//! * Upon a notice of a batch that would be stored: it waits and is fetched from whoever sent the notice, for a while. A
//!   notice whose bytes do not come is forgotten: it must not keep the timers of a view running.
//!
//! # Invariants
//! * At most [`HELD_PER_CLUSTER_MAX`] numbers per cluster and [`RIVALS_MAX`] digests per number, apart from
//!   those that a block refers to.

use std::collections::BTreeMap;

use common::{
    block::BatchRef,
    bug::{self, Bug},
    ids::{BatchSeq, ClusterId, Digest, Founding, NodeIdx},
};

use crate::{clock::Instant, ledger::Cursor};

/// Batches of one cluster that are held while one before them is missing.
pub const PARKED_PER_CLUSTER_MAX: u64 = 16;
/// Batches of one cluster that are held and not yet executed.
pub const HELD_PER_CLUSTER_MAX: u64 = 1_024;
/// Digests of one number: more than one is a cluster that contradicts itself.
pub const RIVALS_MAX: usize = 2;
/// Notices remembered in all.
const HEARD_MAX: usize = 1_024;

/// A batch on this validator's disk, as the pool knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoredBatch {
    /// Its name.
    pub batch: BatchRef,
    /// Digest of the batch before it, from its header.
    pub prev_digest: Digest,
    /// Encoded length, which counts towards the size of a block.
    pub bytes: u32,
}

/// A batch that is to be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WantedBatch {
    /// Which.
    pub batch: BatchRef,
    /// Likely to hold it, best first; empty: ask anybody.
    pub from: Vec<NodeIdx>,
}

/// Whether a submitted batch should be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Admission {
    /// Store it, then report it.
    Store,
    /// It is here: acknowledge again.
    Held,
    /// Its number was executed: acknowledge, there is nothing to do.
    Executed,
    /// Too far above what is next, or a third digest for its number: refuse, retry later.
    Full {
        /// The number that is next.
        next: BatchSeq,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stored {
    digest: Digest,
    prev_digest: Digest,
    bytes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Heard {
    from: NodeIdx,
    until: Instant,
}

type Place = (ClusterId, Founding);

/// All batches that are not executed yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BatchPool {
    stored: BTreeMap<Place, BTreeMap<BatchSeq, Vec<Stored>>>,
    heard: BTreeMap<BatchRef, Heard>,
}

impl BatchPool {
    /// Whether a batch named `batch` should be stored, when `cursor` is what is next of its cluster.
    #[must_use]
    pub fn admission(&self, batch: &BatchRef, cursor: &Cursor) -> Admission {
        let place = (batch.cluster, batch.founding);
        if cursor.is_past(batch) {
            return Admission::Executed;
        }
        let full = Admission::Full { next: cursor.next };
        let rivals = self.stored.get(&place).and_then(|seqs| seqs.get(&batch.seq));
        if rivals.is_some_and(|rivals| rivals.iter().any(|s| s.digest == batch.digest)) {
            return Admission::Held;
        }
        if rivals.is_some_and(|rivals| rivals.len() >= RIVALS_MAX) {
            return full;
        }
        let run_end = if batch.founding == cursor.founding {
            cursor.next.0 + self.run(batch.cluster, cursor).count() as u64
        } else {
            1
        };
        let is_near = batch.seq.0 < cursor.next.0.saturating_add(HELD_PER_CLUSTER_MAX)
            && batch.seq.0 <= run_end.saturating_add(PARKED_PER_CLUSTER_MAX);
        if is_near { Admission::Store } else { full }
    }

    /// Takes note of a batch that is on disk.
    pub fn insert(&mut self, stored: StoredBatch) {
        let StoredBatch {
            batch,
            prev_digest,
            bytes,
        } = stored;
        self.heard.remove(&batch);
        let seqs = self.stored.entry((batch.cluster, batch.founding)).or_default();
        let rivals = seqs.entry(batch.seq).or_default();
        if rivals.iter().all(|s| s.digest != batch.digest) {
            rivals.push(Stored {
                digest: batch.digest,
                prev_digest,
                bytes,
            });
            // Every validator looks at rivals in one order, whichever came first.
            rivals.sort_unstable_by_key(|s| s.digest);
        }
    }

    /// How many batches of each cluster are held, if any are.
    #[must_use]
    pub fn batches_held(&self) -> BTreeMap<ClusterId, u64> {
        let mut held = BTreeMap::new();
        for ((cluster, _), seqs) in &self.stored {
            *held.entry(*cluster).or_default() += seqs.values().map(Vec::len).sum::<usize>() as u64;
        }
        held
    }

    /// Takes note of a certified header whose bytes `from` says it holds, until `until`.
    /// Returns what to fetch if this is news.
    pub fn hear(&mut self, batch: BatchRef, from: NodeIdx, until: Instant) -> Option<WantedBatch> {
        if self.holds(&batch) || self.heard.contains_key(&batch) || self.heard.len() >= HEARD_MAX {
            return None;
        }
        let of_its_number = (batch.cluster, batch.founding, batch.seq);
        let rivals_heard = self
            .heard
            .keys()
            .filter(|heard| (heard.cluster, heard.founding, heard.seq) == of_its_number);
        let stored = self.stored.get(&(batch.cluster, batch.founding));
        let rivals_stored = stored.and_then(|seqs| seqs.get(&batch.seq)).map_or(0, Vec::len);
        if rivals_heard.count() + rivals_stored >= RIVALS_MAX {
            return None;
        }
        self.heard.insert(batch, Heard { from, until });
        Some(WantedBatch {
            batch,
            from: vec![from],
        })
    }

    /// Forgets notices whose time is over.
    pub fn forget_heard(&mut self, now: Instant) {
        self.heard.retain(|_, heard| now < heard.until);
    }

    /// When the next notice is forgotten.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        self.heard.values().map(|heard| heard.until).min()
    }

    /// Whether the batch is on disk.
    #[must_use]
    pub fn holds(&self, batch: &BatchRef) -> bool {
        self.prev_digest(batch).is_some()
    }

    /// Digest of the batch before `batch`, if that is on disk.
    #[must_use]
    pub fn prev_digest(&self, batch: &BatchRef) -> Option<Digest> {
        let rivals = self.stored.get(&(batch.cluster, batch.founding))?.get(&batch.seq)?;
        rivals
            .iter()
            .find(|s| s.digest == batch.digest)
            .map(|stored| stored.prev_digest)
    }

    /// The batches of one cluster that follow `cursor` without a gap, with their lengths.
    pub fn run(&self, cluster: ClusterId, cursor: &Cursor) -> impl Iterator<Item = (BatchRef, u32)> + '_ {
        let founding = cursor.founding;
        let mut next = *cursor;
        let seqs = self.stored.get(&(cluster, founding));
        std::iter::from_fn(move || {
            let rivals = seqs?.get(&next.next)?;
            let stored = rivals.iter().find(|s| s.prev_digest == next.prev_digest)?;
            let batch = BatchRef {
                cluster,
                founding,
                seq: next.next,
                digest: stored.digest,
            };
            next = next.after(&batch);
            Some((batch, stored.bytes))
        })
    }

    /// Whether a batch that is next after `cursors` is stored or heard of.
    #[must_use]
    pub fn has_next(&self, cursors: &BTreeMap<ClusterId, Cursor>) -> bool {
        cursors.iter().any(|(cluster, cursor)| {
            let is_heard = |(batch, _): (&BatchRef, _)| batch.founding == cursor.founding && batch.seq == cursor.next;
            let heard = self.heard.range(lowest_of(*cluster)..);
            let mut heard = heard.take_while(|(batch, _)| batch.cluster == *cluster);
            self.run(*cluster, cursor).next().is_some() || heard.any(is_heard)
        })
    }

    /// Batches before parked ones that are not here, by the digests that the parked ones name.
    #[must_use]
    pub fn missing(&self, cursors: &BTreeMap<ClusterId, Cursor>) -> Vec<WantedBatch> {
        let mut missing = Vec::new();
        for (cluster, cursor) in cursors {
            let Some(seqs) = self.stored.get(&(*cluster, cursor.founding)) else {
                continue;
            };
            for (seq, rivals) in seqs.range(cursor.next.next()..) {
                for stored in rivals {
                    let before = BatchRef {
                        cluster: *cluster,
                        founding: cursor.founding,
                        seq: seq.previous().expect("above the cursor"),
                        digest: stored.prev_digest,
                    };
                    if !self.holds(&before) {
                        missing.push(WantedBatch {
                            batch: before,
                            from: Vec::new(),
                        });
                    }
                }
            }
        }
        missing.extend(self.heard.iter().map(|(batch, heard)| WantedBatch {
            batch: *batch,
            from: vec![heard.from],
        }));
        missing
    }

    /// Drops what was executed, or can never be: numbers below the cursors and older foundings.
    pub fn prune(&mut self, executed: &BTreeMap<ClusterId, Cursor>) {
        if bug::active(Bug::BatchesKept) {
            return;
        }
        for (cluster, cursor) in executed {
            self.stored
                .retain(|(c, founding), _| c != cluster || *founding >= cursor.founding);
            if let Some(seqs) = self.stored.get_mut(&(*cluster, cursor.founding)) {
                *seqs = seqs.split_off(&cursor.next);
            }
            self.heard.retain(|batch, _| {
                batch.cluster != *cluster || (batch.founding, batch.seq) >= (cursor.founding, cursor.next)
            });
        }
        self.stored.retain(|_, seqs| !seqs.is_empty());
    }
}

/// The lowest name that a batch of `cluster` can have, from which a range over it begins.
fn lowest_of(cluster: ClusterId) -> BatchRef {
    BatchRef {
        cluster,
        founding: Founding(0),
        seq: BatchSeq(0),
        digest: Digest([0; 32]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(1);

    fn digest(seq: u64) -> Digest {
        if seq == 0 {
            Digest::default()
        } else {
            Digest([seq as u8; 32])
        }
    }

    fn name(seq: u64) -> BatchRef {
        BatchRef {
            cluster: CLUSTER,
            founding: Founding(0),
            seq: BatchSeq(seq),
            digest: digest(seq),
        }
    }

    fn stored(seq: u64) -> StoredBatch {
        StoredBatch {
            batch: name(seq),
            prev_digest: digest(seq - 1),
            bytes: 100,
        }
    }

    fn first() -> Cursor {
        Cursor {
            founding: Founding(0),
            next: BatchSeq(1),
            prev_digest: Digest::default(),
        }
    }

    fn cursors() -> BTreeMap<ClusterId, Cursor> {
        [(CLUSTER, first())].into()
    }

    fn run(pool: &BatchPool) -> Vec<u64> {
        pool.run(CLUSTER, &first()).map(|(batch, _)| batch.seq.0).collect()
    }

    #[test]
    fn a_run_ends_at_the_first_gap_and_the_missing_one_is_asked_for_by_digest() {
        let mut pool = BatchPool::default();
        for seq in [1, 2, 4] {
            pool.insert(stored(seq));
        }
        assert_eq!(run(&pool), [1, 2]);
        let missing = pool.missing(&cursors());
        assert_eq!(missing.iter().map(|wanted| wanted.batch).collect::<Vec<_>>(), [name(3)]);
        pool.insert(stored(3));
        assert_eq!(run(&pool), [1, 2, 3, 4]);
        assert_eq!(pool.missing(&cursors()), []);
    }

    #[test]
    fn parked_batches_are_bounded() {
        let mut pool = BatchPool::default();
        pool.insert(stored(1));
        let last = 2 + PARKED_PER_CLUSTER_MAX;
        assert_eq!(pool.admission(&name(last), &first()), Admission::Store);
        let full = Admission::Full { next: BatchSeq(1) };
        assert_eq!(pool.admission(&name(last + 1), &first()), full);
        assert_eq!(pool.admission(&name(1), &first()), Admission::Held);
    }

    #[test]
    fn a_third_digest_for_one_number_is_refused() {
        let mut pool = BatchPool::default();
        for rival in 0..RIVALS_MAX as u8 {
            let mut batch = stored(1);
            batch.batch.digest = Digest([100 + rival; 32]);
            pool.insert(batch);
        }
        let full = Admission::Full { next: BatchSeq(1) };
        assert_eq!(pool.admission(&name(1), &first()), full);
    }

    #[test]
    fn a_batch_with_another_predecessor_is_not_next() {
        let mut pool = BatchPool::default();
        let mut stranger = stored(1);
        stranger.prev_digest = Digest([9; 32]);
        pool.insert(stranger);
        assert_eq!(run(&pool), [] as [u64; 0]);
    }

    #[test]
    fn a_notice_waits_until_its_time_is_over_or_its_bytes_come() {
        let mut pool = BatchPool::default();
        assert!(pool.hear(name(1), NodeIdx(3), Instant(10)).is_some());
        assert!(pool.hear(name(1), NodeIdx(3), Instant(99)).is_none(), "told twice");
        assert!(pool.has_next(&cursors()));
        pool.forget_heard(Instant(10));
        assert!(!pool.has_next(&cursors()));
        assert!(pool.hear(name(2), NodeIdx(3), Instant(30)).is_some());
        assert!(!pool.has_next(&cursors()), "it is not next");
    }

    #[test]
    fn executed_batches_are_dropped() {
        let mut pool = BatchPool::default();
        pool.insert(stored(1));
        pool.insert(stored(2));
        let after = first().after(&name(1));
        pool.prune(&[(CLUSTER, after)].into());
        assert!(!pool.holds(&name(1)) && pool.holds(&name(2)));
        assert_eq!(pool.admission(&name(1), &after), Admission::Executed);
    }
}
