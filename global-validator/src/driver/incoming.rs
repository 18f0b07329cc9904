//! What other validators brought and the driver has not looked at: an inbox for each, served in turn.
//!
//! # Rules
//! * A peer's inbox holds [`PER_PEER_MAX`] events or [`PER_PEER_BYTES_MAX`] bytes; beyond that the peer is refused,
//!   and nobody else is. Its core sends again what still matters.
//! * The driver takes one event of each inbox in turn; within an inbox they keep their order.
//!
//! # Why
//! With one queue for all, the peer that sends most would have it to itself.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use common::ids::NodeIdx;
use tokio::sync::Notify;

use super::Event;

/// Events of one peer that may wait.
pub const PER_PEER_MAX: usize = 1_024;
/// Their encoded bytes; a single event may be longer than what is left.
pub const PER_PEER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Why an event was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// The peer's inbox is full.
    #[error("too much of this peer waits")]
    Full,
    /// The driver has ended.
    #[error("stopping")]
    Closed,
}

/// What a peer brought.
pub struct Heard {
    /// Who.
    pub from: NodeIdx,
    /// What.
    pub event: Event,
    /// Its encoded length.
    pub bytes: usize,
}

#[derive(Default)]
struct Inbox {
    events: VecDeque<(Event, usize)>,
    bytes: usize,
}

impl Inbox {
    fn has_room(&self, bytes: usize) -> bool {
        self.events.is_empty() || (self.events.len() < PER_PEER_MAX && self.bytes + bytes <= PER_PEER_BYTES_MAX)
    }
}

#[derive(Default)]
struct Inboxes {
    /// Only inboxes that hold something.
    waiting: BTreeMap<NodeIdx, Inbox>,
    served: Option<NodeIdx>,
    is_closed: bool,
}

impl Inboxes {
    fn pop(&mut self) -> Option<Heard> {
        let after = self.served.map_or(Bound::Unbounded, Bound::Excluded);
        let mut behind = self.waiting.range((after, Bound::Unbounded));
        let from = *behind.next().or_else(|| self.waiting.iter().next())?.0;
        let inbox = self.waiting.get_mut(&from)?;
        let (event, bytes) = inbox.events.pop_front()?;
        inbox.bytes -= bytes;
        if inbox.events.is_empty() {
            self.waiting.remove(&from);
        }
        self.served = Some(from);
        Some(Heard { from, event, bytes })
    }
}

/// The inboxes of all peers; clones share them.
#[derive(Clone, Default)]
pub struct Incoming {
    inboxes: Arc<Mutex<Inboxes>>,
    news: Arc<Notify>,
}

impl Incoming {
    fn inboxes(&self) -> MutexGuard<'_, Inboxes> {
        // Guarded sections only push and pop.
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an event of `from` with so many bytes would be taken now: asked before its signatures are verified.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn check_room(&self, from: NodeIdx, bytes: usize) -> Result<(), NotTaken> {
        let inboxes = self.inboxes();
        if inboxes.is_closed {
            return Err(NotTaken::Closed);
        }
        match inboxes.waiting.get(&from) {
            Some(inbox) if !inbox.has_room(bytes) => Err(NotTaken::Full),
            _ => Ok(()),
        }
    }

    /// Takes an event that `from` brought in `bytes` encoded bytes.
    ///
    /// # Errors
    /// [`NotTaken`]; the event is dropped.
    pub fn push(&self, from: NodeIdx, event: Event, bytes: usize) -> Result<(), NotTaken> {
        let mut inboxes = self.inboxes();
        if inboxes.is_closed {
            return Err(NotTaken::Closed);
        }
        let inbox = inboxes.waiting.entry(from).or_default();
        if !inbox.has_room(bytes) {
            return Err(NotTaken::Full);
        }
        inbox.events.push_back((event, bytes));
        inbox.bytes += bytes;
        drop(inboxes);
        self.news.notify_one();
        Ok(())
    }

    /// The next event, if one waits.
    #[must_use]
    pub fn pop(&self) -> Option<Heard> {
        self.inboxes().pop()
    }

    /// Waits for the next event. Of one driver: two would share the wake-ups.
    pub async fn next(&self) -> Heard {
        loop {
            if let Some(heard) = self.pop() {
                return heard;
            }
            self.news.notified().await;
        }
    }

    /// Takes nothing any more, and drops what waits.
    pub fn close(&self) {
        let mut inboxes = self.inboxes();
        inboxes.is_closed = true;
        inboxes.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const SPAMMER: NodeIdx = NodeIdx(2);
    const HONEST: NodeIdx = NodeIdx(7);

    fn fill(incoming: &Incoming, peer: NodeIdx) -> usize {
        (0..)
            .take_while(|_| incoming.push(peer, Event::Connected(peer), 1).is_ok())
            .count()
    }

    #[test]
    fn peer_that_fills_its_inbox_is_refused_and_another_is_heard_at_once() {
        let incoming = Incoming::default();
        assert_eq!(fill(&incoming, SPAMMER), PER_PEER_MAX);
        assert_eq!(
            incoming.push(SPAMMER, Event::Connected(SPAMMER), 1),
            Err(NotTaken::Full)
        );
        assert_eq!(incoming.check_room(SPAMMER, 1), Err(NotTaken::Full));
        assert_eq!(incoming.check_room(HONEST, 1), Ok(()));
        for _ in 0..10 {
            assert_eq!(incoming.push(HONEST, Event::Connected(HONEST), 1), Ok(()));
        }
        let served: Vec<NodeIdx> = (0..20).map(|_| incoming.pop().unwrap().from).collect();
        let honest = served.iter().filter(|peer| **peer == HONEST).count();
        assert_eq!(honest, 10, "every second one is the other's: {served:?}");
        assert_eq!(fill(&incoming, SPAMMER), 10, "as many as were served");
    }

    #[test]
    fn inbox_is_bounded_in_bytes_too_and_takes_one_event_of_any_size() {
        let incoming = Incoming::default();
        let push = |bytes| incoming.push(SPAMMER, Event::Connected(SPAMMER), bytes);
        assert_eq!(push(2 * PER_PEER_BYTES_MAX), Ok(()));
        assert_eq!(push(1), Err(NotTaken::Full));
        assert!(incoming.pop().is_some() && incoming.pop().is_none());
        assert_eq!(push(PER_PEER_BYTES_MAX), Ok(()));
        assert_eq!(push(0), Ok(()));
        assert_eq!(push(1), Err(NotTaken::Full));
    }

    #[test]
    fn waiting_driver_is_woken_and_nothing_is_taken_after_its_end() {
        let incoming = Incoming::default();
        let mut next = Box::pin(incoming.next());
        assert!((&mut next).now_or_never().is_none());
        incoming.push(HONEST, Event::Connected(HONEST), 1).unwrap();
        assert_eq!(next.now_or_never().unwrap().from, HONEST);
        incoming.close();
        assert_eq!(
            incoming.push(HONEST, Event::Connected(HONEST), 1),
            Err(NotTaken::Closed)
        );
        assert!(incoming.pop().is_none());
    }
}
