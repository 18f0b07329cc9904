//! How Raft messages and records become bytes, on the wire and on a disk.
//!
//! # Rules
//! * Every value stands behind one version byte; another version is refused, never guessed.
//! * Decoding is canonical ([`common::codec`]): one value, one encoding, length checked first.
//! * Encodings are pinned by the vectors in `cluster-agent/tests/vectors/`: to change one is to
//!   raise [`FORMAT_VERSION`].
//!
//! # Invariants
//! * raft-chain: `chain(i) = SHA-256(tag, chain(i-1), term, leader, index, payload)`, so equal chains
//!   mean equal logs up to that index, whatever a leader claims.
//!
//! # Why
//! openraft's own serde forms change between releases without a version. A log that outlives an
//! upgrade, and a cluster that runs two releases for a while, need forms that we own.

use bytes::Bytes;
use common::{
    codec::{Blob, BoundedVec, DecodeError, Wire},
    ids::{DeviceId, Digest, LogIndex, RaftNodeId, Term},
    limits::{LOG_ENTRY_BYTES_MAX, RAFT_APPEND_BYTES_MAX},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

/// Version of every encoding in this file.
pub const FORMAT_VERSION: u8 = 1;
/// Longest command, in bytes: an entry of the greatest length minus its header.
pub const COMMAND_BYTES_MAX: usize = LOG_ENTRY_BYTES_MAX - 256;
/// Voters and learners of one cluster.
pub const MEMBERS_MAX: usize = 128;
/// Entries of one append request.
pub const ENTRIES_PER_APPEND_MAX: usize = 512;
/// Entry bytes that a leader puts into one append request; the rest is header.
pub const APPEND_ENTRY_BYTES_MAX: usize = RAFT_APPEND_BYTES_MAX - LOG_ENTRY_BYTES_MAX;
/// One frame of a snapshot on the wire.
pub const SNAPSHOT_FRAME_BYTES_MAX: usize = 256 * 1024;
/// Longest snapshot file. Admission stops long before: see the limits of open tasks and state bytes.
pub const SNAPSHOT_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

const CHAIN_TAG: &[u8] = b"muster/raft-log-chain/1";

/// Bytes above the bound of a type: refused where the value is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{got} bytes, at most {max} allowed")]
pub struct TooBig {
    /// Length given.
    pub got: usize,
    /// Bound.
    pub max: usize,
}

/// A value that has a versioned encoding.
pub(super) trait Body: Serialize + DeserializeOwned {
    /// Longest encoding without the version byte.
    const BYTES_MAX: usize;

    /// See [`Wire::validate`].
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u8,
    body: T,
}

impl<T: Body> Wire for Versioned<T> {
    const BYTES_MAX: usize = T::BYTES_MAX + 1;

    fn validate(&self) -> Result<(), &'static str> {
        if self.version != FORMAT_VERSION {
            return Err("unknown version of the Raft encoding");
        }
        self.body.check()
    }
}

/// Encodes `body` behind the version byte.
pub(super) fn encode<T: Body>(body: T) -> Vec<u8> {
    common::codec::encode(&Versioned {
        version: FORMAT_VERSION,
        body,
    })
}

/// Decodes exactly one value.
pub(super) fn decode<T: Body>(bytes: &[u8]) -> Result<T, DecodeError> {
    common::codec::decode::<Versioned<T>>(bytes).map(|versioned| versioned.body)
}

/// A vote: for `candidate` in `term`, or, when committed, that it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireVote {
    pub term: Term,
    pub candidate: RaftNodeId,
    pub is_committed: bool,
}

impl Body for WireVote {
    const BYTES_MAX: usize = 32;
}

/// Identity of a log entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct WireLogId {
    pub term: Term,
    pub leader: RaftNodeId,
    pub index: LogIndex,
}

const LOG_ID_BYTES_MAX: usize = 30;

impl WireLogId {
    fn check(self) -> Result<(), &'static str> {
        if self.index == LogIndex(0) {
            Err("a log id has index 0")
        } else {
            Ok(())
        }
    }
}

fn check_optional(id: Option<WireLogId>) -> Result<(), &'static str> {
    id.map_or(Ok(()), WireLogId::check)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireMember {
    pub id: RaftNodeId,
    pub device: DeviceId,
}

/// Voters (two sets while the configuration is joint) and everyone's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireMembership {
    pub configs: BoundedVec<BoundedVec<RaftNodeId, MEMBERS_MAX>, 2>,
    pub members: BoundedVec<WireMember, MEMBERS_MAX>,
}

const MEMBERSHIP_BYTES_MAX: usize = MEMBERS_MAX * (2 * 10 + 42) + 16;
const _: () = assert!(MEMBERSHIP_BYTES_MAX < LOG_ENTRY_BYTES_MAX);

impl WireMembership {
    /// # Panics
    /// Above [`MEMBERS_MAX`]: the facade refuses such a change before it is proposed.
    pub fn new(configs: Vec<Vec<RaftNodeId>>, members: Vec<WireMember>) -> Self {
        let configs: Vec<_> = configs
            .into_iter()
            .map(|ids| ids.try_into().expect("members are bounded by the facade"))
            .collect();
        Self {
            configs: configs.try_into().expect("a joint configuration has two halves"),
            members: members.try_into().expect("members are bounded by the facade"),
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        let ascending = |ids: &[RaftNodeId]| ids.is_sorted_by(|a, b| a < b);
        if !self.configs.into_iter().all(|ids| ascending(ids)) {
            return Err("voters are not in ascending order");
        }
        if !self.members.is_sorted_by(|a, b| a.id < b.id) {
            return Err("members are not in ascending order");
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum WirePayload {
    Blank,
    Command(CommandBytes),
    Membership(WireMembership),
}

impl WirePayload {
    pub fn command(bytes: &Bytes) -> Result<Self, TooBig> {
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(TooBig {
                got: bytes.len(),
                max: COMMAND_BYTES_MAX,
            });
        }
        Ok(Self::Command(CommandBytes(bytes.clone())))
    }
}

/// At most [`COMMAND_BYTES_MAX`] bytes, encoded as a [`Blob`] is. A leader encodes a command once for its log and once for
/// each follower: copies share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommandBytes(Bytes);

impl CommandBytes {
    pub fn into_inner(self) -> Bytes {
        self.0
    }
}

impl core::ops::Deref for CommandBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for CommandBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for CommandBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let blob = Blob::<COMMAND_BYTES_MAX>::deserialize(deserializer)?;
        Ok(Self(blob.into_inner().into()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireEntry {
    pub id: WireLogId,
    pub payload: WirePayload,
}

impl WireEntry {
    fn check(&self) -> Result<(), &'static str> {
        self.id.check()?;
        match &self.payload {
            WirePayload::Membership(members) => members.check(),
            WirePayload::Blank | WirePayload::Command(_) => Ok(()),
        }
    }

    /// The chain at this entry, above an entry whose chain is `previous`.
    pub fn chain(&self, previous: Digest) -> Digest {
        match &self.payload {
            WirePayload::Blank => chained(previous, &self.id, CHAINED_BLANK, &[]),
            WirePayload::Command(bytes) => chained(previous, &self.id, CHAINED_COMMAND, bytes),
            WirePayload::Membership(members) => {
                let bytes = postcard::to_allocvec(members).expect("a membership holds nothing postcard refuses");
                chained(previous, &self.id, CHAINED_MEMBERSHIP, &bytes)
            }
        }
    }
}

/// Kinds of entries in the chain.
pub(super) const CHAINED_BLANK: u8 = 0;
pub(super) const CHAINED_COMMAND: u8 = 1;
const CHAINED_MEMBERSHIP: u8 = 2;

/// The chain at entry `id` of a kind with a content, above an entry whose chain is `previous`.
pub(super) fn chained(previous: Digest, id: &WireLogId, kind: u8, content: &[u8]) -> Digest {
    let mut hash = Sha256::new();
    hash.update(CHAIN_TAG);
    hash.update(previous.0);
    hash.update(id.term.0.to_be_bytes());
    hash.update(id.leader.0.to_be_bytes());
    hash.update(id.index.0.to_be_bytes());
    hash.update([kind]);
    hash.update(content);
    Digest(hash.finalize().into())
}

/// An entry as it lies on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EntryRecord {
    pub chain: Digest,
    pub entry: WireEntry,
}

impl Body for EntryRecord {
    const BYTES_MAX: usize = LOG_ENTRY_BYTES_MAX + 32;

    fn check(&self) -> Result<(), &'static str> {
        self.entry.check()
    }
}

/// What is known to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CommittedRecord {
    pub id: Option<WireLogId>,
}

impl Body for CommittedRecord {
    const BYTES_MAX: usize = LOG_ID_BYTES_MAX + 1;

    fn check(&self) -> Result<(), &'static str> {
        check_optional(self.id)
    }
}

/// The last entry that was purged. `chain` is `None` only if it was never known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PurgedRecord {
    pub id: WireLogId,
    pub chain: Option<Digest>,
}

impl Body for PurgedRecord {
    const BYTES_MAX: usize = LOG_ID_BYTES_MAX + 33;

    fn check(&self) -> Result<(), &'static str> {
        self.id.check()
    }
}

/// AppendEntries with the leader's chain at `previous`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AppendRequest {
    pub vote: WireVote,
    pub previous: Option<WireLogId>,
    pub previous_chain: Option<Digest>,
    pub entries: BoundedVec<WireEntry, ENTRIES_PER_APPEND_MAX>,
    pub committed: Option<WireLogId>,
}

impl Body for AppendRequest {
    const BYTES_MAX: usize = RAFT_APPEND_BYTES_MAX;

    /// Entries follow `previous` without a gap, in terms that never fall and never pass the vote's.
    fn check(&self) -> Result<(), &'static str> {
        check_optional(self.previous)?;
        check_optional(self.committed)?;
        if self.previous_chain.is_some() && self.previous.is_none() {
            return Err("a chain without an entry");
        }
        let (mut index, mut term) = self.previous.map_or((LogIndex(0), Term(0)), |id| (id.index, id.term));
        for entry in &self.entries {
            entry.check()?;
            if Some(entry.id.index.0) != index.0.checked_add(1) {
                return Err("entries of an append have a gap");
            }
            if entry.id.term < term {
                return Err("terms of an append fall");
            }
            (index, term) = (entry.id.index, entry.id.term);
        }
        if term > self.vote.term {
            Err("an entry has a later term than its leader")
        } else {
            Ok(())
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum AppendReply {
    Success,
    PartialSuccess(Option<WireLogId>),
    Conflict,
    HigherVote(WireVote),
}

impl Body for AppendReply {
    const BYTES_MAX: usize = 64;

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::PartialSuccess(id) => check_optional(*id),
            Self::Success | Self::Conflict | Self::HigherVote(_) => Ok(()),
        }
    }
}

/// RequestVote and its pre-vote form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BallotRequest {
    pub vote: WireVote,
    pub last: Option<WireLogId>,
    pub is_transfer: bool,
}

impl Body for BallotRequest {
    const BYTES_MAX: usize = 96;

    fn check(&self) -> Result<(), &'static str> {
        check_optional(self.last)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BallotReply {
    pub vote: WireVote,
    pub is_granted: bool,
    pub last: Option<WireLogId>,
}

impl Body for BallotReply {
    const BYTES_MAX: usize = 96;

    fn check(&self) -> Result<(), &'static str> {
        check_optional(self.last)
    }
}

/// The leader asks `to` to campaign at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TransferRequest {
    pub vote: WireVote,
    pub to: RaftNodeId,
    pub last: Option<WireLogId>,
}

impl Body for TransferRequest {
    const BYTES_MAX: usize = 96;

    fn check(&self) -> Result<(), &'static str> {
        check_optional(self.last)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum TransferReply {
    Accepted,
    VoteChanged {
        expected: WireVote,
        actual: WireVote,
    },
    LogNotFlushed {
        expected: Option<WireLogId>,
        actual: Option<WireLogId>,
    },
}

impl Body for TransferReply {
    const BYTES_MAX: usize = 96;

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::LogNotFlushed { expected, actual } => {
                check_optional(*expected)?;
                check_optional(*actual)
            }
            Self::Accepted | Self::VoteChanged { .. } => Ok(()),
        }
    }
}

/// One frame of a snapshot; `digest` is of the whole and names the transfer. An empty frame at the end asks
/// what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotFrame {
    pub vote: WireVote,
    pub digest: Digest,
    pub bytes_total: u64,
    pub offset: u64,
    pub bytes: Blob<SNAPSHOT_FRAME_BYTES_MAX>,
}

impl Body for SnapshotFrame {
    const BYTES_MAX: usize = SNAPSHOT_FRAME_BYTES_MAX + 128;

    fn check(&self) -> Result<(), &'static str> {
        let end = self.offset.checked_add(self.bytes.len() as u64);
        if self.bytes_total > SNAPSHOT_BYTES_MAX {
            return Err("a snapshot above the bound");
        }
        if end.is_none_or(|end| end > self.bytes_total) {
            return Err("a frame past the end of its snapshot");
        }
        if self.bytes.is_empty() && self.offset < self.bytes_total {
            Err("an empty frame")
        } else {
            Ok(())
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SnapshotReply {
    /// Send on from here; at the end: everything has arrived, ask again.
    Continue { offset: u64 },
    /// The snapshot is installed, or the vote was too low; the receiver's vote tells.
    Done { vote: WireVote },
}

impl Body for SnapshotReply {
    const BYTES_MAX: usize = 48;
}

/// The first frame of a snapshot file: where in the log it stands, and who is a member there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotHead {
    pub last: Option<WireLogId>,
    pub chain: Digest,
    pub membership_at: Option<WireLogId>,
    pub membership: WireMembership,
}

impl Body for SnapshotHead {
    const BYTES_MAX: usize = MEMBERSHIP_BYTES_MAX + 2 * LOG_ID_BYTES_MAX + 64;

    fn check(&self) -> Result<(), &'static str> {
        check_optional(self.last)?;
        check_optional(self.membership_at)?;
        self.membership.check()
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
