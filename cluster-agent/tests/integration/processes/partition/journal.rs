//! What clients were told, and what is judged from it as it comes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use common::{
    entry::SignedEntry,
    ids::{Digest, LogIndex, TaskId},
    verdict::{Answer, Verdict},
    wire::{
        cluster::WriteOutcome,
        op::{AgentStatus, Consistency, OpAnswer, ReadContext, TaskView, WriteRefusal},
    },
};
use tokio::time::Instant;
use transport::ports::CallError;

/// An acknowledgement.
#[derive(Clone, Debug)]
pub struct Ack {
    pub id: TaskId,
    pub by: String,
    pub answer: Answer,
    pub sent: Instant,
    pub answered: Instant,
}

/// What an agent said since it was cut off alone.
#[derive(Clone, Debug)]
pub struct Alone {
    pub since: Instant,
    /// Writes that it refused for want of a majority.
    pub refused: u64,
    /// Writes of which it said that their outcome is unknown, or nothing.
    pub unknown: u64,
    /// Local reads that it answered with an age that was checked.
    pub reads: u64,
}

impl Alone {
    /// From now on.
    pub fn now() -> Self {
        Self::since(Instant::now())
    }

    pub fn since(since: Instant) -> Self {
        let (refused, unknown, reads) = (0, 0, 0);
        Self {
            since,
            refused,
            unknown,
            reads,
        }
    }
}

/// What clients were told.
#[derive(Default)]
pub struct Journal {
    /// In the order of their answers.
    pub acks: Vec<Ack>,
    /// The highest index acknowledged up to and with each of `acks`.
    pub highest: Vec<LogIndex>,
    pub refused: BTreeSet<TaskId>,
    pub unknown: Vec<SignedEntry>,
    /// Agents that are cut off alone.
    pub alone: BTreeMap<String, Alone>,
    /// Digests of the queue by the index at which they were told.
    pub digests: BTreeMap<LogIndex, Digest>,
    /// Local reads whose age was known, and was not below the truth.
    pub reads_checked: u64,
    /// Those of them that an agent answered while it was cut off alone.
    pub reads_while_alone: u64,
    /// Those of them that asked for a task that the age obliges the agent to know.
    pub reads_of_due_tasks: u64,
    pub reads_of_unknown_age: u64,
    pub faults: Vec<String>,
}

impl Journal {
    /// `label`, if it was cut off alone when a question to it was sent at `sent`.
    fn alone_at(&mut self, label: &str, sent: Instant) -> Option<&mut Alone> {
        self.alone.get_mut(label).filter(|alone| alone.since <= sent)
    }

    pub fn acknowledged(&mut self, id: TaskId, by: &str, answer: Answer, sent: Instant) {
        // Taken under the lock, so that the list is in the order of the answers.
        let answered = Instant::now();
        if let Some(since) = self.alone_at(by, sent).map(|alone| alone.since) {
            self.faults.push(format!(
                "{by} acknowledged {id} at {answer:?} {:?} after it was cut off alone; it was sent {:?} after the cut",
                answered - since,
                sent - since
            ));
        }
        if answer.verdict != Verdict::Granted {
            self.faults.push(format!("{id} ended as {answer:?}"));
        }
        let highest = self.highest.last().copied().unwrap_or_default().max(answer.index);
        self.highest.push(highest);
        let by = by.to_owned();
        self.acks.push(Ack {
            id,
            by,
            answer,
            sent,
            answered,
        });
    }

    /// Writes down what a client of `label` was told about its write.
    pub fn told(
        &mut self,
        label: &str,
        id: TaskId,
        entry: SignedEntry,
        sent: Instant,
        answer: Result<OpAnswer, CallError>,
    ) {
        let outcome = match answer {
            Ok(OpAnswer::Write { outcome, .. }) => outcome,
            Ok(other) => return self.faults.push(format!("{label} answered {other:?}")),
            Err(_) => WriteOutcome::Unknown,
        };
        if let Some(alone) = self.alone_at(label, sent) {
            let is_no_quorum = matches!(outcome, WriteOutcome::Refused(WriteRefusal::NoQuorum { .. }));
            alone.refused += u64::from(is_no_quorum);
            alone.unknown += u64::from(outcome == WriteOutcome::Unknown);
        }
        match outcome {
            WriteOutcome::Committed(answer) => self.acknowledged(id, label, answer, sent),
            WriteOutcome::Unknown => self.unknown.push(entry),
            WriteOutcome::Refused(WriteRefusal::Rejected { verdict, detail }) => {
                let detail = detail.as_str();
                self.faults.push(format!("{label} rejected {id}: {verdict:?} {detail}"));
            }
            WriteOutcome::Refused(_) => {
                self.refused.insert(id);
            }
        }
    }

    /// Checks a read that was sent at `sent`: all that was acknowledged before the age it claims must be in it; before it
    /// was sent if it was linearizable.
    pub fn read(&mut self, label: &str, sent: Instant, asked: &Ack, found: Option<&TaskView>, context: &ReadContext) {
        let age_ms = match context.consistency {
            Consistency::Linearizable => Some(0),
            Consistency::Local | Consistency::Final => context.staleness_ms,
        };
        let Some(age_ms) = age_ms else {
            self.reads_of_unknown_age += 1;
            return;
        };
        let Some(as_of) = sent.checked_sub(Duration::from_millis(age_ms)) else {
            return;
        };
        self.reads_checked += 1;
        if let Some(alone) = self.alone_at(label, sent) {
            alone.reads += 1;
            self.reads_while_alone += 1;
        }
        self.reads_of_due_tasks += u64::from(asked.answered < as_of);
        let count = self.acks.partition_point(|ack| ack.answered < as_of);
        if let Some(highest) = count.checked_sub(1).map(|last| self.highest[last])
            && context.applied < highest
        {
            self.faults.push(format!(
                "{label} has applied {:?} and says that is at most {age_ms} ms old, but {highest:?} was acknowledged before: {context:?}",
                context.applied
            ));
        }
        if asked.answered < as_of && found.is_none() {
            self.faults.push(format!(
                "{label} does not know {asked:?} and says its answer is at most {age_ms} ms old: {context:?}"
            ));
        }
    }

    /// The same index is the same state, whoever tells it.
    pub fn state(&mut self, label: &str, status: &AgentStatus) {
        let index = status.context.applied;
        let before = *self.digests.entry(index).or_insert(status.queue_digest);
        if before != status.queue_digest {
            self.faults
                .push(format!("{label} has another state at {index:?} than was told before"));
        }
    }
}

#[cfg(test)]
mod tests {
    use common::{
        ids::{Height, Term},
        wire::op::Mode,
    };

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn answer(index: u64) -> Answer {
        Answer {
            index: LogIndex(index),
            verdict: Verdict::Granted,
        }
    }

    fn context(applied: u64, staleness_ms: Option<u64>) -> ReadContext {
        ReadContext {
            consistency: Consistency::Local,
            applied: LogIndex(applied),
            term: Term(1),
            leader: None,
            mode: Mode::ReadOnly,
            staleness_ms,
            global_height: Height(0),
            global_age_ms: None,
        }
    }

    /// Task 5 was acknowledged by a at index 5 a moment ago.
    fn journal() -> (Journal, Ack) {
        let mut journal = Journal::default();
        journal.acknowledged(TaskId([5; 32]), "a", answer(5), Instant::now());
        let ack = journal.acks[0].clone();
        (journal, ack)
    }

    #[test]
    fn age_below_the_truth_is_a_fault() {
        let (mut journal, ack) = journal();
        let later = ack.answered + 10 * SECOND;
        journal.read("b", later, &ack, None, &context(4, Some(11_000)));
        assert_eq!(journal.faults, [""; 0], "it need not know what is younger than 11 s");
        journal.read("b", later, &ack, None, &context(4, Some(9_000)));
        assert_eq!(
            journal.faults.len(),
            2,
            "neither the index nor the task: {:?}",
            journal.faults
        );
        journal.read("b", later, &ack, None, &context(5, Some(9_000)));
        assert_eq!(journal.faults.len(), 3, "the index, but not the task");
        journal.read("b", later, &ack, None, &context(4, None));
        assert_eq!((journal.faults.len(), journal.reads_of_unknown_age), (3, 1));
        let linearizable = ReadContext {
            consistency: Consistency::Linearizable,
            ..context(4, Some(99_000))
        };
        journal.read("b", later, &ack, None, &linearizable);
        assert_eq!(journal.faults.len(), 5, "whatever age it gives itself");
    }

    #[test]
    fn acknowledgement_by_who_is_cut_off_alone_is_a_fault() {
        let (mut journal, ack) = journal();
        journal.alone.insert("a".into(), Alone::since(ack.answered + SECOND));
        journal.acknowledged(TaskId([6; 32]), "a", answer(6), ack.answered);
        assert_eq!(journal.faults, [""; 0], "it was sent before the cut");
        journal.alone.insert("a".into(), Alone::since(ack.answered));
        journal.acknowledged(TaskId([7; 32]), "b", answer(7), Instant::now());
        assert_eq!(journal.faults, [""; 0], "another one");
        journal.acknowledged(TaskId([8; 32]), "a", answer(8), Instant::now());
        assert_eq!(journal.faults.len(), 1);
    }
}
