//! Batches: the consecutive committed entries that one cluster sends up, and what certifies them.
//!
//! # Invariants
//! * A batch is a pure function of the cluster's log: every member builds the same bytes.
//! * Sequence numbers are dense, and each header carries the digest of the one before.
//! * A leaf of `entries_root` is (founding, index, entry id, bytes, verdict): where an entry stands, what
//!   it is to the last bit, and what its cluster decided. An entry's id leaves its signature out and binds its
//!   payload by a digest only, so it does not say which copy of the entry stands in the log; and who executes another
//!   copy comes to another state. `docs/decisions/0042-leaves-bind-bytes.md`.

use serde::{Deserialize, Serialize};

use crate::{
    bug::{self, Bug},
    certificate::{CertificateError, Signers},
    codec::{BoundedVec, Wire, encode, to_bytes},
    crypto::{
        AdmittedKey, Signature, Verified,
        preimage::{Tag, preimage},
        sha256,
    },
    entry::SignedEntry,
    genesis::{FaultModel, padded},
    ids::{BatchSeq, ChainId, ClusterId, Digest, EntryId, Founding, Height, LogIndex, LogPosition, RaftNodeId},
    limits, merkle,
    quorum::attestation_quorum,
    registry::Registry,
    roster::Roster,
    verdict::Verdict,
};

/// Version of the batch format.
pub const BATCH_VERSION: u16 = 2;

/// What the roster attests. Its digest is over these bytes, without signatures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BatchHeader {
    /// [`BATCH_VERSION`].
    pub version: u16,
    /// Whose batch.
    pub cluster: ClusterId,
    /// Of which founding.
    pub founding: Founding,
    /// Dense, from 1.
    pub seq: BatchSeq,
    /// Digest of the header before; zeros for the first.
    pub prev_digest: Digest,
    /// Log position that closed it.
    pub cut: LogPosition,
    /// Index of the first entry, 0 if there is none.
    pub first_index: LogIndex,
    /// Index of the last entry, 0 if there is none.
    pub last_index: LogIndex,
    /// Entries; 0 for a beat.
    pub count: u32,
    /// Root over [`BatchEntry::leaf`].
    pub entries_root: Digest,
    /// Global height the log stood at, for the whole batch.
    pub global_height: Height,
    /// Digest of the roster in force before the first entry; it signs this header.
    pub roster: Digest,
    /// Digest of the roster in force after the last entry; it signs the next header.
    pub next_roster: Digest,
}

impl BatchHeader {
    /// What a block refers to.
    #[must_use]
    pub fn digest(&self, chain: &ChainId) -> Digest {
        sha256(&[&preimage(Tag::Batch, chain, self)])
    }
}

impl Wire for BatchHeader {
    const BYTES_MAX: usize = 512;
}

/// A new roster, as it stands in the log and in the batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RosterChange {
    /// In force after this entry.
    pub roster: Roster,
}

/// What a row of a batch holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)]
pub enum BatchItem {
    /// An author-signed entry.
    Author(SignedEntry),
    /// A change of roster.
    Roster(RosterChange),
}

/// One row of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchEntry {
    /// Founding in whose log it stands.
    pub founding: Founding,
    /// Where it stands.
    pub index: LogIndex,
    /// What the cluster's `apply` decided.
    pub verdict: Verdict,
    /// The entry.
    pub item: BatchItem,
}

impl BatchEntry {
    /// Identity of the row's item.
    #[must_use]
    pub fn id(&self, chain: &ChainId) -> EntryId {
        match &self.item {
            BatchItem::Author(entry) => entry.id(chain),
            BatchItem::Roster(change) => {
                EntryId(sha256(&[&padded(b"muster/v1/roster-change"), &chain.0, &to_bytes(change)]).0)
            }
        }
    }

    /// Leaf digest under `entries_root`.
    #[must_use]
    pub fn leaf(&self, chain: &ChainId) -> Digest {
        self.entry_leaf(self.id(chain)).digest()
    }

    /// What its leaf says; `id` is [`id`](Self::id).
    #[must_use]
    pub fn entry_leaf(&self, id: EntryId) -> EntryLeaf {
        EntryLeaf {
            founding: self.founding,
            index: self.index,
            id,
            bytes: if bug::active(Bug::LeafWithoutBytes) {
                Digest::default()
            } else {
                sha256(&[&to_bytes(&self.item)])
            },
            verdict: self.verdict,
        }
    }

    /// Encoded length, which counts towards the size of a batch.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        crate::codec::len_of(self)
    }
}

/// What a leaf of `entries_root` says. Stands in proof files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryLeaf {
    /// Founding in whose log the entry stands.
    pub founding: Founding,
    /// Where it stands.
    pub index: LogIndex,
    /// Its identity.
    pub id: EntryId,
    /// Digest of the row's item as it is encoded: signature and payload too.
    pub bytes: Digest,
    /// What its cluster decided.
    pub verdict: Verdict,
}

impl EntryLeaf {
    /// Leaf digest (RFC 6962) of the canonical bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        merkle::leaf(&to_bytes(self))
    }
}

/// A device's signature under a batch header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestation {
    /// Cluster, founding and seq say which batch.
    pub cluster: ClusterId,
    /// Founding.
    pub founding: Founding,
    /// Sequence number.
    pub seq: BatchSeq,
    /// Digest of the header that was signed.
    pub digest: Digest,
    /// Member of the roster that signs.
    pub by: RaftNodeId,
    /// Over the header.
    pub signature: Signature,
}

impl Wire for Attestation {
    const BYTES_MAX: usize = 1024;
}

/// Rows of a batch.
pub type BatchEntries = BoundedVec<BatchEntry, { limits::ENTRIES_PER_BATCH_MAX }>;

/// A batch with the attestations of a quorum of its roster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertifiedBatch {
    /// What was attested.
    pub header: BatchHeader,
    /// By whom: bits are positions in the roster.
    pub attestations: Signers,
    /// The rows under `entries_root`.
    pub entries: BatchEntries,
}

/// Why a batch is not certified. The submitter's fault: refuse, change nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Unknown format.
    #[error("batch format version {got}, this build reads {want}")]
    Version {
        /// Found.
        got: u16,
        /// Read by this build.
        want: u16,
    },
    /// Rows do not match the header.
    #[error("{0}")]
    Content(&'static str),
    /// The header names another roster than the one in force.
    #[error("the header names roster {got}, in force is {want}")]
    WrongRoster {
        /// Named.
        got: Digest,
        /// In force.
        want: Digest,
    },
    /// Too few, foreign, duplicate or wrong signatures.
    #[error("attestations: {0}")]
    Certificate(#[from] CertificateError),
}

impl CertifiedBatch {
    /// Whether rows and header fit together, without regard to signatures.
    ///
    /// # Errors
    /// [`BatchError::Version`], [`BatchError::Content`].
    pub fn check_content(&self, chain: &ChainId) -> Result<(), BatchError> {
        let header = &self.header;
        if header.version != BATCH_VERSION {
            return Err(BatchError::Version {
                got: header.version,
                want: BATCH_VERSION,
            });
        }
        let check = |holds: bool, what| if holds { Ok(()) } else { Err(BatchError::Content(what)) };
        check(
            header.count as usize == self.entries.len(),
            "count differs from the rows",
        )?;
        check(header.seq > BatchSeq(0), "sequence numbers begin at 1")?;
        let first = self.entries.first().map_or(LogIndex(0), |row| row.index);
        let last = self.entries.last().map_or(LogIndex(0), |row| row.index);
        check(
            header.first_index == first && header.last_index == last,
            "first or last index differs from the rows",
        )?;
        check(
            self.entries
                .is_sorted_by(|a, b| (a.founding, a.index) < (b.founding, b.index)),
            "rows are not ascending",
        )?;
        check(
            header.last_index <= header.cut.index,
            "the cut stands before the last row",
        )?;
        let leaves: Vec<Digest> = self.entries.iter().map(|row| row.leaf(chain)).collect();
        check(
            merkle::root(&leaves) == header.entries_root,
            "entries root differs from the rows",
        )
    }

    /// Checks content and certificate under `roster`, which the caller takes from its state.
    ///
    /// # Errors
    /// [`BatchError`].
    pub fn verify(self, registry: &Registry, roster: &Roster, model: FaultModel) -> Result<Verified<Self>, BatchError> {
        let want = roster.digest();
        if self.header.roster != want {
            return Err(BatchError::WrongRoster {
                got: self.header.roster,
                want,
            });
        }
        self.check_content(registry.chain())?;
        let keys: Vec<Option<&AdmittedKey>> = roster
            .members
            .iter()
            .map(|member| {
                registry
                    .by_idx(member.raft.idx())?
                    .keys
                    .get(member.key_version.0 as usize)
            })
            .collect();
        let needed = attestation_quorum(keys.len(), model);
        let message = preimage(Tag::Batch, registry.chain(), &self.header);
        let signed = self.attestations.verify(&message, &keys)?;
        if signed.len() < needed {
            return Err(CertificateError::TooFew {
                got: signed.len() as u64,
                needed: needed as u64,
            }
            .into());
        }
        Ok(Verified::new(self))
    }

    /// Digest of the header.
    #[must_use]
    pub fn digest(&self, chain: &ChainId) -> Digest {
        self.header.digest(chain)
    }

    /// Canonical bytes, as stored and sent.
    #[must_use]
    pub fn encoded(&self) -> Vec<u8> {
        encode(self)
    }
}

impl Wire for CertifiedBatch {
    const BYTES_MAX: usize = limits::BATCH_BYTES_MAX;
}
