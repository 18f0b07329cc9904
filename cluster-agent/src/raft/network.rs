//! openraft's network over our link port: encodes, adds the chain, keeps deadlines.
//!
//! # Rules
//! * Every call has a deadline, ours as well as the link's.
//! * Entries go over a lane, many requests in flight ([`super::pipeline`]). Heartbeats, votes and snapshots
//!   are calls of their own, which no entries delay.
//! * Pre-vote is a real question: openraft's default would grant it to itself.
//! * A leader names its chain at the entry before those it sends. It sends none without knowing it.
//! * A snapshot goes in frames, each answered with the offset to go on from; an interrupted transfer
//!   of the same bytes resumes where it stood. When all have arrived, the sender asks for the outcome.

use std::{io, marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use common::ids::RaftNodeId;
use futures::{
    Stream, StreamExt,
    future::{BoxFuture, Either, select},
    stream::{self, BoxStream},
};
use openraft::{
    OptionalSend,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderError,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use openraft_rt::{AsyncRuntime, Instant};

use super::{
    codec::{
        self, AppendReply, AppendRequest, BallotReply, BallotRequest, Body, SNAPSHOT_FRAME_BYTES_MAX, SnapshotFrame,
        SnapshotReply, TransferReply, TransferRequest, WireVote,
    },
    confirm::{Confirmations, Number},
    encodings::{Encodings, RequestHead},
    log::RaftLog,
    pipeline,
    server::RpcRefusal,
    snapshot_data::SnapshotData,
    types::{
        Member, Snapshot, TypeConfig, Vote, entry_to_wire, log_id_from_wire, log_id_to_wire, vote_from_wire,
        vote_to_wire,
    },
};
use crate::ports::{CallError, Lane};

/// Kinds of request between members; the transport chooses stream and priority by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RaftRpc {
    /// Entries or a heartbeat.
    Append,
    /// A campaign.
    Vote,
    /// Whether a campaign would succeed; changes nothing.
    PreVote,
    /// A frame of a snapshot; lowest priority.
    Snapshot,
    /// The leader hands over.
    TransferLeader,
}

impl RaftRpc {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Append,
        Self::Vote,
        Self::PreVote,
        Self::Snapshot,
        Self::TransferLeader,
    ];

    /// Number on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Append => 1,
            Self::Vote => 2,
            Self::PreVote => 3,
            Self::Snapshot => 4,
            Self::TransferLeader => 5,
        }
    }

    /// The kind with this number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Longest request body, in bytes.
    #[must_use]
    pub fn request_bytes_max(self) -> usize {
        1 + match self {
            Self::Append => AppendRequest::BYTES_MAX,
            Self::Vote | Self::PreVote => BallotRequest::BYTES_MAX,
            Self::Snapshot => SnapshotFrame::BYTES_MAX,
            Self::TransferLeader => TransferRequest::BYTES_MAX,
        }
    }
}

/// Slowest link that replication must still get through, and blocks, about 1 Mbit/s.
pub(crate) const LINK_BYTES_PER_MS_MIN: u64 = 128;

/// Longest answer to any request, in bytes.
pub const REPLY_BYTES_MAX: usize = 128;

/// Why a call brought no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No connection to the peer; openraft waits before it tries again.
    #[error("peer is unreachable: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The connection broke during the call.
    #[error("connection: {0}")]
    Network(String),
    /// The peer refused the request.
    #[error("peer refused: {0}")]
    Refused(RpcRefusal),
}

impl From<CallError> for LinkError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unreachable(_) => Self::Unreachable(error.to_string()),
            CallError::Timeout(_) => Self::Timeout,
            CallError::Broken(_) | CallError::Refused(_) => Self::Network(error.to_string()),
        }
    }
}

/// What goes over the wire as an answer: `0 | answer`, or the number of the refusal alone.
#[must_use]
pub fn encode_answer(answer: Result<Vec<u8>, RpcRefusal>) -> Bytes {
    match answer {
        Ok(answer) => {
            let mut framed = Vec::with_capacity(1 + answer.len());
            framed.push(0);
            framed.extend_from_slice(&answer);
            framed.into()
        }
        Err(refusal) => vec![refusal.code()].into(),
    }
}

/// The answer in what [`encode_answer`] made.
///
/// # Errors
/// [`LinkError::Refused`], or [`LinkError::Network`] for bytes that are no answer.
pub fn decode_answer(mut answer: Bytes) -> Result<Bytes, LinkError> {
    match answer.first().copied() {
        None => Err(LinkError::Network("an empty answer".into())),
        Some(0) => Ok(answer.split_off(1)),
        Some(code) => Err(RpcRefusal::from_code(code).map_or_else(
            || LinkError::Network(format!("refusal {code} is not known")),
            LinkError::Refused,
        )),
    }
}

/// Calls between members. The transport proves who the peer is; here it is only named.
pub trait RaftLink: Send + Sync + 'static {
    /// Sends `body` to `to` and returns the peer's answer, at most [`REPLY_BYTES_MAX`] bytes, within
    /// `deadline`. Dropping the future gives up the call.
    fn call(
        &self,
        to: RaftNodeId,
        kind: RaftRpc,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, LinkError>>;

    /// Opens a lane of append requests to `to` within `deadline`. Each answer is that of
    /// [`encode_answer`]. The peer serves it with [`RaftHandle::lane`](super::RaftHandle::lane).
    fn open_lane(&self, to: RaftNodeId, deadline: Duration) -> BoxFuture<'static, Result<Lane, LinkError>>;
}

/// Makes clients; connecting is the link's business.
pub(super) struct Network<R> {
    pub me: RaftNodeId,
    pub link: Arc<dyn RaftLink>,
    pub log: RaftLog<R>,
    pub frame_timeout: Duration,
    pub lane_timeout: Duration,
    pub news_patience: Duration,
    /// Told of each answered append.
    pub confirmations: Arc<Confirmations>,
    /// What goes to several members.
    pub encodings: Arc<Encodings>,
}

impl<R: AsyncRuntime> Network<R> {
    fn client(&self, target: u64, sends: Sends) -> Client<R> {
        Client {
            me: self.me,
            to: RaftNodeId(target),
            link: self.link.clone(),
            log: self.log.clone(),
            frame_timeout: self.frame_timeout,
            lane_timeout: self.lane_timeout,
            news_patience: self.news_patience,
            confirmations: self.confirmations.clone(),
            encodings: self.encodings.clone(),
            sends,
            runtime: PhantomData,
        }
    }
}

impl<R: AsyncRuntime> RaftNetworkFactory<TypeConfig<R>> for Network<R> {
    type Network = Client<R>;

    async fn new_client(&mut self, target: u64, _member: &Member) -> Client<R> {
        self.client(target, Sends::Entries)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _member: &Member) -> Client<R> {
        self.client(target, Sends::Heartbeats)
    }
}

/// What append requests of a client are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sends {
    /// Over a lane.
    Entries,
    /// One call each: nothing may stand before them.
    Heartbeats,
}

/// Calls to one member.
pub(super) struct Client<R> {
    me: RaftNodeId,
    to: RaftNodeId,
    link: Arc<dyn RaftLink>,
    log: RaftLog<R>,
    frame_timeout: Duration,
    lane_timeout: Duration,
    /// How long news of a commit waits for entries to travel with.
    pub(super) news_patience: Duration,
    confirmations: Arc<Confirmations>,
    encodings: Arc<Encodings>,
    sends: Sends,
    runtime: PhantomData<fn() -> R>,
}

pub(super) type Outcome<T, R> = Result<T, RPCError<TypeConfig<R>>>;

pub(super) fn broken<R: AsyncRuntime>(why: impl ToString) -> RPCError<TypeConfig<R>> {
    RPCError::Network(NetworkError::new(&io::Error::other(why.to_string())))
}

impl<R: AsyncRuntime> Client<R> {
    async fn call<Q: Body, A: Body>(
        &self,
        kind: RaftRpc,
        action: RPCTypes,
        request: Q,
        ttl: Duration,
    ) -> Outcome<A, R> {
        let body = Bytes::from(codec::encode(request));
        // A heartbeat fits the interval that openraft gives; a full append on a slow radio does not,
        // and would be sent for ever.
        let ttl = ttl + Duration::from_millis(body.len() as u64 / LINK_BYTES_PER_MS_MIN);
        let call = self.link.call(self.to, kind, body, ttl);
        let outcome = R::timeout(ttl, call).await.unwrap_or(Err(LinkError::Timeout));
        let reply = outcome.map_err(|error| self.link_error(&error, action, ttl))?;
        codec::decode(&reply).map_err(|error| broken(format!("answer of {}: {error}", self.to)))
    }

    pub(super) fn link_error(&self, error: &LinkError, action: RPCTypes, timeout: Duration) -> RPCError<TypeConfig<R>> {
        match error {
            LinkError::Timeout => RPCError::Timeout(Timeout {
                action,
                id: self.me.0,
                target: self.to.0,
                timeout,
            }),
            LinkError::Network(_) => RPCError::Network(NetworkError::new(error)),
            // A refusal repeats itself: wait as for a peer that is away.
            LinkError::Unreachable(_) | LinkError::Refused(_) => RPCError::Unreachable(Unreachable::new(error)),
        }
    }

    /// The request as it goes over a lane. Members that stand alike share it.
    pub(super) fn encoded(&self, request: &AppendEntriesRequest<TypeConfig<R>>) -> Outcome<Bytes, R> {
        let encode = || {
            self.append_request(request)
                .map(|wire| Bytes::from(codec::encode(wire)))
        };
        let last = request.entries.last();
        let Some((last, chain)) = last.and_then(|entry| Some((log_id_to_wire(&entry.id), entry.chain?))) else {
            return encode();
        };
        let previous = request.prev_log_id.as_ref().map(log_id_to_wire);
        let head = RequestHead {
            vote: vote_to_wire(&request.vote),
            previous,
            previous_chain: previous.and_then(|id| self.log.chain_at(id)),
            committed: request.leader_commit.as_ref().map(log_id_to_wire),
            entries: request.entries.len(),
            last: (last, chain),
        };
        self.encodings.get_or(head, encode)
    }

    fn append_request(&self, request: &AppendEntriesRequest<TypeConfig<R>>) -> Outcome<AppendRequest, R> {
        let previous = request.prev_log_id.as_ref().map(log_id_to_wire);
        let previous_chain = previous.and_then(|id| self.log.chain_at(id));
        if previous.is_some() && previous_chain.is_none() && !request.entries.is_empty() {
            return Err(broken("the entry before these was purged meanwhile"));
        }
        let entries: Result<Vec<_>, _> = request.entries.iter().map(entry_to_wire).collect();
        let entries = entries.map_err(broken)?.try_into().map_err(broken)?;
        let committed = request.leader_commit.as_ref().map(log_id_to_wire);
        Ok(AppendRequest {
            vote: vote_to_wire(&request.vote),
            previous,
            previous_chain,
            entries,
            committed,
        })
    }

    /// For a request that is about to be sent.
    pub(super) fn number(&self) -> Number {
        self.confirmations.number()
    }

    /// The peer has answered the request `number`, and knew nobody above the leader of `vote`.
    pub(super) fn answered(&self, vote: WireVote, number: Number) {
        self.confirmations.answered(self.to, vote, number);
    }

    /// Opens a lane for `input` when its first request is there: openraft makes its pause after failures
    /// in front of that, and a peer that is away must not be asked without pause.
    async fn lane_session<S>(&self, mut input: S) -> BoxStream<'_, Outcome<StreamAppendResult<TypeConfig<R>>, R>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig<R>>> + Send + Unpin + 'static,
    {
        let Some(first) = input.next().await else {
            return stream::empty().boxed();
        };
        let timeout = self.lane_timeout;
        let opened = R::timeout(timeout, self.link.open_lane(self.to, timeout)).await;
        match opened.unwrap_or(Err(LinkError::Timeout)) {
            Ok(lane) => pipeline::run(self, lane, timeout, stream::iter([first]).chain(input)),
            Err(error) => {
                let error = self.link_error(&error, RPCTypes::AppendEntries, timeout);
                stream::iter([Err(error)]).boxed()
            }
        }
    }

    async fn ballot(
        &self,
        kind: RaftRpc,
        request: VoteRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Outcome<BallotReply, R> {
        let request = BallotRequest {
            vote: vote_to_wire(&request.vote),
            last: request.last_log_id.as_ref().map(log_id_to_wire),
            is_transfer: request.leadership_transfer,
        };
        self.call(kind, RPCTypes::Vote, request, option.soft_ttl()).await
    }

    async fn send_snapshot(
        &self,
        vote: &Vote,
        snapshot: &SnapshotData,
        ttl: Duration,
    ) -> Outcome<SnapshotResponse<TypeConfig<R>>, R> {
        let vote = vote_to_wire(vote);
        let SnapshotData::Stored(stored) = snapshot else {
            return Err(broken("a snapshot is sent when it is stored"));
        };
        let digest = stored.digest;
        let (bytes_total, mut offset, mut stalled) = (stored.bytes.bytes_len(), 0, 0);
        let mut progressed = R::Instant::now();
        loop {
            let end = bytes_total.min(offset + SNAPSHOT_FRAME_BYTES_MAX as u64);
            let bytes = stored.read(offset, (end - offset) as usize).await.map_err(broken)?;
            let frame = SnapshotFrame {
                vote,
                digest,
                bytes_total,
                offset,
                bytes: bytes.to_vec().try_into().map_err(broken)?,
            };
            let deadline = self.frame_timeout.min(ttl);
            match self
                .call(RaftRpc::Snapshot, RPCTypes::InstallSnapshot, frame, deadline)
                .await?
            {
                SnapshotReply::Done { vote } => return Ok(SnapshotResponse::new(vote_from_wire(vote))),
                SnapshotReply::Continue { offset: next } => {
                    if next > bytes_total {
                        return Err(broken("asked for bytes past the end of the snapshot"));
                    }
                    if next > offset {
                        (stalled, progressed) = (0, R::Instant::now());
                    }
                    // A receiver that always asks for the same offset must not hold us for ever; one that
                    // has everything may check it for as long as an installation may take.
                    stalled += u32::from(next <= offset && next < bytes_total);
                    if stalled > 3 || progressed.elapsed() > ttl {
                        return Err(broken("the snapshot does not get on"));
                    }
                    offset = next;
                }
            }
        }
    }
}

impl<R: AsyncRuntime> RaftNetworkV2<TypeConfig<R>> for Client<R> {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Outcome<AppendEntriesResponse<TypeConfig<R>>, R> {
        let request = self.append_request(&request)?;
        let (vote, number) = (request.vote, self.number());
        let reply = self
            .call(RaftRpc::Append, RPCTypes::AppendEntries, request, option.soft_ttl())
            .await?;
        if !matches!(reply, AppendReply::HigherVote(_)) {
            self.answered(vote, number);
        }
        Ok(match reply {
            AppendReply::Success => AppendEntriesResponse::Success,
            AppendReply::PartialSuccess(id) => AppendEntriesResponse::PartialSuccess(id.map(log_id_from_wire)),
            AppendReply::Conflict => AppendEntriesResponse::Conflict,
            AppendReply::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote_from_wire(vote)),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Outcome<BoxStream<'s, Outcome<StreamAppendResult<TypeConfig<R>>, R>>, R>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig<R>>> + OptionalSend + Unpin + 'static,
    {
        if self.sends == Sends::Heartbeats {
            return stream_append_sequential(self, input, option);
        }
        let client: &'s Self = self;
        Box::pin(async move { Ok(stream::once(client.lane_session(input)).flatten().boxed()) })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Outcome<VoteResponse<TypeConfig<R>>, R> {
        self.ballot(RaftRpc::Vote, request, option).await.map(ballot_response)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Outcome<VoteResponse<TypeConfig<R>>, R> {
        self.ballot(RaftRpc::PreVote, request, option)
            .await
            .map(ballot_response)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<R>>, StreamingError<TypeConfig<R>>> {
        let sending = std::pin::pin!(self.send_snapshot(&vote, &snapshot.snapshot, option.soft_ttl()));
        match select(sending, std::pin::pin!(cancel)).await {
            Either::Left((outcome, _)) => outcome.map_err(StreamingError::from),
            Either::Right((closed, _)) => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Outcome<TransferLeaderResponse<TypeConfig<R>>, R> {
        let request = TransferRequest {
            vote: vote_to_wire(request.from_leader()),
            to: RaftNodeId(*request.to_node_id()),
            last: request.last_log_id().map(log_id_to_wire),
        };
        let reply = self
            .call(
                RaftRpc::TransferLeader,
                RPCTypes::TransferLeader,
                request,
                option.soft_ttl(),
            )
            .await?;
        Ok(match reply {
            TransferReply::Accepted => Ok(()),
            TransferReply::VoteChanged { expected, actual } => Err(TransferLeaderError::VoteChanged {
                expected: vote_from_wire(expected),
                actual: vote_from_wire(actual),
            }),
            TransferReply::LogNotFlushed { expected, actual } => Err(TransferLeaderError::LogNotFlushed {
                expected: expected.map(log_id_from_wire),
                actual: actual.map(log_id_from_wire),
            }),
        })
    }
}

fn ballot_response<R: AsyncRuntime>(reply: BallotReply) -> VoteResponse<TypeConfig<R>> {
    VoteResponse {
        vote: vote_from_wire(reply.vote),
        vote_granted: reply.is_granted,
        last_log_id: reply.last.map(log_id_from_wire),
    }
}
