//! How soon what is written becomes final, who sees to it, and what happens if it is not what agents computed. All of it in virtual time.

use std::{collections::BTreeSet, time::Duration};

use common::{
    ids::{BatchSeq, NodeIdx, TaskId},
    task::Scope,
    wire::op::{Alarm, Consistency, Finality, OpAnswer, OpRequest},
};

use super::support::{AGENTS, Net};

/// Pauses of who writes: no multiple of an interval, so that entries meet it at any phase.
const BETWEEN_WRITES: Duration = Duration::from_millis(137);

async fn final_everywhere(net: &Net, task: &TaskId) {
    net.eventually("it is final everywhere", || {
        let is_final = |label: &&str| {
            let view = net.agent(label).machine().with(|state| state.queue.task_view(task));
            view.is_some_and(|view| matches!(view.finality, Finality::Final { .. }))
        };
        AGENTS.iter().all(is_final).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn entry_is_final_everywhere_soon_after_it_was_acknowledged() {
    let mut net = Net::started().await;
    let label = net.follower().await;
    let first = net.submit(&label, Scope::Cluster).await;
    final_everywhere(&net, &first).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        tokio::time::sleep(BETWEEN_WRITES).await;
        let task = net.submit(&label, Scope::Cluster).await;
        let acknowledged = tokio::time::Instant::now();
        final_everywhere(&net, &task).await;
        slowest = slowest.max(acknowledged.elapsed());
    }
    // No heartbeat or poll on the way.
    let at_most = net.limits.batch_interval + Duration::from_millis(40);
    assert!(slowest <= at_most, "{slowest:?}");
}

/// Who submitted what while sixty tasks were written and became final.
async fn submissions_of_work(net: &mut Net, through: &str) -> Vec<(NodeIdx, BatchSeq)> {
    let before = net.ground.submissions().len();
    let mut last = net.submit(through, Scope::Cluster).await;
    for _ in 1..60 {
        tokio::time::sleep(BETWEEN_WRITES).await;
        last = net.submit(through, Scope::Cluster).await;
    }
    final_everywhere(net, &last).await;
    net.ground.submissions().split_off(before)
}

#[tokio::test(start_paused = true)]
async fn members_learn_how_long_finality_takes_and_leave_the_leader_its_batches() {
    let mut net = Net::started().await;
    let (leader, follower) = (net.leader().await, net.follower().await);
    let leader = net.fleet.idx(&leader);
    // Longer than a member of this profile waits at first.
    net.ground.set_slow(Duration::from_secs(1));
    let at_first = submissions_of_work(&mut net, &follower).await;
    assert!(at_first.iter().any(|(by, _)| *by != leader), "they could not know");
    let later = submissions_of_work(&mut net, &follower).await;
    assert!(later.len() > 20, "{later:?}");
    assert!(later.iter().all(|(by, _)| *by == leader), "{later:?}");
    let batches: BTreeSet<BatchSeq> = later.iter().map(|(_, seq)| *seq).collect();
    assert_eq!(batches.len(), later.len(), "once each: {later:?}");
}

#[tokio::test(start_paused = true)]
async fn cluster_that_was_away_takes_in_full_groups_of_blocks_without_a_pause() {
    let mut net = Net::of(3);
    net.limits.batch_interval = Duration::from_secs(10);
    let net = net.all_started().await;
    net.leader().await;
    net.set_ground(false);
    net.ground.grow(160);
    let height = net.ground.height();
    net.set_ground(true);
    let begun = tokio::time::Instant::now();
    net.eventually("all blocks are in", || {
        let has_all = |label: &&str| net.agent(label).machine().with(|state| state.queue.global_height()) >= height;
        AGENTS.iter().all(has_all).then_some(())
    })
    .await;
    // One for the group before the cut.
    assert!(begun.elapsed() < 2 * net.limits.batch_interval, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn agents_that_validators_contradict_stop_as_voters_and_call_nothing_of_the_global_state_final() {
    let mut net = Net::started().await;
    let task = net.submit("c1-1", Scope::Cluster).await;
    final_everywhere(&net, &task).await;
    let height = net.ground.certify_another_state();
    net.ground.grow(2);
    let alarm = Alarm::OtherState { height };
    net.eventually("all stop as voters and say why", || {
        let is_stopped = |label: &&str| {
            let agent = net.agent(label);
            agent.raft().status().is_quarantined && agent.status().alarms.contains(&alarm)
        };
        AGENTS.iter().all(is_stopped).then_some(())
    })
    .await;
    // None of them would enter its log.
    let asked = net.ground.asked_for_blocks();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let asked = net.ground.asked_for_blocks() - asked;
    assert!(asked <= 1, "blocks were asked for {asked} times");
    let context = net.agent("c1-1").status().context;
    assert_eq!((context.global_age_ms, context.global_height), (None, height.next()));
    let read = |consistency| OpRequest::Task {
        task,
        consistency,
        staleness_ms_max: None,
    };
    let agent = net.agent("c1-1");
    let refused = agent.answer(read(Consistency::Final)).await;
    assert!(matches!(refused, OpAnswer::Unsupported(_)), "{refused:?}");
    let OpAnswer::Task { task: Some(view), .. } = agent.answer(read(Consistency::Local)).await else {
        panic!("a local read is answered");
    };
    assert_eq!(view.finality, Finality::ClusterCommitted);
}

/// A cluster of five that has no validators for long enough that many batches wait, and who wrote what.
async fn island_of_five() -> (Net, String) {
    let mut net = Net::normal(5).await;
    net.set_ground(false);
    let leader = net.leader().await;
    let writer = net.follower().await;
    for _ in 0..60 {
        net.submit(&writer, Scope::Cluster).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    let pending = |label: &str| {
        net.agent(label)
            .machine()
            .with(|state| state.queue.batcher().outbox().len())
    };
    assert!(pending(&leader) > 24, "{} batches wait", pending(&leader));
    (net, leader)
}

/// How long it takes, when the validators are back, from the first batch that becomes final until the backlog is.
async fn drains_after(net: &Net) -> Duration {
    let outbox = |label: &String| {
        net.agent(label)
            .machine()
            .with(|state| state.queue.batcher().outbox().len())
    };
    let longest = || net.running.keys().map(outbox).max().unwrap();
    let before = longest();
    net.set_ground(true);
    net.eventually("a batch is final", || (longest() < before).then_some(()))
        .await;
    let begun = tokio::time::Instant::now();
    net.eventually("the backlog is final", || (longest() == 0).then_some(()))
        .await;
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn backlog_of_an_island_drains_under_a_leader_that_began_in_it() {
    let (mut net, leader) = island_of_five().await;
    net.crash(&leader).await;
    net.leader().await;
    let took = drains_after(&net).await;
    assert!(took <= Duration::from_secs(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn backlog_of_an_island_drains_where_every_member_has_forgotten_what_it_heard() {
    let (mut net, _) = island_of_five().await;
    for label in net.labels.clone() {
        net.crash(&label).await;
        net.start(&label).await;
        net.leader().await;
    }
    let took = drains_after(&net).await;
    assert!(took <= Duration::from_secs(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn backlog_of_an_island_drains_past_a_leader_that_submits_nothing() {
    let (net, leader) = island_of_five().await;
    net.ground.set_deaf_to(net.fleet.idx(&leader));
    let took = drains_after(&net).await;
    // The others wait for the leader with each group that it might have submitted.
    assert!(took <= Duration::from_secs(15), "{took:?}");
    assert_eq!(net.leader().await, leader);
}

#[tokio::test(start_paused = true)]
async fn member_that_forgot_what_it_heard_hears_it_again_while_another_one_is_away() {
    let mut net = Net::normal(5).await;
    let leader = net.leader().await;
    let others: Vec<String> = net.labels.iter().filter(|label| **label != leader).cloned().collect();
    let (only, away) = (&others[0], &others[1]);
    net.set_ground(false);
    net.crash(away).await;
    net.submit(&leader, Scope::Cluster).await;
    // The leader cannot have it submitted: everybody tells everybody.
    tokio::time::sleep(Duration::from_secs(20)).await;
    net.crash(only).await;
    net.start(only).await;
    let executed = net.ground.entries().len();
    for validator in ["v1", "v2", "v3", "v4"] {
        net.network.set_link(net.fleet.id(only), net.fleet.id(validator), true);
    }
    net.eventually("who reaches the validators has the batch certified", || {
        (net.ground.entries().len() > executed).then_some(())
    })
    .await;
    assert_eq!(net.leader().await, leader, "another one would have been told at once");
}
