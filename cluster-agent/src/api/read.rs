//! Reads: each says how it was answered and how old it may be, and none degrades silently.
//!
//! # Rules
//! * Linearizable: a position is asked of the leader, which confirms itself with a majority, and then
//!   waited for here. Without a quorum the read fails.
//! * Local: what was applied here, with the age that the evidence supports, or "unknown".
//! * Final: what finalized blocks say.
//! * Upon a member that is cut off, or a leader that says it has no quorum: refused without waiting.
//! * Upon an age above what the caller allows: `TooStale`, with the age.

use std::{sync::Arc, time::Duration};

use cluster_core::queue::Conflict;
use common::{
    bug::{self, Bug},
    codec::{BoundedVec, decode},
    ids::{LogPosition, RaftNodeId},
    wire::{
        cluster::{Confirmation, Linearize, Linearized},
        frame::FrameKind,
        op::{AgentStatus, Alarm, Consistency, ReadContext},
    },
};

use crate::{
    machine::State,
    raft::{RaftStatus, ReadRefusal},
    shell::{Shell, body, lock},
};

/// A linearizable read is not possible now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no quorum; leader as far as known: {leader:?}")]
pub struct NoQuorum {
    /// Last known leader.
    pub leader: Option<RaftNodeId>,
    /// Worth trying again after this time.
    pub retry_after_ms: u64,
}

/// Why there is no linearizable position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPosition {
    /// The leader itself says that it has lost its quorum.
    Denied,
    /// No leader is known, or it did not answer in time.
    NoAnswer,
}

/// What a member with a conflict warns of.
fn alarm_of(conflict: &Conflict) -> Alarm {
    match conflict {
        Conflict::Batch(conflict) => Alarm::OtherBatch { seq: conflict.seq },
        Conflict::State { height, .. } => Alarm::OtherState { height: *height },
    }
}

impl Shell {
    fn no_position(&self) -> NoQuorum {
        NoQuorum {
            leader: self.raft.leader(),
            retry_after_ms: self.raft_config.retry_after_ms(),
        }
    }

    /// A position that includes every write acknowledged before this call, not yet waited for.
    pub(crate) async fn linearizable_position(
        self: &Arc<Self>,
        confirmation: Confirmation,
        left: Duration,
    ) -> Result<LogPosition, NoPosition> {
        let leader = self.raft.leader().ok_or(NoPosition::NoAnswer)?;
        if leader == self.me.raft {
            return match self.answer_linearize(confirmation, left).await {
                Linearized::At { term, index } => Ok(LogPosition { term, index }),
                Linearized::NoQuorum => Err(NoPosition::Denied),
                Linearized::NotLeader { .. } => Err(NoPosition::NoAnswer),
            };
        }
        let device = self.device_of(leader).ok_or(NoPosition::NoAnswer)?;
        let question = Linearize {
            cluster: self.me.cluster,
            founding: self.me.founding,
            confirmation,
        };
        let call = self
            .ports
            .transport
            .call(device, FrameKind::Linearize, body(&question), left);
        let answer = self.unless_led_by_another(leader, call).await;
        match answer.and_then(Result::ok).and_then(|answer| decode(&answer).ok()) {
            Some(Linearized::At { term, index }) => Ok(LogPosition { term, index }),
            Some(Linearized::NoQuorum) => Err(NoPosition::Denied),
            Some(Linearized::NotLeader { .. }) | None => Err(NoPosition::NoAnswer),
        }
    }

    /// Answers a member that asks this one as leader, within `left`.
    ///
    /// "No quorum" is said only by a leader that had one and was left without an acknowledgement for
    /// [`lost_after_ms`](crate::contact::lost_after_ms): one that was elected a moment ago, or waits for a slow answer, knows nothing yet.
    pub(crate) async fn answer_linearize(self: &Arc<Self>, confirmation: Confirmation, left: Duration) -> Linearized {
        if self.is_leader() && self.is_cut_off().await {
            return Linearized::NoQuorum;
        }
        let confirmed = match confirmation {
            Confirmation::AtOnce => self.confirmed_position(left).await,
            Confirmation::InPassing => self.raft.linearizable_position(confirmation, left).await,
        };
        match confirmed {
            Ok(position) => Linearized::At {
                term: position.term,
                index: position.index,
            },
            Err(ReadRefusal::NotLeader { leader }) => Linearized::NotLeader { leader },
            Err(ReadRefusal::NoQuorum | ReadRefusal::Deadline | ReadRefusal::Stopped) => {
                if self.is_leader() && self.is_cut_off().await {
                    return Linearized::NoQuorum;
                }
                Linearized::NotLeader { leader: None }
            }
        }
    }

    /// Time a linearizable read may take.
    pub(crate) fn read_deadline(&self) -> Duration {
        Duration::from_millis(2 * self.raft_config.election_timeout_ms_max)
    }

    /// Waits until everything acknowledged before this call is applied here. Tries again within the
    /// deadline while leaders change.
    ///
    /// # Errors
    /// [`NoQuorum`].
    pub async fn linearize(self: &Arc<Self>) -> Result<(), NoQuorum> {
        let until = tokio::time::Instant::now() + self.read_deadline();
        loop {
            if self.is_cut_off().await && !bug::active(Bug::ReadWithoutQuorum) {
                return Err(self.no_position());
            }
            let t0_us = self.now_us();
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            let asked = self.linearizable_position(Confirmation::AtOnce, left).await;
            if let Ok(position) = asked {
                self.machine
                    .with(|state| state.freshness.answered(t0_us, position.index));
                let left = until.saturating_duration_since(tokio::time::Instant::now());
                if bug::active(Bug::ReadNotAwaited) || self.raft.wait_applied(position.index, left).await.is_ok() {
                    return Ok(());
                }
            }
            let pause = self.jittered(Duration::from_millis(self.raft_config.heartbeat_ms / 2));
            let is_over = tokio::time::Instant::now() + pause >= until || self.is_ending();
            if is_over || asked == Err(NoPosition::Denied) {
                return Err(self.no_position());
            }
            self.pause(pause).await;
        }
    }

    /// What stands beside a value that was read from `state` now.
    pub(crate) fn context(&self, state: &State, status: &RaftStatus, consistency: Consistency) -> ReadContext {
        let now_us = self.now_us();
        let is_trusted = bug::active(Bug::LeaderAlwaysFresh) && status.leader == Some(self.me.raft);
        let in_ms = |age_us: Option<u64>| age_us.map(|age_us| age_us.div_ceil(1_000));
        let global_age_ms = in_ms(state.freshness.global_age_us(now_us));
        ReadContext {
            consistency,
            applied: state.queue.applied().0.index,
            term: status.term,
            leader: status.leader,
            mode: self.mode_of(state, status).mode,
            staleness_ms: match consistency {
                Consistency::Final => global_age_ms,
                _ if is_trusted => Some(0),
                Consistency::Linearizable | Consistency::Local => in_ms(state.freshness.staleness_us(now_us)),
            },
            global_height: state.queue.global_height(),
            global_age_ms,
        }
    }

    /// State of this agent.
    #[must_use]
    pub fn status(&self) -> AgentStatus {
        let raft = self.raft.status();
        let mut alarms = lock(&self.alarms).clone();
        let (buffer_entries, buffer_bytes) = self.buffer.with(crate::buffer::Buffer::waiting);
        self.machine.with(|state| {
            let batcher = state.queue.batcher();
            alarms.extend(state.queue.conflict().map(alarm_of));
            let mut voters = raft.voters.clone();
            voters.truncate(64);
            AgentStatus {
                device: self.me.device,
                label: self.me.label.clone(),
                cluster: self.me.cluster,
                founding: self.me.founding,
                raft: self.me.raft,
                is_leader: raft.leader == Some(self.me.raft),
                context: self.context(state, &raft, Consistency::Local),
                mode_age_ms: self.now_us().saturating_sub(self.mode.get().since_us) / 1_000,
                last_index: raft.last_index,
                voters: BoundedVec::try_from(voters).expect("it was cut at the bound"),
                outbox_batches: u32::try_from(batcher.outbox().len()).unwrap_or(u32::MAX),
                outbox_bytes: batcher.outbox_bytes(),
                buffer_entries: u32::try_from(buffer_entries).unwrap_or(u32::MAX),
                buffer_bytes,
                final_seq: batcher.last_final().seq,
                queue_digest: state.queue.digest(),
                global_digest: state.queue.global().state_root(),
                tasks: state.queue.counts(),
                alarms: BoundedVec::try_from(alarms).expect("there are four"),
                uptime_us: self.ports.clock.now().us_since(self.started),
            }
        })
    }
}
