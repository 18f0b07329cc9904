//! A cluster of three agents in one process: writes, reads, leases, batches, crashes.

use std::time::Duration;

use cluster_core::queue::Conflict;
use common::{
    entry::Fence,
    ids::{Assignment, EntryId, Founding, LogIndex, TaskId},
    task::{Scope, TaskState},
    verdict::Verdict,
    wire::{
        cluster::WriteOutcome,
        op::{Consistency, Finality, Mode, OpAnswer, OpRequest, WriteRefusal},
    },
};
use transport::local::{ErrorCode, Request};

use super::support::{AGENTS, C1, Net};

#[tokio::test(start_paused = true)]
async fn submission_through_a_follower_is_forwarded_and_a_retry_gets_the_same_answer() {
    let mut net = Net::started().await;
    let (leader, follower) = (net.leader().await, net.follower().await);
    let entry = net.signed_task(Scope::Cluster);
    let WriteOutcome::Committed(answer) = net.agent(&follower).enter(entry.clone()).await else {
        panic!("the submission was not committed");
    };
    assert_eq!(answer.verdict, Verdict::Granted);
    for label in [&follower, &leader] {
        assert_eq!(
            net.agent(label).enter(entry.clone()).await,
            WriteOutcome::Committed(answer),
            "through {label}"
        );
    }
    let task = TaskId::from(entry.id(&net.fleet.chain));
    for label in AGENTS {
        let view = net
            .task(label, task, Consistency::Linearizable)
            .await
            .expect("a linearizable read shows it");
        assert_eq!(view.state, TaskState::Queued);
    }
}

#[tokio::test(start_paused = true)]
async fn number_with_other_content_and_bad_signature_are_refused() {
    let mut net = Net::started().await;
    let label = net.follower().await;
    net.submit(&label, Scope::Cluster).await;
    let other = net
        .fleet
        .submit("op1", C1, net.numbers, Scope::Cluster, &common::testing::task("other"));
    let outcome = net.agent(&label).enter(other).await;
    let WriteOutcome::Refused(WriteRefusal::Rejected { verdict, .. }) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(verdict, Verdict::Rejected(common::verdict::Reason::Conflict));
    let mut forged = net.signed_task(Scope::Cluster);
    forged.signature.s[0] ^= 1;
    let outcome = net.agent(&label).enter(forged).await;
    assert!(
        matches!(outcome, WriteOutcome::Refused(WriteRefusal::Rejected { .. })),
        "{outcome:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn write_without_quorum_is_refused_in_time_and_reads_go_on_with_their_age() {
    let mut net = Net::started().await;
    let lonely = net.follower().await;
    let task = net.submit(&lonely, Scope::Cluster).await;
    // The leader acknowledged it; a follower applies it a heartbeat later.
    net.eventually("the follower shows the task and knows its own age", || {
        let agent = net.agent(&lonely);
        let age = agent.status().context.staleness_ms;
        let shown = agent.machine().with(|state| state.queue.task_view(&task).is_some());
        age.filter(|_| shown)
    })
    .await;
    net.set_island(&lonely, true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let begun = tokio::time::Instant::now();
    let entry = net.signed_task(Scope::Cluster);
    let outcome = net.agent(&lonely).enter(entry).await;
    let WriteOutcome::Refused(WriteRefusal::NoQuorum { retry_after_ms, .. }) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(
        retry_after_ms > 0 && begun.elapsed() <= net.limits.write_deadline,
        "{:?}",
        begun.elapsed()
    );
    let request = |staleness_ms_max| OpRequest::Task {
        task,
        consistency: Consistency::Local,
        staleness_ms_max,
    };
    match net.agent(&lonely).answer(request(None)).await {
        OpAnswer::Task { task: Some(_), context } => {
            assert_eq!(context.mode, Mode::ReadOnly);
            assert!(
                context.staleness_ms.is_some_and(|age| age >= 5_000),
                "{:?}",
                context.staleness_ms
            );
        }
        other => panic!("{other:?}"),
    }
    let too_stale = net.agent(&lonely).answer(request(Some(1_000))).await;
    assert!(
        matches!(
            too_stale,
            OpAnswer::TooStale {
                staleness_ms: Some(_),
                mode: Mode::ReadOnly
            }
        ),
        "{too_stale:?}"
    );
    let linearizable = OpRequest::Task {
        task,
        consistency: Consistency::Linearizable,
        staleness_ms_max: None,
    };
    let none = net.agent(&lonely).answer(linearizable).await;
    assert!(matches!(none, OpAnswer::NoQuorum { .. }), "{none:?}");
    net.set_island(&lonely, false);
    net.submit(&lonely, Scope::Cluster).await;
}

#[tokio::test(start_paused = true)]
async fn leader_that_is_cut_off_acknowledges_nothing_and_the_majority_goes_on() {
    let mut net = Net::started().await;
    let old = net.leader().await;
    net.set_island(&old, true);
    let stranded = net.signed_task(Scope::Cluster);
    let outcome = net.agent(&old).enter(stranded).await;
    assert!(!matches!(outcome, WriteOutcome::Committed(_)), "{outcome:?}");
    let other = AGENTS.into_iter().find(|label| *label != old).unwrap();
    let task = net.submit(other, Scope::Cluster).await;
    net.set_island(&old, false);
    net.leader().await;
    let view = net.task(&old, task, Consistency::Linearizable).await;
    assert_eq!(view.expect("the old leader caught up").state, TaskState::Queued);
}

#[tokio::test(start_paused = true)]
async fn batch_is_certified_by_two_of_three_and_final_on_every_agent() {
    let mut net = Net::started().await;
    let away = net.follower().await;
    net.crash(&away).await;
    let through = net.leader().await;
    let task = net.submit(&through, Scope::Cluster).await;
    let entry = EntryId(task.0);
    net.eventually("the ground executed it", || {
        net.ground.entries().contains(&entry).then_some(())
    })
    .await;
    net.start(&away).await;
    for label in AGENTS {
        net.eventually("it is final everywhere", || {
            let view = net.agent(label).machine().with(|state| state.queue.task_view(&task))?;
            matches!(
                view.finality,
                Finality::Final {
                    verdict: Verdict::Granted,
                    ..
                }
            )
            .then_some(())
        })
        .await;
    }
    net.eventually("all digests are the ground's", || {
        let height = net.ground.height();
        let statuses: Vec<_> = AGENTS.iter().map(|label| net.agent(label).status()).collect();
        let is_same = |status: &common::wire::op::AgentStatus| {
            status.context.global_height == height && status.global_digest == net.ground.state_root()
        };
        statuses.iter().all(is_same).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn every_acknowledged_entry_is_handed_over_exactly_once_over_changes_of_leader() {
    let mut net = Net::started().await;
    let mut acknowledged = Vec::new();
    for round in 0..6 {
        let leader = net.leader().await;
        for _ in 0..5 {
            acknowledged.push(EntryId(net.submit(&leader, Scope::Cluster).await.0));
        }
        if round % 2 == 0 {
            net.crash(&leader).await;
            let other = AGENTS.into_iter().find(|label| *label != leader).unwrap();
            acknowledged.push(EntryId(net.submit(other, Scope::Cluster).await.0));
            net.start(&leader).await;
        } else {
            // The whole cluster dies with batches that are not final.
            net.set_ground(false);
            acknowledged.push(EntryId(net.submit(&leader, Scope::Cluster).await.0));
            for label in AGENTS {
                net.crash(label).await;
            }
            net.set_ground(true);
            for label in AGENTS {
                net.start(label).await;
            }
        }
    }
    net.eventually("everything acknowledged is executed", || {
        let executed = net.ground.entries();
        acknowledged.iter().all(|entry| executed.contains(entry)).then_some(())
    })
    .await;
    let mut executed = net.ground.entries();
    let count = executed.len();
    executed.sort();
    executed.dedup();
    assert_eq!(executed.len(), count, "an entry is in two batches");
    let seqs: Vec<u64> = net.ground.executed().iter().map(|batch| batch.header.seq.0).collect();
    assert_eq!(
        seqs,
        (1..=seqs.len() as u64).collect::<Vec<_>>(),
        "the batches are a gap-free prefix"
    );
}

#[tokio::test(start_paused = true)]
async fn fleet_task_is_claimed_renewed_and_completed_through_the_local_door() {
    let mut net = Net::started().await;
    let task = net.submit("c1-1", Scope::Fleet).await;
    let row = |label: &'static str| {
        let net = &net;
        async move {
            let reply = net
                .agent(label)
                .answer_local(Request::Task { task })
                .await
                .expect("the task is known");
            reply.row().expect("one row").clone()
        }
    };
    net.eventually("it is assigned", || {
        let view = net.agent("c1-2").machine().with(|state| state.queue.task_view(&task))?;
        (view.state == TaskState::Assigned).then_some(())
    })
    .await;
    let claimed = net
        .agent("c1-2")
        .answer_local(Request::Claim { task })
        .await
        .expect("the claim is granted");
    let fence = claimed.fence.expect("a granted claim has a fence");
    let second = net
        .agent("c1-3")
        .answer_local(Request::Claim { task })
        .await
        .expect_err("it is held");
    assert_eq!(second.code, ErrorCode::Rejected);
    // The lease counts only once a batch with the claim is executed, and then goes on with renewals.
    let first = loop {
        match row("c1-2").await.may_run_until_us {
            Some(until_us) => break until_us,
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    tokio::time::sleep(Duration::from_secs(20)).await;
    let later = row("c1-2").await;
    assert_eq!((later.state, later.is_mine), (TaskState::Claimed, true));
    assert!(
        later
            .may_run_until_us
            .is_some_and(|until_us| until_us > first + 10_000_000),
        "renewed without a gap"
    );
    let old = Fence {
        assignment: Assignment(fence.assignment),
        founding: Founding(0),
        index: LogIndex(1),
    };
    let reason = String::new();
    let fenced = Request::Complete {
        task,
        fence: Some(old),
        reason: reason.clone(),
    };
    let refused = net.agent("c1-3").answer_local(fenced).await;
    assert!(refused.is_err() || refused.is_ok_and(|reply| reply.verdict.as_deref() == Some("late")));
    let report = Request::Progress {
        task,
        fence: None,
        progress: common::entry::Progress::Started,
    };
    net.agent("c1-2")
        .answer_local(report)
        .await
        .expect("the holder reports");
    net.agent("c1-2")
        .answer_local(Request::Complete {
            task,
            fence: None,
            reason,
        })
        .await
        .expect("it is completed");
    for label in AGENTS {
        net.eventually("completion is final", || {
            let view = net
                .agent(label)
                .machine()
                .with(|state| state.queue.global().view(&task))?;
            (view.state == TaskState::Completed).then_some(())
        })
        .await;
    }
    assert_eq!(row("c1-2").await.may_run_until_us, None, "a completed task is not run");
}

#[tokio::test(start_paused = true)]
async fn claim_of_a_drone_that_died_is_taken_back_only_after_its_lease() {
    let mut net = Net::started().await;
    let holder = net.follower().await;
    let task = net.submit(&holder, Scope::Cluster).await;
    net.agent(&holder)
        .answer_local(Request::Claim { task })
        .await
        .expect("the claim is granted");
    let claimed_at = tokio::time::Instant::now();
    net.crash(&holder).await;
    let other = net.leader().await;
    let lease = Duration::from_millis(u64::from(net.fleet.genesis.timing.lease.lease_ms));
    net.eventually("it is taken back", || {
        let view = net.agent(&other).machine().with(|state| state.queue.task_view(&task))?;
        (view.state == TaskState::Queued).then_some(())
    })
    .await;
    assert!(claimed_at.elapsed() > lease, "after {:?}", claimed_at.elapsed());
    net.agent(&other)
        .answer_local(Request::Claim { task })
        .await
        .expect("it can be claimed again");
}

#[tokio::test(start_paused = true)]
async fn agent_without_its_guard_or_counters_does_not_start() {
    let mut net = Net::started().await;
    net.submit("c1-1", Scope::Cluster).await;
    for (label, file) in [("c1-2", "attest-guard"), ("c1-3", "counters")] {
        net.crash(label).await;
        transport::ports::Disk::remove(&net.disks[label].files, file)
            .await
            .unwrap();
        let error = net.try_start(label).await.expect_err("it must not start");
        assert_eq!(error.exit_code(), 78, "{file}: {error}");
        assert!(error.to_string().contains(file), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn cluster_is_founded_while_its_lowest_member_is_down() {
    let mut net = Net::new();
    net.start("c1-2").await;
    net.start("c1-3").await;
    net.leader().await;
    let task = net.submit("c1-3", Scope::Cluster).await;
    net.start("c1-1").await;
    net.leader().await;
    let view = net.task("c1-1", task, Consistency::Linearizable).await;
    assert_eq!(view.expect("the first member joined").state, TaskState::Queued);
}

#[tokio::test(start_paused = true)]
async fn island_goes_on_in_its_cluster_and_hands_over_when_the_ground_is_back() {
    let mut net = Net::started().await;
    let label = net.leader().await;
    net.eventually("the mode is normal", || {
        (net.agent(&label).status().context.mode == Mode::Normal).then_some(())
    })
    .await;
    net.set_ground(false);
    let mut acknowledged = Vec::new();
    for _ in 0..10 {
        acknowledged.push(EntryId(net.submit(&label, Scope::Cluster).await.0));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(net.agent(&label).status().context.mode, Mode::Island);
    assert!(!net.ground.entries().contains(&acknowledged[9]));
    net.set_ground(true);
    net.eventually("everything is executed", || {
        let executed = net.ground.entries();
        acknowledged.iter().all(|entry| executed.contains(entry)).then_some(())
    })
    .await;
    net.eventually("the mode is normal again", || {
        (net.agent(&label).status().context.mode == Mode::Normal).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn task_submitted_twice_by_a_drone_is_one_task() {
    use common::task::TaskKind;
    use transport::local::TaskSpec;
    let net = Net::started().await;
    let label = net.follower().await;
    let spec = TaskSpec::new("inspect-mast-7", TaskKind::Survey);
    let submit = || Request::Submit {
        spec: Box::new(spec.clone()),
        scope: Scope::Cluster,
    };
    let first = net.agent(&label).answer_local(submit()).await.expect("it is queued");
    let again = net.agent(&label).answer_local(submit()).await.expect("the same answer");
    assert!(first.task.is_some() && first.task == again.task, "{first:?} {again:?}");
    let mut other = spec.clone();
    other.priority = 7;
    let conflict = Request::Submit {
        spec: Box::new(other),
        scope: Scope::Cluster,
    };
    let error = net
        .agent(&label)
        .answer_local(conflict)
        .await
        .expect_err("other content");
    assert_eq!(error.code, ErrorCode::Conflict);
}

#[tokio::test(start_paused = true)]
async fn drone_whose_agent_restarted_wins_its_lease_back_and_reports_under_its_old_fence() {
    let mut net = Net::started().await;
    let holder = net.follower().await;
    let task = net.submit(&holder, Scope::Cluster).await;
    let claimed = net
        .agent(&holder)
        .answer_local(Request::Claim { task })
        .await
        .expect("granted");
    net.crash(&holder).await;
    net.start(&holder).await;
    let row = loop {
        let reply = net.agent(&holder).answer_local(Request::Task { task }).await;
        if let Some(row) = reply.ok().and_then(|reply| reply.row().cloned())
            && row.may_run_until_us.is_some()
        {
            break row;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((row.is_mine, row.fence), (true, claimed.fence));
    let complete = Request::Complete {
        task,
        fence: claimed.fence.map(Fence::from),
        reason: String::new(),
    };
    let done = net
        .agent(&holder)
        .answer_local(complete)
        .await
        .expect("the result counts");
    assert_eq!(done.verdict.as_deref(), Some("granted"));
}

#[tokio::test(start_paused = true)]
async fn agent_that_was_away_longer_than_the_log_is_kept_comes_back_by_snapshot() {
    let mut net = Net::new();
    net.raft.snapshot_entries = 40;
    net.raft.snapshot_entries_kept = 5;
    for label in AGENTS {
        net.start(label).await;
    }
    let away = net.follower().await;
    net.submit(&away, Scope::Cluster).await;
    net.crash(&away).await;
    let through = net.leader().await;
    let mut tasks = Vec::new();
    for _ in 0..120 {
        tasks.push(net.submit(&through, Scope::Cluster).await);
    }
    net.eventually("the log is purged", || {
        (net.agent(&through).raft().status().purged.index.0 > 40).then_some(())
    })
    .await;
    net.start(&away).await;
    for task in tasks {
        let view = net.task(&away, task, Consistency::Linearizable).await;
        assert_eq!(view.expect("it came by snapshot or log").state, TaskState::Queued);
    }
    let (restored, other) = (net.agent(&away).status(), net.agent(&through).status());
    if restored.context.applied == other.context.applied {
        assert_eq!(restored.queue_digest, other.queue_digest);
    }
}

#[tokio::test(start_paused = true)]
async fn member_whose_guard_holds_another_digest_stops_as_voter_and_the_others_go_on() {
    use cluster_core::attestation::GuardRecord;
    use common::{codec::encode, crypto::Signature, ids::BatchSeq, ids::Digest};
    let mut net = Net::new();
    net.start("c1-1").await;
    net.start("c1-3").await;
    net.leader().await;
    let record = GuardRecord::Signed {
        founding: Founding(0),
        seq: BatchSeq(1),
        digest: Digest([9; 32]),
        signature: Signature::default(),
    };
    let files = net.disks["c1-2"].files.clone();
    let (mut journal, _) = transport::ports::Disk::open_journal(&files, "attest-guard").unwrap();
    journal.append(vec![encode(&record)]).await.unwrap();
    net.set_ground(false);
    net.start("c1-2").await;
    net.submit("c1-1", Scope::Cluster).await;
    net.eventually("it stops as voter", || {
        net.agent("c1-2").raft().status().is_quarantined.then_some(())
    })
    .await;
    net.set_ground(true);
    let task = net.submit("c1-3", Scope::Cluster).await;
    let entry = EntryId(task.0);
    net.eventually("the other two certify", || {
        net.ground.entries().contains(&entry).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn final_batch_that_this_log_did_not_build_stops_its_members_with_the_proof() {
    let mut net = Net::started().await;
    // A quorum of the roster lied: another batch 1 is certified and final.
    let entry = net.signed_task(Scope::Cluster);
    let forged = common::testing::ClusterLog::new(&net.fleet, C1).granted(&net.fleet, vec![entry]);
    net.set_ground(false);
    net.ground.take(&forged).expect("it is certified");
    net.submit("c1-1", Scope::Cluster).await;
    net.set_ground(true);
    net.eventually("a member stops as voter", || {
        let is_stopped = |label: &&str| net.agent(label).raft().status().is_quarantined;
        AGENTS.iter().any(is_stopped).then_some(())
    })
    .await;
    let conflict = AGENTS
        .iter()
        .find_map(|label| net.agent(label).machine().with(|state| state.queue.conflict().copied()));
    let conflict = conflict.expect("the proof is kept");
    let Conflict::Batch(conflict) = conflict else {
        panic!("{conflict}");
    };
    assert_eq!(conflict.final_digest, forged.digest(&net.fleet.chain));
}
