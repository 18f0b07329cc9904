//! A cluster without validators: what goes on, what is refused, and what is handed over afterwards.

use std::time::Duration;

use common::{
    ids::{EntryId, TaskId},
    task::{Scope, TaskState},
    verdict::Verdict,
    wire::{
        cluster::WriteOutcome,
        op::{Consistency, Finality, Mode, WriteRefusal},
    },
};
use transport::local::Request;

use super::support::Net;

/// A cluster of three with a small outbox, cut off from the ground, and aware of it.
async fn island(outbox_bytes_max: u64) -> (Net, String) {
    let mut net = Net::of(3);
    net.limits.outbox_bytes_max = outbox_bytes_max;
    let net = net.all_started().await;
    let leader = net.leader().await;
    net.mode(&leader, Mode::Normal).await;
    net.set_ground(false);
    net.mode(&leader, Mode::Island).await;
    (net, leader)
}

fn executed_once(net: &Net, id: EntryId) -> bool {
    net.ground.entries().iter().filter(|entry| **entry == id).count() == 1
}

#[tokio::test(start_paused = true)]
async fn work_of_the_cluster_goes_on_and_the_fleets_waits_with_its_finality_pending() {
    let (mut net, leader) = island(16 * 1024 * 1024).await;
    let drone = net.follower().await;
    let own = net.submit(&drone, Scope::Cluster).await;
    net.agent(&drone)
        .answer_local(Request::Claim { task: own })
        .await
        .expect("granted");
    let row = net
        .agent(&drone)
        .answer_local(Request::Task { task: own })
        .await
        .unwrap();
    assert!(
        row.row().unwrap().may_run_until_us.is_some(),
        "a cluster's own task needs no validator"
    );
    let (fence, reason) = (None, String::new());
    net.agent(&drone)
        .answer_local(Request::Complete {
            task: own,
            fence,
            reason,
        })
        .await
        .expect("completed");
    let fleets = net.submit(&leader, Scope::Fleet).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    for (task, state) in [(own, TaskState::Completed), (fleets, TaskState::Queued)] {
        let view = net
            .task(&drone, task, Consistency::Linearizable)
            .await
            .expect("it is known");
        assert_eq!((view.state, view.finality), (state, Finality::ClusterCommitted));
        assert_eq!(
            net.task(&drone, task, Consistency::Final).await,
            None,
            "nothing is final"
        );
    }
    let status = net.agent(&leader).status();
    assert_eq!(status.context.mode, Mode::Island);
    assert!(status.context.staleness_ms.is_some_and(|age| age < 5_000));
    assert!(
        status.context.global_age_ms.is_some_and(|age| age >= 30_000),
        "the global view says its age"
    );
    net.set_ground(true);
    net.eventually("both are final", || {
        let view = |task: &TaskId| net.agent(&drone).machine().with(|state| state.queue.task_view(task));
        let is_final = |task: &TaskId| {
            let finality = view(task).map(|view| view.finality);
            matches!(
                finality,
                Some(Finality::Final {
                    verdict: Verdict::Granted,
                    ..
                })
            )
        };
        [own, fleets].iter().all(is_final).then_some(())
    })
    .await;
    net.eventually("the fleet's is assigned", || {
        let view = net
            .agent(&drone)
            .machine()
            .with(|state| state.queue.task_view(&fleets))?;
        (view.state == TaskState::Assigned).then_some(())
    })
    .await;
    net.mode(&leader, Mode::Normal).await;
}

#[tokio::test(start_paused = true)]
async fn full_outbox_is_refused_by_name_and_what_was_taken_is_handed_over_once_and_in_order() {
    let (mut net, leader) = island(48 * 1024).await;
    let drone = net.follower().await;
    let held = net.submit(&leader, Scope::Cluster).await;
    net.agent(&drone)
        .answer_local(Request::Claim { task: held })
        .await
        .expect("granted");
    let (mut taken, mut refused) = (vec![EntryId(held.0)], Vec::new());
    while refused.len() < 5 {
        let scope = if taken.len() % 2 == 0 {
            Scope::Fleet
        } else {
            Scope::Cluster
        };
        let entry = net.signed_task(scope);
        let id = entry.id(&net.fleet.chain);
        match net.agent(&drone).enter(entry).await {
            WriteOutcome::Committed(_) => taken.push(id),
            WriteOutcome::Refused(WriteRefusal::Overloaded { what, retry_after_ms }) => {
                assert!(what.as_str() == "outbox" && retry_after_ms > 0);
                refused.push(id);
            }
            other => panic!("{other:?}"),
        }
        assert!(taken.len() < 1_000, "the quota does not hold");
    }
    assert!(taken.len() > 20, "{}", taken.len());
    assert!(net.agent(&leader).status().outbox_bytes <= net.limits.outbox_bytes_max);
    // Who holds work may still end it.
    let (fence, reason) = (None, String::new());
    let done = Request::Complete {
        task: held,
        fence,
        reason,
    };
    net.agent(&drone)
        .answer_local(done)
        .await
        .expect("a holder's word has room left");
    // Over a change of leader and a crash of everybody, nothing is lost or doubled.
    net.crash(&leader).await;
    net.start(&leader).await;
    net.leader().await;
    for label in net.labels.clone() {
        net.crash(&label).await;
    }
    for label in net.labels.clone() {
        net.start(&label).await;
    }
    net.leader().await;
    net.set_ground(true);
    net.eventually("everything that was taken is executed", || {
        let executed = net.ground.entries();
        taken.iter().all(|id| executed.contains(id)).then_some(())
    })
    .await;
    assert!(
        taken.iter().all(|id| executed_once(&net, *id)),
        "an entry was handed over twice"
    );
    let executed = net.ground.entries();
    assert!(refused.iter().all(|id| !executed.contains(id)), "refused and executed");
    let order: Vec<_> = executed.iter().filter(|id| taken.contains(id)).copied().collect();
    assert_eq!(order, taken, "in the order of the log");
    let seqs: Vec<u64> = net.ground.executed().iter().map(|batch| batch.header.seq.0).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "without a gap");
    // And there is room again.
    net.submit(&drone, Scope::Fleet).await;
}
