//! What agents say and refuse while their cluster is cut, in virtual time.

use std::{sync::Arc, time::Duration};

use cluster_agent::contact::lost_after_ms;
use common::{
    codec::encode,
    entry::Action,
    ids::{LogIndex, RaftNodeId, TaskId},
    task::{Scope, TaskState},
    verdict::{Reason, Verdict},
    wire::{
        cluster::WriteOutcome,
        frame::{FrameKind, RefusalCode},
        op::{Alarm, Consistency, Mode, OpAnswer, OpRequest, WriteRefusal},
    },
};
use futures::future::{Either, select};
use tokio::time::Instant;
use transport::{
    local::{ErrorCode, Request},
    ports::{CallError, Transport},
    quic::hello_of,
};

use super::support::{C1, Net, PATIENCE};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// One look at the clock of the cut and what the agent may take: a heartbeat of scheduling.
fn within(net: &Net, limit: Duration, begun: Instant) {
    let limit = limit + ms(net.raft.heartbeat_ms);
    assert!(begun.elapsed() <= limit, "{:?}, allowed {limit:?}", begun.elapsed());
}

fn election(net: &Net) -> Duration {
    ms(net.raft.election_timeout_ms_max)
}

async fn read(net: &Net, label: &str, consistency: Consistency, staleness_ms_max: Option<u64>) -> OpAnswer {
    let request = OpRequest::Tasks {
        states: Default::default(),
        after: None,
        limit: 10,
        consistency,
        staleness_ms_max,
    };
    net.agent(label).answer(request).await
}

fn is_no_quorum(outcome: &WriteOutcome) -> bool {
    matches!(outcome, WriteOutcome::Refused(WriteRefusal::NoQuorum { retry_after_ms, .. }) if *retry_after_ms > 0)
}

#[tokio::test(start_paused = true)]
async fn minority_is_read_only_within_two_elections_and_says_so_everywhere() {
    let mut net = Net::normal(5).await;
    let leader = net.leader().await;
    let lonely = net.follower().await;
    let task = net.submit(&lonely, Scope::Cluster).await;
    // A follower hears of a commit with what comes next, a heartbeat at the latest.
    let deadline = Instant::now() + ms(60_000);
    while net.task(&lonely, task, Consistency::Local).await.is_none() {
        assert!(Instant::now() < deadline, "the follower never applies");
        tokio::time::sleep(ms(1)).await;
    }
    for label in [&lonely, &leader] {
        net.mode(label, Mode::Normal).await;
        let before = net.agent(label).mode().get();
        net.set_silent(&[label], true);
        let begun = Instant::now();
        net.mode(label, Mode::ReadOnly).await;
        within(&net, ms(lost_after_ms(&net.raft)), begun);
        let now = net.agent(label).mode().get();
        assert_eq!((now.before, now.changes), (Some(Mode::Normal), before.changes + 1));
        // Status, reads, and the local socket.
        let status = net.agent(label).status();
        assert_eq!(status.context.mode, Mode::ReadOnly);
        assert!(status.context.staleness_ms.is_some_and(|age| age >= status.mode_age_ms));
        let OpAnswer::Tasks { context, tasks, .. } = read(&net, label, Consistency::Local, None).await else {
            panic!("a local read goes on");
        };
        assert_eq!((context.mode, tasks.len()), (Mode::ReadOnly, 1));
        let reply = net.agent(label).answer_local(Request::Status).await.unwrap();
        let row = reply.status.unwrap();
        assert_eq!(
            (row.mode.as_str(), row.mode_before.as_deref()),
            ("read_only", Some("normal"))
        );
        assert!(row.mode_since_us <= reply.now_us.unwrap());
        assert_eq!(reply.mode.as_deref(), Some("read_only"));
        let error = net.agent(label).answer_local(Request::Renew).await.unwrap_err();
        assert_eq!(
            (error.code, error.mode.as_deref()),
            (ErrorCode::NoQuorum, Some("read_only"))
        );
        net.set_silent(&[label], false);
        net.mode(label, Mode::Normal).await;
    }
}

#[tokio::test(start_paused = true)]
async fn drone_that_watches_hears_of_a_change_of_mode() {
    let net = Net::normal(3).await;
    let label = net.follower().await;
    net.set_silent(&[&label], true);
    // What was sent before the cut is applied by now.
    tokio::time::sleep(ms(net.raft.heartbeat_ms)).await;
    let since = net
        .agent(&label)
        .answer_local(Request::Status)
        .await
        .unwrap()
        .position
        .unwrap();
    let begun = Instant::now();
    let reply = net.agent(&label).answer_local(Request::Watch { since }).await.unwrap();
    assert_eq!(reply.status.unwrap().mode, "read_only");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn mere_change_of_leader_is_not_shown_as_read_only() {
    let mut net = Net::normal(3).await;
    for _ in 0..8 {
        let leader = net.leader().await;
        let others: Vec<String> = net.running.keys().filter(|label| **label != leader).cloned().collect();
        let changes = |net: &Net| -> Vec<u64> { others.iter().map(|l| net.agent(l).mode().get().changes).collect() };
        let before = changes(&net);
        net.crash(&leader).await;
        net.leader().await;
        for label in &others {
            net.submit(label, Scope::Cluster).await;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(changes(&net), before, "while {leader} was away");
        net.start(&leader).await;
        net.leader().await;
        net.mode(&leader, Mode::Normal).await;
    }
}

#[tokio::test(start_paused = true)]
async fn leader_that_is_cut_off_refuses_within_one_election_timeout() {
    let mut net = Net::normal(5).await;
    let leader = net.leader().await;
    net.set_silent(&[&leader], true);
    tokio::time::sleep(election(&net) + ms(net.raft.heartbeat_ms)).await;
    let entry = net.signed_task(Scope::Cluster);
    let begun = Instant::now();
    let outcome = net.agent(&leader).enter(entry).await;
    assert!(is_no_quorum(&outcome), "{outcome:?}");
    within(&net, Duration::ZERO, begun);
}

#[tokio::test(start_paused = true)]
async fn write_in_flight_at_the_cut_is_unknown_soon_and_a_retry_tells_the_outcome() {
    let mut net = Net::normal(5).await;
    for is_leader in [true, false] {
        let label = if is_leader {
            net.leader().await
        } else {
            net.follower().await
        };
        net.mode(&label, Mode::Normal).await;
        let entry = net.signed_task(Scope::Cluster);
        net.set_silent(&[&label], true);
        let begun = Instant::now();
        let outcome = net.agent(&label).enter(entry.clone()).await;
        assert_eq!(outcome, WriteOutcome::Unknown, "{label} leads: {is_leader}");
        within(&net, ms(lost_after_ms(&net.raft)), begun);
        assert!(begun.elapsed() < net.limits.write_deadline, "{:?}", begun.elapsed());
        net.set_silent(&[&label], false);
        net.mode(&label, Mode::Normal).await;
        let task = TaskId::from(entry.id(&net.fleet.chain));
        let first = net.agent(&label).enter(entry.clone()).await;
        assert!(matches!(first, WriteOutcome::Committed(_)), "{first:?}");
        assert_eq!(net.agent(&label).enter(entry).await, first, "one entry, one answer");
        assert!(net.task(&label, task, Consistency::Linearizable).await.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn follower_with_a_silent_leader_sends_nothing_and_refuses() {
    let mut net = Net::normal(3).await;
    let (leader, follower) = (net.leader().await, net.follower().await);
    net.set_silent(&[&follower], true);
    // Just long enough not to trust the leader, not yet cut off.
    tokio::time::sleep(election(&net) + ms(net.raft.heartbeat_ms)).await;
    let entry = net.signed_task(Scope::Cluster);
    let begun = Instant::now();
    let outcome = net.agent(&follower).enter(entry.clone()).await;
    assert!(is_no_quorum(&outcome), "{outcome:?}");
    within(&net, 2 * election(&net), begun);
    // Cut off for certain: at once.
    tokio::time::sleep(2 * election(&net)).await;
    let begun = Instant::now();
    let outcome = net.agent(&follower).enter(entry.clone()).await;
    assert!(is_no_quorum(&outcome), "{outcome:?}");
    within(&net, Duration::ZERO, begun);
    let task = TaskId::from(entry.id(&net.fleet.chain));
    assert_eq!(
        net.task(&leader, task, Consistency::Linearizable).await,
        None,
        "nothing was sent"
    );
    net.set_silent(&[&follower], false);
    net.mode(&follower, Mode::Normal).await;
    assert_eq!(net.task(&follower, task, Consistency::Linearizable).await, None);
}

#[tokio::test(start_paused = true)]
async fn leader_and_follower_in_a_minority_are_both_read_only() {
    let mut net = Net::normal(5).await;
    let (leader, follower) = (net.leader().await, net.follower().await);
    net.set_silent(&[&leader, &follower], true);
    let begun = Instant::now();
    for label in [&leader, &follower] {
        net.mode(label, Mode::ReadOnly).await;
        within(&net, ms(lost_after_ms(&net.raft)) + Duration::from_secs(2), begun);
        let entry = net.signed_task(Scope::Cluster);
        let outcome = net.agent(label).enter(entry).await;
        assert!(is_no_quorum(&outcome), "{label}: {outcome:?}");
        let linearizable = read(&net, label, Consistency::Linearizable, None).await;
        assert!(matches!(linearizable, OpAnswer::NoQuorum { .. }), "{linearizable:?}");
    }
    // It stays so: heartbeats of a leader without a quorum are no evidence.
    let changes = net.agent(&follower).mode().get().changes;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(net.agent(&follower).mode().get().changes, changes);
    let other = net.labels.iter().find(|label| **label != leader && **label != follower);
    let other = other.unwrap().clone();
    net.submit(&other, Scope::Cluster).await;
    net.set_silent(&[&leader, &follower], false);
    for label in [&leader, &follower] {
        net.mode(label, Mode::Normal).await;
    }
    net.submit(&follower, Scope::Cluster).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_degrades_silently_while_cut_off() {
    let mut net = Net::normal(3).await;
    let lonely = net.follower().await;
    net.submit(&lonely, Scope::Cluster).await;
    net.set_silent(&[&lonely], true);
    net.mode(&lonely, Mode::ReadOnly).await;
    let begun = Instant::now();
    let refused = read(&net, &lonely, Consistency::Linearizable, None).await;
    assert!(
        matches!(refused, OpAnswer::NoQuorum { retry_after_ms, .. } if retry_after_ms > 0),
        "{refused:?}"
    );
    within(&net, Duration::ZERO, begun);
    tokio::time::sleep(Duration::from_secs(20)).await;
    for consistency in [Consistency::Local, Consistency::Final] {
        let stale = read(&net, &lonely, consistency, Some(5_000)).await;
        let OpAnswer::TooStale {
            staleness_ms: Some(age),
            mode: Mode::ReadOnly,
        } = stale
        else {
            panic!("{stale:?}");
        };
        assert!(age >= 20_000, "{age}");
    }
    let claim = Request::Claim { task: TaskId([9; 32]) };
    let error = net.agent(&lonely).answer_local(claim).await.unwrap_err();
    assert_eq!(
        error.code,
        ErrorCode::NoQuorum,
        "unknown here is not known to be unknown: {error}"
    );
    // A restart forgets the evidence: unknown is older than anything allowed.
    net.crash(&lonely).await;
    net.start(&lonely).await;
    let unknown = read(&net, &lonely, Consistency::Local, Some(1_000_000)).await;
    assert!(
        matches!(unknown, OpAnswer::TooStale { staleness_ms: None, .. }),
        "{unknown:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn member_that_is_behind_refuses_and_says_how_far() {
    let mut net = Net::normal(3).await;
    let follower = net.follower().await;
    let now_us = net.now_us();
    let behind = net.agent(&follower).machine().with(|state| {
        // As after a heal: a position was given that this member has yet to reach.
        state.freshness.quorum_lost(now_us);
        let applied = state.queue.applied().0.index;
        state.freshness.answered(now_us + 1, LogIndex(applied.0 + 1_000));
        state.freshness.behind()
    });
    let entry = net.signed_task(Scope::Cluster);
    let outcome = net.agent(&follower).enter(entry.clone()).await;
    let refusal = WriteRefusal::CatchingUp { behind };
    assert_eq!((outcome, behind), (WriteOutcome::Refused(refusal), 1_000));
    assert_eq!(net.agent(&follower).status().context.mode, Mode::CatchingUp);
    let leader = net.leader().await;
    assert!(matches!(
        net.agent(&leader).enter(entry).await,
        WriteOutcome::Committed(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn member_that_was_away_is_normal_once_it_has_caught_up() {
    let mut net = Net::normal(3).await;
    let away = net.follower().await;
    net.crash(&away).await;
    let through = net.leader().await;
    for _ in 0..200 {
        net.submit(&through, Scope::Cluster).await;
    }
    net.start(&away).await;
    assert_eq!(
        net.agent(&away).mode().get().mode,
        Mode::ReadOnly,
        "nothing is known after a start"
    );
    net.mode(&away, Mode::Normal).await;
    let OpAnswer::Tasks { more, context, .. } = read(&net, &away, Consistency::Local, Some(2_000)).await else {
        panic!("its age is known and small");
    };
    assert!(more && context.mode == Mode::Normal);
    assert_eq!(
        net.agent(&away).status().queue_digest,
        net.agent(&through).status().queue_digest
    );
}

#[tokio::test(start_paused = true)]
async fn leadership_is_handed_over_on_request_and_only_by_the_leader() {
    let mut net = Net::normal(3).await;
    let (leader, follower) = (net.leader().await, net.follower().await);
    let to = net.agent(&follower).status().raft;
    let refused = net.agent(&follower).transfer_leader(None).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::NotNow);
    let entries: Vec<_> = (0..20).map(|_| net.signed_task(Scope::Cluster)).collect();
    let writes = futures::future::join_all(entries.into_iter().map(|entry| net.agent(&leader).enter(entry)));
    let (answer, outcomes) = futures::future::join(net.agent(&leader).transfer_leader(Some(to)), writes).await;
    assert!(
        matches!(answer, Ok(OpAnswer::Leader { leader, .. }) if leader == Some(to)),
        "{answer:?}"
    );
    let is_committed = |outcome: &WriteOutcome| matches!(outcome, WriteOutcome::Committed(_));
    assert!(outcomes.iter().all(is_committed), "{outcomes:?}");
    assert_eq!(net.leader().await, follower);
    let nobody = net
        .agent(&follower)
        .transfer_leader(Some(RaftNodeId(77)))
        .await
        .unwrap_err();
    assert_eq!(nobody.code, RefusalCode::Invalid);
    // An operator without the role is turned away by name.
    let hello = hello_of(net.fleet.chain, net.fleet.id("op1"));
    let operator = net
        .network
        .join(net.fleet.idx("op1"), hello, Arc::new(net.ground.clone()));
    let request = encode(&OpRequest::TransferLeader { to: None }).into();
    let denied = operator
        .call(net.fleet.id(&follower), FrameKind::Operate, request, ms(5_000))
        .await;
    assert!(
        matches!(&denied, Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::Denied),
        "{denied:?}"
    );
    assert_eq!(net.leader().await, follower);
}

/// The drone of `label` holds one task for each of `keys`.
async fn held(net: &mut Net, label: &str, count: usize) -> Vec<TaskId> {
    let mut tasks = Vec::new();
    for _ in 0..count {
        let task = net.submit(label, Scope::Cluster).await;
        net.agent(label)
            .answer_local(Request::Claim { task })
            .await
            .expect("granted");
        tasks.push(task);
    }
    tasks
}

async fn state(net: &Net, label: &str, task: TaskId) -> TaskState {
    net.task(label, task, Consistency::Linearizable)
        .await
        .expect("it is known")
        .state
}

#[tokio::test(start_paused = true)]
async fn end_of_a_claim_that_was_lost_in_a_cut_is_brought_in_while_other_claims_go_on() {
    let mut net = Net::normal(3).await;
    let holder = net.follower().await;
    let tasks = held(&mut net, &holder, 4).await;
    net.set_silent(&[&holder], true);
    net.mode(&holder, Mode::ReadOnly).await;
    let (fence, reason) = (None, String::new());
    let requests = [
        Request::Release { task: tasks[0], fence },
        Request::Complete {
            task: tasks[1],
            fence,
            reason: reason.clone(),
        },
        Request::Fail {
            task: tasks[2],
            fence,
            reason,
            retriable: false,
        },
    ];
    for request in requests {
        let error = net.agent(&holder).answer_local(request).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NoQuorum, "{error}");
    }
    net.set_silent(&[&holder], false);
    // The renewal for the fourth overtakes them all: theirs are the lower counters.
    net.mode(&holder, Mode::Normal).await;
    let _ = net.agent(&holder).answer_local(Request::Renew).await.expect("granted");
    let wanted = [
        TaskState::Queued,
        TaskState::Completed,
        TaskState::Failed,
        TaskState::Claimed,
    ];
    let begun = Instant::now();
    loop {
        let mut seen = Vec::new();
        for task in &tasks {
            seen.push(state(&net, &holder, *task).await);
        }
        if seen == wanted {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{seen:?}");
        tokio::time::sleep(ms(100)).await;
    }
    let row = net
        .agent(&holder)
        .answer_local(Request::Task { task: tasks[3] })
        .await
        .unwrap();
    assert!(row.row().unwrap().may_run_until_us.is_some(), "the fourth goes on");
}

#[tokio::test(start_paused = true)]
async fn leader_that_cannot_confirm_itself_refuses_nothing_by_a_rule() {
    let mut net = Net::normal(3).await;
    let old = net.leader().await;
    net.set_silent(&[&old], true);
    // What it names came into being where this leader cannot know of it.
    let cancel = |net: &mut Net, task| {
        net.numbers += 1;
        let action = Action::Cancel { task };
        net.fleet.entry("op1", C1, net.numbers, Scope::Cluster, action)
    };
    let entry = cancel(&mut net, TaskId([7; 32]));
    assert!(net.agent(&old).raft().is_leader(), "it has heard nothing yet");
    let outcome = net.agent(&old).enter(entry.clone()).await;
    assert!(is_no_quorum(&outcome), "{outcome:?}");
    net.set_silent(&[&old], false);
    net.mode(&old, Mode::Normal).await;
    let outcome = net.agent(&old).enter(entry).await;
    let refused = |outcome: &WriteOutcome| match outcome {
        WriteOutcome::Refused(WriteRefusal::Rejected { verdict, .. }) => Some(*verdict),
        _ => None,
    };
    assert_eq!(
        refused(&outcome),
        Some(Verdict::Rejected(Reason::UnknownTask)),
        "{outcome:?}"
    );
}

/// Returns in the moment in which `label` is elected.
async fn elected(net: &Net, label: &str) {
    let raft = net.agent(label).raft();
    let changes = raft.leader_changes();
    loop {
        let seen = changes.version();
        if raft.is_leader() {
            return;
        }
        changes.changed(seen).await;
    }
}

#[tokio::test(start_paused = true)]
async fn new_leader_refuses_nothing_that_rests_on_what_the_old_one_acknowledged() {
    let mut had_not_applied_it = 0;
    for _ in 0..6 {
        let mut net = Net::normal(3).await;
        let old = net.leader().await;
        let task = net.submit(&old, Scope::Cluster).await;
        // Nobody else hears that it was committed.
        net.set_silent(&[&old], true);
        net.crash(&old).await;
        net.numbers += 1;
        let cancel = Action::Cancel { task };
        let entry = net.fleet.entry("op1", C1, net.numbers, Scope::Cluster, cancel);
        let others: Vec<String> = net.running.keys().cloned().collect();
        let (one, other) = (elected(&net, &others[0]), elected(&net, &others[1]));
        let is_one = matches!(select(Box::pin(one), Box::pin(other)).await, Either::Left(_));
        let new = if is_one { &others[0] } else { &others[1] };
        // It has all that was acknowledged in its log, and cannot know of it until its own first entry is committed.
        net.set_silent(&[new], true);
        let knows = |state: &mut cluster_agent::machine::State| state.queue.task_row(&task).is_some();
        had_not_applied_it += u32::from(!net.agent(new).machine().with(knows));
        match net.agent(new).enter(entry.clone()).await {
            WriteOutcome::Committed(answer) => assert_eq!(answer.verdict, Verdict::Granted),
            outcome => assert!(
                outcome == WriteOutcome::Unknown || is_no_quorum(&outcome),
                "{outcome:?}"
            ),
        }
        net.set_silent(&[new], false);
        let begun = Instant::now();
        loop {
            match net.agent(new).enter(entry.clone()).await {
                WriteOutcome::Committed(answer) => break assert_eq!(answer.verdict, Verdict::Granted),
                outcome => assert!(begun.elapsed() < PATIENCE, "{outcome:?}"),
            }
            tokio::time::sleep(ms(50)).await;
        }
    }
    assert!(had_not_applied_it > 0, "asked before its first entry was committed");
}

#[tokio::test(start_paused = true)]
async fn replaced_leader_serves_no_linearizable_read_once_the_others_have_committed() {
    let mut before_it_noticed = 0;
    for _ in 0..6 {
        let mut net = Net::normal(3).await;
        let old = net.leader().await;
        net.submit(&old, Scope::Cluster).await;
        // A round that its majority answers, right before the cut.
        let fresh = read(&net, &old, Consistency::Linearizable, None).await;
        assert!(matches!(fresh, OpAnswer::Tasks { .. }), "{fresh:?}");
        net.set_silent(&[&old], true);
        let other = net.labels.iter().find(|label| **label != old).unwrap().clone();
        let task = net.submit(&other, Scope::Cluster).await;
        before_it_noticed += u32::from(net.agent(&old).mode().get().mode != Mode::ReadOnly);
        let request = OpRequest::Task {
            task,
            consistency: Consistency::Linearizable,
            staleness_ms_max: None,
        };
        for _ in 0..3 {
            let answer = net.agent(&old).answer(request.clone()).await;
            assert!(matches!(answer, OpAnswer::NoQuorum { .. }), "{answer:?}");
        }
    }
    assert!(
        before_it_noticed > 0,
        "asked while it still took itself for the leader of a majority"
    );
}

#[tokio::test(start_paused = true)]
async fn alarm_of_a_leader_without_a_quorum_is_in_its_status_while_it_holds() {
    let net = Net::normal(3).await;
    let old = net.leader().await;
    let alarms = |label: &str| net.agent(label).status().alarms.into_inner();
    assert_eq!(alarms(&old), []);
    net.set_silent(&[&old], true);
    net.eventually("it is told", || {
        (alarms(&old) == [Alarm::LeaderWithoutQuorum]).then_some(())
    })
    .await;
    let other = net.labels.iter().find(|label| **label != old).unwrap();
    assert_eq!(alarms(other), [], "a majority acknowledges its leader");
    net.set_silent(&[&old], false);
    net.eventually("it is over", || alarms(&old).is_empty().then_some(()))
        .await;
}
