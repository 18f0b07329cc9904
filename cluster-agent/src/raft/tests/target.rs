//! Member 1 of {1, 2, 3}, alone; a test plays its leaders, byte for byte.

use std::sync::Arc;

use bytes::Bytes;
use common::ids::{Digest, LogIndex, Term};

use transport::memory::{Fate, lane_pair};

use super::harness::{Handle, Seat, Switchboard, id, member, quick};
use crate::{
    ports::Lane,
    raft::{
        AsyncRuntime as _, REPLY_BYTES_MAX, RaftAlarm, RaftConfig, RaftRpc, RpcRefusal, TokioRuntime,
        codec::{
            self, AppendReply, AppendRequest, WireEntry, WireLogId, WireMember, WireMembership, WirePayload, WireVote,
        },
    },
};

pub struct Target {
    pub seat: Seat,
    pub handle: Handle,
}

pub fn log_id(term: u64, leader: u64, index: u64) -> WireLogId {
    WireLogId {
        term: Term(term),
        leader: id(leader),
        index: LogIndex(index),
    }
}

pub fn command(at: WireLogId, bytes: &[u8]) -> WireEntry {
    WireEntry {
        id: at,
        payload: WirePayload::command(&Bytes::copy_from_slice(bytes)).unwrap(),
    }
}

pub fn membership() -> WireMembership {
    let members = (1..=3).map(|number| WireMember {
        id: id(number),
        device: member(number).device,
    });
    WireMembership::new(vec![vec![id(1), id(2), id(3)]], members.collect())
}

pub fn leads(term: u64, leader: u64) -> WireVote {
    WireVote {
        term: Term(term),
        candidate: id(leader),
        is_committed: true,
    }
}

/// The chain above all of `entries`, from the start of the log.
pub fn chain_of(entries: &[WireEntry]) -> Digest {
    entries
        .iter()
        .fold(Digest::default(), |chain, entry| entry.chain(chain))
}

/// An append of `new` above `held` by the leader of `vote`.
pub fn append(vote: WireVote, held: &[WireEntry], new: &[WireEntry], committed: Option<WireLogId>) -> AppendRequest {
    AppendRequest {
        vote,
        previous: held.last().map(|entry| entry.id),
        previous_chain: held.last().map(|_| chain_of(held)),
        entries: new.to_vec().try_into().unwrap(),
        committed,
    }
}

impl Target {
    pub async fn new() -> Self {
        Self::with(quick()).await
    }

    pub async fn with(config: RaftConfig) -> Self {
        Self::on(Seat::in_memory(1), config).await
    }

    pub async fn on(seat: Seat, config: RaftConfig) -> Self {
        let handle = seat.open(config, &Arc::new(Switchboard::default())).await;
        handle.set_may_campaign(false);
        Self { seat, handle }
    }

    pub async fn append_from(&self, from: u64, request: AppendRequest) -> Result<AppendReply, RpcRefusal> {
        let reply = self
            .handle
            .handle(id(from), RaftRpc::Append, &codec::encode(request))
            .await?;
        Ok(codec::decode(&reply).unwrap())
    }

    pub async fn append(&self, request: AppendRequest) -> Result<AppendReply, RpcRefusal> {
        let from = request.vote.candidate;
        self.append_from(from.0, request).await
    }

    /// Holds the founding and `commands`, all of term 1 under member 2, all but the last committed.
    pub async fn holding(commands: &[&[u8]]) -> (Self, Vec<WireEntry>) {
        Self::new().await.fill(commands).await
    }

    /// Gives it the same log.
    pub async fn fill(self, commands: &[&[u8]]) -> (Self, Vec<WireEntry>) {
        let target = self;
        let mut log = vec![WireEntry {
            id: log_id(1, 2, 1),
            payload: WirePayload::Membership(membership()),
        }];
        log.extend(
            (2..)
                .zip(commands)
                .map(|(index, bytes)| command(log_id(1, 2, index), bytes)),
        );
        let committed = log.iter().rev().nth(1).map(|entry| entry.id);
        let reply = target.append(append(leads(1, 2), &[], &log, committed)).await;
        assert_eq!(reply, Ok(AppendReply::Success));
        (target, log)
    }

    /// A lane of the member `from`, which the member under test serves.
    pub fn lane(&self, from: u64) -> Lane {
        let weather = Arc::new(|_| Fate::Arrives);
        let (ours, theirs) = lane_pair(RaftRpc::Append.request_bytes_max(), REPLY_BYTES_MAX, weather);
        let handle = self.handle.clone();
        drop(TokioRuntime::spawn(async move { handle.lane(id(from), theirs).await }));
        ours
    }

    pub fn last_index(&self) -> LogIndex {
        self.handle.status().last_index
    }

    pub fn alarms(&self) -> Vec<RaftAlarm> {
        self.seat.alarms.lock().unwrap().clone()
    }
}
