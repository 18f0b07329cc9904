//! The drone's own software, through the local socket: it says what it does, and the agent signs.
//!
//! # Rules
//! * Whoever may open the socket acts as the drone. The agent's device key signs every entry.
//! * Upon `complete`, `fail` or `release`: the lease is ended in memory before the entry is signed, and
//!   never counted on again. Who sends one of the three says with it that the vehicle has stopped.
//! * An end that does not get through is brought in again by the agent until the queue shows it.
//! * A report names the claim it speaks for, or means the drone's newest claim in the replicated queue.
//!   After a restart of the agent the drone names it.
//! * `may_run_until_us` is read from the lease after the answer was built, and never lies beyond it.

mod errors;
mod rows;

use std::{sync::Arc, time::Duration};

use common::{
    bug::{self, Bug},
    entry::{Action, Fence, Payload, SignedEntry},
    ids::{Assignment, EntryId, LogIndex, TaskId},
    task::Scope,
    verdict::{Answer as Decision, Reason, Verdict},
    wire::{
        cluster::WriteOutcome,
        op::{Consistency, WriteRefusal},
    },
};
use futures::{
    FutureExt,
    future::{Either, select},
};
use transport::local::{Answer, ErrorCode, FenceJson, LocalError, Reply, Request, server::LocalHandler};

use self::{
    errors::{ending, error, refused, rejected},
    rows::{tasks_in_scope, work_of},
};
use super::op::tasks_of;
use crate::{
    keeper::{Counted, Wish},
    ports::BoxFuture,
    shell::Shell,
    unreleased::End,
};

/// A `watch` is answered after this time at the latest.
const WATCH_WAIT: Duration = Duration::from_secs(20);

/// After a write, its effect is waited for here this long, so that the drone reads what it wrote.
const READ_OWN_WRITE_WAIT: Duration = Duration::from_secs(1);

/// Answers the local socket.
#[derive(Clone)]
pub struct LocalDoor(pub(crate) Arc<Shell>);

impl LocalHandler for LocalDoor {
    fn handle(&self, request: Request) -> BoxFuture<Answer> {
        let shell = self.0.clone();
        async move { shell.answer_local(request).await }.boxed()
    }
}

/// What a report needs to know of its task.
struct Reported {
    scope: Scope,
    fence: Fence,
    assignment: Assignment,
}

impl Shell {
    /// Answers one request of the drone's own software. Every answer says the mode and the age.
    pub async fn answer_local(self: &Arc<Self>, request: Request) -> Answer {
        let answer = self.answer_request(request).await;
        let mode = Some(self.look_at_mode().0.mode.word().to_owned());
        match answer {
            // What was read of the state has the age that it had then.
            Ok(reply) if reply.tasks.is_some() || reply.status.is_some() => Ok(Reply { mode, ..reply }),
            Ok(reply) => {
                let now_us = self.now_us();
                let staleness_us = self.machine.with(|state| state.freshness.staleness_us(now_us));
                let staleness_ms = staleness_us.map(|age_us| age_us.div_ceil(1_000));
                Ok(Reply {
                    mode,
                    staleness_ms,
                    ..reply
                })
            }
            Err(error) => Err(LocalError { mode, ..error }),
        }
    }

    async fn answer_request(self: &Arc<Self>, request: Request) -> Answer {
        match request {
            Request::Submit { spec, scope } => {
                let task = spec
                    .resolve(&*self.genesis)
                    .map_err(|problem| error(ErrorCode::Invalid, problem))?;
                let entry = self.sign_submit(scope, &task).await.ok_or_else(ending)?;
                let id = TaskId::from(entry.id(&self.chain));
                self.write(entry, Some(id)).await.map(|(reply, _)| reply)
            }
            Request::Claim { task } => self.claim(task).await,
            Request::Renew => {
                let entry = self.sign_renew().await.ok_or_else(ending)?;
                self.write(entry, None).await.map(|(reply, _)| reply)
            }
            Request::Progress { task, fence, progress } => {
                let reported = self.reported(&task, fence)?;
                let action = Action::Progress {
                    task,
                    fence: reported.fence,
                    progress,
                };
                self.report(task, reported.scope, Wish::Plain(action), "").await
            }
            Request::Complete { task, fence, reason } => {
                let reported = self.end_lease(&task, fence)?;
                let action = Action::Complete {
                    task,
                    fence: reported.fence,
                };
                self.report_end(task, reported, Wish::Plain(action), &reason).await
            }
            Request::Fail {
                task,
                fence,
                reason,
                retriable,
            } => {
                let reported = self.end_lease(&task, fence)?;
                let make = |counter, counted: Counted| Action::Fail {
                    task: counted.task,
                    fence: counted.fence,
                    counter,
                    retriable: counted.is_retriable,
                };
                let wish = Wish::Counted(make, reported.counted(task, retriable));
                self.report_end(task, reported, wish, &reason).await
            }
            Request::Release { task, fence } => {
                let reported = self.end_lease(&task, fence)?;
                let make = |counter, counted: Counted| Action::Release {
                    task: counted.task,
                    fence: counted.fence,
                    counter,
                };
                let wish = Wish::Counted(make, reported.counted(task, false));
                self.report_end(task, reported, wish, "").await
            }
            Request::Cancel { task, reason } => {
                let scope = self.scope_of(&task)?;
                self.report(task, scope, Wish::Plain(Action::Cancel { task }), &reason)
                    .await
            }
            Request::Task { task } => self.machine.with(|state| {
                let view = state
                    .queue
                    .task_view(&task)
                    .or_else(|| state.queue.global_task_view(&task));
                let view = view.ok_or_else(|| error(ErrorCode::NotFound, format!("no task {} here", task.to_hex())))?;
                Ok(self.rows(state, vec![view], false))
            }),
            Request::Tasks {
                scope,
                states,
                after,
                limit,
            } => self.machine.with(|state| {
                let limit = usize::from(limit);
                let (mut tasks, more) = match scope {
                    None => tasks_of(state, &states, after, limit, Consistency::Local),
                    Some(_) => tasks_in_scope(state, &states, after, limit, scope),
                };
                tasks.truncate(limit);
                Ok(self.rows(state, tasks, more))
            }),
            Request::Work { limit } => self.machine.with(|state| {
                // A start alone changes the mode up to three times.
                let is_hidden = bug::active(Bug::WorkHidden) && self.mode.get().changes > 3;
                let limit = if is_hidden { 0 } else { usize::from(limit) };
                let (tasks, more) = work_of(&state.queue, &self.me.device, limit);
                Ok(self.rows(state, tasks, more))
            }),
            Request::Status => Ok(self.local_status()),
            Request::Watch { since } => {
                let _ = self.within(WATCH_WAIT, self.position_other_than(since)).await;
                Ok(self.local_status())
            }
        }
    }

    /// Grows with every applied entry and every change of mode.
    fn position_at(&self, applied: LogIndex) -> u64 {
        applied.0.saturating_add(self.mode.get().changes)
    }

    async fn position_other_than(&self, since: u64) {
        let applied = self.machine.pulse();
        loop {
            let changes = self.mode.get().changes;
            let applies = applied.wait_until(|pulse| pulse.applied.index.0.saturating_add(changes) != since);
            let turns = self.mode.wait_until(|now| now.changes != changes);
            if let Either::Left(_) = select(Box::pin(applies), Box::pin(turns)).await {
                return;
            }
        }
    }

    fn scope_of(&self, task: &TaskId) -> Result<Scope, LocalError> {
        let scope = self.machine.with(|state| {
            let own = state.queue.task_row(task).map(|row| row.scope);
            own.or_else(|| state.queue.global().task(task).map(|row| row.scope()))
        });
        scope.ok_or_else(|| error(ErrorCode::NotFound, format!("no task {} here", task.to_hex())))
    }

    async fn claim(self: &Arc<Self>, task: TaskId) -> Answer {
        let find = || {
            self.machine.with(|state| {
                let row = state.queue.task_row(&task)?;
                Some((row.scope, row.assignment))
            })
        };
        let mut row = find();
        if row.is_none() {
            // Acknowledged by another member a moment ago, perhaps, and not applied here yet.
            let asked = self.linearize().await;
            row = find();
            if let (None, Err(none)) = (row, asked) {
                return Err(LocalError {
                    retry_after_ms: Some(none.retry_after_ms),
                    ..error(
                        ErrorCode::NoQuorum,
                        "the task is not known here, and the cluster has no majority",
                    )
                });
            }
        }
        let (scope, assignment) = row.ok_or_else(|| {
            error(
                ErrorCode::NotFound,
                format!("no task {} in this cluster", task.to_hex()),
            )
        })?;
        let make = |counter, counted: Counted| Action::Claim {
            task: counted.task,
            assignment: counted.assignment,
            counter,
        };
        let counted = Counted {
            task,
            assignment,
            fence: Fence::default(),
            is_retriable: false,
        };
        let entry = self
            .sign(scope, Wish::Counted(make, counted), Payload::new())
            .await
            .ok_or_else(ending)?;
        let (reply, decision) = self.write(entry, Some(task)).await?;
        let fence = Fence {
            assignment,
            founding: self.me.founding,
            index: decision.index,
        };
        Ok(Reply {
            fence: Some(FenceJson::from(fence)),
            ..reply
        })
    }

    fn reported(&self, task: &TaskId, fence: Option<Fence>) -> Result<Reported, LocalError> {
        let scope = self.scope_of(task)?;
        let newest = self.machine.with(|state| {
            let row = state.queue.task_row(task)?;
            let holder = row.life.holder.filter(|holder| holder.device == self.me.device)?;
            Some(holder.fence)
        });
        let fence = fence.or(newest);
        let fence = fence.ok_or_else(|| error(ErrorCode::Rejected, "this drone has no claim on the task"))?;
        Ok(Reported {
            scope,
            fence,
            assignment: fence.assignment,
        })
    }

    fn end_lease(&self, task: &TaskId, fence: Option<Fence>) -> Result<Reported, LocalError> {
        let reported = self.reported(task, fence)?;
        let now_us = self.now_us();
        // Who sends a result says that the vehicle has stopped.
        self.machine
            .with(|state| state.leases.end(task, reported.fence, true, now_us))
            .map_err(|running| error(ErrorCode::Rejected, running))?;
        Ok(reported)
    }

    async fn report(self: &Arc<Self>, task: TaskId, scope: Scope, wish: Wish, note: &str) -> Answer {
        let entry = self.sign(scope, wish, note_of(note)?).await.ok_or_else(ending)?;
        self.write(entry, Some(task)).await.map(|(reply, _)| reply)
    }

    /// The same about a claim that was ended in memory: if it does not get through, the agent goes on
    /// trying.
    async fn report_end(self: &Arc<Self>, task: TaskId, reported: Reported, wish: Wish, note: &str) -> Answer {
        let end = End {
            fence: reported.fence,
            scope: reported.scope,
            wish,
            note: note_of(note)?,
        };
        let (entry, outcome) = self.enter_end(task, end).await.ok_or_else(ending)?;
        let id = entry.id(&self.chain);
        self.written(id, Some(task), outcome).await.map(|(reply, _)| reply)
    }

    async fn write(
        self: &Arc<Self>,
        entry: SignedEntry,
        task: Option<TaskId>,
    ) -> Result<(Reply, Decision), LocalError> {
        let id = entry.id(&self.chain);
        let outcome = self.enter(entry).await;
        self.written(id, task, outcome).await
    }

    /// The answer to a write that ended with `outcome`.
    async fn written(
        self: &Arc<Self>,
        id: EntryId,
        task: Option<TaskId>,
        outcome: WriteOutcome,
    ) -> Result<(Reply, Decision), LocalError> {
        let with_id = |error: LocalError| LocalError {
            id: Some(id.to_hex()),
            ..error
        };
        let decision = match outcome {
            WriteOutcome::Committed(decision) => decision,
            WriteOutcome::Refused(WriteRefusal::Rejected {
                verdict: Verdict::Rejected(Reason::DuplicateOf(first)),
                ..
            }) => return Ok(duplicate(id, first)),
            WriteOutcome::Refused(refusal) => return Err(with_id(refused(refusal))),
            WriteOutcome::Unknown => {
                return Err(with_id(error(
                    ErrorCode::UnknownOutcome,
                    "no answer in time; it may stand in the log",
                )));
            }
        };
        let _ = self.raft.wait_applied(decision.index, READ_OWN_WRITE_WAIT).await;
        let word = match decision.verdict {
            Verdict::Granted => "granted",
            Verdict::Late => "late",
            Verdict::Rejected(Reason::DuplicateOf(first)) => return Ok(duplicate(id, first)),
            Verdict::Rejected(reason) => return Err(with_id(rejected(reason))),
        };
        let reply = Reply {
            task: task.map(TaskId::to_hex),
            ..Reply::written(id, decision.index, word)
        };
        Ok((reply, decision))
    }
}

impl Reported {
    fn counted(&self, task: TaskId, is_retriable: bool) -> Counted {
        Counted {
            task,
            assignment: self.assignment,
            fence: self.fence,
            is_retriable,
        }
    }
}

/// The same key with the same content was submitted before: that task is the answer, as it was then.
fn duplicate(entry: EntryId, first: TaskId) -> (Reply, Decision) {
    let reply = Reply {
        entry: Some(entry.to_hex()),
        verdict: Some("granted".to_owned()),
        task: Some(first.to_hex()),
        ..Reply::default()
    };
    let decision = Decision {
        index: LogIndex(0),
        verdict: Verdict::Granted,
    };
    (reply, decision)
}

fn note_of(text: &str) -> Result<Payload, LocalError> {
    Payload::try_from(text.as_bytes().to_vec()).map_err(|long| error(ErrorCode::Invalid, long))
}
