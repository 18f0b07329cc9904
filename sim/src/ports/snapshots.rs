//! The snapshots of one member in the simulator: in memory, and as slow to become durable as its disk.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use cluster_agent::raft::store::{
    StoreError,
    snapshot::{DraftName, MemorySnapshots, SnapshotBytes, SnapshotDraft, SnapshotStore},
};
use common::ids::{LogIndex, LogPosition};
use transport::ports::BoxFuture;

use super::{Rotten, SimDisk};

/// See the module.
#[derive(Clone)]
pub struct SimSnapshots {
    disk: SimDisk,
    memory: MemorySnapshots,
    begun: Arc<AtomicU64>,
    /// Up to where one stood for the log.
    upto: Arc<AtomicU64>,
}

impl SimSnapshots {
    /// None yet.
    #[must_use]
    pub fn new(disk: SimDisk) -> Self {
        Self {
            disk,
            memory: MemorySnapshots::default(),
            begun: Arc::default(),
            upto: Arc::default(),
        }
    }

    /// The disk under them is gone.
    pub fn wipe(&mut self) {
        self.memory = MemorySnapshots::default();
        self.upto.store(0, Ordering::Relaxed);
    }

    fn on_the_disk(&self, bytes: Arc<dyn SnapshotBytes>) -> Arc<dyn SnapshotBytes> {
        let disk = self.disk.clone();
        Arc::new(OnDisk { disk, bytes })
    }

    /// Last index for which a durable one stood; 0 if there was none.
    #[must_use]
    pub fn upto(&self) -> LogIndex {
        LogIndex(self.upto.load(Ordering::Relaxed))
    }

    /// How many were begun to be written, over all lives.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }
}

/// A snapshot as its disk returns it.
struct OnDisk {
    disk: SimDisk,
    bytes: Arc<dyn SnapshotBytes>,
}

impl SnapshotBytes for OnDisk {
    fn bytes_len(&self) -> u64 {
        self.bytes.bytes_len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.bytes.read_at(offset, buffer)?;
        let trouble = self.disk.trouble();
        trouble.flip(Rotten::Snapshots, buffer, offset, self.bytes_len());
        Ok(())
    }
}

impl SnapshotStore for SimSnapshots {
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<Result<(), StoreError>> {
        self.memory.run(work)
    }

    fn newest(&self) -> Result<Option<Arc<dyn SnapshotBytes>>, StoreError> {
        Ok(self.memory.newest()?.map(|bytes| self.on_the_disk(bytes)))
    }

    fn draft(&self, name: DraftName) -> Result<Box<dyn SnapshotDraft>, StoreError> {
        self.memory.draft(name)
    }

    fn publish(
        &self,
        draft: Box<dyn SnapshotDraft>,
        at: LogPosition,
    ) -> BoxFuture<Result<Arc<dyn SnapshotBytes>, StoreError>> {
        let store = self.clone();
        Box::pin(async move {
            store.begun.fetch_add(1, Ordering::Relaxed);
            let mut bytes = vec![0; usize::try_from(draft.bytes_len()).unwrap_or(usize::MAX)];
            draft.read_at(0, &mut bytes)?;
            if let Err(error) = store.disk.sync(&[&bytes]).await {
                draft.discard();
                return Err(StoreError::Io(error.to_string()));
            }
            let published = store.memory.publish(draft, at).await?;
            store.upto.fetch_max(at.index.0, Ordering::Relaxed);
            Ok(store.on_the_disk(published))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ports::{DiskTiming, DiskTrouble},
        trace::Trace,
    };

    #[tokio::test(start_paused = true)]
    async fn rotten_snapshot_has_one_other_bit_however_it_is_read() {
        let timing = DiskTiming {
            sync_us_min: 1_000,
            sync_us_max: 1_000,
        };
        let disk = SimDisk::new(0, 1, timing, Trace::begin());
        let store = SimSnapshots::new(disk.clone());
        let mut draft = store.draft(DraftName::Own).unwrap();
        draft.append(&[7; 100]).unwrap();
        let position = LogPosition::default();
        let published = store.publish(draft, position).await.unwrap();
        let what = Rotten::Snapshots;
        disk.set_trouble(DiskTrouble::Rotten { what, at: 700 });
        for bytes in [published, store.newest().unwrap().unwrap()] {
            let mut read = [0; 100];
            bytes.read_at(0, &mut read).unwrap();
            let rotten: Vec<usize> = (0..100).filter(|at| read[*at] != 7).collect();
            assert_eq!(rotten, [70]);
            assert_eq!((read[70] ^ 7).count_ones(), 1);
            let mut piece = [0; 20];
            bytes.read_at(60, &mut piece).unwrap();
            assert_eq!(piece, read[60..80]);
            bytes.read_at(71, &mut piece).unwrap();
            assert_eq!(piece, [7; 20]);
            disk.set_trouble(DiskTrouble::Healthy);
            bytes.read_at(60, &mut piece).unwrap();
            assert_eq!(piece, [7; 20]);
            disk.set_trouble(DiskTrouble::Rotten { what, at: 700 });
        }
    }
}
