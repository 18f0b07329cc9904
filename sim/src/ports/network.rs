//! Links between simulated processes: delay, loss, and processes that are down.
//!
//! # Rules
//! * Bytes cross a link, not values: the frame's header is written and read as on a real stream.
//! * A frame is delayed by a time of its own, so requests overtake each other as QUIC streams do.
//! * A lost request or answer is silence: the caller's deadline ends it.
//! * A process that is down at delivery has no connection: a caller waits for its deadline, since a
//!   dial needs an answer.

use std::{
    collections::BTreeMap,
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
use transport::ports::{BoxFuture, CallError, Peer, Service, Transport};

use crate::{
    random::Stream,
    runtime::{Process, ProcessId},
    trace::{Event, Trace},
};

/// How bad the links are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkConditions {
    /// Shortest one-way delay.
    pub delay_us_min: u64,
    /// Longest one-way delay.
    pub delay_us_max: u64,
    /// Frames lost, per million.
    pub loss_ppm: u64,
}

struct Running {
    process: Process,
    service: Arc<dyn Service>,
}

struct Known {
    id: ProcessId,
    idx: NodeIdx,
    hello: Hello,
    running: Option<Running>,
}

struct State {
    random: Stream,
    conditions: LinkConditions,
    known: BTreeMap<DeviceId, Known>,
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
            random: Stream::split(seed, 0x6e65_7477),
            conditions,
            known: BTreeMap::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            trace,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    }

    /// Cuts a device off: its life is over.
    pub fn disconnect(&self, device: &DeviceId) {
        if let Some(known) = self.lock().known.get_mut(device) {
            known.running = None;
        }
    }

    /// New conditions for all frames from now on.
    pub fn set_conditions(&self, conditions: LinkConditions) {
        self.lock().conditions = conditions;
    }

    fn id_of(&self, device: &DeviceId) -> u32 {
        self.lock().known.get(device).map_or(u32::MAX, |known| known.id.0)
    }

    /// One way over a link. False if the frame was lost.
    async fn cross(&self, from: u32, to: u32, frame: &[u8]) -> bool {
        let (is_lost, delay_us) = {
            let mut state = self.lock();
            let conditions = state.conditions;
            let is_lost = state.random.happens_ppm(conditions.loss_ppm);
            (
                is_lost,
                state.random.between(conditions.delay_us_min, conditions.delay_us_max),
            )
        };
        if is_lost {
            self.trace.record(Event::Dropped, from, to, frame);
            return false;
        }
        tokio::time::sleep(Duration::from_micros(delay_us)).await;
        true
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
        if !network.cross(from_id, to_id, &request).await {
            return Exchange::Silence;
        }
        let Some((peer, process, service)) = network.receiver(&from, &to, kind.protocol()) else {
            network.trace.record(Event::Dropped, from_id, to_id, &request);
            return Exchange::Silence;
        };
        network.trace.record(Event::Delivered, from_id, to_id, &request);
        let handled = process.spawn(async move {
            let (header, body) = split(&request);
            match read_request_header(kind.protocol(), header) {
                Ok((kind, _)) => service.handle(peer, kind, Bytes::copy_from_slice(body)).await,
                Err(error) => panic!("a shell sent what its own protocol refuses: {error}"),
            }
        });
        let answer = match handled.await {
            Ok(Ok(body)) => framed(ANSWER_KIND, &body),
            Ok(Err(refusal)) => framed(REFUSAL_KIND, &common::codec::encode(&refusal)),
            // The receiver was killed while it worked.
            Err(error) if error.is_cancelled() => return Exchange::Silence,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        if !network.cross(to_id, from_id, &answer).await {
            return Exchange::Silence;
        }
        network.trace.record(Event::Delivered, to_id, from_id, &answer);
        Exchange::Answer(answer)
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
        Box::pin(async move {
            let exchange = async {
                match Self::exchange(network, from, to, kind, body).await {
                    Exchange::Answer(frame) => frame,
                    Exchange::Silence => std::future::pending().await,
                }
            };
            let frame = tokio::time::timeout(deadline, exchange)
                .await
                .map_err(|_| CallError::Timeout(deadline))?;
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

    fn is_connected(&self, to: &DeviceId, _protocol: Protocol) -> bool {
        self.network
            .lock()
            .known
            .get(to)
            .is_some_and(|known| known.running.is_some())
    }

    fn rtt(&self, to: &DeviceId) -> Option<Duration> {
        let state = self.network.lock();
        let mean_us = state.conditions.delay_us_min + state.conditions.delay_us_max;
        state.known.contains_key(to).then(|| Duration::from_micros(mean_us))
    }
}

fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = frame_header(kind, body.len()).to_vec();
    frame.extend_from_slice(body);
    frame
}

fn split(frame: &[u8]) -> (&[u8; 5], &[u8]) {
    frame.split_first_chunk().expect("frames begin with their header")
}
