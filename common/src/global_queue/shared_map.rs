//! Maps and sets whose copies are cheap and whose digest costs what changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{crypto::sha256, genesis::padded, ids::Digest, merkle};

/// Buckets of a [`HashedMap`].
const BUCKETS: usize = 1_024;
/// Buckets in a group, under one cached inner hash.
const GROUP: usize = 32;

/// A key that says which bucket it belongs to: the first ten bits, so that buckets are in key order.
pub(super) trait BucketKey: Copy + Ord {
    /// The first two bytes of the key.
    fn first_bytes(&self) -> [u8; 2];

    /// Below [`BUCKETS`].
    fn bucket(&self) -> usize {
        usize::from(u16::from_be_bytes(self.first_bytes()) >> 6)
    }
}

/// A value with a digest over everything that two machines must agree on.
pub(super) trait Digested {
    /// Digest of the value under its key, and its encoded length in a snapshot.
    fn digest(&self) -> (Digest, usize);
}

/// A value with what is known of it since the last refresh.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot<V> {
    value: Arc<V>,
    digest: Digest,
    bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Bucket<K, V> {
    rows: BTreeMap<K, Slot<V>>,
}

impl<K: BucketKey, V> Bucket<K, V> {
    fn digest(&self) -> Digest {
        let mut bytes = Vec::with_capacity(self.rows.len() * 32);
        for slot in self.rows.values() {
            bytes.extend_from_slice(&slot.digest.0);
        }
        merkle::leaf(&bytes)
    }
}

/// Buckets side by side, with what is known of them since the last refresh.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group<K, V> {
    buckets: [Arc<Bucket<K, V>>; GROUP],
    digests: [Digest; GROUP],
    root: Digest,
}

impl<K: BucketKey, V: Clone> Group<K, V> {
    /// The bucket for change. Copies what others still share.
    fn bucket_mut(&mut self, bucket: usize) -> &mut Bucket<K, V> {
        Arc::make_mut(&mut self.buckets[bucket % GROUP])
    }
}

/// An ordered map in 1,024 buckets, 32 in a group. A copy shares all groups; a change copies one, and one bucket.
///
/// The root is the RFC 6962 root over bucket digests. [`refresh`](Self::refresh) rehashes the rows,
/// buckets and inner hashes that were touched since the last one, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HashedMap<K, V> {
    groups: Vec<Arc<Group<K, V>>>,
    root: Digest,
    dirty: BTreeSet<K>,
    len: usize,
    bytes: usize,
}

impl<K: BucketKey, V: Clone + Digested> HashedMap<K, V> {
    pub(super) fn new() -> Self {
        // All begin as the same empty one; the first change of each copies it.
        let empty = Arc::new(Bucket { rows: BTreeMap::new() });
        let digests = [empty.digest(); GROUP];
        let group = Arc::new(Group {
            buckets: std::array::from_fn(|_| empty.clone()),
            digests,
            root: merkle::root(&digests),
        });
        Self {
            root: merkle::root(&[group.root; BUCKETS / GROUP]),
            groups: vec![group; BUCKETS / GROUP],
            dirty: BTreeSet::new(),
            len: 0,
            bytes: 0,
        }
    }

    fn bucket(&self, key: &K) -> &Bucket<K, V> {
        let at = key.bucket();
        &self.groups[at / GROUP].buckets[at % GROUP]
    }

    fn bucket_mut(&mut self, key: &K) -> &mut Bucket<K, V> {
        let at = key.bucket();
        Arc::make_mut(&mut self.groups[at / GROUP]).bucket_mut(at)
    }

    fn buckets_from(&self, bucket: usize) -> impl Iterator<Item = &Bucket<K, V>> {
        let groups = self.groups[bucket / GROUP..].iter();
        let buckets = groups.flat_map(|group| group.buckets.iter().map(|bucket| &**bucket));
        buckets.skip(bucket % GROUP)
    }

    fn buckets(&self) -> impl Iterator<Item = &Bucket<K, V>> {
        self.buckets_from(0)
    }

    /// Encoded bytes of all values in a snapshot, as of the last refresh.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.bucket(key).rows.get(key).map(|slot| &*slot.value)
    }

    /// The value for change; its digest is stale until the next refresh.
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.bucket(key).rows.contains_key(key) {
            return None;
        }
        self.dirty.insert(*key);
        self.bucket_mut(key)
            .rows
            .get_mut(key)
            .map(|slot| Arc::make_mut(&mut slot.value))
    }

    /// Adds or replaces a value.
    pub(super) fn insert(&mut self, key: K, value: V) {
        self.dirty.insert(key);
        let slot = Slot {
            value: Arc::new(value),
            digest: Digest::default(),
            bytes: 0,
        };
        let before = self.bucket_mut(&key).rows.insert(key, slot);
        self.len += usize::from(before.is_none());
        self.bytes -= before.map_or(0, |slot| slot.bytes);
    }

    /// Takes a value out.
    pub(super) fn remove(&mut self, key: &K) -> Option<Arc<V>> {
        if !self.bucket(key).rows.contains_key(key) {
            return None;
        }
        self.dirty.insert(*key);
        let slot = self.bucket_mut(key).rows.remove(key)?;
        self.len -= 1;
        self.bytes -= slot.bytes;
        Some(slot.value)
    }

    /// All values in key order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.buckets()
            .flat_map(|bucket| bucket.rows.iter().map(|(key, slot)| (key, &*slot.value)))
    }

    /// Values above `after` in key order.
    pub(super) fn iter_after(&self, after: Option<K>) -> impl Iterator<Item = (&K, &V)> {
        let first = after.map_or(0, |key| key.bucket());
        self.buckets_from(first)
            .flat_map(|bucket| bucket.rows.iter().map(|(key, slot)| (key, &*slot.value)))
            .skip_while(move |(key, _)| after.is_some_and(|after| **key <= after))
    }

    /// Brings the digests of what was touched up to date.
    pub(super) fn refresh(&mut self) {
        if self.dirty.is_empty() {
            return;
        }
        let mut touched = BTreeSet::new();
        for key in core::mem::take(&mut self.dirty) {
            if let Some(slot) = self.bucket_mut(&key).rows.get_mut(&key) {
                let (digest, bytes) = slot.value.digest();
                let before = std::mem::replace(&mut slot.bytes, bytes);
                slot.digest = digest;
                self.bytes = self.bytes - before + bytes;
            }
            touched.insert(key.bucket());
        }
        let mut groups = BTreeSet::new();
        for at in touched {
            let group = Arc::make_mut(&mut self.groups[at / GROUP]);
            group.digests[at % GROUP] = group.buckets[at % GROUP].digest();
            groups.insert(at / GROUP);
        }
        for at in groups {
            let group = Arc::make_mut(&mut self.groups[at]);
            group.root = merkle::root(&group.digests);
        }
        let roots: Vec<Digest> = self.groups.iter().map(|group| group.root).collect();
        self.root = merkle::root(&roots);
    }

    /// The root after the last refresh.
    pub(super) fn root(&self) -> Digest {
        assert!(self.dirty.is_empty(), "the root is read after a refresh");
        self.root
    }

    /// The root computed from the values alone, by the definition and without any cache.
    pub(super) fn root_from_scratch(&self) -> Digest {
        let digests: Vec<Digest> = self
            .buckets()
            .map(|bucket| {
                let rows = bucket.rows.iter().map(|(key, slot)| {
                    let (digest, bytes) = slot.value.digest();
                    let value = slot.value.clone();
                    (*key, Slot { value, digest, bytes })
                });
                Bucket { rows: rows.collect() }.digest()
            })
            .collect();
        merkle::root(&digests)
    }
}

/// An ordered set in chunks. A copy shares all chunks; a change copies one.
///
/// The caller names the chunk of each key; chunks must be in key order for [`iter`](Self::iter) to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChunkedSet<C, K> {
    chunks: Arc<BTreeMap<C, Arc<BTreeSet<K>>>>,
}

impl<C, K> Default for ChunkedSet<C, K> {
    fn default() -> Self {
        Self {
            chunks: Arc::new(BTreeMap::new()),
        }
    }
}

impl<C: Ord + Copy, K: Ord + Copy> ChunkedSet<C, K> {
    pub(super) fn insert(&mut self, chunk: C, key: K) {
        let chunks = Arc::make_mut(&mut self.chunks);
        let is_new = Arc::make_mut(chunks.entry(chunk).or_default()).insert(key);
        assert!(is_new, "a key is indexed once");
    }

    pub(super) fn remove(&mut self, chunk: C, key: &K) {
        let chunks = Arc::make_mut(&mut self.chunks);
        let keys = chunks.get_mut(&chunk).expect("what is removed was indexed");
        assert!(Arc::make_mut(keys).remove(key), "what is removed was indexed");
        if keys.is_empty() {
            chunks.remove(&chunk);
        }
    }

    /// All keys, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = &K> {
        self.chunks.values().flat_map(|keys| keys.iter())
    }

    /// Keys in a range of one chunk, ascending.
    pub(super) fn within(&self, chunk: C, keys: impl core::ops::RangeBounds<K>) -> impl Iterator<Item = &K> {
        self.chunks.get(&chunk).into_iter().flat_map(move |all| {
            let (low, high) = (keys.start_bound(), keys.end_bound());
            all.range((low, high))
        })
    }

    /// Keys of the chunks in a range, ascending.
    pub(super) fn chunks(&self, range: impl core::ops::RangeBounds<C>) -> impl Iterator<Item = &K> {
        self.chunks.range(range).flat_map(|(_, keys)| keys.iter())
    }
}

/// Digest of the parts of a section, under its name.
pub(super) fn section(name: &[u8], bytes: &[u8]) -> Digest {
    sha256(&[&padded(name), bytes])
}
