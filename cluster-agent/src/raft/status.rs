//! What this member knows of its cluster, as one value that can be kept and compared.

use common::ids::{LogIndex, LogPosition, RaftNodeId, Term};
use openraft::{ServerState, StorageError, errors::Fatal, metrics::RaftMetrics};
use openraft_rt::{AsyncRuntime, Instant};

use super::types::{TypeConfig, index_from_raft, position};

/// Part that a member plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaftRole {
    /// Receives the log, does not vote.
    Learner,
    /// Voter that follows a leader, or waits for one. Who led and stopped as voter counts as one too.
    Follower,
    /// Voter that campaigns.
    Candidate,
    /// Leader. It may have lost its quorum: see [`RaftStatus::quorum_acked_age_ms`].
    Leader,
    /// Raft has ended in this process.
    Stopped,
}

/// A member as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The member.
    pub id: RaftNodeId,
    /// Last index that it is known to hold, 0 if unknown.
    pub matched: LogIndex,
    /// Milliseconds since its last acknowledgement, `None` before the first.
    pub acked_age_ms: Option<u64>,
}

/// State of this member at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// This member.
    pub id: RaftNodeId,
    /// Its part.
    pub role: RaftRole,
    /// Its term.
    pub term: Term,
    /// The leader it believes in; possibly dead.
    pub leader: Option<RaftNodeId>,
    /// Last entry of its log, 0 if empty.
    pub last_index: LogIndex,
    /// Last entry that it knows to be committed; position 0 before the first.
    pub committed: LogPosition,
    /// Last entry given to the machine.
    pub applied: LogPosition,
    /// Last entry that was purged.
    pub purged: LogPosition,
    /// Last entry in the newest snapshot.
    pub snapshot: LogPosition,
    /// Voters of the configuration in force, ascending; both halves while it is joint.
    pub voters: Vec<RaftNodeId>,
    /// Members without a vote, ascending.
    pub learners: Vec<RaftNodeId>,
    /// The entry that made it so; position 0 before the first.
    pub members_at: LogPosition,
    /// A membership change has begun and is not finished.
    pub is_joint: bool,
    /// On a leader: milliseconds since a quorum last acknowledged it, `None` before the first time.
    pub quorum_acked_age_ms: Option<u64>,
    /// On a leader: everyone else.
    pub peers: Vec<PeerStatus>,
    /// This member was told to stop as voter.
    pub is_quarantined: bool,
}

impl RaftStatus {
    /// Of a member that knows nothing but itself.
    #[must_use]
    pub fn of(id: RaftNodeId) -> Self {
        Self {
            id,
            role: RaftRole::Follower,
            term: Term(0),
            leader: None,
            last_index: LogIndex(0),
            committed: LogPosition::default(),
            applied: LogPosition::default(),
            purged: LogPosition::default(),
            snapshot: LogPosition::default(),
            voters: Vec::new(),
            learners: Vec::new(),
            members_at: LogPosition::default(),
            is_joint: false,
            quorum_acked_age_ms: None,
            peers: Vec::new(),
            is_quarantined: false,
        }
    }
}

/// Why Raft ended. The process must exit with `exit_code`; a supervisor decides about a restart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("raft ended (exit {exit_code}): {reason}")]
pub struct FatalReason {
    /// 74 for the disk, 70 for a bug, after `sysexits.h`.
    pub exit_code: u8,
    /// For the log.
    pub reason: String,
}

const EXIT_IO: u8 = 74;
const EXIT_SOFTWARE: u8 = 70;

pub(super) fn from_metrics<R: AsyncRuntime>(metrics: &RaftMetrics<TypeConfig<R>>, is_quarantined: bool) -> RaftStatus {
    let position_or_start = |id: &Option<_>| id.as_ref().map_or(LogPosition::default(), position);
    let membership = metrics.membership_config.membership();
    let age_ms = |at: R::Instant| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
    let role = match (&metrics.running_state, metrics.state) {
        (Err(_), _) | (Ok(()), ServerState::Shutdown) => RaftRole::Stopped,
        (Ok(()), ServerState::Learner) => RaftRole::Learner,
        (Ok(()), ServerState::Follower) => RaftRole::Follower,
        (Ok(()), ServerState::Candidate) => RaftRole::Candidate,
        (Ok(()), ServerState::Leader) if is_quarantined => RaftRole::Follower,
        (Ok(()), ServerState::Leader) => RaftRole::Leader,
    };
    let matched = metrics.replication.iter().flatten();
    let peers = matched
        .filter(|(id, _)| **id != metrics.id)
        .map(|(id, matched)| PeerStatus {
            id: RaftNodeId(*id),
            matched: matched.as_ref().map_or(LogIndex(0), |id| index_from_raft(id.index)),
            acked_age_ms: metrics
                .heartbeat
                .as_ref()
                .and_then(|acked| acked.get(id))
                .and_then(|at| at.as_ref().map(|at| age_ms(at.into_inner()))),
        });
    let mut voters: Vec<_> = membership.voter_ids().map(RaftNodeId).collect();
    voters.sort();
    voters.dedup();
    RaftStatus {
        id: RaftNodeId(metrics.id),
        role,
        term: Term(metrics.current_term),
        leader: believed_leader::<R>(metrics, is_quarantined),
        last_index: metrics.last_log_index.map_or(LogIndex(0), index_from_raft),
        committed: position_or_start(&metrics.local_committed),
        applied: position_or_start(&metrics.last_applied),
        purged: position_or_start(&metrics.purged),
        snapshot: position_or_start(&metrics.snapshot),
        voters,
        learners: membership.learner_ids().map(RaftNodeId).collect(),
        members_at: position_or_start(metrics.membership_config.log_id()),
        is_joint: membership.get_joint_config().len() > 1,
        quorum_acked_age_ms: metrics.last_quorum_acked.map(|at| age_ms(at.into_inner())),
        peers: peers.collect(),
        is_quarantined,
    }
}

/// The leader that a member believes in; a leader that stopped as voter does not believe in itself.
pub(super) fn believed_leader<R: AsyncRuntime>(
    metrics: &RaftMetrics<TypeConfig<R>>,
    is_quarantined: bool,
) -> Option<RaftNodeId> {
    let leader = metrics.current_leader.map(RaftNodeId);
    leader.filter(|leader| !is_quarantined || *leader != RaftNodeId(metrics.id))
}

/// The reason, unless Raft was merely told to stop.
pub(super) fn fatal_reason<R: AsyncRuntime>(fatal: &Fatal<TypeConfig<R>>) -> Option<FatalReason> {
    match fatal {
        Fatal::StorageError(error) => Some(storage_reason(error)),
        Fatal::Panicked => Some(FatalReason {
            exit_code: EXIT_SOFTWARE,
            reason: "raft panicked".into(),
        }),
        Fatal::Stopped => None,
    }
}

fn storage_reason<R: AsyncRuntime>(error: &StorageError<TypeConfig<R>>) -> FatalReason {
    FatalReason {
        exit_code: EXIT_IO,
        reason: error.to_string(),
    }
}
