//! Messages between processes over QUIC (RFC 9000): the production [`Transport`].
//!
//! In: requests for devices. Out: their answers, and requests of authenticated peers for a [`Service`].
//!
//! # Rules
//! * A peer is known by its key: certificate, registry, role and hello all agree, or there is no
//!   connection ([`crate::verifier`], [`role`], [`hello`]).
//! * One request and one answer per stream, or a lane of them (`lane`); every length has its cap, every wait its deadline.
//! * A peer that misbehaves costs its own stream or connection and nothing of others.
//! * A peer is told a code; what exactly was wrong stays in the local log.
//!
//! # Invariants
//! * Memory for peers is bounded by [`limits`], whatever they send.
//! * A request whose error says so ([`CallError::had_no_effect`]) was not handled.

mod accept;
mod call;
pub mod code;
mod dial;
mod frame_io;
pub mod hello;
mod lane;
pub mod limits;
pub mod role;
mod score;
mod serve;
mod table;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod tls;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use common::{
    genesis::{Genesis, Kind},
    ids::{BlockTime, ChainId, DeviceId},
    registry::{Member, Registry},
    wire::{
        frame::{FrameKind, Hello, Protocol, Refusal, RefusalCode, WIRE_VERSION},
        op::Sent,
    },
};
use quinn::{Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, VarInt};
use rustls::pki_types::{CertificateDer, UnixTime};

use self::{code::CloseCode, limits::Limits, score::Scores, table::Table, tls::Shown};
use crate::{
    identity::Identity,
    log_limit::{LogLimit, LogLimits},
    ports::{BoxFuture, CallError, Clock, Entropy, Lane, Peer, Service, Spawner, Transport},
    verifier::{FleetVerifier, NotAdmitted, SharedRegistry, Trust, certified_key},
};

/// What a process is on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `cluster-agent`.
    Drone,
    /// `global-validator`.
    Validator,
    /// Dials only: the command line. Its socket takes no connections.
    Client,
}

/// With what a transport starts.
#[derive(Debug)]
pub struct QuicConfig {
    /// UDP address to bind; port 0 takes a free one. A client gives `0.0.0.0:0`, or `[::]:0`.
    pub listen: SocketAddr,
    /// What this process is.
    pub role: Role,
    /// Its key and certificate.
    pub identity: Identity,
    /// Names the fleet and its CA keys.
    pub genesis: Arc<Genesis>,
    /// The registry in force; [`SharedRegistry::new`] of the genesis registry at first.
    pub registry: SharedRegistry,
    /// Where peers listen.
    pub addresses: BTreeMap<DeviceId, SocketAddr>,
    /// What it says first on every connection: [`hello_of`] and the cluster's fields.
    pub hello: Hello,
}

/// A hello without cluster, as validators and clients send it.
#[must_use]
pub fn hello_of(chain: ChainId, device: DeviceId) -> Hello {
    Hello {
        version: WIRE_VERSION,
        chain,
        device,
        cluster: None,
        raft: 0,
    }
}

/// Why a transport did not start. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process listens there.
    #[error(
        "UDP port {0} is in use; another process (perhaps this one, started before) listens there: stop it, or change \
         `listen` in the configuration file"
    )]
    PortInUse(SocketAddr),
    /// The socket could not be made.
    #[error("cannot listen on UDP {address}: {source}; correct `listen` in the configuration file")]
    Socket {
        /// Address asked for.
        address: SocketAddr,
        /// Error of the system.
        source: io::Error,
    },
    /// Peers would refuse our own certificate.
    #[error(
        "peers will refuse this device's certificate: {0}; use the certificate issued for this device in this fleet"
    )]
    OwnCertificate(NotAdmitted),
    /// The key belongs to a device of another kind.
    #[error("the key is that of {label}, a {kind:?}, which cannot run as {role:?}; use the key made for this process")]
    WrongKind {
        /// Name of the device.
        label: String,
        /// Its kind in the registry.
        kind: Kind,
        /// What this process is.
        role: Role,
    },
    /// The configured hello is not about ourselves.
    #[error("the hello names {got}, the key is that of {want}")]
    WrongHello {
        /// In the hello.
        got: DeviceId,
        /// Of the key.
        want: DeviceId,
    },
}

/// A service that refuses everything, for processes that only ask.
#[derive(Clone, Copy, Debug, Default)]
pub struct RefuseAll;

impl Service for RefuseAll {
    fn handle(&self, _peer: Peer, _kind: FrameKind, _body: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
        Box::pin(async { Err(Refusal::new(RefusalCode::Denied, "this process answers no requests")) })
    }
}

/// What all tasks of one transport share.
pub(crate) struct Shared {
    endpoint: Endpoint,
    limits: Limits,
    trust: Arc<Trust>,
    registry: SharedRegistry,
    shown: Shown,
    me: DeviceId,
    hello: Hello,
    addresses: RwLock<BTreeMap<DeviceId, SocketAddr>>,
    table: Table,
    scores: Scores,
    service: Arc<dyn Service>,
    spawner: Arc<dyn Spawner>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    has_closed: AtomicBool,
    refusals: LogLimit,
    faults: LogLimits<DeviceId>,
}

impl Shared {
    fn log_refused(&self, remote: SocketAddr, reason: &dyn fmt::Display) {
        if let Some(not_logged) = self.refusals.admit(tokio::time::Instant::now()) {
            tracing::warn!(%remote, %reason, not_logged, "a connection was refused");
        }
    }

    fn is_closed(&self) -> bool {
        self.has_closed.load(Ordering::Acquire)
    }

    fn address(&self, device: &DeviceId) -> Option<SocketAddr> {
        let addresses = self.addresses.read().unwrap_or_else(PoisonError::into_inner);
        addresses.get(device).copied()
    }

    /// Counts a fault against an authenticated device and logs it, unless many were logged.
    fn blame(&self, device: DeviceId, points: u32, what: &str) {
        let score = self.scores.add(device, points);
        if let Some(not_logged) = self.faults.admit(device) {
            tracing::warn!(%device, points, score, not_logged, "{what}");
        }
    }

    /// Gives an accepted peer its streams and window.
    fn open_for_requests(&self, connection: &Connection, protocol: Protocol) {
        if protocol == Protocol::Bft {
            connection.set_receive_window(VarInt::from_u32(self.limits.bft_connection_window));
        }
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(self.limits.requests_per_connection_max));
    }
}

/// The registered device whose key the handshake of `connection` proved.
fn peer_member<'a>(connection: &Connection, registry: &'a Registry) -> Option<&'a Member> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    registry.by_tls_key(&certified_key(chain.first()?)?)
}

/// The production transport: one UDP socket, a connection per device and protocol.
pub struct QuicTransport(Arc<Shared>);

impl fmt::Debug for QuicTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QUIC transport of {}", self.0.me)
    }
}

impl QuicTransport {
    /// Binds the socket and begins to take connections (a client does not). Must be called inside of a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]: the process must not run.
    pub fn start(
        config: QuicConfig,
        service: Arc<dyn Service>,
        spawner: Arc<dyn Spawner>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Arc<Self>, StartError> {
        let limits = Limits::of(config.role);
        Self::start_within(limits, config, service, spawner, clock, entropy)
    }

    fn start_within(
        limits: Limits,
        config: QuicConfig,
        service: Arc<dyn Service>,
        spawner: Arc<dyn Spawner>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Arc<Self>, StartError> {
        let trust = Arc::new(Trust::from_genesis(&config.genesis));
        let me = check_ourselves(&config, &trust, clock.wall())?;
        let shown = Shown(config.identity.certified());
        let server = (config.role != Role::Client).then(|| {
            let verifier = FleetVerifier::new(trust.clone(), config.registry.clone(), None);
            let tls = tls::server_config(&shown, verifier, &clock, role::accepted_protocols(config.role));
            let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
            limits.apply_to_server(&mut server);
            server
        });
        let endpoint = bind(config.listen, &config.identity, server)?;
        let shared = Arc::new(Shared {
            endpoint,
            limits,
            trust,
            registry: config.registry,
            shown,
            me,
            hello: config.hello,
            addresses: RwLock::new(config.addresses),
            table: Table::new(limits),
            scores: Scores::default(),
            service,
            spawner,
            clock,
            entropy,
            has_closed: AtomicBool::new(false),
            refusals: LogLimit::new(),
            faults: LogLimits::default(),
        });
        if config.role != Role::Client {
            shared
                .spawner
                .spawn("quic-listen", Box::pin(accept::run(shared.clone())));
        }
        Ok(Arc::new(Self(shared)))
    }

    /// The address the socket is bound to.
    ///
    /// # Panics
    /// If the system forgot an open socket's address.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.0.endpoint.local_addr().expect("an open socket has an address")
    }

    /// This process's device.
    #[must_use]
    pub fn device(&self) -> DeviceId {
        self.0.me
    }

    /// Tells where `device` listens; replaces what was known.
    pub fn add_address(&self, device: DeviceId, address: SocketAddr) {
        let mut addresses = self.0.addresses.write().unwrap_or_else(PoisonError::into_inner);
        if addresses.insert(device, address) != Some(address) {
            drop(addresses);
            self.0.table.forget_back_off(&device);
        }
    }

    /// Closes all connections of `device`; returns how many. For a revocation, replace the registry first.
    pub fn close_all(&self, device: DeviceId, code: CloseCode) -> usize {
        self.0.table.close(code, |other, _| *other == device)
    }

    /// Why the last dial to `device` failed, for people: calls say only that it is unreachable.
    #[must_use]
    pub fn last_dial_error(&self, device: &DeviceId) -> Option<String> {
        self.0.table.last_dial_error(device)
    }

    /// Points counted against `device` since the start: malformed frames, missed deadlines.
    #[must_use]
    pub fn score(&self, device: &DeviceId) -> u64 {
        self.0.scores.get(device)
    }

    /// Closes all connections in good order and waits (at most a second) until peers were told.
    pub async fn close(&self) {
        self.0.has_closed.store(true, Ordering::Release);
        self.0.endpoint.close(CloseCode::Done.wire(), b"");
        let told = self.0.endpoint.wait_idle();
        if tokio::time::timeout(Duration::from_secs(1), told).await.is_err() {
            tracing::debug!("some peers were not told of the end");
        }
    }
}

impl Transport for QuicTransport {
    fn call(
        &self,
        to: DeviceId,
        kind: FrameKind,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<Result<Bytes, CallError>> {
        assert!(
            body.len() <= kind.request_bytes_max(),
            "{kind:?} of {} bytes, at most {} allowed",
            body.len(),
            kind.request_bytes_max()
        );
        assert!(!kind.is_lane(), "{kind:?} is a lane's");
        Box::pin(call::call(self.0.clone(), to, kind, body, deadline))
    }

    fn open_lane(&self, to: DeviceId, kind: FrameKind, deadline: Duration) -> BoxFuture<Result<Lane, CallError>> {
        assert!(kind.is_lane(), "{kind:?} is a single request's");
        Box::pin(lane::open(self.0.clone(), to, kind, deadline))
    }

    fn is_connected(&self, to: &DeviceId, protocol: Protocol) -> bool {
        self.0.table.is_connected(&(*to, protocol))
    }

    fn rtt(&self, to: &DeviceId) -> Option<Duration> {
        self.0.table.rtt(to)
    }

    fn sent(&self) -> Vec<(Protocol, Sent)> {
        self.0.table.sent()
    }
}

/// Finds at the start what every peer would otherwise refuse without saying why.
fn check_ourselves(config: &QuicConfig, trust: &Arc<Trust>, wall: BlockTime) -> Result<DeviceId, StartError> {
    let verifier = FleetVerifier::new(trust.clone(), config.registry.clone(), None);
    let now = UnixTime::since_unix_epoch(Duration::from_micros(wall.0));
    let (leaf, others) = config
        .identity
        .certificate_chain()
        .split_first()
        .expect("an identity has a leaf");
    let member = verifier
        .check(leaf, others, now, true)
        .map_err(StartError::OwnCertificate)?;
    if !role::is_kind_of(config.role, member.kind) {
        return Err(StartError::WrongKind {
            label: member.label.to_string(),
            kind: member.kind,
            role: config.role,
        });
    }
    if config.hello.device != member.id {
        return Err(StartError::WrongHello {
            got: config.hello.device,
            want: member.id,
        });
    }
    Ok(member.id)
}

fn bind(address: SocketAddr, identity: &Identity, server: Option<quinn::ServerConfig>) -> Result<Endpoint, StartError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => StartError::PortInUse(address),
        _ => StartError::Socket { address, source },
    };
    let socket = UdpSocket::bind(address).map_err(failed)?;
    let reset_key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, identity.reset_secret());
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(|| Box::new(RandomIds));
    let runtime = quinn::default_runtime().expect("called inside of a tokio runtime");
    Endpoint::new(config, server, socket, runtime).map_err(failed)
}

/// Connection ids without a key of their own, unlike the library's: after a restart the process still
/// answers packets of its old connections with a stateless reset, and peers dial again at once
/// instead of waiting for the idle timeout.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    #[expect(
        clippy::disallowed_methods,
        reason = "production's transport: the simulator's has no connection ids"
    )]
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; 8]>())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
