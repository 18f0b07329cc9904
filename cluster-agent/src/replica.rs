//! What the rest of the shell asks of Raft, without its runtime parameter.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use common::{
    ids::{LogIndex, LogPosition, RaftNodeId},
    wire::cluster::Confirmation,
};
use futures::FutureExt;

use crate::{
    ports::{AsyncRuntime, BoxFuture, Lane},
    raft::{
        ChangeError, FatalReason, Founding, Member, MembersChange, OpenError, ProposeOutcome, RaftHandle, RaftRpc,
        RaftStatus, ReadRefusal, RpcRefusal, Signal,
    },
};

/// A running Raft member.
pub trait Replica: Send + Sync + 'static {
    /// Founds the cluster; exactly the founding members call it, all with the same members.
    fn initialize_once(&self, members: BTreeMap<RaftNodeId, Member>) -> BoxFuture<Result<Founding, OpenError>>;
    /// Answers a member whose identity the connection proved.
    fn handle(&self, from: RaftNodeId, kind: RaftRpc, body: Bytes) -> BoxFuture<Result<Vec<u8>, RpcRefusal>>;
    /// Serves a lane of append requests of a member whose identity the connection proved.
    fn lane(&self, from: RaftNodeId, lane: Lane) -> BoxFuture<()>;
    /// Replicates a command and returns the machine's answer.
    fn propose(&self, command: Bytes, deadline: Duration) -> BoxFuture<ProposeOutcome>;
    /// On the leader: a position that includes every write acknowledged before this call.
    fn linearizable_position(
        &self,
        confirmation: Confirmation,
        deadline: Duration,
    ) -> BoxFuture<Result<LogPosition, ReadRefusal>>;
    /// Waits until the machine has applied `index`.
    fn wait_applied(&self, index: LogIndex, deadline: Duration) -> BoxFuture<Result<LogPosition, ReadRefusal>>;
    /// State at this instant.
    fn status(&self) -> RaftStatus;
    /// The leader that this member believes in, as in `status`.
    fn leader(&self) -> Option<RaftNodeId>;
    /// Whether this member leads, as in `status`.
    fn is_leader(&self) -> bool;
    /// Time since a quorum acknowledged this leader, or since this follower's leader last wrote.
    fn contact_age(&self) -> BoxFuture<Option<Duration>>;
    /// On the leader: hands over to `to`.
    fn transfer_leader(&self, to: RaftNodeId) -> BoxFuture<()>;
    /// On the leader: makes a change that was thought out from the members of the entry at `as_of`.
    fn change_members(
        &self,
        change: MembersChange,
        as_of: LogPosition,
        deadline: Duration,
    ) -> BoxFuture<Result<LogPosition, ChangeError>>;
    /// Rises when another member leads, the term is another one, or this member's role in it.
    fn leader_changes(&self) -> Signal;
    /// Resolves when Raft ended by itself.
    fn fatal(&self) -> BoxFuture<FatalReason>;
    /// Stops as voter until the process restarts.
    fn quarantine(&self, reason: &str);
    /// Tries a peer at once whose link came up.
    fn reset_backoff(&self, peer: RaftNodeId) -> BoxFuture<()>;
    /// Ends in order.
    fn shutdown(&self) -> BoxFuture<()>;
}

impl<R: AsyncRuntime> Replica for RaftHandle<R> {
    fn initialize_once(&self, members: BTreeMap<RaftNodeId, Member>) -> BoxFuture<Result<Founding, OpenError>> {
        let raft = self.clone();
        async move { RaftHandle::initialize_once(&raft, members).await }.boxed()
    }

    fn handle(&self, from: RaftNodeId, kind: RaftRpc, body: Bytes) -> BoxFuture<Result<Vec<u8>, RpcRefusal>> {
        let raft = self.clone();
        async move { RaftHandle::handle(&raft, from, kind, &body).await }.boxed()
    }

    fn lane(&self, from: RaftNodeId, lane: Lane) -> BoxFuture<()> {
        let raft = self.clone();
        async move { RaftHandle::lane(&raft, from, lane).await }.boxed()
    }

    fn propose(&self, command: Bytes, deadline: Duration) -> BoxFuture<ProposeOutcome> {
        let raft = self.clone();
        async move { RaftHandle::propose(&raft, command, deadline).await }.boxed()
    }

    fn linearizable_position(
        &self,
        confirmation: Confirmation,
        deadline: Duration,
    ) -> BoxFuture<Result<LogPosition, ReadRefusal>> {
        let raft = self.clone();
        async move { RaftHandle::linearizable_position(&raft, confirmation, deadline).await }.boxed()
    }

    fn wait_applied(&self, index: LogIndex, deadline: Duration) -> BoxFuture<Result<LogPosition, ReadRefusal>> {
        let raft = self.clone();
        async move { RaftHandle::wait_applied(&raft, index, deadline).await }.boxed()
    }

    fn status(&self) -> RaftStatus {
        RaftHandle::status(self)
    }

    fn leader(&self) -> Option<RaftNodeId> {
        RaftHandle::leader(self)
    }

    fn is_leader(&self) -> bool {
        RaftHandle::is_leader(self)
    }

    fn contact_age(&self) -> BoxFuture<Option<Duration>> {
        let raft = self.clone();
        async move { RaftHandle::contact_age(&raft).await }.boxed()
    }

    fn transfer_leader(&self, to: RaftNodeId) -> BoxFuture<()> {
        let raft = self.clone();
        async move { RaftHandle::transfer_leader(&raft, to).await }.boxed()
    }

    fn change_members(
        &self,
        change: MembersChange,
        as_of: LogPosition,
        deadline: Duration,
    ) -> BoxFuture<Result<LogPosition, ChangeError>> {
        let raft = self.clone();
        async move { RaftHandle::change_members(&raft, change, as_of, deadline).await }.boxed()
    }

    fn leader_changes(&self) -> Signal {
        RaftHandle::leader_changes(self)
    }

    fn fatal(&self) -> BoxFuture<FatalReason> {
        let raft = self.clone();
        async move { RaftHandle::fatal(&raft).await }.boxed()
    }

    fn quarantine(&self, reason: &str) {
        RaftHandle::quarantine(self, reason);
    }

    fn reset_backoff(&self, peer: RaftNodeId) -> BoxFuture<()> {
        let raft = self.clone();
        async move { RaftHandle::reset_backoff(&raft, peer).await }.boxed()
    }

    fn shutdown(&self) -> BoxFuture<()> {
        let raft = self.clone();
        async move { RaftHandle::shutdown(&raft).await }.boxed()
    }
}
