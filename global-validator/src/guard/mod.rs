//! What this validator's consensus key never signs, whatever happens to the process or its disk.
//! In: what the core wants signed or persisted. Out: signatures, after their records are durable.
//! Called by: the driver alone. Nobody else holds the consensus key.
//!
//! # Rules
//! * Upon something to sign: the pure guard of `global-core` admits it, its record is made durable,
//!   then it is signed. What it refuses is never asked for by a sound core: the process stops.
//! * Upon something to persist: it goes into the same journal, before the votes that rest on it, so
//!   that one fsync covers a vote, its block and the certificates it acts on.
//! * Upon a finalization whose block and all below are durable: the journal may be rewritten without
//!   what the finalization covers.
//! * Upon a start: marker and journal must fit each other; else refuse (exit code 78).
//! * Upon a valid vote of this key above the floor that is not recorded here: somebody else runs
//!   with this key. Refuse (exit code 78).
//!
//! # Invariants
//! * record-before-signature: a signature leaves only after its record survived an fsync.
//!
//! # Why
//! The journal is a file of its own: a database that reopens empty must not make a validator vote
//! twice. Its records say under which directory and which start they were written, so that a copy
//! from a backup does not pass for the original.

mod journal;
#[cfg(test)]
mod tests;

use std::{io, sync::Arc};

use common::{
    bug::{self, Bug},
    certificate::{Ballot, SignedVote, Vote},
    codec::{decode, encode},
    crypto::{ConsensusKey, Signature},
    ids::{ChainId, DeviceId, Digest, NodeIdx},
};
use global_core::{
    Guard, GuardRecord, Record,
    guard::{Admitted, GuardRefusal, Turn},
};
use transport::ports::{Disk, Entropy, Journal};

pub use journal::{GUARD_VERSION, JournalRecord, Marker, turn_of};

use crate::exit::Stop;

/// File of the journal.
pub const GUARD_FILE: &str = "guard.journal";
/// File of the marker.
pub const MARKER_FILE: &str = "initialised";
/// Length from which the journal is rewritten when it can be.
const COMPACT_BYTES: u64 = 1024 * 1024;

/// Why this start, or going on, could make the validator contradict itself. Exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The marker is there, the journal is not.
    #[error(
        "{MARKER_FILE} is there and {GUARD_FILE} is missing or empty: what this key signed is not known. \
         Restore the file from this very directory, or give the validator a new key"
    )]
    MissingGuard,
    /// The marker is there, a store is not.
    #[error(
        "{MARKER_FILE} is there and the store {0} is missing or empty: blocks and batches that this validator vouched for \
         are lost. Restore the directory, or give the validator a new key and an empty directory"
    )]
    MissingStore(&'static str),
    /// The journal signed something and has no marker.
    #[error(
        "{GUARD_FILE} holds signatures and {MARKER_FILE} is missing: the directory is not whole. Give the validator a new key"
    )]
    MissingMarker,
    /// The journal or marker cannot be read.
    #[error("{file} is corrupt: {why}. What this key signed is not known; give the validator a new key")]
    Corrupt {
        /// Which file.
        file: &'static str,
        /// What was found.
        why: String,
    },
    /// The journal was written under another directory or start than the marker says.
    #[error(
        "{GUARD_FILE} was written in directory {got} at start {got_boot}, {MARKER_FILE} says {want} at start {want_boot}: \
         it was restored from a backup, and later signatures are missing in it. Give the validator a new key"
    )]
    Restored {
        /// Directory in the journal.
        got: Digest,
        /// Start in the journal.
        got_boot: u64,
        /// Directory in the marker.
        want: Digest,
        /// Start in the marker.
        want_boot: u64,
    },
    /// The directory belongs to another fleet.
    #[error("the data directory belongs to fleet {got}, the genesis file is of {want}")]
    OtherChain {
        /// In the marker.
        got: ChainId,
        /// In the genesis file.
        want: ChainId,
    },
    /// The directory belongs to another validator.
    #[error("the data directory belongs to device {got}, the configuration names {want}")]
    OtherDevice {
        /// In the marker.
        got: DeviceId,
        /// Configured.
        want: DeviceId,
    },
    /// The directory was used with another consensus key.
    #[error("the data directory was used with another consensus key; use a new directory with a new key")]
    OtherKey,
    /// Written by a newer build.
    #[error("the data directory has format version {got}, this build reads {GUARD_VERSION}")]
    NewerFormat {
        /// In the marker.
        got: u16,
    },
    /// Blocks that the guard says were durable are not there.
    #[error(
        "the guard was compacted to epoch {epoch}, view {view}, the last block on the disk is of view {block_view}: blocks are missing"
    )]
    BlocksMissing {
        /// Epoch of the floor.
        epoch: common::ids::Epoch,
        /// View of the floor.
        view: common::ids::View,
        /// View of the last block on the disk.
        block_view: common::ids::View,
    },
    /// A vote of this key that this validator did not cast.
    #[error(
        "{0:?} is signed with this validator's key and was not signed here: another process runs with the same key. Stop one of them"
    )]
    Clone(GuardRecord),
    /// The core wanted to sign what the guard never signs.
    #[error("the guard refuses to sign: {0}")]
    Signing(#[from] GuardRefusal),
}

/// Whose guard it is.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The fleet.
    pub chain: ChainId,
    /// The validator.
    pub device: DeviceId,
    /// Its number.
    pub idx: NodeIdx,
}

/// The one holder of the consensus key.
pub struct SigningGuard {
    owner: Owner,
    key: ConsensusKey,
    guard: Guard,
    journal: Box<dyn Journal>,
    opened: JournalRecord,
    /// Records that are not durable yet, in order.
    pending: Vec<JournalRecord>,
    /// What was persisted for the core above the floor, for a rewritten journal.
    persisted: Vec<Record>,
}

fn corrupt(file: &'static str, why: impl std::fmt::Display) -> Stop {
    Refusal::Corrupt {
        file,
        why: why.to_string(),
    }
    .into()
}

/// Content of a journal.
#[derive(Default)]
struct Content {
    opened: Option<(Digest, u64)>,
    compacted: Option<Turn>,
    signed: Vec<GuardRecord>,
    persisted: Vec<Record>,
}

fn read_journal(records: Vec<(u64, Vec<u8>)>) -> Result<Content, Stop> {
    let mut content = Content::default();
    for (_, bytes) in records {
        match decode::<JournalRecord>(&bytes).map_err(|error| corrupt(GUARD_FILE, error))? {
            JournalRecord::Opened { directory, boot } => content.opened = Some((directory, boot)),
            JournalRecord::Compacted(turn) => content.compacted = Some(turn),
            JournalRecord::Signed(record) => content.signed.push(record),
            JournalRecord::Proposal(proposal) => content.persisted.push(Record::Proposal(proposal)),
            JournalRecord::Certificate(certificate) => content.persisted.push(Record::Certificate(certificate)),
        }
    }
    Ok(content)
}

fn read_marker(disk: &dyn Disk) -> Result<Option<Marker>, Stop> {
    let Some(bytes) = disk.read(MARKER_FILE).map_err(Stop::storage(MARKER_FILE))? else {
        return Ok(None);
    };
    decode(&bytes).map(Some).map_err(|error| corrupt(MARKER_FILE, error))
}

impl SigningGuard {
    /// Opens the guard of `owner`, or makes it if the directory is new.
    ///
    /// # Errors
    /// [`Stop::Refused`], [`Stop::Storage`].
    pub async fn open(
        disk: &Arc<dyn Disk>,
        entropy: &Arc<dyn Entropy>,
        key: ConsensusKey,
        owner: Owner,
    ) -> Result<Self, Stop> {
        let marker = read_marker(disk.as_ref())?;
        if let Some(marker) = &marker {
            check_owner(marker, &owner, &key)?;
            let files = disk.list(GUARD_FILE).map_err(Stop::storage(GUARD_FILE))?;
            if !files.iter().any(|file| file == GUARD_FILE) {
                return Err(Refusal::MissingGuard.into());
            }
        }
        let (journal, records) = disk.open_journal(GUARD_FILE).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => corrupt(GUARD_FILE, error),
            _ => Stop::storage(GUARD_FILE)(error),
        })?;
        let content = read_journal(records)?;
        let (directory, boot) = match &marker {
            Some(marker) => (marker.directory, next_boot(marker, content.opened)?),
            None if content.signed.is_empty() && content.compacted.is_none() => (draw_directory(entropy.as_ref()), 1),
            None => return Err(Refusal::MissingMarker.into()),
        };
        let guard =
            Guard::recover(content.compacted, content.signed).map_err(|refusal| corrupt(GUARD_FILE, refusal))?;
        let opened = JournalRecord::Opened { directory, boot };
        let mut opening = Self {
            key,
            guard,
            journal,
            pending: vec![opened.clone()],
            opened,
            persisted: content.persisted,
            owner,
        };
        // Journal first: a crash in between leaves it one start ahead of the marker, never behind.
        opening.flush().await?;
        let marker = opening.marker(directory, boot);
        disk.replace(MARKER_FILE, encode(&marker))
            .await
            .map_err(Stop::storage(MARKER_FILE))?;
        Ok(opening)
    }

    /// Whether the marker in `disk`, if there is one, is that of `owner` with `key`.
    ///
    /// # Errors
    /// [`Stop::Refused`], [`Stop::Storage`].
    pub fn check_owner(disk: &dyn Disk, owner: &Owner, key: &ConsensusKey) -> Result<(), Stop> {
        match read_marker(disk)? {
            Some(marker) => Ok(check_owner(&marker, owner, key)?),
            None => Ok(()),
        }
    }

    fn marker(&self, directory: Digest, boot: u64) -> Marker {
        Marker {
            version: GUARD_VERSION,
            chain: self.owner.chain,
            device: self.owner.device,
            consensus_key: self.key.public(),
            directory,
            boot,
        }
    }

    /// The rules and what was signed above the floor.
    #[must_use]
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// What was persisted for the core above the floor, in order.
    #[must_use]
    pub fn persisted(&self) -> &[Record] {
        &self.persisted
    }

    /// Queues a record of the core; durable after the next [`flush`](Self::flush).
    pub fn persist(&mut self, record: Record) {
        self.pending.push(JournalRecord::of(record.clone()));
        self.persisted.push(record);
    }

    /// Admits something to sign and queues its record. Returns whether it was not admitted before.
    ///
    /// # Errors
    /// [`Refusal::Signing`]: the core is wrong, stop.
    pub fn admit(&mut self, record: GuardRecord) -> Result<bool, Refusal> {
        let is_new = self.guard.admit(record)? == Admitted::New;
        if is_new {
            self.pending.push(JournalRecord::Signed(record));
        }
        Ok(is_new)
    }

    /// Whether something is queued that is not durable yet.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Makes everything that was queued durable, in order.
    ///
    /// # Errors
    /// [`Stop::Storage`]: never retried.
    pub async fn flush(&mut self) -> Result<(), Stop> {
        if bug::active(Bug::GuardForgets) {
            self.pending
                .retain(|record| !matches!(record, JournalRecord::Signed(_)));
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        let records = self.pending.iter().map(encode).collect();
        self.journal.append(records).await.map_err(Stop::storage(GUARD_FILE))?;
        self.pending.clear();
        Ok(())
    }

    fn assert_durable(&self, record: &GuardRecord) {
        assert!(self.guard.holds(record), "only what was admitted is signed");
        assert!(self.pending.is_empty(), "only what is durable is signed");
    }

    /// Signs a vote that was admitted and flushed. The same vote gives the same signature.
    ///
    /// # Panics
    /// If it was not.
    #[must_use]
    pub fn sign_vote(&self, vote: Vote) -> SignedVote {
        self.assert_durable(&GuardRecord::Vote(vote));
        let chain = &self.owner.chain;
        let signature = match &vote {
            Vote::Notarize(ballot) => self.key.sign_notarize(chain, ballot),
            Vote::Finalize(ballot) => self.key.sign_finalize(chain, ballot),
            Vote::Nullify(ballot) => self.key.sign_nullify(chain, ballot),
        };
        SignedVote {
            vote,
            voter: self.owner.idx,
            signature,
        }
    }

    /// The signature under a proposal whose ballot was admitted. It is part of the record that makes
    /// the proposal durable, so it exists before that; it leaves after it.
    ///
    /// # Panics
    /// If the ballot was not admitted.
    #[must_use]
    pub fn sign_proposal(&self, ballot: &Ballot) -> Signature {
        assert!(
            self.guard.holds(&GuardRecord::Proposal(*ballot)),
            "only what was admitted is signed"
        );
        self.key.sign_proposal(&self.owner.chain, ballot)
    }

    /// Drops what the finalization of `turn` covers, if the journal has grown. Its block and all
    /// below are durable.
    ///
    /// # Errors
    /// [`Stop::Storage`].
    pub async fn compact(&mut self, turn: Turn) -> Result<(), Stop> {
        if self.journal.bytes() < COMPACT_BYTES {
            return Ok(());
        }
        self.rewrite(turn).await
    }

    async fn rewrite(&mut self, turn: Turn) -> Result<(), Stop> {
        if !self.guard.compact(turn) {
            return Ok(());
        }
        self.persisted.retain(|record| turn_of(record) > turn);
        let mut records = vec![self.opened.clone(), JournalRecord::Compacted(turn)];
        records.extend(self.persisted.iter().cloned().map(JournalRecord::of));
        records.extend(self.guard.records().into_iter().map(JournalRecord::Signed));
        let encoded = records.iter().map(encode).collect();
        self.journal.rewrite(encoded).await.map_err(Stop::storage(GUARD_FILE))?;
        // The rewritten journal holds what was queued as well.
        self.pending.clear();
        Ok(())
    }

    /// Refuses to go on if `record`, validly signed with this key, was not signed here.
    ///
    /// # Errors
    /// [`Refusal::Clone`].
    pub fn check_clone(&self, record: GuardRecord) -> Result<(), Refusal> {
        let is_above = self.guard.compacted().is_none_or(|floor| record.turn() > floor);
        if is_above && !self.guard.holds(&record) && !bug::active(Bug::GuardForgets) {
            return Err(Refusal::Clone(record));
        }
        Ok(())
    }
}

fn check_owner(marker: &Marker, owner: &Owner, key: &ConsensusKey) -> Result<(), Refusal> {
    if marker.version != GUARD_VERSION {
        return Err(Refusal::NewerFormat { got: marker.version });
    }
    if marker.chain != owner.chain {
        return Err(Refusal::OtherChain {
            got: marker.chain,
            want: owner.chain,
        });
    }
    if marker.device != owner.device {
        return Err(Refusal::OtherDevice {
            got: marker.device,
            want: owner.device,
        });
    }
    if marker.consensus_key != key.public() {
        return Err(Refusal::OtherKey);
    }
    Ok(())
}

fn next_boot(marker: &Marker, opened: Option<(Digest, u64)>) -> Result<u64, Refusal> {
    let (directory, boot) = opened.ok_or(Refusal::MissingGuard)?;
    let is_original = directory == marker.directory && (boot == marker.boot || boot == marker.boot + 1);
    if !is_original {
        return Err(Refusal::Restored {
            got: directory,
            got_boot: boot,
            want: marker.directory,
            want_boot: marker.boot,
        });
    }
    // A start that did not get as far as the marker signed nothing: its number is used again. A disk that fails
    // at several starts in a row would put the journal further ahead else, as if it came from a backup.
    Ok(marker.boot + 1)
}

fn draw_directory(entropy: &dyn Entropy) -> Digest {
    let mut bytes = [0; 32];
    for chunk in bytes.chunks_exact_mut(8) {
        chunk.copy_from_slice(&entropy.next_u64().to_le_bytes());
    }
    Digest(bytes)
}
