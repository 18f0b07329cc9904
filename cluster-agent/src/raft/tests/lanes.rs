//! Replication lanes: order, pipelining, bounds, and lanes that break.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::ids::{LogIndex, RaftNodeId};
use futures::{StreamExt, future::BoxFuture, stream};
use openraft::{
    errors::RPCError,
    network::{RPCOption, RaftNetworkFactory, RaftNetworkV2},
    raft::{AppendEntriesRequest, StreamAppendError},
};
use transport::memory::{Fate, lane_pair};

use super::{
    harness::{Cluster, HeldLog, PATIENCE, Seat, eventually, id, member, quick},
    target::{Target, append, chain_of, command, leads, log_id},
};
use crate::{
    ports::Lane,
    raft::{
        AsyncRuntime as _, LinkError, REPLY_BYTES_MAX, RaftAlarm, RaftLink, RaftRole, RaftRpc, RpcRefusal,
        TokioRuntime,
        codec::{self, AppendReply, AppendRequest},
        decode_answer, encode_answer,
        log::RaftLog,
        network::Network,
        store::{memory::MemoryLog, snapshot::MemorySnapshots},
        types::{TypeConfig, entry_from_wire, log_id_from_wire, vote_from_wire},
    },
};

async fn send(lane: &mut Lane, request: AppendRequest) {
    lane.sender.send(codec::encode(request).into()).await.unwrap();
}

/// The next answer; `None` at the end of the lane.
async fn answer(lane: &mut Lane) -> Option<Result<AppendReply, RpcRefusal>> {
    let body = tokio::time::timeout(PATIENCE, lane.receiver.recv())
        .await
        .unwrap()
        .unwrap()?;
    Some(match decode_answer(body) {
        Ok(reply) => Ok(codec::decode(&reply).unwrap()),
        Err(LinkError::Refused(refusal)) => Err(refusal),
        Err(other) => panic!("{other}"),
    })
}

#[tokio::test(start_paused = true)]
async fn requests_of_a_lane_do_not_wait_for_each_others_flush() {
    let log = Arc::new(HeldLog::default());
    let seat = Seat::on(1, log.clone(), Arc::new(MemorySnapshots::default()));
    let (target, mut held) = Target::on(seat, quick()).await.fill(&[b"a"]).await;
    let mut lane = target.lane(2);
    log.hold();
    for index in 3..8 {
        let new = command(log_id(1, 2, index), &[index as u8]);
        send(&mut lane, append(leads(1, 2), &held, std::slice::from_ref(&new), None)).await;
        held.push(new);
    }
    // All five are with the disk though none is durable, and none is answered.
    eventually("five appends wait for the disk", || log.waiting() >= 5).await;
    let early = tokio::time::timeout(Duration::from_secs(1), lane.receiver.recv()).await;
    assert!(early.is_err(), "answered before it was durable");
    log.release();
    for _ in 3..8 {
        assert_eq!(answer(&mut lane).await, Some(Ok(AppendReply::Success)));
    }
    assert_eq!(target.last_index(), LogIndex(7));
    lane.sender.end(None).await;
    assert_eq!(answer(&mut lane).await, None);
}

#[tokio::test(start_paused = true)]
async fn peer_with_many_lanes_delays_nobody_but_itself() {
    let (target, log) = Target::holding(&[b"a"]).await;
    // Each is served, or waits for its turn, for as long as it is open.
    let mut idle: Vec<Lane> = (0..40).map(|_| target.lane(3)).collect();
    // One thread begins them in turn: with this answer all 40 have begun. (It refuses a leader of the past.)
    send(&mut idle[0], append(leads(0, 3), &log, &[], None)).await;
    assert!(answer(&mut idle[0]).await.is_some());
    let mut lane = target.lane(2);
    let third = command(log_id(1, 2, 3), b"b");
    send(&mut lane, append(leads(1, 2), &log, &[third], None)).await;
    assert_eq!(answer(&mut lane).await, Some(Ok(AppendReply::Success)));
    // As soon as the first ones end the others have their turn.
    let mut last = idle.pop().unwrap();
    drop(idle);
    send(&mut last, append(leads(1, 3), &log, &[], None)).await;
    assert!(answer(&mut last).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn conflict_in_the_middle_ends_the_lane_after_what_was_before_it() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let mut lane = target.lane(2);
    let third = command(log_id(1, 2, 3), b"b");
    send(&mut lane, append(leads(1, 2), &log, std::slice::from_ref(&third), None)).await;
    // Above entries that are not here.
    let mut missing = log.clone();
    missing.push(third.clone());
    missing.extend((4..9).map(|index| command(log_id(1, 2, index), b"missing")));
    send(
        &mut lane,
        append(leads(1, 2), &missing, &[command(log_id(1, 2, 9), b"c")], None),
    )
    .await;
    missing.push(command(log_id(1, 2, 9), b"c"));
    send(
        &mut lane,
        append(leads(1, 2), &missing, &[command(log_id(1, 2, 10), b"d")], None),
    )
    .await;
    assert_eq!(answer(&mut lane).await, Some(Ok(AppendReply::Success)));
    assert_eq!(answer(&mut lane).await, Some(Ok(AppendReply::Conflict)));
    assert_eq!(answer(&mut lane).await, None);
    assert_eq!(target.last_index(), LogIndex(3));
    // The leader goes back to where the logs meet, on another lane.
    let mut lane = target.lane(2);
    send(&mut lane, append(leads(1, 2), &missing[..3], &missing[3..], None)).await;
    assert_eq!(answer(&mut lane).await, Some(Ok(AppendReply::Success)));
    assert_eq!(target.last_index(), LogIndex(9));
    assert_eq!(target.alarms(), []);
}

#[tokio::test(start_paused = true)]
async fn higher_vote_ends_the_lane_of_an_old_leader() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let (mut old, mut new) = (target.lane(2), target.lane(3));
    send(&mut new, append(leads(2, 3), &log, &[], None)).await;
    assert_eq!(answer(&mut new).await, Some(Ok(AppendReply::Success)));
    send(
        &mut old,
        append(leads(1, 2), &log, &[command(log_id(1, 2, 3), b"x")], None),
    )
    .await;
    assert_eq!(answer(&mut old).await, Some(Ok(AppendReply::HigherVote(leads(2, 3)))));
    assert_eq!(answer(&mut old).await, None);
    assert_eq!(target.last_index(), LogIndex(2));
}

#[tokio::test(start_paused = true)]
async fn bad_request_on_a_lane_is_refused_after_the_good_ones_and_ends_it() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let third = command(log_id(1, 2, 3), b"b");
    let upto_third: Vec<_> = log.iter().chain([&third]).cloned().collect();
    let above = |leader: u64, held: &[_], bytes: &[u8]| {
        append(leads(1, leader), held, &[command(log_id(1, 2, 4), bytes)], None)
    };
    let mut unknown_chain = above(2, &upto_third, b"c");
    unknown_chain.previous_chain = Some(common::ids::Digest([9; 32]));
    let mut no_chain = above(2, &upto_third, b"c");
    no_chain.previous_chain = None;
    let mut last = LogIndex(2);
    for (what, bad, refusal) in [
        ("bad command", above(2, &upto_third, b"bad"), RpcRefusal::BadCommand),
        ("another's name", above(3, &upto_third, b"c"), RpcRefusal::WrongSender),
        ("forked above what is on its way", unknown_chain, RpcRefusal::ForkedLog),
        ("no chain", no_chain, RpcRefusal::Malformed),
    ] {
        let mut lane = target.lane(2);
        send(&mut lane, append(leads(1, 2), &log, std::slice::from_ref(&third), None)).await;
        send(&mut lane, bad).await;
        send(&mut lane, above(2, &upto_third, b"after it")).await;
        assert_eq!(answer(&mut lane).await, Some(Ok(AppendReply::Success)), "{what}");
        assert_eq!(answer(&mut lane).await, Some(Err(refusal)), "{what}");
        assert_eq!(answer(&mut lane).await, None, "{what}");
        last = last.max(LogIndex(3));
        assert_eq!(target.last_index(), last, "{what}");
    }
    let mut lane = target.lane(2);
    lane.sender.send(Bytes::from_static(&[7; 40])).await.unwrap();
    assert_eq!(answer(&mut lane).await, Some(Err(RpcRefusal::Malformed)));
    // It still serves.
    assert_eq!(
        target.append(above(2, &upto_third, b"good")).await,
        Ok(AppendReply::Success)
    );
}

#[tokio::test(start_paused = true)]
async fn histories_that_contradict_each_other_do_not_meet_in_the_log() {
    let (target, log) = Target::holding(&[b"a"]).await;
    let server = target.handle.inner.server.clone();
    let third = |bytes: &[u8]| command(log_id(1, 2, 3), bytes);
    let admit = |request: AppendRequest| server.admit(id(2), |_| Ok(request)).map(|(_, claim)| claim);
    // Let through, and not in the log yet.
    let claim = admit(append(leads(1, 2), &log, &[third(b"true")], None)).ok().unwrap();
    let mut forked = log.clone();
    forked.push(third(b"false"));
    let fourth = [command(log_id(1, 2, 4), b"x")];
    let refused = admit(append(leads(1, 2), &forked, &fourth, None)).err();
    assert_eq!(refused, Some(RpcRefusal::ForkedLog));
    let mut honest = log.clone();
    honest.push(third(b"true"));
    let alarm = RaftAlarm::ForkedLog {
        index: LogIndex(3),
        ours: chain_of(&honest),
        theirs: chain_of(&forked),
    };
    assert_eq!(target.alarms(), [alarm]);
    assert!(admit(append(leads(1, 2), &honest, &fourth, None)).is_ok());
    // What a request names as its previous entry binds those after it as well.
    drop(claim);
    let _claim = admit(append(leads(1, 2), &forked, &fourth, None)).ok().unwrap();
    let refused = admit(append(leads(1, 2), &log, &[third(b"true")], None)).err();
    assert_eq!(refused, Some(RpcRefusal::ForkedLog));
}

#[tokio::test(start_paused = true)]
async fn broken_lane_resumes_where_the_follower_stands() {
    let cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    let term = cluster.handles[leader].status().term;
    let (from, to) = (cluster.seats[leader].id, cluster.seats[(leader + 1) % 3].id);
    for round in 0..5u8 {
        cluster.commit(leader, &[round, 0]).await;
        cluster.board.set_clogged(from, to, true);
        for number in 1..20u8 {
            cluster.commit(leader, &[round, number]).await;
        }
        // Long enough for the lane to be given up, and opened again in vain.
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.board.set_clogged(from, to, false);
        let last = cluster.commit(leader, &[round, 20]).await.index;
        cluster.all_applied(last).await;
    }
    let history = cluster.seats[leader].machine.history();
    assert_eq!(history.commands.len(), 5 * 21);
    for seat in &cluster.seats {
        assert_eq!(seat.machine.history(), history);
        assert_eq!(seat.alarms.lock().unwrap().len(), 0);
    }
    assert_eq!(
        cluster.handles[leader].status().term,
        term,
        "heartbeats do not go over lanes"
    );
}

#[tokio::test(start_paused = true)]
async fn slow_follower_holds_up_nobody() {
    let logs: Vec<_> = (0..3).map(|_| Arc::new(HeldLog::default())).collect();
    let seats = (1..)
        .zip(&logs)
        .map(|(number, log)| Seat::on(number, log.clone(), Arc::new(MemorySnapshots::default())));
    let cluster = Cluster::start(seats.collect(), quick()).await;
    let leader = cluster.leader().await;
    cluster.commit(leader, b"first").await;
    let slow = (leader + 1) % 3;
    logs[slow].hold();
    let proposals = (0..500u32).map(|number| {
        let command = number.to_le_bytes();
        let handle = &cluster.handles[leader];
        async move { handle.propose(command.to_vec(), PATIENCE).await }
    });
    let outcomes = futures::future::join_all(proposals).await;
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, crate::raft::ProposeOutcome::Committed { .. }))
    );
    assert_eq!(cluster.handles[leader].status().role, RaftRole::Leader);
    logs[slow].release();
    let last = cluster.commit(leader, b"last").await.index;
    cluster.all_applied(last).await;
    assert_eq!(
        cluster.seats[slow].machine.history(),
        cluster.seats[leader].machine.history()
    );
}

#[tokio::test(start_paused = true)]
async fn leader_stays_while_its_lanes_are_stuck() {
    let cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    let term = cluster.handles[leader].status().term;
    let others = [(leader + 1) % 3, (leader + 2) % 3].map(|at| cluster.seats[at].id);
    for other in others {
        cluster.board.set_clogged(cluster.seats[leader].id, other, true);
    }
    let handle = cluster.handles[leader].clone();
    let stuck = TokioRuntime::spawn(async move { handle.propose(&b"stuck"[..], PATIENCE).await });
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let status = cluster.handles[leader].status();
        assert_eq!((status.role, status.term), (RaftRole::Leader, term));
        assert!(status.quorum_acked_age_ms.unwrap() < 300, "{status:?}");
    }
    assert!(!stuck.is_finished());
    for other in others {
        cluster.board.set_clogged(cluster.seats[leader].id, other, false);
    }
    assert!(matches!(
        stuck.await.unwrap(),
        crate::raft::ProposeOutcome::Committed { .. }
    ));
}

/// Gives one end of each lane to the test.
#[derive(Default)]
struct Hands {
    lanes: Mutex<Vec<Lane>>,
}

impl RaftLink for Hands {
    fn call(&self, _: RaftNodeId, _: RaftRpc, _: Bytes, _: Duration) -> BoxFuture<'static, Result<Bytes, LinkError>> {
        Box::pin(async { Err(LinkError::Timeout) })
    }

    fn open_lane(&self, _: RaftNodeId, _: Duration) -> BoxFuture<'static, Result<Lane, LinkError>> {
        let weather = Arc::new(|_| Fate::Arrives);
        let (ours, theirs) = lane_pair(RaftRpc::Append.request_bytes_max(), REPLY_BYTES_MAX, weather);
        self.lanes.lock().unwrap().push(theirs);
        Box::pin(async { Ok(ours) })
    }
}

type Request = AppendEntriesRequest<TypeConfig<TokioRuntime>>;

/// A request with one entry of `bytes` bytes at `index`, which is 1 for the first.
fn request(index: u64, bytes: usize) -> Request {
    let previous = (index > 1).then(|| log_id(1, 1, index - 1));
    let entry = command(log_id(1, 1, index), &vec![7; bytes]);
    AppendEntriesRequest {
        vote: vote_from_wire(leads(1, 1)),
        prev_log_id: previous.map(log_id_from_wire),
        entries: vec![entry_from_wire(entry, None, None).unwrap()],
        leader_commit: None,
    }
}

struct Leader {
    hands: Arc<Hands>,
    network: Network<TokioRuntime>,
}

impl Leader {
    /// Its log holds `entries` commands of `bytes` bytes.
    async fn holding(entries: u64, bytes: usize) -> Self {
        let mut log = RaftLog::open_with(Arc::new(MemoryLog::new()), Arc::new(|_| {}), 1024 * 1024).unwrap();
        let held = (1..=entries).flat_map(|index| request(index, bytes).entries);
        openraft::storage::RaftLogStorage::append(&mut log, held, openraft::storage::IOFlushed::noop())
            .await
            .unwrap();
        let hands = Arc::new(Hands::default());
        let network = Network {
            me: id(1),
            link: hands.clone(),
            log,
            frame_timeout: Duration::from_secs(1),
            lane_timeout: Duration::from_millis(150),
            news_patience: Duration::from_millis(1),
            confirmations: Arc::default(),
            encodings: Arc::default(),
        };
        Self { hands, network }
    }

    /// The other end of the lane that a session has opened.
    async fn lane(&self, session: &mut (impl futures::Stream<Item: Debug> + Unpin)) -> Lane {
        // A session opens its lane with its first request.
        let early = futures::future::poll_fn(|cx| std::task::Poll::Ready(session.poll_next_unpin(cx)));
        assert!(early.await.is_pending());
        self.hands.lanes.lock().unwrap().pop().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_are_bounded_and_silence_ends_the_lane() {
    for (bytes, in_flight) in [(10, 16), (10_000, 16), (15_000, 16), (60_000, 8)] {
        // Entries are at most 16 KiB: larger requests have more of them.
        let per_request = bytes / 15_001 + 1;
        let mut leader = Leader::holding(100 * per_request as u64, bytes / per_request).await;
        let mut client = leader.network.new_client(2, &member(2)).await;
        let requests = (0..100u64).map(move |number| {
            let first = 1 + number * per_request as u64;
            let mut whole = request(first, bytes / per_request);
            for index in first + 1..first + per_request as u64 {
                whole.entries.extend(request(index, bytes / per_request).entries);
            }
            whole
        });
        let option = RPCOption::new(Duration::from_millis(50));
        let mut answers = client.stream_append(stream::iter(requests), option).await.ok().unwrap();
        let mut theirs = leader.lane(&mut answers).await;
        let outcome = answers.next().await.unwrap();
        assert!(matches!(outcome, Err(RPCError::Timeout(_))), "{outcome:?}");
        assert!(answers.next().await.is_none());
        drop(answers);
        let mut got = 0;
        while let Ok(Some(_)) = theirs.receiver.recv().await {
            got += 1;
        }
        assert_eq!(got, in_flight, "requests of {bytes} bytes");
    }
}

/// News of a commit, after `index`.
fn commit_news(index: u64) -> Request {
    AppendEntriesRequest {
        prev_log_id: Some(log_id_from_wire(log_id(1, 1, index))),
        entries: vec![],
        leader_commit: Some(log_id_from_wire(log_id(1, 1, index))),
        ..request(index + 1, 1)
    }
}

#[tokio::test(start_paused = true)]
async fn news_of_a_commit_travels_with_entries_that_follow_closely() {
    for (pause, sent) in [
        (Duration::ZERO, vec![Some(1), Some(2)]),
        (Duration::from_millis(20), vec![Some(1), None, Some(2)]),
    ] {
        let mut leader = Leader::holding(2, 10).await;
        let mut client = leader.network.new_client(2, &member(2)).await;
        let later = async move {
            tokio::time::sleep(pause).await;
            request(2, 10)
        };
        let requests = stream::iter([request(1, 10), commit_news(1)]).chain(stream::once(Box::pin(later)));
        let option = RPCOption::new(Duration::from_millis(50));
        let mut answers = client.stream_append(requests, option).await.ok().unwrap();
        let mut theirs = leader.lane(&mut answers).await;
        let serving = async {
            let mut got = Vec::new();
            while let Ok(Some(body)) = theirs.receiver.recv().await {
                let request: AppendRequest = codec::decode(&body).unwrap();
                got.push(request.entries.last().map(|entry| entry.id.index.0));
                let reply = encode_answer(Ok(codec::encode(AppendReply::Success)));
                theirs.sender.send(reply).await.unwrap();
            }
            got
        };
        let ((), got) = futures::join!(
            async {
                let mut acked = None;
                while let Some(answer) = answers.next().await {
                    acked = answer.unwrap().unwrap();
                }
                assert_eq!(acked, Some(log_id_from_wire(log_id(1, 1, 2))), "all is acknowledged");
                drop(answers);
            },
            serving
        );
        assert_eq!(got, sent, "entries {pause:?} after the news");
    }
}

#[tokio::test(start_paused = true)]
async fn third_request_in_flight_is_made_later_so_that_it_holds_more() {
    let mut leader = Leader::holding(100, 10).await;
    let mut client = leader.network.new_client(2, &member(2)).await;
    let made = Arc::new(Mutex::new(Vec::new()));
    let begin = tokio::time::Instant::now();
    let log = made.clone();
    let requests = stream::iter(1..=100u64).map(move |index| {
        log.lock().unwrap().push(begin.elapsed());
        request(index, 10)
    });
    let option = RPCOption::new(Duration::from_millis(50));
    let mut answers = client.stream_append(requests, option).await.ok().unwrap();
    let _theirs = leader.lane(&mut answers).await;
    assert!(matches!(answers.next().await, Some(Err(RPCError::Timeout(_)))));
    let made = made.lock().unwrap().clone();
    assert_eq!(made.len(), 16, "and no more than may be in flight");
    assert!(made[1] < Duration::from_millis(1), "two at once");
    for pair in made[1..].windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_millis(1), "{made:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn answers_belong_to_their_requests_and_the_first_bad_one_ends_the_session() {
    let conflict = || Ok(codec::encode(AppendReply::Conflict));
    let success = || Ok(codec::encode(AppendReply::Success));
    let higher = || Ok(codec::encode(AppendReply::HigherVote(leads(9, 3))));
    let partial = || Ok(codec::encode(AppendReply::PartialSuccess(Some(log_id(1, 1, 1)))));
    for (what, last) in [
        ("conflict", conflict()),
        ("higher vote", higher()),
        ("partial", partial()),
        ("refusal", Err(RpcRefusal::BadCommand)),
        ("junk", Ok(vec![7; 9])),
    ] {
        let mut leader = Leader::holding(10, 10).await;
        let mut client = leader.network.new_client(2, &member(2)).await;
        let requests = stream::iter((1..=10).map(|index| request(index, 10)));
        let option = RPCOption::new(Duration::from_millis(50));
        let mut answers = client.stream_append(requests, option).await.ok().unwrap();
        let mut theirs = leader.lane(&mut answers).await;
        for reply in [success(), success(), last, success()] {
            theirs.sender.send(encode_answer(reply)).await.unwrap();
        }
        for index in 1..=2 {
            let outcome = answers.next().await.unwrap().unwrap();
            assert_eq!(outcome, Ok(Some(log_id_from_wire(log_id(1, 1, index)))), "{what}");
        }
        let end = answers.next().await.unwrap();
        match what {
            "conflict" => {
                let previous = log_id_from_wire(log_id(1, 1, 2));
                assert_eq!(end.unwrap(), Err(StreamAppendError::Conflict(previous)));
            }
            "higher vote" => {
                let vote = vote_from_wire(leads(9, 3));
                assert_eq!(end.unwrap(), Err(StreamAppendError::HigherVote(vote)));
            }
            "partial" => assert_eq!(end.unwrap(), Ok(Some(log_id_from_wire(log_id(1, 1, 1))))),
            "refusal" => assert!(matches!(end, Err(RPCError::Unreachable(_))), "{end:?}"),
            _ => assert!(matches!(end, Err(RPCError::Network(_))), "{end:?}"),
        }
        assert!(answers.next().await.is_none(), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn session_ends_with_its_requests_and_an_idle_lane_that_breaks_is_noticed() {
    let mut leader = Leader::holding(2, 10).await;
    let mut client = leader.network.new_client(2, &member(2)).await;
    let option = || RPCOption::new(Duration::from_millis(50));
    let mut answers = client
        .stream_append(stream::iter([request(1, 10)]), option())
        .await
        .ok()
        .unwrap();
    let mut theirs = leader.lane(&mut answers).await;
    let reply = encode_answer(Ok(codec::encode(AppendReply::Success)));
    theirs.sender.send(reply).await.unwrap();
    assert!(matches!(answers.next().await, Some(Ok(Ok(Some(_))))));
    assert!(answers.next().await.is_none());
    drop(answers);
    // Nothing is in flight for an hour; then the peer goes.
    let requests = stream::iter([request(1, 10)]).chain(stream::pending());
    let mut answers = client.stream_append(requests, option()).await.ok().unwrap();
    let mut theirs = leader.lane(&mut answers).await;
    theirs
        .sender
        .send(encode_answer(Ok(codec::encode(AppendReply::Success))))
        .await
        .unwrap();
    assert!(matches!(answers.next().await, Some(Ok(Ok(Some(_))))));
    assert!(
        tokio::time::timeout(Duration::from_secs(3_600), answers.next())
            .await
            .is_err()
    );
    drop(theirs);
    let end = tokio::time::timeout(PATIENCE, answers.next()).await.unwrap();
    assert!(matches!(end, Some(Err(RPCError::Network(_)))), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn heartbeat_is_a_call_of_its_own() {
    let mut leader = Leader::holding(0, 0).await;
    let mut client = leader.network.new_heartbeat_client(2, &member(2)).await;
    let heartbeat = AppendEntriesRequest {
        entries: vec![],
        ..request(1, 1)
    };
    let option = RPCOption::new(Duration::from_millis(50));
    let mut answers = client
        .stream_append(stream::iter([heartbeat]), option)
        .await
        .ok()
        .unwrap();
    assert!(
        matches!(answers.next().await, Some(Err(RPCError::Timeout(_)))),
        "the link answers no call"
    );
    assert!(leader.hands.lanes.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn peer_that_is_away_is_asked_with_pauses() {
    let mut cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    cluster.handles[away].shutdown().await;
    cluster.board.unplug(cluster.seats[away].id);
    cluster.commit(leader, b"x").await;
    let before = cluster.board.lanes_opened(cluster.seats[leader].id);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let opened = cluster.board.lanes_opened(cluster.seats[leader].id) - before;
    assert!(opened <= 10 * 20, "{opened} lanes in ten seconds");
    cluster.seats[away].machine = Arc::default();
    cluster.handles[away] = cluster.seats[away].open(quick(), &cluster.board).await;
    let last = cluster.commit(leader, b"y").await.index;
    cluster.handles[away].wait_applied(last, PATIENCE).await.unwrap();
}
