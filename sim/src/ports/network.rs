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

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use common::{
    ids::{DeviceId, NodeIdx},
    wire::frame::{
        ANSWER_KIND, FrameKind, Hello, Protocol, REFUSAL_KIND, Refusal, frame_header, read_answer_header,
        read_request_header,
    },
};
use transport::ports::{BoxFuture, CallError, Lane, Peer, Service, Transport};

use super::{
    lane::{self, Way},
    links::{Direction, Fate, IDLE_US, LinkConditions, Links},
};
use crate::{
    runtime::{Process, ProcessId},
    trace::{Event, Trace},
};

/// A lost packet of a stream is noticed after three round trips, and not before this.
const RETRANSMISSION_US_MIN: u64 = 10_000;
/// More losses of one frame silence its lane.
const RETRANSMISSIONS_MAX: usize = 5;

struct Running {
    process: Process,
    service: Arc<dyn Service>,
}

struct Known {
    id: ProcessId,
    idx: NodeIdx,
    hello: Hello,
    running: Option<Running>,
    /// When the last life ended.
    down_since_us: Option<u64>,
}

/// Told of every request that leaves a device, before anything happens to it.
pub type Listener = Arc<dyn Fn(DeviceId, FrameKind, &Bytes) + Send + Sync>;

struct State {
    links: Links,
    known: BTreeMap<DeviceId, Known>,
    listener: Option<Listener>,
}

/// All links of one run.
#[derive(Clone)]
pub struct SimNetwork {
    state: Arc<Mutex<State>>,
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
            trace,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `listener` of every request from now on.
    pub fn listen(&self, listener: Listener) {
        self.lock().listener = Some(listener);
    }

    /// Makes a device known under the identity that peers are told; the network vouches for it as TLS would.
    pub fn enroll(&self, id: ProcessId, idx: NodeIdx, hello: Hello) {
        self.lock().known.insert(
            hello.device,
            Known {
                id,
                idx,
                hello,
                running: None,
                down_since_us: None,
            },
        );
    }

    /// The transport of an enrolled device.
    #[must_use]
    pub fn transport(&self, device: DeviceId) -> Arc<SimTransport> {
        Arc::new(SimTransport {
            network: self.clone(),
            device,
        })
    }

    /// Connects a life of an enrolled device.
    ///
    /// # Panics
    /// If it is not enrolled.
    pub fn connect(&self, device: DeviceId, process: Process, service: Arc<dyn Service>) {
        let mut state = self.lock();
        let known = state
            .known
            .get_mut(&device)
            .expect("devices are enrolled before they connect");
        known.running = Some(Running { process, service });
        known.down_since_us = None;
    }

    /// Cuts a device off: its life is over.
    pub fn disconnect(&self, device: &DeviceId) {
        let now_us = self.trace.now_us();
        if let Some(known) = self.lock().known.get_mut(device)
            && known.running.take().is_some()
        {
            known.down_since_us = Some(now_us);
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

    fn id_of(&self, device: &DeviceId) -> u32 {
        self.lock().known.get(device).map_or(u32::MAX, |known| known.id.0)
    }

    /// One way over a link. `None` if the frame was lost; inside, when it arrives once more, from now.
    async fn cross(&self, direction: Direction, frame: &[u8], may_repeat: bool) -> Option<Option<Duration>> {
        let now_us = self.trace.now_us();
        let fate = self.lock().links.fate(direction, frame.len(), may_repeat, now_us);
        let Fate::Arrives {
            after_us,
            again_after_us,
        } = fate
        else {
            self.trace.record(Event::Dropped, direction.0, direction.1, frame);
            return None;
        };
        tokio::time::sleep(Duration::from_micros(after_us)).await;
        if self.lock().links.is_cut(direction) {
            self.trace.record(Event::Dropped, direction.0, direction.1, frame);
            return None;
        }
        Some(again_after_us.map(|again_us| Duration::from_micros(again_us.saturating_sub(after_us))))
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

    pub(super) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Whether a connection between the two can still be up: it was not silent for too long.
    fn has_connection(&self, a: &DeviceId, b: &DeviceId) -> bool {
        let now_us = self.trace.now_us();
        let state = self.lock();
        let (Some(near), Some(far)) = (state.known.get(a), state.known.get(b)) else {
            return false;
        };
        let silent = state.links.silent_since_us(near.id.0, far.id.0);
        let is_started = far.running.is_some() || far.down_since_us.is_some();
        let silent_us = silent.into_iter().chain(far.down_since_us).min();
        is_started && silent_us.is_none_or(|since_us| now_us.saturating_sub(since_us) < IDLE_US)
    }

    /// Time until a caller without a connection knows that none comes up.
    fn dial_time(&self, deadline: Duration) -> Duration {
        let most_us = u64::try_from(deadline.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.lock().links.draw(0, most_us))
    }

    /// The peer as the receiver sees it, and the receiver's life, if it is up.
    fn receiver(
        &self,
        from: &DeviceId,
        to: &DeviceId,
        protocol: Protocol,
    ) -> Option<(Peer, Process, Arc<dyn Service>)> {
        let state = self.lock();
        let sender = state.known.get(from)?;
        let running = state.known.get(to)?.running.as_ref()?;
        let peer = Peer {
            device: *from,
            idx: sender.idx,
            protocol,
            hello: sender.hello.clone(),
        };
        Some((peer, running.process.clone(), running.service.clone()))
    }
}

/// The network as one device sees it.
pub struct SimTransport {
    network: SimNetwork,
    device: DeviceId,
}

impl SimTransport {
    async fn exchange(network: SimNetwork, from: DeviceId, to: DeviceId, kind: FrameKind, body: Bytes) -> Exchange {
        let (from_id, to_id) = (network.id_of(&from), network.id_of(&to));
        let request = framed(kind.byte(), &body);
        let Some(again) = network.cross((from_id, to_id), &request, true).await else {
            return Exchange::Silence;
        };
        let Some((peer, process, service)) = network.receiver(&from, &to, kind.protocol()) else {
            network.trace.record(Event::Dropped, from_id, to_id, &request);
            return Exchange::Silence;
        };
        network.trace.record(Event::Delivered, from_id, to_id, &request);
        let request: Arc<[u8]> = request.into();
        if let Some(later) = again {
            let second = handle(service.clone(), peer.clone(), kind, request.clone());
            let (trace, copy) = (network.trace.clone(), request.clone());
            drop(process.spawn(async move {
                tokio::time::sleep(later).await;
                trace.record(Event::Delivered, from_id, to_id, &copy);
                // What it says goes to nobody.
                let _ = second.await;
            }));
        }
        let handled = process.spawn(handle(service, peer, kind, request));
        let answer = match handled.await {
            Ok(Ok(body)) => framed(ANSWER_KIND, &body),
            Ok(Err(refusal)) => framed(REFUSAL_KIND, &common::codec::encode(&refusal)),
            // The receiver was killed while it worked, or panicked, which its process remembers.
            Err(_) => return Exchange::Silence,
        };
        if network.cross((to_id, from_id), &answer, false).await.is_none() {
            return Exchange::Silence;
        }
        network.trace.record(Event::Delivered, to_id, from_id, &answer);
        Exchange::Answer(answer)
    }
}

async fn handle(service: Arc<dyn Service>, peer: Peer, kind: FrameKind, request: Arc<[u8]>) -> Result<Bytes, Refusal> {
    let (header, body) = split(&request);
    match read_request_header(kind.protocol(), header) {
        Ok((kind, _)) => service.handle(peer, kind, Bytes::copy_from_slice(body)).await,
        Err(error) => panic!("a shell sent what its own protocol refuses: {error}"),
    }
}

enum Exchange {
    Answer(Vec<u8>),
    Silence,
}

impl Transport for SimTransport {
    fn call(
        &self,
        to: DeviceId,
        kind: FrameKind,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<Result<Bytes, CallError>> {
        assert!(
            body.len() <= kind.request_bytes_max(),
            "{kind:?} of {} bytes is above its cap",
            body.len()
        );
        let (network, from) = (self.network.clone(), self.device);
        let listener = network.lock().listener.clone();
        if let Some(listener) = listener {
            listener(from, kind, &body);
        }
        Box::pin(async move {
            if !network.has_connection(&from, &to) {
                tokio::time::sleep(network.dial_time(deadline)).await;
                return Err(CallError::Unreachable(to));
            }
            let exchange = async {
                match Self::exchange(network, from, to, kind, body).await {
                    Exchange::Answer(frame) => Ok(frame),
                    Exchange::Silence => {
                        tokio::time::sleep(Duration::from_micros(IDLE_US)).await;
                        Err(CallError::Broken("nothing was heard for too long".into()))
                    }
                }
            };
            let frame = tokio::time::timeout(deadline, exchange)
                .await
                .map_err(|_| CallError::Timeout(deadline))??;
            let (header, body) = split(&frame);
            match read_answer_header(kind, header) {
                Ok((true, _)) => Ok(Bytes::copy_from_slice(body)),
                Ok((false, _)) => match common::codec::decode::<Refusal>(body) {
                    Ok(refusal) => Err(CallError::Refused(refusal)),
                    Err(error) => Err(CallError::Broken(error.to_string())),
                },
                Err(error) => panic!("a shell answered {kind:?} with what the caller refuses: {error}"),
            }
        })
    }

    fn open_lane(&self, to: DeviceId, kind: FrameKind, deadline: Duration) -> BoxFuture<Result<Lane, CallError>> {
        assert!(kind.is_lane(), "{kind:?} is a single request's");
        let (network, from) = (self.network.clone(), self.device);
        Box::pin(async move {
            if !network.has_connection(&from, &to) {
                tokio::time::sleep(network.dial_time(deadline)).await;
                return Err(CallError::Unreachable(to));
            }
            let Some((peer, process, service)) = network.receiver(&from, &to, kind.protocol()) else {
                tokio::time::sleep(deadline).await;
                return Err(CallError::Unreachable(to));
            };
            let (near, far) = (network.id_of(&from), network.id_of(&to));
            let (ours, theirs) = lane::pair(
                &network,
                Way::requests((near, far), kind),
                Way::answers((far, near), kind),
            );
            // Ends with the receiver's process.
            drop(process.spawn(service.lane(peer, kind, theirs)));
            Ok(ours)
        })
    }

    fn is_connected(&self, to: &DeviceId, _protocol: Protocol) -> bool {
        self.network.has_connection(&self.device, to)
    }

    fn rtt(&self, to: &DeviceId) -> Option<Duration> {
        let state = self.network.lock();
        let conditions = state.links.conditions();
        let mean_us = conditions.delay_us_min + conditions.delay_us_max;
        state.known.contains_key(to).then(|| Duration::from_micros(mean_us))
    }
}

pub(super) fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = frame_header(kind, body.len()).to_vec();
    frame.extend_from_slice(body);
    frame
}

fn split(frame: &[u8]) -> (&[u8; 5], &[u8]) {
    frame.split_first_chunk().expect("frames begin with their header")
}
