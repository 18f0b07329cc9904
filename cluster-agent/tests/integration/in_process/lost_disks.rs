//! Drones that lost their disks: they come back under a new Raft id, and the old one never counts again.

use cluster_agent::{raft::RaftRole, shell::Ending};
use common::{
    ids::{RaftNodeId, TaskId},
    task::Scope,
    wire::op::{Consistency, Finality, Mode},
};
use futures::FutureExt;
use transport::local::Request;

use super::support::{C1, Net};

/// The agents vote under these ids, the next batch is signed under them, and nobody else is a member.
async fn settled(net: &Net, incarnations: &[(&str, u32)]) {
    let want: Vec<RaftNodeId> = incarnations
        .iter()
        .map(|(label, incarnation)| RaftNodeId::new(net.fleet.idx(label), *incarnation))
        .collect();
    let what = format!("{want:?} vote and sign");
    net.eventually(&what, || {
        let is_settled = |label: &String| {
            let agent = net.agent(label);
            let status = agent.raft().status();
            let (signing, last) = agent.machine().with(|state| {
                let cursor = state
                    .queue
                    .global()
                    .cursor(C1)
                    .expect("the cluster is in the genesis file");
                (state.queue.roster().clone(), cursor.roster.clone())
            });
            let ids: Vec<_> = signing.members.iter().map(|member| member.raft).collect();
            let is_uniform = status.voters == want && status.learners.is_empty() && !status.is_joint;
            is_uniform && ids == want && signing == *last
        };
        net.running.keys().all(is_settled).then_some(())
    })
    .await;
}

/// Waits until every running agent knows `task` to be final.
async fn is_final(net: &Net, task: TaskId) {
    net.eventually("the task is final everywhere", || {
        let knows = |label: &String| {
            let view = net.agent(label).machine().with(|state| state.queue.task_view(&task));
            view.is_some_and(|view| matches!(view.finality, Finality::Final { .. }))
        };
        net.running.keys().all(knows).then_some(())
    })
    .await;
}

/// A cluster that another one than `label` leads, and remembers what `label` holds.
async fn following(label: &str) -> Net {
    let mut net = Net::normal(3).await;
    while net.leader().await == label {
        net.crash(label).await;
        let others = net.leader().await;
        assert_ne!(others, label);
        net.start(label).await;
    }
    net.mode(label, Mode::Normal).await;
    net
}

/// Waits until `label` ends with exit code 78 and says this.
async fn is_refused(net: &Net, label: &str, text: &str) {
    let agent = net.agent(label).clone();
    let ended = net
        .eventually("the directory is refused", || agent.ended().now_or_never())
        .await;
    let Ending::Fatal { exit_code: 78, reason } = ended else {
        panic!("{ended:?}");
    };
    assert!(reason.contains(text), "{reason}");
}

async fn loses_disk_and_comes_back(is_leader: bool) {
    let mut net = Net::started().await;
    let leader = net.leader().await;
    let lost = if is_leader { leader } else { net.follower().await };
    let mut tasks = Vec::new();
    for _ in 0..20 {
        tasks.push(net.submit(&lost, Scope::Fleet).await);
    }
    net.crash(&lost).await;
    net.lose_disk(&lost, 2);
    net.start(&lost).await;
    let labels = net.labels.clone();
    let incarnation = |label: &str| if label == lost { 2 } else { 1 };
    let ids: Vec<_> = labels
        .iter()
        .map(|label| (label.as_str(), incarnation(label)))
        .collect();
    settled(&net, &ids).await;
    for task in &tasks {
        is_final(&net, *task).await;
    }
    // The newcomer's vote and signature are needed from here on.
    let other = labels.iter().find(|label| **label != lost).unwrap().clone();
    net.crash(&other).await;
    let later = net.submit(&lost, Scope::Fleet).await;
    is_final(&net, later).await;
    let last = net.ground.executed().pop().unwrap();
    let roster = net.agent(&lost).machine().with(|state| state.queue.roster().digest());
    assert_eq!(last.header.roster, roster, "the new roster signed it");
    // Its numbers and counters are none that the lost disk used.
    let claimed = net.agent(&lost).answer_local(Request::Claim { task: later }).await;
    claimed.expect("the claim is granted");
}

#[tokio::test(start_paused = true)]
async fn follower_that_lost_its_disk_comes_back_votes_and_signs_under_a_new_id() {
    loses_disk_and_comes_back(false).await;
}

#[tokio::test(start_paused = true)]
async fn leader_that_lost_its_disk_comes_back_votes_and_signs_under_a_new_id() {
    loses_disk_and_comes_back(true).await;
}

#[tokio::test(start_paused = true)]
async fn second_lost_disk_waits_for_its_vote_until_the_roster_of_the_first_is_final() {
    // Of seven the signatures of five are enough.
    let mut net = Net::normal(7).await;
    net.set_ground(false);
    for label in ["c1-6", "c1-7"] {
        net.crash(label).await;
        net.lose_disk(label, 2);
        net.start(label).await;
    }
    let (sixth, seventh) = (net.raft_id("c1-6"), net.raft_id("c1-7"));
    net.eventually("one of them votes, the other has the log", || {
        let leader = net.agent("c1-1").raft().status();
        let votes = |id| leader.voters.contains(&id);
        let learns = |id| leader.learners.contains(&id);
        let is_half_way = votes(sixth) && learns(seventh) || votes(seventh) && learns(sixth);
        (is_half_way && !leader.is_joint && leader.learners.len() == 1).then_some(())
    })
    .await;
    let task = net.submit("c1-1", Scope::Cluster).await;
    // Much longer than a step takes.
    tokio::time::sleep(std::time::Duration::from_secs(20)).await;
    assert_eq!(net.agent("c1-1").raft().status().learners.len(), 1, "it waits");
    net.set_ground(true);
    let ids = [1, 1, 1, 1, 1, 2, 2];
    let labels = net.labels.clone();
    let ids: Vec<_> = labels.iter().map(String::as_str).zip(ids).collect();
    settled(&net, &ids).await;
    is_final(&net, task).await;
}

#[tokio::test(start_paused = true)]
async fn leaders_that_die_during_the_change_leave_it_to_the_next_one() {
    for step_ms in (0..1_200).step_by(60) {
        let mut net = Net::normal(5).await;
        net.crash("c1-5").await;
        net.lose_disk("c1-5", 2);
        net.start("c1-5").await;
        let task = net.submit("c1-5", Scope::Fleet).await;
        tokio::time::sleep(std::time::Duration::from_millis(step_ms)).await;
        let leader = net.agent("c1-5").raft().status().leader;
        let leader = leader.map(|id| net.fleet.label(id.idx()).to_owned());
        if let Some(leader) = leader.filter(|leader| net.running.contains_key(leader)) {
            net.crash(&leader).await;
            net.start(&leader).await;
        }
        let ids = [("c1-1", 1), ("c1-2", 1), ("c1-3", 1), ("c1-4", 1), ("c1-5", 2)];
        settled(&net, &ids).await;
        is_final(&net, task).await;
    }
}

#[tokio::test(start_paused = true)]
async fn empty_disk_under_the_id_of_a_lost_one_is_refused_and_the_next_id_is_named() {
    for label in ["c1-1", "c1-3"] {
        let mut net = following(label).await;
        let task = net.submit(label, Scope::Cluster).await;
        net.crash(label).await;
        net.lose_disk(label, 1);
        net.start(label).await;
        is_refused(&net, label, "Set `incarnation = 2`").await;
        net.crash(label).await;
        // The operator does as told; and then, by mistake, takes the old number again.
        net.lose_disk(label, 2);
        net.start(label).await;
        let ids = ["c1-1", "c1-2", "c1-3"].map(|other| (other, if other == label { 2 } else { 1 }));
        settled(&net, &ids).await;
        assert!(net.task(label, task, Consistency::Linearizable).await.is_some());
        net.crash(label).await;
        net.lose_disk(label, 1);
        net.start(label).await;
        is_refused(&net, label, "set `incarnation = 3`").await;
    }
}

#[tokio::test(start_paused = true)]
async fn old_disk_that_turns_up_again_neither_votes_nor_leads() {
    let mut net = Net::started().await;
    let label = net.follower().await;
    let task = net.submit(&label, Scope::Cluster).await;
    net.crash(&label).await;
    let old = net.disks[&label].clone();
    net.lose_disk(&label, 2);
    net.start(&label).await;
    let labels = net.labels.clone();
    let ids: Vec<_> = labels
        .iter()
        .map(|other| (other.as_str(), if *other == label { 2 } else { 1 }))
        .collect();
    settled(&net, &ids).await;
    net.crash(&label).await;
    let new = net.disks.insert(label.clone(), old).unwrap();
    net.start(&label).await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let status = net.agent(&label).raft().status();
    assert_ne!(status.role, RaftRole::Leader);
    let alone = labels.iter().find(|other| **other != label).unwrap();
    let leading = net.agent(alone).raft().status();
    let is_heard = leading.peers.iter().any(|peer| peer.id == status.id);
    assert!(!is_heard, "the old id is nobody's member");
    // Nor does it help anybody to a quorum.
    let other = labels
        .iter()
        .rev()
        .find(|other| ![alone, &label].contains(other))
        .unwrap();
    net.crash(other).await;
    let entry = net.signed_task(Scope::Cluster);
    let outcome = net.agent(alone).enter(entry).await;
    assert!(
        !matches!(outcome, common::wire::cluster::WriteOutcome::Committed(_)),
        "{outcome:?}"
    );
    is_refused(&net, &label, "set `incarnation = 3`").await;
    net.crash(&label).await;
    net.disks.insert(label.clone(), new);
    net.start(&label).await;
    net.start(other).await;
    settled(&net, &ids).await;
    is_final(&net, task).await;
}

#[tokio::test(start_paused = true)]
async fn empty_disk_that_reaches_nobody_at_first_founds_nothing_and_is_refused_when_it_does() {
    for label in ["c1-1", "c1-2"] {
        let mut net = following(label).await;
        net.submit(label, Scope::Cluster).await;
        net.crash(label).await;
        net.lose_disk(label, 1);
        net.set_island(label, true);
        net.start(label).await;
        tokio::time::sleep(std::time::Duration::from_secs(20)).await;
        assert_eq!(net.agent(label).raft().status().last_index.0, 0);
        net.set_island(label, false);
        is_refused(&net, label, "Set `incarnation = 2`").await;
    }
}
