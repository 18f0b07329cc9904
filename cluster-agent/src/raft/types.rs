//! What openraft is told about us: ids, entries, members, and how they map to our own types.
//!
//! # Rules
//! * Nothing of openraft leaves this folder: not in a signature, not on the wire, not on a disk.
//! * openraft counts log entries from 0, everything of ours from 1, so that index 0 can mean
//!   "nothing yet". The two functions below are the only place where they meet.
//! * The configuration is generic over the async runtime: production and the simulator run the same
//!   adapter, and time, tasks and randomness come from the runtime alone.

use std::{collections::BTreeSet, fmt, marker::PhantomData};

use bytes::Bytes;
use common::ids::{DeviceId, Digest, LogIndex, LogPosition, RaftNodeId, Term};
use openraft::{EntryPayload, Membership, RaftTypeConfig, StoredMembership, entry::RaftEntry};
use openraft_rt::AsyncRuntime;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    codec::{
        CHAINED_BLANK, CHAINED_COMMAND, WireEntry, WireLogId, WireMember, WireMembership, WirePayload, WireVote,
        chained,
    },
    snapshot_data::SnapshotData,
};

/// openraft's type configuration over the runtime `R`.
pub(super) struct TypeConfig<R>(PhantomData<fn() -> R>);

impl<R> fmt::Debug for TypeConfig<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TypeConfig")
    }
}

impl<R> Clone for TypeConfig<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for TypeConfig<R> {}

impl<R> Default for TypeConfig<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<R> PartialEq for TypeConfig<R> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<R> Eq for TypeConfig<R> {}

impl<R> PartialOrd for TypeConfig<R> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<R> Ord for TypeConfig<R> {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// Leader identity `(term, member)`: two candidates of one term are ordered by their ids, so a split
/// vote is rarer than with one leader per term.
pub(super) type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub(super) type Vote = openraft::impls::Vote<LeaderId>;
pub(super) type LogId = openraft::LogId<LeaderId>;
pub(super) type Payload = EntryPayload<Command, u64, Member>;
pub(super) type Members = Membership<u64, Member>;
pub(super) type StoredMembers = StoredMembership<LeaderId, u64, Member>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<LeaderId, u64, Member>;
pub(super) type Snapshot = openraft::Snapshot<LeaderId, u64, Member, SnapshotData>;

impl<R: AsyncRuntime> RaftTypeConfig for TypeConfig<R> {
    type D = Command;
    type R = Answer;
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = R;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::AnyError;
}

/// A proposed command: opaque bytes.
#[derive(Clone, PartialEq)]
pub(super) struct Command(pub Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

// openraft's bounds ask for serde; nothing is ever encoded this way.
impl Serialize for Command {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|bytes| Self(bytes.into()))
    }
}

/// What the machine answered to a command: opaque bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer(pub Vec<u8>);

/// What the membership says of a member: the device whose identity a connection must prove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The device; its address is looked up elsewhere.
    pub device: DeviceId,
}

/// A log entry with the chain value that was stored or claimed for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub id: LogId,
    pub payload: Payload,
    /// From our log: the stored chain. From a leader: its claim, compared before it is stored.
    /// `None` for an entry that this member is about to append as leader.
    pub chain: Option<Digest>,
    /// Set if this process computed `chain` over these very bytes: the chain of the entry below, above which it did.
    pub computed_above: Option<Digest>,
}

impl Entry {
    /// The chain at this entry, above an entry whose chain is `previous`. Hashed once for all who ask above the same.
    pub fn chain_above(&self, previous: Digest) -> Digest {
        match (self.computed_above, self.chain) {
            (Some(above), Some(chain)) if above == previous => chain,
            _ => chain_of(self, previous),
        }
    }

    /// Remembers what [`chain_above`](Self::chain_above) said.
    pub fn set_chain(&mut self, previous: Digest, chain: Digest) {
        (self.chain, self.computed_above) = (Some(chain), Some(previous));
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.id, self.payload)
    }
}

impl RaftEntry for Entry {
    type CommittedLeaderId = LeaderId;
    type Payload = Payload;

    fn new(id: LogId, payload: Payload) -> Self {
        Self {
            id,
            payload,
            chain: None,
            computed_above: None,
        }
    }

    fn log_id_parts(&self) -> (&LeaderId, u64) {
        (&self.id.leader_id, self.id.index)
    }

    fn set_log_id(&mut self, id: LogId) {
        self.id = id;
        self.computed_above = None;
    }

    fn get_membership(&self) -> Option<Members> {
        match &self.payload {
            EntryPayload::Membership(members) => Some(members.clone()),
            EntryPayload::Blank | EntryPayload::Normal(_) => None,
        }
    }
}

/// Our index of openraft's `index`.
pub(super) fn index_from_raft(index: u64) -> LogIndex {
    LogIndex(index).next()
}

/// openraft's index of ours, `None` for index 0.
pub(super) fn index_to_raft(index: LogIndex) -> Option<u64> {
    index.previous().map(|index| index.0)
}

/// The position of a log id; positions name no leader, so they order entries of one log only.
pub(super) fn position(id: &LogId) -> LogPosition {
    LogPosition {
        term: Term(id.leader_id.term),
        index: index_from_raft(id.index),
    }
}

pub(super) fn vote_to_wire(vote: &Vote) -> WireVote {
    WireVote {
        term: Term(vote.leader_id.term),
        candidate: RaftNodeId(vote.leader_id.node_id),
        is_committed: vote.committed,
    }
}

pub(super) fn vote_from_wire(vote: WireVote) -> Vote {
    Vote {
        leader_id: LeaderId {
            term: vote.term.0,
            node_id: vote.candidate.0,
        },
        committed: vote.is_committed,
    }
}

pub(super) fn log_id_to_wire(id: &LogId) -> WireLogId {
    WireLogId {
        term: Term(id.leader_id.term),
        leader: RaftNodeId(id.leader_id.node_id),
        index: index_from_raft(id.index),
    }
}

/// `id` has passed validation, so its index is not 0.
pub(super) fn log_id_from_wire(id: WireLogId) -> LogId {
    let index = index_to_raft(id.index).expect("validation refuses index 0");
    LogId {
        leader_id: LeaderId {
            term: id.term.0,
            node_id: id.leader.0,
        },
        index,
    }
}

pub(super) fn members_to_wire(members: &Members) -> WireMembership {
    let configs = members.get_joint_config().iter();
    let voters = configs
        .map(|ids| ids.iter().copied().map(RaftNodeId).collect())
        .collect();
    let nodes = members.nodes().map(|(id, member)| WireMember {
        id: RaftNodeId(*id),
        device: member.device,
    });
    WireMembership::new(voters, nodes.collect())
}

/// # Errors
/// The phrase for the log, if a voter has no record or a configuration is empty.
pub(super) fn members_from_wire(wire: &WireMembership) -> Result<Members, &'static str> {
    let configs: Vec<BTreeSet<u64>> = wire
        .configs
        .into_iter()
        .map(|ids| ids.into_iter().map(|id| id.0).collect())
        .collect();
    let nodes: std::collections::BTreeMap<u64, Member> = wire
        .members
        .into_iter()
        .map(|member| (member.id.0, Member { device: member.device }))
        .collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Members::default());
    }
    Membership::new(configs, nodes).map_err(|_| "membership without voters or with an unknown voter")
}

pub(super) fn entry_to_wire(entry: &Entry) -> Result<WireEntry, super::codec::TooBig> {
    let payload = match &entry.payload {
        EntryPayload::Blank => WirePayload::Blank,
        EntryPayload::Normal(command) => WirePayload::command(&command.0)?,
        EntryPayload::Membership(members) => WirePayload::Membership(members_to_wire(members)),
    };
    Ok(WireEntry {
        id: log_id_to_wire(&entry.id),
        payload,
    })
}

/// The chain at `entry`, above an entry whose chain is `previous`. Copies nothing of a command.
pub(super) fn chain_of(entry: &Entry, previous: Digest) -> Digest {
    let id = log_id_to_wire(&entry.id);
    match &entry.payload {
        EntryPayload::Blank => chained(previous, &id, CHAINED_BLANK, &[]),
        EntryPayload::Normal(command) => chained(previous, &id, CHAINED_COMMAND, &command.0),
        EntryPayload::Membership(members) => {
            let payload = WirePayload::Membership(members_to_wire(members));
            WireEntry { id, payload }.chain(previous)
        }
    }
}

/// # Errors
/// The phrase for the log, if a membership contradicts itself.
///
/// `chain` is what was stored or claimed; `computed_above` as in [`Entry`].
pub(super) fn entry_from_wire(
    wire: WireEntry,
    chain: Option<Digest>,
    computed_above: Option<Digest>,
) -> Result<Entry, &'static str> {
    let payload = match wire.payload {
        WirePayload::Blank => EntryPayload::Blank,
        WirePayload::Command(bytes) => EntryPayload::Normal(Command(bytes.into_inner())),
        WirePayload::Membership(members) => EntryPayload::Membership(members_from_wire(&members)?),
    };
    Ok(Entry {
        id: log_id_from_wire(wire.id),
        payload,
        chain,
        computed_above,
    })
}
