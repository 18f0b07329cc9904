//! What stands in the guard's journal and in the marker beside it.

use common::{
    block::Proposal,
    codec::Wire,
    ids::{ChainId, DeviceId, Digest},
    limits,
    wire::bft::Certificate,
};
use global_core::{GuardRecord, Record, guard::Turn};
use serde::{Deserialize, Serialize};

/// Version of journal and marker.
pub const GUARD_VERSION: u16 = 1;

/// One record of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)]
pub enum JournalRecord {
    /// A process opened the journal.
    Opened {
        /// The data directory it belongs to.
        directory: Digest,
        /// How often that directory was opened, this time included.
        boot: u64,
    },
    /// Everything at or below this was final and dropped.
    Compacted(Turn),
    /// I sign this.
    Signed(GuardRecord),
    /// I am about to notarize this.
    Proposal(Box<Proposal>),
    /// I act on this.
    Certificate(Certificate),
}

impl JournalRecord {
    /// The form on disk of what the core asks to persist.
    #[must_use]
    pub fn of(record: Record) -> Self {
        match record {
            Record::Proposal(proposal) => Self::Proposal(proposal),
            Record::Certificate(certificate) => Self::Certificate(certificate),
        }
    }
}

impl Wire for JournalRecord {
    const BYTES_MAX: usize = limits::PROPOSAL_BYTES_MAX + 64;
}

/// Says that a guard must be here, and whose it is. Written once the guard exists; replaced at each start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// [`GUARD_VERSION`].
    pub version: u16,
    /// The fleet.
    pub chain: ChainId,
    /// The validator.
    pub device: DeviceId,
    /// Its consensus key.
    pub consensus_key: [u8; 32],
    /// Drawn when the directory was first used.
    pub directory: Digest,
    /// How often it was opened.
    pub boot: u64,
}

impl Wire for Marker {
    const BYTES_MAX: usize = 256;
}

/// Epoch and view that a persisted record is about.
#[must_use]
pub fn turn_of(record: &Record) -> Turn {
    match record {
        Record::Proposal(proposal) => (proposal.block.header.epoch, proposal.block.header.view),
        Record::Certificate(Certificate::Notarization(c)) => (c.ballot.epoch, c.ballot.view),
        Record::Certificate(Certificate::Nullification(c)) => (c.ballot.epoch, c.ballot.view),
        Record::Certificate(Certificate::Finalization(c)) => (c.ballot.epoch, c.ballot.view),
    }
}
