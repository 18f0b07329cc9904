//! Validators whose disk is full, fails, or cannot be written: they stop and say why, the others go on, and
//! the chain never forks.

use std::collections::BTreeMap;

use common::{
    codec::{decode, encode},
    ids::{ClusterId, Height},
    task::Scope,
    testing::{ClusterLog, task},
    wire::{feed::BatchReceipt, frame::FrameKind},
};
use powercut::Fault;

use super::harness::{Operator, Place, Process, V, assert_no_fork};

const C1: ClusterId = ClusterId(0);
/// `EX_IOERR`: the disk failed; a restart goes on once it does not.
const DISK: i32 = 74;
const VICTIM: &str = "v1";

/// Waits until `label` is `more` blocks higher than it was.
async fn grow(place: &Place, operator: &Operator, label: &str, more: u64) -> Height {
    let now = operator.wait(place, label, "up", |_| true).await.executed;
    let want = Height(now.0 + more);
    operator
        .wait(place, label, "higher", |status| status.executed >= want)
        .await;
    want
}

/// The disk of one validator fails where a path has `part` in it, while it stores batches and votes.
async fn fails_at_work(fault: Fault, part: &str, words: &[&str]) {
    let place = Place::new();
    let faults = place.faults(VICTIM);
    let mut running: BTreeMap<&str, Process> = V[1..].iter().map(|label| (*label, place.spawn(label))).collect();
    let victim = place.spawn_on(VICTIM, &faults);
    let operator = Operator::new(&place);
    grow(&place, &operator, VICTIM, 2).await;
    let cluster = Operator::as_device(&place, "c1-1");
    let mut log = ClusterLog::new(&place.fleet, C1);
    let mut batch = |number: u64| {
        let task = task(&format!("task-{number}"));
        let entry = place.fleet.submit("op1", C1, number, Scope::Fleet, &task);
        encode(&log.granted(&place.fleet, vec![entry]))
    };
    let acknowledged = batch(1);
    cluster.stores(VICTIM, acknowledged.clone()).await;
    faults.fail(fault, part);
    // It may or may not answer; what it does not store it does not acknowledge.
    let not_stored = batch(2);
    let receipt = cluster.call(VICTIM, FrameKind::SubmitBatch, not_stored.clone()).await;
    if part.contains("batches") {
        assert_ne!(receipt.map(|receipt| decode(&receipt)), Some(Ok(BatchReceipt::Stored)));
    }
    assert_eq!(victim.end().await, Some(DISK), "{}", place.log(VICTIM));
    let said = place.log(VICTIM);
    let last = said.lines().last().unwrap_or_default();
    for word in words {
        assert!(last.contains(word), "{word:?} is missing in {last:?}\n{said}");
    }
    // Three of four go on.
    grow(&place, &operator, "v2", 3).await;
    faults.mend();
    running.insert(VICTIM, place.spawn_on(VICTIM, &faults));
    for again in [acknowledged, not_stored] {
        cluster.answered("v2", FrameKind::SubmitBatch, again).await;
    }
    let tip = grow(&place, &operator, "v2", 3).await;
    operator
        .wait(&place, VICTIM, "where the others are", |status| status.executed >= tip)
        .await;
    let mut chains = BTreeMap::new();
    for label in V {
        chains.insert(label.to_owned(), operator.digests(label).await);
    }
    assert!(assert_no_fork(&chains) >= tip);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validator_on_a_full_disk_stops_and_goes_on_when_there_is_room() {
    fails_at_work(Fault::Full, "/data", &["data/", "no space", "make room"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_that_does_not_fit_is_not_acknowledged() {
    fails_at_work(Fault::Full, "batches-", &["batches-000000.seg", "make room"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_sync_of_the_guard_is_final_until_a_restart() {
    fails_at_work(
        Fault::SyncOnce,
        "guard.journal",
        &["guard.journal", "fsync", "start again"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_sync_of_a_block_is_final_until_a_restart() {
    fails_at_work(
        Fault::SyncOnce,
        "blocks-",
        &["blocks-000000.seg", "fsync", "start again"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validator_does_not_start_on_a_disk_that_it_cannot_write() {
    let place = Place::new();
    let faults = place.faults(VICTIM);
    faults.fail(Fault::ReadOnly, "/data");
    assert_eq!(place.spawn_on(VICTIM, &faults).end().await, Some(DISK));
    let log = place.log(VICTIM);
    assert!(log.contains("/data") && log.contains("make it writable"), "{log}");
    assert!(!place.path(VICTIM).join("data").exists(), "nothing was written");
}
