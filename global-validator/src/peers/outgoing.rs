//! What goes out to one other validator: a bounded queue and the task that empties it.
//!
//! # Rules
//! * Messages are started in the order in which they were queued, those that wait together in one request; a few
//!   requests are in flight at once, so that a vote does not wait for the receipt of the message before it.
//! * A message that is not urgent goes along with the next that is, or after a quarter of a second.
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
    codec::encode,
    ids::DeviceId,
    wire::{
        bft::{Bundle, Bundled, BundledKind},
        frame::{FrameKind, Protocol},
    },
};
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{sync::Notify, time::Instant};
use transport::ports::{CallError, Transport};

use super::round_trip::RoundTrips;

/// Messages that may wait for one peer.
const WAITING_MAX: usize = 512;
/// Requests in flight to one peer.
const IN_FLIGHT_MAX: usize = 16;
/// A message that is not received by then is worth nothing: the core has sent it again.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// How often a peer that is down is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a message that is not urgent waits for company.
const COMPANY_WITHIN: Duration = Duration::from_millis(250);

/// A message, encoded once for all peers.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// What it is.
    pub kind: BundledKind,
    /// Its bytes.
    pub body: Bytes,
}

/// Whether a message waits for company.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// It leaves at once.
    Urgent,
    /// It may wait for one that is urgent.
    Patient,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Outbound>,
    is_urgent: bool,
    /// Since when the oldest message has waited, or longer.
    since: Option<Instant>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    round_trips: Mutex<RoundTrips>,
    more: Notify,
}

/// The queue to one peer; clones share it.
#[derive(Clone)]
pub struct Outgoing(Arc<Shared>);

impl Default for Outgoing {
    fn default() -> Self {
        Self(Arc::new(Shared {
            waiting: Mutex::default(),
            round_trips: Mutex::default(),
            more: Notify::new(),
        }))
    }
}

impl Outgoing {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Guarded sections only push and pop.
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message. Returns whether an older one was dropped for it.
    pub fn push(&self, message: Outbound, haste: Haste) -> bool {
        let mut waiting = self.waiting();
        let is_full = waiting.messages.len() == WAITING_MAX;
        if is_full {
            waiting.messages.pop_front();
        }
        waiting.messages.push_back(message);
        waiting.since.get_or_insert_with(Instant::now);
        if haste == Haste::Urgent {
            waiting.is_urgent = true;
            drop(waiting);
            self.0.more.notify_one();
        }
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

    /// A patient message leaves in time.
    fn look_again_in(&self) -> Duration {
        let since = self.waiting().since;
        let left = since.map(|since| COMPANY_WITHIN.saturating_sub(since.elapsed()));
        left.map_or(LOOK_AGAIN, |left| left.min(LOOK_AGAIN))
            .max(Duration::from_millis(1))
    }

    /// The next request, with as many of the messages that wait as it holds. `None` if all of them still have time.
    fn take(&self) -> Option<(FrameKind, Bytes)> {
        let mut waiting = self.waiting();
        let has_waited = waiting.since.is_some_and(|since| since.elapsed() >= COMPANY_WITHIN);
        if !waiting.is_urgent && !has_waited {
            return None;
        }
        let first = waiting.messages.pop_front()?;
        let mut bytes = first.body.len();
        let mut taken = vec![first];
        while taken.len() < Bundle::MESSAGES_MAX
            && let Some(next) = waiting.messages.front()
            && bytes + next.body.len() <= Bundle::BODIES_BYTES_MAX
        {
            bytes += next.body.len();
            taken.extend(waiting.messages.pop_front());
        }
        if waiting.messages.is_empty() {
            (waiting.is_urgent, waiting.since) = (false, None);
        }
        drop(waiting);
        Some(request_of(taken))
    }

    /// Sends for ever. `came_back` is called when the peer answers or is connected after it was not.
    pub async fn run(self, to: DeviceId, transport: Arc<dyn Transport>, came_back: impl Fn()) {
        let mut in_flight = FuturesUnordered::new();
        let mut is_up = false;
        loop {
            while in_flight.len() < IN_FLIGHT_MAX
                && let Some((kind, body)) = self.take()
            {
                let call = transport.call(to, kind, body, SEND_DEADLINE);
                let sent_at = Instant::now();
                in_flight.push(call.map(move |outcome| (outcome, sent_at.elapsed())));
            }
            let can_take = in_flight.len() < IN_FLIGHT_MAX;
            let look_again = tokio::time::sleep(self.look_again_in());
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

/// One request for all of `messages`, of which there is at least one.
fn request_of(mut messages: Vec<Outbound>) -> (FrameKind, Bytes) {
    if let [only] = &mut messages[..] {
        return (only.kind.frame_kind(), std::mem::take(&mut only.body));
    }
    let bundled = messages.into_iter().map(|message| Bundled {
        kind: message.kind,
        body: Vec::from(message.body).try_into().expect("a longer one travels alone"),
    });
    let messages = bundled.collect::<Vec<_>>().try_into().expect("no more were taken");
    (FrameKind::Bundle, encode(&Bundle { messages }).into())
}

async fn wait(more: &Notify, can_take: bool) {
    if can_take {
        more.notified().await;
    } else {
        futures::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use common::codec::decode;

    use super::*;

    fn vote(number: u8, bytes: usize) -> Outbound {
        Outbound {
            kind: BundledKind::Vote,
            body: vec![number; bytes].into(),
        }
    }

    fn queued(messages: &[(Outbound, Haste)]) -> Outgoing {
        let outgoing = Outgoing::default();
        for (message, haste) in messages {
            assert!(!outgoing.push(message.clone(), *haste));
        }
        outgoing
    }

    /// First bytes of the messages in a request.
    fn numbers(request: Option<(FrameKind, Bytes)>) -> Vec<u8> {
        match request {
            None => Vec::new(),
            Some((FrameKind::Bundle, body)) => {
                let bundle: Bundle = decode(&body).unwrap();
                assert!(bundle.messages.len() > 1);
                bundle.messages.iter().map(|message| message.body[0]).collect()
            }
            Some((kind, body)) => {
                assert_eq!(kind, FrameKind::Vote);
                vec![body[0]]
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn messages_that_wait_together_leave_in_one_request_in_their_order() {
        let outgoing = queued(&[1, 2, 3].map(|number| (vote(number, 9), Haste::Urgent)));
        assert_eq!(numbers(outgoing.take()), [1, 2, 3]);
        assert!(numbers(outgoing.take()).is_empty());
        let outgoing = queued(&[(vote(7, 9), Haste::Urgent)]);
        assert_eq!(numbers(outgoing.take()), [7], "one travels without a bundle around it");
    }

    #[tokio::test(start_paused = true)]
    async fn patient_message_leaves_with_an_urgent_one_or_when_it_has_waited() {
        let outgoing = queued(&[(vote(1, 9), Haste::Patient)]);
        assert!(numbers(outgoing.take()).is_empty());
        outgoing.push(vote(2, 9), Haste::Urgent);
        assert_eq!(numbers(outgoing.take()), [1, 2]);
        outgoing.push(vote(3, 9), Haste::Patient);
        assert!(numbers(outgoing.take()).is_empty(), "nothing is urgent any more");
        tokio::time::advance(COMPANY_WITHIN).await;
        assert_eq!(numbers(outgoing.take()), [3]);
    }

    #[tokio::test(start_paused = true)]
    async fn bundle_keeps_its_bounds_and_what_is_longer_travels_alone() {
        let half = Bundle::BODIES_BYTES_MAX / 2;
        let long = vote(1, Bundle::BODIES_BYTES_MAX + 1);
        let outgoing =
            queued(&[long, vote(2, half), vote(3, half), vote(4, 1)].map(|message| (message, Haste::Urgent)));
        let taken: Vec<_> = (0..3).map(|_| numbers(outgoing.take())).collect();
        assert_eq!(taken, [vec![1], vec![2, 3], vec![4]]);
        let many: Vec<_> = (0..=Bundle::MESSAGES_MAX)
            .map(|_| (vote(0, 1), Haste::Urgent))
            .collect();
        let outgoing = queued(&many);
        assert_eq!(numbers(outgoing.take()).len(), Bundle::MESSAGES_MAX);
        assert_eq!(numbers(outgoing.take()).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn full_queue_drops_its_oldest_message() {
        let outgoing = Outgoing::default();
        for _ in 0..WAITING_MAX {
            assert!(!outgoing.push(vote(1, 1), Haste::Urgent));
        }
        assert!(outgoing.push(vote(2, 1), Haste::Urgent));
        assert_eq!(outgoing.waiting().messages.len(), WAITING_MAX);
    }
}
