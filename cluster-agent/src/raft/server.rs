//! What peers ask of this member: every request is checked before openraft sees it.
//!
//! # Rules
//! * The term, the vote and the leader that a request names belong to the peer whose identity the
//!   connection proved. Nobody speaks for another.
//! * Upon a term more than [`TERM_JUMP_MAX`] above ours: refuse. Elections do not run that far ahead;
//!   a peer that could push the term to its end would stop the cluster for ever.
//! * Upon an append with a command that fails its check: refuse the whole append. Nothing invalid
//!   enters the log, whoever leads.
//! * Upon an append with a membership that the registry does not back: the same.
//! * Upon a vote or pre-vote for one who is no member and has no log beyond ours: refuse; the term stays.
//! * Upon an append, a snapshot or a hand-over of one who was a member by what is committed here, and is none
//!   any more: refuse. (An id that left never comes back. Of one who was none yet a late member must take
//!   the append that tells of it.) Only if the request's vote is below ours it goes on, to be told so. Who left is
//!   known as far back as this process has applied the log: after a restart, from its snapshot on. It is a fence
//!   against a stray member, no promise: one who left has no majority and cannot commit.
//! * Upon an append whose chain differs from ours at one log id: refuse and alarm, never truncate.
//! * Upon an append that would replace a committed entry: refuse and alarm.
//! * What openraft would answer with a panic (contradictions inside a request) is refused here.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use common::{
    bug::{self, Bug},
    ids::{DeviceId, Digest, NodeIdx, RaftNodeId, Term},
};
use openraft::{
    async_runtime::WatchReceiver,
    errors::RaftError,
    raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest},
};
use openraft_rt::AsyncRuntime;
use tokio::sync::Semaphore;
use transport::log_limit::LogLimits;

use super::{
    alarm::{AlarmSink, RaftAlarm},
    codec::{
        self, AppendReply, AppendRequest, BallotReply, BallotRequest, SnapshotFrame, TransferReply, TransferRequest,
        WireEntry, WireLogId, WirePayload, WireVote,
    },
    log::{Held, RaftLog},
    machine::MachineAdapter,
    network::RaftRpc,
    on_the_way::{Checking, Claim, OnTheWay},
    snapshot_receiver::SnapshotReceiver,
    types::{TypeConfig, entry_from_wire, log_id_from_wire, log_id_to_wire, vote_from_wire, vote_to_wire},
};

/// Appends outside lanes that are carried out at a time; the next one waits. Each is a heartbeat or small.
pub(super) const APPENDS_MAX: usize = 64;
/// Lanes of one peer at a time: those that are served, and those that ended and whose requests openraft has not
/// answered. The next one waits. A leader uses one; a peer that opens more takes nothing from the others.
pub(super) const LANES_PER_PEER_MAX: usize = 8;

/// How far above ours a peer's term may be.
pub const TERM_JUMP_MAX: u64 = 1_000_000;

/// The static check of a command, before it enters any log.
///
/// # Rules
/// It looks at the command alone, never at state: every member says the same of the same bytes.
pub trait AppendCheck: Send + Sync + 'static {
    /// # Errors
    /// What is wrong with the command, for the log.
    fn check(&self, command: &[u8]) -> Result<(), String>;

    /// The same for the members that a change of membership names, voters and learners.
    ///
    /// # Errors
    /// Which of them cannot be a member of this cluster, for the log.
    fn check_members(&self, members: &[(RaftNodeId, DeviceId)]) -> Result<(), String>;
}

/// Why a request was not carried out. The number goes over the wire, the words stay in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum RpcRefusal {
    /// Does not decode, or contradicts itself.
    #[error("malformed request")]
    Malformed = 1,
    /// Names another member than the connection proved.
    #[error("request in another member's name")]
    WrongSender = 2,
    /// Term further ahead than elections reach.
    #[error("term too far ahead")]
    TermJump = 3,
    /// A command failed its check.
    #[error("append with an invalid command")]
    BadCommand = 4,
    /// Same log id, other history.
    #[error("forked log")]
    ForkedLog = 5,
    /// Would replace a committed entry.
    #[error("conflict below the committed index")]
    ConflictBelowCommitted = 6,
    /// This member stopped as voter.
    #[error("member is quarantined")]
    Quarantined = 7,
    /// Raft stopped; the process is about to end.
    #[error("member has stopped")]
    Stopped = 8,
    /// A snapshot that does not have its digest.
    #[error("invalid snapshot")]
    BadSnapshot = 9,
    /// A vote for one who is not a member.
    #[error("candidate is not a member")]
    NotAMember = 10,
    /// A membership that the registry does not back.
    #[error("append with an invalid membership")]
    BadMembership = 11,
    /// The disk does not take a snapshot; worth trying again.
    #[error("the snapshot cannot be stored")]
    NoSpace = 12,
    /// For another data directory of this device.
    #[error("for another data directory of the device")]
    OtherMember = 13,
}

impl RpcRefusal {
    const ALL: [Self; 13] = [
        Self::Malformed,
        Self::WrongSender,
        Self::TermJump,
        Self::BadCommand,
        Self::ForkedLog,
        Self::ConflictBelowCommitted,
        Self::Quarantined,
        Self::Stopped,
        Self::BadSnapshot,
        Self::NotAMember,
        Self::BadMembership,
        Self::NoSpace,
        Self::OtherMember,
    ];

    /// Number on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The refusal with this number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }
}

/// The chain at an entry, and the one below it that it was computed above.
type Link = (Digest, Digest);

pub(super) type Raft<R> = openraft::Raft<TypeConfig<R>, MachineAdapter<R>>;

/// The receiving side of one member.
pub(super) struct Server<R: AsyncRuntime> {
    pub raft: Raft<R>,
    pub log: RaftLog<R>,
    pub check: Arc<dyn AppendCheck>,
    pub alarms: AlarmSink,
    pub is_quarantined: AtomicBool,
    pub snapshots: SnapshotReceiver<R>,
    pub on_the_way: Arc<OnTheWay>,
    /// Who was a member and is none any more.
    pub machine: MachineAdapter<R>,
    /// Turns of appends that openraft may still be busy with.
    pub appends: Arc<Semaphore>,
    /// The same of lanes, of each peer that has some.
    pub lanes: Mutex<BTreeMap<RaftNodeId, Arc<Semaphore>>>,
    /// About which device how many lines were written.
    pub complaints: LogLimits<NodeIdx>,
    /// The greatest leader that sent an append, and whether a second one of its term was told of.
    pub last_leader: Mutex<Option<(WireVote, bool)>>,
}

pub(super) type Answer<T> = Result<T, RpcRefusal>;

impl<R: AsyncRuntime> Server<R> {
    /// Carries out a request of the member `from`, whose identity the transport has proved.
    pub async fn handle(self: &Arc<Self>, from: RaftNodeId, kind: RaftRpc, body: &[u8]) -> Answer<Vec<u8>> {
        if self.is_quarantined.load(Ordering::Acquire) {
            return Err(RpcRefusal::Quarantined);
        }
        match kind {
            RaftRpc::Append => self.append(from, body).await.map(codec::encode),
            RaftRpc::Vote => self
                .ballot(from, self.parse(from, body)?, false)
                .await
                .map(codec::encode),
            RaftRpc::PreVote => self
                .ballot(from, self.parse(from, body)?, true)
                .await
                .map(codec::encode),
            RaftRpc::Snapshot => {
                let frame: SnapshotFrame = self.parse(from, body)?;
                self.check_vote(from, frame.vote)?;
                if !frame.vote.is_committed {
                    return Err(self.malformed(from, "a snapshot of a candidate"));
                }
                self.check_is_not_removed(from, frame.vote)?;
                self.snapshots.frame(from, frame).await.map(codec::encode)
            }
            RaftRpc::TransferLeader => self.transfer(from, self.parse(from, body)?).await.map(codec::encode),
        }
    }

    fn check_vote(&self, from: RaftNodeId, vote: WireVote) -> Answer<()> {
        if vote.candidate != from {
            (self.alarms)(RaftAlarm::WrongSender {
                from,
                claimed: vote.candidate,
            });
            return Err(RpcRefusal::WrongSender);
        }
        let ours = self.log.term();
        if vote.term.0 > ours.0.saturating_add(TERM_JUMP_MAX) {
            (self.alarms)(RaftAlarm::TermJump {
                from,
                ours,
                theirs: vote.term,
            });
            return Err(RpcRefusal::TermJump);
        }
        Ok(())
    }

    /// Checks an append request and puts it into openraft's terms. The claim is held until the request
    /// is answered.
    pub fn admit(
        &self,
        from: RaftNodeId,
        read: impl FnOnce(RaftNodeId) -> Answer<AppendRequest>,
    ) -> Answer<(AppendEntriesRequest<TypeConfig<R>>, Claim)> {
        if self.is_quarantined.load(Ordering::Acquire) {
            return Err(RpcRefusal::Quarantined);
        }
        let request = read(from)?;
        self.check_vote(from, request.vote)?;
        self.check_is_not_removed(from, request.vote)?;
        check_leaders(&request)?;
        self.check_entries(from, &request)?;
        let (chains, claim) = self.check_history(&request)?;
        self.note_leader(request.vote);
        let leader_commit = self.clamped_commit(&request).map(log_id_from_wire);
        let entries: Result<Vec<_>, _> = request
            .entries
            .into_inner()
            .into_iter()
            .zip(chains)
            .map(|(entry, link)| {
                let (chain, above) = link.unzip();
                entry_from_wire(entry, chain, above)
            })
            .collect();
        let request = AppendEntriesRequest {
            vote: vote_from_wire(request.vote),
            prev_log_id: request.previous.map(log_id_from_wire),
            entries: entries.map_err(|why| self.malformed(from, why))?,
            leader_commit,
        };
        if bug::active(Bug::ConflictKept) {
            return Ok((self.keeping_ours(request), claim));
        }
        Ok((request, claim))
    }

    /// [`Bug::ConflictKept`]: what is held here passes for what the leader sends for its place.
    fn keeping_ours(&self, mut request: AppendEntriesRequest<TypeConfig<R>>) -> AppendEntriesRequest<TypeConfig<R>> {
        let Some(last) = self.log.last().map(log_id_from_wire) else {
            return request;
        };
        request.entries.retain(|entry| entry.id.index > last.index);
        for entry in &mut request.entries {
            (entry.chain, entry.computed_above) = (None, None);
        }
        request.prev_log_id = request
            .prev_log_id
            .map(|previous| if previous.index > last.index { previous } else { last });
        request
    }

    pub(super) fn parse<T: codec::Body>(&self, from: RaftNodeId, body: &[u8]) -> Answer<T> {
        codec::decode(body).map_err(|error| self.malformed(from, error))
    }

    fn malformed(&self, from: RaftNodeId, why: impl std::fmt::Display) -> RpcRefusal {
        if let Some(not_logged) = self.complaints.admit(from.idx()) {
            tracing::warn!(%from, %why, not_logged, "malformed raft request");
        }
        RpcRefusal::Malformed
    }

    async fn append(&self, from: RaftNodeId, body: &[u8]) -> Answer<AppendReply> {
        // Fails only on a closed semaphore, and nobody closes it.
        let turn = self.appends.clone().acquire_owned().await;
        let (request, claim) = self.admit(from, |from| self.parse(from, body))?;
        // A task of its own: who asked may go away, while the claim stands until openraft has answered.
        let raft = self.raft.clone();
        let appending = R::spawn(async move {
            let response = raft.append_entries(request).await;
            drop((claim, turn));
            response
        });
        let response = appending.await.map_err(panicked)?.map_err(stopped)?;
        Ok(match response {
            AppendEntriesResponse::Success => AppendReply::Success,
            AppendEntriesResponse::PartialSuccess(id) => AppendReply::PartialSuccess(id.as_ref().map(log_id_to_wire)),
            AppendEntriesResponse::Conflict => AppendReply::Conflict,
            AppendEntriesResponse::HigherVote(vote) => AppendReply::HigherVote(vote_to_wire(&vote)),
        })
    }

    fn check_entries(&self, from: RaftNodeId, request: &AppendRequest) -> Answer<()> {
        for entry in &request.entries {
            let index = entry.id.index;
            match &entry.payload {
                WirePayload::Command(command) => self.check.check(command).map_err(|why| {
                    (self.alarms)(RaftAlarm::BadCommand { from, index, why });
                    RpcRefusal::BadCommand
                })?,
                WirePayload::Membership(membership) => {
                    let members = membership.members.into_iter();
                    let members: Vec<_> = members.map(|member| (member.id, member.device)).collect();
                    self.check.check_members(&members).map_err(|why| {
                        (self.alarms)(RaftAlarm::BadMembership { from, index, why });
                        RpcRefusal::BadMembership
                    })?;
                }
                WirePayload::Blank => {}
            }
        }
        Ok(())
    }

    /// Alarms, once per term, when a second member leads in one term. openraft orders them, so nothing is
    /// refused: it happens to honest members when votes are split, and hardly ever.
    fn note_leader(&self, vote: WireVote) {
        let mut last = self.last_leader.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((known, was_told)) = *last else {
            *last = Some((vote, false));
            return;
        };
        let is_later = (vote.term, vote.candidate) > (known.term, known.candidate);
        if known.term == vote.term && known.candidate != vote.candidate {
            if !was_told {
                (self.alarms)(RaftAlarm::TwoLeaders {
                    term: vote.term,
                    first: known.candidate,
                    second: vote.candidate,
                });
            }
            *last = Some((if is_later { vote } else { known }, true));
        } else if is_later {
            *last = Some((vote, false));
        }
    }

    /// Refuses one who left the cluster by what is committed here. Who was never a member may be a leader
    /// whose membership this member has yet to hear of, from that leader itself.
    fn check_is_not_removed(&self, from: RaftNodeId, vote: WireVote) -> Answer<()> {
        // Below our vote nothing comes of the request but an answer from which its sender learns.
        if !self.machine.has_left(from) || self.log.is_vote_above(vote) {
            return Ok(());
        }
        let term = vote.term;
        (self.alarms)(RaftAlarm::NotAMember { from, term });
        Err(RpcRefusal::NotAMember)
    }

    /// A removed member is not told of its removal and may campaign for ever. Its log ends before ours does,
    /// while one whom we do not know yet has the entry that adds it, above our last.
    fn check_candidate(&self, from: RaftNodeId, request: &BallotRequest) -> Answer<()> {
        let metrics = self.raft.metrics();
        let is_known = {
            let now = metrics.borrow_watched();
            let membership = now.membership_config.membership();
            membership.voter_ids().next().is_none() || membership.get_node(&from.0).is_some()
        };
        if is_known || request.last > self.log.last() {
            return Ok(());
        }
        let term = request.vote.term;
        (self.alarms)(RaftAlarm::NotAMember { from, term });
        Err(RpcRefusal::NotAMember)
    }

    /// Compares the request with what is held here or on its way here, and returns the chain claimed for
    /// each entry.
    fn check_history(&self, request: &AppendRequest) -> Answer<(Vec<Option<Link>>, Claim)> {
        let on_the_way = self.on_the_way.check();
        let mut chain = match request.previous {
            None => Some(Digest::default()),
            Some(previous) => {
                if request.previous_chain.is_none() && !request.entries.is_empty() {
                    return Err(RpcRefusal::Malformed);
                }
                check_entry(&self.log, &self.alarms, &on_the_way, previous, request.previous_chain)?;
                request.previous_chain
            }
        };
        let mut claimed: Vec<_> = request.previous.zip(request.previous_chain).into_iter().collect();
        let mut chains = Vec::with_capacity(request.entries.len());
        for entry in &request.entries {
            let above = chain;
            chain = above.map(|above| WireEntry::chain(entry, above));
            check_entry(&self.log, &self.alarms, &on_the_way, entry.id, chain)?;
            claimed.extend(chain.map(|chain| (entry.id, chain)));
            chains.push(chain.zip(above));
        }
        if request.entries.is_empty() {
            claimed.clear();
        }
        Ok((chains, on_the_way.admit(claimed)))
    }

    /// What the leader says is committed, but never beyond what we would hold after this append.
    fn clamped_commit(&self, request: &AppendRequest) -> Option<WireLogId> {
        let last_sent = request.entries.last().map(|entry| entry.id).or(request.previous);
        let committed = request.committed?;
        let held_upto = self.log.last().max_by_index(last_sent);
        if held_upto.is_some_and(|last| committed.index <= last.index) {
            Some(committed)
        } else {
            last_sent
        }
    }

    async fn ballot(&self, from: RaftNodeId, request: BallotRequest, is_pre_vote: bool) -> Answer<BallotReply> {
        self.check_vote(from, request.vote)?;
        self.check_candidate(from, &request)?;
        let least = self.log.last().filter(|_| bug::active(Bug::VoteForShortLog));
        let last = request.last.max(least);
        let request = VoteRequest {
            vote: vote_from_wire(request.vote),
            last_log_id: last.map(log_id_from_wire),
            leadership_transfer: request.is_transfer,
        };
        let outcome = if is_pre_vote {
            self.raft.pre_vote(request).await
        } else {
            self.raft.vote(request).await
        };
        let response = outcome.map_err(stopped)?;
        Ok(BallotReply {
            vote: vote_to_wire(&response.vote),
            is_granted: response.vote_granted,
            last: response.last_log_id.as_ref().map(log_id_to_wire),
        })
    }

    async fn transfer(&self, from: RaftNodeId, request: TransferRequest) -> Answer<TransferReply> {
        self.check_vote(from, request.vote)?;
        self.check_is_not_removed(from, request.vote)?;
        let last = request.last.map(log_id_from_wire);
        let request = TransferLeaderRequest::new(vote_from_wire(request.vote), request.to.0, last);
        let outcome = self
            .raft
            .handle_transfer_leader(request)
            .await
            .map_err(|error| stopped(RaftError::Fatal(error)))?;
        Ok(match outcome {
            Ok(()) => TransferReply::Accepted,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => TransferReply::VoteChanged {
                expected: vote_to_wire(&expected),
                actual: vote_to_wire(&actual),
            },
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => TransferReply::LogNotFlushed {
                expected: expected.as_ref().map(log_id_to_wire),
                actual: actual.as_ref().map(log_id_to_wire),
            },
        })
    }
}

/// Compares an entry that a peer names with what is held here.
pub(super) fn check_entry<R: AsyncRuntime>(
    log: &RaftLog<R>,
    alarms: &AlarmSink,
    on_the_way: &Checking<'_>,
    id: WireLogId,
    theirs: Option<Digest>,
) -> Answer<()> {
    let forked = |ours, theirs| {
        (alarms)(RaftAlarm::ForkedLog {
            index: id.index,
            ours,
            theirs,
        });
        Err(RpcRefusal::ForkedLog)
    };
    if let (Some(ours), Some(theirs)) = (on_the_way.chain_at(id), theirs)
        && ours != theirs
    {
        return forked(ours, theirs);
    }
    let held = log.held(id.index).map_err(|error| {
        tracing::error!(%error, "the log cannot be read");
        RpcRefusal::Stopped
    })?;
    let Held::At(ours, chain) = held else { return Ok(()) };
    if ours != id {
        let committed = log.committed().filter(|committed| committed.index >= id.index);
        return committed.map_or(Ok(()), |committed| {
            let committed = committed.index;
            (alarms)(RaftAlarm::ConflictBelowCommitted {
                index: id.index,
                committed,
            });
            Err(RpcRefusal::ConflictBelowCommitted)
        });
    }
    match (chain, theirs) {
        (Some(ours), Some(theirs)) if ours != theirs => forked(ours, theirs),
        _ => Ok(()),
    }
}

trait MaxByIndex {
    fn max_by_index(self, other: Self) -> Self;
}

impl MaxByIndex for Option<WireLogId> {
    fn max_by_index(self, other: Self) -> Self {
        if self.map(|id| id.index) >= other.map(|id| id.index) {
            self
        } else {
            other
        }
    }
}

/// Leaders of the entries never fall and never pass the sender: openraft orders log ids by them.
fn check_leaders(request: &AppendRequest) -> Answer<()> {
    let sender = (request.vote.term, request.vote.candidate);
    let mut below = request
        .previous
        .map_or((Term(0), RaftNodeId(0)), |id| (id.term, id.leader));
    for entry in &request.entries {
        let leader = (entry.id.term, entry.id.leader);
        if leader < below {
            return Err(RpcRefusal::Malformed);
        }
        below = leader;
    }
    if !request.vote.is_committed || below > sender {
        Err(RpcRefusal::Malformed)
    } else {
        Ok(())
    }
}

pub(super) fn panicked(error: impl std::fmt::Display) -> RpcRefusal {
    tracing::error!(%error, "a request of a peer ended with a panic");
    RpcRefusal::Stopped
}

pub(super) fn stopped<R: AsyncRuntime>(error: RaftError<TypeConfig<R>>) -> RpcRefusal {
    tracing::error!(%error, "raft has stopped");
    RpcRefusal::Stopped
}
