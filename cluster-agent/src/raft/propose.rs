//! Writing and reading through the leader: deadlines, refusals, and what is not known.
//!
//! # Rules
//! * Upon a proposal on a leader whose quorum is gone: refuse, and say when to try again.
//! * Upon a proposal on a leader that was elected just now and has no acknowledgement yet: try again
//!   within the deadline, with jitter. It would be wrong to call that an outage.
//! * Upon the deadline with the command in the log: unknown. It may still be committed, so the caller
//!   asks again with the same command id and the machine answers both alike.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use common::{
    bug::{self, Bug},
    ids::{LogIndex, LogPosition, RaftNodeId, Term},
    wire::cluster::Confirmation,
};
use futures::future::select;
use openraft::{
    LinearizerOption, ReadPolicy,
    errors::{ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError},
};
use openraft_rt::{AsyncRuntime, Instant};
use rand::RngExt;

use super::{
    codec::{COMMAND_BYTES_MAX, TooBig},
    confirm::{Leadership, Number},
    handle::RaftHandle,
    status::RaftRole,
    types::{Command, TypeConfig, position},
};

/// How a proposal ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposeOutcome {
    /// Committed and applied here; `answer` is the machine's.
    Committed {
        /// Where the command stands in the log.
        position: LogPosition,
        /// What the machine answered.
        answer: Vec<u8>,
    },
    /// Certainly not in the log.
    Refused(ProposeRefusal),
    /// Possibly in the log, now or later. Ask again with the same command.
    Unknown,
}

/// Why a proposal was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeRefusal {
    /// This member leads, but reaches no majority.
    #[error("no quorum; try again after {retry_after_ms} ms")]
    NoQuorum {
        /// By then a majority elsewhere has elected, if there is one.
        retry_after_ms: u64,
    },
    /// Another member leads, or none is known.
    #[error("not the leader; leader: {leader:?}")]
    NotLeader {
        /// A hint; it may be dead.
        leader: Option<RaftNodeId>,
    },
    /// Too much in flight.
    #[error("overloaded: {in_flight} in flight, at most {max}")]
    Overloaded {
        /// Proposals or bytes in flight.
        in_flight: usize,
        /// Their bound.
        max: usize,
    },
    /// Longer than an entry may be.
    #[error("command: {0}")]
    TooBig(#[from] TooBig),
    /// Every member would refuse an append with it.
    #[error("invalid command: {0}")]
    BadCommand(String),
    /// Raft has ended here.
    #[error("raft has stopped")]
    Stopped,
}

/// Why a linearizable read is not possible here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadRefusal {
    /// This member leads, but could not confirm it with a majority in time.
    #[error("no quorum")]
    NoQuorum,
    /// Another member leads, or none is known.
    #[error("not the leader; leader: {leader:?}")]
    NotLeader {
        /// A hint; it may be dead.
        leader: Option<RaftNodeId>,
    },
    /// The deadline passed.
    #[error("deadline passed")]
    Deadline,
    /// Raft has ended here.
    #[error("raft has stopped")]
    Stopped,
}

/// Counts proposals in flight. Never waits: what does not fit is refused.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    proposals: AtomicUsize,
    bytes: AtomicUsize,
}

/// One proposal's share; given back when dropped.
struct Share {
    of: Arc<InFlight>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.proposals.fetch_sub(1, Ordering::AcqRel);
        self.of.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

fn take_share(
    of: &Arc<InFlight>,
    bytes: usize,
    proposals_max: usize,
    bytes_max: usize,
) -> Result<Share, ProposeRefusal> {
    let proposals = of.proposals.fetch_add(1, Ordering::AcqRel) + 1;
    let in_flight = of.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
    let share = Share { of: of.clone(), bytes };
    if proposals > proposals_max {
        return Err(ProposeRefusal::Overloaded {
            in_flight: proposals,
            max: proposals_max,
        });
    }
    if in_flight > bytes_max && proposals > 1 {
        return Err(ProposeRefusal::Overloaded {
            in_flight,
            max: bytes_max,
        });
    }
    Ok(share)
}

enum Attempt {
    Ended(ProposeOutcome),
    /// A leader without its first acknowledgement: it took nothing.
    TooFresh,
}

impl<R: AsyncRuntime> RaftHandle<R> {
    /// Replicates `command` and returns the machine's answer. At most [`COMMAND_BYTES_MAX`] bytes.
    ///
    /// Ends within `deadline`. Dropping the future does not take the command back.
    pub async fn propose(&self, command: impl Into<Bytes>, deadline: Duration) -> ProposeOutcome {
        let command = command.into();
        match self.admit(&command) {
            Err(refusal) => ProposeOutcome::Refused(refusal),
            Ok(_share) => self.propose_within(command, deadline).await,
        }
    }

    fn admit(&self, command: &Bytes) -> Result<Share, ProposeRefusal> {
        if command.len() > COMMAND_BYTES_MAX {
            return Err(TooBig {
                got: command.len(),
                max: COMMAND_BYTES_MAX,
            }
            .into());
        }
        if self.inner.is_quarantined() {
            return Err(ProposeRefusal::NotLeader { leader: None });
        }
        if self.inner.is_ended() {
            return Err(ProposeRefusal::Stopped);
        }
        self.inner
            .server
            .check
            .check(command)
            .map_err(ProposeRefusal::BadCommand)?;
        let config = &self.inner.config;
        take_share(
            &self.inner.in_flight,
            command.len(),
            config.proposals_max,
            config.proposal_bytes_max,
        )
    }

    async fn propose_within(&self, command: Bytes, deadline: Duration) -> ProposeOutcome {
        let until = R::Instant::now() + deadline;
        loop {
            let attempt = R::timeout_at(until, self.attempt(command.clone())).await;
            match attempt {
                Err(_) => return ProposeOutcome::Unknown,
                Ok(Attempt::Ended(outcome)) => return outcome,
                Ok(Attempt::TooFresh) => {}
            }
            let pause_ms = self.inner.config.heartbeat_ms.div_ceil(8).max(2);
            let pause = Duration::from_millis(R::thread_rng().random_range(pause_ms / 2..=pause_ms));
            if R::Instant::now() + pause >= until {
                return ProposeOutcome::Refused(self.no_quorum());
            }
            R::sleep(pause).await;
        }
    }

    fn no_quorum(&self) -> ProposeRefusal {
        ProposeRefusal::NoQuorum {
            retry_after_ms: self.inner.config.retry_after_ms(),
        }
    }

    async fn attempt(&self, command: Bytes) -> Attempt {
        let error = match self.inner.raft.client_write(Command(command)).await {
            Ok(response) => {
                let position = position(&response.log_id);
                return Attempt::Ended(ProposeOutcome::Committed {
                    position,
                    answer: response.data.0,
                });
            }
            Err(error) => error,
        };
        let refusal = match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                if forward.reason == ForwardReason::LeaseExpired {
                    if self.status().quorum_acked_age_ms.is_none() {
                        return Attempt::TooFresh;
                    }
                    self.no_quorum()
                } else {
                    ProposeRefusal::NotLeader { leader: hint(&forward) }
                }
            }
            RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) | RaftError::Fatal(_) => {
                return Attempt::Ended(ProposeOutcome::Unknown);
            }
            RaftError::APIError(
                error @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_)),
            ) => {
                tracing::error!(%error, "a command was answered as a membership change");
                return Attempt::Ended(ProposeOutcome::Unknown);
            }
        };
        Attempt::Ended(ProposeOutcome::Refused(refusal))
    }

    /// On the leader: a position such that a machine which has applied it shows every write that was
    /// acknowledged before this call. Confirms the leadership with a majority (ReadIndex), by answers to requests
    /// that were sent after this call (`confirm`): to some that are sent for it, or to others.
    ///
    /// # Errors
    /// [`ReadRefusal`]; nothing was changed.
    pub async fn linearizable_position(
        &self,
        confirmation: Confirmation,
        deadline: Duration,
    ) -> Result<LogPosition, ReadRefusal> {
        if bug::active(Bug::ReadWithoutQuorum) && self.status().role == RaftRole::Leader {
            return Ok(self.inner.machine.applied().0);
        }
        // openraft would send heartbeats for it, and the others would go on waiting for this leader.
        if self.inner.is_quarantined() {
            return Err(ReadRefusal::NotLeader { leader: None });
        }
        let (until, number) = (R::Instant::now() + deadline, self.inner.confirmations.number());
        let option = match confirmation {
            Confirmation::AtOnce => LinearizerOption::from(ReadPolicy::ReadIndex),
            Confirmation::InPassing => LinearizerOption::new(Some(Duration::ZERO), false),
        };
        let option = option.with_wait_timeout(deadline);
        let confirmed = R::timeout(deadline, self.inner.raft.get_read_linearizer(option)).await;
        match confirmed.map_err(|_| ReadRefusal::Deadline)? {
            Ok(linearizer) => {
                let read = linearizer.read_log_id().log_id();
                let leader = (Term(read.leader_id.term), RaftNodeId(read.leader_id.node_id));
                self.followed_since(number, leader, until).await?;
                Ok(position(read))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadRefusal::NoQuorum),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                if forward.reason == ForwardReason::LeaseExpired {
                    return Err(ReadRefusal::NoQuorum);
                }
                Err(ReadRefusal::NotLeader { leader: hint(&forward) })
            }
            Err(RaftError::Fatal(_)) => Err(ReadRefusal::Stopped),
        }
    }

    /// Waits until a majority has followed `leader`, which is this member, since the read `number` began. Waits for
    /// nothing if openraft's confirmation rests on answers to requests that were sent since.
    async fn followed_since(&self, number: Number, leader: Leadership, until: R::Instant) -> Result<(), ReadRefusal> {
        let confirmations = &self.inner.confirmations;
        let followed = R::timeout_at(until, async {
            loop {
                let (seen, seen_leader) = (confirmations.changes.version(), self.inner.leader_changes.version());
                let (is_followed, is_leading) = self.inner.look(|metrics| {
                    let membership = metrics.membership_config.membership();
                    let is_followed = confirmations.is_followed(leader, number, membership.get_joint_config());
                    (
                        is_followed,
                        metrics.current_leader == Some(leader.1.0) && metrics.current_term == leader.0.0,
                    )
                });
                if is_followed {
                    return Ok(());
                }
                if !is_leading {
                    return Err(ReadRefusal::NotLeader { leader: self.leader() });
                }
                let answered = std::pin::pin!(confirmations.changes.changed(seen));
                let replaced = std::pin::pin!(self.inner.leader_changes.changed(seen_leader));
                select(answered, replaced).await;
            }
        });
        followed.await.unwrap_or(Err(ReadRefusal::NoQuorum))
    }

    /// Waits until the machine has applied `index`, and returns how far it is then.
    ///
    /// # Errors
    /// [`ReadRefusal::Deadline`] or [`ReadRefusal::Stopped`].
    pub async fn wait_applied(&self, index: LogIndex, deadline: Duration) -> Result<LogPosition, ReadRefusal> {
        let reached = R::timeout(deadline, async {
            loop {
                let seen = self.inner.changes.version();
                let (applied, _) = self.inner.machine.applied();
                if applied.index >= index {
                    return Ok(applied);
                }
                if self.inner.is_ended() {
                    return Err(ReadRefusal::Stopped);
                }
                self.inner.changes.changed(seen).await;
            }
        });
        reached.await.map_err(|_| ReadRefusal::Deadline)?
    }
}

fn hint<R: AsyncRuntime>(forward: &ForwardToLeader<TypeConfig<R>>) -> Option<RaftNodeId> {
    forward.leader_id.map(RaftNodeId)
}
