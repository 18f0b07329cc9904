//! Who is connected: live connections by device and protocol, and the state of dialling.
//!
//! # Rules
//! * Per device and protocol at most one connection dialled by us and one accepted; for the operators'
//!   protocol more accepted ones, since one operator runs several commands at a time. A newer accepted
//!   connection takes the older one's place: the peer would not dial again if the older one were good.
//! * A call takes the newest connection that may carry it: after a peer's restart that is the good one.
//! * One dial per device and protocol at a time; after a failure the next waits, longer each time, and longest once the
//!   peer has been out of reach for [`OUTAGE_IS_YOUNG_FOR`].
//! * A connection on which nothing was received while calls ended without an answer is suspect: the next call still takes
//!   it, and starts a dial beside it. The new connection takes the place of suspect ones; the peer does the same with the
//!   older one that we dialled.
//!
//! # Why
//! The probes of a cut connection come at doubling intervals (RFC 9002 §6.2), and with its congestion window full nothing
//! else is sent: after a cut of seconds it is found whole only seconds later, or not before its idle timeout.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{
    ids::DeviceId,
    wire::{frame::Protocol, op::Sent},
};
use quinn::Connection;
use tokio::time::Instant;

use super::{code::CloseCode, limits::Limits, role::is_symmetric};
use crate::watch::Watch;

/// First wait after a failed dial.
const BACK_OFF_MS_MIN: u64 = 50;
/// Longest wait between dials of a young outage.
const BACK_OFF_MS_MAX_YOUNG: u64 = 500;
/// Longest wait between dials.
const BACK_OFF_MS_MAX: u64 = 2_000;
/// From the first failed dial on: that long attempts are dense, afterwards they spare the radio.
pub(crate) const OUTAGE_IS_YOUNG_FOR: Duration = Duration::from_secs(60);
/// Nothing was received for so long, and for [`SILENT_RTTS`] round-trip times: the connection is suspect.
const SILENT_FOR: Duration = Duration::from_millis(500);
/// See [`SILENT_FOR`]. Leaves room for lost packets.
const SILENT_RTTS: u32 = 6;
/// A connection that broke sooner counts as a failed dial.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MadeBy {
    Us,
    Peer,
}

struct Live {
    connection: Connection,
    made_by: MadeBy,
    since: Instant,
    silence: Option<Silence>,
}

/// Calls ended without an answer, and nothing was received since the first of them began.
struct Silence {
    /// Datagrams received until then.
    received: u64,
    since: Instant,
    is_suspect: bool,
}

impl Live {
    fn is_suspect(&self) -> bool {
        let received = received(&self.connection);
        self.silence
            .as_ref()
            .is_some_and(|s| s.is_suspect && s.received == received)
    }
}

/// Datagrams received on a connection.
pub(crate) fn received(connection: &Connection) -> u64 {
    connection.stats().udp_rx.datagrams
}

#[derive(Default)]
struct Dialling {
    is_running: bool,
    failures: u32,
    /// When the first of them was.
    failing_since: Option<Instant>,
    not_before: Option<Instant>,
    last_error: Option<String>,
}

struct Link {
    /// Oldest first.
    live: Vec<Live>,
    dialling: Dialling,
    /// Counts changes, so that callers can wait for the next one.
    changes: Watch<u64>,
}

impl Link {
    fn new() -> Self {
        Self {
            live: Vec::new(),
            dialling: Dialling::default(),
            changes: Watch::new(0),
        }
    }

    fn changed(&self) {
        self.changes.set(self.changes.get() + 1);
    }
}

/// What a caller who wants a connection does next.
pub(crate) enum Next {
    /// Use this one.
    Use(Connection),
    /// Use this one, and start a dial beside it (the table has noted that one is running).
    UseAndDial(Connection),
    /// Start a dial (the table has noted that one is running), then ask again after a change.
    Dial(Watch<u64>, u64),
    /// A dial is running: ask again after a change.
    Wait(Watch<u64>, u64),
    /// The last dial failed: ask again after a change or at this time.
    BackOff(Watch<u64>, u64, Instant),
    /// The dial that the caller waited for has failed.
    Failed,
}

/// Why an accepted connection is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

pub(crate) struct Table {
    links: Mutex<BTreeMap<(DeviceId, Protocol), Link>>,
    /// By connections that are not in `links` any more.
    sent: Mutex<BTreeMap<Protocol, Sent>>,
    limits: Limits,
}

impl Table {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            links: Mutex::new(BTreeMap::new()),
            sent: Mutex::new(BTreeMap::new()),
            limits,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(DeviceId, Protocol), Link>> {
        // Every change below is made whole before anything can panic.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, protocol: Protocol, connection: &Connection) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        add_sent(sent.entry(protocol).or_default(), connection);
    }

    /// What was sent since the start, by protocol.
    pub(crate) fn sent(&self) -> Vec<(Protocol, Sent)> {
        let links = self.lock();
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for ((_, protocol), link) in links.iter() {
            for live in &link.live {
                add_sent(sent.entry(*protocol).or_default(), &live.connection);
            }
        }
        sent.into_iter().collect()
    }

    /// A connection that may carry our calls, or what to do to get one. `may_dial` is false for a
    /// caller who has waited for a dial already: the next attempt is for the next call.
    pub(crate) fn next(&self, key: (DeviceId, Protocol), now: Instant, may_dial: bool) -> Next {
        let mut links = self.lock();
        let link = links.entry(key).or_insert_with(Link::new);
        let carries = |live: &&Live| live.made_by == MadeBy::Us || is_symmetric(key.1);
        let is_up = |live: &&Live| live.connection.close_reason().is_none();
        if let Some(live) = link.live.iter().rev().filter(carries).find(is_up) {
            let connection = live.connection.clone();
            if !live.is_suspect() {
                if now.duration_since(live.since) >= SETTLED_AFTER {
                    link.dialling.outage_ended();
                }
            } else if !link.dialling.is_running && link.dialling.not_before.is_none_or(|at| at <= now) {
                link.dialling.is_running = true;
                return Next::UseAndDial(connection);
            }
            return Next::Use(connection);
        }
        let (changes, seen) = (link.changes.clone(), link.changes.get());
        if link.dialling.is_running {
            return Next::Wait(changes, seen);
        }
        if !may_dial {
            return Next::Failed;
        }
        match link.dialling.not_before {
            Some(at) if at > now => Next::BackOff(changes, seen, at),
            _ => {
                link.dialling.is_running = true;
                Next::Dial(changes, seen)
            }
        }
    }

    /// Takes a connection in after both hellos were right.
    ///
    /// # Errors
    /// [`Full`]: close it with [`CloseCode::Busy`].
    pub(crate) fn insert(
        &self,
        key: (DeviceId, Protocol),
        connection: Connection,
        made_by: MadeBy,
        now: Instant,
    ) -> Result<(), Full> {
        let mut links = self.lock();
        if made_by == MadeBy::Peer {
            self.make_room(&mut links, key)?;
        }
        let link = links.entry(key).or_insert_with(Link::new);
        if made_by == MadeBy::Us {
            // Their tasks take them out.
            for live in &link.live {
                if live.made_by == MadeBy::Us || live.is_suspect() {
                    live.connection.close(CloseCode::Replaced.wire(), super::code::REFUSED);
                }
            }
        }
        link.live.push(Live {
            connection,
            made_by,
            since: now,
            silence: None,
        });
        link.changed();
        Ok(())
    }

    fn make_room(
        &self,
        links: &mut BTreeMap<(DeviceId, Protocol), Link>,
        key: (DeviceId, Protocol),
    ) -> Result<(), Full> {
        if key.1 != Protocol::Op
            && let Some(link) = links.get_mut(&key)
        {
            link.live.retain(|live| {
                let is_older = live.made_by == MadeBy::Peer;
                if is_older {
                    self.count(key.1, &live.connection);
                    live.connection.close(CloseCode::Replaced.wire(), super::code::REFUSED);
                }
                !is_older
            });
        }
        let accepted = |wanted: fn(Protocol) -> bool| {
            links
                .iter()
                .filter(|((_, protocol), _)| wanted(*protocol))
                .flat_map(|(_, link)| &link.live)
                .filter(|live| live.made_by == MadeBy::Peer)
                .count()
        };
        let is_op_full = key.1 == Protocol::Op && accepted(|p| p == Protocol::Op) >= self.limits.accepted_op_max;
        if is_op_full || accepted(|_| true) >= self.limits.accepted_max {
            return Err(Full);
        }
        Ok(())
    }

    /// Takes a connection out after its end. `jitter`: any number, for the back-off.
    pub(crate) fn remove(&self, key: (DeviceId, Protocol), connection: &Connection, now: Instant, jitter: u64) {
        let mut links = self.lock();
        let Some(link) = links.get_mut(&key) else { return };
        let Some(at) = link
            .live
            .iter()
            .position(|live| live.connection.stable_id() == connection.stable_id())
        else {
            return;
        };
        let live = link.live.remove(at);
        self.count(key.1, &live.connection);
        if live.made_by == MadeBy::Us {
            if now.duration_since(live.since) < SETTLED_AFTER {
                link.dialling.note_failure(now, jitter);
            } else {
                link.dialling.outage_ended();
            }
        }
        link.changed();
    }

    /// A call or lane that began at `began`, when `received` datagrams had come, ended and no more have come.
    pub(crate) fn note_silence(
        &self,
        key: (DeviceId, Protocol),
        connection: &Connection,
        received: u64,
        began: Instant,
        now: Instant,
    ) {
        let mut links = self.lock();
        let of_call = |live: &&mut Live| live.connection.stable_id() == connection.stable_id();
        let Some(live) = links.get_mut(&key).and_then(|link| link.live.iter_mut().find(of_call)) else {
            return;
        };
        let limit = SILENT_FOR.max(SILENT_RTTS * connection.rtt());
        let since = match &live.silence {
            Some(known) if known.received == received => known.since.min(began),
            _ => began,
        };
        live.silence = Some(Silence {
            received,
            since,
            is_suspect: now.duration_since(since) >= limit,
        });
    }

    /// Whether the peer was reached less than about a minute ago, as far as dials show.
    pub(crate) fn is_outage_young(&self, key: (DeviceId, Protocol), now: Instant) -> bool {
        let links = self.lock();
        links.get(&key).is_none_or(|link| link.dialling.is_young(now))
    }

    /// Ends the running dial.
    pub(crate) fn dial_ended(&self, key: (DeviceId, Protocol), outcome: Result<(), String>, now: Instant, jitter: u64) {
        let mut links = self.lock();
        let link = links.entry(key).or_insert_with(Link::new);
        link.dialling.is_running = false;
        match outcome {
            Ok(()) => link.dialling.last_error = None,
            Err(error) => {
                link.dialling.last_error = Some(error);
                link.dialling.note_failure(now, jitter);
            }
        }
        link.changed();
    }

    /// Lets the next call dial at once: the peer's address changed.
    pub(crate) fn forget_back_off(&self, device: &DeviceId) {
        let mut links = self.lock();
        for protocol in Protocol::ALL {
            if let Some(link) = links.get_mut(&(*device, protocol)) {
                link.dialling.outage_ended();
                link.changed();
            }
        }
    }

    pub(crate) fn is_connected(&self, key: &(DeviceId, Protocol)) -> bool {
        self.lock()
            .get(key)
            .is_some_and(|link| link.live.iter().any(|live| live.connection.close_reason().is_none()))
    }

    pub(crate) fn last_dial_error(&self, device: &DeviceId) -> Option<String> {
        let links = self.lock();
        Protocol::ALL
            .iter()
            .find_map(|protocol| links.get(&(*device, *protocol))?.dialling.last_error.clone())
    }

    /// Round-trip time of the newest live connection to `device`.
    pub(crate) fn rtt(&self, device: &DeviceId) -> Option<Duration> {
        let links = self.lock();
        Protocol::ALL
            .iter()
            .filter_map(|protocol| links.get(&(*device, *protocol)))
            .flat_map(|link| &link.live)
            .filter(|live| live.connection.close_reason().is_none())
            .max_by_key(|live| live.since)
            .map(|live| live.connection.rtt())
    }

    /// Closes every connection for which `is_closed` holds.
    pub(crate) fn close(&self, code: CloseCode, is_closed: impl Fn(&DeviceId, Protocol) -> bool) -> usize {
        let links = self.lock();
        let mut count = 0;
        for ((device, protocol), link) in links.iter() {
            if !is_closed(device, *protocol) {
                continue;
            }
            for live in &link.live {
                live.connection.close(code.wire(), super::code::REFUSED);
                count += 1;
            }
        }
        count
    }
}

fn add_sent(to: &mut Sent, connection: &Connection) {
    let udp = connection.stats().udp_tx;
    to.datagrams += udp.datagrams;
    to.bytes += udp.bytes;
}

impl Dialling {
    /// The next dial waits between half of and the whole back-off, which doubles with each failure.
    fn note_failure(&mut self, now: Instant, jitter: u64) {
        self.failing_since.get_or_insert(now);
        let max_ms = if self.is_young(now) {
            BACK_OFF_MS_MAX_YOUNG
        } else {
            BACK_OFF_MS_MAX
        };
        let full_ms = (BACK_OFF_MS_MIN << self.failures.min(10)).min(max_ms);
        self.failures = self.failures.saturating_add(1);
        let wait_ms = full_ms / 2 + jitter % (full_ms / 2 + 1);
        self.not_before = Some(now + Duration::from_millis(wait_ms));
    }

    fn is_young(&self, now: Instant) -> bool {
        self.failing_since
            .is_none_or(|since| now.duration_since(since) < OUTAGE_IS_YOUNG_FOR)
    }

    fn outage_ended(&mut self) {
        self.failures = 0;
        self.failing_since = None;
        self.not_before = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_with_jitter_up_to_its_cap() {
        let (mut dialling, now) = (Dialling::default(), Instant::now());
        for (failure, jitter) in (0..40u32).zip([0, u64::MAX, 12_345].into_iter().cycle()) {
            // Half of them in the first minute.
            let is_young = failure < 20;
            let now = if is_young { now } else { now + OUTAGE_IS_YOUNG_FOR };
            let max = if is_young { 500 } else { 2_000 };
            let full = (BACK_OFF_MS_MIN << failure.min(10)).min(max);
            dialling.note_failure(now, jitter);
            let wait = dialling.not_before.unwrap() - now;
            assert!(
                wait >= Duration::from_millis(full / 2) && wait <= Duration::from_millis(full),
                "failure {failure}: {wait:?} for {full} ms"
            );
        }
    }

    #[test]
    fn one_dial_runs_at_a_time_and_the_next_waits() {
        let key = (DeviceId([1; 32]), Protocol::Raft);
        let (table, now) = (Table::new(Limits::of(crate::quic::Role::Drone)), Instant::now());
        assert!(matches!(table.next(key, now, true), Next::Dial(..)));
        assert!(matches!(table.next(key, now, true), Next::Wait(..)));
        table.dial_ended(key, Err("no answer".into()), now, 0);
        assert!(matches!(table.next(key, now, true), Next::BackOff(..)));
        assert!(matches!(table.next(key, now, false), Next::Failed));
        assert_eq!(table.last_dial_error(&key.0).as_deref(), Some("no answer"));
        assert!(matches!(
            table.next(key, now + Duration::from_secs(3), true),
            Next::Dial(..)
        ));
    }
}
