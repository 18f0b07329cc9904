//! The transport of a simulated process: calls and lanes over the links.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::{
    ids::DeviceId,
    wire::frame::{
        ANSWER_KIND, FrameKind, Protocol, REFUSAL_KIND, Refusal, RefusalCode, read_answer_header, read_request_header,
    },
};
use futures::future::join_all;
use transport::ports::{BoxFuture, CallError, Lane, Peer, Service, Transport};

use super::{Ends, Frame, SimNetwork, listening::unbundled};
use crate::{
    ports::{
        lane::{self, Way},
        links::{Direction, IDLE_US},
        tap::{Leaves, Tap},
        twins::Host,
    },
    trace::Event,
};

/// The network as one host of a device sees it.
pub struct SimTransport {
    pub(super) network: SimNetwork,
    pub(super) device: DeviceId,
    pub(super) host: Host,
}

impl SimTransport {
    pub(super) async fn exchange(network: SimNetwork, ends: Ends, kind: FrameKind, body: Bytes) -> Exchange {
        let there = ends.direction;
        network.overhear(&ends.from, true, kind, &body);
        let request = Frame::new(kind.byte(), body);
        if !ends.is_reached {
            network.record(Event::Dropped, there, &request);
            return Exchange::Silence;
        }
        let Some(again) = network.cross(there, &request, true).await else {
            return Exchange::Silence;
        };
        let receiver = network.receiver(&ends, ends.host, kind.protocol());
        let Some((peer, process, service)) = receiver else {
            network.record(Event::Dropped, there, &request);
            return Exchange::Silence;
        };
        network.record(Event::Delivered, there, &request);
        if let Some(also) = ends.also {
            network.deliver_also(&ends, also, kind, &request);
        }
        let hears = |tap: &mut dyn Tap, now_us| tap.hears(now_us, ends.from_idx, kind, &request.body);
        if network.tapped(&ends.to, ends.host, hears) == Some(false) {
            return Exchange::Answer(Frame::new(ANSWER_KIND, Bytes::new()));
        }
        if let Some(later) = again {
            let second = handle(service.clone(), peer.clone(), kind, request.clone());
            let (network, copy) = (network.clone(), request.clone());
            drop(process.spawn(async move {
                tokio::time::sleep(later).await;
                // It is under way for longer than the first, and a cut stops it as any other frame.
                if network.is_cut(there) {
                    return network.record(Event::Dropped, there, &copy);
                }
                network.record(Event::Delivered, there, &copy);
                // What it says goes to nobody.
                let _ = second.await;
            }));
        }
        let body = request.body.clone();
        // The receiver was killed while it worked, or panicked, which its process remembers.
        let handling = answer_aloud(
            network.clone(),
            ends.to,
            handle(service, peer, kind, request.clone()),
            request,
            kind,
        );
        let Ok(handled) = process.spawn(handling).await else {
            return Exchange::Silence;
        };
        let answer = match network.tapped_answer(&ends, kind, &body, handled) {
            Ok(body) => Frame::new(ANSWER_KIND, body),
            Err(refusal) => Frame::new(REFUSAL_KIND, common::codec::encode(&refusal).into()),
        };
        let back = (there.1, there.0);
        if network.cross(back, &answer, false).await.is_none() {
            return Exchange::Silence;
        }
        network.record(Event::Delivered, back, &answer);
        Exchange::Answer(answer)
    }

    /// What leaves in the place of a request. `Err` is what the process is told of one that is held back.
    async fn outgoing(
        network: &SimNetwork,
        ends: &Ends,
        host: Host,
        kind: FrameKind,
        body: Bytes,
    ) -> Result<Bytes, Result<Bytes, CallError>> {
        let sends = |tap: &mut dyn Tap, now_us| tap.sends(now_us, ends.to_idx, kind, &body);
        match network.tapped(&ends.from, host, sends) {
            None => Ok(body),
            Some(Leaves::As(other)) => Ok(other),
            Some(Leaves::Late(after_us)) => {
                tokio::time::sleep(Duration::from_micros(after_us)).await;
                Ok(body)
            }
            Some(Leaves::Never) if has_empty_answer(kind) => Err(Ok(Bytes::new())),
            Some(Leaves::Never) => Err(Err(CallError::Broken("held back".into()))),
        }
    }
}

/// Whether a request of this kind only tells something.
fn has_empty_answer(kind: FrameKind) -> bool {
    matches!(
        kind,
        FrameKind::Proposal | FrameKind::Vote | FrameKind::Certificate | FrameKind::BatchNotice | FrameKind::Attest
    )
}

impl SimNetwork {
    /// Hands a request to the other twin as well, unless a cut is between; what that one answers goes to nobody.
    fn deliver_also(&self, ends: &Ends, (host, direction): (Host, Direction), kind: FrameKind, request: &Frame) {
        if self.is_cut(direction) {
            return self.record(Event::Dropped, direction, request);
        }
        let Some((peer, process, service)) = self.receiver(ends, host, kind.protocol()) else {
            return;
        };
        let hears = |tap: &mut dyn Tap, now_us| tap.hears(now_us, ends.from_idx, kind, &request.body);
        if self.tapped(&ends.to, host, hears) != Some(false) {
            drop(process.spawn(handle(service, peer, kind, request.clone())));
        }
    }

    fn tapped_answer(
        &self,
        ends: &Ends,
        kind: FrameKind,
        request: &[u8],
        answer: Result<Bytes, Refusal>,
    ) -> Result<Bytes, Refusal> {
        let honest = answer.clone();
        let answers = |tap: &mut dyn Tap, now_us| tap.answers(now_us, ends.from_idx, kind, request, answer);
        let told = self.tapped(&ends.to, ends.host, answers).unwrap_or(honest);
        match told {
            Ok(body) if body.len() > kind.answer_bytes_max() => Err(Refusal::new(RefusalCode::Busy, "too long")),
            told => told,
        }
    }
}

async fn handle(service: Arc<dyn Service>, peer: Peer, kind: FrameKind, request: Frame) -> Result<Bytes, Refusal> {
    match read_request_header(kind.protocol(), &request.header) {
        Ok((kind, _)) => service.handle(peer, kind, request.body).await,
        Err(error) => panic!("a shell sent what its own protocol refuses: {error}"),
    }
}

/// What `server` answers, which is heard as it leaves: who asked may be gone or paused by then.
async fn answer_aloud(
    network: SimNetwork,
    server: DeviceId,
    handled: impl Future<Output = Result<Bytes, Refusal>>,
    request: Frame,
    kind: FrameKind,
) -> Result<Bytes, Refusal> {
    let answer = handled.await?;
    network.overhear_answer(&server, kind, &request.body, &answer);
    Ok(answer)
}

pub(super) enum Exchange {
    Answer(Frame),
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
        let (network, from, host) = (self.network.clone(), self.device, self.host);
        // A tap sees each message by itself.
        let is_tapped =
            || network.has_tap(&from, host) || network.has_tap(&to, Host::First) || network.has_tap(&to, Host::Second);
        if kind == FrameKind::Bundle
            && is_tapped()
            && let Some(messages) = unbundled(kind, &body)
        {
            let calls: Vec<_> = messages
                .into_iter()
                .map(|(kind, body)| self.call(to, kind, body, deadline))
                .collect();
            return Box::pin(async move {
                let mut answers = join_all(calls).await;
                let refused = answers.iter().position(Result::is_err);
                refused.map_or(Ok(Bytes::new()), |first| answers.swap_remove(first))
            });
        }
        network.overhear(&from, false, kind, &body);
        Box::pin(async move {
            let ends = network.ends(&from, host, &to);
            let Some(ends) = ends.filter(|ends| ends.is_connected) else {
                tokio::time::sleep(network.dial_time(deadline)).await;
                return Err(CallError::Unreachable(to));
            };
            let body = match Self::outgoing(&network, &ends, host, kind, body).await {
                Ok(body) => body,
                Err(held_back) => return held_back,
            };
            let tapped = network.clone();
            let exchange = async {
                match Self::exchange(network, ends, kind, body).await {
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
            let Frame { header, body } = frame;
            match read_answer_header(kind, &header) {
                Ok((true, _)) => {
                    let honest = body.clone();
                    let is_told = |tap: &mut dyn Tap, now_us| tap.is_told(now_us, ends.to_idx, kind, body);
                    Ok(tapped.tapped(&from, host, is_told).unwrap_or(honest))
                }
                Ok((false, _)) => match common::codec::decode::<Refusal>(&body) {
                    Ok(refusal) => Err(CallError::Refused(refusal)),
                    Err(error) => Err(CallError::Broken(error.to_string())),
                },
                Err(error) => panic!("a shell answered {kind:?} with what the caller refuses: {error}"),
            }
        })
    }

    fn open_lane(&self, to: DeviceId, kind: FrameKind, deadline: Duration) -> BoxFuture<Result<Lane, CallError>> {
        assert!(kind.is_lane(), "{kind:?} is a single request's");
        let (network, from, host) = (self.network.clone(), self.device, self.host);
        Box::pin(async move {
            let ends = network.ends(&from, host, &to);
            let Some(ends) = ends.filter(|ends| ends.is_connected) else {
                tokio::time::sleep(network.dial_time(deadline)).await;
                return Err(CallError::Unreachable(to));
            };
            let Some((peer, process, service)) = network.receiver(&ends, ends.host, kind.protocol()) else {
                tokio::time::sleep(deadline).await;
                return Err(CallError::Unreachable(to));
            };
            let (near, far) = ends.direction;
            let opener = (from, host, ends.to_idx);
            let (ours, theirs) = lane::pair(
                &network,
                Way::requests((near, far), kind, opener),
                Way::answers((far, near), kind, ends.to),
            );
            // Ends with the receiver's process.
            drop(process.spawn(service.lane(peer, kind, theirs)));
            Ok(ours)
        })
    }

    fn is_connected(&self, to: &DeviceId, _protocol: Protocol) -> bool {
        self.network.has_connection(&self.device, self.host, to)
    }

    fn rtt(&self, to: &DeviceId) -> Option<Duration> {
        let state = self.network.lock();
        let conditions = state.links.conditions();
        let mean_us = conditions.delay_us_min + conditions.delay_us_max;
        state.known.contains_key(to).then(|| Duration::from_micros(mean_us))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Mutex};

    use common::{
        ids::RaftNodeId,
        testing::Fleet,
        wire::frame::{Hello, WIRE_VERSION},
    };

    use super::*;
    use crate::{
        ports::LinkConditions,
        runtime::{Process, ProcessId},
        trace::Trace,
    };

    /// Counts requests.
    #[derive(Default)]
    struct Counting(Mutex<u32>);

    impl Service for Counting {
        fn handle(&self, _peer: Peer, _kind: FrameKind, _body: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
            *self.0.lock().unwrap() += 1;
            Box::pin(async { Ok(Bytes::new()) })
        }
    }

    /// How often a request that the links double is handled, and how many frames are dropped, when its way is cut
    /// behind the first copy or not.
    async fn handled(is_cut: bool) -> (u32, u64) {
        let conditions = LinkConditions {
            delay_us_min: 10_000,
            delay_us_max: 10_000,
            loss_ppm: 0,
            spike_ppm: 0,
            spike_us: 0,
            duplicate_ppm: 1_000_000,
            bytes_per_second: 0,
        };
        let trace = Trace::begin();
        let network = SimNetwork::new(1, conditions, trace.clone());
        let fleet = Fleet::dev();
        let [near, far] = ["v1", "v2"].map(|name| {
            let member = fleet
                .registry
                .members()
                .iter()
                .find(|member| member.label.as_str() == name);
            let member = member.expect("a development fleet has two validators");
            let hello = Hello {
                version: WIRE_VERSION,
                chain: fleet.chain,
                device: member.id,
                cluster: None,
                raft: RaftNodeId(0).0,
            };
            network.enroll(ProcessId(member.idx.0), member.idx, hello);
            member
        });
        let service = Arc::new(Counting::default());
        for (member, service) in [(near, Arc::new(Counting::default())), (far, service.clone())] {
            let process = Process::new(ProcessId(member.idx.0), 1);
            network.connect(member.id, Host::First, process, service);
        }
        let call = network
            .transport(near.id)
            .call(far.id, FrameKind::Vote, Bytes::new(), Duration::from_secs(1));
        let call = async {
            assert!(call.await.is_ok(), "the first copy arrived and was answered");
        };
        let cut = async {
            tokio::time::sleep(Duration::from_millis(15)).await;
            if is_cut {
                network.set_cuts(&BTreeSet::from([(near.idx.0, far.idx.0)]));
            }
        };
        futures::join!(call, cut);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let handled = *service.0.lock().unwrap();
        (handled, trace.summary().1.of(Event::Dropped))
    }

    #[test]
    fn second_copy_of_a_request_does_not_cross_a_cut() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            assert_eq!(handled(false).await, (2, 0));
            assert_eq!(handled(true).await, (1, 1));
        });
    }
}
