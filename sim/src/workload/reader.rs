//! A reader at one agent: local reads with their age all the time, linearizable reads now and then. And a reader at one
//! validator, which asks for final state and how old that is.

use std::{sync::Arc, time::Duration};

use cluster_agent::agent::AgentHandle;
use common::{
    codec::{decode, encode},
    ids::{ClusterId, DeviceId, TaskId},
    task::{Scope, TaskState},
    wire::{
        frame::FrameKind,
        op::{Consistency, OpAnswer, OpRequest},
    },
};
use transport::ports::Transport;

use super::Desk;
use crate::{
    checkers::{Call, Observation, Told},
    ports::SimTransport,
    random::Stream,
};

/// A look in this many is a linearizable read.
const LINEARIZABLE_ONE_IN: u64 = 6;

/// A local read by somebody who allows an age: up to four seconds, by the task.
async fn read_within(agent: &AgentHandle, name: String, cluster: ClusterId, task: TaskId) -> Option<Observation> {
    let age_ms_max = u64::from(task.0[0]) * 16;
    let request = OpRequest::Task {
        task,
        consistency: Consistency::Local,
        staleness_ms_max: Some(age_ms_max),
    };
    let (age_ms, is_answered) = match agent.answer(request).await {
        OpAnswer::Task { context, .. } => (context.staleness_ms, true),
        OpAnswer::TooStale { staleness_ms, .. } => (staleness_ms, false),
        _ => return None,
    };
    Some(Observation::ReadWithin {
        agent: name,
        cluster,
        age_ms_max,
        age_ms,
        is_answered,
    })
}

/// Reads from one agent.
pub struct Reader {
    desk: Desk,
    cluster: ClusterId,
    agent: String,
    random: Stream,
}

fn told(state: Option<TaskState>) -> Told {
    match state {
        None => Told::Absent,
        Some(TaskState::Completed) => Told::Completed,
        Some(TaskState::Canceled) => Told::Canceled,
        Some(state) if !state.is_open() => Told::Ended,
        Some(_) => Told::Open,
    }
}

impl Reader {
    /// A reader at `agent`.
    #[must_use]
    pub fn new(desk: Desk, cluster: ClusterId, agent: String, random: Stream) -> Self {
        Self {
            desk,
            cluster,
            agent,
            random,
        }
    }

    /// Reads for ever.
    pub async fn work(mut self, every: Duration) {
        loop {
            tokio::time::sleep(self.random.around(every)).await;
            if self.random.between(1, LINEARIZABLE_ONE_IN) == 1 {
                self.read_linearizably().await;
            } else {
                self.look().await;
            }
        }
    }

    /// What the agent says of itself, or with an answer to a local read.
    async fn look(&mut self) {
        let task = match self.random.between(0, 1) {
            0 => None,
            _ => self.draw_task().map(|(task, _)| task),
        };
        let Some(door) = self.desk.doors.open(&self.agent) else {
            return;
        };
        let (desk, agent_name, cluster) = (self.desk.clone(), self.agent.clone(), self.cluster);
        let look = door.ask(|agent| async move {
            let context = match task {
                None => agent.status().context,
                Some(task) => {
                    if let Some(seen) = read_within(&agent, agent_name.clone(), cluster, task).await {
                        desk.witness.see(&seen);
                    }
                    let request = OpRequest::Task {
                        task,
                        consistency: Consistency::Local,
                        staleness_ms_max: None,
                    };
                    let OpAnswer::Task { task: found, context } = agent.answer(request).await else {
                        return;
                    };
                    if found.is_some_and(|found| found.state == TaskState::Unknown) {
                        desk.journal().unknown.entry(task).or_insert(true);
                    }
                    context
                }
            };
            desk.witness.see(&Observation::Read {
                agent: agent_name,
                cluster,
                applied: context.applied,
                staleness_ms: context.staleness_ms,
                height: context.global_height,
                global_age_ms: context.global_age_ms,
            });
        });
        let _ = tokio::time::timeout(Duration::from_secs(5), look).await;
    }

    /// A drawn task of this cluster: one of the newest, or any.
    fn draw_task(&mut self) -> Option<(TaskId, Scope)> {
        let journal = self.desk.journal();
        let order = journal.order.get(&self.cluster)?;
        let among = if self.random.between(0, 2) == 0 { u64::MAX } else { 12 };
        let back = self.random.between(1, among.min(order.len() as u64).max(1)) as usize;
        let task = *order.get(order.len().checked_sub(back)?)?;
        Some((task, journal.acknowledged[&task].1))
    }

    async fn read_linearizably(&mut self) {
        let Some((task, scope)) = self.draw_task() else { return };
        let Some(door) = self.desk.doors.open(&self.agent) else {
            return;
        };
        let call = self.desk.called(task, scope, Call::Read);
        let (desk, agent_name, cluster) = (self.desk.clone(), self.agent.clone(), self.cluster);
        let asked_us = desk.witness.now_us();
        let read = door.ask(|agent| async move {
            let request = OpRequest::Task {
                task,
                consistency: Consistency::Linearizable,
                staleness_ms_max: None,
            };
            match agent.answer(request).await {
                // Nothing is kept of it: nothing can be said of it.
                OpAnswer::Task { task: None, .. } if desk.witness.has_left(&task) => {}
                OpAnswer::Task { task: found, context } => {
                    desk.witness.see(&Observation::LinearizableRead {
                        agent: agent_name,
                        cluster,
                        asked_us,
                        task,
                        is_found: found.is_some(),
                        applied: context.applied,
                    });
                    desk.answered(call, task, told(found.map(|task| task.state)));
                    desk.journal().linearizable_reads += 1;
                }
                OpAnswer::NoLongerKept { state, .. } => desk.answered(call, task, told(Some(state))),
                OpAnswer::NoQuorum { .. } => desk.journal().no_quorum += 1,
                _ => {}
            }
        });
        let _ = tokio::time::timeout(Duration::from_secs(5), read).await;
    }
}

/// Wait for an answer of a validator.
const FINAL_PATIENCE: Duration = Duration::from_secs(2);

/// So many of a cluster's newest tasks are looked at.
const RECENT: u64 = 48;

/// Reads from one validator.
pub struct FinalReader {
    desk: Desk,
    operator: Arc<SimTransport>,
    validator: DeviceId,
    name: String,
    random: Stream,
}

impl FinalReader {
    /// A reader at the validator `name`, over the links of an operator.
    #[must_use]
    pub fn new(desk: Desk, operator: Arc<SimTransport>, name: String, random: Stream) -> Self {
        Self {
            validator: desk.fleet.id(&name),
            desk,
            operator,
            name,
            random,
        }
    }

    /// Reads for ever.
    pub async fn work(mut self, every: Duration) {
        loop {
            tokio::time::sleep(self.random.around(every)).await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let Some((task, scope)) = self.draw_task() else { return };
        let request = OpRequest::Task {
            task,
            consistency: Consistency::Final,
            staleness_ms_max: None,
        };
        let asked_us = self.desk.witness.now_us();
        let asked = self.operator.call(
            self.validator,
            FrameKind::Operate,
            encode(&request).into(),
            FINAL_PATIENCE,
        );
        let found = match asked.await.ok().and_then(|bytes| decode(&bytes).ok()) {
            Some(OpAnswer::Task { task: found, context }) => {
                self.desk.witness.see(&Observation::FinalRead {
                    validator: self.name.clone(),
                    asked_us,
                    height: context.global_height,
                    age_ms: context.staleness_ms,
                });
                found.map(|found| (context.global_height, found.state))
            }
            Some(OpAnswer::NoLongerKept { state, height, .. }) => Some((height, state)),
            _ => None,
        };
        if let Some((height, state)) = found.filter(|_| scope == Scope::Fleet) {
            self.desk.witness.see(&Observation::FinalState {
                validator: self.name.clone(),
                height,
                task,
                state,
            });
        }
    }

    /// One of the newest tasks of some cluster, often the last, whose end is still to come.
    fn draw_task(&mut self) -> Option<(TaskId, Scope)> {
        let journal = self.desk.journal();
        let last = (journal.order.len() as u64).checked_sub(1)?;
        let order = journal.order.values().nth(self.random.between(0, last) as usize)?;
        let among = [1, RECENT][self.random.between(0, 1) as usize];
        let back = self.random.between(1, among.min(order.len() as u64).max(1)) as usize;
        let task = *order.get(order.len().checked_sub(back)?)?;
        Some((task, journal.acknowledged[&task].1))
    }
}
