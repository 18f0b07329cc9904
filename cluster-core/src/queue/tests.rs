//! Claims about the queue, rule by rule. Random logs stand in `random.rs`.

use common::{
    entry::{Action, Cause, Fence, LogEntry, Progress},
    ids::{Assignment, ClusterId, Height, HolderCounter, LogIndex, RaftNodeId, TaskId},
    task::{AfterCustody, Constraints, Scope, Task, TaskState},
    testing::{ClusterLog, Fleet, GENESIS_TIME, place_in, task},
    verdict::{Reason, Verdict},
    wire::op::Finality,
};

use super::{CLAIMS_PER_DEVICE_MAX, ClusterQueue, QueueEvent};
use crate::testing::{OWN, TestCluster, closed, verdict};

fn rejected(reason: Reason) -> Verdict {
    Verdict::Rejected(reason)
}

fn linked(key: &str, after: TaskId) -> Task {
    Task {
        after: vec![after].try_into().unwrap(),
        ..task(key)
    }
}

fn requeue(task: TaskId, fence: Fence, renewed_at: LogIndex) -> Action {
    let cause = Cause::LeaseEnded { fence, renewed_at };
    Action::Requeue { task, cause }
}

// Numbers, static verdicts, authors.

#[test]
fn retry_gets_the_same_answer_and_enters_no_batch() {
    let mut c = TestCluster::new();
    let entry = c.submit_entry("op1", Scope::Cluster, &task("k"));
    let first = c.apply(LogEntry::Author(entry.clone()));
    let again = c.apply(LogEntry::Author(entry));
    assert_eq!(verdict(&first), Verdict::Granted);
    assert_eq!(again.answer, first.answer, "index included");
    assert!(again.events.is_empty());
    assert_eq!(c.queue.batcher().open_len(), 1);
}

#[test]
fn same_number_with_other_content_is_a_conflict_and_changes_nothing() {
    let mut c = TestCluster::new();
    let kept = c.submit("op1", Scope::Cluster, &task("k"));
    let other = c.fleet.submit("op1", OWN, 1, Scope::Cluster, &task("other"));
    let applied = c.apply(LogEntry::Author(other));
    assert_eq!(verdict(&applied), rejected(Reason::Conflict));
    assert_eq!(c.queue.task_rows().len(), 1);
    assert_eq!(c.state(&kept), TaskState::Queued);
    assert_eq!(c.queue.batcher().open_len(), 1);
}

#[test]
fn refused_entry_uses_up_its_number_and_is_in_a_batch_with_its_reason() {
    let mut c = TestCluster::new();
    let nothing = TaskId([9; 32]);
    let entry = c.entry("op1", Scope::Cluster, Action::Cancel { task: nothing });
    let first = c.apply(LogEntry::Author(entry.clone()));
    assert_eq!(verdict(&first), rejected(Reason::UnknownTask));
    assert_eq!(c.apply(LogEntry::Author(entry)).answer, first.answer);
    c.cut();
    let batch = c.queue.batcher().outbox().next().unwrap();
    assert_eq!(batch.entries.len(), 1);
    assert_eq!(batch.entries[0].verdict, rejected(Reason::UnknownTask));
}

#[test]
fn forged_unknown_and_foreign_entries_are_no_ops_in_no_batch() {
    let mut c = TestCluster::new();
    let mut forged = c.submit_entry("op1", Scope::Cluster, &task("k"));
    forged.signature = c.fleet.submit("op1", OWN, 7, Scope::Cluster, &task("k")).signature;
    let stranger = common::testing::device_key("stranger");
    let mut draft = c.fleet.draft("op1", OWN, 1, Scope::Cluster, Action::Submit);
    draft.author = common::ids::DeviceId([3; 32]);
    let unknown = common::entry::SignedEntry::submit(&stranger, &c.fleet.chain, draft, &task("k"));
    let foreign = c.fleet.submit("op1", ClusterId(1), 1, Scope::Cluster, &task("k"));
    for (entry, reason) in [
        (forged.clone(), Reason::Malformed),
        (unknown, Reason::UnknownKey),
        (foreign, Reason::WrongCluster),
    ] {
        assert_eq!(verdict(&c.apply(LogEntry::Author(entry))), rejected(reason));
    }
    assert_eq!((c.queue.task_rows().len(), c.queue.batcher().open_len()), (0, 0));
    // The number that the forgery named is still free for its author.
    let genuine = c.fleet.submit("op1", OWN, 1, Scope::Cluster, &task("k"));
    assert_eq!(verdict(&c.apply(LogEntry::Author(genuine))), Verdict::Granted);
}

#[test]
fn entry_committed_above_its_height_is_expired() {
    let mut c = TestCluster::new();
    c.block(&[], 20);
    let mut sign = |height| {
        let number = c.number("op1");
        let mut draft = c.fleet.draft("op1", OWN, number, Scope::Cluster, Action::Submit);
        draft.not_after_height = Height(height);
        let key = c.fleet.key("op1");
        common::entry::SignedEntry::submit(&key, &c.fleet.chain, draft, &task(&format!("k{height}")))
    };
    let (late, in_time) = (sign(0), sign(1));
    assert_eq!(verdict(&c.apply(LogEntry::Author(late))), rejected(Reason::Expired));
    assert_eq!(verdict(&c.apply(LogEntry::Author(in_time))), Verdict::Granted);
}

#[test]
fn only_who_has_the_role_may_act() {
    let mut c = TestCluster::new();
    let id = c.submit("c1-1", Scope::Cluster, &task("k"));
    assert_eq!(c.claim("op1", id), rejected(Reason::Denied), "an operator is no drone");
    assert_eq!(
        c.claim("c2-1", id),
        rejected(Reason::Denied),
        "a drone of another cluster"
    );
    assert_eq!(c.cancel("c1-2", id), rejected(Reason::Denied), "not the author");
    let validator = c.entry("v1", Scope::Cluster, Action::Cancel { task: id });
    assert_eq!(verdict(&c.apply(LogEntry::Author(validator))), rejected(Reason::Denied));
    let force = Action::ForceRequeue { task: id };
    assert_eq!(c.author("c1-1", Scope::Cluster, force), rejected(Reason::Denied));
    assert_eq!(c.cancel("c1-1", id), Verdict::Granted, "its author");
}

// Submit and task keys.

#[test]
fn same_key_of_one_author_is_one_task() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let again = c.submit_entry("op1", Scope::Cluster, &task("k"));
    assert_eq!(
        verdict(&c.apply(LogEntry::Author(again))),
        rejected(Reason::DuplicateOf(id))
    );
    let changed = Task {
        priority: 7,
        ..task("k")
    };
    let changed = c.submit_entry("op1", Scope::Cluster, &changed);
    assert_eq!(
        verdict(&c.apply(LogEntry::Author(changed))),
        rejected(Reason::KeyConflict(id))
    );
    let another = c.submit("c1-1", Scope::Cluster, &task("k"));
    assert_ne!(another, id, "another author's key is another task");
}

#[test]
fn task_for_another_cluster_is_refused_in_this_ones_own_queue() {
    let mut c = TestCluster::new();
    let elsewhere = Task {
        constraints: Constraints {
            cluster: Some(ClusterId(1)),
            ..Constraints::default()
        },
        ..task("k")
    };
    let entry = c.submit_entry("op1", Scope::Cluster, &elsewhere);
    assert_eq!(
        verdict(&c.apply(LogEntry::Author(entry))),
        rejected(Reason::Constrained)
    );
}

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

// Batches.

#[test]
fn every_member_builds_the_same_batches_and_a_cut_names_the_open_one() {
    let mut c = TestCluster::new();
    c.submit("op1", Scope::Cluster, &task("k"));
    assert_eq!(
        closed(&c.apply(LogEntry::Cut { seq: 2u64.into_seq() })),
        [],
        "not the open one"
    );
    assert_eq!(closed(&c.cut()), [1u64.into_seq()]);
    assert_eq!(closed(&c.cut()), [], "nothing is open");
    let batch = c.queue.batcher().outbox().next().unwrap().clone();
    assert_eq!((batch.header.first_index, batch.header.count), (LogIndex(1), 1));
    let log = c.log.clone();
    let fresh = c.fresh();
    let other = c.replay(fresh, &log);
    assert_eq!(other.to_bytes(), c.queue.to_bytes());
    assert_eq!(other.digest(), c.queue.digest());
}

trait IntoSeq {
    fn into_seq(self) -> common::ids::BatchSeq;
}

impl IntoSeq for u64 {
    fn into_seq(self) -> common::ids::BatchSeq {
        common::ids::BatchSeq(self)
    }
}

#[test]
fn batch_closes_before_the_entry_that_would_pass_its_count() {
    let mut c = TestCluster::new();
    let max = common::limits::ENTRIES_PER_BATCH_MAX;
    for i in 0..max {
        let entry = c.entry(
            "op1",
            Scope::Cluster,
            Action::Cancel {
                task: TaskId([i as u8; 32]),
            },
        );
        assert_eq!(closed(&c.apply(LogEntry::Author(entry))), []);
    }
    let before = c.queue.applied().0;
    let entry = c.entry("op1", Scope::Cluster, Action::Cancel { task: TaskId([1; 32]) });
    assert_eq!(closed(&c.apply(LogEntry::Author(entry))), [1u64.into_seq()]);
    let batch = c.queue.batcher().outbox().next().unwrap();
    assert_eq!((batch.header.count as usize, batch.header.cut), (max, before));
    assert_eq!(c.queue.batcher().open_len(), 1);
}

#[test]
fn batch_closes_before_the_entry_that_would_pass_its_bytes() {
    let mut c = TestCluster::new();
    for i in 0..20 {
        let big = Task {
            payload: vec![7; 8 * 1024].try_into().unwrap(),
            ..task(&format!("k{i}"))
        };
        c.submit("op1", Scope::Cluster, &big);
    }
    let sizes: Vec<u64> = c.queue.batcher().outbox().map(|batch| batch.bytes).collect();
    assert_eq!(sizes.len(), 2);
    assert!(sizes.iter().all(|bytes| (57_000..=65_536).contains(bytes)), "{sizes:?}");
}

#[test]
fn beat_is_empty_and_only_while_nothing_is_pending() {
    let mut c = TestCluster::new();
    assert_eq!(closed(&c.beat()), [1u64.into_seq()]);
    assert_eq!(closed(&c.beat()), [], "the outbox is not empty");
    let batches = c.certified();
    assert_eq!(batches[0].header.count, 0);
    c.block(&batches, 20);
    c.submit("op1", Scope::Cluster, &task("k"));
    assert_eq!(closed(&c.beat()), [], "the open batch is not empty");
}

#[test]
fn block_closes_the_open_batch_at_the_height_before_it() {
    let mut c = TestCluster::new();
    c.submit("op1", Scope::Cluster, &task("k"));
    let at = c.next_position();
    let applied = c.block(&[], 20);
    assert_eq!(closed(&applied), [1u64.into_seq()]);
    let batch = c.queue.batcher().outbox().next().unwrap();
    assert_eq!((batch.header.global_height, batch.header.cut), (Height(0), at));
    c.submit("op1", Scope::Cluster, &task("k2"));
    c.cut();
    let batch = c.queue.batcher().outbox().nth(1).unwrap();
    assert_eq!(batch.header.global_height, Height(1));
}

#[test]
fn final_batches_leave_the_outbox_in_order_and_their_rows_become_final() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    assert_eq!(c.queue.task_row(&id).unwrap().finality, Finality::ClusterCommitted);
    assert_eq!(c.queue.history(&id).len(), 1);
    assert_eq!(c.queue.history(&id)[0].height, None);
    c.cut();
    c.hold("c1-1", id);
    c.cut();
    let batches = c.certified();
    let applied = c.block(&batches[..1], 20);
    assert!(applied.events.contains(&QueueEvent::BatchFinal {
        seq: 1u64.into_seq(),
        height: Height(1)
    }));
    assert_eq!(
        c.queue.task_row(&id).unwrap().finality,
        Finality::ClusterCommitted,
        "its claim is not final"
    );
    let heights = |c: &TestCluster| {
        c.queue
            .history(&id)
            .iter()
            .map(|event| event.height)
            .collect::<Vec<_>>()
    };
    assert_eq!(heights(&c), [Some(Height(1)), None]);
    let applied = c.block(&batches[1..], 20);
    assert_eq!(heights(&c), [Some(Height(1)), Some(Height(2))]);
    assert_eq!(
        c.queue.task_row(&id).unwrap().finality,
        Finality::Final {
            height: Height(2),
            verdict: Verdict::Granted
        }
    );
    let cut = batches[1].header.cut.index;
    assert!(applied.events.iter().any(|event| matches!(
        event,
        QueueEvent::BlockApplied { own_cut: Some(index), .. } if *index == cut
    )));
    assert_eq!(c.queue.batcher().outbox().len(), 0);
    assert_eq!(c.queue.batcher().pending_bytes(), 0);
}

#[test]
fn final_batch_unlike_the_own_one_quarantines_and_changes_nothing_else() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    c.cut();
    let mut forked = ClusterLog::new(&c.fleet, OWN);
    let other = forked.beat(&c.fleet);
    let applied = c.block(std::slice::from_ref(&other), 20);
    let held = c.queue.batcher().outbox().next().unwrap().digest;
    let conflict = *c.queue.conflict().unwrap();
    assert_eq!(
        (conflict.held, conflict.final_digest),
        (Some(held), other.digest(&c.fleet.chain))
    );
    assert_eq!(applied.events, [QueueEvent::Quarantined(conflict)]);
    assert_eq!(c.queue.global_height(), Height(0));
    assert_eq!(c.state(&id), TaskState::Queued);
}

#[test]
fn roster_changes_in_its_batch_and_signs_from_the_next() {
    let mut c = TestCluster::new();
    let old = c.queue.roster().clone();
    let mut members = old.members.clone().into_inner();
    members[2].raft = RaftNodeId::new(members[2].raft.idx(), 2);
    let roster = common::roster::Roster {
        members: members.try_into().unwrap(),
    };
    let change = common::batch::RosterChange { roster: roster.clone() };
    let applied = c.apply(LogEntry::Roster(change));
    assert_eq!(verdict(&applied), Verdict::Granted);
    c.finalize(20);
    c.beat();
    let next = c.queue.batcher().outbox().next().unwrap();
    assert_eq!(
        (next.header.seq, next.header.roster),
        (2u64.into_seq(), roster.digest())
    );
    let cursor = c.queue.global().cursor(OWN).unwrap();
    assert_eq!(*cursor.roster, roster);
    // Unordered, and with a device of another cluster.
    let mut foreign = roster.members.clone().into_inner();
    foreign[2].raft = RaftNodeId::new(c.fleet.idx("c2-1"), 1);
    for (members, reason) in [
        (roster.members.iter().rev().copied().collect(), Reason::Malformed),
        (foreign, Reason::WrongCluster),
    ] {
        let roster = common::roster::Roster {
            members: members.try_into().unwrap(),
        };
        let applied = c.apply(LogEntry::Roster(common::batch::RosterChange { roster }));
        assert_eq!(verdict(&applied), rejected(reason));
    }
    assert_eq!(c.queue.batcher().open_len(), 0);
    assert_eq!(*c.queue.roster(), roster);
}

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

#[test]
fn views_are_in_order_of_ids_with_a_limit_and_counts_add_up() {
    let mut c = TestCluster::new();
    let mut ids: Vec<TaskId> = (0..5)
        .map(|i| c.submit("op1", Scope::Cluster, &task(&format!("k{i}"))))
        .collect();
    ids.sort_unstable();
    c.hold("c1-1", ids[2]);
    let (first, more) = c.queue.task_views(&[], None, 3);
    assert!(more);
    assert_eq!(first.iter().map(|view| view.id).collect::<Vec<_>>(), ids[..3]);
    let (rest, more) = c.queue.task_views(&[TaskState::Queued], Some(&ids[1]), 3);
    assert!(!more);
    assert_eq!(rest.iter().map(|view| view.id).collect::<Vec<_>>(), ids[3..]);
    let mut counts = [0; 10];
    counts[TaskState::Queued as usize] = 4;
    counts[TaskState::Claimed as usize] = 1;
    assert_eq!(c.queue.counts(), counts);
}

#[test]
fn most_urgent_work_comes_first() {
    let mut c = TestCluster::new();
    let with = |key: &str, priority, deadline: Option<u64>| Task {
        priority,
        deadline: deadline.map(|ms| GENESIS_TIME.plus_ms(ms)),
        ..task(key)
    };
    let later = c.submit("op1", Scope::Cluster, &with("later", 100, Some(9_000)));
    let whenever = c.submit("op1", Scope::Cluster, &with("whenever", 100, None));
    let soon = c.submit("op1", Scope::Cluster, &with("soon", 100, Some(5_000)));
    let first = c.submit("op1", Scope::Cluster, &with("first", 200, None));
    assert_eq!(c.queue.claimable(10), [first, soon, later, whenever]);
    assert_eq!(c.queue.claimable(2), [first, soon]);
}

// Snapshots.

#[test]
fn snapshot_of_another_fleet_or_cluster_or_with_a_flipped_bit_is_refused() {
    let mut c = TestCluster::new();
    let id = c.assigned("op1", &task("k"));
    c.hold("c1-1", id);
    c.submit("op1", Scope::Cluster, &task("own"));
    let bytes = c.queue.to_bytes();
    let genesis = c.queue.genesis_file().clone();
    let restored = ClusterQueue::from_bytes(genesis.clone(), OWN, &bytes).unwrap();
    assert_eq!(restored.to_bytes(), bytes);
    assert_eq!(restored.digest(), c.queue.digest());
    let wrong_cluster = ClusterQueue::from_bytes(genesis.clone(), ClusterId(1), &bytes);
    assert!(matches!(wrong_cluster, Err(super::SnapshotError::WrongCluster { .. })));
    let other = std::sync::Arc::new(Fleet::new(1, 3, 4).genesis);
    assert!(matches!(
        ClusterQueue::from_bytes(other, OWN, &bytes),
        Err(super::SnapshotError::WrongChain { .. })
    ));
    let mut trailing = bytes.clone();
    trailing.push(0);
    assert!(ClusterQueue::from_bytes(genesis.clone(), OWN, &trailing).is_err());
    assert!(ClusterQueue::from_bytes(genesis, OWN, &bytes[..bytes.len() / 2]).is_err());
}
