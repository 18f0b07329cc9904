//! Claims, fences, counters, ends of leases, linked tasks.

use common::{
    entry::{Action, Cause, Fence, LogEntry, Progress},
    ids::{Assignment, LogIndex, RaftNodeId, TaskId},
    task::{AfterCustody, Constraints, Scope, Task, TaskState},
    testing::{Fleet, task},
    verdict::{Reason, Verdict},
};

use super::{linked, rejected, requeue};
use crate::{
    queue::{CLAIMS_PER_DEVICE_MAX, QueueEvent},
    testing::{TestCluster, verdict},
};

// Claims, fences, counters.

#[test]
fn one_of_two_claims_wins_and_the_fence_is_its_place_in_the_log() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let index = c.next_position().index;
    let fence = c.hold("c1-1", id);
    assert_eq!(
        fence,
        Fence {
            assignment: Assignment(0),
            founding: c.queue.founding(),
            index
        }
    );
    assert_eq!(c.claim("c1-2", id), rejected(Reason::WrongState(TaskState::Claimed)));
    let holder = c.queue.held(&id).unwrap().device;
    assert_eq!(holder, c.fleet.id("c1-1"));
}

#[test]
fn holder_reports_and_completes_and_nobody_else_does() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let fence = c.hold("c1-1", id);
    assert_eq!(c.start("c1-2", id, fence), rejected(Reason::NotHolder));
    assert_eq!(c.complete("c1-2", id, fence), rejected(Reason::NotHolder));
    for (progress, state) in [
        (Progress::Started, TaskState::Underway),
        (Progress::Paused, TaskState::Paused),
        (Progress::Resumed, TaskState::Underway),
        (Progress::Percent(40), TaskState::Underway),
    ] {
        let action = Action::Progress {
            task: id,
            fence,
            progress,
        };
        assert_eq!(c.author("c1-1", Scope::Cluster, action), Verdict::Granted);
        assert_eq!(c.state(&id), state);
    }
    assert_eq!(c.queue.task_view(&id).unwrap().percent, 40);
    assert_eq!(c.complete("c1-1", id, fence), Verdict::Granted);
    assert_eq!(c.state(&id), TaskState::Completed);
    assert_eq!(
        c.complete("c1-1", id, fence),
        rejected(Reason::WrongState(TaskState::Completed))
    );
}

#[test]
fn old_fence_is_refused_and_an_old_result_is_late() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let old = c.hold("c1-1", id);
    assert_eq!(c.release("c1-1", id, old), Verdict::Granted);
    let new = c.hold("c1-2", id);
    assert!(new > old);
    assert_eq!(c.start("c1-1", id, old), rejected(Reason::Fenced));
    assert_eq!(c.release("c1-1", id, old), rejected(Reason::Fenced));
    assert_eq!(c.fail("c1-1", id, old, true), Verdict::Late);
    assert_eq!(c.complete("c1-1", id, old), Verdict::Late);
    assert_eq!(c.fence(&id), new, "the holder is the same");
    assert_eq!(
        c.queue.task_row(&id).unwrap().life.late_result.unwrap().device,
        c.fleet.id("c1-1")
    );
    let made_up = Fence {
        index: LogIndex(10_000),
        ..new
    };
    assert_eq!(
        c.complete("c1-1", id, made_up),
        rejected(Reason::Fenced),
        "a fence from the future was never given"
    );
}

#[test]
fn failure_queues_again_while_tries_are_left() {
    let mut c = TestCluster::new();
    let twice = Task {
        attempts_max: 2,
        ..task("k")
    };
    let id = c.submit("op1", Scope::Cluster, &twice);
    let fence = c.hold("c1-1", id);
    assert_eq!(c.fail("c1-1", id, fence, true), Verdict::Granted);
    assert_eq!(c.state(&id), TaskState::Queued);
    let fence = c.hold("c1-1", id);
    assert_eq!(c.fail("c1-1", id, fence, true), Verdict::Granted);
    assert_eq!(c.state(&id), TaskState::Failed);
    let again = Action::Requeue {
        task: id,
        cause: Cause::Operator,
    };
    assert_eq!(c.author("c1-1", Scope::Cluster, again), rejected(Reason::Denied));
    assert_eq!(c.author("op1", Scope::Cluster, again), Verdict::Granted);
    assert_eq!(c.state(&id), TaskState::Queued);
}

#[test]
fn release_signed_before_a_newer_renewal_changes_nothing() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let fence = c.hold("c1-1", id);
    let counter = c.counter("c1-1");
    let release = Action::Release {
        task: id,
        fence,
        counter,
    };
    let fail = Action::Fail {
        task: id,
        fence,
        counter,
        retriable: true,
    };
    // The drone restarted, and won its lease back before the old entries arrived.
    assert_eq!(c.renew("c1-1"), Verdict::Granted);
    assert_eq!(c.author("c1-1", Scope::Cluster, release), rejected(Reason::OldCounter));
    assert_eq!(c.author("c1-1", Scope::Cluster, fail), rejected(Reason::OldCounter));
    assert_eq!(c.fence(&id), fence);
    assert_eq!(c.release("c1-1", id, fence), Verdict::Granted);
}

#[test]
fn renewal_covers_all_claims_and_a_lower_one_extends_nothing() {
    let mut c = TestCluster::new();
    let ids: Vec<TaskId> = (0..3)
        .map(|i| c.submit("op1", Scope::Cluster, &task(&format!("k{i}"))))
        .collect();
    for id in &ids {
        c.hold("c1-1", *id);
    }
    let old = c.counter("c1-1");
    let index = c.next_position().index;
    assert_eq!(c.renew("c1-1"), Verdict::Granted);
    assert_eq!(
        c.author("c1-1", Scope::Cluster, Action::Renew { counter: old }),
        rejected(Reason::OldCounter)
    );
    let renewed: Vec<LogIndex> = c.queue.all_held().map(|held| held.renewed_at).collect();
    assert_eq!(renewed, [index; 3]);
    let late = c.submit("op1", Scope::Cluster, &task("late"));
    let claimed_at = c.next_position().index;
    c.hold("c1-1", late);
    assert_eq!(c.queue.held(&late).unwrap().renewed_at, claimed_at);
}

#[test]
fn renewal_is_in_no_batch_and_in_no_number_stream() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    c.hold("c1-1", id);
    let before = (
        c.queue.batcher().open_len(),
        c.queue.highest_number(&c.fleet.id("c1-1"), Default::default()),
    );
    assert_eq!(c.renew("c1-1"), Verdict::Granted);
    assert_eq!(
        before,
        (
            c.queue.batcher().open_len(),
            c.queue.highest_number(&c.fleet.id("c1-1"), Default::default())
        )
    );
}

#[test]
fn claim_with_an_old_counter_is_refused() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let stale = c.claim_action("c1-1", id);
    assert_eq!(c.renew("c1-1"), Verdict::Granted);
    assert_eq!(c.author("c1-1", Scope::Cluster, stale), rejected(Reason::OldCounter));
}

#[test]
fn drone_holds_a_bounded_number_of_tasks() {
    let mut c = TestCluster::new();
    let ids: Vec<TaskId> = (0..=CLAIMS_PER_DEVICE_MAX)
        .map(|i| c.submit("op1", Scope::Cluster, &task(&format!("k{i}"))))
        .collect();
    for id in &ids[1..] {
        c.hold("c1-1", *id);
    }
    assert_eq!(c.claim("c1-1", ids[0]), rejected(Reason::TooManyClaims));
    assert_eq!(c.claim("c1-2", ids[0]), Verdict::Granted);
}

#[test]
fn task_that_asks_for_a_capability_excludes_drones_without_it() {
    let mut c = TestCluster::new();
    let gripper = Task {
        constraints: Constraints {
            cluster: None,
            capabilities: vec![common::codec::Label::new("gripper").unwrap()].try_into().unwrap(),
        },
        ..task("k")
    };
    let id = c.submit("op1", Scope::Cluster, &gripper);
    assert_eq!(c.claim("c1-1", id), rejected(Reason::Constrained));
}

// Ends of leases.

#[test]
fn ended_lease_frees_the_task_only_by_the_leaders_word_and_without_a_newer_renewal() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let fence = c.hold("c1-2", id);
    let claimed_at = fence.index;
    let other = requeue(id, fence, claimed_at);
    assert_eq!(
        c.author("c1-3", Scope::Cluster, other),
        rejected(Reason::Denied),
        "did not lead"
    );
    assert_eq!(c.renew("c1-2"), Verdict::Granted);
    let stale = requeue(id, fence, claimed_at);
    assert_eq!(c.author("c1-1", Scope::Cluster, stale), rejected(Reason::LeaseRenewed));
    let renewed_at = c.queue.held(&id).unwrap().renewed_at;
    let good = requeue(id, fence, renewed_at);
    let old = requeue(
        id,
        Fence {
            index: LogIndex(1),
            ..fence
        },
        renewed_at,
    );
    assert_eq!(c.author("c1-1", Scope::Cluster, old), rejected(Reason::Fenced));
    assert_eq!(c.author("c1-1", Scope::Cluster, good), Verdict::Granted);
    assert_eq!(c.state(&id), TaskState::Queued);
    assert_eq!(c.queue.held_by(&c.fleet.id("c1-2")).count(), 0);
}

#[test]
fn take_back_signed_by_a_former_leader_is_refused_in_a_new_term() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let fence = c.hold("c1-2", id);
    let signed = c.entry("c1-1", Scope::Cluster, requeue(id, fence, fence.index));
    c.term = c.term.next();
    c.leader = RaftNodeId::new(c.fleet.idx("c1-3"), 1);
    assert_eq!(verdict(&c.apply(LogEntry::Author(signed))), rejected(Reason::Denied));
}

#[test]
fn vehicle_that_cannot_stop_by_itself_is_never_taken_back_by_time() {
    let mut genesis = Fleet::dev().genesis;
    let mut devices = genesis.devices.clone().into_inner();
    devices[1].stops_by_itself = false;
    genesis.devices = devices.try_into().unwrap();
    let mut c = TestCluster::of(Fleet::from_genesis(genesis));
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let fence = c.hold("c1-2", id);
    assert_eq!(
        c.author("c1-1", Scope::Cluster, requeue(id, fence, fence.index)),
        rejected(Reason::Denied)
    );
    let force = Action::ForceRequeue { task: id };
    assert_eq!(
        c.author("op1", Scope::Cluster, force),
        Verdict::Granted,
        "an operator may"
    );
    assert_eq!(c.state(&id), TaskState::Queued);
}

#[test]
fn task_that_holds_waits_in_unknown_for_its_late_result_or_an_operator() {
    for is_operator in [false, true] {
        let mut c = TestCluster::new();
        let hold = Task {
            after_custody: AfterCustody::Hold,
            ..task("k")
        };
        let id = c.submit("op1", Scope::Cluster, &hold);
        let fence = c.hold("c1-2", id);
        let leader = requeue(id, fence, fence.index);
        assert_eq!(c.author("c1-1", Scope::Cluster, leader), Verdict::Granted);
        assert_eq!(c.state(&id), TaskState::Unknown);
        assert_eq!(c.claim("c1-3", id), rejected(Reason::WrongState(TaskState::Unknown)));
        assert_eq!(c.complete("c1-3", id, fence), Verdict::Late, "not the last holder");
        assert_eq!(c.state(&id), TaskState::Unknown);
        if is_operator {
            let force = Action::ForceRequeue { task: id };
            assert_eq!(c.author("op1", Scope::Cluster, force), Verdict::Granted);
            assert_eq!(c.state(&id), TaskState::Queued);
        } else {
            assert_eq!(c.complete("c1-2", id, fence), Verdict::Granted);
            assert_eq!(c.state(&id), TaskState::Completed);
        }
    }
}

#[test]
fn holder_of_a_canceled_task_is_told_and_its_result_is_late() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let fence = c.hold("c1-2", id);
    let cancel = c.entry("op1", Scope::Cluster, Action::Cancel { task: id });
    let applied = c.apply(LogEntry::Author(cancel));
    assert!(applied.events.contains(&QueueEvent::HoldEnded {
        task: id,
        device: c.fleet.id("c1-2"),
        fence,
        state: TaskState::Canceled
    }));
    assert_eq!(c.complete("c1-2", id, fence), Verdict::Late);
    assert_eq!(c.state(&id), TaskState::Canceled);
    assert_eq!(c.cancel("op1", id), rejected(Reason::WrongState(TaskState::Canceled)));
}

// Linked tasks.

#[test]
fn linked_task_waits_for_its_predecessor() {
    let mut c = TestCluster::new();
    let pickup = c.submit("op1", Scope::Cluster, &task("pickup"));
    let dropoff = c.submit("op1", Scope::Cluster, &linked("dropoff", pickup));
    assert_eq!(c.claim("c1-1", dropoff), rejected(Reason::Blocked));
    assert_eq!(c.queue.claimable(10), [pickup]);
    let fence = c.hold("c1-1", pickup);
    c.complete("c1-1", pickup, fence);
    assert_eq!(c.queue.claimable(10), [dropoff]);
    assert_eq!(c.claim("c1-1", dropoff), Verdict::Granted);
}

#[test]
fn linked_tasks_fail_with_their_predecessor_down_the_chain() {
    let mut c = TestCluster::new();
    let first = c.submit("op1", Scope::Cluster, &task("1"));
    let second = c.submit("op1", Scope::Cluster, &linked("2", first));
    let third = c.submit("op1", Scope::Cluster, &linked("3", second));
    assert_eq!(c.cancel("op1", first), Verdict::Granted);
    assert_eq!(
        (c.state(&second), c.state(&third)),
        (TaskState::Failed, TaskState::Failed)
    );
    let fourth = c.submit("op1", Scope::Cluster, &linked("4", first));
    assert_eq!(c.state(&fourth), TaskState::Failed, "its predecessor had ended before");
    c.finalize(20);
    for id in [first, second, third, fourth] {
        assert_eq!(
            c.queue.global().task(&id).unwrap().state(),
            c.state(&id),
            "both tiers agree"
        );
    }
}

#[test]
fn requeued_task_fails_again_while_its_predecessor_has_ended() {
    let mut c = TestCluster::new();
    let first = c.submit("op1", Scope::Cluster, &task("1"));
    let second = c.submit("op1", Scope::Cluster, &linked("2", first));
    c.cancel("op1", first);
    let again = Action::Requeue {
        task: second,
        cause: Cause::Operator,
    };
    assert_eq!(c.author("op1", Scope::Cluster, again), Verdict::Granted);
    assert_eq!(c.state(&second), TaskState::Failed);
    c.finalize(20);
    assert_eq!(c.queue.global().task(&second).unwrap().state(), TaskState::Failed);
}
