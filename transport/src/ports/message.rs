//! Requests and answers between authenticated processes.

use std::time::Duration;

use bytes::Bytes;
use common::{
    ids::{DeviceId, NodeIdx},
    wire::{
        frame::{FrameKind, Hello, Protocol, Refusal, RefusalCode},
        op::Sent,
    },
};

use super::{BoxFuture, Lane};

/// An authenticated peer: its certificate chained to the fleet's CA, its key is in the registry, its
/// role allows the protocol, its hello named the same fleet and device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub device: DeviceId,
    /// Its number in the registry.
    pub idx: NodeIdx,
    /// Which protocol this connection speaks.
    pub protocol: Protocol,
    /// What it said first.
    pub hello: Hello,
}

/// How a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No connection, or no address: nothing was sent.
    #[error("no connection to {0}; nothing was sent")]
    Unreachable(DeviceId),
    /// No answer in time: the request may have been carried out.
    #[error("no answer within {0:?}; the request may have been carried out")]
    Timeout(Duration),
    /// The connection broke under the request: it may have been carried out.
    #[error("the connection broke: {0}; the request may have been carried out")]
    Broken(String),
    /// The peer refused.
    #[error("refused: {:?} {}", .0.code, .0.text)]
    Refused(Refusal),
}

impl CallError {
    /// Whether the request certainly had no effect.
    #[must_use]
    pub fn had_no_effect(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Refused(_))
    }
}

/// Sends requests.
pub trait Transport: Send + Sync + 'static {
    /// Sends one request frame and waits at most `deadline` for its answer.
    ///
    /// The protocol follows from `kind`. Connections are made and kept by the transport; a call to an
    /// unconnected peer starts a dial and waits for it within the deadline.
    ///
    /// # Panics
    /// If `body` is longer than the kind allows: the caller builds bounded bodies.
    fn call(
        &self,
        to: DeviceId,
        kind: FrameKind,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<Result<Bytes, CallError>>;

    /// Opens a lane: a stream for many requests, of a kind with [`FrameKind::is_lane`].
    ///
    /// Waits at most `deadline` for a connection. The peer hears of the lane with its first request.
    ///
    /// # Panics
    /// If `kind` is not a lane's.
    fn open_lane(&self, to: DeviceId, kind: FrameKind, deadline: Duration) -> BoxFuture<Result<Lane, CallError>>;

    /// Whether a connection for `protocol` to `to` (made by either side) is up now.
    fn is_connected(&self, to: &DeviceId, protocol: Protocol) -> bool;

    /// Smoothed round-trip time to `to`, if measured.
    fn rtt(&self, to: &DeviceId) -> Option<Duration>;

    /// What was sent since the start, by protocol; empty where nothing counts it.
    fn sent(&self) -> Vec<(Protocol, Sent)> {
        Vec::new()
    }
}

/// Answers requests.
pub trait Service: Send + Sync + 'static {
    /// Handles one request of an authenticated peer. `kind` belongs to the peer's protocol and `body`
    /// is within its cap. The answer is within its cap as well.
    fn handle(&self, peer: Peer, kind: FrameKind, body: Bytes) -> BoxFuture<Result<Bytes, Refusal>>;

    /// Serves a lane that an authenticated peer opened, until either side ends it. Answers go out in the
    /// order of the requests. Whether the peer may still speak is judged with each request, below this port.
    ///
    /// Without an implementation of its own a service refuses lanes.
    fn lane(&self, _peer: Peer, _kind: FrameKind, mut lane: Lane) -> BoxFuture<()> {
        Box::pin(async move {
            let refusal = Refusal::new(RefusalCode::Denied, "no lanes are served here");
            lane.sender.end(Some(refusal)).await;
        })
    }
}
