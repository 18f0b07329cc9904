//! Sending one request and awaiting its answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::{
    ids::DeviceId,
    wire::frame::{FrameKind, Protocol},
};
use quinn::{Connection, RecvStream, SendStream};
use tokio::time::{Instant, timeout_at};

use super::{
    Shared,
    code::StreamCode,
    dial::{self, CALL_DEADLINE_MAX},
    frame_io::{FrameSender, ReadFrameError, read_answer},
    role::priority,
    table::received,
};
use crate::ports::CallError;

pub(crate) async fn call(
    shared: Arc<Shared>,
    to: DeviceId,
    kind: FrameKind,
    body: Bytes,
    limit: Duration,
) -> Result<Bytes, CallError> {
    let deadline = Instant::now() + limit.min(CALL_DEADLINE_MAX);
    let (_listening, send, recv) = open(&shared, to, kind.protocol(), deadline).await?;
    // From here on bytes may reach the peer.
    match timeout_at(deadline, exchange(&shared, to, kind, body, send, recv)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(CallError::Timeout(limit)),
    }
}

/// A call or lane on a connection. If nothing at all was received on it meanwhile, the table is told in the end.
pub(crate) struct Listening {
    shared: Arc<Shared>,
    key: (DeviceId, Protocol),
    connection: Connection,
    received: u64,
    began: Instant,
}

impl Listening {
    fn new(shared: &Arc<Shared>, key: (DeviceId, Protocol), connection: Connection) -> Self {
        Self {
            shared: shared.clone(),
            key,
            received: received(&connection),
            connection,
            began: Instant::now(),
        }
    }

    /// A request of a lane begins. Without anything received since the one before, it waits with that one.
    pub(crate) fn begin(&mut self) {
        let received = received(&self.connection);
        if received != self.received {
            (self.received, self.began) = (received, Instant::now());
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Also where the caller gave up before its deadline.
        if received(&self.connection) == self.received {
            let table = &self.shared.table;
            table.note_silence(self.key, &self.connection, self.received, self.began, Instant::now());
        }
    }
}

/// A stream on a connection that is up. Nothing is sent by it.
pub(crate) async fn open(
    shared: &Arc<Shared>,
    to: DeviceId,
    protocol: Protocol,
    deadline: Instant,
) -> Result<(Listening, SendStream, RecvStream), CallError> {
    loop {
        let connection: Connection = dial::connection(shared, to, protocol, deadline).await?;
        let listening = Listening::new(shared, (to, protocol), connection.clone());
        match timeout_at(deadline, connection.open_bi()).await {
            Ok(Ok((send, recv))) => return Ok((listening, send, recv)),
            // It ended between the look-up and now; the table does not offer it again.
            Ok(Err(_)) => {}
            Err(_) => return Err(CallError::Unreachable(to)),
        }
    }
}

async fn exchange(
    shared: &Arc<Shared>,
    to: DeviceId,
    kind: FrameKind,
    body: Bytes,
    send: SendStream,
    mut recv: RecvStream,
) -> Result<Bytes, CallError> {
    let broken = |error: &dyn std::fmt::Display| CallError::Broken(error.to_string());
    let mut sender = FrameSender::new(send);
    sender.set_priority(priority(kind, body.len()));
    // A peer that refuses by the header stops our half and answers: then the answer says why.
    let written = sender.request(kind, body).await;
    match (read_answer(&mut recv, kind).await, written) {
        (Ok(Ok(answer)), Ok(())) => Ok(answer),
        (Ok(Ok(_)), Err(error)) => Err(broken(&error)),
        (Ok(Err(refusal)), _) => Err(CallError::Refused(refusal)),
        (Err(error @ ReadFrameError::Lost(_)), _) => Err(broken(&error)),
        (Err(error), _) => {
            // Fails only where the stream is closed already.
            let _ = recv.stop(StreamCode::Malformed.wire());
            shared.blame(to, error.penalty(), &error.to_string());
            Err(broken(&error))
        }
    }
}
