//! When batches close, what is in them, when they are final.

use common::{
    entry::{Action, LogEntry},
    ids::{BatchSeq, Height, LogIndex, RaftNodeId, TaskId},
    task::{Scope, Task, TaskState},
    testing::{ClusterLog, task},
    verdict::{Reason, Verdict},
    wire::op::Finality,
};

use super::rejected;
use crate::{
    batcher::BatchConflict,
    queue::{Conflict, QueueEvent},
    testing::{OWN, TestCluster, closed, verdict},
};

// Batches.

#[test]
fn every_member_builds_the_same_batches_and_a_cut_names_the_open_one() {
    let mut c = TestCluster::new();
    c.submit("op1", Scope::Cluster, &task("k"));
    assert_eq!(
        closed(&c.apply(LogEntry::Cut { seq: BatchSeq(2) })),
        [],
        "not the open one"
    );
    assert_eq!(closed(&c.cut()), [BatchSeq(1)]);
    assert_eq!(closed(&c.cut()), [], "nothing is open");
    let batch = c.queue.batcher().outbox().next().unwrap().clone();
    assert_eq!((batch.header.first_index, batch.header.count), (LogIndex(1), 1));
    let log = c.log.clone();
    let fresh = c.fresh();
    let other = c.replay(fresh, &log);
    assert_eq!(other.to_bytes(), c.queue.to_bytes());
    assert_eq!(other.digest(), c.queue.digest());
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
    assert_eq!(closed(&c.apply(LogEntry::Author(entry))), [BatchSeq(1)]);
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
    assert_eq!(closed(&c.beat()), [BatchSeq(1)]);
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
    assert_eq!(closed(&applied), [BatchSeq(1)]);
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
        seq: BatchSeq(1),
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
    let conflict = Conflict::Batch(BatchConflict {
        seq: BatchSeq(1),
        held: Some(held),
        final_digest: other.digest(&c.fleet.chain),
    });
    assert_eq!(c.queue.conflict(), Some(&conflict));
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
    assert_eq!((next.header.seq, next.header.roster), (BatchSeq(2), roster.digest()));
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
