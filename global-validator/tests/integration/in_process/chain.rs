//! Validators finalize, survive crashes and catch up: the real shell, in virtual time.

use common::{
    codec::{decode, encode},
    ids::{ClusterId, Height},
    task::{Scope, TaskState},
    testing::{ClusterLog, Fleet, task},
    wire::{
        feed::{BatchReceipt, FetchByDigest, Follow, Followed},
        frame::FrameKind,
        op::{OpAnswer, OpRequest},
    },
};
use transport::ports::Disk as _;

use super::support::{Net, V};

const C1: ClusterId = ClusterId(0);

fn fleet() -> Fleet {
    Fleet::new(1, 3, 4)
}

#[tokio::test(start_paused = true)]
async fn four_validators_finalize_a_batch_and_agree_on_the_state() {
    let net = Net::started(fleet()).await;
    let mut log = ClusterLog::new(&net.fleet, C1);
    let entry = net.fleet.submit("op1", C1, 1, Scope::Fleet, &task("k"));
    let id = entry.id(&net.fleet.chain).into();
    let batch = log.granted(&net.fleet, vec![entry]);
    assert_eq!(net.submit("c1-1", "v1", &batch).await, Ok(BatchReceipt::Stored));
    for label in V {
        net.executed(label, C1, 1).await;
    }
    net.grow(2).await;
    net.assert_no_fork();
    for label in V {
        let request = OpRequest::Task {
            task: id,
            consistency: common::wire::op::Consistency::Final,
            staleness_ms_max: None,
        };
        let OpAnswer::Task { task: Some(view), .. } = net.ask(label, &request).await else {
            panic!("{label} does not know the task")
        };
        assert_eq!(view.state, TaskState::Assigned);
    }
}

#[tokio::test(start_paused = true)]
async fn follower_gets_blocks_with_the_batches_of_other_clusters_and_the_rest_by_digest() {
    let net = Net::started(Fleet::new(2, 3, 4)).await;
    let mut log = ClusterLog::new(&net.fleet, C1);
    let entry = net.fleet.submit("op1", C1, 1, Scope::Fleet, &task("k"));
    let batch = log.granted(&net.fleet, vec![entry]);
    net.submit("c1-1", "v1", &batch).await.unwrap();
    net.executed("v2", C1, 1).await;
    let follow = async |device: &str, cluster, from| -> Followed {
        let follow = Follow {
            cluster,
            from: Height(from),
            wait_ms: 5_000,
        };
        let answer = net.call(device, "v2", FrameKind::Follow, encode(&follow)).await;
        decode(&answer.unwrap()).unwrap()
    };
    let other = follow("c2-1", ClusterId(1), 1).await;
    assert_eq!(other.batches[..], *std::slice::from_ref(&batch));
    assert_eq!(other.next_seq.0, 1);
    let own = follow("c1-1", C1, 1).await;
    assert!(own.batches.is_empty());
    assert_eq!(own.next_seq.0, 2);
    assert_eq!(own.blocks.first().unwrap().block.header.height, Height(1));
    // The next block is waited for, and it comes with its proof.
    let next = follow("c1-1", C1, own.tip.0 + 1).await;
    let first = next.blocks.first().unwrap().clone();
    assert_eq!(first.block.header.height, own.tip.next());
    assert!(first.verify(&net.fleet.chain, &net.fleet.set).is_ok());
    let digest = batch.digest(&net.fleet.chain);
    let by_digest = net
        .call("c2-1", "v3", FrameKind::FeedBatch, encode(&FetchByDigest { digest }))
        .await;
    assert_eq!(by_digest.unwrap(), batch.encoded());
}

#[tokio::test(start_paused = true)]
async fn idle_chain_grows_at_its_interval() {
    let net = Net::started(fleet()).await;
    net.grow(1).await;
    let (from, at) = (net.validator("v1").height().get(), tokio::time::Instant::now());
    net.reach("v1", Height(from.0 + 10)).await;
    let seconds = at.elapsed().as_secs_f64();
    assert!((9.0..13.0).contains(&seconds), "ten idle blocks took {seconds} s");
}

#[tokio::test(start_paused = true)]
async fn one_crashed_validator_stops_nothing_and_catches_up() {
    let mut net = Net::started(fleet()).await;
    net.grow(2).await;
    let mut log = ClusterLog::new(&net.fleet, C1);
    for (round, label) in (1..).zip(V) {
        net.crash(label);
        let entry = net
            .fleet
            .submit("op1", C1, round, Scope::Fleet, &task(&format!("k{round}")));
        let batch = log.granted(&net.fleet, vec![entry]);
        let to = if label == "v1" { "v2" } else { "v1" };
        assert_eq!(net.submit("c1-1", to, &batch).await, Ok(BatchReceipt::Stored));
        net.executed(to, C1, round).await;
        // Long enough that block sync by height is needed.
        net.grow(12).await;
        net.start(label).await;
        net.executed(label, C1, round).await;
        net.grow(2).await;
        net.assert_no_fork();
    }
}

#[tokio::test(start_paused = true)]
async fn all_four_restart_and_go_on() {
    let mut net = Net::started(fleet()).await;
    let mut log = ClusterLog::new(&net.fleet, C1);
    for round in 1..=5 {
        let entry = net
            .fleet
            .submit("op1", C1, round, Scope::Fleet, &task(&format!("k{round}")));
        let batch = log.granted(&net.fleet, vec![entry]);
        assert_eq!(net.submit("c1-2", "v3", &batch).await, Ok(BatchReceipt::Stored));
        if round % 2 == 0 {
            net.executed("v3", C1, round).await;
        }
        let before = net.digests("v1");
        for label in V {
            net.crash(label);
        }
        for label in V {
            net.start(label).await;
        }
        let after = net.digests("v1");
        assert_eq!(before[..], after[..before.len()], "final blocks were lost");
        net.grow(2).await;
        net.assert_no_fork();
    }
    for label in V {
        net.executed(label, C1, 5).await;
    }
}

#[tokio::test(start_paused = true)]
async fn validator_that_lost_a_batch_of_a_final_block_keeps_its_height_and_gets_the_batch() {
    let mut net = Net::started(fleet()).await;
    let mut log = ClusterLog::new(&net.fleet, C1);
    let entry = net.fleet.submit("op1", C1, 1, Scope::Fleet, &task("k"));
    let batch = log.granted(&net.fleet, vec![entry]);
    assert_eq!(net.submit("c1-1", "v2", &batch).await, Ok(BatchReceipt::Stored));
    net.executed("v1", C1, 1).await;
    net.grow(6).await;
    let tip = net.validator("v1").height().get();
    for label in V {
        net.crash(label);
    }
    // As if it had been killed after the block was final and before its batch came.
    let (mut batches, _) = net.disks["v1"].open_journal("batches-000000.seg").unwrap();
    batches.rewrite(Vec::new()).await.unwrap();
    net.start("v1").await;
    let status = net.status("v1").await;
    assert_eq!((status.height, status.executed < tip), (tip, true), "{status:?}");
    for label in &V[1..] {
        net.start(label).await;
    }
    net.executed("v1", C1, 1).await;
    net.grow(3).await;
    net.assert_no_fork();
}

/// A small generator for schedules.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

async fn random_crashes(seed: u64) {
    let mut dice = Dice(seed);
    let mut net = Net::started(fleet()).await;
    let mut log = ClusterLog::new(&net.fleet, C1);
    let mut acknowledged = 0;
    for number in 1..=12 {
        let entry = net
            .fleet
            .submit("op1", C1, number, Scope::Fleet, &task(&format!("k{number}")));
        let batch = log.granted(&net.fleet, vec![entry]);
        let to = V[dice.below(4) as usize];
        assert_eq!(
            net.submit("c1-1", to, &batch).await,
            Ok(BatchReceipt::Stored),
            "seed {seed}"
        );
        acknowledged = number;
        tokio::time::sleep(std::time::Duration::from_micros(dice.below(3_000_000))).await;
        // Any number of them, at the same moment or one after the other.
        let victims: Vec<&str> = V.into_iter().filter(|_| dice.below(3) == 0).collect();
        for label in &victims {
            net.crash(label);
            tokio::time::sleep(std::time::Duration::from_micros(dice.below(2_000))).await;
        }
        tokio::time::sleep(std::time::Duration::from_micros(dice.below(3_000_000))).await;
        for label in victims {
            net.start(label).await;
        }
    }
    for label in V {
        net.executed(label, C1, acknowledged).await;
    }
    net.grow(3).await;
    net.assert_no_fork();
    for label in V {
        for number in 1..=acknowledged {
            let entry = net
                .fleet
                .submit("op1", C1, number, Scope::Fleet, &task(&format!("k{number}")));
            let task = entry.id(&net.fleet.chain).into();
            let OpAnswer::Proof(proof) = net.ask(label, &OpRequest::Prove { task }).await else {
                panic!("seed {seed}: {label} has no proof of task {number}")
            };
            let report = common::proof::verify(&proof, &net.fleet.genesis).unwrap();
            assert_eq!(
                report.state,
                Some(TaskState::Assigned),
                "seed {seed}: {label}, task {number}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn acknowledged_batches_survive_random_crashes_of_any_number() {
    for seed in 1..=6 {
        random_crashes(seed).await;
    }
}
