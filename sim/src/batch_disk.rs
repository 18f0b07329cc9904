//! What the disks of validators hold of certified batches, read as the run goes.

use std::collections::{BTreeMap, BTreeSet};

use common::{
    batch::CertifiedBatch,
    codec::decode,
    ids::{ChainId, Digest, NodeIdx},
};
use global_validator::{batch_store::BATCHES, segments::file_name};

use crate::ports::SimDisk;

struct Read {
    disk: SimDisk,
    chain: ChainId,
    /// The segment that is being read, and how many of its records were.
    segment: u32,
    records: usize,
    held: BTreeSet<Digest>,
}

/// The stores of all validators of a run.
#[derive(Default)]
pub struct BatchDisks(BTreeMap<NodeIdx, Read>);

impl BatchDisks {
    /// Makes the disk of a validator known.
    pub fn watch(&mut self, validator: NodeIdx, disk: SimDisk, chain: ChainId) {
        let read = Read {
            disk,
            chain,
            segment: 0,
            records: 0,
            held: BTreeSet::new(),
        };
        self.0.insert(validator, read);
    }

    /// Whether the batch is on the disk of `validator`, whatever its process says.
    pub fn holds(&mut self, validator: NodeIdx, batch: &Digest) -> bool {
        let Some(read) = self.0.get_mut(&validator) else {
            return true;
        };
        if !read.held.contains(batch) {
            read.go_on();
        }
        read.held.contains(batch)
    }
}

impl Read {
    /// Takes note of the records behind those that were read. A finished segment is never written again.
    fn go_on(&mut self) {
        loop {
            let (records, len) = self.disk.journal_from(&file_name(BATCHES, self.segment), self.records);
            self.records = len;
            for record in records {
                if let Ok(batch) = decode::<CertifiedBatch>(&record) {
                    self.held.insert(batch.digest(&self.chain));
                }
            }
            let next = file_name(BATCHES, self.segment + 1);
            if self.disk.journal_from(&next, 0).1 == 0 {
                return;
            }
            (self.segment, self.records) = (self.segment + 1, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use common::{
        codec::encode,
        ids::ClusterId,
        testing::{ClusterLog, Fleet},
    };
    use transport::ports::Disk;

    use super::*;
    use crate::{ports::DiskTiming, trace::Trace};

    #[tokio::test(start_paused = true)]
    async fn batch_is_held_once_it_is_synced_in_whatever_segment() {
        let timing = DiskTiming {
            sync_us_min: 1_000,
            sync_us_max: 1_000,
        };
        let (fleet, disk) = (Fleet::new(1, 3, 4), SimDisk::new(9, 1, timing, Trace::begin()));
        let (mut disks, validator) = (BatchDisks::default(), NodeIdx(9));
        disks.watch(validator, disk.clone(), fleet.chain);
        let mut log = ClusterLog::new(&fleet, ClusterId(0));
        for segment in [0, 0, 1, 2, 2] {
            let batch = log.beat(&fleet);
            let digest = batch.digest(&fleet.chain);
            let (mut journal, _) = disk.open_journal(&file_name(BATCHES, segment)).unwrap();
            let appended = journal.append(vec![encode(&batch)]);
            assert!(!disks.holds(validator, &digest), "it is not synced");
            appended.await.unwrap();
            assert!(disks.holds(validator, &digest));
        }
    }
}
