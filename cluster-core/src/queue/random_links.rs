//! Random logs about few tasks that wait for each other: both tiers end them alike, and never without cause.

use std::collections::BTreeMap;

use common::{
    entry::{Action, Cause, LogEntry},
    global_queue::MachineEvent,
    ids::{ClusterId, EntryId, Height, TaskId},
    task::{Scope, Task, TaskState},
    testing::{ClusterLog, task},
    verdict::Verdict,
};
use proptest::prelude::*;

use super::QueueEvent;
use crate::testing::{OWN, TestCluster};

/// Fleet-scope tasks that others wait for.
const LINKS: usize = 2;
/// Tasks of the cluster's own, of which the last waits for both links.
const OWN_TASKS: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// To a task; the first are the links.
    Act {
        what: u8,
        task: usize,
    },
    /// An operator frees a link through another cluster.
    ForceElsewhere {
        link: usize,
    },
    Cut,
    /// The first batches of the outbox.
    Block {
        own: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0u8..8, 0..LINKS + OWN_TASKS).prop_map(|(what, task)| Step::Act { what, task }),
        1 => (0..LINKS).prop_map(|link| Step::ForceElsewhere { link }),
        3 => Just(Step::Cut),
        5 => (0usize..4).prop_map(|own| Step::Block { own }),
    ]
}

struct Run {
    c: TestCluster,
    elsewhere: ClusterLog,
    tasks: Vec<TaskId>,
    /// What this log decided about entries of cluster scope.
    decided: BTreeMap<EntryId, Verdict>,
    /// By own task: height of the log when an entry queued it last, and that entry.
    queued: BTreeMap<TaskId, (Height, EntryId)>,
    /// Heights at which entries of this log became final.
    executed: BTreeMap<EntryId, Height>,
    ended: u32,
    kept: u32,
}

impl Run {
    fn new() -> Self {
        let mut c = TestCluster::new();
        let lasting = |name: &str, after: &[TaskId]| {
            let mut after = after.to_vec();
            after.sort_unstable();
            Task {
                attempts_max: 255,
                after: after.try_into().expect("two at most"),
                ..task(name)
            }
        };
        let links = ["first", "second"].map(|name| c.assigned("op1", &lasting(name, &[])));
        let mut run = Self {
            elsewhere: ClusterLog::new(&c.fleet, ClusterId(1)),
            c,
            tasks: links.to_vec(),
            decided: BTreeMap::new(),
            queued: BTreeMap::new(),
            executed: BTreeMap::new(),
            ended: 0,
            kept: 0,
        };
        for (name, after) in [("a", &links[..1]), ("b", &links[1..]), ("both", &links[..])] {
            let entry = run.c.submit_entry("op1", Scope::Cluster, &lasting(name, after));
            run.tasks.push(entry.id(&run.c.fleet.chain).into());
            run.apply(LogEntry::Author(entry));
        }
        run
    }

    fn apply(&mut self, entry: LogEntry) {
        let about = match &entry {
            LogEntry::Author(entry) if entry.header.scope == Scope::Cluster => {
                let id = entry.id(&self.c.fleet.chain);
                Some((id, entry.header.action.task().unwrap_or(id.into())))
            }
            _ => None,
        };
        let height = self.c.queue.global_height();
        let applied = self.c.apply(entry);
        if let (Some((id, _)), Some(answer)) = (about, applied.answer) {
            self.decided.insert(id, answer.verdict);
        }
        let mut ended = Vec::new();
        for event in applied.events {
            match event {
                QueueEvent::TaskChanged {
                    task,
                    to: TaskState::Queued,
                    ..
                } => {
                    if let Some((id, _)) = about.filter(|(_, about)| *about == task) {
                        self.queued.insert(task, (height, id));
                    }
                }
                QueueEvent::TaskChanged {
                    task,
                    from: Some(TaskState::Queued),
                    to: TaskState::Failed,
                } => ended.push(task),
                QueueEvent::EntriesFinal { height, entries } => {
                    for (id, verdict) in entries {
                        self.executed.insert(id, height);
                        if let Some(decided) = self.decided.get(&id) {
                            assert_eq!(verdict, *decided, "two tiers judge one entry from two states");
                        }
                    }
                }
                QueueEvent::Quarantined(conflict) => panic!("{conflict}"),
                _ => {}
            }
        }
        for task in ended.into_iter().filter(|task| self.tasks[LINKS..].contains(task)) {
            self.ended += 1;
            self.check_cause(task);
        }
    }

    /// An own task that a block ended had a link that ended after it was queued, or that had still ended when that was
    /// executed.
    fn check_cause(&self, own: TaskId) {
        let (queued_at, entry) = self.queued[&own];
        let executed = self.executed.get(&entry).copied();
        let row = self.c.queue.task_row(&own).expect("it was changed just now");
        let is_cause = |link: &TaskId| {
            let events = &self
                .c
                .queue
                .global()
                .task(link)
                .expect("links are kept")
                .standing
                .events;
            let ends = |state: TaskState| !state.is_open() && state != TaskState::Completed;
            let ended_since = events.iter().any(|event| event.height > queued_at && ends(event.state));
            let stood = executed.and_then(|at| events.iter().rev().find(|event| event.height < at));
            ended_since || stood.is_some_and(|event| ends(event.state))
        };
        assert!(
            row.task.after.iter().any(is_cause),
            "{own} ended, queued at {queued_at}, {executed:?}"
        );
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Act { what, task } => self.act(what, self.tasks[task]),
            Step::ForceElsewhere { link } => {
                let (fleet, number) = (self.c.fleet.clone(), self.elsewhere.next_index.0);
                let action = Action::ForceRequeue { task: self.tasks[link] };
                let entry = fleet.entry("op1", self.elsewhere.cluster, number, Scope::Fleet, action);
                let batch = self.elsewhere.granted(&fleet, vec![entry]);
                self.block(vec![batch]);
            }
            Step::Cut => {
                let seq = self.c.queue.batcher().open_seq();
                self.apply(LogEntry::Cut { seq });
            }
            Step::Block { own } => {
                let mut batches = self.c.certified();
                batches.truncate(own);
                self.block(batches);
            }
        }
    }

    fn block(&mut self, batches: Vec<common::batch::CertifiedBatch>) {
        let (_, parts) = self.c.parts(&batches, 20);
        for part in parts {
            self.apply(LogEntry::GlobalAdvance(part));
        }
    }

    /// What may come next for the task, mostly.
    fn act(&mut self, what: u8, task: TaskId) {
        let (state, scope) = (self.c.state(&task), self.c.scope(&task));
        let fence = self.c.queue.held(&task).map(|held| held.fence).unwrap_or_default();
        let action = match (state, what) {
            (TaskState::Queued | TaskState::Assigned, _) => self.c.claim_action("c1-1", task),
            (_, 0) if scope == Scope::Cluster => Action::Complete { task, fence },
            (TaskState::Failed | TaskState::Expired, _) => Action::Requeue {
                task,
                cause: Cause::Operator,
            },
            (_, 1 | 2) => Action::Release {
                task,
                fence,
                counter: self.c.counter("c1-1"),
            },
            // Once a link is completed, nothing ends with it.
            (_, 3) => Action::Complete { task, fence },
            _ => Action::Fail {
                task,
                fence,
                counter: self.c.counter("c1-1"),
                retriable: what == 4,
            },
        };
        let author = if matches!(action, Action::Requeue { .. }) {
            "op1"
        } else {
            "c1-1"
        };
        let entry = self.c.entry(author, scope, action);
        self.apply(LogEntry::Author(entry));
    }

    /// Once everything is final, both tiers say the same.
    fn check_agreement(&mut self) {
        for round in 0..3 {
            let last = task(&format!("last{round}"));
            let entry = self.c.submit_entry("op1", Scope::Cluster, &last);
            self.apply(LogEntry::Author(entry));
            self.step(Step::Cut);
            let batches = self.c.certified();
            self.block(batches);
        }
        for id in &self.tasks {
            let (row, global) = (self.c.queue.task_row(id), self.c.queue.global().task(id));
            let (Some(row), Some(global)) = (row, global) else {
                panic!("{id} has left, of {OWN}");
            };
            assert_eq!(row.life, global.standing.life, "{id} of {:?}", row.scope);
            let is_marked = matches!(global.standing.ends_at, Some((_, MachineEvent::LinkedTaskEnded)));
            assert!(
                !(is_marked && row.state() == TaskState::Queued),
                "{id} waits, and is marked"
            );
            self.kept += u32::from(
                row.scope == Scope::Cluster && row.state() == TaskState::Queued && self.queued[id].0 > Height(3),
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn linked_tasks_end_alike_in_both_tiers_and_never_without_cause(steps in prop::collection::vec(step(), 10..120)) {
        let mut run = Run::new();
        for step in steps {
            run.step(step);
        }
        run.check_agreement();
    }
}

#[test]
fn random_links_end_their_tasks_and_tasks_outlive_that() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};

    let mut runner = TestRunner::deterministic();
    let (mut ended, mut kept) = (0, 0);
    for _ in 0..20 {
        let steps = prop::collection::vec(step(), 60..120).new_tree(&mut runner).unwrap();
        let mut run = Run::new();
        for step in steps.current() {
            run.step(step);
        }
        run.check_agreement();
        (ended, kept) = (ended + run.ended, kept + run.kept);
    }
    assert!(
        ended > 20 && kept > 5,
        "{ended} ended by links, {kept} queued in the end"
    );
}
