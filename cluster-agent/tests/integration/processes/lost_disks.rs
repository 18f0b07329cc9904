//! A drone whose data directory is gone, as an operator meets it.

use std::{fs, time::Duration};

use common::{
    ids::{ClusterId, NodeIdx, RaftNodeId, TaskId},
    task::Scope,
    testing::task,
    wire::{
        cluster::WriteOutcome,
        op::{Consistency, OpAnswer, OpRequest},
    },
};

use super::harness::{AGENTS, Operator, PATIENCE, Place};

const UNSAFE: i32 = 78;

/// Submits the operator's task `number` through `label` until it is acknowledged.
async fn submit(place: &Place, operator: &Operator, label: &str, number: u64) -> TaskId {
    let task = task(&format!("task-{number}"));
    let entry = place.fleet.submit("op1", ClusterId(0), number, Scope::Cluster, &task);
    let id = TaskId::from(entry.id(&place.fleet.chain));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer = operator.ask(label, &OpRequest::Enter(entry.clone())).await;
        if let Ok(OpAnswer::Write { outcome, .. }) = &answer
            && matches!(outcome, WriteOutcome::Committed(_))
        {
            return id;
        }
        assert!(tokio::time::Instant::now() < deadline, "not acknowledged: {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until `label` says that these ids vote.
async fn voters(operator: &Operator, label: &str, want: &[RaftNodeId]) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let voters = operator.status(label).await.map(|status| status.voters);
        if voters.as_ref().is_some_and(|voters| voters.iter().eq(want)) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{voters:?} vote");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What `label` says when it ends with exit code 78; `None` if it runs for `time`.
async fn refusal_within(place: &Place, label: &str, time: Duration) -> Option<String> {
    let process = place.spawn(label);
    let ended = tokio::time::timeout(time, process.end()).await.ok()?;
    assert_eq!(ended, Some(UNSAFE), "{}", place.log(label));
    Some(place.log(label))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_directory_is_replaced_under_the_next_incarnation_as_the_agent_says() {
    let place = Place::new();
    let operator = Operator::connect(&place);
    let mut running: Vec<_> = AGENTS.iter().map(|label| Some(place.spawn(label))).collect();
    let leader = operator.leader().await;
    let at = |label: &str| AGENTS.iter().position(|other| *other == label).expect("an agent");
    let lost = *AGENTS.iter().find(|label| **label != leader).unwrap();
    let mut tasks = Vec::new();
    for number in 1..=10 {
        tasks.push(submit(&place, &operator, lost, number).await);
    }
    running[at(lost)].take().unwrap().kill();
    let data = place.path(lost).join("data");
    fs::remove_dir_all(&data).unwrap();
    // The mistake: the same number on an empty directory. On a busy machine the leader may not be reached in time.
    let mut said = None;
    for _ in 0..5 {
        said = refusal_within(&place, lost, Duration::from_secs(10)).await;
        if said.is_some() {
            break;
        }
        fs::remove_dir_all(&data).unwrap();
    }
    let said = said.expect("the agent refuses an empty directory");
    assert!(said.contains("Set `incarnation = 2`"), "{said}");
    // A directory that was made under the old number is not used under the new one.
    let config = format!("incarnation = 2\n{}", place.config(lost));
    fs::write(place.config_path(lost), config).unwrap();
    let (code, said) = place.run_to_end(lost);
    assert!(code == UNSAFE && said.contains("another raft id"), "{code}: {said}");
    // As the message says.
    fs::remove_dir_all(&data).unwrap();
    running[at(lost)] = Some(place.spawn(lost));
    let id = |label: &str| RaftNodeId::new(place.fleet.idx(label), if label == lost { 2 } else { 1 });
    let ids: Vec<_> = AGENTS.iter().map(|label| id(label)).collect();
    assert!(ids.iter().map(|id| id.idx()).is_sorted() && ids[0].idx() == NodeIdx(0));
    for label in AGENTS {
        voters(&operator, label, &ids).await;
    }
    // Its vote counts: without one of the others there is still a majority.
    running[at(&leader)].take().unwrap().kill();
    let later = submit(&place, &operator, lost, 11).await;
    for task in tasks.into_iter().chain([later]) {
        let seen = operator.task(lost, task, Consistency::Linearizable).await;
        assert!(seen.is_some(), "{task:?}");
    }
    // It comes back on its own directory like any other.
    running[at(lost)].take().unwrap().kill();
    running[at(lost)] = Some(place.spawn(lost));
    submit(&place, &operator, lost, 12).await;
}
