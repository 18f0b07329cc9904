//! Operators, gateways and other readers, over `muster-op/1`.
//!
//! # Rules
//! * A write carries its author's own signature: the connection's role adds nothing to it.
//! * A read needs the role `op.read`.
//! * What changes this process and is in no log needs the role of its verb: `op.admin` for a change of
//!   leader. It is logged with who asked.
//! * What only validators can answer is refused by name, and so is what rests on a global state that they refuted.

use std::sync::Arc;

use bytes::Bytes;
use cluster_core::queue::ClusterQueue;
use common::{
    bug::{self, Bug},
    codec::{BoundedVec, Label, decode},
    genesis::RoleSet,
    ids::TaskId,
    task::TaskState,
    wire::{
        frame::{Refusal, RefusalCode},
        op::{Consistency, OpAnswer, OpRequest, ReadContext, TaskView, Telemetry},
    },
};

use super::read::NoQuorum;
use crate::{
    buffer::Buffered,
    machine::State,
    ports::Peer,
    shell::{Shell, body},
};

/// Tasks in one answer.
const TASKS_MAX: usize = 256;

impl From<NoQuorum> for OpAnswer {
    fn from(error: NoQuorum) -> Self {
        Self::NoQuorum {
            leader: error.leader,
            retry_after_ms: error.retry_after_ms,
        }
    }
}

impl Shell {
    /// Answers one request of an authenticated peer.
    pub(crate) async fn operate(self: Arc<Self>, peer: Peer, request: Bytes) -> Result<Bytes, Refusal> {
        let request: OpRequest = decode(&request).map_err(|error| {
            tracing::warn!(peer = %peer.device, %error, "malformed request of an operator");
            Refusal::new(RefusalCode::Invalid, "malformed request")
        })?;
        let is_write = matches!(request, OpRequest::Enter(_) | OpRequest::EnterOrBuffer(_));
        let may_read = self
            .registry
            .by_idx(peer.idx)
            .is_some_and(|member| member.may(RoleSet::OP_READ));
        if !is_write && !may_read {
            return Err(Refusal::new(RefusalCode::Denied, "reading needs the role op.read"));
        }
        if let OpRequest::TransferLeader { to } = request {
            let member = self.registry.by_idx(peer.idx);
            let Some(admin) = member.filter(|member| member.may(RoleSet::OP_ADMIN)) else {
                tracing::warn!(event = "denied", peer = %peer.device, "a change of leader needs the role op.admin");
                return Err(Refusal::new(RefusalCode::Denied, "it needs the role op.admin"));
            };
            tracing::info!(event = "transfer_leader", by = %admin.label, ?to, "asked for another leader");
            return Ok(body(&self.transfer_leader(to).await?));
        }
        Ok(body(&self.answer(request).await))
    }

    /// Answers one request, whoever asks.
    pub async fn answer(self: &Arc<Self>, request: OpRequest) -> OpAnswer {
        match request {
            OpRequest::Enter(entry) => {
                let id = entry.id(&self.chain);
                let outcome = self.enter(entry).await;
                let mode = self.look_at_mode().0.mode;
                OpAnswer::Write { id, outcome, mode }
            }
            OpRequest::EnterOrBuffer(entry) => {
                let id = entry.id(&self.chain);
                let ended = self.enter_or_buffer(id, entry).await;
                let mode = self.look_at_mode().0.mode;
                match ended {
                    Buffered::Ended(outcome) => OpAnswer::Write { id, outcome, mode },
                    Buffered::Kept(state) => OpAnswer::Buffered { id, state, mode },
                }
            }
            OpRequest::Buffered { id } => {
                let mode = self.look_at_mode().0.mode;
                match self.buffer.with(|buffer| buffer.state(&id).cloned()) {
                    Some(state) => OpAnswer::Buffered { id, state, mode },
                    None => OpAnswer::NotFound,
                }
            }
            OpRequest::Task {
                task,
                consistency,
                staleness_ms_max,
            } => {
                // What only waits here is no part of the queue: shown as what was applied, never as more.
                let kept = match consistency {
                    Consistency::Local => self.buffer.with(|buffer| buffer.view(&task)),
                    Consistency::Linearizable | Consistency::Final => None,
                };
                let look = move |state: &State, context| {
                    let global = || state.queue.global_task_view(&task);
                    let found = match consistency {
                        Consistency::Final => global(),
                        _ => state.queue.task_view(&task).or_else(global).or(kept),
                    };
                    match (found, no_longer_kept(&state.queue, &task)) {
                        (None, Some(left)) => left,
                        (task, _) => OpAnswer::Task { task, context },
                    }
                };
                self.read(consistency, staleness_ms_max, look).await
            }
            OpRequest::Tasks {
                states,
                after,
                limit,
                consistency,
                staleness_ms_max,
            } => {
                let limit = usize::from(limit).clamp(1, TASKS_MAX);
                let kept = match consistency {
                    Consistency::Local => self.kept_tasks(&states, after),
                    Consistency::Linearizable | Consistency::Final => Vec::new(),
                };
                let look = move |state: &State, context| {
                    let (tasks, more) = tasks_of(state, &states, after, limit, consistency);
                    let (tasks, more) = with_kept(state, tasks, more, kept, limit);
                    let tasks = BoundedVec::try_from(tasks).expect("the limit is the bound");
                    OpAnswer::Tasks { tasks, more, context }
                };
                self.read(consistency, staleness_ms_max, look).await
            }
            OpRequest::History { task } => {
                let look = move |state: &State, context| {
                    let mut events = state.queue.history(&task);
                    if events.is_empty() {
                        return no_longer_kept(&state.queue, &task).unwrap_or(OpAnswer::NotFound);
                    }
                    events.truncate(1_024);
                    let events = BoundedVec::try_from(events).expect("it was cut at the bound");
                    OpAnswer::History { events, context }
                };
                self.read(Consistency::Local, None, look).await
            }
            OpRequest::HighestNumber {
                author,
                key_version,
                cluster,
            } => {
                if cluster != self.me.cluster {
                    return OpAnswer::NotFound;
                }
                match self.linearize().await {
                    Ok(()) => {
                        let highest = self
                            .machine
                            .with(|state| state.queue.highest_number(&author, key_version));
                        OpAnswer::HighestNumber(highest)
                    }
                    Err(error) => error.into(),
                }
            }
            OpRequest::Status => OpAnswer::Agent(self.status()),
            // Not without the role of who asks.
            OpRequest::TransferLeader { .. } => {
                OpAnswer::Unsupported(Label::new("only over the network").expect("a short text"))
            }
            OpRequest::Telemetry => OpAnswer::Telemetry(Telemetry::new(self.ports.transport.sent(), Vec::new())),
            OpRequest::Prove { .. } | OpRequest::Blocks { .. } => {
                OpAnswer::Unsupported(Label::new("ask a validator").expect("a short text"))
            }
        }
    }

    /// Buffered submissions after `after`, in order of their ids.
    fn kept_tasks(&self, states: &[TaskState], after: Option<TaskId>) -> Vec<TaskView> {
        let is_wanted = |view: &TaskView| Some(view.id) > after && (states.is_empty() || states.contains(&view.state));
        self.buffer.with(|buffer| buffer.views().filter(is_wanted).collect())
    }

    async fn read(
        self: &Arc<Self>,
        consistency: Consistency,
        staleness_ms_max: Option<u64>,
        look: impl FnOnce(&State, ReadContext) -> OpAnswer,
    ) -> OpAnswer {
        if consistency == Consistency::Linearizable
            && let Err(error) = self.linearize().await
        {
            return error.into();
        }
        let status = self.raft.status();
        self.machine.with(|state| {
            let context = self.context(state, &status, consistency);
            if consistency == Consistency::Final && state.queue.is_global_refuted() {
                return refuted();
            }
            let is_too_stale = staleness_ms_max.is_some_and(|max| context.staleness_ms.is_none_or(|age| age > max));
            if is_too_stale && !bug::active(Bug::AllowedAgeIgnored) {
                return OpAnswer::TooStale {
                    staleness_ms: context.staleness_ms,
                    mode: context.mode,
                };
            }
            look(state, context)
        })
    }
}

/// The answer to who asks for what is final where the global state is none that validators have.
fn refuted() -> OpAnswer {
    OpAnswer::Unsupported(Label::new("its global state is refuted: ask another agent").expect("a short text"))
}

/// The answer about a task that ended and left.
fn no_longer_kept(queue: &ClusterQueue, task: &TaskId) -> Option<OpAnswer> {
    let global = queue.global();
    global.retired(task).map(|line| match queue.is_global_refuted() {
        true => refuted(),
        false => OpAnswer::NoLongerKept {
            state: line.state,
            ended: line.ended,
            height: global.height(),
        },
    })
}

/// A page of tasks together with those that wait in the buffer and that the queue does not have.
fn with_kept(
    state: &State,
    mut tasks: Vec<TaskView>,
    more: bool,
    kept: Vec<TaskView>,
    limit: usize,
) -> (Vec<TaskView>, bool) {
    let last = tasks.last().map(|task| task.id).filter(|_| more);
    let is_new = |view: &TaskView| {
        let is_on_page = last.is_none_or(|last| view.id <= last);
        let global = state.queue.global();
        is_on_page && state.queue.task_row(&view.id).is_none() && global.task(&view.id).is_none()
    };
    tasks.extend(kept.into_iter().filter(is_new));
    tasks.sort_by_key(|task| task.id);
    let is_cut = tasks.len() > limit;
    tasks.truncate(limit);
    (tasks, more || is_cut)
}

/// Tasks after `after` in order of their ids: this cluster's own rows first hand, all others from the
/// verified global view.
pub(super) fn tasks_of(
    state: &State,
    states: &[TaskState],
    after: Option<TaskId>,
    limit: usize,
    consistency: Consistency,
) -> (Vec<TaskView>, bool) {
    let (mut tasks, mut more) = match consistency {
        Consistency::Final => (Vec::new(), false),
        Consistency::Linearizable | Consistency::Local => state.queue.task_views(states, after.as_ref(), limit),
    };
    let global = state.queue.global();
    let is_own = |id: &TaskId| consistency != Consistency::Final && state.queue.task_row(id).is_some();
    let (mut found, mut from) = (0, after);
    loop {
        let mut page = 0;
        for row in global.tasks(from, TASKS_MAX) {
            (page, from) = (page + 1, Some(row.id));
            let is_wanted = states.is_empty() || states.contains(&row.state());
            if is_wanted && !is_own(&row.id) {
                tasks.push(state.queue.global_view_of(row));
                found += 1;
            }
            // Whatever follows has a higher id than one that does not go out already.
            if found > limit {
                break;
            }
        }
        if page < TASKS_MAX || found > limit {
            break;
        }
    }
    tasks.sort_by_key(|task| task.id);
    more |= tasks.len() > limit;
    tasks.truncate(limit);
    (tasks, more)
}
