//! The leader's half of a replication lane: requests go out before the last one is answered.
//!
//! # Rules
//! * Requests in flight are bounded in number and in bytes. One request may always be in flight.
//! * Two requests go out at once; each further one a little after the one before it, and takes along what was
//!   written meanwhile. So a fast link carries few large requests, and a slow one still many.
//! * News of a commit alone waits a little for entries to travel with. The answer to those stands for both; which read it
//!   confirms is counted by the request that was sent ([`super::confirm`]).
//! * While requests are in flight an answer must come within the lane's timeout, and the time that the bytes
//!   in flight take on the slowest link; else the lane is given up. What was not answered is sent again
//!   by openraft on the next lane.
//! * Upon a conflict, a higher vote or a refusal: end; requests behind it mean nothing any more.
//! * Entries that cannot be sent end the lane after what was sent has been answered.
//!
//! # Why
//! With one request at a time an entry waits for the round trip and the flush of the one before it, and the
//! news of a commit takes a slot of its own (Ongaro 2014, §10.2.1).

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::bug::{self, Bug};
use futures::{
    FutureExt, Stream, StreamExt,
    future::BoxFuture,
    select_biased,
    stream::{self, BoxStream},
};
use openraft::{
    network::RPCTypes,
    raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult},
};
use openraft_rt::{AsyncRuntime, Instant};
use tokio::sync::Notify;

use super::{
    codec::{self, AppendReply, WireVote},
    confirm::Number,
    network::{Client, LINK_BYTES_PER_MS_MIN, LinkError, Outcome, broken, decode_answer},
    types::{LogId, TypeConfig, log_id_from_wire, vote_from_wire, vote_to_wire},
};
use crate::ports::{CallError, Lane, LaneReceiver, LaneSender};

/// Requests in flight. Fewer make larger requests under load, more hide longer links.
const REQUESTS_IN_FLIGHT_MAX: usize = 16;
/// Bytes in flight: the bandwidth of 40 Mbit/s at a round trip of 100 ms.
const BYTES_IN_FLIGHT_MAX: usize = 512 * 1024;
/// Requests in flight that need not wait for each other: one on its way there, one being flushed.
const REQUESTS_AT_ONCE: usize = 2;
/// Between two requests beyond those.
const SPACING: Duration = Duration::from_millis(1);

type Answered<R> = Result<StreamAppendResult<TypeConfig<R>>, openraft::errors::RPCError<TypeConfig<R>>>;

/// A request without its answer.
struct Sent<I> {
    previous: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
    at: I,
    vote: WireVote,
    number: Number,
}

struct InFlight<I> {
    sent: VecDeque<Sent<I>>,
    bytes: usize,
    answered_at: Option<I>,
}

/// Shared by the half that sends and the half that receives.
struct Window<I> {
    in_flight: Mutex<InFlight<I>>,
    changed: Notify,
}

impl<I: Instant> Window<I> {
    fn new() -> Self {
        Self {
            in_flight: Mutex::new(InFlight {
                sent: VecDeque::new(),
                bytes: 0,
                answered_at: None,
            }),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, InFlight<I>> {
        // Each change below is made whole before anything can panic.
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until another request may be made of what is there to send.
    async fn wait_for_turn<R: AsyncRuntime<Instant = I>>(&self) {
        loop {
            let changed = self.changed.notified();
            let (in_flight, last_sent_at) = {
                let now = self.lock();
                (now.sent.len(), now.sent.back().map(|sent| sent.at))
            };
            let Some(at) = last_sent_at.filter(|_| in_flight >= REQUESTS_AT_ONCE) else {
                return;
            };
            if in_flight >= REQUESTS_IN_FLIGHT_MAX {
                changed.await;
            } else if R::timeout_at(at + SPACING, changed).await.is_err() {
                return;
            }
        }
    }

    async fn wait_for_room(&self, bytes: usize) {
        loop {
            let changed = self.changed.notified();
            {
                let now = self.lock();
                if now.bytes + bytes <= BYTES_IN_FLIGHT_MAX || now.sent.is_empty() {
                    return;
                }
            }
            changed.await;
        }
    }

    fn push(&self, sent: Sent<I>) {
        let mut now = self.lock();
        now.bytes += sent.bytes;
        now.sent.push_back(sent);
        drop(now);
        self.changed.notify_waiters();
    }

    fn pop(&self, at: I) -> Option<Sent<I>> {
        let mut now = self.lock();
        let sent = now.sent.pop_front()?;
        now.bytes -= sent.bytes;
        now.answered_at = Some(at);
        drop(now);
        self.changed.notify_waiters();
        Some(sent)
    }

    fn is_empty(&self) -> bool {
        self.lock().sent.is_empty()
    }

    /// When the next answer is late: `None` while none is due.
    fn deadline(&self, timeout: Duration) -> Option<I> {
        let now = self.lock();
        let oldest = now.sent.front()?.at;
        let since = now.answered_at.map_or(oldest, |answered| answered.max(oldest));
        Some(since + timeout + Duration::from_millis(now.bytes as u64 / LINK_BYTES_PER_MS_MIN))
    }
}

/// Sends `input` over `lane` and yields its answers, in order.
pub(super) fn run<'s, R, S>(
    client: &'s Client<R>,
    lane: Lane,
    timeout: Duration,
    input: S,
) -> BoxStream<'s, Answered<R>>
where
    R: AsyncRuntime,
    S: Stream<Item = AppendEntriesRequest<TypeConfig<R>>> + Send + Unpin + 'static,
{
    let window = Arc::new(Window::new());
    let feeding = feed(client, lane.sender, window.clone(), timeout, input).boxed();
    let session = Session {
        client,
        feeding: Some(feeding),
        receiver: lane.receiver,
        window,
        timeout,
        failure: None,
        has_ended: false,
    };
    stream::unfold(session, Session::next).boxed()
}

/// The next request. `last_sent`: where the one before it ended.
///
/// A request that only tells of a commit gives way to one with entries that follows it closely: that one
/// tells of the commit too, and openraft takes the answer to it for an answer to both.
async fn next_request<R, S>(
    input: &mut S,
    last_sent: Option<Option<LogId>>,
    news_patience: Duration,
) -> Option<AppendEntriesRequest<TypeConfig<R>>>
where
    R: AsyncRuntime,
    S: Stream<Item = AppendEntriesRequest<TypeConfig<R>>> + Send + Unpin + 'static,
{
    let mut request = input.next().await?;
    let until = R::Instant::now() + news_patience;
    while request.entries.is_empty() && last_sent == Some(request.prev_log_id) {
        match R::timeout_at(until, input.next()).await {
            Ok(Some(later)) => request = later,
            Ok(None) | Err(_) => break,
        }
    }
    Some(request)
}

async fn feed<R, S>(
    client: &Client<R>,
    mut sender: Box<dyn LaneSender>,
    window: Arc<Window<R::Instant>>,
    timeout: Duration,
    mut input: S,
) -> Outcome<(), R>
where
    R: AsyncRuntime,
    S: Stream<Item = AppendEntriesRequest<TypeConfig<R>>> + Send + Unpin + 'static,
{
    let mut last_sent = None;
    loop {
        window.wait_for_turn::<R>().await;
        let Some(request) = next_request::<R, S>(&mut input, last_sent, client.news_patience).await else {
            break;
        };
        let vote = vote_to_wire(&request.vote);
        let body = client.encoded(&request)?;
        window.wait_for_room(body.len()).await;
        let last = request.entries.last().map(|entry| entry.id).or(request.prev_log_id);
        last_sent = Some(last);
        window.push(Sent {
            previous: request.prev_log_id,
            last,
            bytes: body.len(),
            at: R::Instant::now(),
            vote,
            number: client.number(),
        });
        let sent = sender.send(body).await.map_err(LinkError::from);
        sent.map_err(|error| client.link_error(&error, RPCTypes::AppendEntries, timeout))?;
    }
    sender.end(None).await;
    Ok(())
}

struct Session<'s, R: AsyncRuntime> {
    client: &'s Client<R>,
    /// `None` after it ended.
    feeding: Option<BoxFuture<'s, Outcome<(), R>>>,
    receiver: Box<dyn LaneReceiver>,
    window: Arc<Window<R::Instant>>,
    timeout: Duration,
    /// Why nothing more is sent: told after the last answer.
    failure: Option<openraft::errors::RPCError<TypeConfig<R>>>,
    has_ended: bool,
}

enum Event<R: AsyncRuntime> {
    Fed(Outcome<(), R>),
    Received(Result<Option<bytes::Bytes>, CallError>),
    Late,
    WindowChanged,
}

impl<R: AsyncRuntime> Session<'_, R> {
    async fn next(mut self) -> Option<(Answered<R>, Self)> {
        while !self.has_ended {
            if self.feeding.is_none() && self.window.is_empty() {
                self.has_ended = true;
                let failure = self.failure.take()?;
                return Some((Err(failure), self));
            }
            match self.event().await {
                Event::Fed(fed) => {
                    self.feeding = None;
                    self.failure = fed.err();
                }
                Event::Received(received) => {
                    let answered = self.answered(received);
                    self.has_ended |= !matches!(answered, Ok(Ok(_)));
                    return Some((answered, self));
                }
                Event::Late if bug::active(Bug::CommitOnMinority) && !self.window.is_empty() => {
                    let sent = self.window.pop(R::Instant::now());
                    return Some((Ok(Ok(sent.and_then(|sent| sent.last))), self));
                }
                Event::Late => {
                    self.has_ended = true;
                    return Some((Err(self.error(&LinkError::Timeout)), self));
                }
                Event::WindowChanged => {}
            }
        }
        None
    }

    async fn event(&mut self) -> Event<R> {
        let changed = self.window.changed.notified();
        let deadline = self.window.deadline(self.timeout);
        let feeding = self.feeding.as_mut();
        let feed = async {
            match feeding {
                Some(feeding) => feeding.await,
                None => std::future::pending().await,
            }
        };
        let late = async {
            match deadline {
                Some(at) => R::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let (feed, late, changed) = (std::pin::pin!(feed), std::pin::pin!(late), std::pin::pin!(changed));
        select_biased! {
            fed = feed.fuse() => Event::Fed(fed),
            received = self.receiver.recv().fuse() => Event::Received(received),
            () = late.fuse() => Event::Late,
            () = changed.fuse() => Event::WindowChanged,
        }
    }

    fn answered(&mut self, received: Result<Option<bytes::Bytes>, CallError>) -> Answered<R> {
        let body = match received {
            Ok(Some(body)) => decode_answer(body),
            Ok(None) => Err(LinkError::Network("the peer ended the lane".into())),
            Err(error) => Err(error.into()),
        };
        let reply = body.map_err(|error| self.error(&error))?;
        let reply = codec::decode(&reply).map_err(broken)?;
        let sent = self
            .window
            .pop(R::Instant::now())
            .ok_or_else(|| broken("an answer to nothing"))?;
        if !matches!(reply, AppendReply::HigherVote(_)) {
            // Before openraft hears of it, so that a read which this confirms waits for nothing more.
            self.client.answered(sent.vote, sent.number);
        }
        Ok(match reply {
            AppendReply::Success => Ok(sent.last),
            AppendReply::PartialSuccess(id) => {
                let upto = id.map(log_id_from_wire);
                // What follows in the lane stands on entries that are not there.
                self.has_ended |= upto != sent.last;
                Ok(upto)
            }
            AppendReply::Conflict => {
                let previous = sent.previous.ok_or_else(|| broken("a conflict with nothing"))?;
                Err(StreamAppendError::Conflict(previous))
            }
            AppendReply::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote_from_wire(vote))),
        })
    }

    fn error(&self, error: &LinkError) -> openraft::errors::RPCError<TypeConfig<R>> {
        self.client.link_error(error, RPCTypes::AppendEntries, self.timeout)
    }
}
