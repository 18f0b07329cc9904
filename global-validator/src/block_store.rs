//! Finalized blocks with their proofs on this validator's disk, by height and by digest.
//! In: finalized blocks in order of height. Out: blocks. Called by: the driver; read by feed, peers, operators.
//!
//! # Rules
//! * Upon a finalized block: it is the next height, or it is held already.
//!
//! # Invariants
//! * Heights are dense from 1; each block's parent is the block below it.
//! * Nothing is ever replaced.
//!
//! Every block is kept: dropping old segments behind a certified state is left to a later version.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use common::{
    block::{FinalizedBlock, genesis_digest},
    codec::{decode, encode},
    ids::{ChainId, Digest, Height},
};
use transport::{
    ports::{Disk, Spawner},
    watch::Watch,
};

use crate::{
    exit::Stop,
    halt::Halt,
    segments::{Place, SEGMENT_BYTES, Segments, Stopped},
};

struct Index {
    by_height: Vec<(Digest, Place)>,
    by_digest: BTreeMap<Digest, Height>,
    tip: Digest,
}

impl Index {
    /// Adds the block above the tip.
    fn push(&mut self, block: &FinalizedBlock, place: Place) -> Result<(), String> {
        let want = self.tip_height().next();
        let header = &block.block.header;
        if header.height != want || header.parent != self.tip {
            return Err(format!(
                "block {} of height {} does not follow {} at height {}",
                header.digest(),
                header.height,
                self.tip,
                self.tip_height()
            ));
        }
        self.tip = header.digest();
        self.by_digest.insert(self.tip, want);
        self.by_height.push((self.tip, place));
        Ok(())
    }

    fn tip_height(&self) -> Height {
        Height(self.by_height.len() as u64)
    }

    fn place(&self, height: Height) -> Option<Place> {
        let at = usize::try_from(height.0.checked_sub(1)?).ok()?;
        self.by_height.get(at).map(|(_, place)| *place)
    }
}

/// Name of the store: its segments are `blocks-NNNNNN.seg`.
pub const BLOCKS: &str = "blocks";

/// Handle of the store; clones share it.
#[derive(Clone)]
pub struct BlockStore {
    segments: Segments,
    index: Arc<Mutex<Index>>,
    tip: Watch<Height>,
}

impl BlockStore {
    /// Opens the store and rebuilds its index.
    ///
    /// # Errors
    /// Of the file system; [`io::ErrorKind::InvalidData`] if the records are no chain.
    pub fn open(disk: &Arc<dyn Disk>, spawner: &Arc<dyn Spawner>, halt: &Halt, chain: &ChainId) -> io::Result<Self> {
        let damaged = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut index = Index {
            by_height: Vec::new(),
            by_digest: BTreeMap::new(),
            tip: genesis_digest(chain),
        };
        let segments = Segments::open(disk, spawner, halt, BLOCKS, SEGMENT_BYTES, |place, record| {
            let block: FinalizedBlock = decode(&record).map_err(|error| damaged(error.to_string()))?;
            index.push(&block, place).map_err(damaged)
        })?;
        let tip = Watch::new(index.tip_height());
        Ok(Self {
            segments,
            index: Arc::new(Mutex::new(index)),
            tip,
        })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Guarded sections only look up and insert.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores those of `blocks` that are above the tip, durably. One caller at a time.
    ///
    /// # Errors
    /// [`Stopped`]: the validator is ending.
    ///
    /// # Panics
    /// If they do not follow the tip: the core hands blocks out in order.
    pub async fn append(&self, blocks: &[FinalizedBlock]) -> Result<(), Stopped> {
        // After a restart the core may hand out again what was final here before its batches came.
        let held = self.tip().0;
        let is_above = |block: &&FinalizedBlock| block.block.header.height > held;
        let blocks: Vec<&FinalizedBlock> = blocks.iter().filter(is_above).collect();
        if blocks.is_empty() {
            return Ok(());
        }
        let records = blocks.iter().map(|block| encode(*block)).collect();
        let places = self.segments.append(records).await?;
        let tip = {
            let mut index = self.index();
            for (block, place) in blocks.iter().zip(places) {
                if let Err(wrong) = index.push(block, place) {
                    panic!("{wrong}");
                }
            }
            index.tip_height()
        };
        self.tip.set(tip);
        Ok(())
    }

    /// Height and digest of the last block; height 0 with the genesis digest if there is none.
    #[must_use]
    pub fn tip(&self) -> (Height, Digest) {
        let index = self.index();
        (index.tip_height(), index.tip)
    }

    /// The height of the tip, to wait on.
    #[must_use]
    pub fn tip_watch(&self) -> &Watch<Height> {
        &self.tip
    }

    /// The block at `height`.
    ///
    /// # Errors
    /// Of the disk: the caller stops the validator.
    pub fn at(&self, height: Height) -> Result<Option<FinalizedBlock>, Stop> {
        let Some(place) = self.index().place(height) else {
            return Ok(None);
        };
        let bytes = self.segments.read(place)?;
        decode(&bytes)
            .map(Some)
            .map_err(|error| Stop::storage(BLOCKS)(io::Error::new(io::ErrorKind::InvalidData, error.to_string())))
    }

    /// The block with `digest`.
    ///
    /// # Errors
    /// Of the disk: the caller stops the validator.
    pub fn by_digest(&self, digest: &Digest) -> Result<Option<FinalizedBlock>, Stop> {
        let height = self.index().by_digest.get(digest).copied();
        height.map_or(Ok(None), |height| self.at(height))
    }

    /// Blocks from `from` on, at most `limit` and at most `bytes_max` encoded bytes, at least one if
    /// there is one.
    ///
    /// # Errors
    /// Of the disk: the caller stops the validator.
    pub fn range(&self, from: Height, limit: usize, bytes_max: usize) -> Result<Vec<FinalizedBlock>, Stop> {
        let (mut blocks, mut bytes, mut height) = (Vec::new(), 0, from.max(Height(1)));
        while blocks.len() < limit {
            let Some(block) = self.at(height)? else { break };
            bytes += encode(&block).len();
            if bytes > bytes_max && !blocks.is_empty() {
                break;
            }
            blocks.push(block);
            height = height.next();
        }
        Ok(blocks)
    }
}

#[cfg(test)]
mod tests {
    use common::testing::{BlockChain, Fleet};
    use transport::memory::MemoryDisk;

    use super::*;
    use crate::test_ports::{on, spawner};

    fn open(disk: &MemoryDisk, fleet: &Fleet) -> io::Result<BlockStore> {
        BlockStore::open(&on(disk), &spawner(), &Halt::default(), &fleet.chain)
    }

    fn chain(fleet: &Fleet, count: usize) -> Vec<FinalizedBlock> {
        let mut chain = BlockChain::new(fleet, Digest::default());
        (0..count)
            .map(|_| fleet.finalize(chain.block(fleet, &[], 20)))
            .collect()
    }

    #[tokio::test]
    async fn blocks_are_found_by_height_and_digest_also_after_a_restart() {
        let (disk, fleet) = (MemoryDisk::new(), Fleet::new(1, 3, 4));
        let blocks = chain(&fleet, 5);
        let store = open(&disk, &fleet).unwrap();
        assert_eq!(store.tip(), (Height(0), genesis_digest(&fleet.chain)));
        store.append(&blocks[..2]).await.unwrap();
        store.append(&blocks[2..]).await.unwrap();
        disk.crash();
        let store = open(&disk, &fleet).unwrap();
        assert_eq!(store.tip(), (Height(5), blocks[4].block.digest()));
        assert_eq!(store.at(Height(3)).unwrap().as_ref(), Some(&blocks[2]));
        assert_eq!(
            store.by_digest(&blocks[3].block.digest()).unwrap().as_ref(),
            Some(&blocks[3])
        );
        assert_eq!(store.at(Height(0)).unwrap(), None);
        assert_eq!(store.at(Height(6)).unwrap(), None);
        assert_eq!(store.by_digest(&Digest::default()).unwrap(), None);
    }

    #[tokio::test]
    async fn range_is_bounded_by_count_and_bytes_and_never_empty_while_there_is_one() {
        let (disk, fleet) = (MemoryDisk::new(), Fleet::new(1, 3, 4));
        let blocks = chain(&fleet, 6);
        let store = open(&disk, &fleet).unwrap();
        store.append(&blocks).await.unwrap();
        assert_eq!(store.range(Height(2), 3, usize::MAX).unwrap(), blocks[1..4]);
        assert_eq!(store.range(Height(2), 3, 1).unwrap(), blocks[1..2]);
        assert_eq!(store.range(Height(0), 64, usize::MAX).unwrap(), blocks);
        assert!(store.range(Height(7), 64, usize::MAX).unwrap().is_empty());
        assert!(store.range(Height(u64::MAX), 64, usize::MAX).unwrap().is_empty());
    }

    #[tokio::test]
    async fn block_that_is_held_is_not_written_again() {
        let (disk, fleet) = (MemoryDisk::new(), Fleet::new(1, 3, 4));
        let blocks = chain(&fleet, 3);
        let store = open(&disk, &fleet).unwrap();
        store.append(&blocks[..2]).await.unwrap();
        store.append(&blocks).await.unwrap();
        disk.crash();
        assert_eq!(open(&disk, &fleet).unwrap().tip().0, Height(3));
    }

    #[tokio::test]
    async fn records_that_are_no_chain_are_damage() {
        let (disk, fleet) = (MemoryDisk::new(), Fleet::new(1, 3, 4));
        let blocks = chain(&fleet, 3);
        let (mut journal, _) = on(&disk).open_journal("blocks-000000.seg").unwrap();
        let records = vec![encode(&blocks[0]), encode(&blocks[2])];
        journal.append(records).await.unwrap();
        let Err(error) = open(&disk, &fleet) else {
            panic!("opened with a hole")
        };
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("does not follow"), "{error}");
    }
}
