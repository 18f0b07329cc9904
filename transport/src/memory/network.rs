//! Requests between shells of one process, framed as on the wire.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use common::{
    ids::{DeviceId, NodeIdx},
    wire::frame::{
        ANSWER_KIND, FrameKind, Hello, Protocol, Refusal, RefusalCode, frame_header, read_answer_header,
        read_request_header,
    },
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::lane::{Fate, lane_pair};
use crate::ports::{BoxFuture, CallError, Lane, Peer, Service, Spawner, Transport};

#[derive(Default)]
struct Routes {
    services: BTreeMap<DeviceId, Arc<dyn Service>>,
    /// Pairs, the lower id first.
    cuts: BTreeSet<(DeviceId, DeviceId)>,
    /// Pairs, the lower id first: frames vanish.
    silent: BTreeSet<(DeviceId, DeviceId)>,
}

/// A network without delay or loss, of the devices that joined it. Clones are the same network.
///
/// Frames go through the same headers and caps as over QUIC; roles and certificates do not exist here.
#[derive(Clone)]
pub struct MemoryNetwork {
    routes: Arc<Mutex<Routes>>,
    spawner: Arc<dyn Spawner>,
}

fn pair(a: DeviceId, b: DeviceId) -> (DeviceId, DeviceId) {
    (a.min(b), a.max(b))
}

impl MemoryNetwork {
    /// An empty network. Services run as tasks of `spawner`: a caller who gives up does not stop them.
    #[must_use]
    pub fn new(spawner: Arc<dyn Spawner>) -> Self {
        Self {
            routes: Arc::new(Mutex::new(Routes::default())),
            spawner,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transport for the device of `hello`, which peers see as number `idx` and reach through `service`.
    /// A second join of one device takes the first one's place.
    pub fn join(&self, idx: NodeIdx, hello: Hello, service: Arc<dyn Service>) -> Arc<MemoryTransport> {
        self.lock().services.insert(hello.device, service);
        Arc::new(MemoryTransport {
            network: self.clone(),
            idx,
            hello,
        })
    }

    /// The device's process ends: nothing reaches it until it joins again.
    pub fn leave(&self, device: &DeviceId) {
        self.lock().services.remove(device);
    }

    /// Cuts the link between two devices, or heals it.
    pub fn set_link(&self, a: DeviceId, b: DeviceId, is_up: bool) {
        let mut routes = self.lock();
        if is_up {
            routes.cuts.remove(&pair(a, b));
        } else {
            routes.cuts.insert(pair(a, b));
        }
    }

    /// Lets every frame between two devices vanish, as a radio link out of reach does: who calls waits
    /// for its deadline. Or heals that. What was under way is answered no more.
    pub fn set_silent(&self, a: DeviceId, b: DeviceId, is_silent: bool) {
        let mut routes = self.lock();
        if is_silent {
            routes.silent.insert(pair(a, b));
        } else {
            routes.silent.remove(&pair(a, b));
        }
    }

    fn is_silent(&self, a: DeviceId, b: DeviceId) -> bool {
        self.lock().silent.contains(&pair(a, b))
    }

    fn route(&self, from: DeviceId, to: DeviceId) -> Option<Arc<dyn Service>> {
        let routes = self.lock();
        if routes.cuts.contains(&pair(from, to)) {
            return None;
        }
        routes.services.get(&to).cloned()
    }
}

/// One device's end of a [`MemoryNetwork`].
pub struct MemoryTransport {
    network: MemoryNetwork,
    idx: NodeIdx,
    hello: Hello,
}

impl MemoryTransport {
    /// We, as peers see us.
    fn peer(&self, protocol: Protocol) -> Peer {
        Peer {
            device: self.hello.device,
            idx: self.idx,
            protocol,
            hello: self.hello.clone(),
        }
    }
}

impl Transport for MemoryTransport {
    fn call(
        &self,
        to: DeviceId,
        kind: FrameKind,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<Result<Bytes, CallError>> {
        let protocol = kind.protocol();
        let header = frame_header(kind.byte(), body.len());
        let read = read_request_header(protocol, &header);
        assert_eq!(read, Ok((kind, body.len())), "the caller builds bounded bodies");
        let (from, peer) = (self.hello.device, self.peer(protocol));
        let network = self.network.clone();
        Box::pin(async move {
            let begun = tokio::time::Instant::now();
            if network.is_silent(from, to) {
                sleep(deadline).await;
                return Err(CallError::Timeout(deadline));
            }
            let service = network.route(from, to).ok_or(CallError::Unreachable(to))?;
            let (sender, answer) = oneshot::channel();
            network.spawner.spawn(
                "memory-request",
                Box::pin(async move {
                    let outcome = service.handle(peer, kind, body).await;
                    // The caller may have given up.
                    let _ = sender.send(outcome);
                }),
            );
            let outcome = timeout(deadline, answer)
                .await
                .map_err(|_| CallError::Timeout(deadline))?
                .map_err(|_| CallError::Broken("the peer's process ended".into()))?;
            if network.is_silent(from, to) {
                sleep(deadline.saturating_sub(begun.elapsed())).await;
                return Err(CallError::Timeout(deadline));
            }
            if network.route(to, from).is_none() {
                return Err(CallError::Broken("the link was cut".into()));
            }
            let answer = outcome.map_err(CallError::Refused)?;
            let header = frame_header(ANSWER_KIND, answer.len());
            if read_answer_header(kind, &header).is_err() {
                let refusal = Refusal::new(RefusalCode::NotNow, "the answer would be too long");
                return Err(CallError::Refused(refusal));
            }
            Ok(answer)
        })
    }

    fn open_lane(&self, to: DeviceId, kind: FrameKind, deadline: Duration) -> BoxFuture<Result<Lane, CallError>> {
        assert!(kind.is_lane(), "{kind:?} is a single request's");
        let (from, peer, network) = (self.hello.device, self.peer(kind.protocol()), self.network.clone());
        Box::pin(async move {
            if network.is_silent(from, to) {
                sleep(deadline).await;
                return Err(CallError::Unreachable(to));
            }
            let service = network.route(from, to).ok_or(CallError::Unreachable(to))?;
            let (routes, served) = (network.clone(), Arc::downgrade(&service));
            let weather = move |_| {
                // A process that ended, or began anew, has no lanes of before.
                let is_same = routes
                    .route(from, to)
                    .is_some_and(|now| served.upgrade().is_some_and(|then| Arc::ptr_eq(&then, &now)));
                match (is_same, routes.is_silent(from, to)) {
                    (_, true) => Fate::IsLost,
                    (true, false) => Fate::Arrives,
                    (false, false) => Fate::Breaks,
                }
            };
            let (ours, theirs) = lane_pair(kind.request_bytes_max(), kind.answer_bytes_max(), Arc::new(weather));
            network.spawner.spawn("memory-lane", service.lane(peer, kind, theirs));
            Ok(ours)
        })
    }

    fn is_connected(&self, to: &DeviceId, _protocol: Protocol) -> bool {
        self.network.route(self.hello.device, *to).is_some()
    }

    fn rtt(&self, _to: &DeviceId) -> Option<Duration> {
        None
    }
}
