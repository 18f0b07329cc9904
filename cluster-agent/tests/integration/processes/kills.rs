//! Real processes, killed at random moments: what was acknowledged is still there.

use std::{collections::BTreeMap, time::Duration};

use common::{
    ids::{ClusterId, TaskId},
    task::Scope,
    testing::task,
    wire::{
        cluster::WriteOutcome,
        op::{Consistency, OpAnswer, OpRequest},
    },
};
use transport::{machine::MachineEntropy, ports::Entropy};

use super::harness::{AGENTS, Operator, PATIENCE, Place, Process};

const ROUNDS: usize = 20;

struct Author<'a> {
    place: &'a Place,
    operator: &'a Operator,
    number: u64,
    acknowledged: Vec<TaskId>,
}

impl Author<'_> {
    /// Submits one task, the same bytes again through one agent after the other until it is acknowledged.
    async fn submit(&mut self, first: usize) {
        self.number += 1;
        let task = task(&format!("task-{}", self.number));
        let entry = self
            .place
            .fleet
            .submit("op1", ClusterId(0), self.number, Scope::Cluster, &task);
        let id = TaskId::from(entry.id(&self.place.fleet.chain));
        let deadline = tokio::time::Instant::now() + PATIENCE;
        for turn in first.. {
            let label = AGENTS[turn % AGENTS.len()];
            let answer = self.operator.ask(label, &OpRequest::Enter(entry.clone())).await;
            if let Ok(OpAnswer::Write {
                outcome: WriteOutcome::Committed(_),
                ..
            }) = answer
            {
                self.acknowledged.push(id);
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "not acknowledged: {answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kills_at_random_moments() {
    let place = Place::new();
    let operator = Operator::connect(&place);
    let entropy = MachineEntropy::new();
    let mut running: BTreeMap<&str, Process> = AGENTS.iter().map(|label| (*label, place.spawn(label))).collect();
    operator.leader().await;
    let mut author = Author {
        place: &place,
        operator: &operator,
        number: 0,
        acknowledged: Vec::new(),
    };
    for round in 0..ROUNDS {
        for _ in 0..entropy.below(8) {
            author.submit(entropy.below(3) as usize).await;
        }
        let victims: Vec<&str> = match round % 4 {
            0 => AGENTS
                .into_iter()
                .filter(|label| *label == AGENTS[entropy.below(3) as usize])
                .take(1)
                .collect(),
            1 | 2 => {
                let leader = operator.leader().await;
                AGENTS.into_iter().filter(|label| *label == leader).collect()
            }
            _ => AGENTS.to_vec(),
        };
        // In the middle of writes: one is on its way when the processes die.
        let (_, ()) = tokio::join!(author.submit(round), async {
            tokio::time::sleep(Duration::from_millis(entropy.below(12))).await;
            for victim in &victims {
                running.remove(victim).expect("it runs").kill();
            }
            if victims.len() == AGENTS.len() {
                for label in AGENTS {
                    running.insert(label, place.spawn(label));
                }
            }
        });
        if victims.len() == 1 {
            author.submit(round).await;
            running.insert(victims[0], place.spawn(victims[0]));
        }
    }
    operator.leader().await;
    for label in AGENTS {
        for id in &author.acknowledged {
            let found = operator.task(label, *id, Consistency::Linearizable).await;
            assert!(
                found.is_some(),
                "{label} lost the acknowledged task {id}: {}",
                place.log(label)
            );
        }
    }
    let mut digests = Vec::new();
    for label in AGENTS {
        let status = operator.answered_status(label).await;
        digests.push((status.context.applied, status.queue_digest));
    }
    let same_index = digests.iter().filter(|(applied, _)| *applied == digests[0].0);
    assert!(
        same_index.clone().all(|(_, digest)| *digest == digests[0].1),
        "{digests:?}"
    );
    assert!(author.acknowledged.len() >= ROUNDS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_end_in_order_and_start_again_where_they_were() {
    let place = Place::new();
    let operator = Operator::connect(&place);
    let mut author = Author {
        place: &place,
        operator: &operator,
        number: 0,
        acknowledged: Vec::new(),
    };
    for _ in 0..2 {
        let running: Vec<Process> = AGENTS.iter().map(|label| place.spawn(label)).collect();
        operator.leader().await;
        author.submit(0).await;
        for process in running {
            assert_eq!(process.terminate().await.code(), Some(0));
        }
    }
    let _running: Vec<Process> = AGENTS.iter().map(|label| place.spawn(label)).collect();
    operator.leader().await;
    for id in &author.acknowledged {
        let found = operator.task("c1-2", *id, Consistency::Linearizable).await;
        assert!(found.is_some(), "the acknowledged task {id} is lost");
    }
}
