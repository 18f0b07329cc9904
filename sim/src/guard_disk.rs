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
    votes: BTreeSet<Vote>,
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
            votes: BTreeSet::new(),
            notarized: BTreeSet::new(),
        };
        self.0.insert(validator, read);
    }

    /// What the disk of `validator` lacks of what must be durable before `vote` leaves.
    pub fn lacks(&mut self, validator: NodeIdx, vote: &Vote) -> Option<&'static str> {
        let read = self.0.get_mut(&validator)?;
        read.go_on();
        if !read.votes.contains(vote) {
            return Some("its record");
        }
        match vote {
            Vote::Finalize(ballot) if !read.notarized.contains(&(ballot.view, ballot.digest)) => {
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
                Ok(JournalRecord::Signed(GuardRecord::Vote(vote))) => drop(self.votes.insert(vote)),
                Ok(JournalRecord::Certificate(Certificate::Notarization(notarization))) => {
                    let ballot = notarization.ballot;
                    self.notarized.insert((ballot.view, ballot.digest));
                }
                _ => {}
            }
        }
    }
}
