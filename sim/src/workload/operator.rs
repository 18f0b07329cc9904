//! An operator: writes what it wishes (`wishes`), until somebody says what became of it.
//!
//! # Rules
//! * Each write goes to a drawn agent of its cluster, cut off or not. After anything but an answer for
//!   good the same signed bytes go to another one, until one says what became of them.
//! * Several writes are open at once.
//! * Some writes are sent once more long after they ended, as by an operator who forgot: they hear what they heard.
//! * Now and then an intruder sends a submission in the operator's name, under a signature of something else.

use std::time::Duration;

use common::{
    entry::SignedEntry,
    ids::{ClusterId, TaskId},
    verdict::{Answer, Verdict},
    wire::{cluster::WriteOutcome, op::WriteRefusal},
};

use super::{
    Desk, Written,
    wishes::{Wish, Wishes},
};
use crate::{
    checkers::{Call, Told},
    random::Stream,
    runtime::Process,
};

/// Writes of one operator without an answer, at most.
const OPEN_MAX: u64 = 24;
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
    wishes: Wishes,
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
    makes_task: bool,
}

impl Operator {
    /// An operator of `cluster`, whose agents are `agents`.
    #[must_use]
    pub fn new(desk: Desk, cluster: ClusterId, agents: Vec<String>, mut random: Stream) -> Self {
        Self {
            wishes: Wishes::new(desk.clone(), cluster, Stream::new(random.next_u64())),
            desk,
            cluster,
            agents,
            random,
        }
    }

    /// Writes until the desk closes.
    pub async fn work(mut self, every: Duration) {
        let mut open = 0;
        let done = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        loop {
            tokio::time::sleep(self.random.around(every)).await;
            if !self.desk.is_open() {
                return;
            }
            if open - done.load(std::sync::atomic::Ordering::Relaxed) >= OPEN_MAX {
                continue;
            }
            if self.wishes.number() % INTRUDE_EVERY == INTRUDE_EVERY - 1 {
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
        let (genuine, mut forged) = (self.wishes.submit().entry, self.wishes.submit().entry);
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
        let Wish {
            entry,
            call,
            makes_task,
        } = self.wishes.next();
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
