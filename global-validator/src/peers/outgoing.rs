//! What goes out to one other validator: a bounded queue and the task that empties it.
//!
//! # Rules
//! * Messages are started in the order in which they were queued; a few are in flight at once, so
//!   that a vote does not wait for the receipt of the message before it.
//! * Upon a full queue: the oldest message is dropped. The core sends again what still matters.
//! * Upon a message that failed: the peer counts as down. Upon the first sign of it afterwards: the
//!   driver hears of it, so that the core sends again from its finalized tip.
//!
//! # Why
//! Losing a message is never unsafe, and a queue without bound is. A peer that was away for long
//! needs what holds now, not what was said meanwhile.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use common::{
    ids::DeviceId,
    wire::frame::{FrameKind, Protocol},
};
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{sync::Notify, time::Instant};
use transport::ports::{CallError, Transport};

use super::round_trip::RoundTrips;

/// Messages that may wait for one peer.
const WAITING_MAX: usize = 512;
/// Messages in flight to one peer.
const IN_FLIGHT_MAX: usize = 16;
/// A message that is not received by then is worth nothing: the core has sent it again.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// How often a peer that is down is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A message, encoded once for all peers.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// What it is.
    pub kind: FrameKind,
    /// Its bytes.
    pub body: Bytes,
}

struct Shared {
    waiting: Mutex<VecDeque<Outbound>>,
    round_trips: Mutex<RoundTrips>,
    more: Notify,
}

/// The queue to one peer; clones share it.
#[derive(Clone)]
pub struct Outgoing(Arc<Shared>);

impl Default for Outgoing {
    fn default() -> Self {
        Self(Arc::new(Shared {
            waiting: Mutex::new(VecDeque::new()),
            round_trips: Mutex::default(),
            more: Notify::new(),
        }))
    }
}

impl Outgoing {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Outbound>> {
        // Guarded sections only push and pop.
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message. Returns whether an older one was dropped for it.
    pub fn push(&self, message: Outbound) -> bool {
        let mut waiting = self.waiting();
        let is_full = waiting.len() == WAITING_MAX;
        if is_full {
            waiting.pop_front();
        }
        waiting.push_back(message);
        drop(waiting);
        self.0.more.notify_one();
        is_full
    }

    /// How long a message and its answer take, with allowance for what they vary by, microseconds; none before the
    /// first answer.
    #[must_use]
    pub fn round_trip_us(&self) -> Option<u64> {
        let round_trips = self.0.round_trips.lock().unwrap_or_else(PoisonError::into_inner);
        round_trips.estimate_us()
    }

    fn answered(&self, took: Duration) {
        let mut round_trips = self.0.round_trips.lock().unwrap_or_else(PoisonError::into_inner);
        round_trips.measured(took);
    }

    fn pop(&self) -> Option<Outbound> {
        self.waiting().pop_front()
    }

    /// Sends for ever. `came_back` is called when the peer answers or is connected after it was not.
    pub async fn run(self, to: DeviceId, transport: Arc<dyn Transport>, came_back: impl Fn()) {
        let mut in_flight = FuturesUnordered::new();
        let mut is_up = false;
        loop {
            while in_flight.len() < IN_FLIGHT_MAX
                && let Some(message) = self.pop()
            {
                let call = transport.call(to, message.kind, message.body, SEND_DEADLINE);
                let sent_at = Instant::now();
                in_flight.push(call.map(move |outcome| (outcome, sent_at.elapsed())));
            }
            let can_take = in_flight.len() < IN_FLIGHT_MAX;
            let look_again = tokio::time::sleep(LOOK_AGAIN);
            let outcome: Option<(Result<Bytes, CallError>, Duration)> = futures::select_biased! {
                outcome = in_flight.select_next_some() => Some(outcome),
                () = wait(&self.0.more, can_take).fuse() => None,
                () = look_again.fuse() => None,
            };
            let was_up = is_up;
            is_up = match outcome {
                // A refusal is an answer: the peer is there.
                Some((Ok(_) | Err(CallError::Refused(_)), took)) => {
                    self.answered(took);
                    true
                }
                Some((Err(error), _)) => {
                    tracing::debug!(peer = %to, "{error}");
                    false
                }
                None => transport.is_connected(&to, Protocol::Bft),
            };
            if is_up && !was_up {
                tracing::info!(peer = %to, "validator is connected");
                came_back();
            } else if was_up && !is_up {
                tracing::info!(peer = %to, "validator is not connected");
            }
        }
    }
}

async fn wait(more: &Notify, can_take: bool) {
    if can_take {
        more.notified().await;
    } else {
        futures::future::pending::<()>().await;
    }
}
