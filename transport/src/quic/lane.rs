//! Lanes: streams that carry many frames each way.
//!
//! # Rules
//! * Every frame has the header and the cap of a single request or answer. A lane may be silent; a frame
//!   that has begun must be whole within the stream deadline, and taken within it.
//! * The device's status and role are looked up with every request, as for single ones.
//! * Upon a malformed or stalled frame: the lane ends and the device is blamed; other streams go on.
//! * One connection has at most [`LANES_MAX`] lanes that a peer opened. Bytes that wait for the service are
//!   bounded by the stream's window and one frame.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use common::{
    codec::{decode, encode},
    ids::DeviceId,
    wire::frame::{
        ANSWER_KIND, FRAME_HEADER_BYTES, FrameKind, REFUSAL_KIND, Refusal, RefusalCode, frame_header,
        read_answer_header, read_request_header,
    },
};
use futures::{FutureExt as _, future::BoxFuture};
use quinn::{Connection, RecvStream, SendStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Shared, call,
    code::{CloseCode, REFUSED, StreamCode},
    dial::CALL_DEADLINE_MAX,
    frame_io::{ReadFrameError, STEP_BYTES},
    role::priority,
    serve::may_still_speak,
};
use crate::ports::{CallError, Lane, LaneReceiver, LaneSender, Peer};

/// Lanes on one connection that its peer opened. One is in use; the others are on their way out.
pub(crate) const LANES_MAX: usize = 4;

/// Opens a lane to `to`.
pub(crate) async fn open(
    shared: Arc<Shared>,
    to: DeviceId,
    kind: FrameKind,
    limit: Duration,
) -> Result<Lane, CallError> {
    let deadline = Instant::now() + limit.min(CALL_DEADLINE_MAX);
    let (listening, send, recv) = call::open(&shared, to, kind.protocol(), deadline).await?;
    // Ahead of bulk data of other streams; a lane of requests is bulk itself.
    let _ = send.set_priority(priority(kind, kind.request_bytes_max()));
    let sender = Sender {
        send,
        kind: kind.byte(),
        body_bytes_max: kind.request_bytes_max(),
        deadline: shared.limits.stream_deadline,
        is_ended: false,
        blame: None,
        listening: Some(listening),
    };
    let receiver = Receiver::new(shared, to, recv, Expected::Answers(kind));
    Ok(Lane {
        sender: Box::new(sender),
        receiver: Box::new(receiver),
    })
}

/// Counts the lanes of one connection for as long as they live.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Option<Self> {
        let taken = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
            (n < LANES_MAX).then_some(n + 1)
        });
        taken.is_ok().then(|| Self(count.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A lane that a peer opened, as far as it was read.
pub(crate) struct Opened {
    pub(crate) kind: FrameKind,
    /// Header of the first request.
    pub(crate) header: [u8; FRAME_HEADER_BYTES],
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

/// Serves a lane until the service is done with it.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    connection: &Connection,
    peer: Peer,
    lanes: &Arc<AtomicUsize>,
    opened: Opened,
) {
    let Opened {
        kind,
        header,
        send,
        recv,
    } = opened;
    let _ = send.set_priority(priority(kind, 0));
    let device = peer.device;
    let mut sender = Sender {
        send,
        kind: ANSWER_KIND,
        body_bytes_max: kind.answer_bytes_max(),
        deadline: shared.limits.stream_deadline,
        is_ended: false,
        blame: Some((shared.clone(), device)),
        listening: None,
    };
    let Some(_place) = Place::take(lanes) else {
        let refusal = Refusal::new(RefusalCode::Busy, "too many lanes");
        return sender.end(Some(refusal)).await;
    };
    let expected = Expected::Requests(kind, connection.clone(), peer.clone());
    let mut receiver = Receiver::new(shared.clone(), device, recv, expected);
    receiver.buffer.extend_from_slice(&header);
    receiver.began = Some(Instant::now());
    let lane = Lane {
        sender: Box::new(sender),
        receiver: Box::new(receiver),
    };
    let service = shared.service.clone();
    let work = AssertUnwindSafe(async move { service.lane(peer, kind, lane).await }).catch_unwind();
    if work.await.is_err() {
        tracing::error!(%device, ?kind, "the service panicked");
    }
}

struct Sender {
    send: SendStream,
    kind: u8,
    body_bytes_max: usize,
    deadline: Duration,
    is_ended: bool,
    /// Who is to blame if nothing is taken.
    blame: Option<(Arc<Shared>, DeviceId)>,
    /// On a lane of our own: since its last request.
    listening: Option<call::Listening>,
}

impl Sender {
    async fn write(&mut self, kind: u8, body: Bytes) -> Result<(), CallError> {
        if self.is_ended {
            return Err(CallError::Broken("the lane was ended".into()));
        }
        // Until the frame is whole the lane counts as broken, also for a caller who gives up here.
        self.is_ended = true;
        if let Some(listening) = &mut self.listening {
            listening.begin();
        }
        let mut chunks = [Bytes::copy_from_slice(&frame_header(kind, body.len())), body];
        match timeout(self.deadline, self.send.write_all_chunks(&mut chunks)).await {
            Ok(Ok(())) => {
                self.is_ended = false;
                Ok(())
            }
            Ok(Err(error)) => Err(CallError::Broken(error.to_string())),
            Err(_) => {
                // Fails only where the stream is closed already.
                let _ = self.send.reset(StreamCode::Deadline.wire());
                if let Some((shared, device)) = &self.blame {
                    shared.blame(*device, 10, "an answer was not taken in time");
                }
                Err(CallError::Timeout(self.deadline))
            }
        }
    }
}

impl LaneSender for Sender {
    fn send(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), CallError>> {
        assert!(
            body.len() <= self.body_bytes_max,
            "a frame of {} bytes, at most {} allowed",
            body.len(),
            self.body_bytes_max
        );
        self.write(self.kind, body).boxed()
    }

    fn end(&mut self, refusal: Option<Refusal>) -> BoxFuture<'_, ()> {
        async move {
            if let Some(refusal) = refusal
                && self.write(REFUSAL_KIND, encode(&refusal).into()).await.is_err()
            {
                return;
            }
            if !std::mem::replace(&mut self.is_ended, true) {
                // Fails only where the peer stopped the stream.
                let _ = self.send.finish();
            }
        }
        .boxed()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // Does nothing to a stream that was finished and acknowledged; a peer that still reads an unfinished
        // one learns that it is not whole.
        if !self.is_ended {
            let _ = self.send.reset(StreamCode::GivenUp.wire());
        }
    }
}

enum Expected {
    /// We opened the lane.
    Answers(FrameKind),
    /// The peer did.
    Requests(FrameKind, Connection, Peer),
}

/// Why a lane yields no more frames.
enum Fault {
    Frame(ReadFrameError),
    Stalled,
    Revoked,
}

struct Receiver {
    shared: Arc<Shared>,
    device: DeviceId,
    recv: RecvStream,
    expected: Expected,
    buffer: BytesMut,
    /// When the frame that is being read began.
    began: Option<Instant>,
    /// The lane ended; what every further read gets.
    end: Option<Result<(), CallError>>,
}

impl Receiver {
    fn new(shared: Arc<Shared>, device: DeviceId, recv: RecvStream, expected: Expected) -> Self {
        Self {
            shared,
            device,
            recv,
            expected,
            buffer: BytesMut::new(),
            began: None,
            end: None,
        }
    }

    /// A whole frame out of the buffer: whether it is a request or answer (or a refusal), and its body.
    fn buffered(&mut self) -> Result<Option<(bool, Bytes)>, ReadFrameError> {
        let Some((header, held)) = self.buffer.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let (is_body, len) = match &self.expected {
            Expected::Answers(kind) => read_answer_header(*kind, header)?,
            Expected::Requests(kind, _, peer) => {
                let (got, len) = read_request_header(peer.protocol, header)?;
                if got != *kind {
                    return Err(ReadFrameError::Header(common::wire::frame::FrameError::UnknownKind(
                        got.byte(),
                    )));
                }
                (true, len)
            }
        };
        if held.len() < len {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(FRAME_HEADER_BYTES + len);
        self.began = (!self.buffer.is_empty()).then(Instant::now);
        Ok(Some((is_body, frame.split_off(FRAME_HEADER_BYTES).freeze())))
    }

    async fn next(&mut self) -> Result<Option<(bool, Bytes)>, Fault> {
        loop {
            if let Some(frame) = self.buffered().map_err(Fault::Frame)? {
                return Ok(Some(frame));
            }
            // Safe to drop: the chunk is taken out in the same poll that returns it.
            let read = self.recv.read_chunk(STEP_BYTES, true);
            let chunk = match self.began {
                None => read.await,
                Some(began) => timeout_at(began + self.shared.limits.stream_deadline, read)
                    .await
                    .map_err(|_| Fault::Stalled)?,
            };
            match chunk.map_err(|error| Fault::Frame(ReadFrameError::Lost(error)))? {
                Some(chunk) => {
                    self.began.get_or_insert_with(Instant::now);
                    self.buffer.extend_from_slice(&chunk.bytes);
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    return Err(Fault::Frame(ReadFrameError::Truncated {
                        got: self.buffer.len(),
                        want: FRAME_HEADER_BYTES.max(self.buffer.len() + 1),
                    }));
                }
            }
        }
    }

    fn fail(&mut self, fault: Fault) -> CallError {
        match fault {
            Fault::Frame(error @ ReadFrameError::Lost(_)) => CallError::Broken(error.to_string()),
            Fault::Frame(error) => {
                // Fails only where the stream is closed already.
                let _ = self.recv.stop(StreamCode::Malformed.wire());
                self.shared.blame(self.device, error.penalty(), &error.to_string());
                CallError::Broken(error.to_string())
            }
            Fault::Stalled => {
                let _ = self.recv.stop(StreamCode::Deadline.wire());
                self.shared
                    .blame(self.device, 10, "a frame of a lane was not sent whole in time");
                CallError::Timeout(self.shared.limits.stream_deadline)
            }
            Fault::Revoked => {
                if let Expected::Requests(_, connection, _) = &self.expected {
                    connection.close(CloseCode::Revoked.wire(), REFUSED);
                }
                CallError::Broken("the peer may not speak any more".into())
            }
        }
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, Fault> {
        let Some((is_body, body)) = self.next().await? else {
            return Ok(None);
        };
        if let Expected::Requests(_, _, peer) = &self.expected
            && !may_still_speak(&self.shared, peer)
        {
            return Err(Fault::Revoked);
        }
        if is_body {
            return Ok(Some(body));
        }
        let refusal = decode::<Refusal>(&body).map_err(|error| Fault::Frame(error.into()))?;
        self.end = Some(Err(CallError::Refused(refusal)));
        Ok(None)
    }
}

impl LaneReceiver for Receiver {
    fn recv(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, CallError>> {
        async move {
            if self.end.is_none() {
                match self.frame().await {
                    Ok(Some(body)) => return Ok(Some(body)),
                    Ok(None) => {
                        self.end.get_or_insert(Ok(()));
                    }
                    Err(fault) => self.end = Some(Err(self.fail(fault))),
                }
            }
            self.end.clone().expect("set above").map(|()| None)
        }
        .boxed()
    }
}
