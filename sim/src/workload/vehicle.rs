//! A vehicle with its agent: claims what is free, and acts on it while it may.
//!
//! # Rules
//! * It acts from the moment at which its agent gives it a deadline until it has finished, or the deadline
//!   is over on its own clock and as much time again as it may take to stop. It always takes that time.
//! * It goes on when its agent is dead, paused or cut off: the deadline in its hands is all it knows.
//! * What it is told of a write counts as acknowledged, as an operator's does.
//! * When it has stopped it says so: completed, failed, or released, each until it was heard or given up.

use std::time::Duration;

use common::{
    entry::{Fence, Progress},
    ids::{ClusterId, EntryId, LogIndex, TaskId},
    task::{Scope, TaskState},
    verdict::Verdict,
};
use transport::{
    local::{Answer, Request, message::TaskRow},
    ports::Clock,
};

use super::{Desk, Load, Written};
use crate::{
    checkers::{Call, Observation, Told},
    ports::SimClock,
    random::Stream,
};

/// Longest wait for an answer of the agent.
const PATIENCE: Duration = Duration::from_secs(4);
/// So many of the most urgent tasks it chooses from.
const CHOICE: u16 = 6;
/// A task in this many fails, and one is given back though it is done.
const FAIL_ONE_IN: u64 = 12;
/// A claim that may not be acted on for so long is given back.
const GIVE_BACK_US: u64 = 8_000_000;
/// Reports are repeated this often.
const REPORTS_MAX: u32 = 4;

struct Job {
    task: TaskId,
    scope: Scope,
    fence: Fence,
    /// On the vehicle's clock.
    until_us: u64,
    /// True time at which the work is done.
    done_us: u64,
    /// True time at which it asked for the task, if its claim was the last that it heard of.
    claimed_us: Option<u64>,
}

/// One vehicle.
pub struct Vehicle {
    desk: Desk,
    cluster: ClusterId,
    name: String,
    clock: SimClock,
    stop_us: u64,
    random: Stream,
    job: Option<Job>,
    /// The task that was last granted to it, and when it asked for that.
    claimed: Option<(TaskId, u64)>,
    /// A claim that may not be acted on yet, and since when.
    waiting: Option<(Fence, u64)>,
}

/// The entry that an answer names, its place in the log, and what was decided there.
fn written(answer: &Answer) -> Option<(EntryId, LogIndex, Verdict)> {
    let reply = answer.as_ref().ok()?;
    let verdict = match reply.verdict.as_deref()? {
        "late" => Verdict::Late,
        _ => Verdict::Granted,
    };
    Some((
        EntryId::from_hex(reply.entry.as_ref()?)?,
        LogIndex(reply.index?),
        verdict,
    ))
}

/// What an answer says about a write; `None`: nothing for good.
fn told(answer: &Answer) -> Option<Told> {
    match answer {
        Ok(reply) if reply.verdict.as_deref() == Some("granted") => Some(Told::Granted),
        Ok(_) => Some(Told::Rejected),
        Err(error) if error.code == transport::local::ErrorCode::Rejected => Some(Told::Rejected),
        Err(_) => None,
    }
}

impl Vehicle {
    /// The vehicle of the agent `name`. `clock` is its own: it goes on when the agent's machine loses power.
    #[must_use]
    pub fn new(desk: Desk, cluster: ClusterId, name: String, clock: SimClock, random: Stream) -> Self {
        let stop_us = u64::from(desk.fleet.genesis.timing.lease.stop_ms) * 1_000;
        Self {
            desk,
            cluster,
            name,
            clock,
            stop_us,
            random,
            job: None,
            claimed: None,
            waiting: None,
        }
    }

    /// Flies for ever.
    pub async fn fly(mut self, load: Load) {
        loop {
            self.step(&load).await;
            let pause_us = self.random.between(load.look_us.0, load.look_us.1);
            let pause = Duration::from_micros(pause_us).min(self.left());
            tokio::time::sleep(pause.max(Duration::from_millis(1))).await;
        }
    }

    /// Time until the vehicle must look at its job again, whatever its agent says.
    fn left(&self) -> Duration {
        let Some(job) = &self.job else { return PATIENCE };
        let stopped_us = (job.until_us + self.stop_us).saturating_sub(self.clock.now().us);
        let done_us = job.done_us.saturating_sub(self.desk.witness.now_us());
        // Never late by the drift of the clock.
        Duration::from_micros((stopped_us - stopped_us / 1_000).min(done_us)).min(PATIENCE)
    }

    async fn step(&mut self, load: &Load) {
        let now_us = self.clock.now().us;
        match &self.job {
            Some(job) if self.desk.witness.now_us() >= job.done_us => self.end(true).await,
            Some(job) if now_us >= job.until_us + self.stop_us => self.end(false).await,
            Some(_) => self.look_at_job().await,
            None => self.look_for_work(load).await,
        }
    }

    fn acts(&self, task: TaskId, fence: Fence, is_begin: bool) {
        self.desk.witness.see(&Observation::Acts {
            drone: self.name.clone(),
            task,
            fence,
            is_begin,
        });
    }

    /// Asks the agent, at most until the job needs a look.
    async fn ask(&self, request: Request) -> Option<Answer> {
        let door = self.desk.doors.open(&self.name)?;
        let (desk, name, cluster) = (self.desk.clone(), self.name.clone(), self.cluster);
        let asked_us = desk.witness.now_us();
        let asked = door.ask(|agent| async move {
            let answer = agent.answer_local(request).await;
            if let Some((entry, index, verdict)) = written(&answer) {
                let written = Written {
                    cluster,
                    entry,
                    index,
                    verdict,
                    submitted: None,
                };
                desk.acknowledged(name, asked_us, written);
            }
            answer
        });
        tokio::time::timeout(self.left(), asked).await.ok().flatten()
    }

    /// Rows, with their deadlines on the vehicle's own clock: what was left when the agent answered, from when it was asked.
    async fn rows(&self, request: Request) -> Vec<TaskRow> {
        let asked_us = self.clock.now().us;
        let Some(reply) = self.ask(request).await.and_then(Result::ok) else {
            return Vec::new();
        };
        let mut rows = reply.tasks.unwrap_or_default();
        for row in &mut rows {
            let left_us = row.may_run_until_us.zip(reply.now_us);
            let left_us = left_us.and_then(|(until_us, now_us)| until_us.checked_sub(now_us));
            row.may_run_until_us = left_us.map(|left_us| asked_us + left_us);
        }
        rows
    }

    /// A later deadline, if there is one.
    async fn look_at_job(&mut self) {
        let Some(task) = self.job.as_ref().map(|job| job.task) else {
            return;
        };
        let rows = self.rows(Request::Task { task }).await;
        let later = rows
            .iter()
            .filter(|row| row.is_mine)
            .find_map(|row| row.may_run_until_us);
        if let (Some(job), Some(until_us)) = (&mut self.job, later) {
            job.until_us = job.until_us.max(until_us);
        }
    }

    async fn look_for_work(&mut self, load: &Load) {
        let limit = CHOICE + load.claims_max.saturating_sub(1);
        let rows = self.rows(Request::Work { limit }).await;
        let (mine, free): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.is_mine);
        let may_claim = self.desk.is_open() && mine.len() < usize::from(load.claims_max);
        let ready = mine.iter().find(|row| row.may_run_until_us.is_some());
        if let Some(mine) = ready.or_else(|| mine.first().filter(|_| !may_claim)) {
            return self.begin(mine, load.work_max).await;
        }
        let Some(last) = (free.len() as u64).checked_sub(1).filter(|_| may_claim) else {
            return;
        };
        let free = free[self.random.between(0, last) as usize];
        if let Some(task) = free.task_id() {
            let call = self.desk.called(task, free.scope, Call::Claim);
            let asked_us = self.desk.witness.now_us();
            // Another drone may be faster; then the next look shows it.
            if let Some(told) = self.ask(Request::Claim { task }).await.and_then(|answer| told(&answer)) {
                self.desk.answered(call, task, told);
                if told == Told::Granted {
                    self.claimed = Some((task, asked_us));
                }
            }
        }
    }

    /// Acts on a task that the agent says is this drone's, if it may.
    async fn begin(&mut self, row: &TaskRow, work_max: Duration) {
        let (Some(task), Some(fence)) = (row.task_id(), row.fence.map(Fence::from)) else {
            return;
        };
        let now_us = self.clock.now().us;
        let Some(until_us) = row.may_run_until_us.filter(|until_us| now_us < *until_us) else {
            // Not final yet, or held by a life of the agent that is gone: the vehicle stands, and gives it back.
            let true_us = self.desk.witness.now_us();
            let since_us = match self.waiting {
                Some((known, since_us)) if known == fence => since_us,
                _ => self.waiting.insert((fence, true_us)).1,
            };
            if true_us - since_us > GIVE_BACK_US {
                self.report(
                    Request::Release {
                        task,
                        fence: Some(fence),
                    },
                    task,
                    row.scope,
                )
                .await;
            }
            return;
        };
        let most_us = u64::try_from(work_max.as_micros()).unwrap_or(u64::MAX);
        let work_us = self.random.between(most_us / 8, most_us);
        self.job = Some(Job {
            task,
            scope: row.scope,
            fence,
            until_us,
            done_us: self.desk.witness.now_us() + work_us,
            claimed_us: self
                .claimed
                .filter(|(claimed, _)| *claimed == task)
                .map(|(_, at_us)| at_us),
        });
        self.acts(task, fence, true);
        if row.state == TaskState::Claimed {
            let request = Request::Progress {
                task,
                fence: Some(fence),
                progress: Progress::Started,
            };
            let _ = self.ask(request).await;
        }
    }

    /// Has stopped, with the work done or not.
    async fn end(&mut self, is_done: bool) {
        let Some(job) = self.job.take() else { return };
        let Job { task, scope, fence, .. } = job;
        self.acts(task, fence, false);
        let fence = Some(fence);
        let request = match self.random.between(1, FAIL_ONE_IN) {
            1 => Request::Fail {
                task,
                fence,
                reason: "broken".into(),
                retriable: true,
            },
            2 => Request::Release { task, fence },
            _ if !is_done => Request::Release { task, fence },
            _ => Request::Complete {
                task,
                fence,
                reason: String::new(),
            },
        };
        if self.report(request, task, scope).await
            && let Some(claimed_us) = job.claimed_us
        {
            self.desk.journal().has_worked(self.cluster, claimed_us);
        }
    }

    /// Until somebody hears it. Whether the task is completed by that.
    async fn report(&mut self, request: Request, task: TaskId, scope: Scope) -> bool {
        let is_complete = matches!(request, Request::Complete { .. });
        for _ in 0..REPORTS_MAX {
            let call = is_complete.then(|| self.desk.called(task, scope, Call::Complete));
            if let Some(told) = self.ask(request.clone()).await.and_then(|answer| told(&answer)) {
                if let Some(call) = call {
                    self.desk.answered(call, task, told);
                }
                let is_done = is_complete && told == Told::Granted;
                self.desk.journal().completed += u64::from(is_done);
                return is_done;
            }
            let pause_ms = self.random.between(200, 1_000);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
        false
    }
}
