//! Closed tasks leave the rows here, and the global queue.

use common::{
    entry::{Action, Cause, LogEntry},
    global_queue,
    ids::{ClusterId, TaskId},
    task::{Scope, TaskState},
    testing::{ClusterLog, task},
    verdict::{Reason, Verdict},
    wire::op::Finality,
};

use super::{linked, rejected};
use crate::{
    queue::{Derived, RETENTION, Retention, State},
    testing::{TestCluster, verdict},
};

/// The global queue drops what is four blocks old; rows here stay much longer.
fn forgetful_fleet() -> TestCluster {
    let mut c = TestCluster::new();
    let global = global_queue::Retention {
        blocks: 4,
        ..global_queue::RETENTION
    };
    c.retain_globally(RETENTION, global);
    c
}

fn operators_requeue(c: &mut TestCluster, task: TaskId) -> Verdict {
    let scope = c.scope(&task);
    let cause = Cause::Operator;
    c.author("op1", scope, Action::Requeue { task, cause })
}

fn failed(c: &mut TestCluster, key: &str) -> TaskId {
    let id = c.submit("op1", Scope::Cluster, &task(key));
    let fence = c.hold("c1-1", id);
    assert_eq!(c.fail("c1-1", id, fence, false), Verdict::Granted);
    c.finalize(1);
    assert_eq!(c.state(&id), TaskState::Failed);
    id
}

#[test]
fn failed_task_is_queued_again_until_the_global_queue_says_that_it_leaves() {
    let mut c = forgetful_fleet();
    let (early, late) = (failed(&mut c, "early"), failed(&mut c, "late"));
    assert_eq!(operators_requeue(&mut c, early), Verdict::Granted);
    c.finalize(1);
    while c.queue.global().task(&late).unwrap().standing.leaving.is_none() {
        c.block(&[], 1);
    }
    assert_eq!(c.state(&late), TaskState::Failed, "its row is here");
    let refused = rejected(Reason::WrongState(TaskState::Failed));
    assert_eq!(operators_requeue(&mut c, late), refused, "marked");
    c.finalize(1);
    assert!(
        c.queue.global().retired(&late).is_some(),
        "that batch stood at the mark"
    );
    assert_eq!(operators_requeue(&mut c, late), refused, "dropped");
    assert_eq!(c.state(&early), TaskState::Queued);
    assert!(c.queue.global().task(&early).is_some());
}

/// The verdict of submitting a task of cluster scope that waits for `to`.
fn submit_linked(c: &mut TestCluster, key: &str, to: TaskId) -> Verdict {
    let entry = c.submit_entry("op1", Scope::Cluster, &linked(key, to));
    verdict(&c.apply(LogEntry::Author(entry)))
}

#[test]
fn no_task_begins_to_wait_for_one_that_ended_badly_and_that_the_global_queue_lets_go_of() {
    let mut c = forgetful_fleet();
    for end in [TaskState::Failed, TaskState::Canceled] {
        let first = match end {
            TaskState::Failed => failed(&mut c, "failed"),
            _ => {
                let id = c.submit("op1", Scope::Cluster, &task("canceled"));
                assert_eq!(c.cancel("op1", id), Verdict::Granted);
                c.finalize(1);
                id
            }
        };
        let key = |what: &str| format!("{what}-{end}");
        let at_once = c.submit("op1", Scope::Cluster, &linked(&key("at-once"), first));
        c.finalize(1);
        assert_eq!(c.state(&at_once), TaskState::Failed, "as long as both tiers know why");
        while c.queue.global().task(&first).unwrap().standing.leaving.is_none() {
            c.block(&[], 1);
        }
        let refused = rejected(Reason::LinkEnded(first));
        assert_eq!(submit_linked(&mut c, &key("marked"), first), refused);
        assert_eq!(operators_requeue(&mut c, at_once), refused);
        c.finalize(1);
        assert!(c.queue.global().retired(&first).is_some(), "a line is all that is left");
        assert_eq!(submit_linked(&mut c, &key("line"), first), refused);
    }
}

#[test]
fn task_that_is_queued_again_ends_in_both_tiers_with_a_link_that_the_global_queue_has_forgotten() {
    let mut c = TestCluster::new();
    let global = global_queue::Retention {
        blocks: 6,
        lines: 1,
        ..global_queue::RETENTION
    };
    c.retain_globally(RETENTION, global);
    let (link, other) = (c.assigned("op1", &task("link")), c.assigned("op1", &task("other")));
    let waits = c.submit("op1", Scope::Cluster, &linked("waits", link));
    let fence = c.hold("c1-1", link);
    assert_eq!(c.fail("c1-1", link, fence, false), Verdict::Granted);
    c.finalize(1);
    assert_eq!(c.cancel("op1", other), Verdict::Granted);
    let queue_again = |c: &mut TestCluster| {
        assert_eq!(c.state(&waits), TaskState::Failed);
        assert_eq!(operators_requeue(c, waits), Verdict::Granted);
        assert_eq!(c.state(&waits), TaskState::Queued);
        c.finalize(1);
    };
    while c.queue.global().state_of(&link).is_some() {
        queue_again(&mut c);
    }
    queue_again(&mut c);
    assert_eq!(c.state(&waits), TaskState::Failed);
    c.submit("op1", Scope::Cluster, &task("last"));
    c.finalize(1);
    assert_eq!(c.queue.global().task(&waits).unwrap().state(), TaskState::Failed);
}

#[test]
fn link_that_a_cluster_judged_before_the_mark_is_judged_alike_by_the_global_queue() {
    let mut c = forgetful_fleet();
    let first = c.submit("op1", Scope::Cluster, &task("canceled"));
    assert_eq!(c.cancel("op1", first), Verdict::Granted);
    c.finalize(1);
    let waits = c.submit("op1", Scope::Cluster, &linked("waits", first));
    assert_eq!(c.state(&waits), TaskState::Failed);
    for _ in 0..20 {
        c.block(&[], 1);
    }
    assert!(
        c.queue.global().task(&first).is_some(),
        "its cluster may have linked to it"
    );
    c.finalize(1);
    assert_eq!(c.queue.global().task(&waits).unwrap().state(), TaskState::Failed);
}

#[test]
fn entry_about_a_task_that_the_global_queue_dropped_ends_visibly_and_its_row_leaves_in_the_end() {
    let mut c = forgetful_fleet();
    let id = c.assigned("op1", &task("k"));
    let fence = c.hold("c1-1", id);
    c.finalize(1);
    assert_eq!(c.cancel("op1", id), Verdict::Granted);
    c.finalize(1);
    assert_eq!(c.state(&id), TaskState::Canceled);
    // A late result is under way while the global queue drops the task.
    assert_eq!(c.complete("c1-1", id, fence), Verdict::Late);
    for _ in 0..6 {
        c.block(&[], 1);
    }
    assert!(c.queue.global().retired(&id).is_some());
    assert!(matches!(
        c.queue.task_view(&id).unwrap().finality,
        Finality::ClusterCommitted
    ));
    c.finalize(1);
    let refused = rejected(Reason::WrongState(TaskState::Canceled));
    match c.queue.task_view(&id).unwrap().finality {
        Finality::Final { verdict, .. } => assert_eq!(verdict, refused),
        other => panic!("{other:?}"),
    }
}

#[test]
fn end_that_came_first_elsewhere_stands_though_the_global_queue_has_dropped_the_task() {
    let mut c = forgetful_fleet();
    let id = c.assigned("op1", &task("k"));
    let fence = c.hold("c1-1", id);
    c.finalize(1);
    assert_eq!(c.complete("c1-1", id, fence), Verdict::Granted);
    let mut elsewhere = ClusterLog::new(&c.fleet, ClusterId(1));
    let number = c.number("op1");
    let cancel = Action::Cancel { task: id };
    let cancel = c.fleet.entry("op1", ClusterId(1), number, Scope::Fleet, cancel);
    let batch = elsewhere.granted(&c.fleet, vec![cancel]);
    c.block(&[batch], 1);
    assert_eq!(c.queue.global().task(&id).unwrap().state(), TaskState::Canceled);
    for _ in 0..6 {
        c.block(&[], 1);
    }
    assert!(c.queue.global().retired(&id).is_some());
    c.finalize(1);
    assert_eq!(c.state(&id), TaskState::Canceled, "what this log says came later");
}

#[test]
fn key_of_a_row_that_left_is_its_own_for_a_while_and_then_free() {
    let mut c = TestCluster::new();
    let short = Retention {
        blocks: 0,
        rows: 0,
        keys: 1,
    };
    c.retain(short);
    let end = |c: &mut TestCluster, key: &str| {
        let id = c.submit("op1", Scope::Cluster, &task(key));
        assert_eq!(c.cancel("op1", id), Verdict::Granted);
        c.finalize(1);
        c.block(&[], 1);
        assert!(c.queue.task_row(&id).is_none(), "its row has left");
        id
    };
    let first = end(&mut c, "one");
    let again = c.submit_entry("op1", Scope::Cluster, &task("one"));
    let answer = c.apply(common::entry::LogEntry::Author(again)).answer.unwrap();
    assert_eq!(answer.verdict, rejected(Reason::DuplicateOf(first)));
    end(&mut c, "two");
    let second = c.submit("op1", Scope::Cluster, &task("one"));
    assert_ne!(first, second);
    // The old task cannot come back under a key that is another's by now.
    let refused = rejected(Reason::WrongState(TaskState::Canceled));
    assert_eq!(operators_requeue_of_cluster_scope(&mut c, first), refused);
    c.queue.check_invariants().unwrap();
}

fn operators_requeue_of_cluster_scope(c: &mut TestCluster, task: TaskId) -> Verdict {
    let cause = Cause::Operator;
    c.author("op1", Scope::Cluster, Action::Requeue { task, cause })
}

#[test]
fn state_bytes_follow_a_snapshot_and_go_down_again() {
    let mut c = TestCluster::new();
    let own = Retention {
        blocks: 0,
        rows: 0,
        keys: 2,
    };
    let global = global_queue::Retention {
        blocks: 1,
        rows: 0,
        lines: 2,
        ..global_queue::RETENTION
    };
    c.retain_globally(own, global);
    let mut large = task("large");
    large.payload = vec![7; 8_000].try_into().unwrap();
    let empty = c.queue.state_bytes();
    let id = c.submit("op1", Scope::Fleet, &large);
    c.finalize(1);
    let held = c.queue.state_bytes();
    assert!(held > empty + 16_000, "a row here and one in the global queue: {held}");
    assert_eq!(c.cancel("op1", id), Verdict::Granted);
    c.finalize(1);
    for _ in 0..3 {
        c.finalize(1);
        c.block(&[], 1);
    }
    let left = c.queue.state_bytes();
    assert!(left < empty + 2_000, "{left} bytes are kept of a task that left");
}

#[test]
fn digest_covers_what_is_kept_of_rows_that_left_and_what_is_not_final() {
    let mut c = TestCluster::new();
    let hot = Retention { blocks: 2, ..RETENTION };
    let global = global_queue::Retention {
        blocks: 8,
        ..global_queue::RETENTION
    };
    c.retain_globally(hot, global);
    let early = failed(&mut c, "early");
    for _ in 0..12 {
        c.finalize(1);
    }
    let late = failed(&mut c, "late");
    for _ in 0..3 {
        c.block(&[], 1);
    }
    assert!(c.queue.state.gone != [0; 10] && c.queue.state.retired.contains_key(&late));
    let new = c.submit("op1", Scope::Cluster, &task("new"));
    assert!(c.queue.task_row(&early).is_none() && c.queue.state.pending.contains_key(&new));
    type Change = fn(&mut State, TaskId, TaskId);
    let changes: [(&str, Change); 5] = [
        ("how many are gone", |state, _, _| state.gone[0] += 1),
        ("the state of one that left", |state, late, _| {
            state.retired.insert(late, TaskState::Canceled);
        }),
        ("one that left", |state, late, _| assert!(state.retired.remove(&late))),
        ("the key of one that left", |state, late, _| {
            let left = state.keys.iter().find(|(_, row)| row.task == late);
            let (key, mut row) = left.map(|(key, row)| (key.clone(), *row)).unwrap();
            row.content.0[0] ^= 1;
            state.keys.insert(key, row);
        }),
        ("an event that is not final", |state, _, new| {
            state.pending.get_mut(&new).unwrap().make_mut()[0].verdict = Verdict::Rejected(Reason::Expired);
        }),
    ];
    for (what, change) in changes {
        let mut other = c.queue.clone();
        change(&mut other.state, late, new);
        other.derived = Derived::of(&other.state);
        assert_ne!(other.digest(), c.queue.digest(), "{what}");
    }
}
