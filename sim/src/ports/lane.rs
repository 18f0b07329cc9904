//! Lanes between simulated processes: streams of frames that keep their order.
//!
//! # Rules
//! * A frame arrives after its delay, and not before the one in front of it.
//! * A cut silences a lane for good: what is sent into it, and what is under way, is lost.
//! * When the server's process was killed the opener hears nothing more: its own deadline ends the lane.
//!   When the opener's was, the server's end breaks.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use common::{
    ids::{DeviceId, NodeIdx},
    wire::frame::{ANSWER_KIND, FrameKind, REFUSAL_KIND, Refusal, read_answer_header, read_request_header},
};
use futures::{FutureExt as _, future::BoxFuture};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use transport::ports::{CallError, Lane, LaneReceiver, LaneSender};

use super::{
    links::Direction,
    network::{Frame, SimNetwork},
    twins::Host,
};
use crate::trace::Event;

/// Frames under way in one direction.
const FRAMES_MAX: usize = 64;
/// A frame that the other end does not take.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);

/// One direction of a lane.
#[derive(Clone, Copy)]
pub(super) struct Way {
    direction: Direction,
    kind: FrameKind,
    is_request: bool,
    /// Whose tap sees the requests, and whom they are for.
    opener: Option<(DeviceId, Host, NodeIdx)>,
    /// Who answers.
    server: Option<DeviceId>,
}

/// What the server of a lane took and has not answered, in order: whoever listens hears both together.
type Taken = Arc<Mutex<VecDeque<Bytes>>>;

impl Way {
    pub(super) fn requests(direction: Direction, kind: FrameKind, opener: (DeviceId, Host, NodeIdx)) -> Self {
        Self {
            direction,
            kind,
            is_request: true,
            opener: Some(opener),
            server: None,
        }
    }

    pub(super) fn answers(direction: Direction, kind: FrameKind, server: DeviceId) -> Self {
        Self {
            direction,
            kind,
            is_request: false,
            opener: None,
            server: Some(server),
        }
    }

    /// No frame is the end of a direction, which has no bytes.
    fn record(self, network: &SimNetwork, event: Event, frame: Option<&Frame>) {
        match frame {
            Some(frame) => network.record(event, self.direction, frame),
            None => network.record_end(event, self.direction),
        }
    }

    fn byte(self) -> u8 {
        if self.is_request { self.kind.byte() } else { ANSWER_KIND }
    }

    /// Whether the frame is a request or answer (or a refusal).
    fn read(self, frame: &Frame) -> bool {
        let header = &frame.header;
        let read = if self.is_request {
            read_request_header(self.kind.protocol(), header).map(|(kind, _)| kind == self.kind)
        } else {
            read_answer_header(self.kind, header).map(|(is_answer, _)| is_answer)
        };
        read.unwrap_or_else(|error| panic!("a shell sent what its own protocol refuses: {error}"))
    }
}

/// A frame and when it arrives; no frame is the end.
type UnderWay = (Instant, Option<Frame>);

/// Both ends of a lane: the opener's and the server's.
pub(super) fn pair(network: &SimNetwork, requests: Way, answers: Way) -> (Lane, Lane) {
    let (to_server, from_opener) = mpsc::channel(FRAMES_MAX);
    let (to_opener, from_server) = mpsc::channel(FRAMES_MAX);
    let taken = Taken::default();
    let end = |frames, sends, received, receives| Lane {
        sender: Box::new(Sender {
            network: network.clone(),
            way: sends,
            taken: taken.clone(),
            frames: Some(frames),
            arrives: Instant::now(),
            is_silenced: false,
        }),
        receiver: Box::new(Receiver {
            network: network.clone(),
            way: receives,
            taken: taken.clone(),
            is_opened: false,
            frames: received,
            held: None,
            is_silenced: false,
            end: None,
        }),
    };
    (
        end(to_server, requests, from_server, answers),
        end(to_opener, answers, from_opener, requests),
    )
}

fn taken(taken: &Taken) -> MutexGuard<'_, VecDeque<Bytes>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Sender {
    network: SimNetwork,
    way: Way,
    taken: Taken,
    /// `None` after the end.
    frames: Option<mpsc::Sender<UnderWay>>,
    /// When the last frame arrives.
    arrives: Instant,
    is_silenced: bool,
}

impl Sender {
    async fn put(&mut self, frame: Option<Frame>) -> Result<(), CallError> {
        let ended = || CallError::Broken("the lane was ended".into());
        let frames = self.frames.as_ref().ok_or_else(ended)?;
        let bytes = frame.as_ref().map_or(0, Frame::bytes_len);
        let delay = self.network.stream_delay(self.way.direction, bytes);
        let Some(delay) = delay.filter(|_| !self.is_silenced) else {
            self.is_silenced = true;
            self.way.record(&self.network, Event::Dropped, frame.as_ref());
            return Ok(());
        };
        self.arrives = self.arrives.max(Instant::now() + delay);
        match timeout(TAKEN_WITHIN, frames.send((self.arrives, frame))).await {
            Ok(Ok(())) => Ok(()),
            // The receiver's process was killed: nobody tells the sender.
            Ok(Err(mpsc::error::SendError((_, frame)))) => {
                self.way.record(&self.network, Event::Dropped, frame.as_ref());
                Ok(())
            }
            Err(_) => Err(CallError::Timeout(TAKEN_WITHIN)),
        }
    }
}

impl LaneSender for Sender {
    fn send(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), CallError>> {
        if let Some(server) = &self.way.server {
            let answered = taken(&self.taken).pop_front();
            if let Some(request) = answered {
                self.network.overhear_answer(server, self.way.kind, &request, &body);
            }
        }
        let body = match &self.way.opener {
            None => Some(body),
            Some((from, host, to)) => self.network.tapped_lane(from, *host, *to, self.way.kind, body),
        };
        let Some(body) = body else {
            return futures::future::ready(Ok(())).boxed();
        };
        let frame = Frame::new(self.way.byte(), body);
        // Checks the cap as the real receiver does.
        assert!(self.way.read(&frame));
        self.put(Some(frame)).boxed()
    }

    fn end(&mut self, refusal: Option<Refusal>) -> BoxFuture<'_, ()> {
        async move {
            if let Some(refusal) = refusal {
                let frame = Frame::new(REFUSAL_KIND, common::codec::encode(&refusal).into());
                // Fails only where nobody listens any more.
                let _ = self.put(Some(frame)).await;
            }
            let _ = self.put(None).await;
            self.frames = None;
        }
        .boxed()
    }
}

struct Receiver {
    network: SimNetwork,
    way: Way,
    taken: Taken,
    /// The first frame of a lane opens it, and has no answer.
    is_opened: bool,
    frames: mpsc::Receiver<UnderWay>,
    /// Taken, and still under way.
    held: Option<UnderWay>,
    is_silenced: bool,
    end: Option<Result<(), CallError>>,
}

impl Receiver {
    /// Nothing more comes; only the end of the other side's process, or its giving up, is noticed.
    async fn silence(&mut self) -> Result<Option<Bytes>, CallError> {
        while let Some((_, frame)) = self.frames.recv().await {
            self.way.record(&self.network, Event::Dropped, frame.as_ref());
        }
        if self.way.is_request {
            return Err(CallError::Broken("the opener is gone".into()));
        }
        std::future::pending().await
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, CallError> {
        if self.is_silenced {
            return self.silence().await;
        }
        if self.held.is_none() {
            self.held = self.frames.recv().await;
        }
        let Some((arrives, _)) = &self.held else {
            if self.way.is_request {
                return Err(CallError::Broken("the opener is gone".into()));
            }
            return std::future::pending().await;
        };
        sleep_until(*arrives).await;
        if self.is_silenced || self.network.is_cut(self.way.direction) {
            self.is_silenced = true;
            let lost = self.held.take().and_then(|(_, frame)| frame);
            self.way.record(&self.network, Event::Dropped, lost.as_ref());
            return self.silence().await;
        }
        let Some((_, Some(frame))) = self.held.take() else {
            return Ok(None);
        };
        self.way.record(&self.network, Event::Delivered, Some(&frame));
        if self.way.read(&frame) {
            if self.way.is_request && std::mem::replace(&mut self.is_opened, true) {
                taken(&self.taken).push_back(frame.body.clone());
            }
            return Ok(Some(frame.body));
        }
        match common::codec::decode::<Refusal>(&frame.body) {
            Ok(refusal) => Err(CallError::Refused(refusal)),
            Err(error) => Err(CallError::Broken(error.to_string())),
        }
    }
}

impl LaneReceiver for Receiver {
    fn recv(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, CallError>> {
        async move {
            if let Some(end) = &self.end {
                return end.clone().map(|()| None);
            }
            let received = self.frame().await;
            self.end = match &received {
                Ok(Some(_)) => None,
                Ok(None) => Some(Ok(())),
                Err(error) => Some(Err(error.clone())),
            };
            received
        }
        .boxed()
    }
}
