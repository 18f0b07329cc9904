//! Leads a cluster and lies: tells followers that more is committed than is, gives one of them other entries
//! than the rest, and sends the validators conflicting batches for one place.
//!
//! It speaks the format of `muster-raft/1` by itself: what is below is written from the wire, as by a stranger.

use bytes::Bytes;
use cluster_agent::{
    peers::MEMBER_BYTES,
    raft::{COMMAND_BYTES_MAX, FORMAT_VERSION},
};
use common::{
    batch::CertifiedBatch,
    codec::{Blob, BoundedVec, Wire, decode, encode},
    ids::{DeviceId, Digest, LogIndex, NodeIdx, RaftNodeId, Term},
    limits::RAFT_APPEND_BYTES_MAX,
    wire::frame::FrameKind,
};
use serde::{Deserialize, Serialize};

use super::{Actor, Hand, forger};
use crate::ports::Leaves;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Vote {
    term: Term,
    candidate: RaftNodeId,
    is_committed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LogId {
    term: Term,
    leader: RaftNodeId,
    index: LogIndex,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Membership {
    configs: BoundedVec<BoundedVec<RaftNodeId, 128>, 2>,
    members: BoundedVec<(RaftNodeId, DeviceId), 128>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Payload {
    Blank,
    Command(Blob<COMMAND_BYTES_MAX>),
    Membership(Membership),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    id: LogId,
    payload: Payload,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Append {
    version: u8,
    vote: Vote,
    previous: Option<LogId>,
    previous_chain: Option<Digest>,
    entries: BoundedVec<Entry, 512>,
    committed: Option<LogId>,
}

impl Wire for Append {
    const BYTES_MAX: usize = RAFT_APPEND_BYTES_MAX + 1;
}

/// See the module.
#[derive(Default)]
pub struct LyingLeader;

impl LyingLeader {
    fn appends(hand: &mut Hand, body: &Bytes) -> Option<Bytes> {
        let mut append = decode::<Append>(body)
            .ok()
            .filter(|append| append.version == FORMAT_VERSION)?;
        let last = append.entries.last().map(|entry| entry.id).or(append.previous);
        if last.is_some() && last != append.committed && hand.one_in(2) {
            append.committed = last;
            hand.did("commit index ahead of the truth");
        }
        if hand.one_in(16) {
            let mut entries = append.entries.clone().into_inner();
            let command = entries
                .iter_mut()
                .find(|entry| matches!(entry.payload, Payload::Command(_)));
            if let Some(command) = command {
                command.payload = Payload::Blank;
                hand.did("another entry for one follower");
            }
            append.entries = entries.try_into().ok()?;
        }
        Some(encode(&append).into())
    }
}

impl Actor for LyingLeader {
    fn sends(&mut self, hand: &mut Hand, _to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves {
        let lie = match kind {
            FrameKind::RaftLane => Self::appends(hand, body),
            // A request outside a lane names the member that it is for.
            FrameKind::RaftAppend => body.get(..MEMBER_BYTES).and_then(|member| {
                let lie = Self::appends(hand, &body.slice(MEMBER_BYTES..))?;
                Some([member, &lie].concat().into())
            }),
            FrameKind::SubmitBatch => {
                let batch = decode::<CertifiedBatch>(body).ok();
                for to in hand.validators.clone() {
                    if let Some(other) = batch.as_ref().and_then(|batch| forger::forged(hand, batch)) {
                        hand.did("conflicting batch");
                        hand.send(to, kind, encode(&other));
                    }
                }
                None
            }
            _ => None,
        };
        Leaves::As(lie.unwrap_or_else(|| body.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn append_is_read_as_it_is_written() {
        let id = |index| LogId {
            term: Term(2),
            leader: RaftNodeId(7),
            index: LogIndex(index),
        };
        let entry = |index, payload| Entry { id: id(index), payload };
        let entries = vec![
            entry(5, Payload::Blank),
            entry(6, Payload::Command(vec![1, 2].try_into().unwrap())),
        ];
        let append = Append {
            version: FORMAT_VERSION,
            vote: Vote {
                term: Term(2),
                candidate: RaftNodeId(7),
                is_committed: true,
            },
            previous: Some(id(4)),
            previous_chain: Some(Digest([1; 32])),
            entries: entries.try_into().unwrap(),
            committed: None,
        };
        assert_eq!(decode::<Append>(&encode(&append)), Ok(append));
    }
}
