//! An operator: submits tasks of both scopes, links some to earlier ones, cancels some.
//!
//! # Rules
//! * Each write goes to a drawn agent of its cluster, cut off or not. After anything but an answer for
//!   good the same signed bytes go to another one, until one says what became of them.
//! * Several writes are open at once.
//! * Some submissions have the task key of an earlier task: a duplicate while that one is remembered, a task of its own
//!   afterwards.
//! * Some writes are sent once more long after they ended, as by an operator who forgot: they hear what they heard.
//! * Now and then an intruder sends a submission in the operator's name, under a signature of something else.

use std::time::Duration;

use common::{
    entry::{Action, SignedEntry},
    ids::{ClusterId, TaskId},
    task::Scope,
    testing,
    verdict::{Answer, Verdict},
    wire::{cluster::WriteOutcome, op::WriteRefusal},
};

use super::{Desk, Written};
use crate::{
    checkers::{Call, Told},
    random::Stream,
    runtime::Process,
};

/// Writes of one operator without an answer, at most.
const OPEN_MAX: u64 = 24;
/// A write in this many cancels a task.
const CANCEL_ONE_IN: u64 = 16;
/// A submission in this many is linked to an earlier task.
const LINK_ONE_IN: u64 = 8;

/// A submission in this many has the task key of an earlier one.
const REUSE_ONE_IN: u64 = 12;
/// So many back at most; fleet-scope tasks share an eighth as many keys.
const REUSED_AMONG: u64 = 400;

/// A write in this many is sent again after it ended.
const REPEAT_ONE_IN: u64 = 6;
/// After so many writes an intruder tries.
const INTRUDE_EVERY: u64 = 20;

/// Writes through one cluster.
pub struct Operator {
    desk: Desk,
    cluster: ClusterId,
    agents: Vec<String>,
    random: Stream,
    number: u64,
}

/// A write on its way.
struct Write {
    desk: Desk,
    cluster: ClusterId,
    agents: Vec<String>,
    random: Stream,
    entry: SignedEntry,
    task: TaskId,
    call: Call,
    /// Whether a grant of the cluster makes a task of it: the key of a fleet-scope task is judged by the global queue.
    makes_task: bool,
}

impl Operator {
    /// An operator of `cluster`, whose agents are `agents`.
    #[must_use]
    pub fn new(desk: Desk, cluster: ClusterId, agents: Vec<String>, random: Stream) -> Self {
        Self {
            desk,
            cluster,
            agents,
            random,
            number: 0,
        }
    }

    /// Writes until the desk closes.
    pub async fn work(mut self, every: Duration) {
        let mut open = 0;
        let every_us = u64::try_from(every.as_micros()).unwrap_or(u64::MAX);
        let done = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        loop {
            let pause_us = self.random.between(every_us / 2, every_us * 3 / 2);
            tokio::time::sleep(Duration::from_micros(pause_us)).await;
            if !self.desk.is_open() {
                return;
            }
            if open - done.load(std::sync::atomic::Ordering::Relaxed) >= OPEN_MAX {
                continue;
            }
            if self.number % INTRUDE_EVERY == INTRUDE_EVERY - 1 {
                self.intrude();
            }
            let write = self.next_write();
            open += 1;
            self.desk.journal().open_writes += 1;
            let done = done.clone();
            drop(Process::current().spawn(async move {
                let desk = write.desk.clone();
                let ended = write.carry_out().await;
                desk.journal().open_writes -= 1;
                done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                ended.repeat().await;
            }));
        }
    }

    /// A submission that nobody signed. It uses up a number of the operator's only if somebody takes it.
    fn intrude(&mut self) {
        self.number += 1;
        let (genuine, _) = self.submit();
        self.number += 1;
        let (mut forged, _) = self.submit();
        forged.signature = genuine.signature;
        let pick = self.random.between(0, self.agents.len() as u64 - 1) as usize;
        if let Some(door) = self.desk.doors.open(&self.agents[pick]) {
            // Whether it was taken shows in what becomes final.
            drop(Process::current().spawn(async move {
                drop(door.ask(|agent| async move { agent.enter(forged).await }).await);
            }));
        }
    }

    fn next_write(&mut self) -> Write {
        self.number += 1;
        let canceled = match self.random.between(1, CANCEL_ONE_IN) {
            1 => self.cancel(),
            _ => None,
        };
        let call = if canceled.is_some() { Call::Cancel } else { Call::Submit };
        let (entry, makes_task) = canceled.map_or_else(|| self.submit(), |entry| (entry, false));
        let chain = &self.desk.fleet.chain;
        let task = entry
            .header
            .action
            .task()
            .unwrap_or_else(|| TaskId::from(entry.id(chain)));
        Write {
            desk: self.desk.clone(),
            cluster: self.cluster,
            agents: self.agents.clone(),
            random: Stream::new(self.random.next_u64()),
            entry,
            task,
            call,
            makes_task,
        }
    }

    /// A submission, and whether a grant of the cluster makes a task of it.
    fn submit(&mut self) -> (SignedEntry, bool) {
        let is_fleet = self.random.between(0, 1) == 1;
        let scope = if is_fleet { Scope::Fleet } else { Scope::Cluster };
        let is_reused = self.random.between(1, REUSE_ONE_IN) == 1;
        let key = match (is_reused, scope) {
            (false, _) => self.number.to_string(),
            (true, Scope::Cluster) => {
                let back = self.random.between(1, REUSED_AMONG);
                self.number.saturating_sub(back).to_string()
            }
            // Nobody is promised a task of these.
            (true, Scope::Fleet) => format!("again-{}", self.random.between(1, REUSED_AMONG / 8)),
        };
        let mut task = testing::task(&format!("c{}-{key}", self.cluster.0));
        task.places = vec![testing::place_in(self.cluster.0)]
            .try_into()
            .expect("one place fits");
        if self.random.between(1, LINK_ONE_IN) == 1
            && let Some(earlier) = self.earlier(scope)
        {
            task.after = vec![earlier].try_into().expect("one link fits");
        }
        let entry = self.desk.fleet.submit("op1", self.cluster, self.number, scope, &task);
        (entry, !(is_fleet && is_reused))
    }

    fn cancel(&mut self) -> Option<SignedEntry> {
        let is_fleet = self.random.between(0, 1) == 1;
        let scope = if is_fleet { Scope::Fleet } else { Scope::Cluster };
        let action = Action::Cancel {
            task: self.earlier(scope)?,
        };
        Some(self.desk.fleet.entry("op1", self.cluster, self.number, scope, action))
    }

    /// A drawn task of `scope` among the last ones acknowledged through this cluster.
    fn earlier(&mut self, scope: Scope) -> Option<TaskId> {
        let journal = self.desk.journal();
        let all = journal.order.get(&self.cluster)?;
        let recent = all
            .iter()
            .rev()
            .take(32)
            .filter(|task| journal.acknowledged[*task].1 == scope);
        let recent: Vec<TaskId> = recent.copied().collect();
        let last = (recent.len() as u64).checked_sub(1)?;
        Some(recent[self.random.between(0, last) as usize])
    }
}

/// How one attempt ended.
enum Attempt {
    Ended(Option<Answer>),
    Again,
}

impl Write {
    /// Sends the bytes until somebody says for good what became of them.
    async fn carry_out(mut self) -> Self {
        let scope = self.entry.header.scope;
        let call = self.desk.called(self.task, scope, self.call);
        loop {
            let pick = self.random.between(0, self.agents.len() as u64 - 1) as usize;
            if let Attempt::Ended(answer) = self.attempt(pick).await {
                let is_granted = answer.is_some_and(|answer| answer.verdict == Verdict::Granted);
                let told = if is_granted { Told::Granted } else { Told::Rejected };
                self.desk.answered(call, self.task, told);
                return self;
            }
            self.desk.journal().retries += 1;
            let pause_ms = self.random.between(50, 300);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
    }

    /// Sends the bytes of some writes once more: the answer must be the one that was given.
    async fn repeat(mut self) {
        if self.random.between(1, REPEAT_ONE_IN) != 1 {
            return;
        }
        let pause_ms = self.random.between(200, 6_000);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        if self.desk.is_open() {
            let pick = self.random.between(0, self.agents.len() as u64 - 1) as usize;
            self.attempt(pick).await;
        }
    }

    async fn attempt(&self, pick: usize) -> Attempt {
        let Some(door) = self.desk.doors.open(&self.agents[pick]) else {
            return Attempt::Again;
        };
        let (desk, entry, agent_name) = (self.desk.clone(), self.entry.clone(), self.agents[pick].clone());
        let (cluster, task, makes_task) = (self.cluster, self.task, self.makes_task);
        let asked_us = desk.witness.now_us();
        let asked = door.ask(|agent| async move {
            let outcome = agent.enter(entry.clone()).await;
            if let WriteOutcome::Committed(answer) = &outcome {
                let is_task = makes_task && answer.verdict == Verdict::Granted;
                let written = Written {
                    cluster,
                    entry: entry.id(&desk.fleet.chain),
                    index: answer.index,
                    submitted: is_task.then_some((task, entry.header.scope)),
                };
                desk.acknowledged(agent_name, asked_us, written);
                let mut journal = desk.journal();
                if is_task
                    && journal
                        .acknowledged
                        .insert(task, (cluster, entry.header.scope))
                        .is_none()
                {
                    journal.order.entry(cluster).or_default().push(task);
                }
            }
            outcome
        });
        // A client has a patience of its own: an agent that is paused says nothing.
        let asked = tokio::time::timeout(Duration::from_secs(10), asked).await;
        match asked.ok().flatten() {
            Some(WriteOutcome::Committed(answer)) => Attempt::Ended(Some(answer)),
            Some(WriteOutcome::Refused(WriteRefusal::Rejected { .. })) => Attempt::Ended(None),
            Some(WriteOutcome::Refused(WriteRefusal::NoQuorum { .. })) => {
                self.desk.journal().no_quorum += 1;
                Attempt::Again
            }
            Some(WriteOutcome::Refused(_) | WriteOutcome::Unknown) | None => Attempt::Again,
        }
    }
}
