//! Links between simulated processes: delay, loss, and processes that are down.
//!
//! # Rules
//! * Bytes cross a link, not values: the frame's header is written and read as on a real stream.
//! * A frame is delayed by a time of its own, so requests overtake each other as QUIC streams do.
//! * A lost request or answer is silence: the caller's deadline ends it, or the idle timeout of a connection,
//!   as when the peer lost its power. What is lost, late or doubled is
//!   decided in `links`.
//! * A process that is down, or behind a cut, longer than a connection may be silent has no connection:
//!   its callers are told after a while that nothing was sent.
//! * Frames of a lane keep their order: one that is lost is sent again later, and those behind it wait. A cut
//!   silences the lane for good: whoever waits for an answer gives it up.
//! * A doubled request is handled twice, and its second answer goes nowhere.
//! * A process in an enemy's hands has a tap ([`super::tap`]); an identity on two hosts has sides ([`super::twins`]).

mod calls;
mod listening;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use common::{
    ids::{DeviceId, NodeIdx, RaftNodeId},
    wire::frame::{FRAME_HEADER_BYTES, FrameKind, Hello, Protocol, frame_header},
};
use transport::ports::{Peer, Service};

pub use calls::SimTransport;
pub use listening::{Listener, Sender};

use super::{
    links::{Direction, Fate, IDLE_US, LinkConditions, Links},
    tap::{Leaves, Sending, Tap},
    twins::{Host, Sides},
};
use crate::{
    runtime::{Process, ProcessId},
    trace::{Event, Trace},
};

/// A lost packet of a stream is noticed after three round trips, and not before this.
const RETRANSMISSION_US_MIN: u64 = 10_000;
/// What a tap sends besides is given up after this time.
const BESIDES_DEADLINE: Duration = Duration::from_secs(5);
/// More losses of one frame silence its lane.
const RETRANSMISSIONS_MAX: usize = 5;

struct Running {
    process: Process,
    service: Arc<dyn Service>,
}

/// One host of an identity.
struct Place {
    id: ProcessId,
    running: Option<Running>,
    /// When the last life ended.
    down_since_us: Option<u64>,
    tap: Option<SharedTap>,
}

impl Place {
    fn new(id: ProcessId) -> Self {
        Self {
            id,
            running: None,
            down_since_us: None,
            tap: None,
        }
    }
}

struct Known {
    idx: NodeIdx,
    hello: Hello,
    first: Place,
    /// A second host with the same key.
    twin: Option<(Sides, Place)>,
}

impl Known {
    fn place(&self, host: Host) -> &Place {
        match (&self.twin, host) {
            (Some((_, second)), Host::Second) => second,
            _ => &self.first,
        }
    }

    fn place_mut(&mut self, host: Host) -> &mut Place {
        match (&mut self.twin, host) {
            (Some((_, second)), Host::Second) => second,
            _ => &mut self.first,
        }
    }

    /// Which hosts hear `other`.
    fn hosts(&self, other: NodeIdx, now_us: u64) -> (Host, Option<Host>) {
        match &self.twin {
            Some((sides, _)) => sides.of(other, now_us),
            None => (Host::First, None),
        }
    }
}

/// A tap that the network and whoever set it share.
pub type SharedTap = Arc<Mutex<dyn Tap>>;

/// Where a frame comes from and where it goes.
#[derive(Clone, Copy)]
struct Ends {
    from: DeviceId,
    from_idx: NodeIdx,
    to: DeviceId,
    to_idx: NodeIdx,
    direction: Direction,
    host: Host,
    /// Also to this host, in this direction.
    also: Option<(Host, Direction)>,
    /// False between twins' sides.
    is_reached: bool,
    /// Whether a connection between the two can still be up.
    is_connected: bool,
}

struct State {
    links: Links,
    known: BTreeMap<DeviceId, Known>,
    listener: Option<Arc<dyn Listener>>,
}

impl State {
    /// Whether a connection can still be up: it was not silent for too long.
    fn is_connected(&self, near: &Place, far: &Place, now_us: u64) -> bool {
        let silent = self.links.silent_since_us(near.id.0, far.id.0);
        let is_started = far.running.is_some() || far.down_since_us.is_some();
        let silent_us = silent.into_iter().chain(far.down_since_us).min();
        is_started && silent_us.is_none_or(|since_us| now_us.saturating_sub(since_us) < IDLE_US)
    }
}

/// All links of one run.
#[derive(Clone)]
pub struct SimNetwork {
    state: Arc<Mutex<State>>,
    /// Whether any host has a tap: most runs have none, and each frame asks four times.
    is_tapped: Arc<AtomicBool>,
    trace: Trace,
}

impl SimNetwork {
    /// Links under `conditions`, drawn from `seed`.
    #[must_use]
    pub fn new(seed: u64, conditions: LinkConditions, trace: Trace) -> Self {
        let state = State {
            links: Links::new(seed, conditions),
            known: BTreeMap::new(),
            listener: None,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            is_tapped: Arc::default(),
            trace,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of everybody. Processes and the network hold each other, and would do so for ever.
    pub fn dissolve(&self) {
        let mut state = self.lock();
        let known = std::mem::take(&mut state.known);
        let listener = state.listener.take();
        // What is dropped may ask the network something.
        drop(state);
        drop((known, listener));
    }

    /// Makes a device known under the identity that peers are told; the network vouches for it as TLS would.
    pub fn enroll(&self, id: ProcessId, idx: NodeIdx, hello: Hello) {
        let known = Known {
            idx,
            first: Place::new(id),
            twin: None,
            hello,
        };
        self.lock().known.insert(known.hello.device, known);
    }

    /// The device calls itself by another Raft id from now on: its disk is a new one.
    pub fn renew(&self, device: &DeviceId, raft: RaftNodeId) {
        if let Some(known) = self.lock().known.get_mut(device) {
            known.hello.raft = raft.0;
        }
    }

    /// Makes a second host of an enrolled device known, as the process `id`.
    pub fn enroll_twin(&self, device: &DeviceId, id: ProcessId, sides: Sides) {
        if let Some(known) = self.lock().known.get_mut(device) {
            known.twin = Some((sides, Place::new(id)));
        }
    }

    /// Puts a tap between a host of `device` and its links.
    pub fn set_tap(&self, device: &DeviceId, host: Host, tap: SharedTap) {
        if let Some(known) = self.lock().known.get_mut(device) {
            known.place_mut(host).tap = Some(tap);
            self.is_tapped.store(true, Ordering::Relaxed);
        }
    }

    /// The transport of an enrolled device that runs on one host.
    #[must_use]
    pub fn transport(&self, device: DeviceId) -> Arc<SimTransport> {
        self.transport_of(device, Host::First)
    }

    /// The transport of a host of an enrolled device.
    #[must_use]
    pub fn transport_of(&self, device: DeviceId, host: Host) -> Arc<SimTransport> {
        Arc::new(SimTransport {
            network: self.clone(),
            device,
            host,
        })
    }

    /// Connects a life of a host of an enrolled device.
    ///
    /// # Panics
    /// If it is not enrolled.
    pub fn connect(&self, device: DeviceId, host: Host, process: Process, service: Arc<dyn Service>) {
        let mut state = self.lock();
        let known = state
            .known
            .get_mut(&device)
            .expect("devices are enrolled before they connect");
        let place = known.place_mut(host);
        place.running = Some(Running { process, service });
        place.down_since_us = None;
    }

    /// Cuts a host of a device off: its life is over.
    pub fn disconnect(&self, device: &DeviceId, host: Host) {
        let now_us = self.trace.now_us();
        if let Some(known) = self.lock().known.get_mut(device) {
            let place = known.place_mut(host);
            if place.running.take().is_some() {
                place.down_since_us = Some(now_us);
            }
        }
    }

    /// The conditions now.
    #[must_use]
    pub fn conditions(&self) -> LinkConditions {
        self.lock().links.conditions()
    }

    /// New conditions for all frames from now on.
    pub fn set_conditions(&self, conditions: LinkConditions) {
        self.lock().links.set_conditions(conditions);
    }

    /// Cuts exactly these directions between processes, and opens all others.
    pub fn set_cuts(&self, directions: &BTreeSet<Direction>) {
        let now_us = self.trace.now_us();
        self.lock().links.set_cuts(directions, now_us);
    }

    /// Whether frames pass both ways between two processes.
    #[must_use]
    pub fn is_open(&self, a: ProcessId, b: ProcessId) -> bool {
        self.lock().links.is_open(a.0, b.0)
    }

    /// The ends of a frame that a host of `from` sends to `to` now. `None` if one of them is not enrolled.
    fn ends(&self, from: &DeviceId, host: Host, to: &DeviceId) -> Option<Ends> {
        let now_us = self.trace.now_us();
        let state = self.lock();
        let (near, far) = (state.known.get(from)?, state.known.get(to)?);
        let (far_host, also) = far.hosts(near.idx, now_us);
        let direction_to = |far_host| (near.place(host).id.0, far.place(far_host).id.0);
        let sides = near.twin.as_ref();
        Some(Ends {
            from: *from,
            from_idx: near.idx,
            to: *to,
            to_idx: far.idx,
            direction: direction_to(far_host),
            host: far_host,
            also: also.map(|also| (also, direction_to(also))),
            is_reached: sides.is_none_or(|(sides, _)| sides.reaches(host, far.idx, now_us)),
            is_connected: state.is_connected(near.place(host), far.place(far_host), now_us),
        })
    }

    /// Whether a host is in an enemy's hands.
    fn has_tap(&self, device: &DeviceId, host: Host) -> bool {
        if !self.is_tapped.load(Ordering::Relaxed) {
            return false;
        }
        let state = self.lock();
        let known = state.known.get(device);
        known.is_some_and(|known| known.place(host).tap.is_some())
    }

    /// Asks the tap of a host, if it has one, and sends what it wants sent besides.
    fn tapped<T>(&self, device: &DeviceId, host: Host, ask: impl FnOnce(&mut dyn Tap, u64) -> T) -> Option<T> {
        if !self.is_tapped.load(Ordering::Relaxed) {
            return None;
        }
        let now_us = self.trace.now_us();
        let (tap, process) = {
            let state = self.lock();
            let place = state.known.get(device)?.place(host);
            (place.tap.clone()?, place.running.as_ref()?.process.clone())
        };
        let (told, besides) = {
            let mut tap = tap.lock().unwrap_or_else(PoisonError::into_inner);
            let told = ask(&mut *tap, now_us);
            (told, tap.besides())
        };
        for sending in besides {
            self.send_besides(device, host, &process, sending);
        }
        Some(told)
    }

    fn send_besides(&self, device: &DeviceId, host: Host, process: &Process, sending: Sending) {
        let is_one = |known: &&Known| known.idx == sending.to;
        let to = self.lock().known.values().find(is_one).map(|known| known.hello.device);
        let Some(to) = to.filter(|to| to != device && sending.body.len() <= sending.kind.request_bytes_max()) else {
            return;
        };
        let (network, from) = (self.clone(), *device);
        drop(process.spawn(async move {
            tokio::time::sleep(Duration::from_micros(sending.after_us)).await;
            if network.has_connection(&from, host, &to)
                && let Some(ends) = network.ends(&from, host, &to)
            {
                let exchange = SimTransport::exchange(network, ends, sending.kind, sending.body);
                // What it is told is of no matter.
                let _ = tokio::time::timeout(BESIDES_DEADLINE, exchange).await;
            }
        }));
    }

    /// What a frame of a lane becomes on its way out. `None` if it is held back.
    pub(super) fn tapped_lane(
        &self,
        from: &DeviceId,
        host: Host,
        to: NodeIdx,
        kind: FrameKind,
        body: Bytes,
    ) -> Option<Bytes> {
        match self.tapped(from, host, |tap, now_us| tap.sends(now_us, to, kind, &body)) {
            None | Some(Leaves::Late(_)) => Some(body),
            Some(Leaves::As(other)) => Some(other),
            Some(Leaves::Never) => None,
        }
    }

    /// One way over a link. `None` if the frame was lost; inside, when it arrives once more, from now.
    async fn cross(&self, direction: Direction, frame: &Frame, may_repeat: bool) -> Option<Option<Duration>> {
        let now_us = self.trace.now_us();
        let fate = (self.lock().links).fate(direction, frame.bytes_len(), may_repeat, now_us);
        let Fate::Arrives {
            after_us,
            again_after_us,
        } = fate
        else {
            self.record(Event::Dropped, direction, frame);
            return None;
        };
        tokio::time::sleep(Duration::from_micros(after_us)).await;
        if self.lock().links.is_cut(direction) {
            self.record(Event::Dropped, direction, frame);
            return None;
        }
        Some(again_after_us.map(|again_us| Duration::from_micros(again_us.saturating_sub(after_us))))
    }

    pub(super) fn record(&self, event: Event, (from, to): Direction, frame: &Frame) {
        self.trace.record(event, from, to, &frame.parts());
    }

    /// The end of one direction of a lane.
    pub(super) fn record_end(&self, event: Event, (from, to): Direction) {
        self.trace.record(event, from, to, &[]);
    }

    /// How long a frame of a lane is under way, each loss of it counted as one more retransmission. `None` if
    /// it never arrives.
    pub(super) fn stream_delay(&self, direction: Direction, bytes: usize) -> Option<Duration> {
        let now_us = self.trace.now_us();
        let mut state = self.lock();
        let again_us = 3 * state.links.conditions().delay_us_max + RETRANSMISSION_US_MIN;
        let mut lost_us = 0;
        for _ in 0..=RETRANSMISSIONS_MAX {
            match state.links.fate(direction, bytes, false, now_us) {
                Fate::Arrives { after_us, .. } => return Some(Duration::from_micros(lost_us + after_us)),
                Fate::Lost => lost_us += again_us,
            }
        }
        None
    }

    pub(super) fn is_cut(&self, direction: Direction) -> bool {
        self.lock().links.is_cut(direction)
    }

    /// Whether a connection between the two can still be up.
    fn has_connection(&self, a: &DeviceId, host: Host, b: &DeviceId) -> bool {
        let now_us = self.trace.now_us();
        let state = self.lock();
        let (Some(near), Some(far)) = (state.known.get(a), state.known.get(b)) else {
            return false;
        };
        let (far_host, _) = far.hosts(near.idx, now_us);
        state.is_connected(near.place(host), far.place(far_host), now_us)
    }

    /// Time until a caller without a connection knows that none comes up.
    fn dial_time(&self, deadline: Duration) -> Duration {
        let most_us = u64::try_from(deadline.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.lock().links.draw(0, most_us))
    }

    /// The peer as the receiver sees it, and the receiver's life, if it is up.
    fn receiver(&self, ends: &Ends, host: Host, protocol: Protocol) -> Option<(Peer, Process, Arc<dyn Service>)> {
        let state = self.lock();
        let sender = state.known.get(&ends.from)?;
        let running = state.known.get(&ends.to)?.place(host).running.as_ref()?;
        let peer = Peer {
            device: ends.from,
            idx: sender.idx,
            protocol,
            hello: sender.hello.clone(),
        };
        Some((peer, running.process.clone(), running.service.clone()))
    }
}

/// What crosses a link: a header as on a real stream, and the body behind it. A body is not copied.
#[derive(Clone, Default)]
pub(super) struct Frame {
    pub header: [u8; FRAME_HEADER_BYTES],
    pub body: Bytes,
}

impl Frame {
    pub fn new(kind: u8, body: Bytes) -> Self {
        let header = frame_header(kind, body.len());
        Self { header, body }
    }

    pub fn bytes_len(&self) -> usize {
        FRAME_HEADER_BYTES + self.body.len()
    }

    /// Everything of it, in order.
    pub fn parts(&self) -> [&[u8]; 2] {
        [&self.header, &self.body]
    }
}
