//! Taking connections: bounded before the handshake, judged right after it, up after the hellos.
//!
//! # Rules
//! * Handshakes going on are bounded: above half of the bound the address is validated first (Retry,
//!   RFC 9000 §8.1), at the bound the connection is refused.
//! * Handshake and hello have one deadline.
//! * Right after the handshake the registry judges the role for the protocol.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use common::{
    ids::DeviceId,
    registry::Member,
    wire::frame::{Hello, Protocol},
};
use quinn::{Connection, ConnectionError, Incoming, crypto::rustls::HandshakeData};
use tokio::time::{Instant, timeout};

use super::{
    Shared,
    code::{CloseCode, REFUSED},
    frame_io::{FrameSender, ReadFrameError, read_hello},
    hello::{self, HelloMismatch},
    peer_member,
    role::may_speak,
    serve,
    table::MadeBy,
};
use crate::ports::Peer;

/// Why a connection was not taken. For the local log.
#[derive(Debug, thiserror::Error)]
enum AcceptError {
    #[error("the handshake failed: {0}")]
    Handshake(#[from] ConnectionError),
    #[error("no protocol was agreed on")]
    NoProtocol,
    #[error("the key of the handshake is not registered any more")]
    Unregistered,
    #[error("the roles do not allow {protocol:?} from {label}")]
    Role { label: String, protocol: Protocol },
    #[error("no hello: {0}")]
    NoHello(#[from] ReadFrameError),
    #[error(transparent)]
    Mismatch(#[from] HelloMismatch),
    #[error("no room for one more connection")]
    Full,
    #[error("the hello could not be answered: {0}")]
    Answer(#[from] quinn::WriteError),
}

impl AcceptError {
    fn close_code(&self) -> CloseCode {
        match self {
            Self::Role { .. } => CloseCode::Role,
            Self::Unregistered => CloseCode::Revoked,
            Self::Mismatch(mismatch) => mismatch.close_code(),
            Self::Full => CloseCode::Busy,
            _ => CloseCode::Hello,
        }
    }
}

/// Counts a handshake for as long as it lives.
struct HalfOpen(Arc<AtomicUsize>);

impl HalfOpen {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection's place in the table before our hello was taken: given back if that fails, or if the
/// deadline ends the attempt where it stands.
struct Entry<'a> {
    shared: &'a Shared,
    key: (DeviceId, Protocol),
    connection: &'a Connection,
    is_kept: bool,
}

impl<'a> Entry<'a> {
    fn make(shared: &'a Shared, key: (DeviceId, Protocol), connection: &'a Connection) -> Result<Self, AcceptError> {
        shared
            .table
            .insert(key, connection.clone(), MadeBy::Peer, Instant::now())
            .map_err(|_| AcceptError::Full)?;
        Ok(Self {
            shared,
            key,
            connection,
            is_kept: false,
        })
    }

    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.connection.close(CloseCode::Hello.wire(), REFUSED);
            self.shared.table.remove(self.key, self.connection, Instant::now(), 0);
        }
    }
}

/// Takes connections until the endpoint is closed.
pub(crate) async fn run(shared: Arc<Shared>) {
    let half_open = Arc::new(AtomicUsize::new(0));
    while let Some(incoming) = shared.endpoint.accept().await {
        let count = half_open.load(Ordering::Relaxed);
        if count >= shared.limits.half_open_max {
            incoming.refuse();
            continue;
        }
        if count >= shared.limits.half_open_max / 2 && incoming.may_retry() {
            // Fails only where the address is validated already, which `may_retry` excludes.
            let _ = incoming.retry();
            continue;
        }
        let (guard, taking) = (HalfOpen::new(&half_open), shared.clone());
        shared.spawner.spawn(
            "quic-accept",
            Box::pin(async move {
                let remote = incoming.remote_address();
                let outcome = timeout(taking.limits.handshake_deadline, take(&taking, incoming)).await;
                drop(guard);
                match outcome {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => taking.log_refused(remote, &error),
                    Err(_) => taking.log_refused(remote, &"handshake and hello were not finished in time"),
                }
            }),
        );
    }
}

async fn take(shared: &Arc<Shared>, incoming: Incoming) -> Result<(), AcceptError> {
    let connection = incoming.await?;
    // Before any stream is looked at. Dropped by the deadline, the last handle closes the connection.
    let outcome = greet(shared, &connection).await;
    match outcome {
        Ok(peer) => {
            shared.open_for_requests(&connection, peer.protocol);
            serve::spawn(shared, connection, peer);
            Ok(())
        }
        Err(error) => {
            connection.close(error.close_code().wire(), REFUSED);
            Err(error)
        }
    }
}

async fn greet(shared: &Arc<Shared>, connection: &Connection) -> Result<Peer, AcceptError> {
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| Protocol::from_alpn(data.protocol.as_deref()?))
        .ok_or(AcceptError::NoProtocol)?;
    let registry = shared.registry.load();
    let dialler: &Member = peer_member(connection, &registry).ok_or(AcceptError::Unregistered)?;
    let acceptor = registry.by_id(&shared.me).ok_or(AcceptError::Unregistered)?;
    if !may_speak(protocol, dialler, acceptor) {
        return Err(AcceptError::Role {
            label: dialler.label.to_string(),
            protocol,
        });
    }
    let (send, mut recv) = connection.accept_bi().await?;
    let mut sender = FrameSender::new(send);
    let theirs: Hello = read_hello(&mut recv).await?;
    hello::check(&theirs, &shared.hello, dialler)?;
    let entry = Entry::make(shared, (dialler.id, protocol), connection)?;
    sender.hello(&shared.hello).await?;
    entry.keep();
    tracing::info!(device = %dialler.id, label = %dialler.label, ?protocol, "accepted");
    Ok(Peer {
        device: dialler.id,
        idx: dialler.idx,
        protocol,
        hello: theirs,
    })
}
