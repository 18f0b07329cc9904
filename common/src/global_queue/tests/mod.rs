//! Claims about the global queue, by rule.

mod assignment;
mod entries;
mod links;
mod properties;
mod references;
mod retention;
mod snapshots;

use super::*;
use crate::{
    batch::CertifiedBatch,
    entry::{Action, Fence, Progress, SignedEntry},
    ids::{Assignment, HolderCounter},
    task::{Scope, Task, TaskState},
    testing::{Fleet, Ledger, place_in, task},
    verdict::Verdict,
};

const C1: ClusterId = ClusterId(0);
const C2: ClusterId = ClusterId(1);
const C3: ClusterId = ClusterId(2);

/// A fleet of three clusters in contact, and one validator to keep signing cheap.
fn ledger() -> Ledger {
    let mut ledger = Ledger::new(Fleet::new(3, 3, 1));
    contact(&mut ledger, &[C1, C2, C3]);
    ledger
}

/// A block with a beat of each of these clusters.
fn contact(ledger: &mut Ledger, clusters: &[ClusterId]) -> BlockOutcome {
    let beats: Vec<CertifiedBatch> = clusters.iter().map(|id| ledger.beat(*id)).collect();
    ledger.block(beats, 100)
}

/// A block with one batch of `cluster`, every entry granted. Returns the verdicts of its entries.
fn enter(ledger: &mut Ledger, cluster: ClusterId, entries: Vec<SignedEntry>) -> Vec<Verdict> {
    let batch = ledger.granted(cluster, entries);
    verdicts(&ledger.block(vec![batch], 100))
}

/// The same for one entry.
fn enter_one(ledger: &mut Ledger, cluster: ClusterId, entry: SignedEntry) -> Verdict {
    enter(ledger, cluster, vec![entry])[0]
}

/// The same with the cluster's verdict.
fn enter_as(ledger: &mut Ledger, cluster: ClusterId, verdict: Verdict, entry: SignedEntry) -> Verdict {
    let batch = ledger.batch(cluster, vec![(verdict, entry)]);
    verdicts(&ledger.block(vec![batch], 100))[0]
}

fn verdicts(outcome: &BlockOutcome) -> Vec<Verdict> {
    outcome
        .outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Entry { verdict, .. } => Some(*verdict),
            Outcome::Batch { .. } | Outcome::Machine { .. } => None,
        })
        .collect()
}

/// Submits `task` as the operator through `cluster`; it takes effect.
fn submit(ledger: &mut Ledger, cluster: ClusterId, scope: Scope, task: &Task) -> TaskId {
    let entry = ledger.submit("op1", cluster, scope, task);
    let id = TaskId::from(entry.id(&ledger.fleet.chain));
    assert_eq!(enter_one(ledger, cluster, entry), Verdict::Granted);
    id
}

/// A fleet-scope task under `key` in the zone of cluster `c1`, assigned there.
fn assigned(ledger: &mut Ledger, key: &str) -> TaskId {
    let task = Task {
        places: vec![place_in(0)].try_into().unwrap(),
        ..task(key)
    };
    let id = submit(ledger, C2, Scope::Fleet, &task);
    let row = ledger.queue.task(&id).unwrap();
    assert_eq!((row.state(), row.standing.cluster), (TaskState::Assigned, Some(C1)));
    id
}

fn state(ledger: &Ledger, id: &TaskId) -> TaskState {
    ledger.queue.task(id).unwrap().state()
}

fn row<'a>(ledger: &'a Ledger, id: &TaskId) -> &'a Row {
    ledger.queue.task(id).unwrap()
}

/// `drone` of cluster `c1` claims the task under its present assignment number.
fn claim(ledger: &mut Ledger, drone: &str, id: TaskId) -> Fence {
    let cluster = row(ledger, &id).standing.cluster.unwrap();
    let action = Action::Claim {
        task: id,
        assignment: row(ledger, &id).standing.assignment,
        counter: HolderCounter(1),
    };
    let scope = row(ledger, &id).scope();
    let entry = ledger.entry(drone, cluster, scope, action);
    assert_eq!(enter_one(ledger, cluster, entry), Verdict::Granted);
    row(ledger, &id).standing.life.holder.unwrap().fence
}

fn start(id: TaskId, fence: Fence) -> Action {
    Action::Progress {
        task: id,
        fence,
        progress: Progress::Started,
    }
}

fn complete(id: TaskId, fence: Fence) -> Action {
    Action::Complete { task: id, fence }
}

fn fail(id: TaskId, fence: Fence) -> Action {
    Action::Fail {
        task: id,
        fence,
        counter: HolderCounter(9),
        retriable: false,
    }
}

fn release(id: TaskId, fence: Fence) -> Action {
    Action::Release {
        task: id,
        fence,
        counter: HolderCounter(9),
    }
}

#[test]
fn fleet_task_goes_from_submit_to_complete_and_its_history_says_so() {
    let mut ledger = ledger();
    let id = assigned(&mut ledger, "k");
    let view = ledger.queue.view(&id).unwrap();
    assert_eq!((view.through, view.cluster, view.holder), (C2, Some(C1), None));
    let fence = claim(&mut ledger, "c1-2", id);
    assert_eq!(fence.assignment, Assignment(1));
    let started = ledger.entry("c1-2", C1, Scope::Fleet, start(id, fence));
    let percent = Action::Progress {
        task: id,
        fence,
        progress: Progress::Percent(40),
    };
    let reported = ledger.entry("c1-2", C1, Scope::Fleet, percent);
    assert_eq!(enter(&mut ledger, C1, vec![started, reported]), [Verdict::Granted; 2]);
    let view = ledger.queue.view(&id).unwrap();
    assert_eq!((view.state, view.percent), (TaskState::Underway, 40));
    assert_eq!(view.holder.unwrap().device, ledger.fleet.id("c1-2"));
    let done = ledger.entry("c1-2", C1, Scope::Fleet, complete(id, fence));
    assert_eq!(enter_one(&mut ledger, C1, done), Verdict::Granted);
    let view = ledger.queue.view(&id).unwrap();
    assert_eq!(
        (view.state, view.holder, view.custody_until),
        (TaskState::Completed, None, None)
    );
    let history = ledger.queue.history(&id);
    let words: Vec<&str> = history.iter().map(|event| event.what.as_str()).collect();
    assert_eq!(words, ["submit", "assigned", "claim", "start", "progress", "complete"]);
    assert_eq!(history[1].entry, None);
    assert_eq!(history[5].author, Some(ledger.fleet.id("c1-2")));
    let mut counts = [0; 10];
    counts[TaskState::Completed as usize] = 1;
    assert_eq!(ledger.queue.counts_by_state(), counts);
}

#[test]
fn copy_does_not_follow_the_original() {
    let mut ledger = ledger();
    let before = ledger.queue.clone();
    let (root, bytes) = (before.state_root(), before.to_bytes());
    assigned(&mut ledger, "k");
    assert_eq!((before.state_root(), before.to_bytes()), (root, bytes));
    before.check_invariants();
    assert_ne!(ledger.queue.state_root(), root);
}

#[test]
fn tasks_are_listed_in_order_and_in_pages() {
    let mut ledger = ledger();
    for i in 0..20 {
        submit(&mut ledger, C1, Scope::Fleet, &task(&format!("k{i}")));
    }
    let all: Vec<TaskId> = ledger.queue.tasks(None, usize::MAX).map(|row| row.id).collect();
    assert!(all.is_sorted() && all.len() == 20);
    let mut paged = Vec::new();
    while let Some(page) = Some(
        ledger
            .queue
            .tasks(paged.last().copied(), 7)
            .map(|row| row.id)
            .collect::<Vec<_>>(),
    ) && !page.is_empty()
    {
        paged.extend(page);
    }
    assert_eq!(paged, all);
}

#[test]
fn history_of_a_talkative_holder_stays_bounded_and_keeps_what_tells() {
    let mut ledger = ledger();
    let id = assigned(&mut ledger, "k");
    let fence = claim(&mut ledger, "c1-1", id);
    for round in 0..3u32 {
        let entries = (0..200u32)
            .map(|i| {
                let progress = Progress::Percent(((round * 200 + i) % 100) as u8);
                ledger.entry(
                    "c1-1",
                    C1,
                    Scope::Fleet,
                    Action::Progress {
                        task: id,
                        fence,
                        progress,
                    },
                )
            })
            .collect();
        enter(&mut ledger, C1, entries);
    }
    let standing = &row(&ledger, &id).standing;
    assert_eq!(standing.events.len(), EVENTS_PER_TASK_MAX);
    assert_eq!(standing.events_dropped as usize, 603 - EVENTS_PER_TASK_MAX);
    let words: Vec<&str> = standing.events[..3].iter().map(|event| event.what.word()).collect();
    assert_eq!(words, ["submit", "assigned", "claim"]);
}
