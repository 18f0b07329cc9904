//! Random logs: whatever stands in a log, members agree, snapshots equal replay, and batches hold
//! each entry once.

use std::collections::{BTreeMap, BTreeSet};

use common::{
    batch::BatchItem,
    entry::{Action, Cause, Fence, LogEntry, Progress},
    ids::{BatchSeq, Digest, EntryId, HolderCounter, LogIndex, RaftNodeId, TaskId},
    limits::{BATCH_ENTRY_BYTES_MAX, ENTRIES_PER_BATCH_MAX},
    task::{AfterCustody, Scope, Task},
    testing::{ClusterLog, GENESIS_TIME, task},
    verdict::Verdict,
};
use proptest::prelude::*;

use super::{ClusterQueue, QueueEvent, RETENTION, Retention};
use crate::{
    batcher::OutboxBatch,
    testing::{OWN, TestCluster},
};

const AUTHORS: [&str; 6] = ["op1", "c1-1", "c1-2", "c1-3", "c2-1", "v1"];

/// Something that may come next in a log.
#[derive(Clone, Debug)]
enum Step {
    Submit {
        author: usize,
        is_fleet: bool,
        key: u8,
        shape: u8,
    },
    Act {
        author: usize,
        what: u8,
        task: usize,
        is_current: bool,
    },
    Repeat {
        at: usize,
    },
    Cut {
        seq: u64,
    },
    Beat {
        seq: u64,
    },
    /// The first `own` batches of the outbox, and one of another cluster.
    Block {
        own: usize,
        with_other: bool,
        step_ms: u64,
    },
    Elect {
        leader: usize,
    },
    Roster {
        incarnation: u32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let author = || 0..AUTHORS.len();
    prop_oneof![
        6 => (author(), any::<bool>(), 0u8..12, any::<u8>())
            .prop_map(|(author, is_fleet, key, shape)| Step::Submit { author, is_fleet, key, shape }),
        24 => (author(), any::<u8>(), any::<usize>(), prop::bool::weighted(0.8))
            .prop_map(|(author, what, task, is_current)| Step::Act { author, what, task, is_current }),
        1 => any::<usize>().prop_map(|at| Step::Repeat { at }),
        3 => (0u64..2).prop_map(|seq| Step::Cut { seq }),
        1 => (0u64..2).prop_map(|seq| Step::Beat { seq }),
        4 => (0usize..4, any::<bool>(), 1u64..600)
            .prop_map(|(own, with_other, step_ms)| Step::Block { own, with_other, step_ms }),
        1 => (1usize..4).prop_map(|leader| Step::Elect { leader }),
        1 => (1u32..3).prop_map(|incarnation| Step::Roster { incarnation }),
    ]
}

struct Run {
    c: TestCluster,
    other: ClusterLog,
    tasks: Vec<TaskId>,
    /// Every batch that closed, in order.
    batches: Vec<OutboxBatch>,
    /// Verdicts given to fresh entries.
    decided: Vec<(EntryId, Verdict)>,
}

impl Run {
    fn new() -> Self {
        let c = TestCluster::new();
        Self {
            other: ClusterLog::new(&c.fleet, common::ids::ClusterId(1)),
            c,
            tasks: vec![TaskId([1; 32])],
            batches: Vec::new(),
            decided: Vec::new(),
        }
    }

    fn apply(&mut self, entry: LogEntry) {
        let index = self.c.next_position().index;
        let is_renewal =
            matches!(&entry, LogEntry::Author(entry) if matches!(entry.header.action, Action::Renew { .. }));
        let is_known = match &entry {
            LogEntry::Author(entry) => {
                let id = entry.id(&self.c.fleet.chain);
                self.decided.iter().any(|(known, _)| *known == id)
            }
            _ => false,
        };
        let applied = self.c.apply(entry);
        if let (Some(id), Some(answer), false, false) = (applied.entry, applied.answer, is_renewal, is_known) {
            assert_eq!(answer.index, index);
            self.decided.push((id, answer.verdict));
        }
        for event in applied.events {
            if let QueueEvent::BatchClosed(batch) = event {
                self.batches.push(batch.into_inner());
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Submit {
                author,
                is_fleet,
                key,
                shape,
            } => {
                let scope = if is_fleet { Scope::Fleet } else { Scope::Cluster };
                let task = self.task(key, shape);
                let entry = self.c.submit_entry(AUTHORS[author], scope, &task);
                self.tasks.push(entry.id(&self.c.fleet.chain).into());
                self.apply(LogEntry::Author(entry));
            }
            Step::Act {
                author,
                what,
                task,
                is_current,
            } => {
                // Mostly one of the newest, so that lives go on.
                let newest = self.tasks.len().saturating_sub(6);
                let among = if is_current {
                    newest + task % (self.tasks.len() - newest)
                } else {
                    task % self.tasks.len()
                };
                self.act(AUTHORS[author], what, self.tasks[among], is_current);
            }
            Step::Repeat { at } => {
                if !self.c.log.is_empty() {
                    let entry = self.c.log[at % self.c.log.len()].3.clone();
                    self.apply(entry);
                }
            }
            Step::Cut { seq } => {
                let seq = BatchSeq(self.c.queue.batcher().open_seq().0 - seq);
                self.apply(LogEntry::Cut { seq });
            }
            Step::Beat { seq } => {
                let seq = BatchSeq(self.c.queue.batcher().open_seq().0 - seq);
                self.apply(LogEntry::Beat { seq });
            }
            Step::Block {
                own,
                with_other,
                step_ms,
            } => {
                let mut batches = self.c.certified();
                batches.truncate(own);
                if with_other {
                    let (fleet, number) = (self.c.fleet.clone(), self.other.next_index.0);
                    let new = task(&format!("other{number}"));
                    let entry = fleet.submit("op1", self.other.cluster, number, Scope::Fleet, &new);
                    self.tasks.push(entry.id(&fleet.chain).into());
                    batches.insert(0, self.other.granted(&fleet, vec![entry]));
                }
                let (_, parts) = self.c.parts(&batches, step_ms);
                for part in parts {
                    self.apply(LogEntry::GlobalAdvance(part));
                }
            }
            Step::Elect { leader } => {
                self.c.term = self.c.term.next();
                self.c.leader = RaftNodeId::new(self.c.fleet.idx(AUTHORS[leader]), 1);
            }
            Step::Roster { incarnation } => {
                let mut roster = self.c.queue.roster().clone();
                let mut members = roster.members.into_inner();
                members[2].raft = RaftNodeId::new(members[2].raft.idx(), incarnation);
                roster.members = members.try_into().unwrap();
                self.apply(LogEntry::Roster(common::batch::RosterChange { roster }));
            }
        }
    }

    fn task(&self, key: u8, shape: u8) -> Task {
        let mut task = task(&format!("k{key}"));
        if shape & 1 != 0 {
            task.after_custody = AfterCustody::Hold;
        }
        if shape & 6 == 6 {
            task.deadline = Some(GENESIS_TIME.plus_ms(u64::from(shape) * 20));
        }
        if shape & 24 == 24 {
            let after = self.tasks[usize::from(shape) % self.tasks.len()];
            task.after = vec![after].try_into().unwrap();
        }
        if shape & 96 == 96 {
            task.payload = vec![shape; 8 * 1024].try_into().unwrap();
        }
        task
    }

    fn act(&mut self, author: &str, what: u8, task: TaskId, is_current: bool) {
        let row = self.c.queue.task_row(&task);
        let holder = row.and_then(|row| row.life.holder);
        let newest = holder.map_or(Fence::default(), |holder| holder.fence);
        // Mostly who may speaks.
        let holder = holder.map(|holder| self.c.fleet.registry.by_id(&holder.device).unwrap().label.clone());
        let author = match (what % 16, holder) {
            _ if !is_current => author.to_owned(),
            (1..=6, Some(label)) => label.as_str().to_owned(),
            (9, _) => self.c.fleet.label(self.c.leader.idx()).to_owned(),
            (0 | 7 | 8, _) => "op1".to_owned(),
            (10.., _) => AUTHORS[1 + usize::from(what) % 3].to_owned(),
            _ => author.to_owned(),
        };
        let fence = if is_current {
            newest
        } else {
            Fence {
                index: LogIndex(newest.index.0 / 2),
                ..newest
            }
        };
        let counter = if is_current {
            self.c.counter(&author)
        } else {
            HolderCounter(1)
        };
        let renewed_at = self.c.queue.held(&task).map_or(LogIndex(0), |held| held.renewed_at);
        let action = match what % 16 {
            0 => Action::Cancel { task },
            1 => Action::Progress {
                task,
                fence,
                progress: if what & 16 == 0 {
                    Progress::Started
                } else {
                    Progress::Paused
                },
            },
            2 => Action::Progress {
                task,
                fence,
                progress: Progress::Percent(what),
            },
            3 => Action::Complete { task, fence },
            4 => Action::Fail {
                task,
                fence,
                counter,
                retriable: what & 16 != 0,
            },
            5 => Action::Release { task, fence, counter },
            6 => Action::Renew { counter },
            7 => Action::ForceRequeue { task },
            8 => Action::Requeue {
                task,
                cause: Cause::Operator,
            },
            9 => Action::Requeue {
                task,
                cause: Cause::LeaseEnded { fence, renewed_at },
            },
            _ => self.c.claim_action(&author, task),
        };
        let scope = self.c.scope(&task);
        let entry = self.c.entry(&author, scope, action);
        self.apply(LogEntry::Author(entry));
    }

    fn check_batches(&self) {
        let mut prev = (BatchSeq(0), Digest::default(), LogIndex(0));
        let mut rows: BTreeMap<EntryId, Verdict> = BTreeMap::new();
        for batch in &self.batches {
            let header = &batch.header;
            assert_eq!((header.seq, header.prev_digest), (prev.0.next(), prev.1), "no gap");
            assert!(batch.entries.len() <= ENTRIES_PER_BATCH_MAX);
            let bytes: usize = batch.entries.iter().map(|row| row.encoded_len()).sum();
            assert!(
                bytes <= BATCH_ENTRY_BYTES_MAX || batch.entries.len() == 1,
                "{bytes} bytes"
            );
            for row in &batch.entries {
                assert!(prev.2 < row.index && row.index <= header.cut.index);
                if let BatchItem::Author(entry) = &row.item {
                    let known = rows.insert(entry.id(&self.c.fleet.chain), row.verdict);
                    assert_eq!(known, None, "an entry is in one batch");
                }
            }
            prev = (header.seq, batch.digest, header.cut.index);
        }
        for (id, verdict) in &self.decided {
            let uses_number = !matches!(
                verdict,
                Verdict::Rejected(common::verdict::Reason::WrongCluster | common::verdict::Reason::Conflict)
            );
            assert_eq!(
                rows.remove(id),
                uses_number.then_some(*verdict),
                "each decided entry is in a batch"
            );
        }
        assert!(rows.is_empty(), "nothing else is in a batch");
    }

    /// Once everything of this cluster is final, both tiers say the same about every task.
    fn check_agreement(&mut self) {
        // All deadlines pass; then a batch stands at that height, so that the global tier ends too what
        // this log ended.
        self.c.finalize(1);
        self.c.finalize(100_000);
        for i in 0..2 {
            self.c.submit("op1", Scope::Cluster, &task(&format!("last{i}")));
            self.c.finalize(1);
        }
        assert_eq!(self.c.queue.batcher().outbox().len(), 0);
        for (task, row) in self.c.queue.task_rows() {
            let global = self.c.queue.global();
            if let Some((state, _, _)) = global.state_of(task) {
                assert_eq!(state, row.state(), "{task} of {:?}", row.scope);
            }
            let Some(global) = global.task(task) else {
                let has_left = !row.state().is_open() && global.left() > 0;
                assert!(
                    row.scope == Scope::Fleet || has_left,
                    "only a rejected fleet submission and who left has no global row"
                );
                continue;
            };
            assert_eq!(row.life, global.standing.life, "{task} of {:?}", row.scope);
        }
    }
}

/// What a reader sees of a task: its row, or else the global queue's.
fn seen(queue: &ClusterQueue, task: &TaskId) -> Option<common::wire::op::TaskView> {
    queue.task_view(task).or_else(|| queue.global().view(task))
}

/// Replays the log of `run` with every row kept. Answers, batches and what readers see must be the same,
/// as long as nobody speaks of a submission that the global tier rejected. Returns how many rows had left.
fn compare_with_all_rows_kept(run: &mut Run) -> Result<usize, TestCaseError> {
    let log = run.c.log.clone();
    let (mut dropping, mut keeping) = (
        run.c.fresh(),
        run.c.fresh().with_retention(RETENTION, run.c.global_retention),
    );
    for (position, leader, chain, entry) in log {
        if let LogEntry::Author(author) = &entry
            && let Some(task) = author.header.action.task()
            && keeping.task_row(&task).is_some()
            && dropping.known_row(&task).is_none()
        {
            return Ok(0);
        }
        let one = dropping.apply(position, leader, chain, entry.clone(), &mut run.c.oracle);
        let other = keeping.apply(position, leader, chain, entry, &mut run.c.oracle);
        prop_assert_eq!(one.answer, other.answer, "at {:?}", position);
        prop_assert_eq!(one.events, other.events, "at {:?}", position);
        prop_assert_eq!(dropping.batcher(), keeping.batcher());
        prop_assert_eq!(dropping.counts(), keeping.counts());
    }
    prop_assert_eq!(dropping.global().state_root(), keeping.global().state_root());
    let mut left = 0;
    for (task, row) in keeping.task_rows() {
        if dropping.task_row(task).is_none() {
            left += 1;
            prop_assert!(!row.state().is_open(), "an open task has left");
            if let Some(view) = seen(&dropping, task) {
                prop_assert_eq!(Some(view.state), seen(&keeping, task).map(|view| view.state));
                prop_assert_eq!(dropping.history(task), keeping.history(task));
            }
        }
    }
    Ok(left)
}

#[test]
fn closed_tasks_leave_in_many_random_logs() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};

    let mut runner = TestRunner::deterministic();
    let mut left = 0;
    for _ in 0..20 {
        let steps = prop::collection::vec(step(), 100..160).new_tree(&mut runner).unwrap();
        let mut run = Run::new();
        run.c.retain(Retention {
            blocks: 1,
            rows: 2,
            ..RETENTION
        });
        for step in &steps.current() {
            run.step(step);
        }
        left += compare_with_all_rows_kept(&mut run).unwrap();
    }
    assert!(left > 20, "{left} rows left");
}

/// Bounds that a short log meets, of a queue and of its global queue.
fn retentions() -> impl Strategy<Value = (Retention, common::global_queue::Retention)> {
    let own = (0u64..4, 0usize..8, 0usize..4).prop_map(|(blocks, rows, keys)| Retention { blocks, rows, keys });
    let global = (1u64..8, 0usize..6, 0usize..6).prop_map(|(blocks, rows, lines)| common::global_queue::Retention {
        blocks,
        rows,
        lines,
        ..common::global_queue::RETENTION
    });
    (own, global)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn members_agree_and_snapshots_equal_replay(
        steps in prop::collection::vec(step(), 1..120),
        snapshot_at in any::<prop::sample::Index>(),
        (retention, global) in retentions(),
    ) {
        let mut run = Run::new();
        run.c.retain_globally(retention, global);
        for step in &steps {
            run.step(step);
        }
        prop_assert!(run.c.queue.conflict().is_none());
        let log = run.c.log.clone();
        let at = snapshot_at.index(log.len() + 1);
        let fresh = run.c.fresh();
        let early = run.c.replay(fresh, &log[..at]);
        let bytes = early.to_bytes();
        let genesis = early.genesis_file().clone();
        let restored = ClusterQueue::from_bytes(genesis, OWN, &bytes).unwrap().with_retention(retention, global);
        prop_assert_eq!(&restored.to_bytes(), &bytes);
        prop_assert_eq!(restored.digest(), early.digest());
        prop_assert_eq!(restored.counts(), early.counts());
        let replayed = run.c.replay(early, &log[at..]);
        let from_snapshot = run.c.replay(restored, &log[at..]);
        for member in [replayed, from_snapshot] {
            prop_assert_eq!(member.digest(), run.c.queue.digest());
            prop_assert_eq!(member.to_bytes(), run.c.queue.to_bytes());
        }
    }

    #[test]
    fn each_entry_is_in_one_batch_and_both_tiers_agree_in_the_end(
        steps in prop::collection::vec(step(), 1..160),
        (retention, global) in retentions(),
        is_short in any::<bool>(),
    ) {
        let mut run = Run::new();
        if is_short {
            run.c.retain_globally(retention, global);
        }
        for step in &steps {
            run.step(step);
            let (counted, encoded) = (run.c.queue.state_bytes(), run.c.queue.to_bytes().len() as u64);
            prop_assert!(
                counted <= 2 * encoded + 4_096 && encoded <= 2 * counted + 4_096,
                "{} counted, {} encoded", counted, encoded
            );
        }
        let seq = run.c.queue.batcher().open_seq();
        run.apply(LogEntry::Cut { seq });
        run.check_batches();
        run.check_agreement();
    }

    #[test]
    fn nobody_can_tell_whether_closed_tasks_have_left(
        steps in prop::collection::vec(step(), 20..160),
        blocks in 0u64..3,
        rows in 0usize..4,
    ) {
        let mut run = Run::new();
        run.c.retain(Retention { blocks, rows, ..RETENTION });
        for step in &steps {
            run.step(step);
        }
        compare_with_all_rows_kept(&mut run)?;
    }

    #[test]
    fn damaged_snapshot_is_refused_or_equal(
        steps in prop::collection::vec(step(), 1..20),
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
        }
        let mut bytes = run.c.queue.to_bytes();
        let i = at.index(bytes.len());
        bytes[i] ^= flip;
        let genesis = run.c.queue.genesis_file().clone();
        // The digest over a snapshot is its carrier's; here nothing may panic, and what is accepted is
        // canonical.
        if let Ok(restored) = ClusterQueue::from_bytes(genesis, OWN, &bytes) {
            prop_assert_eq!(restored.to_bytes(), bytes);
        }
    }
}

#[test]
fn random_logs_reach_every_state_and_grant_every_action() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};

    let mut runner = TestRunner::deterministic();
    let (mut granted, mut states, mut late) = (BTreeSet::new(), [0u32; 10], 0);
    for _ in 0..40 {
        let steps = prop::collection::vec(step(), 100..160).new_tree(&mut runner).unwrap();
        let mut run = Run::new();
        for step in &steps.current() {
            run.step(step);
            for (sum, count) in states.iter_mut().zip(run.c.queue.counts()) {
                *sum += count;
            }
        }
        for row in run.batches.iter().flat_map(|batch| &batch.entries) {
            if let (BatchItem::Author(entry), Verdict::Granted) = (&row.item, row.verdict) {
                granted.insert((entry.header.scope, entry.header.action.word()));
            }
            late += u32::from(row.verdict == Verdict::Late);
        }
    }
    assert!(states.iter().all(|count| *count > 0), "{states:?}");
    assert!(late > 0);
    for scope in [Scope::Cluster, Scope::Fleet] {
        for word in [
            "submit",
            "cancel",
            "claim",
            "start",
            "pause",
            "progress",
            "complete",
            "fail",
            "release",
            "requeue",
            "force-requeue",
        ] {
            assert!(
                granted.contains(&(scope, word)),
                "{word} of {scope:?} scope is never granted"
            );
        }
    }
}
