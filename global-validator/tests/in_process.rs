//! Validators finalize, survive crashes and catch up: the real shell, in virtual time.

mod support;

use common::{
    ids::{ClusterId, Height},
    task::{Scope, TaskState},
    testing::{ClusterLog, Fleet, task},
    wire::{feed::BatchReceipt, op::OpAnswer, op::OpRequest},
};
use support::{Net, V};

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
