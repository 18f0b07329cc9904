//! Linked tasks.

use super::*;
use crate::entry::Cause;

fn after(key: &str, links: &[TaskId]) -> Task {
    let mut links = links.to_vec();
    links.sort_unstable();
    Task {
        after: links.try_into().unwrap(),
        ..task(key)
    }
}

fn end(ledger: &mut Ledger, id: TaskId, action: fn(TaskId, Fence) -> Action) {
    let cluster = row(ledger, &id).standing.cluster.unwrap();
    let drone = format!("c{}-1", cluster.0 + 1);
    let fence = claim(ledger, &drone, id);
    let scope = row(ledger, &id).scope();
    let entry = ledger.entry(&drone, cluster, scope, action(id, fence));
    assert_eq!(enter_one(ledger, cluster, entry), Verdict::Granted);
}

#[test]
fn drop_off_is_assigned_only_after_its_pickup_is_completed() {
    let mut ledger = ledger();
    let pickup = assigned(&mut ledger, "pickup");
    let other = assigned(&mut ledger, "other");
    let dropoff = submit(&mut ledger, C1, Scope::Fleet, &after("dropoff", &[pickup, other]));
    assert_eq!(state(&ledger, &dropoff), TaskState::Queued);
    end(&mut ledger, pickup, complete);
    assert_eq!(row(&ledger, &dropoff).links_open(), 1);
    assert_eq!(state(&ledger, &dropoff), TaskState::Queued);
    end(&mut ledger, other, complete);
    assert_eq!(state(&ledger, &dropoff), TaskState::Assigned);
}

#[test]
fn late_word_about_a_completed_link_does_not_count_twice() {
    let mut ledger = ledger();
    let pickup = assigned(&mut ledger, "pickup");
    let other = assigned(&mut ledger, "other");
    let dropoff = submit(&mut ledger, C1, Scope::Fleet, &after("dropoff", &[pickup, other]));
    end(&mut ledger, pickup, complete);
    let cancel = ledger.entry("op1", C1, Scope::Fleet, Action::Cancel { task: pickup });
    assert_ne!(enter_one(&mut ledger, C1, cancel), Verdict::Granted);
    assert_eq!(row(&ledger, &dropoff).links_open(), 1);
}

#[test]
fn task_fails_with_its_link_and_so_do_those_behind_it() {
    let mut ledger = ledger();
    let first = assigned(&mut ledger, "first");
    let second = submit(&mut ledger, C1, Scope::Fleet, &after("second", &[first]));
    let third = submit(&mut ledger, C2, Scope::Fleet, &after("third", &[second]));
    end(&mut ledger, first, fail);
    assert_eq!(state(&ledger, &second), TaskState::Failed);
    assert_eq!(state(&ledger, &third), TaskState::Failed);
    assert_eq!(
        ledger.queue.history(&third).last().unwrap().what.as_str(),
        "linked-task-ended"
    );
}

#[test]
fn task_that_links_to_an_ended_one_fails_at_once_and_to_an_unknown_one_waits() {
    let mut ledger = ledger();
    let first = assigned(&mut ledger, "first");
    let cancel = ledger.entry("op1", C1, Scope::Fleet, Action::Cancel { task: first });
    enter_one(&mut ledger, C1, cancel);
    let dead = submit(&mut ledger, C1, Scope::Fleet, &after("dead", &[first]));
    assert_eq!(state(&ledger, &dead), TaskState::Failed);
    let later = ledger.fleet.submit("op1", C3, 40, Scope::Fleet, &task("later"));
    let later_id = TaskId::from(later.id(&ledger.fleet.chain));
    let waits = submit(&mut ledger, C1, Scope::Fleet, &after("waits", &[later_id]));
    assert_eq!(state(&ledger, &waits), TaskState::Queued);
    assert_eq!(enter_one(&mut ledger, C3, later), Verdict::Granted);
    assert_eq!(state(&ledger, &waits), TaskState::Queued);
    end(&mut ledger, later_id, complete);
    assert_eq!(state(&ledger, &waits), TaskState::Assigned);
}

#[test]
fn expired_link_ends_those_that_wait_for_it_in_the_same_block() {
    let mut ledger = ledger();
    let deadline = Some(ledger.queue.time().plus_ms(300));
    let first = submit(
        &mut ledger,
        C1,
        Scope::Fleet,
        &Task {
            deadline,
            ..task("first")
        },
    );
    let linked = Task {
        deadline: deadline.map(|time| time.plus_ms(1)),
        ..after("second", &[first])
    };
    let second = submit(&mut ledger, C1, Scope::Fleet, &linked);
    let outcome = ledger.block(vec![], 1_000);
    assert_eq!(state(&ledger, &first), TaskState::Expired);
    assert_eq!(state(&ledger, &second), TaskState::Failed, "its link ended first");
    assert_eq!(outcome.outcomes.len(), 2);
}

#[test]
fn clusters_own_tasks_fail_with_a_link_in_their_log_at_once_and_elsewhere_with_the_block() {
    let mut ledger = ledger();
    let near = submit(&mut ledger, C1, Scope::Cluster, &task("near"));
    let behind_near = submit(&mut ledger, C1, Scope::Cluster, &after("behind-near", &[near]));
    let far = assigned(&mut ledger, "far");
    let behind_far = submit(&mut ledger, C1, Scope::Cluster, &after("behind-far", &[far]));
    end(&mut ledger, near, fail);
    assert_eq!(state(&ledger, &behind_near), TaskState::Failed);
    let before_the_block = ledger.beat(C1);
    let cancel = ledger.entry("op1", C2, Scope::Fleet, Action::Cancel { task: far });
    enter_one(&mut ledger, C2, cancel);
    assert_eq!(
        state(&ledger, &behind_far),
        TaskState::Queued,
        "its log does not know yet"
    );
    ledger.block(vec![before_the_block], 100);
    assert_eq!(
        state(&ledger, &behind_far),
        TaskState::Queued,
        "this batch stood below that height"
    );
    contact(&mut ledger, &[C1]);
    assert_eq!(state(&ledger, &behind_far), TaskState::Failed);
}

#[test]
fn mark_of_an_ended_link_goes_when_the_task_is_queued_again_and_comes_back_if_the_link_has_still_ended() {
    let requeue = |ledger: &mut Ledger, cluster, task| {
        let (scope, cause) = (row(ledger, &task).scope(), Cause::Operator);
        let entry = ledger.entry("op1", cluster, scope, Action::Requeue { task, cause });
        assert_eq!(enter_one(ledger, cluster, entry), Verdict::Granted);
    };
    let marked_at = |ledger: &Ledger, id| row(ledger, &id).standing.ends_at.map(|(height, _)| height);
    for is_link_queued_again in [true, false] {
        let mut ledger = ledger();
        let far = assigned(&mut ledger, "far");
        let behind = submit(&mut ledger, C1, Scope::Cluster, &after("behind", &[far]));
        end(&mut ledger, far, fail);
        let first = ledger.queue.height();
        assert_eq!(marked_at(&ledger, behind), Some(first));
        contact(&mut ledger, &[C1]);
        assert_eq!(state(&ledger, &behind), TaskState::Failed);
        if is_link_queued_again {
            requeue(&mut ledger, C2, far);
        }
        requeue(&mut ledger, C1, behind);
        let executed = ledger.queue.height();
        assert_eq!(state(&ledger, &behind), TaskState::Queued);
        let (mark, then) = if is_link_queued_again {
            (None, TaskState::Queued)
        } else {
            (Some(executed), TaskState::Failed)
        };
        assert_eq!(marked_at(&ledger, behind), mark);
        contact(&mut ledger, &[C1]);
        assert_eq!(state(&ledger, &behind), then);
    }
}

#[test]
fn deadline_that_has_passed_ends_a_task_that_is_queued_again_whatever_its_links() {
    let mut ledger = ledger();
    let deadline = Some(ledger.queue.time().plus_ms(300));
    let id = submit(&mut ledger, C1, Scope::Cluster, &Task { deadline, ..task("k") });
    ledger.block(vec![], 1_000);
    contact(&mut ledger, &[C1]);
    assert_eq!(state(&ledger, &id), TaskState::Expired);
    let cause = Cause::Operator;
    let entry = ledger.entry("op1", C1, Scope::Cluster, Action::Requeue { task: id, cause });
    assert_eq!(enter_one(&mut ledger, C1, entry), Verdict::Granted);
    assert_eq!(state(&ledger, &id), TaskState::Queued);
    contact(&mut ledger, &[C1]);
    assert_eq!(state(&ledger, &id), TaskState::Expired);
}

#[test]
fn task_that_is_queued_again_ends_with_a_link_of_which_nothing_is_kept_any_more() {
    let retention = |lines| Retention {
        blocks: 4,
        rows: 100,
        bytes: 1_000_000,
        lines,
    };
    let mut ledger = ledger();
    ledger.queue = ledger.queue.clone().with_retention(retention(100));
    let far = assigned(&mut ledger, "far");
    let behind = submit(&mut ledger, C1, Scope::Cluster, &after("behind", &[far]));
    end(&mut ledger, far, fail);
    contact(&mut ledger, &[C1]);
    assert_eq!(state(&ledger, &behind), TaskState::Failed);
    while ledger.queue.retired(&far).is_none() {
        ledger.block(vec![], 100);
    }
    ledger.queue = ledger.queue.clone().with_retention(retention(0));
    let cause = Cause::Operator;
    let entry = ledger.entry("op1", C1, Scope::Cluster, Action::Requeue { task: behind, cause });
    let batch = ledger.granted(C1, vec![entry]);
    ledger.block(vec![], 100);
    assert_eq!(ledger.queue.state_of(&far), None);
    assert_eq!(verdicts(&ledger.block(vec![batch], 100)), [Verdict::Granted]);
    assert_eq!(state(&ledger, &behind), TaskState::Queued);
    contact(&mut ledger, &[C1]);
    assert_eq!(state(&ledger, &behind), TaskState::Failed);
}
