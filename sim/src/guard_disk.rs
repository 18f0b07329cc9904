//! What the disks of validators hold of their guards' journals, read as the run goes.

use std::collections::{BTreeMap, BTreeSet};

use common::{
    certificate::Vote,
    codec::decode,
    ids::{Digest, NodeIdx, View},
    wire::bft::Certificate,
};
use global_core::GuardRecord;
use global_validator::guard::{GUARD_FILE, JournalRecord};

use crate::ports::SimDisk;

struct Read {
    disk: SimDisk,
    records: usize,
    signed: BTreeSet<GuardRecord>,
    notarized: BTreeSet<(View, Digest)>,
}

/// The journals of all validators of a run.
#[derive(Default)]
pub struct GuardDisks(BTreeMap<NodeIdx, Read>);

impl GuardDisks {
    /// Makes the disk of a validator known.
    pub fn watch(&mut self, validator: NodeIdx, disk: SimDisk) {
        let read = Read {
            disk,
            records: 0,
            signed: BTreeSet::new(),
            notarized: BTreeSet::new(),
        };
        self.0.insert(validator, read);
    }

    /// What the disk of `validator` lacks of what must be durable before what it `signed` leaves.
    pub fn lacks(&mut self, validator: NodeIdx, signed: &GuardRecord) -> Option<&'static str> {
        let read = self.0.get_mut(&validator)?;
        read.go_on();
        if !read.signed.contains(signed) {
            return Some("its record");
        }
        match signed {
            GuardRecord::Vote(Vote::Finalize(ballot)) if !read.notarized.contains(&(ballot.view, ballot.digest)) => {
                Some("the notarization that it answers")
            }
            _ => None,
        }
    }
}

impl Read {
    /// Takes note of the records behind those that were read. A journal that was rewritten is read from its begin.
    fn go_on(&mut self) {
        let (records, len) = self.disk.journal_from(GUARD_FILE, self.records);
        self.records = len;
        for record in records {
            match decode::<JournalRecord>(&record) {
                Ok(JournalRecord::Signed(signed)) => drop(self.signed.insert(signed)),
                Ok(JournalRecord::Certificate(Certificate::Notarization(notarization))) => {
                    let ballot = notarization.ballot;
                    self.notarized.insert((ballot.view, ballot.digest));
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use common::{
        certificate::{Ballot, NullifyBallot},
        codec::encode,
        ids::{Epoch, Height},
    };
    use transport::ports::Disk;

    use super::*;
    use crate::{ports::DiskTiming, trace::Trace};

    const TIMING: DiskTiming = DiskTiming {
        sync_us_min: 1_000,
        sync_us_max: 1_000,
    };

    #[tokio::test(start_paused = true)]
    async fn signed_message_needs_its_own_record_on_its_own_disk() {
        let ballot = Ballot {
            epoch: Epoch(0),
            view: View(4),
            height: Height(2),
            digest: Digest([1; 32]),
        };
        let nullify = Vote::Nullify(NullifyBallot {
            epoch: Epoch(0),
            view: View(4),
        });
        let (validator, disk) = (NodeIdx(9), SimDisk::new(9, 1, TIMING, Trace::begin()));
        let (mut journal, _) = disk.open_journal(GUARD_FILE).unwrap();
        let mut disks = GuardDisks::default();
        disks.watch(validator, disk);
        for signed in [
            GuardRecord::Proposal(ballot),
            GuardRecord::Vote(Vote::Notarize(ballot)),
            GuardRecord::Vote(nullify),
        ] {
            assert_eq!(disks.lacks(validator, &signed), Some("its record"), "{signed:?}");
            let appended = journal.append(vec![encode(&JournalRecord::Signed(signed))]);
            assert_eq!(disks.lacks(validator, &signed), Some("its record"), "it is not synced");
            appended.await.unwrap();
            assert_eq!(disks.lacks(validator, &signed), None, "{signed:?}");
        }
    }
}
