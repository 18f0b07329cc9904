//! Answering requests of one connection.
//!
//! # Rules
//! * One request per stream, or a lane ([`super::lane`]). Its bytes, the service's work and the answer's bytes have a deadline each.
//! * The device's status and role are looked up with every request: a close that was missed cannot matter.
//! * A malformed frame is refused and counted against the device; other streams and connections go on.
//! * A panic in the service ends its stream only.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::AtomicUsize},
};

use bytes::Bytes;
use common::wire::frame::{FRAME_HEADER_BYTES, FrameKind, Protocol, Refusal, RefusalCode, read_request_header};
use futures::FutureExt as _;
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::time::{Instant, timeout};

use super::{
    Shared,
    code::{CloseCode, REFUSED, StreamCode},
    frame_io::{FrameSender, ReadFrameError, read_body, read_header},
    lane,
    role::{is_symmetric, may_speak, priority},
};
use crate::ports::Peer;

/// Serves a connection until it ends, then takes it out of the table.
pub(crate) fn spawn(shared: &Arc<Shared>, connection: Connection, peer: Peer) {
    let serving = shared.clone();
    shared.spawner.spawn(
        "quic-connection",
        Box::pin(async move {
            let reason = serve(&serving, &connection, &peer).await;
            let jitter = serving.entropy.next_u64();
            let key = (peer.device, peer.protocol);
            serving.table.remove(key, &connection, Instant::now(), jitter);
            tracing::info!(device = %peer.device, protocol = ?peer.protocol, %reason, "disconnected");
        }),
    );
}

async fn serve(shared: &Arc<Shared>, connection: &Connection, peer: &Peer) -> ConnectionError {
    let lanes = Arc::new(AtomicUsize::new(0));
    loop {
        let (send, recv) = match connection.accept_bi().await {
            Ok(stream) => stream,
            Err(reason) => return reason,
        };
        let (answering, connection, peer, lanes) = (shared.clone(), connection.clone(), peer.clone(), lanes.clone());
        // Bounded: the peer gets no more streams than the limit while these are open.
        shared.spawner.spawn(
            "quic-request",
            Box::pin(async move { answer(&answering, &connection, peer, &lanes, send, recv).await }),
        );
    }
}

/// What a stream begins with.
enum Begin {
    Request(FrameKind, Bytes),
    Lane(FrameKind, [u8; FRAME_HEADER_BYTES]),
}

async fn begin(recv: &mut RecvStream, protocol: Protocol) -> Result<Begin, ReadFrameError> {
    let header = read_header(recv).await?;
    let (kind, len) = read_request_header(protocol, &header)?;
    if kind.is_lane() {
        return Ok(Begin::Lane(kind, header));
    }
    Ok(Begin::Request(kind, read_body(recv, len).await?))
}

async fn answer(
    shared: &Arc<Shared>,
    connection: &Connection,
    peer: Peer,
    lanes: &Arc<AtomicUsize>,
    send: SendStream,
    mut recv: RecvStream,
) {
    let device = peer.device;
    let request = match timeout(shared.limits.stream_deadline, begin(&mut recv, peer.protocol)).await {
        Ok(Ok(Begin::Lane(kind, header))) => {
            let opened = lane::Opened {
                kind,
                header,
                send,
                recv,
            };
            return lane::serve(shared, connection, peer, lanes, opened).await;
        }
        Ok(Ok(Begin::Request(kind, body))) => Ok((kind, body)),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            let _ = recv.stop(StreamCode::Deadline.wire());
            // Dropped, it breaks its half off with the same code.
            drop(FrameSender::new(send));
            return shared.blame(device, 10, "a request was not sent whole in time");
        }
    };
    let mut sender = FrameSender::new(send);
    let outcome = match request {
        Ok((kind, body)) => {
            sender.set_priority(priority(kind, 0));
            if !may_still_speak(shared, &peer) {
                connection.close(CloseCode::Revoked.wire(), REFUSED);
                return;
            }
            match handle(shared, peer, kind, body).await {
                Some(outcome) => outcome,
                // Dropped, the sender breaks its half off: a refusal would say that nothing was done.
                None => return,
            }
        }
        Err(ReadFrameError::Lost(_)) => return,
        Err(error) => {
            let _ = recv.stop(StreamCode::Malformed.wire());
            shared.blame(device, error.penalty(), &error.to_string());
            Err(Refusal::new(RefusalCode::Invalid, "malformed frame"))
        }
    };
    match timeout(shared.limits.stream_deadline, sender.answer(outcome)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%device, %error, "an answer was not wanted any more"),
        Err(_) => shared.blame(device, 10, "an answer was not taken in time"),
    }
}

pub(crate) fn may_still_speak(shared: &Shared, peer: &Peer) -> bool {
    let registry = shared.registry.load();
    let (Some(them), Some(us)) = (registry.by_id(&peer.device), registry.by_id(&shared.me)) else {
        return false;
    };
    // On a connection that carries calls both ways either side may have dialled.
    may_speak(peer.protocol, them, us) || is_symmetric(peer.protocol) && may_speak(peer.protocol, us, them)
}

/// The service's answer; `None` if it has none, and may have carried out the request all the same.
async fn handle(shared: &Arc<Shared>, peer: Peer, kind: FrameKind, body: Bytes) -> Option<Result<Bytes, Refusal>> {
    let device = peer.device;
    let service = shared.service.clone();
    let work = AssertUnwindSafe(async move { service.handle(peer, kind, body).await }).catch_unwind();
    match timeout(shared.limits.service_deadline, work).await {
        Ok(Ok(Ok(answer))) if answer.len() > kind.answer_bytes_max() => {
            tracing::error!(%device, ?kind, got = answer.len(), max = kind.answer_bytes_max(), "the service's answer is too long");
            None
        }
        Ok(Ok(outcome)) => Some(outcome),
        Ok(Err(_panic)) => {
            tracing::error!(%device, ?kind, "the service panicked");
            None
        }
        Err(_) => {
            tracing::error!(%device, ?kind, deadline = ?shared.limits.service_deadline, "the service did not answer");
            None
        }
    }
}
