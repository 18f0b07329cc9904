//! What confirms a linearizable read, with followers whose every answer the test gives.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use common::{ids::RaftNodeId, wire::cluster::Confirmation};
use futures::future::BoxFuture;
use transport::memory::{Fate, lane_pair};

use super::harness::{Handle, PATIENCE, Seat, id, member, quick};
use crate::{
    ports::Lane,
    raft::{
        AsyncRuntime as _, LinkError, REPLY_BYTES_MAX, RaftLink, RaftPorts, RaftRole, RaftRpc, TokioRuntime,
        codec::{self, AppendReply, AppendRequest, BallotReply, BallotRequest},
        network::encode_answer,
        propose::{ProposeOutcome, ReadRefusal},
    },
};

/// Members 2 and 3 as the leader sees them: they grant every vote; heartbeats are answered while that is switched on,
/// and requests of lanes when the test says so.
#[derive(Default)]
struct Puppets {
    lanes: Mutex<Vec<(RaftNodeId, Lane)>>,
    is_silent: AtomicBool,
    heartbeats: AtomicUsize,
}

impl RaftLink for Puppets {
    fn call(
        &self,
        _: RaftNodeId,
        kind: RaftRpc,
        body: Bytes,
        _: Duration,
    ) -> BoxFuture<'static, Result<Bytes, LinkError>> {
        if kind == RaftRpc::Append {
            self.heartbeats.fetch_add(1, Ordering::SeqCst);
        }
        let answer = match kind {
            RaftRpc::Vote | RaftRpc::PreVote => {
                let asked: BallotRequest = codec::decode(&body).unwrap();
                let (vote, is_granted, last) = (asked.vote, true, None);
                Ok(codec::encode(BallotReply { vote, is_granted, last }).into())
            }
            RaftRpc::Append if !self.is_silent.load(Ordering::SeqCst) => Ok(codec::encode(AppendReply::Success).into()),
            _ => Err(LinkError::Timeout),
        };
        Box::pin(async { answer })
    }

    fn open_lane(&self, to: RaftNodeId, _: Duration) -> BoxFuture<'static, Result<Lane, LinkError>> {
        let weather = Arc::new(|_| Fate::Arrives);
        let (ours, theirs) = lane_pair(RaftRpc::Append.request_bytes_max(), REPLY_BYTES_MAX, weather);
        self.lanes.lock().unwrap().push((to, theirs));
        Box::pin(async { Ok(ours) })
    }
}

/// Member 1, which leads the two.
struct Stage {
    puppets: Arc<Puppets>,
    leader: Handle,
    lanes: BTreeMap<RaftNodeId, Lane>,
    /// Requests without their answers, oldest first.
    waiting: BTreeMap<RaftNodeId, VecDeque<AppendRequest>>,
}

impl Stage {
    async fn set() -> Self {
        let (seat, puppets) = (Seat::in_memory(1), Arc::new(Puppets::default()));
        let ports = RaftPorts {
            log: seat.log.clone(),
            snapshots: seat.snapshots.clone(),
            link: puppets.clone(),
            machine: seat.machine.clone(),
            check: seat.check.clone(),
            alarms: Arc::new(|_| {}),
        };
        let leader = Handle::open(id(1), quick(), ports).await.unwrap();
        let founders = (1..=3).map(|number| (id(number), member(number))).collect();
        leader.initialize_once(founders).await.unwrap();
        let mut stage = Self {
            puppets,
            leader,
            lanes: BTreeMap::new(),
            waiting: BTreeMap::new(),
        };
        // Until everything of the election is committed, and both have been told.
        let mut quiet_ms = 0;
        while quiet_ms < 50 {
            stage.listen(Duration::from_millis(1)).await;
            let is_leading = stage.leader.status().role == RaftRole::Leader;
            let answered = stage.answer(2, usize::MAX).await + stage.answer(3, usize::MAX).await;
            quiet_ms = if answered == 0 && is_leading { quiet_ms + 1 } else { 0 };
        }
        assert!(stage.leader.status().committed.index.0 > 1);
        stage
    }

    /// Takes in what comes, for `time`.
    async fn listen(&mut self, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        loop {
            self.lanes.extend(self.puppets.lanes.lock().unwrap().drain(..));
            for (from, lane) in &mut self.lanes {
                while let Ok(Ok(Some(body))) = tokio::time::timeout(Duration::ZERO, lane.receiver.recv()).await {
                    let request = codec::decode(&body).unwrap();
                    self.waiting.entry(*from).or_default().push_back(request);
                }
            }
            if tokio::time::Instant::now() >= until {
                return;
            }
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
    }

    /// Member `of` answers its oldest requests, at most so many, well. Returns how many it answered.
    async fn answer(&mut self, of: u64, count_max: usize) -> usize {
        let waiting = self.waiting.entry(id(of)).or_default();
        let count = waiting.len().min(count_max);
        for _ in waiting.drain(..count) {
            let lane = self.lanes.get_mut(&id(of)).unwrap();
            let reply = encode_answer(Ok(codec::encode(AppendReply::Success)));
            lane.sender.send(reply).await.unwrap();
        }
        count
    }

    fn waiting(&self, of: u64) -> Vec<usize> {
        self.waiting[&id(of)]
            .iter()
            .map(|request| request.entries.len())
            .collect()
    }
}

#[tokio::test(start_paused = true)]
async fn answer_that_was_given_before_a_read_does_not_confirm_it() {
    let mut stage = Stage::set().await;
    stage.puppets.is_silent.store(true, Ordering::SeqCst);
    // An entry goes to both; their answers are under way when a read begins.
    let leader = stage.leader.clone();
    let writing = TokioRuntime::spawn(async move { leader.propose(b"x".to_vec(), PATIENCE).await });
    stage.listen(Duration::from_millis(5)).await;
    assert_eq!((stage.waiting(2), stage.waiting(3)), (vec![1], vec![1]));
    let leader = stage.leader.clone();
    let mut reading =
        TokioRuntime::spawn(async move { leader.linearizable_position(Confirmation::AtOnce, PATIENCE).await });
    stage.listen(Duration::from_millis(5)).await;
    // The first answer commits the entry, of which the third member is told, behind the request that it has answered.
    stage.answer(2, 1).await;
    stage.listen(Duration::from_millis(5)).await;
    assert_eq!(stage.waiting(3), [1, 0]);
    assert!(matches!(writing.await.unwrap(), ProposeOutcome::Committed { .. }));
    stage.answer(3, 1).await;
    stage.listen(Duration::from_millis(20)).await;
    let early = tokio::time::timeout(Duration::ZERO, &mut reading).await;
    assert!(early.is_err(), "confirmed by answers to older requests: {early:?}");
    // The answer to what was sent after the read had begun does.
    stage.answer(3, 1).await;
    let read = tokio::time::timeout(Duration::from_millis(20), reading).await;
    assert!(read.expect("it is confirmed").unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn read_that_nobody_confirms_ends_with_its_deadline() {
    let stage = Stage::set().await;
    stage.puppets.is_silent.store(true, Ordering::SeqCst);
    let begun = tokio::time::Instant::now();
    let read = stage
        .leader
        .linearizable_position(Confirmation::AtOnce, Duration::from_millis(100))
        .await;
    assert!(
        matches!(read, Err(ReadRefusal::NoQuorum | ReadRefusal::Deadline)),
        "{read:?}"
    );
    assert!(begun.elapsed() <= Duration::from_millis(200));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_alone_confirm_a_read() {
    let stage = Stage::set().await;
    let read = stage.leader.linearizable_position(Confirmation::AtOnce, PATIENCE).await;
    assert_eq!(read.unwrap().index, stage.leader.status().committed.index);
}

#[tokio::test(start_paused = true)]
async fn read_in_passing_sends_nothing_and_is_confirmed_by_the_next_heartbeats() {
    let stage = Stage::set().await;
    let heartbeats = || stage.puppets.heartbeats.load(Ordering::SeqCst);
    let interval = Duration::from_millis(quick().heartbeat_ms);
    let read = async |confirmation| {
        // Both were just told that their leader lives.
        let before = heartbeats();
        let told = async {
            while heartbeats() < before + 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let told = tokio::time::timeout(PATIENCE, told).await;
        told.expect("a leader says that it lives");
        let (begun, before) = (tokio::time::Instant::now(), heartbeats());
        let read = stage.leader.linearizable_position(confirmation, PATIENCE).await;
        assert_eq!(read.unwrap().index, stage.leader.status().committed.index);
        (begun.elapsed(), heartbeats() - before)
    };
    let (took, _) = read(Confirmation::AtOnce).await;
    assert!(took < interval / 4, "it asks: {took:?}");
    let (took, sent) = read(Confirmation::InPassing).await;
    assert!(took > interval / 2 && took < interval * 2, "it waits: {took:?}");
    assert!(sent <= 2, "the usual ones: {sent}");
}
