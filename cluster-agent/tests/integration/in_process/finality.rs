//! How soon what is written becomes final, and who sees to it.

use std::time::Duration;

use common::{task::Scope, wire::op::Finality};

use super::support::{AGENTS, Net};

#[tokio::test(start_paused = true)]
async fn entry_is_final_everywhere_soon_after_it_was_acknowledged() {
    let mut net = Net::started().await;
    let label = net.follower().await;
    net.submit(&label, Scope::Cluster).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let task = net.submit(&label, Scope::Cluster).await;
        let acknowledged = tokio::time::Instant::now();
        net.eventually("it is final everywhere", || {
            let is_final = |label: &&str| {
                let view = net.agent(label).machine().with(|state| state.queue.task_view(&task));
                view.is_some_and(|view| matches!(view.finality, Finality::Final { .. }))
            };
            AGENTS.iter().all(is_final).then_some(())
        })
        .await;
        slowest = slowest.max(acknowledged.elapsed());
        tokio::time::sleep(Duration::from_millis(137)).await;
    }
    // No heartbeat or poll on the way.
    let at_most = net.limits.batch_interval + Duration::from_millis(40);
    assert!(slowest <= at_most, "{slowest:?}");
}

#[tokio::test(start_paused = true)]
async fn members_learn_how_long_finality_takes_and_leave_the_leader_its_batches() {
    let mut net = Net::started().await;
    let (leader, follower) = (net.leader().await, net.follower().await);
    // Longer than a member of this profile waits at first.
    net.ground.set_slow(Duration::from_secs(1));
    for _ in 0..60 {
        net.submit(&follower, Scope::Cluster).await;
        tokio::time::sleep(Duration::from_millis(173)).await;
    }
    let learnt = net.ground.submissions();
    let leader = net.fleet.idx(&leader);
    let helped = learnt.iter().filter(|(by, _)| *by != leader).count();
    assert!(helped > 0, "they could not know");
    for _ in 0..60 {
        net.submit(&follower, Scope::Cluster).await;
        tokio::time::sleep(Duration::from_millis(173)).await;
    }
    let since = net.ground.submissions().split_off(learnt.len());
    assert!(since.len() > 20, "{since:?}");
    assert!(since.iter().all(|(by, _)| *by == leader), "{since:?}");
}
