//! What readers see, and snapshots.

use std::collections::BTreeSet;

use common::{
    codec::Label,
    ids::{ClusterId, TaskId},
    limits::{ADVANCE_PART_BYTES_MAX, ADVANCE_PARTS_MAX},
    task::{Constraints, Scope, Task, TaskState},
    testing::{Fleet, GENESIS_TIME, task},
};

use crate::{
    queue::{ClusterQueue, QueueRestoring, SnapshotError},
    testing::{OWN, TestCluster},
};

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
    // A task that no drone could be granted is not offered, however urgent.
    let winch = vec![Label::new("winch").unwrap()].try_into().unwrap();
    let for_none = Task {
        priority: 255,
        constraints: Constraints {
            capabilities: winch,
            cluster: None,
        },
        ..task("for nobody")
    };
    c.submit("op1", Scope::Cluster, &for_none);
    assert_eq!(c.queue.claimable(10), [first, soon, later, whenever]);
    assert_eq!(c.queue.claimable(2), [first, soon]);
}

#[test]
fn task_leaves_the_work_of_all_for_the_hands_of_one_drone() {
    let mut c = TestCluster::new();
    let (own, fleets) = (
        c.submit("op1", Scope::Cluster, &task("own")),
        c.assigned("op1", &task("fleets")),
    );
    let [one, other] = ["c1-1", "c1-2"].map(|label| c.fleet.id(label));
    let both = BTreeSet::from([own, fleets]);
    assert_eq!(BTreeSet::from_iter(c.queue.claimable(10)), both);
    c.hold("c1-1", fleets);
    c.hold("c1-1", own);
    assert_eq!(c.queue.claimable(10), []);
    assert_eq!(BTreeSet::from_iter(c.queue.held_by(&one).map(|held| held.task)), both);
    assert_eq!(c.queue.held_by(&other).count(), 0);
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
    assert!(matches!(wrong_cluster, Err(SnapshotError::WrongCluster { .. })));
    let other = std::sync::Arc::new(Fleet::new(1, 3, 4).genesis);
    assert!(matches!(
        ClusterQueue::from_bytes(other, OWN, &bytes),
        Err(SnapshotError::WrongChain { .. })
    ));
    let mut trailing = bytes.clone();
    trailing.push(0);
    assert!(ClusterQueue::from_bytes(genesis.clone(), OWN, &trailing).is_err());
    assert!(ClusterQueue::from_bytes(genesis, OWN, &bytes[..bytes.len() / 2]).is_err());
}

fn pieces(queue: &ClusterQueue) -> Vec<(u8, Vec<u8>)> {
    let mut pieces = Vec::new();
    let put = |section, bytes: &[u8]| {
        pieces.push((section, bytes.to_vec()));
        Ok::<_, core::convert::Infallible>(())
    };
    match queue.view().write_pieces(put) {
        Ok(()) => pieces,
        Err(never) => match never {},
    }
}

/// Frames of a peer unpack to 255 times their length.
#[test]
fn snapshot_that_unpacks_to_more_than_a_state_has_is_refused_before_it_is_kept() {
    let mut c = TestCluster::new();
    c.assigned("op1", &task("k"));
    let pieces = pieces(&c.queue);
    let total: usize = pieces.iter().map(|(_, bytes)| bytes.len()).sum();
    let restore = |bytes_max: usize| {
        let mut restoring = QueueRestoring::new(c.queue.genesis_file().clone(), OWN);
        restoring.bytes_max = bytes_max as u64;
        pieces
            .iter()
            .try_for_each(|(section, bytes)| restoring.add(*section, bytes))
    };
    assert_eq!(restore(total), Ok(()));
    let max = total as u64 - 1;
    assert_eq!(restore(total - 1), Err(SnapshotError::TooLarge { max }));
}

#[test]
fn parts_beyond_those_of_one_block_are_refused_as_they_come() {
    const PARTS: u8 = 8;
    let mut c = TestCluster::new();
    c.assigned("op1", &task("k"));
    let (first, small) = pieces(&c.queue).swap_remove(0);
    let restore = |parts: &[u8]| {
        let mut restoring = QueueRestoring::new(c.queue.genesis_file().clone(), OWN);
        restoring.add(first, &small).unwrap();
        restoring.add(PARTS, parts)
    };
    // An empty part is one zero.
    assert_eq!(restore(&[0; ADVANCE_PARTS_MAX]), Ok(()));
    let refused = Err(SnapshotError::Invariant("more parts of a block than it has"));
    assert_eq!(restore(&[0; ADVANCE_PARTS_MAX + 1]), refused);
    let mut part = Vec::new();
    common::codec::append(&mut part, &vec![7_u8; ADVANCE_PART_BYTES_MAX]);
    assert_eq!(restore(&part), Ok(()));
    part.clear();
    common::codec::append(&mut part, &vec![7_u8; ADVANCE_PART_BYTES_MAX + 1]);
    assert_eq!(restore(&part), refused);
}

#[test]
fn snapshot_whose_outbox_does_not_begin_where_its_global_queue_ends_is_refused() {
    let mut c = TestCluster::new();
    c.submit("op1", Scope::Cluster, &task("k"));
    c.cut();
    let before = c.queue.clone();
    c.finalize(20);
    let mixed = ClusterQueue {
        global: c.queue.global.clone(),
        ..before.clone()
    };
    let genesis = c.queue.genesis_file().clone();
    assert!(ClusterQueue::from_bytes(genesis.clone(), OWN, &before.to_bytes()).is_ok());
    assert!(matches!(
        ClusterQueue::from_bytes(genesis, OWN, &mixed.to_bytes()),
        Err(SnapshotError::Invariant(_))
    ));
}
