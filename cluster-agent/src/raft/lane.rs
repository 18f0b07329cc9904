//! The follower's half of a replication lane: requests enter openraft one after another, without waiting
//! for each other's flush, and are answered in order.
//!
//! # Rules
//! * Each request passes the same checks as one that comes alone; what is on its way into the log counts
//!   as held ([`super::on_the_way`]).
//! * At the first request that is refused: answer what came before it, then it, and end the lane. Nothing
//!   behind it is looked at.
//! * At the first that conflicts or meets a higher vote: the same. What was read behind it meanwhile is
//!   judged by itself and goes without an answer: the leader sends it again.
//! * Upon the end of a lane, whoever ends it: what openraft has taken counts as on its way until it has answered.
//! * Requests in hand are bounded in bytes; beyond that the peer's next ones wait on its side.
//! * Lanes are bounded for each peer: one that opens many delays nobody but itself.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use common::ids::RaftNodeId;
use futures::{
    FutureExt, StreamExt,
    channel::oneshot,
    future::{Either, select},
    stream,
};
use openraft::{
    errors::Fatal,
    raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult},
};
use openraft_rt::AsyncRuntime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    codec::{self, AppendReply},
    network::encode_answer,
    on_the_way::Claim,
    server::{LANES_PER_PEER_MAX, RpcRefusal, Server},
    types::{TypeConfig, vote_to_wire},
};
use crate::ports::{Lane, LaneReceiver};

/// Bytes of requests in hand, per lane; a request counts as at least [`REQUEST_BYTES_MIN`].
const BYTES_IN_HAND_MAX: usize = 2 * 1024 * 1024;
/// Bounds the number of requests in hand to 128.
const REQUEST_BYTES_MIN: usize = 16 * 1024;

/// What is kept of a request until it is answered.
struct InHand {
    _claim: Claim,
    _bytes: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Progress {
    in_hand: VecDeque<InHand>,
    refusal: Option<RpcRefusal>,
}

/// Where requests come in.
struct Intake<R: AsyncRuntime> {
    server: Arc<Server<R>>,
    from: RaftNodeId,
    receiver: Box<dyn LaneReceiver>,
    room: Arc<Semaphore>,
    progress: Arc<Mutex<Progress>>,
    /// Dropped with this, when openraft has taken the last request.
    _taken: oneshot::Sender<()>,
}

impl<R: AsyncRuntime> Intake<R> {
    /// The next good request; the end of the lane, or its first bad request, ends them.
    async fn next(mut self) -> Option<(AppendEntriesRequest<TypeConfig<R>>, Self)> {
        let body = self.receiver.recv().await.ok()??;
        let share = body.len().clamp(REQUEST_BYTES_MIN, BYTES_IN_HAND_MAX);
        let share = u32::try_from(share).expect("clamped to 2 MiB");
        // Fails only on a closed semaphore, and nobody closes it.
        let bytes = self.room.clone().acquire_many_owned(share).await.ok()?;
        let admitted = self.server.admit(self.from, |from| self.server.parse(from, &body));
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        match admitted {
            Ok((request, claim)) => {
                progress.in_hand.push_back(InHand {
                    _claim: claim,
                    _bytes: bytes,
                });
                drop(progress);
                Some((request, self))
            }
            Err(refusal) => {
                progress.refusal = Some(refusal);
                None
            }
        }
    }
}

/// The turns of one peer's lanes, which are forgotten with its last lane.
struct Turns<R: AsyncRuntime> {
    semaphore: Arc<Semaphore>,
    server: Arc<Server<R>>,
    from: RaftNodeId,
}

impl<R: AsyncRuntime> Turns<R> {
    fn of(server: Arc<Server<R>>, from: RaftNodeId) -> Self {
        let mut lanes = server.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let turns = || Arc::new(Semaphore::new(LANES_PER_PEER_MAX));
        let semaphore = lanes.entry(from).or_insert_with(turns).clone();
        drop(lanes);
        Self {
            semaphore,
            server,
            from,
        }
    }
}

impl<R: AsyncRuntime> Drop for Turns<R> {
    fn drop(&mut self) {
        let mut lanes = self.server.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's own and this one: permits were given back before, and waiting lanes hold their own.
        if Arc::strong_count(&self.semaphore) == 2 {
            lanes.remove(&self.from);
        }
    }
}

impl<R: AsyncRuntime> Server<R> {
    /// Serves a lane of append requests of the member `from`, whose identity the transport has proved,
    /// until either side ends it. Dropping the future ends the lane; what openraft has taken by then
    /// stays claimed until openraft has answered it.
    pub async fn lane(self: Arc<Self>, from: RaftNodeId, lane: Lane) {
        let turns = Turns::of(self.clone(), from);
        // Fails only on a closed semaphore, and nobody closes it.
        let Ok(turn) = turns.semaphore.clone().acquire_owned().await else {
            return;
        };
        let (_here, gone) = oneshot::channel::<()>();
        let serving = R::spawn(async move {
            self.serve_lane(from, lane, gone).await;
            drop((turn, turns));
        });
        if let Err(error) = serving.await {
            tracing::error!(%error, "a lane ended with a panic");
        }
    }

    async fn serve_lane(self: Arc<Self>, from: RaftNodeId, lane: Lane, gone: oneshot::Receiver<()>) {
        let Lane { mut sender, receiver } = lane;
        let progress = Arc::new(Mutex::new(Progress::default()));
        let (taken, all_taken) = oneshot::channel();
        let intake = Intake {
            server: self.clone(),
            from,
            receiver,
            room: Arc::new(Semaphore::new(BYTES_IN_HAND_MAX)),
            progress: progress.clone(),
            _taken: taken,
        };
        let gone = gone.map(drop).shared();
        // openraft reads the requests in a task of its own, which must end with this one.
        let (stop, stopped) = oneshot::channel::<()>();
        let requests = stream::unfold(intake, Intake::next).take_until(select(stopped, gone.clone()));
        let mut answers = Box::pin(self.raft.stream_append(requests));
        let mut is_going_on = true;
        while is_going_on && let Some(outcome) = answers.next().await {
            let answer = answer_of(outcome);
            let answered = progress
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .in_hand
                .pop_front();
            assert!(answered.is_some(), "openraft answers each request once");
            is_going_on = answer == Ok(AppendReply::Success);
            let sending = sender.send(encode_answer(answer.map(codec::encode)));
            let is_sent = matches!(select(sending, gone.clone()).await, Either::Left((Ok(()), _)));
            if !is_sent {
                drop((stop, sender, answers));
                return self.answered(all_taken, &progress).await;
            }
        }
        let refusal = progress.lock().unwrap_or_else(PoisonError::into_inner).refusal;
        let ending = async move {
            if let Some(refusal) = refusal.filter(|_| is_going_on) {
                // Fails only where nobody listens any more.
                let _ = sender.send(encode_answer(Err(refusal))).await;
            }
            sender.end(None).await;
        };
        let _ = select(Box::pin(ending), gone).await;
        drop((stop, answers));
        self.answered(all_taken, &progress).await;
    }

    /// Returns when openraft has answered everything that it took from the lane.
    async fn answered(&self, all_taken: oneshot::Receiver<()>, progress: &Mutex<Progress>) {
        // It is never sent, and dropped when openraft's task has given its last request to the core.
        let _ = all_taken.await;
        let is_answered = progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .in_hand
            .is_empty();
        if !is_answered {
            // The core takes one message after the other: it has the requests behind it when it has this.
            let _ = self.raft.with_raft_state(|_| ()).await;
        }
    }
}

fn answer_of<R: AsyncRuntime>(
    outcome: Result<StreamAppendResult<TypeConfig<R>>, Fatal<TypeConfig<R>>>,
) -> Result<AppendReply, RpcRefusal> {
    match outcome {
        Ok(Ok(_)) => Ok(AppendReply::Success),
        Ok(Err(StreamAppendError::Conflict(_))) => Ok(AppendReply::Conflict),
        Ok(Err(StreamAppendError::HigherVote(vote))) => Ok(AppendReply::HigherVote(vote_to_wire(&vote))),
        Err(fatal) => {
            tracing::error!(%fatal, "raft has stopped");
            Err(RpcRefusal::Stopped)
        }
    }
}
