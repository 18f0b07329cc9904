//! Requests that no honest member sends: each is refused, raises an alarm, and changes nothing.
//!
//! The member under test is 1 of {1, 2, 3}; the test plays its leaders, byte for byte.

use common::ids::{LogIndex, Term};

use super::{
    harness::id,
    target::{Target, append, chain_of, command, leads, log_id},
};
use crate::raft::{
    RaftAlarm, RaftRpc, RpcRefusal, TERM_JUMP_MAX,
    codec::{self, AppendReply, AppendRequest, BallotReply, BallotRequest, WireVote},
};

#[tokio::test(start_paused = true)]
async fn append_with_a_bad_command_is_refused_whole() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let before = target.last_index();
    let new = [
        command(log_id(1, 2, 3), b"good"),
        command(log_id(1, 2, 4), b"bad"),
        command(log_id(1, 2, 5), b"good"),
    ];
    let refused = target.append(append(leads(1, 2), &log, &new, None)).await;
    assert_eq!(refused, Err(RpcRefusal::BadCommand));
    assert_eq!(target.last_index(), before, "nothing was appended");
    let alarm = RaftAlarm::BadCommand {
        from: id(2),
        index: LogIndex(4),
        why: "a bad command".into(),
    };
    assert_eq!(target.alarms(), [alarm]);
    // The same leader without the bad one goes on.
    assert_eq!(
        target.append(append(leads(1, 2), &log, &new[..1], None)).await,
        Ok(AppendReply::Success)
    );
}

#[tokio::test(start_paused = true)]
async fn forked_previous_entry_is_refused_and_never_truncated() {
    let (target, log) = Target::holding(&[b"a", b"b"]).await;
    // The same log ids over other bytes.
    let mut forked = log.clone();
    forked[2] = command(log_id(1, 2, 3), b"B");
    let new = [command(log_id(2, 3, 4), b"c")];
    let refused = target.append(append(leads(2, 3), &forked, &new, None)).await;
    assert_eq!(refused, Err(RpcRefusal::ForkedLog));
    let (ours, theirs) = (chain_of(&log), chain_of(&forked));
    assert_eq!(
        target.alarms(),
        [RaftAlarm::ForkedLog {
            index: LogIndex(3),
            ours,
            theirs
        }]
    );
    assert_eq!(target.last_index(), LogIndex(3));
    // A heartbeat that names the forked entry is refused as well.
    assert_eq!(
        target.append(append(leads(2, 3), &forked, &[], None)).await,
        Err(RpcRefusal::ForkedLog)
    );
    // The true history goes on.
    assert_eq!(
        target.append(append(leads(2, 3), &log, &new, None)).await,
        Ok(AppendReply::Success)
    );
}

#[tokio::test(start_paused = true)]
async fn forked_entry_under_a_held_id_is_refused() {
    let (target, log) = Target::holding(&[b"a", b"b"]).await;
    let forked = command(log_id(1, 2, 3), b"B");
    let refused = target.append(append(leads(1, 2), &log[..2], &[forked], None)).await;
    assert_eq!(refused, Err(RpcRefusal::ForkedLog));
    assert_eq!(target.last_index(), LogIndex(3));
}

#[tokio::test(start_paused = true)]
async fn entries_without_a_chain_are_refused() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let mut request = append(leads(1, 2), &log, &[command(log_id(1, 2, 3), b"b")], None);
    request.previous_chain = None;
    assert_eq!(target.append(request).await, Err(RpcRefusal::Malformed));
    assert_eq!(target.last_index(), LogIndex(2));
}

#[tokio::test(start_paused = true)]
async fn honest_conflict_above_the_committed_index_is_replaced() {
    let (target, log) = Target::holding(&[b"a", b"b"]).await;
    // Index 3 is not committed: a leader of a later term may replace it.
    let new = [command(log_id(2, 3, 3), b"other")];
    assert_eq!(
        target.append(append(leads(2, 3), &log[..2], &new, None)).await,
        Ok(AppendReply::Success)
    );
    assert_eq!(target.last_index(), LogIndex(3));
    let now: Vec<_> = log[..2].iter().chain(&new).cloned().collect();
    let next = [command(log_id(2, 3, 4), b"next")];
    assert_eq!(
        target.append(append(leads(2, 3), &now, &next, None)).await,
        Ok(AppendReply::Success)
    );
    assert_eq!(target.alarms(), []);
}

#[tokio::test(start_paused = true)]
async fn conflict_below_the_committed_index_is_refused() {
    let (target, log) = Target::holding(&[b"a", b"b"]).await;
    // Index 2 is committed.
    let new = [command(log_id(2, 3, 2), b"other")];
    let refused = target.append(append(leads(2, 3), &log[..1], &new, None)).await;
    assert_eq!(refused, Err(RpcRefusal::ConflictBelowCommitted));
    let alarm = RaftAlarm::ConflictBelowCommitted {
        index: LogIndex(2),
        committed: LogIndex(2),
    };
    assert_eq!(target.alarms(), [alarm]);
    assert_eq!(target.last_index(), LogIndex(3));
}

#[tokio::test(start_paused = true)]
async fn nobody_speaks_in_anothers_name() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let request = append(leads(1, 2), &log, &[], None);
    assert_eq!(target.append_from(3, request).await, Err(RpcRefusal::WrongSender));
    let vote = BallotRequest {
        vote: leads(9, 2),
        last: None,
        is_transfer: true,
    };
    for kind in [RaftRpc::Vote, RaftRpc::PreVote] {
        let refused = target.handle.handle(id(3), kind, &codec::encode(vote)).await;
        assert_eq!(refused, Err(RpcRefusal::WrongSender));
    }
    assert_eq!(
        target.alarms(),
        vec![
            RaftAlarm::WrongSender {
                from: id(3),
                claimed: id(2)
            };
            3
        ]
    );
    assert_eq!(target.handle.status().term, Term(1));
}

#[tokio::test(start_paused = true)]
async fn term_cannot_be_pushed_to_its_end() {
    let (target, _) = Target::holding(&[b"a"]).await;
    let vote = WireVote {
        term: Term(1 + TERM_JUMP_MAX + 1),
        candidate: id(3),
        is_committed: false,
    };
    let request = BallotRequest {
        vote,
        last: Some(log_id(1, 2, 99)),
        is_transfer: true,
    };
    let refused = target
        .handle
        .handle(id(3), RaftRpc::Vote, &codec::encode(request))
        .await;
    assert_eq!(refused, Err(RpcRefusal::TermJump));
    assert_eq!(target.handle.status().term, Term(1));
}

#[tokio::test(start_paused = true)]
async fn pre_vote_asks_and_changes_nothing() {
    let (target, log) = Target::holding(&[b"a"]).await;
    // Longer than the lease of the last leader.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let ask = |last| BallotRequest {
        vote: WireVote {
            term: Term(2),
            candidate: id(3),
            is_committed: false,
        },
        last,
        is_transfer: false,
    };
    let mut granted = Vec::new();
    for last in [log.last().map(|entry| entry.id), None] {
        let reply = target
            .handle
            .handle(id(3), RaftRpc::PreVote, &codec::encode(ask(last)))
            .await
            .unwrap();
        granted.push(codec::decode::<BallotReply>(&reply).unwrap().is_granted);
    }
    assert_eq!(granted, [true, false], "a whole log is granted, an empty one is not");
    assert_eq!(target.handle.status().term, Term(1));
}

#[tokio::test(start_paused = true)]
async fn commit_beyond_the_log_is_clamped() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let beyond = Some(log_id(1, 2, u64::MAX));
    let new = [command(log_id(1, 2, 3), b"b")];
    assert_eq!(
        target.append(append(leads(1, 2), &log, &new, beyond)).await,
        Ok(AppendReply::Success)
    );
    target
        .handle
        .wait_applied(LogIndex(3), super::harness::PATIENCE)
        .await
        .unwrap();
    assert_eq!(target.handle.status().committed.index, LogIndex(3));
}

#[tokio::test(start_paused = true)]
async fn contradictions_inside_a_request_are_refused() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let gap = append(leads(1, 2), &log, &[command(log_id(1, 2, 4), b"x")], None);
    let later = append(leads(1, 2), &log, &[command(log_id(2, 2, 3), b"x")], None);
    let falls = append(leads(1, 2), &log, &[command(log_id(0, 2, 3), b"x")], None);
    let above_sender = append(leads(1, 2), &log, &[command(log_id(1, 3, 3), b"x")], None);
    let candidate = AppendRequest {
        vote: WireVote {
            is_committed: false,
            ..leads(1, 2)
        },
        ..append(leads(1, 2), &log, &[], None)
    };
    for request in [gap, later, falls, above_sender, candidate] {
        assert_eq!(target.append(request).await, Err(RpcRefusal::Malformed));
    }
    let junk = target.handle.handle(id(2), RaftRpc::Append, &[7; 40]).await;
    assert_eq!(junk, Err(RpcRefusal::Malformed));
    assert_eq!(target.last_index(), LogIndex(2));
}

#[tokio::test(start_paused = true)]
async fn quarantined_member_answers_nobody() {
    let (target, log) = Target::holding(&[b"a"]).await;
    target.handle.quarantine("told to");
    assert_eq!(
        target.append(append(leads(1, 2), &log, &[], None)).await,
        Err(RpcRefusal::Quarantined)
    );
}
