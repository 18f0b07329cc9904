//! What other validators brought and the driver has not looked at: a lane for each, served in turn.
//!
//! # Rules
//! * A peer's lane holds [`PER_PEER_MAX`] events or [`PER_PEER_BYTES_MAX`] bytes; beyond that the peer is refused,
//!   and nobody else is. Its core sends again what still matters.
//! * The driver takes one event of each lane in turn; within a lane they keep their order.
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
    /// The peer's lane is full.
    #[error("too much of this peer waits")]
    Full,
    /// The driver has ended.
    #[error("stopping")]
    Closed,
}

#[derive(Default)]
struct Lane {
    events: VecDeque<(Event, usize)>,
    bytes: usize,
}

#[derive(Default)]
struct Lanes {
    /// Only lanes that hold something.
    waiting: BTreeMap<NodeIdx, Lane>,
    served: Option<NodeIdx>,
    is_closed: bool,
}

impl Lanes {
    fn pop(&mut self) -> Option<Event> {
        let after = self.served.map_or(Bound::Unbounded, Bound::Excluded);
        let mut behind = self.waiting.range((after, Bound::Unbounded));
        let peer = *behind.next().or_else(|| self.waiting.iter().next())?.0;
        let lane = self.waiting.get_mut(&peer)?;
        let (event, bytes) = lane.events.pop_front()?;
        lane.bytes -= bytes;
        if lane.events.is_empty() {
            self.waiting.remove(&peer);
        }
        self.served = Some(peer);
        Some(event)
    }
}

/// The lanes of all peers; clones share them.
#[derive(Clone, Default)]
pub struct Incoming {
    lanes: Arc<Mutex<Lanes>>,
    news: Arc<Notify>,
}

impl Incoming {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        // Guarded sections only push and pop.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event that `from` brought in `bytes` encoded bytes.
    ///
    /// # Errors
    /// [`NotTaken`]; the event is dropped.
    pub fn push(&self, from: NodeIdx, event: Event, bytes: usize) -> Result<(), NotTaken> {
        let mut lanes = self.lanes();
        if lanes.is_closed {
            return Err(NotTaken::Closed);
        }
        let lane = lanes.waiting.entry(from).or_default();
        let is_full = lane.events.len() >= PER_PEER_MAX || lane.bytes + bytes > PER_PEER_BYTES_MAX;
        if is_full && !lane.events.is_empty() {
            return Err(NotTaken::Full);
        }
        lane.events.push_back((event, bytes));
        lane.bytes += bytes;
        drop(lanes);
        self.news.notify_one();
        Ok(())
    }

    /// The next event, if one waits.
    #[must_use]
    pub fn pop(&self) -> Option<Event> {
        self.lanes().pop()
    }

    /// Waits for the next event. Of one driver: two would share the wake-ups.
    pub async fn next(&self) -> Event {
        loop {
            if let Some(event) = self.pop() {
                return event;
            }
            self.news.notified().await;
        }
    }

    /// Takes nothing any more, and drops what waits.
    pub fn close(&self) {
        let mut lanes = self.lanes();
        lanes.is_closed = true;
        lanes.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const SPAMMER: NodeIdx = NodeIdx(2);
    const HONEST: NodeIdx = NodeIdx(7);

    fn peer_of(event: &Event) -> NodeIdx {
        match event {
            Event::Connected(peer) => *peer,
            _ => panic!("only connections were pushed"),
        }
    }

    fn fill(incoming: &Incoming, peer: NodeIdx) -> usize {
        (0..)
            .take_while(|_| incoming.push(peer, Event::Connected(peer), 1).is_ok())
            .count()
    }

    #[test]
    fn peer_that_fills_its_lane_is_refused_and_another_is_heard_at_once() {
        let incoming = Incoming::default();
        assert_eq!(fill(&incoming, SPAMMER), PER_PEER_MAX);
        assert_eq!(
            incoming.push(SPAMMER, Event::Connected(SPAMMER), 1),
            Err(NotTaken::Full)
        );
        for _ in 0..10 {
            assert_eq!(incoming.push(HONEST, Event::Connected(HONEST), 1), Ok(()));
        }
        let served: Vec<NodeIdx> = (0..20).map(|_| peer_of(&incoming.pop().unwrap())).collect();
        let honest = served.iter().filter(|peer| **peer == HONEST).count();
        assert_eq!(honest, 10, "every second one is the other's: {served:?}");
        assert_eq!(fill(&incoming, SPAMMER), 10, "as many as were served");
    }

    #[test]
    fn lane_is_bounded_in_bytes_too_and_takes_one_event_of_any_size() {
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
        assert_eq!(peer_of(&next.now_or_never().unwrap()), HONEST);
        incoming.close();
        assert_eq!(
            incoming.push(HONEST, Event::Connected(HONEST), 1),
            Err(NotTaken::Closed)
        );
        assert!(incoming.pop().is_none());
    }
}
