//! Numbers, static verdicts, authors, submissions.

use common::{
    entry::{Action, LogEntry},
    ids::{ClusterId, Height, TaskId},
    task::{Constraints, Scope, Task, TaskState},
    testing::task,
    verdict::{Reason, Verdict},
};

use super::rejected;
use crate::testing::{OWN, TestCluster, verdict};

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
