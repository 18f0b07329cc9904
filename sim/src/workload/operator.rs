//! An operator: writes what it wishes (`wishes`), until somebody says what became of it.
//!
//! # Rules
//! * Each write goes to a drawn agent of its cluster, cut off or not. After anything but an answer for
//!   good the same signed bytes go to another one, until one says what became of them.
//! * A refusal by a rule ends a write too: nothing of it entered a log, and no number was used up, so that the same bytes
//!   could be accepted later. They are not sent again. After an attempt that may stand in the log such a refusal tells
//!   nothing of that one: then the write stays unanswered for those who judge.
//! * Several writes are open at once.
//! * Some writes that stand in the log are sent once more long afterwards, as by an operator who forgot: they hear what
//!   they heard.
//! * Now and then an intruder sends a submission in the operator's name, under a signature of something else.

use std::time::Duration;

use common::{
    entry::{Action, SignedEntry},
    ids::{ClusterId, TaskId},
    verdict::{Answer, Verdict},
    wire::{cluster::WriteOutcome, op::WriteRefusal},
};

use super::{
    Desk, Written,
    wishes::{Wish, Wishes},
};
use crate::{
    checkers::{Call, Observation, Told, Wanted},
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
                let (write, ending) = write.carry_out().await;
                desk.journal().open_writes -= 1;
                done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if let Ending::Committed(_) = ending {
                    write.repeat().await;
                }
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// In the log, with this decision.
    Committed(Answer),
    /// By a rule, before any log.
    Refused,
    /// Nothing of it entered a log; another agent may take it.
    NotTaken,
    /// It may stand in the log, now or later.
    Unknown,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// In the log, with this decision.
    Committed(Answer),
    /// Nothing of it is in a log.
    Refused,
    /// Refused, and an earlier attempt may still enter the log.
    Unknown,
}

/// The attempts of a write, one after the other.
#[derive(Debug, Default)]
struct Attempts {
    may_be_written: bool,
}

impl Attempts {
    /// The next one ended; `None`: the bytes are sent again.
    fn take(&mut self, attempt: Attempt) -> Option<Ending> {
        match attempt {
            Attempt::Committed(answer) => Some(Ending::Committed(answer)),
            Attempt::Refused if self.may_be_written => Some(Ending::Unknown),
            Attempt::Refused => Some(Ending::Refused),
            Attempt::NotTaken => None,
            Attempt::Unknown => {
                self.may_be_written = true;
                None
            }
        }
    }
}

impl Ending {
    fn told(self) -> Option<Told> {
        match self {
            Self::Committed(answer) if answer.verdict == Verdict::Granted => Some(Told::Granted),
            Self::Committed(_) | Self::Refused => Some(Told::Rejected),
            Self::Unknown => None,
        }
    }
}

impl Write {
    /// Sends the bytes until somebody says for good what became of them.
    async fn carry_out(mut self) -> (Self, Ending) {
        let scope = self.entry.header.scope;
        self.desk.witness.see(&Observation::Wished {
            entry: self.entry.id(&self.desk.fleet.chain),
            cluster: self.cluster,
            task: self.task,
            scope,
            wanted: self.wanted(),
        });
        let call = self.desk.called(self.task, scope, self.call);
        let mut attempts = Attempts::default();
        loop {
            let pick = self.random.between(0, self.agents.len() as u64 - 1) as usize;
            if let Some(ending) = attempts.take(self.attempt(pick).await) {
                if let Some(told) = ending.told() {
                    self.desk.answered(call, self.task, told);
                }
                return (self, ending);
            }
            self.desk.journal().retries += 1;
            let pause_ms = self.random.between(50, 300);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
    }

    fn wanted(&self) -> Option<Wanted> {
        let task = match self.entry.header.action {
            Action::Submit => self.entry.task().ok()?,
            _ => return None,
        };
        Some(Wanted {
            after: task.after.to_vec(),
            deadline: task.deadline,
        })
    }

    /// Sends the bytes of some writes once more: the answer must be the one that was given (`exactly-once`).
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
            return Attempt::NotTaken;
        };
        let (desk, entry, agent_name) = (self.desk.clone(), self.entry.clone(), self.agents[pick].clone());
        let (cluster, task, makes_task) = (self.cluster, self.task, self.makes_task);
        let asked_us = desk.witness.now_us();
        let asked = door.ask(|agent| async move {
            let outcome = agent.enter(entry.clone()).await;
            if let WriteOutcome::Refused(WriteRefusal::Rejected { verdict, .. }) = &outcome {
                desk.witness.see(&Observation::Refused {
                    agent: agent_name,
                    cluster,
                    asked_us,
                    entry: entry.id(&desk.fleet.chain),
                    verdict: *verdict,
                });
            } else if let WriteOutcome::Committed(answer) = &outcome {
                let is_task = makes_task && answer.verdict == Verdict::Granted;
                let written = Written {
                    cluster,
                    entry: entry.id(&desk.fleet.chain),
                    index: answer.index,
                    verdict: answer.verdict,
                    submitted: is_task.then_some((task, entry.header.scope)),
                };
                desk.acknowledged(agent_name, asked_us, written);
                let mut journal = desk.journal();
                if is_task {
                    journal.has_submitted(cluster, asked_us);
                }
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
            Some(WriteOutcome::Committed(answer)) => Attempt::Committed(answer),
            Some(WriteOutcome::Refused(WriteRefusal::Rejected { .. })) => Attempt::Refused,
            Some(WriteOutcome::Refused(WriteRefusal::NoQuorum { .. })) => {
                self.desk.journal().no_quorum += 1;
                Attempt::NotTaken
            }
            Some(WriteOutcome::Refused(_)) => Attempt::NotTaken,
            Some(WriteOutcome::Unknown) | None => Attempt::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use common::ids::LogIndex;

    use super::*;

    #[test]
    fn refusal_after_an_attempt_that_may_stand_in_the_log_answers_nothing() {
        let ended = |attempts: &[Attempt]| {
            let mut course = Attempts::default();
            attempts.iter().find_map(|attempt| course.take(*attempt))
        };
        assert_eq!(ended(&[Attempt::NotTaken, Attempt::Unknown]), None, "sent again");
        let refused = ended(&[Attempt::NotTaken, Attempt::Refused]);
        assert_eq!(refused.and_then(Ending::told), Some(Told::Rejected));
        let unclear = ended(&[Attempt::Unknown, Attempt::NotTaken, Attempt::Refused]);
        assert_eq!(unclear, Some(Ending::Unknown));
        assert_eq!(unclear.and_then(Ending::told), None);
        let answer = Answer {
            index: LogIndex(3),
            verdict: Verdict::Granted,
        };
        let committed = ended(&[Attempt::Unknown, Attempt::Committed(answer)]);
        assert_eq!(committed.and_then(Ending::told), Some(Told::Granted));
    }
}
