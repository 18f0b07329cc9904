//! Real validator processes: one chain over loopback, killed at random moments, and never a fork.

use std::{collections::BTreeMap, time::Duration};

use common::{
    codec::{decode, encode},
    ids::{ClusterId, Height},
    task::Scope,
    testing::{ClusterLog, task},
    wire::{
        feed::{Follow, Followed},
        frame::FrameKind,
        op::{OpAnswer, OpRequest},
    },
};

use super::harness::{Operator, Place, Process, V, assert_no_fork};

const C1: ClusterId = ClusterId(0);
/// Rounds of kills of one validator each, and of all four.
const ROUNDS: u64 = 8;

struct Fleet {
    place: Place,
    operator: Operator,
    running: BTreeMap<String, Process>,
}

impl Fleet {
    fn start() -> Self {
        let place = Place::new();
        let running = V.iter().map(|label| (label.to_string(), place.spawn(label))).collect();
        Self {
            operator: Operator::new(&place),
            place,
            running,
        }
    }

    fn kill(&mut self, label: &str) {
        self.running.remove(label).expect("it runs").kill();
    }

    fn restart(&mut self, label: &str) {
        self.running.insert(label.into(), self.place.spawn(label));
    }

    async fn reach(&self, label: &str, height: Height) {
        self.operator
            .wait(&self.place, label, &format!("at height {height}"), |status| {
                status.executed >= height
            })
            .await;
    }

    /// Waits until all that run are `more` above the highest of them, and compares their chains.
    async fn grow(&self, more: u64) {
        let mut highest = Height(0);
        for label in self.running.keys() {
            highest = highest.max(self.operator.wait(&self.place, label, "up", |_| true).await.height);
        }
        let mut chains = BTreeMap::new();
        for label in self.running.keys() {
            self.reach(label, Height(highest.0 + more)).await;
            chains.insert(label.clone(), self.operator.digests(label).await);
        }
        assert!(assert_no_fork(&chains) >= Height(highest.0 + more));
    }
}

/// A small generator: the moments of the kills. Printed, so that a failure can be looked at again.
struct Moments(u64);

impl Moments {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    async fn pass(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.below(700))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validators_killed_at_random_moments_never_fork_and_the_chain_grows() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut moments = Moments(seed);
    let mut fleet = Fleet::start();
    fleet.grow(2).await;
    let cluster = Operator::as_device(&fleet.place, "c1-1");
    let mut log = ClusterLog::new(&fleet.place.fleet, C1);
    for round in 1..=ROUNDS {
        let label = V[moments.below(4) as usize];
        let to = V.iter().find(|other| **other != label).unwrap();
        let entry = fleet
            .place
            .fleet
            .submit("op1", C1, round, Scope::Fleet, &task(&format!("k{round}")));
        let batch = log.granted(&fleet.place.fleet, vec![entry]);
        cluster.stores(to, encode(&batch)).await;
        moments.pass().await;
        fleet.kill(label);
        // Three of four go on.
        fleet.grow(2).await;
        fleet.restart(label);
        moments.pass().await;
        if round % 3 == 0 {
            for label in V {
                fleet.kill(label);
            }
            for label in V {
                fleet.restart(label);
            }
        }
        fleet.grow(1).await;
    }
    check_nothing_was_lost(&fleet, &cluster).await;
    for (label, process) in fleet.running {
        let status = process.terminate().await;
        assert_eq!(status.code(), Some(0), "{label}: {}", fleet.place.log(&label));
    }
}

/// Every acknowledged batch is final at every validator, the states agree, and each task's proof verifies.
async fn check_nothing_was_lost(fleet: &Fleet, cluster: &Operator) {
    let mut states = BTreeMap::new();
    for label in V {
        let status = fleet
            .operator
            .wait(&fleet.place, label, "done with all batches", |status| {
                status.tasks.iter().sum::<u32>() == ROUNDS as u32 && status.pending_batches == 0
            })
            .await;
        states
            .entry(status.executed)
            .or_insert_with(Vec::new)
            .push(status.state_digest);
        let follow = Follow {
            cluster: C1,
            from: Height(1),
            wait_ms: 0,
        };
        let answer = cluster.answered(label, FrameKind::Follow, encode(&follow)).await;
        let followed: Followed = decode(&answer).unwrap();
        assert_eq!(followed.next_seq.0, ROUNDS + 1);
        assert!(followed.batches.is_empty(), "the asker's own batches are left out");
        for block in followed.blocks.into_inner() {
            assert!(block.verify(&fleet.place.fleet.chain, &fleet.place.fleet.set).is_ok());
        }
    }
    for digests in states.values() {
        assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "states differ");
    }
    let entry = fleet.place.fleet.submit("op1", C1, 1, Scope::Fleet, &task("k1"));
    let task = entry.id(&fleet.place.fleet.chain).into();
    let request = encode(&OpRequest::Prove { task });
    let answer = fleet.operator.answered("v2", FrameKind::Operate, request).await;
    let Ok(OpAnswer::Proof(proof)) = decode(&answer) else {
        panic!("no proof");
    };
    let report = common::proof::verify(&proof, &fleet.place.fleet.genesis).unwrap();
    assert_eq!(report.task_id, task);
    let mut forged = proof.to_vec();
    let middle = forged.len() / 2;
    forged[middle] ^= 1;
    assert!(common::proof::verify(&forged, &fleet.place.fleet.genesis).is_err());
}
