//! Requests of those who may not lead: impossible terms, removed members, memberships that nothing backs,
//! two leaders; and honest requests that arrive twice or late. Each alone and over a lane.

use common::ids::{DeviceId, Digest, LogIndex, LogPosition, Term};

use super::{
    harness::{History, PATIENCE, id, member},
    target::{Target, append, command, leads, log_id},
};
use crate::raft::{
    LinkError, RaftAlarm, RaftRpc, RpcRefusal,
    codec::{
        self, AppendReply, AppendRequest, BallotReply, BallotRequest, SnapshotFrame, WireEntry, WireMember,
        WireMembership, WirePayload, WireVote,
    },
    decode_answer,
};

/// What no refused request may change.
fn state(target: &Target) -> (Term, LogIndex, LogPosition, History) {
    let status = target.handle.status();
    (
        status.term,
        status.last_index,
        status.committed,
        target.seat.machine.history(),
    )
}

impl Target {
    async fn ballot(&self, kind: RaftRpc, request: BallotRequest) -> Result<BallotReply, RpcRefusal> {
        let from = request.vote.candidate;
        let reply = self.handle.handle(from, kind, &codec::encode(request)).await?;
        Ok(codec::decode(&reply).unwrap())
    }

    /// The answer to a request that comes over a lane of its own.
    async fn append_over_lane(&self, from: u64, request: AppendRequest) -> Result<AppendReply, RpcRefusal> {
        let mut lane = self.lane(from);
        lane.sender.send(codec::encode(request).into()).await.unwrap();
        let body = tokio::time::timeout(PATIENCE, lane.receiver.recv()).await.unwrap();
        match decode_answer(body.unwrap().unwrap()) {
            Ok(reply) => Ok(codec::decode(&reply).unwrap()),
            Err(LinkError::Refused(refusal)) => Err(refusal),
            Err(other) => panic!("{other}"),
        }
    }

    /// Both ways get the same refusal and change nothing; the member still serves its leader.
    async fn refuses(&self, from: u64, request: &AppendRequest, refusal: RpcRefusal, log: &[WireEntry]) {
        let before = state(self);
        let alone = self.append_from(from, request.clone()).await;
        assert_eq!(alone, Err(refusal));
        let over_lane = self.append_over_lane(from, request.clone()).await;
        assert_eq!(over_lane, Err(refusal));
        assert_eq!(state(self), before);
        let heartbeat = append(leads(1, 2), log, &[], None);
        assert_eq!(self.append(heartbeat).await, Ok(AppendReply::Success));
    }
}

fn campaign(term: u64, candidate: u64) -> WireVote {
    WireVote {
        is_committed: false,
        ..leads(term, candidate)
    }
}

#[tokio::test(start_paused = true)]
async fn no_request_pushes_the_term_to_its_end() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let last = log.last().map(|entry| entry.id);
    let before = state(&target);
    for term in [u64::MAX, u64::MAX - 1, 2 + crate::raft::TERM_JUMP_MAX] {
        target
            .refuses(3, &append(leads(term, 3), &log, &[], None), RpcRefusal::TermJump, &log)
            .await;
        for (kind, is_transfer) in [(RaftRpc::Vote, false), (RaftRpc::Vote, true), (RaftRpc::PreVote, false)] {
            let vote = campaign(term, 3);
            let request = BallotRequest {
                vote,
                last,
                is_transfer,
            };
            assert_eq!(target.ballot(kind, request).await, Err(RpcRefusal::TermJump));
        }
    }
    assert_eq!(state(&target), before);
    let is_told = |alarm: &RaftAlarm| matches!(alarm, RaftAlarm::TermJump { from, .. } if *from == id(3));
    assert!(target.alarms().iter().all(is_told) && target.alarms().len() == 15);
}

#[tokio::test(start_paused = true)]
async fn another_members_name_is_refused_over_a_lane_too() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let request = append(leads(1, 2), &log, &[command(log_id(1, 2, 3), b"b")], None);
    target.refuses(3, &request, RpcRefusal::WrongSender, &log).await;
    let alarm = RaftAlarm::WrongSender {
        from: id(3),
        claimed: id(2),
    };
    assert_eq!(target.alarms(), [alarm.clone(), alarm]);
}

#[tokio::test(start_paused = true)]
async fn previous_entry_beyond_the_log_is_a_conflict_and_changes_nothing() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let mut beyond = log.clone();
    beyond.extend((3..50).map(|index| command(log_id(1, 2, index), b"missing")));
    let request = append(leads(1, 2), &beyond, &[command(log_id(1, 2, 50), b"x")], None);
    let before = state(&target);
    assert_eq!(target.append(request.clone()).await, Ok(AppendReply::Conflict));
    assert_eq!(target.append_over_lane(2, request).await, Ok(AppendReply::Conflict));
    assert_eq!(state(&target), before);
    assert_eq!(target.alarms(), []);
}

#[tokio::test(start_paused = true)]
async fn conflict_below_the_committed_index_and_a_bad_command_are_refused_over_a_lane_too() {
    let (target, log) = Target::holding(&[b"a", b"b"]).await;
    let replaces = append(leads(1, 2), &log[..1], &[command(log_id(1, 2, 2), b"other")], None);
    target.refuses(2, &replaces, RpcRefusal::ForkedLog, &log).await;
    let replaces = append(leads(2, 3), &log[..1], &[command(log_id(2, 3, 2), b"other")], None);
    target
        .refuses(3, &replaces, RpcRefusal::ConflictBelowCommitted, &log)
        .await;
    let bad = append(leads(1, 2), &log, &[command(log_id(1, 2, 4), b"bad")], None);
    target.refuses(2, &bad, RpcRefusal::BadCommand, &log).await;
    assert_eq!(target.alarms().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn commit_beyond_the_log_is_clamped_over_a_lane_too() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let beyond = Some(log_id(1, 2, u64::MAX));
    let request = append(leads(1, 2), &log, &[command(log_id(1, 2, 3), b"b")], beyond);
    assert_eq!(target.append_over_lane(2, request).await, Ok(AppendReply::Success));
    target.handle.wait_applied(LogIndex(3), PATIENCE).await.unwrap();
    assert_eq!(target.handle.status().committed.index, LogIndex(3));
}

fn membership_entry(index: u64, members: &[u64], device_of: impl Fn(u64) -> DeviceId) -> WireEntry {
    let rows = members.iter().map(|number| WireMember {
        id: id(*number),
        device: device_of(*number),
    });
    let voters = members.iter().map(|number| id(*number)).collect();
    WireEntry {
        id: log_id(1, 2, index),
        payload: WirePayload::Membership(WireMembership::new(vec![voters], rows.collect())),
    }
}

#[tokio::test(start_paused = true)]
async fn removed_member_gets_no_vote_and_its_term_is_not_adopted() {
    let (target, mut log) = Target::holding(&[b"a"]).await;
    let without_three = membership_entry(3, &[1, 2], |number| member(number).device);
    let request = append(
        leads(1, 2),
        &log,
        std::slice::from_ref(&without_three),
        Some(without_three.id),
    );
    assert_eq!(target.append(request).await, Ok(AppendReply::Success));
    log.push(without_three);
    target.handle.wait_applied(LogIndex(3), PATIENCE).await.unwrap();
    super::harness::until(&target.handle, "3 is out", |status| status.voters == [id(1), id(2)]).await;
    // The lease of the leader is over: nothing else stands in its way.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let before = state(&target);
    let ask = |candidate, last| BallotRequest {
        vote: campaign(7, candidate),
        last,
        is_transfer: false,
    };
    for last in [Some(log[1].id), Some(log[2].id)] {
        for kind in [RaftRpc::PreVote, RaftRpc::Vote] {
            assert_eq!(target.ballot(kind, ask(3, last)).await, Err(RpcRefusal::NotAMember));
        }
        let transfer = BallotRequest {
            is_transfer: true,
            ..ask(3, last)
        };
        assert_eq!(
            target.ballot(RaftRpc::Vote, transfer).await,
            Err(RpcRefusal::NotAMember)
        );
    }
    assert_eq!(state(&target), before);
    let alarm = RaftAlarm::NotAMember {
        from: id(3),
        term: Term(7),
    };
    assert_eq!(target.alarms(), vec![alarm; 6]);
    // One whom we do not know yet has the entry that adds it, and members are known.
    let newcomer = target.ballot(RaftRpc::PreVote, ask(4, Some(log_id(1, 2, 4)))).await;
    assert!(newcomer.unwrap().is_granted);
    let voter = target.ballot(RaftRpc::Vote, ask(2, Some(log[2].id))).await;
    assert!(voter.unwrap().is_granted);
}

#[tokio::test(start_paused = true)]
async fn removed_member_leads_nobody_and_one_who_is_not_known_yet_does() {
    let (target, mut log) = Target::holding(&[b"a"]).await;
    let change = |members: &[u64]| membership_entry(3, members, |number| member(number).device);
    // Until its removal is committed it may be the leader that commits it.
    let without_three = change(&[1, 2]);
    let request = append(leads(1, 2), &log, std::slice::from_ref(&without_three), None);
    assert_eq!(target.append(request).await, Ok(AppendReply::Success));
    log.push(without_three.clone());
    let heartbeat = |vote, log: &[WireEntry], committed| append(vote, log, &[], committed);
    let of_three = heartbeat(leads(2, 3), &log, None);
    assert_eq!(target.append(of_three).await, Ok(AppendReply::Success));
    let commit = heartbeat(leads(3, 2), &log, Some(without_three.id));
    assert_eq!(target.append(commit).await, Ok(AppendReply::Success));
    target.handle.wait_applied(LogIndex(3), PATIENCE).await.unwrap();
    let before = state(&target);
    let entry = [command(log_id(7, 3, 4), b"of a removed leader")];
    for request in [
        heartbeat(leads(7, 3), &log, None),
        append(leads(7, 3), &log, &entry, None),
    ] {
        assert_eq!(target.append(request.clone()).await, Err(RpcRefusal::NotAMember));
        let over_lane = target.append_over_lane(3, request).await;
        assert_eq!(over_lane, Err(RpcRefusal::NotAMember));
    }
    let frame = SnapshotFrame {
        vote: leads(7, 3),
        digest: Digest([9; 32]),
        bytes_total: 1_000,
        offset: 0,
        bytes: vec![0; 10].try_into().unwrap(),
    };
    let refused = target
        .handle
        .handle(id(3), RaftRpc::Snapshot, &codec::encode(frame))
        .await;
    assert_eq!(refused, Err(RpcRefusal::NotAMember));
    assert_eq!(state(&target), before);
    let alarm = RaftAlarm::NotAMember {
        from: id(3),
        term: Term(7),
    };
    assert_eq!(target.alarms(), vec![alarm; 5]);
    // An old leader that missed its removal is told of the newer term, and steps down.
    let late = target.append(heartbeat(leads(2, 3), &log, None)).await;
    assert_eq!(late, Ok(AppendReply::HigherVote(leads(3, 2))));
    // A leader that was added while this member was away looks for where the logs meet, below the entry that
    // tells of it.
    let of_four = heartbeat(leads(8, 4), &log[..2], None);
    assert_eq!(target.append(of_four).await, Ok(AppendReply::Success));
    let with_four = WireEntry {
        id: log_id(8, 4, 4),
        ..change(&[1, 2, 4])
    };
    let request = append(leads(8, 4), &log, &[with_four], None);
    assert_eq!(target.append_over_lane(4, request).await, Ok(AppendReply::Success));
    assert_eq!(target.last_index(), LogIndex(4));
}

#[tokio::test(start_paused = true)]
async fn membership_that_the_registry_does_not_back_is_refused() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let unknown = membership_entry(3, &[1, 2, 3], |number| member(number + number / 3).device);
    let request = append(leads(1, 2), &log, &[unknown], None);
    target.refuses(2, &request, RpcRefusal::BadMembership, &log).await;
    let alarm = RaftAlarm::BadMembership {
        from: id(2),
        index: LogIndex(3),
        why: "an unknown device".into(),
    };
    assert_eq!(target.alarms(), [alarm.clone(), alarm]);
    assert_eq!(target.handle.status().voters, [id(1), id(2), id(3)]);
}

#[tokio::test(start_paused = true)]
async fn second_leader_of_a_term_raises_one_alarm() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let heartbeat = |leader| append(leads(1, leader), &log, &[], None);
    for _ in 0..3 {
        assert_eq!(target.append_over_lane(3, heartbeat(3)).await, Ok(AppendReply::Success));
        assert_eq!(
            target.append(heartbeat(2)).await,
            Ok(AppendReply::HigherVote(leads(1, 3)))
        );
    }
    let alarm = RaftAlarm::TwoLeaders {
        term: Term(1),
        first: id(2),
        second: id(3),
    };
    assert_eq!(target.alarms(), [alarm]);
    assert_eq!(
        target.append(append(leads(2, 2), &log, &[], None)).await,
        Ok(AppendReply::Success)
    );
    assert_eq!(target.alarms().len(), 1, "another term");
}

#[tokio::test(start_paused = true)]
async fn request_that_arrives_twice_or_late_changes_nothing() {
    let (target, mut log) = Target::holding(&[b"a"]).await;
    let mut requests = Vec::new();
    for index in 3..8 {
        let new = command(log_id(1, 2, index), &[index as u8]);
        let committed = log.last().map(|entry| entry.id);
        requests.push(append(leads(1, 2), &log, std::slice::from_ref(&new), committed));
        log.push(new);
    }
    for request in &requests {
        assert_eq!(target.append(request.clone()).await, Ok(AppendReply::Success));
    }
    target.handle.wait_applied(LogIndex(6), PATIENCE).await.unwrap();
    let before = state(&target);
    for at in [4, 0, 2, 2, 1, 3, 0, 4] {
        assert_eq!(target.append(requests[at].clone()).await, Ok(AppendReply::Success));
        assert_eq!(
            target.append_over_lane(2, requests[at].clone()).await,
            Ok(AppendReply::Success)
        );
    }
    assert_eq!(state(&target), before);
    assert_eq!(target.alarms(), []);
}
