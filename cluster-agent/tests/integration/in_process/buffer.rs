//! Submissions that wait on an agent's disk for a quorum, in virtual time.

use std::time::Duration;

use common::{
    entry::{Action, EntryDraft, SignedEntry},
    ids::{EntryId, EntryNumber, Height, KeyVersion, TaskId},
    task::{Scope, TaskState},
    verdict::{Reason, Verdict},
    wire::{
        cluster::WriteOutcome,
        op::{BufferedState, Consistency, Finality, Mode, OpAnswer, OpRequest, WriteRefusal},
    },
};

use super::support::{C1, Net};

/// Asks `label` to enter `entry`, or to keep it.
async fn enter_or_buffer(net: &Net, label: &str, entry: &SignedEntry) -> OpAnswer {
    net.agent(label).answer(OpRequest::EnterOrBuffer(entry.clone())).await
}

async fn buffered(net: &Net, label: &str, entry: &SignedEntry) -> EntryId {
    match enter_or_buffer(net, label, entry).await {
        OpAnswer::Buffered {
            id,
            state: BufferedState::Waiting,
            mode: Mode::ReadOnly,
        } => id,
        other => panic!("{other:?}"),
    }
}

/// Where `label` says that an entry is.
async fn state(net: &Net, label: &str, id: EntryId) -> Option<BufferedState> {
    match net.agent(label).answer(OpRequest::Buffered { id }).await {
        OpAnswer::Buffered { state, .. } => Some(state),
        OpAnswer::NotFound => None,
        other => panic!("{other:?}"),
    }
}

async fn finality(net: &Net, label: &str, id: EntryId) -> Option<(TaskState, Finality)> {
    let view = net.task(label, TaskId::from(id), Consistency::Local).await?;
    Some((view.state, view.finality))
}

/// Three agents, one of them cut off and aware of it.
async fn cut() -> (Net, String) {
    let net = Net::normal(3).await;
    let lonely = net.follower().await;
    net.set_silent(&[&lonely], true);
    net.mode(&lonely, Mode::ReadOnly).await;
    (net, lonely)
}

async fn drained(net: &Net, label: &str) {
    net.eventually("the buffer is empty", || {
        (net.agent(label).status().buffer_entries == 0).then_some(())
    })
    .await;
}

/// Log indexes of the entries, all of them in the log of `label`.
async fn indexes(net: &Net, label: &str, ids: &[EntryId]) -> Vec<u64> {
    let mut indexes = Vec::new();
    for id in ids {
        match state(net, label, *id).await {
            Some(BufferedState::Committed(answer)) if answer.verdict == Verdict::Granted => {
                indexes.push(answer.index.0)
            }
            other => panic!("{other:?}"),
        }
    }
    indexes
}

#[tokio::test(start_paused = true)]
async fn buffered_submissions_enter_once_and_in_order_and_show_where_they_are() {
    let (mut net, lonely) = cut().await;
    let entries: Vec<_> = (0..8).map(|_| net.signed_task(Scope::Cluster)).collect();
    let mut ids = Vec::new();
    for entry in &entries {
        ids.push(buffered(&net, &lonely, entry).await);
        assert_eq!(
            buffered(&net, &lonely, entry).await,
            *ids.last().unwrap(),
            "asked twice, kept once"
        );
    }
    assert_eq!(net.agent(&lonely).status().buffer_entries, 8);
    for id in &ids {
        assert_eq!(
            finality(&net, &lonely, *id).await,
            Some((TaskState::Queued, Finality::Buffered))
        );
        let task = TaskId::from(*id);
        let other = net.labels.iter().find(|label| **label != lonely).unwrap();
        assert_eq!(
            net.task(other, task, Consistency::Linearizable).await,
            None,
            "it is in no log"
        );
    }
    let OpAnswer::Tasks { tasks, .. } = net
        .agent(&lonely)
        .answer(OpRequest::Tasks {
            states: Default::default(),
            after: None,
            limit: 256,
            consistency: Consistency::Local,
            staleness_ms_max: None,
        })
        .await
    else {
        panic!("a local read goes on");
    };
    assert_eq!(
        tasks.iter().filter(|view| view.finality == Finality::Buffered).count(),
        8
    );
    // Without --buffer the same agent refuses.
    let plain = net.signed_task(Scope::Cluster);
    let outcome = net.agent(&lonely).enter(plain).await;
    assert!(
        matches!(outcome, WriteOutcome::Refused(WriteRefusal::NoQuorum { .. })),
        "{outcome:?}"
    );
    net.set_silent(&[&lonely], false);
    drained(&net, &lonely).await;
    let order = indexes(&net, &lonely, &ids).await;
    assert!(order.is_sorted(), "{order:?}");
    for (entry, index) in entries.iter().zip(&order) {
        let WriteOutcome::Committed(answer) = net.agent(&lonely).enter(entry.clone()).await else {
            panic!("it is in the log");
        };
        assert_eq!(answer.index.0, *index, "once");
    }
    for id in &ids {
        net.eventually("the ground executed it", || {
            net.ground.entries().contains(id).then_some(())
        })
        .await;
        assert_eq!(net.ground.entries().iter().filter(|entry| *entry == id).count(), 1);
    }
    net.eventually("it is shown as final", || {
        let view = |id: &EntryId| {
            net.agent(&lonely)
                .machine()
                .with(|state| state.queue.task_view(&TaskId::from(*id)))
        };
        let is_final = |id: &EntryId| view(id).is_some_and(|view| matches!(view.finality, Finality::Final { .. }));
        ids.iter().all(is_final).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn agent_that_is_killed_while_it_keeps_entries_enters_them_after_its_restart() {
    let (mut net, lonely) = cut().await;
    let entries: Vec<_> = (0..5).map(|_| net.signed_task(Scope::Cluster)).collect();
    let mut ids = Vec::new();
    for entry in &entries {
        ids.push(buffered(&net, &lonely, entry).await);
    }
    for _ in 0..2 {
        net.crash(&lonely).await;
        net.start(&lonely).await;
    }
    assert_eq!(net.agent(&lonely).status().buffer_entries, 5);
    net.set_silent(&[&lonely], false);
    // And killed in the middle of the drain, as often as it takes.
    let mut lives = 0;
    while net.agent(&lonely).status().buffer_entries > 0 {
        let before = net.agent(&lonely).status().buffer_entries;
        net.eventually("one left", || {
            (net.agent(&lonely).status().buffer_entries < before).then_some(())
        })
        .await;
        net.crash(&lonely).await;
        net.start(&lonely).await;
        lives += 1;
    }
    assert!(lives >= 1);
    let order = indexes(&net, &lonely, &ids).await;
    assert!(order.is_sorted(), "{order:?}");
    for id in &ids {
        net.eventually("the ground executed it", || {
            net.ground.entries().contains(id).then_some(())
        })
        .await;
    }
    let executed = net.ground.entries();
    for id in &ids {
        assert_eq!(executed.iter().filter(|entry| *entry == id).count(), 1, "once");
    }
}

#[tokio::test(start_paused = true)]
async fn entry_that_was_in_flight_at_the_cut_is_kept_and_is_one_entry() {
    let mut net = Net::normal(3).await;
    let leader = net.leader().await;
    net.set_silent(&[&leader], true);
    // Taken into the log of a leader that has lost its quorum, then kept as well.
    let entry = net.signed_task(Scope::Cluster);
    let id = buffered(&net, &leader, &entry).await;
    net.set_silent(&[&leader], false);
    drained(&net, &leader).await;
    indexes(&net, &leader, &[id]).await;
    net.eventually("the ground executed it", || {
        net.ground.entries().contains(&id).then_some(())
    })
    .await;
    assert_eq!(net.ground.entries().iter().filter(|entry| **entry == id).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn entry_that_was_committed_elsewhere_is_never_shown_as_refused() {
    let (mut net, lonely) = cut().await;
    let entry = net.signed_task(Scope::Cluster);
    let id = buffered(&net, &lonely, &entry).await;
    // Its author sent the same bytes to another agent, and used up so many numbers that the answer is forgotten.
    let other = net.labels.iter().find(|label| **label != lonely).unwrap().clone();
    let WriteOutcome::Committed(answer) = net.agent(&other).enter(entry).await else {
        panic!("the others have a quorum");
    };
    net.numbers += 10_000;
    net.submit(&other, Scope::Cluster).await;
    let old = net
        .fleet
        .submit("op1", C1, 9, Scope::Cluster, &common::testing::task("never entered"));
    let never = buffered(&net, &lonely, &old).await;
    net.set_silent(&[&lonely], false);
    drained(&net, &lonely).await;
    assert_eq!(state(&net, &lonely, id).await, Some(BufferedState::Committed(answer)));
    let refused = Verdict::Rejected(Reason::NumberWindow);
    match state(&net, &lonely, never).await {
        Some(BufferedState::Refused { verdict, .. }) => assert_eq!(verdict, refused),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn entry_that_expired_in_the_buffer_ends_visibly_with_its_reason() {
    let (mut net, lonely) = cut().await;
    let height = net.agent(&lonely).status().context.global_height;
    let draft = EntryDraft {
        author: net.fleet.id("op1"),
        key_version: KeyVersion(0),
        cluster: C1,
        number: EntryNumber(900),
        not_after_height: Height(height.0 + 1),
        scope: Scope::Cluster,
        action: Action::Submit,
    };
    let task = common::testing::task("late");
    let late = SignedEntry::submit(&net.fleet.key("op1"), &net.fleet.chain, draft, &task);
    let id = buffered(&net, &lonely, &late).await;
    let after = net.signed_task(Scope::Cluster);
    let next = buffered(&net, &lonely, &after).await;
    let other = net.labels.iter().find(|label| **label != lonely).unwrap().clone();
    net.eventually("the height has passed", || {
        (net.agent(&other).status().context.global_height.0 > height.0 + 1).then_some(())
    })
    .await;
    net.set_silent(&[&lonely], false);
    drained(&net, &lonely).await;
    let expired = Verdict::Rejected(Reason::Expired);
    let shown = finality(&net, &lonely, id).await;
    assert_eq!(
        shown,
        Some((TaskState::Expired, Finality::Refused { verdict: expired }))
    );
    match state(&net, &lonely, id).await {
        Some(BufferedState::Refused { verdict, .. }) => assert_eq!(verdict, expired),
        Some(BufferedState::Committed(answer)) => assert_eq!(answer.verdict, expired),
        other => panic!("{other:?}"),
    }
    indexes(&net, &lonely, &[next]).await;
    net.crash(&lonely).await;
    net.start(&lonely).await;
    assert!(finality(&net, &lonely, id).await.is_some(), "and still after a restart");
}

#[tokio::test(start_paused = true)]
async fn full_buffer_is_refused_by_name_and_bad_entries_are_not_kept() {
    let mut net = Net::of(3);
    net.limits.buffer.entries_max = 2;
    let mut net = net.all_started().await;
    let lonely = net.follower().await;
    net.mode(&lonely, Mode::Normal).await;
    net.set_silent(&[&lonely], true);
    net.mode(&lonely, Mode::ReadOnly).await;
    let reason = |answer: &OpAnswer| match answer {
        OpAnswer::Write {
            outcome: WriteOutcome::Refused(WriteRefusal::Rejected { verdict, .. }),
            ..
        } => Some(*verdict),
        _ => None,
    };
    let mut forged = net.signed_task(Scope::Cluster);
    forged.signature.s[0] ^= 1;
    let answer = enter_or_buffer(&net, &lonely, &forged).await;
    assert_eq!(
        reason(&answer),
        Some(Verdict::Rejected(Reason::Malformed)),
        "{answer:?}"
    );
    let cancel = Action::Cancel { task: TaskId([7; 32]) };
    let cancel = net.fleet.entry("op1", C1, 901, Scope::Cluster, cancel);
    let answer = enter_or_buffer(&net, &lonely, &cancel).await;
    assert_eq!(
        reason(&answer),
        Some(Verdict::Rejected(Reason::Malformed)),
        "{answer:?}"
    );
    let (a, b, c) = (
        net.signed_task(Scope::Cluster),
        net.signed_task(Scope::Fleet),
        net.signed_task(Scope::Cluster),
    );
    buffered(&net, &lonely, &a).await;
    buffered(&net, &lonely, &b).await;
    match enter_or_buffer(&net, &lonely, &c).await {
        OpAnswer::Write {
            outcome: WriteOutcome::Refused(WriteRefusal::Overloaded { what, retry_after_ms }),
            mode,
            ..
        } => {
            assert_eq!(
                (what.as_str(), mode, retry_after_ms > 0),
                ("buffer", Mode::ReadOnly, true)
            );
        }
        other => panic!("{other:?}"),
    }
    net.set_silent(&[&lonely], false);
    drained(&net, &lonely).await;
    // With a quorum nothing is kept.
    match enter_or_buffer(&net, &lonely, &c).await {
        OpAnswer::Write {
            outcome: WriteOutcome::Committed(_),
            ..
        } => {}
        other => panic!("{other:?}"),
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(net.agent(&lonely).status().buffer_entries, 0);
}
