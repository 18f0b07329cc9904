//! What the global tier decides, and how rows follow it.

use common::{
    entry::{Action, Cause},
    ids::{Assignment, ClusterId, Height, HolderCounter, TaskId},
    task::{Scope, Task, TaskState},
    testing::{ClusterLog, GENESIS_TIME, place_in, task},
    verdict::{Reason, Verdict},
    wire::op::Finality,
};

use super::{linked, rejected};
use crate::{
    queue::{QueueEvent, RETENTION, Retention},
    testing::{OWN, TestCluster},
};

// Fleet scope.

#[test]
fn fleet_task_is_queued_until_a_block_assigns_it() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Fleet, &task("k"));
    assert_eq!(c.state(&id), TaskState::Queued);
    assert_eq!(c.claim("c1-1", id), rejected(Reason::NotInCustody));
    c.finalize(20);
    let view = c.queue.task_view(&id).unwrap();
    assert_eq!((view.state, view.cluster), (TaskState::Assigned, Some(OWN)));
    assert!(view.custody_until.is_some());
    let fence = c.hold("c1-1", id);
    assert_eq!(fence.assignment, Assignment(1));
    assert_eq!(c.complete("c1-1", id, fence), Verdict::Granted);
    c.finalize(20);
    assert_eq!(c.queue.global().task(&id).unwrap().state(), TaskState::Completed);
    assert_eq!(c.state(&id), TaskState::Completed);
}

#[test]
fn task_submitted_elsewhere_gets_a_row_when_it_is_assigned_here() {
    let mut c = TestCluster::new();
    c.beat();
    let own = c.certified();
    c.block(&own, 20);
    let mut elsewhere = ClusterLog::new(&c.fleet, ClusterId(1));
    let ours = Task {
        places: vec![place_in(0)].try_into().unwrap(),
        ..task("ours")
    };
    let theirs = Task {
        places: vec![place_in(1)].try_into().unwrap(),
        ..task("theirs")
    };
    let entries = [ours, theirs].map(|task| {
        let number = c.number("op1");
        c.fleet.submit("op1", ClusterId(1), number, Scope::Fleet, &task)
    });
    let ids = entries.clone().map(|entry| TaskId::from(entry.id(&c.fleet.chain)));
    let batch = elsewhere.granted(&c.fleet, entries.to_vec());
    c.block(&[batch], 20);
    assert_eq!(c.state(&ids[0]), TaskState::Assigned);
    assert_eq!(c.queue.task_row(&ids[0]).unwrap().through, ClusterId(1));
    assert!(c.queue.task_row(&ids[1]).is_none(), "assigned to the other cluster");
    assert_eq!(c.claim("c1-2", ids[0]), Verdict::Granted);
}

#[test]
fn claim_under_another_assignment_number_is_fenced() {
    let mut c = TestCluster::new();
    let id = c.assigned("op1", &task("k"));
    let claim = Action::Claim {
        task: id,
        assignment: Assignment(7),
        counter: HolderCounter(1),
    };
    assert_eq!(c.author("c1-1", Scope::Fleet, claim), rejected(Reason::Fenced));
}

#[test]
fn operators_entries_of_fleet_scope_take_effect_with_their_block() {
    let mut c = TestCluster::new();
    let id = c.assigned("op1", &task("k"));
    let fence = c.hold("c1-1", id);
    assert_eq!(c.cancel("op1", id), Verdict::Granted, "accepted for ordering");
    assert_eq!(c.state(&id), TaskState::Claimed, "not yet");
    assert_eq!(c.queue.task_row(&id).unwrap().finality, Finality::ClusterCommitted);
    let applied = c.finalize(20);
    assert_eq!(c.state(&id), TaskState::Canceled);
    assert!(
        applied
            .events
            .iter()
            .any(|event| matches!(event, QueueEvent::HoldEnded { fence: ended, .. } if *ended == fence))
    );
    assert_eq!(c.complete("c1-1", id, fence), Verdict::Late);
}

#[test]
fn forced_requeue_of_a_fleet_task_gives_it_a_new_assignment() {
    let mut c = TestCluster::new();
    let id = c.assigned("op1", &task("k"));
    let old = c.hold("c1-1", id);
    let force = Action::ForceRequeue { task: id };
    assert_eq!(c.author("op1", Scope::Fleet, force), Verdict::Granted);
    c.finalize(20);
    assert_eq!(c.state(&id), TaskState::Assigned);
    assert!(c.queue.task_row(&id).unwrap().assignment > old.assignment);
    assert_eq!(c.start("c1-1", id, old), rejected(Reason::Fenced));
    assert_eq!(c.complete("c1-1", id, old), Verdict::Late);
    let new = c.hold("c1-2", id);
    assert!(new > old);
    c.finalize(20);
    assert_eq!(
        c.queue.global().task(&id).unwrap().standing.life,
        c.queue.task_row(&id).unwrap().life
    );
}

#[test]
fn entries_that_wait_to_become_final_are_not_undone_by_an_older_global_state() {
    let mut c = TestCluster::new();
    let id = c.assigned("op1", &task("k"));
    let fence = c.hold("c1-1", id);
    c.cut();
    let batches = c.certified();
    assert_eq!(c.start("c1-1", id, fence), Verdict::Granted);
    c.block(&batches, 20);
    assert_eq!(c.queue.global().task(&id).unwrap().state(), TaskState::Claimed);
    assert_eq!(c.state(&id), TaskState::Underway, "this log knows more");
    c.finalize(20);
    assert_eq!(c.queue.global().task(&id).unwrap().state(), TaskState::Underway);
}

#[test]
fn second_submission_of_a_fleet_key_ends_as_a_duplicate() {
    let mut c = TestCluster::new();
    let first = c.assigned("op1", &task("k"));
    let second = c.submit("op1", Scope::Fleet, &task("k"));
    assert_ne!(first, second);
    c.finalize(20);
    let row = c.queue.task_row(&second).unwrap();
    assert_eq!(row.state(), TaskState::Canceled);
    assert_eq!(
        row.finality,
        Finality::Final {
            height: Height(2),
            verdict: rejected(Reason::DuplicateOf(first))
        }
    );
}

#[test]
fn claim_that_loses_to_a_deadline_ends_in_both_tiers() {
    let mut c = TestCluster::new();
    let urgent = Task {
        deadline: Some(GENESIS_TIME.plus_ms(1_000)),
        ..task("k")
    };
    let id = c.assigned("op1", &urgent);
    c.hold("c1-1", id);
    let applied = c.block(&[], 2_000);
    assert_eq!(c.state(&id), TaskState::Expired, "the claim was not final in time");
    assert!(
        applied
            .events
            .iter()
            .any(|event| matches!(event, QueueEvent::HoldEnded { .. }))
    );
    c.finalize(20);
    assert_eq!(c.queue.global().task(&id).unwrap().state(), TaskState::Expired);
    assert_eq!(c.state(&id), TaskState::Expired);
}

#[test]
fn deadline_of_an_own_task_ends_it_in_both_tiers_at_one_place() {
    let mut c = TestCluster::new();
    let urgent = |key: &str| Task {
        deadline: Some(GENESIS_TIME.plus_ms(1_000)),
        ..task(key)
    };
    let waiting = c.submit("op1", Scope::Cluster, &urgent("waiting"));
    let held = c.submit("op1", Scope::Cluster, &urgent("held"));
    let fence = c.hold("c1-1", held);
    c.finalize(20);
    c.block(&[], 2_000);
    assert_eq!(c.state(&waiting), TaskState::Expired);
    assert_eq!(c.state(&held), TaskState::Claimed, "begun in time");
    assert_eq!(
        c.claim("c1-2", waiting),
        rejected(Reason::WrongState(TaskState::Expired))
    );
    assert_eq!(c.release("c1-1", held, fence), Verdict::Granted);
    c.finalize(20);
    assert_eq!(c.state(&held), TaskState::Expired, "nobody may begin it any more");
    c.submit("op1", Scope::Cluster, &task("another"));
    c.finalize(20);
    for id in [waiting, held] {
        assert_eq!(c.queue.global().task(&id).unwrap().state(), TaskState::Expired);
    }
}

#[test]
fn own_task_fails_with_a_linked_fleet_task_at_the_block_that_shows_it() {
    let mut c = TestCluster::new();
    let fleet_task = c.assigned("op1", &task("fleet"));
    let own = c.submit("op1", Scope::Cluster, &linked("own", fleet_task));
    c.finalize(20);
    assert_eq!(c.state(&own), TaskState::Queued);
    c.cancel("op1", fleet_task);
    assert_eq!(c.state(&own), TaskState::Queued);
    c.finalize(20);
    assert_eq!(c.state(&own), TaskState::Failed);
    c.submit("op1", Scope::Cluster, &task("another"));
    c.finalize(20);
    assert_eq!(c.queue.global().task(&own).unwrap().state(), TaskState::Failed);
}

/// A fleet-scope task and one of the cluster's own that waits for it; both final.
fn linked_pair(c: &mut TestCluster) -> (TaskId, TaskId) {
    let near = Task {
        places: vec![place_in(0)].try_into().unwrap(),
        ..task("near")
    };
    let fleet_task = c.assigned("op1", &near);
    let own = c.submit("op1", Scope::Cluster, &linked("own", fleet_task));
    c.finalize(20);
    (fleet_task, own)
}

fn fail_for_good(c: &mut TestCluster, task: TaskId) {
    let fence = c.hold("c1-1", task);
    assert_eq!(c.fail("c1-1", task, fence, false), Verdict::Granted);
}

fn queue_again(c: &mut TestCluster, task: TaskId) {
    let (scope, cause) = (c.scope(&task), Cause::Operator);
    let verdict = c.author("op1", scope, Action::Requeue { task, cause });
    assert_eq!(verdict, Verdict::Granted);
}

/// What both tiers say of a task, once the global tier has caught up with the log.
fn in_both_tiers(c: &mut TestCluster, id: TaskId) -> TaskState {
    for _ in 0..3 {
        let height = c.queue.global_height();
        c.submit("op1", Scope::Cluster, &task(&format!("after{height}")));
        c.finalize(20);
    }
    assert_eq!(c.queue.global().task(&id).unwrap().state(), c.state(&id));
    c.state(&id)
}

#[test]
fn own_task_that_is_queued_again_after_its_link_stays_queued() {
    let mut c = TestCluster::new();
    let (fleet_task, own) = linked_pair(&mut c);
    fail_for_good(&mut c, fleet_task);
    c.finalize(20);
    assert_eq!(c.state(&own), TaskState::Failed);
    // Both at once: neither is final when the next block comes.
    queue_again(&mut c, fleet_task);
    queue_again(&mut c, own);
    c.block(&[], 20);
    assert_eq!(c.state(&own), TaskState::Queued);
    assert_eq!(in_both_tiers(&mut c, own), TaskState::Queued);
    // Its link may end it again.
    fail_for_good(&mut c, fleet_task);
    c.finalize(20);
    assert_eq!(in_both_tiers(&mut c, own), TaskState::Failed);
}

#[test]
fn own_task_that_is_queued_again_before_its_link_fails_when_that_is_final() {
    let mut c = TestCluster::new();
    let (fleet_task, own) = linked_pair(&mut c);
    fail_for_good(&mut c, fleet_task);
    c.finalize(20);
    queue_again(&mut c, own);
    c.block(&[], 20);
    assert_eq!(c.state(&own), TaskState::Queued, "the global tier has not looked yet");
    assert_eq!(c.claim("c1-2", own), rejected(Reason::Blocked));
    c.finalize(20);
    assert_eq!(c.state(&own), TaskState::Failed);
    assert_eq!(in_both_tiers(&mut c, own), TaskState::Failed);
}

#[test]
fn own_task_that_is_given_back_after_its_link_was_queued_again_stays_queued() {
    let mut c = TestCluster::new();
    let (fleet_task, own) = linked_pair(&mut c);
    let fence = c.hold("c1-1", fleet_task);
    c.finalize(20);
    assert_eq!(c.complete("c1-1", fleet_task, fence), Verdict::Granted);
    // It begins here before the global tier has decided; an operator elsewhere comes first.
    let held = c.hold("c1-2", own);
    let mut elsewhere = ClusterLog::new(&c.fleet, ClusterId(1));
    let force = Action::ForceRequeue { task: fleet_task };
    let entry = c.fleet.entry("op1", ClusterId(1), 1, Scope::Fleet, force);
    let batch = elsewhere.granted(&c.fleet, vec![entry]);
    c.block(&[batch], 20);
    assert_eq!(c.state(&fleet_task), TaskState::Assigned);
    fail_for_good(&mut c, fleet_task);
    c.finalize(20);
    let marked = |c: &TestCluster| c.queue.global().task(&own).unwrap().standing.ends_at.is_some();
    assert!(marked(&c) && c.state(&own) == TaskState::Claimed);
    queue_again(&mut c, fleet_task);
    c.finalize(20);
    assert_eq!(c.release("c1-2", own, held), Verdict::Granted);
    c.block(&[], 20);
    assert_eq!(c.state(&own), TaskState::Queued);
    assert_eq!(in_both_tiers(&mut c, own), TaskState::Queued);
    assert!(!marked(&c));
}

#[test]
fn tasks_are_counted_right_however_often_they_are_queued_again_after_their_rows_left() {
    let mut c = TestCluster::new();
    c.retain(Retention {
        blocks: 1,
        rows: 0,
        ..RETENTION
    });
    let requeue = |task| Action::Requeue {
        task,
        cause: Cause::Operator,
    };
    let (ended, back) = (c.assigned("op1", &task("ended")), c.assigned("op1", &task("back")));
    let at_once = c.submit("op1", Scope::Fleet, &task("at-once"));
    c.finalize(20);
    for round in 0..3 {
        for id in [ended, back, at_once] {
            if round == 0 || id == back {
                let fence = c.hold("c1-1", id);
                assert_eq!(c.fail("c1-1", id, fence, false), Verdict::Granted);
            }
        }
        for _ in 0..4 {
            c.finalize(20);
        }
        assert_eq!(c.queue.task_rows().len(), 0, "all rows have left");
        assert_eq!(c.author("op1", Scope::Fleet, requeue(back)), Verdict::Granted);
        if round == 1 {
            // Both in one batch: the task is closed again by the same block, in another state.
            assert_eq!(c.author("op1", Scope::Fleet, requeue(at_once)), Verdict::Granted);
            assert_eq!(
                c.author("op1", Scope::Fleet, Action::Cancel { task: at_once }),
                Verdict::Granted
            );
        }
        c.finalize(20);
        assert_eq!(c.state(&back), TaskState::Assigned);
    }
    let counted = |state: TaskState| c.queue.counts()[state as usize];
    assert_eq!(counted(TaskState::Failed), 1, "the one that was left alone");
    assert_eq!(counted(TaskState::Canceled), 1);
    assert_eq!(counted(TaskState::Assigned), 1);
    assert_eq!(c.queue.counts().iter().sum::<u32>(), 3);
    let keeping = c.fresh().with_retention(RETENTION, common::global_queue::RETENTION);
    let log = c.log.clone();
    assert_eq!(c.replay(keeping, &log).counts(), c.queue.counts());
}
