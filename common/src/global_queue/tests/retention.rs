//! Closed tasks leave, with the same block everywhere.

use super::*;
use crate::{entry::Cause, verdict::Reason};

const SHORT: Retention = Retention {
    blocks: 4,
    rows: 100,
    bytes: 1_000_000,
    lines: 100,
};

fn retaining(retention: Retention) -> Ledger {
    let mut ledger = ledger();
    ledger.queue = ledger.queue.clone().with_retention(retention);
    ledger
}

fn cancel(ledger: &mut Ledger, id: TaskId) {
    let (cluster, scope) = (row(ledger, &id).submitted.through, row(ledger, &id).scope());
    let entry = ledger.entry("op1", cluster, scope, Action::Cancel { task: id });
    assert_eq!(enter_one(ledger, cluster, entry), Verdict::Granted);
}

fn blocks(ledger: &mut Ledger, count: u64) {
    for _ in 0..count {
        ledger.block(vec![], 100);
    }
}

/// Every cluster's log applies the newest block, and a batch of each says so.
fn all_logs_follow(ledger: &mut Ledger) {
    contact(ledger, &[C1, C2, C3]);
}

#[test]
fn closed_task_leaves_after_the_stated_blocks_and_an_open_one_never() {
    let mut ledger = retaining(SHORT);
    let open = assigned(&mut ledger, "open");
    let closed = assigned(&mut ledger, "closed");
    cancel(&mut ledger, closed);
    let ended = ledger.queue.height();
    blocks(&mut ledger, 3);
    assert!(ledger.queue.task(&closed).is_some(), "not before its time");
    blocks(&mut ledger, 1);
    assert!(ledger.queue.task(&closed).is_none());
    let line = ledger.queue.retired(&closed).unwrap();
    assert_eq!((line.state, line.ended, line.through), (TaskState::Canceled, ended, C2));
    assert_eq!(line.scope(), Scope::Fleet);
    blocks(&mut ledger, 40);
    assert_eq!(state(&ledger, &open), TaskState::Assigned);
    assert_eq!(ledger.queue.left(), 1);
    let counts = ledger.queue.counts_by_state();
    assert_eq!(counts[TaskState::Canceled as usize], 1, "it still counts");
}

#[test]
fn state_of_a_fleet_that_lives_long_stays_bounded() {
    let bounds = Retention {
        blocks: 1_000,
        rows: 5,
        bytes: 20_000,
        lines: 7,
    };
    let mut ledger = retaining(bounds);
    let mut longest = 0;
    for i in 0..60 {
        let id = assigned(&mut ledger, &format!("k{i}"));
        cancel(&mut ledger, id);
        if i == 20 {
            longest = ledger.queue.to_bytes().len();
        }
        // The number stream of the one author is bounded by its window, and is still filling.
        let stream = 40 * (i as usize + 1) * 2;
        assert!(
            i <= 20 || ledger.queue.to_bytes().len() <= longest + stream,
            "task {i}: {} bytes, {longest} at task 20",
            ledger.queue.to_bytes().len()
        );
    }
    assert_eq!(ledger.queue.task_count(), 5);
    assert_eq!(ledger.queue.left(), 55);
}

#[test]
fn rows_leave_early_when_they_are_too_large_together() {
    let mut ledger = retaining(Retention { bytes: 20_000, ..SHORT });
    let ids: Vec<TaskId> = (0..3)
        .map(|i| {
            let mut large = task(&format!("large{i}"));
            large.payload = vec![7; 8_000].try_into().unwrap();
            let id = submit(&mut ledger, C2, Scope::Cluster, &large);
            cancel(&mut ledger, id);
            id
        })
        .collect();
    all_logs_follow(&mut ledger);
    let kept: Vec<bool> = ids.iter().map(|id| ledger.queue.task(id).is_some()).collect();
    assert_eq!(kept, [false, true, true], "the oldest end goes first");
}

#[test]
fn talk_about_a_closed_task_counts_against_the_bound() {
    let mut ledger = retaining(Retention {
        bytes: 4_000,
        blocks: 1_000,
        ..SHORT
    });
    let id = assigned(&mut ledger, "k");
    cancel(&mut ledger, id);
    assert!(ledger.queue.task(&id).is_some());
    for _ in 0..20 {
        let again = ledger.entry("op1", C2, Scope::Fleet, Action::Cancel { task: id });
        let reason = Reason::WrongState(TaskState::Canceled);
        assert_eq!(enter_one(&mut ledger, C2, again), Verdict::Rejected(reason));
    }
    assert!(ledger.queue.retired(&id).is_some());
}

#[test]
fn key_of_a_task_that_left_is_still_its_own_until_its_line_leaves_too() {
    let mut ledger = retaining(Retention { lines: 1, ..SHORT });
    let first = assigned(&mut ledger, "k");
    cancel(&mut ledger, first);
    blocks(&mut ledger, 4);
    assert!(ledger.queue.retired(&first).is_some());
    let same = row_content(&mut ledger, "k");
    assert_eq!(same, Verdict::Rejected(Reason::DuplicateOf(first)));
    let other = Task {
        priority: 77,
        ..task("k")
    };
    let other = ledger.submit("op1", C1, Scope::Fleet, &other);
    assert_eq!(
        enter_one(&mut ledger, C1, other),
        Verdict::Rejected(Reason::KeyConflict(first))
    );
    let second = assigned(&mut ledger, "next");
    cancel(&mut ledger, second);
    blocks(&mut ledger, 4);
    assert!(ledger.queue.retired(&first).is_none(), "one line is kept, the newest");
    assert_eq!(row_content(&mut ledger, "k"), Verdict::Granted, "the key is free");
}

/// Submits once more what `assigned` does.
fn row_content(ledger: &mut Ledger, key: &str) -> Verdict {
    let task = Task {
        places: vec![place_in(0)].try_into().unwrap(),
        ..task(key)
    };
    let entry = ledger.submit("op1", C2, Scope::Fleet, &task);
    enter_one(ledger, C2, entry)
}

#[test]
fn signed_entry_takes_effect_once_though_nothing_is_kept_of_its_task() {
    let mut ledger = retaining(Retention { lines: 0, ..SHORT });
    let submitted = ledger.submit("op1", C2, Scope::Fleet, &task("k"));
    let id = TaskId::from(submitted.id(&ledger.fleet.chain));
    assert_eq!(enter_one(&mut ledger, C2, submitted.clone()), Verdict::Granted);
    cancel(&mut ledger, id);
    blocks(&mut ledger, 4);
    assert_eq!(ledger.queue.state_of(&id), None);
    let before = (ledger.queue.task_count(), ledger.queue.left());
    // The answer is remembered; the task does not come back.
    assert_eq!(enter_one(&mut ledger, C2, submitted), Verdict::Granted);
    assert_eq!((ledger.queue.task_count(), ledger.queue.left()), before);
    assert_eq!(ledger.queue.task(&id), None);
}

#[test]
fn entry_about_a_task_that_left_is_refused_because_of_its_state() {
    let mut ledger = retaining(SHORT);
    let id = assigned(&mut ledger, "k");
    let fence = claim(&mut ledger, "c1-1", id);
    cancel(&mut ledger, id);
    blocks(&mut ledger, 4);
    let late = ledger.entry("c1-1", C1, Scope::Fleet, complete(id, fence));
    let reason = Reason::WrongState(TaskState::Canceled);
    assert_eq!(enter_one(&mut ledger, C1, late.clone()), Verdict::Rejected(reason));
    let requeue = Action::Requeue {
        task: id,
        cause: Cause::Operator,
    };
    let requeue = ledger.entry("op1", C1, Scope::Fleet, requeue);
    assert_eq!(enter_one(&mut ledger, C1, requeue), Verdict::Rejected(reason));
}

#[test]
fn completed_link_counts_for_ever_and_a_failed_one_as_long_as_its_line() {
    let mut ledger = retaining(SHORT);
    let done = assigned(&mut ledger, "done");
    let fence = claim(&mut ledger, "c1-1", done);
    let entry = ledger.entry("c1-1", C1, Scope::Fleet, complete(done, fence));
    enter_one(&mut ledger, C1, entry);
    let failed = assigned(&mut ledger, "failed");
    let other = ledger.fleet.submit("op1", C3, 40, Scope::Fleet, &task("other"));
    let other_id = TaskId::from(other.id(&ledger.fleet.chain));
    let after = |key: &str, links: &[TaskId]| {
        let mut links = links.to_vec();
        links.sort_unstable();
        Task {
            after: links.try_into().unwrap(),
            ..task(key)
        }
    };
    let waits = submit(&mut ledger, C1, Scope::Fleet, &after("waits", &[done, other_id]));
    assert_eq!(row(&ledger, &waits).links_open(), 1);
    cancel(&mut ledger, failed);
    blocks(&mut ledger, 5);
    assert!(ledger.queue.retired(&done).is_some());
    let late = submit(&mut ledger, C1, Scope::Fleet, &after("late", &[done]));
    assert_eq!(state(&ledger, &late), TaskState::Assigned, "its line says completed");
    let dead = submit(&mut ledger, C1, Scope::Fleet, &after("dead", &[failed]));
    assert_eq!(state(&ledger, &dead), TaskState::Failed, "its line says canceled");
    ledger.queue = ledger.queue.clone().with_retention(Retention { lines: 0, ..SHORT });
    blocks(&mut ledger, 1);
    assert_eq!(ledger.queue.state_of(&done), None);
    assert_eq!(enter_one(&mut ledger, C3, other), Verdict::Granted);
    assert_eq!(row(&ledger, &waits).links_open(), 1, "what was completed stays so");
    end(&mut ledger, other_id);
    assert_eq!(state(&ledger, &waits), TaskState::Assigned);
}

fn end(ledger: &mut Ledger, id: TaskId) {
    let cluster = row(ledger, &id).standing.cluster.unwrap();
    let drone = format!("c{}-1", cluster.0 + 1);
    let fence = claim(ledger, &drone, id);
    let entry = ledger.entry(&drone, cluster, row(ledger, &id).scope(), complete(id, fence));
    assert_eq!(enter_one(ledger, cluster, entry), Verdict::Granted);
}

/// A task of `c1`'s own that failed.
fn failed_in_its_cluster(ledger: &mut Ledger) -> TaskId {
    let id = submit(ledger, C1, Scope::Cluster, &task("own"));
    let fence = claim(ledger, "c1-1", id);
    let entry = ledger.entry("c1-1", C1, Scope::Cluster, fail(id, fence));
    assert_eq!(enter_one(ledger, C1, entry), Verdict::Granted);
    assert_eq!(state(ledger, &id), TaskState::Failed);
    id
}

#[test]
fn failed_task_of_a_clusters_own_leaves_only_after_its_log_knows_that_it_will() {
    let mut ledger = retaining(SHORT);
    let id = failed_in_its_cluster(&mut ledger);
    let stood_below = ledger.beat(C1);
    blocks(&mut ledger, 4);
    let marked = row(&ledger, &id).standing.leaving;
    assert_eq!(marked, Some(ledger.queue.height()));
    blocks(&mut ledger, 20);
    ledger.block(vec![stood_below], 100);
    assert!(
        ledger.queue.task(&id).is_some(),
        "what stood below the mark may be followed by more"
    );
    all_logs_follow(&mut ledger);
    assert!(ledger.queue.retired(&id).is_some());
}

#[test]
fn what_a_cluster_granted_before_it_knew_of_the_mark_takes_effect() {
    let mut ledger = retaining(SHORT);
    let id = failed_in_its_cluster(&mut ledger);
    let requeue = Action::Requeue {
        task: id,
        cause: Cause::Operator,
    };
    let requeue = ledger.entry("op1", C1, Scope::Cluster, requeue);
    let stood_below = ledger.granted(C1, vec![requeue]);
    blocks(&mut ledger, 6);
    assert!(row(&ledger, &id).standing.leaving.is_some());
    assert_eq!(verdicts(&ledger.block(vec![stood_below], 100)), [Verdict::Granted]);
    assert_eq!(state(&ledger, &id), TaskState::Queued);
    let standing = &row(&ledger, &id).standing;
    assert_eq!((standing.leaving, standing.ended), (None, None), "it is open again");
    all_logs_follow(&mut ledger);
    blocks(&mut ledger, 10);
    assert_eq!(state(&ledger, &id), TaskState::Queued);
}

#[test]
fn equal_blocks_make_equal_tasks_leave_whatever_snapshots_were_taken_between() {
    let mut one = retaining(SHORT);
    let mut other = one.clone();
    for i in 0..12 {
        let bytes = other.queue.to_bytes();
        let restored = GlobalQueue::from_bytes(&bytes, &other.fleet.genesis).unwrap();
        other.queue = restored.with_retention(SHORT);
        for ledger in [&mut one, &mut other] {
            let id = assigned(ledger, &format!("k{i}"));
            cancel(ledger, id);
        }
        assert_eq!(one.queue, other.queue);
    }
    assert!(one.queue.left() > 5);
}

#[test]
fn outcome_has_the_lines_of_who_left_though_the_state_keeps_none() {
    let mut ledger = retaining(Retention { lines: 0, ..SHORT });
    let ids = ["a", "b"].map(|key| assigned(&mut ledger, key));
    for id in ids {
        cancel(&mut ledger, id);
    }
    let dropped: Vec<_> = (0..8).flat_map(|_| ledger.block(vec![], 100).dropped).collect();
    let told: Vec<_> = dropped.iter().map(|line| (line.id, line.state, line.order)).collect();
    let (canceled, [first, second]) = (TaskState::Canceled, ids);
    assert_eq!(told, [(first, canceled, 0), (second, canceled, 1)]);
    assert_eq!(ledger.queue.retired(&first), None);
}
