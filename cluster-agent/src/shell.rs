//! What every room of a running agent shares, and how it ends.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use cluster_core::{admission::Admission, attestation::Collector};
use common::{
    codec::{Label, Wire, encode},
    crypto::DeviceKey,
    entry::LogEntry,
    genesis::Genesis,
    ids::{ChainId, ClusterId, DeviceId, Founding, NodeIdx, RaftNodeId},
    registry::Registry,
    validator_set::ValidatorSet,
    wire::op::Alarm,
};
use futures::{
    FutureExt,
    future::{Either, select},
};
use transport::{log_limit::LogLimits, watch::Watch};

use crate::{
    api::read_round::ReadRounds,
    buffer::BufferJournal,
    config::Limits,
    contact::Contact,
    counters::Counters,
    machine::Machine,
    members::Newcomers,
    mode::ModeNow,
    ports::{AgentPorts, BoxFuture, Instant},
    raft::{ProposeOutcome, RaftConfig},
    replica::Replica,
    signatures::Signatures,
    unreleased::Unreleased,
    uplink::submit::Validators,
};

/// Who this agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Me {
    /// The device.
    pub device: DeviceId,
    /// Its number.
    pub idx: NodeIdx,
    /// Its name for people.
    pub label: Label,
    /// Its data directory as a Raft member.
    pub raft: RaftNodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// The founding it takes part in.
    pub founding: Founding,
}

/// How an agent ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was told to.
    Stopped,
    /// It must not go on. The process exits with this code.
    Fatal {
        /// 70 for a bug, 74 for the disk, 78 where a restart cannot help.
        exit_code: u8,
        /// For the log.
        reason: String,
    },
}

/// A running agent's insides.
pub struct Shell {
    pub(crate) me: Me,
    pub(crate) chain: ChainId,
    pub(crate) genesis: Arc<Genesis>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) set: ValidatorSet,
    pub(crate) key: DeviceKey,
    pub(crate) limits: Limits,
    pub(crate) raft_config: RaftConfig,
    pub(crate) ports: AgentPorts,
    pub(crate) raft: Arc<dyn Replica>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) signatures: Signatures,
    /// Locked before the machine, never while that is held.
    pub(crate) admission: Mutex<Admission>,
    pub(crate) read_rounds: ReadRounds,
    pub(crate) collector: Mutex<Collector>,
    /// Rises when a batch may have become certified here.
    pub(crate) certified: Watch<u64>,
    /// When a majority was last heard of.
    pub(crate) contact: Contact,
    /// What this agent may do now, and since when.
    pub(crate) mode: Watch<ModeNow>,
    /// Rises with every answer to a question for a position.
    pub(crate) evidence: Watch<u64>,
    pub(crate) validators: Validators,
    /// Who asked to be a member.
    pub(crate) newcomers: Newcomers,
    pub(crate) counters: tokio::sync::Mutex<Counters>,
    /// Submissions that wait for a quorum.
    pub(crate) buffer: BufferJournal,
    pub(crate) unreleased: Mutex<Unreleased>,
    /// What is warned of now.
    pub(crate) alarms: Mutex<Vec<Alarm>>,
    /// About which member how many lines were written.
    pub(crate) complaints: LogLimits<NodeIdx>,
    pub(crate) ending: Watch<Option<Ending>>,
    pub(crate) started: Instant,
}

/// A lock that no panic makes unusable: what it guards is replaced in whole steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shell {
    /// The boot-time clock, microseconds.
    pub(crate) fn now_us(&self) -> u64 {
        self.ports.clock.now().us
    }

    /// Whether this member leads, as far as it knows.
    pub(crate) fn is_leader(&self) -> bool {
        self.raft.is_leader()
    }

    /// The device of a member.
    pub(crate) fn device_of(&self, raft: RaftNodeId) -> Option<DeviceId> {
        self.registry.by_idx(raft.idx()).map(|member| member.id)
    }

    /// The other members of the cluster, as Raft knows them.
    pub(crate) fn others(&self) -> Vec<RaftNodeId> {
        let status = self.raft.status();
        let all = status.voters.into_iter().chain(status.learners);
        all.filter(|id| *id != self.me.raft).collect()
    }

    /// Whether the agent was told to stop, or must.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.get().is_some()
    }

    /// Ends the process with a reason. The first one counts.
    pub(crate) fn fatal(&self, exit_code: u8, reason: String) {
        if self.ending.get().is_none() {
            tracing::error!(exit_code, reason, "this agent must not go on");
            self.ending.set(Some(Ending::Fatal { exit_code, reason }));
        }
    }

    /// Waits; returns early when the agent ends.
    pub(crate) async fn pause(&self, time: Duration) {
        let ending = self.ending.wait_until(Option::is_some);
        let _ = select(Box::pin(tokio::time::sleep(time)), Box::pin(ending)).await;
    }

    /// Waits for `event` at most `time`; `None` if it did not happen in time, or the agent ends.
    pub(crate) async fn within<T>(&self, time: Duration, event: impl Future<Output = T>) -> Option<T> {
        let ending = self.ending.wait_until(Option::is_some);
        let timed = tokio::time::timeout(time, event);
        match select(Box::pin(timed), Box::pin(ending)).await {
            Either::Left((outcome, _)) => outcome.ok(),
            Either::Right(_) => None,
        }
    }

    /// Waits for `answer` of the leader `asked`; gives up as soon as another leader is known.
    pub(crate) async fn unless_led_by_another<T>(
        &self,
        asked: RaftNodeId,
        answer: impl Future<Output = T>,
    ) -> Option<T> {
        let changes = self.raft.leader_changes();
        let another = async {
            loop {
                let seen = changes.version();
                if self.raft.leader().is_some_and(|leader| leader != asked) {
                    return;
                }
                changes.changed(seen).await;
            }
        };
        match select(Box::pin(answer), Box::pin(another)).await {
            Either::Left((answer, _)) => Some(answer),
            Either::Right(_) => None,
        }
    }

    /// Runs `task` beside, until it ends or the agent does.
    pub(crate) fn spawn(self: &Arc<Self>, name: &'static str, task: BoxFuture<()>) {
        let ending = self.ending.clone();
        let task = async move {
            let ending = ending.wait_until(Option::is_some);
            let _ = select(task, Box::pin(ending)).await;
        };
        self.ports.spawner.spawn(name, task.boxed());
    }

    /// Replicates an entry of the machinery, on the leader.
    pub(crate) async fn propose(&self, entry: &LogEntry, deadline: Duration) -> ProposeOutcome {
        self.raft.propose(Bytes::from(encode(entry)), deadline).await
    }

    /// Time from `base` on, up to half of it more: so that members do not act at one instant.
    pub(crate) fn jittered(&self, base: Duration) -> Duration {
        let base_us = u64::try_from(base.as_micros()).unwrap_or(u64::MAX).max(2);
        base + Duration::from_micros(self.ports.entropy.below(base_us / 2))
    }
}

/// Encodes an answer for the wire.
pub(crate) fn body<T: Wire>(value: &T) -> Bytes {
    encode(value).into()
}
