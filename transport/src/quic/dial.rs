//! Making connections: on demand, one dial at a time, the peer's hello awaited.
//!
//! # Rules
//! * While an outage is young, a dial that is not answered begins another handshake beside those that wait, every
//!   [`HANDSHAKE_AGAIN_AFTER`]: the first that succeeds is the connection, and closes the others. Later, one handshake per dial.
//!
//! # Why
//! A lost first packet is repeated at doubling intervals. A handshake begun anew sends at once; those already under way are
//! left to go on, so a link with a round trip of seconds gets through as well.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use common::{
    ids::DeviceId,
    registry::Member,
    wire::frame::{Hello, Protocol},
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use quinn::{Connection, ConnectionError};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Shared,
    code::{CloseCode, REFUSED},
    frame_io::{FrameSender, ReadFrameError, read_hello},
    hello::{self, HelloMismatch},
    peer_member,
    role::{is_symmetric, may_speak},
    serve,
    table::{MadeBy, Next},
    tls,
};
use crate::{
    ports::{CallError, Peer},
    verifier::{FleetVerifier, NotAdmitted},
};

/// Why there is no connection. For the local log and [`super::QuicTransport::last_dial_error`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("no address is known for {0}; add a [[peer]] to the configuration file")]
    NoAddress(DeviceId),
    #[error("{0} is not in the registry")]
    Unregistered(DeviceId),
    #[error("the roles of this device and of {to} do not allow {protocol:?} between them")]
    Role { to: DeviceId, protocol: Protocol },
    #[error("{to} at {address} did not answer within {within:?}")]
    NoAnswer {
        to: DeviceId,
        address: SocketAddr,
        within: Duration,
    },
    #[error("cannot dial {address}: {source}")]
    Connect {
        address: SocketAddr,
        source: quinn::ConnectError,
    },
    #[error("the handshake with {to} at {address} failed: {source}")]
    Handshake {
        to: DeviceId,
        address: SocketAddr,
        source: ConnectionError,
    },
    #[error("refused what answered at {address}: {reason}")]
    NotAdmitted { address: SocketAddr, reason: NotAdmitted },
    #[error("{to} sent no hello: {source}")]
    NoHello { to: DeviceId, source: ReadFrameError },
    #[error(transparent)]
    Mismatch(#[from] HelloMismatch),
    #[error("the connection broke before the hello: {0}")]
    Broken(String),
    #[error("this process has closed its connections")]
    Closed,
}

/// A connection that may carry our calls of `protocol` to `to`, before `deadline`.
///
/// # Errors
/// [`CallError::Unreachable`]: nothing was sent.
pub(crate) async fn connection(
    shared: &Arc<Shared>,
    to: DeviceId,
    protocol: Protocol,
    deadline: Instant,
) -> Result<Connection, CallError> {
    let key = (to, protocol);
    let mut has_waited_for_a_dial = false;
    loop {
        if shared.is_closed() {
            return Err(CallError::Unreachable(to));
        }
        let (changes, seen, wake_at) = match shared.table.next(key, Instant::now(), !has_waited_for_a_dial) {
            Next::Use(connection) => return Ok(connection),
            Next::UseAndDial(connection) => {
                tracing::debug!(%to, ?protocol, "nothing is received: dialling beside the connection");
                start_dial(shared, to, protocol);
                return Ok(connection);
            }
            Next::Dial(changes, seen) => {
                start_dial(shared, to, protocol);
                has_waited_for_a_dial = true;
                (changes, seen, deadline)
            }
            Next::Wait(changes, seen) => {
                has_waited_for_a_dial = true;
                (changes, seen, deadline)
            }
            Next::BackOff(changes, seen, at) if at < deadline => (changes, seen, at),
            Next::BackOff(..) | Next::Failed => return Err(CallError::Unreachable(to)),
        };
        let changed = changes.wait_until(|count| *count != seen);
        if timeout_at(wake_at, changed).await.is_err() && wake_at >= deadline {
            return Err(CallError::Unreachable(to));
        }
    }
}

fn start_dial(shared: &Arc<Shared>, to: DeviceId, protocol: Protocol) {
    let dialling = shared.clone();
    shared.spawner.spawn(
        "quic-dial",
        Box::pin(async move {
            let outcome = dial(&dialling, to, protocol).await;
            if let Err(error) = &outcome {
                tracing::debug!(%to, ?protocol, %error, "dial failed");
            }
            let outcome = outcome.map_err(|error| error.to_string());
            let jitter = dialling.entropy.next_u64();
            dialling
                .table
                .dial_ended((to, protocol), outcome, Instant::now(), jitter);
        }),
    );
}

async fn dial(shared: &Arc<Shared>, to: DeviceId, protocol: Protocol) -> Result<(), DialError> {
    let address = shared.address(&to).ok_or(DialError::NoAddress(to))?;
    let registry = shared.registry.load();
    let acceptor = registry.by_id(&to).ok_or(DialError::Unregistered(to))?;
    let dialler = registry.by_id(&shared.me).ok_or(DialError::Unregistered(shared.me))?;
    if !may_speak(protocol, dialler, acceptor) {
        return Err(DialError::Role { to, protocol });
    }
    let no_answer = DialError::NoAnswer {
        to,
        address,
        within: shared.limits.handshake_deadline,
    };
    let attempt = shake_some_hand(shared, acceptor, protocol, address);
    let (connection, hello) = timeout(shared.limits.handshake_deadline, attempt)
        .await
        .map_err(|_| no_answer)??;
    if shared.is_closed() {
        connection.close(CloseCode::Done.wire(), b"");
        return Err(DialError::Closed);
    }
    let peer = Peer {
        device: to,
        idx: acceptor.idx,
        protocol,
        hello,
    };
    shared
        .table
        .insert((to, protocol), connection.clone(), MadeBy::Us, Instant::now())
        .expect("only accepted connections are limited");
    tracing::info!(%to, label = %acceptor.label, ?protocol, %address, "connected");
    if is_symmetric(protocol) {
        shared.open_for_requests(&connection, protocol);
    }
    serve::spawn(shared, connection, peer);
    Ok(())
}

/// The first of one or more handshakes that succeeds, or the first refusal. Ends only by these: the caller has a deadline.
async fn shake_some_hand(
    shared: &Arc<Shared>,
    acceptor: &Member,
    protocol: Protocol,
    address: SocketAddr,
) -> Result<(Connection, Hello), DialError> {
    let begin = || shake_hands(shared, acceptor, protocol, address);
    let mut begun = FuturesUnordered::from_iter([begin()]);
    loop {
        let is_young = shared.table.is_outage_young((acceptor.id, protocol), Instant::now());
        let outcome = match is_young {
            true => timeout(HANDSHAKE_AGAIN_AFTER, begun.next()).await,
            false => Ok(begun.next().await),
        };
        match outcome {
            Ok(outcome) => return outcome.expect("at least one is under way"),
            Err(_) => begun.push(begin()),
        }
    }
}

/// Handshake and both hellos.
async fn shake_hands(
    shared: &Arc<Shared>,
    acceptor: &Member,
    protocol: Protocol,
    address: SocketAddr,
) -> Result<(Connection, Hello), DialError> {
    let to = acceptor.id;
    let verifier = FleetVerifier::new(shared.trust.clone(), shared.registry.clone(), Some(to));
    let refusal = verifier.refusal();
    let tls = tls::client_config(&shared.shown, verifier, &shared.clock, protocol);
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(shared.limits.transport_config(0));
    let handshake = |source| DialError::Handshake { to, address, source };
    let connection = shared
        .endpoint
        .connect_with(config, address, tls::SERVER_NAME)
        .map_err(|source| DialError::Connect { address, source })?
        .await
        .map_err(|source| match refusal.take() {
            Some(reason) => DialError::NotAdmitted { address, reason },
            None => handshake(source),
        })?;
    // From here on the connection is ours to close: dropping the handle alone would do it late.
    let guard = CloseOnDrop::new(connection.clone());
    debug_assert_eq!(
        peer_member(&connection, &shared.registry.load()).map(|m| m.id),
        Some(to)
    );
    let (send, mut recv) = connection.open_bi().await.map_err(handshake)?;
    FrameSender::new(send)
        .hello(&shared.hello)
        .await
        .map_err(|error| match connection.close_reason() {
            Some(source) => handshake(source),
            None => DialError::Broken(error.to_string()),
        })?;
    let theirs = read_hello(&mut recv)
        .await
        .map_err(|source| match connection.close_reason() {
            // The server judges our certificate after our side of the handshake is done.
            Some(source) => handshake(source),
            None => DialError::NoHello { to, source },
        })?;
    if let Err(mismatch) = hello::check(&theirs, &shared.hello, acceptor) {
        guard.disarm();
        connection.close(mismatch.close_code().wire(), REFUSED);
        tracing::warn!(%to, %mismatch, "the peer's hello does not fit");
        return Err(mismatch.into());
    }
    guard.disarm();
    Ok((connection, theirs))
}

/// Closes a connection whose set-up is given up, also when its deadline drops the future.
struct CloseOnDrop(Option<Connection>);

impl CloseOnDrop {
    fn new(connection: Connection) -> Self {
        Self(Some(connection))
    }

    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.close(CloseCode::Hello.wire(), REFUSED);
        }
    }
}

/// A young outage's dial that is not answered begins another handshake; with [`super::limits::HANDSHAKE_DEADLINE`] at most
/// seven are under way.
const HANDSHAKE_AGAIN_AFTER: Duration = Duration::from_millis(800);

/// Upper bound for a caller's deadline: longer ones are bugs in units.
pub(crate) const CALL_DEADLINE_MAX: Duration = Duration::from_secs(600);
