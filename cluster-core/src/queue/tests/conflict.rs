//! What is computed here against what validators certified.

use common::{
    block::Roots,
    ids::{Digest, Height},
    task::{Scope, TaskState},
    testing::task,
    wire::op::Finality,
};

use crate::{
    queue::{ClusterQueue, Conflict, QueueEvent, RETENTION},
    testing::{OWN, TestCluster},
};

/// The roots that the header two above `height` will carry.
fn roots(c: &TestCluster, height: Height) -> Roots {
    let (state, outcomes) = c.blocks.roots[&height];
    Roots { state, outcomes }
}

/// Validators certify `other` for the newest height, which was computed as `computed`; two blocks later
/// this is a conflict.
fn certify_other(c: &mut TestCluster, other: Roots) -> Conflict {
    let height = c.queue.global_height();
    let computed = roots(c, height);
    c.blocks.roots.insert(height, (other.state, other.outcomes));
    c.finalize(20);
    assert_eq!(c.queue.conflict(), None, "the block above says nothing of it");
    let applied = c.finalize(20);
    let conflict = Conflict::State {
        height,
        computed,
        certified: other,
        last: height.next(),
    };
    assert_eq!(applied.events.last(), Some(&QueueEvent::Quarantined(conflict)));
    conflict
}

#[test]
fn block_that_carries_another_state_than_was_computed_is_recorded_and_nothing_is_followed() {
    let other = Digest([9; 32]);
    for is_of_outcomes in [false, true] {
        let mut c = TestCluster::new();
        let id = c.submit("op1", Scope::Cluster, &task("k"));
        c.finalize(20);
        assert!(matches!(
            c.queue.task_view(&id).unwrap().finality,
            Finality::Final { .. }
        ));
        let computed = roots(&c, Height(1));
        let certified = match is_of_outcomes {
            false => Roots {
                state: other,
                ..computed
            },
            true => Roots {
                outcomes: other,
                ..computed
            },
        };
        let conflict = certify_other(&mut c, certified);
        assert_eq!(c.queue.conflict(), Some(&conflict));
        let finality = c.queue.task_view(&id).unwrap().finality;
        assert_eq!(
            finality,
            Finality::ClusterCommitted,
            "no quorum has the state that says more"
        );
        assert!(c.queue.history(&id).iter().all(|event| event.height.is_none()));
        let global = c.queue.global().clone();
        for _ in 0..3 {
            let applied = c.finalize(20);
            let is_block = |event: &QueueEvent| matches!(event, QueueEvent::BlockApplied { .. });
            assert!(!applied.events.iter().any(is_block));
        }
        assert_eq!(*c.queue.global(), global);
    }
}

#[test]
fn snapshot_keeps_the_conflict_and_the_roots_that_are_still_to_be_compared() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    c.finalize(20);
    let restore = |c: &mut TestCluster| {
        let (bytes, genesis) = (c.queue.to_bytes(), c.queue.genesis_file().clone());
        let restored = ClusterQueue::from_bytes(genesis, OWN, &bytes).unwrap();
        assert_eq!(restored.digest(), c.queue.digest());
        c.queue = restored;
    };
    // What is compared two blocks later was computed before the state was restored.
    restore(&mut c);
    let other = Roots::default();
    let conflict = certify_other(&mut c, other);
    restore(&mut c);
    assert_eq!(c.queue.conflict(), Some(&conflict));
    c.finalize(20);
    assert_eq!(c.queue.global_height(), Height(2));
    assert_eq!(c.state(&id), TaskState::Queued);
}

#[test]
fn member_that_computes_otherwise_finds_out_two_blocks_later() {
    let mut c = TestCluster::new();
    // Another release drops ended tasks earlier.
    let other = common::global_queue::Retention {
        blocks: 1,
        rows: 0,
        ..common::global_queue::RETENTION
    };
    c.queue = c.fresh().with_retention(RETENTION, other);
    let id = c.submit("op1", Scope::Fleet, &task("k"));
    c.finalize(20);
    c.cancel("op1", id);
    let mut differs_at = None;
    while c.queue.conflict().is_none() {
        c.finalize(20);
        let height = c.queue.global_height();
        if differs_at.is_none() && c.queue.global().state_root() != c.validators.state_root() {
            differs_at = Some(height);
        }
        assert!(height < Height(20), "it never notices");
    }
    let Some(Conflict::State { height, last, .. }) = c.queue.conflict() else {
        panic!("{:?}", c.queue.conflict());
    };
    assert_eq!((Some(*height), *last), (differs_at, height.next()));
}

#[test]
fn honest_blocks_raise_no_conflict_across_restored_states() {
    let mut c = TestCluster::new();
    for round in 0..40u32 {
        let scope = if round % 3 == 0 { Scope::Cluster } else { Scope::Fleet };
        let id = c.submit("op1", scope, &task(&format!("k{round}")));
        if round % 4 != 0 {
            c.finalize(20);
        }
        if round % 5 == 0 {
            c.cancel("op1", id);
        }
        c.block(&[], 500);
        if round % 7 == 0 {
            let genesis = c.queue.genesis_file().clone();
            c.queue = ClusterQueue::from_bytes(genesis, OWN, &c.queue.to_bytes()).unwrap();
        }
        assert_eq!(c.queue.conflict(), None, "round {round}");
        assert_eq!(c.queue.global().state_root(), c.validators.state_root());
    }
    assert_eq!(c.queue.global_height(), Height(70));
}
