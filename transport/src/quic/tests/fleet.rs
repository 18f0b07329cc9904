//! A fleet with fixed keys on loopback, and an attacker who speaks QUIC without any of our rules.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use common::{
    codec::Label,
    crypto::sha256,
    genesis::{Genesis, GenesisDevice, Kind, RoleSet},
    ids::{ChainId, DeviceId},
    registry::Registry,
    wire::frame::{FrameKind, Hello, Protocol, Refusal},
};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    DigitallySignedStruct, Error as TlsError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use tokio::runtime::Handle;

use super::super::{
    QuicConfig, QuicTransport, Role, StartError, hello_of,
    limits::Limits,
    tls::{self, SERVER_NAME, Shown},
};
use crate::{
    certificate::{Certificate, CertificateAuthority, Terms, ca_common_name},
    identity::{Identity, KeyFile},
    machine::{MachineClock, MachineEntropy, OnPanic, TokioSpawner},
    ports::{BoxFuture, Clock as _, Peer, Service},
    verifier::SharedRegistry,
};

pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(crate) fn now_unix_s() -> u64 {
    MachineClock::new().wall().0 / 1_000_000
}

/// The key of a label, registered or not.
pub(crate) fn key(label: &str) -> KeyFile {
    KeyFile::from_seed(&sha256(&[b"testing/device/", label.as_bytes()]).0)
}

/// Clusters `c1`, `c2` of three agents, validators `v1..v4`, operator `op1`, and `op2` without any role.
pub(crate) struct Fleet {
    pub(crate) genesis: Arc<Genesis>,
    pub(crate) chain: ChainId,
    pub(crate) registry: SharedRegistry,
    ca: CertificateAuthority,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        Self::varied(|_| {})
    }

    /// With a genesis file that differs.
    pub(crate) fn varied(vary: impl FnOnce(&mut Genesis)) -> Self {
        let mut genesis = common::testing::Fleet::new(2, 3, 4).genesis;
        let mut devices = genesis.devices.clone().into_inner();
        devices.push(GenesisDevice {
            label: Label::new("op2").unwrap(),
            kind: Kind::Operator,
            roles: RoleSet::default(),
            cluster: None,
            key: key("op2").public(),
            stops_by_itself: false,
        });
        genesis.devices = devices.try_into().unwrap();
        vary(&mut genesis);
        let ca = CertificateAuthority::new(genesis.fleet.as_str(), &key("ca")).unwrap();
        Self {
            chain: genesis.chain_id(),
            registry: SharedRegistry::new(Arc::new(Registry::from_genesis(&genesis))),
            genesis: Arc::new(genesis),
            ca,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.genesis.fleet.as_str()
    }

    /// The id of a label's device, registered or not.
    pub(crate) fn id(&self, label: &str) -> DeviceId {
        Genesis::device_id(&self.chain, &key(label).public())
    }

    pub(crate) fn terms(&self) -> Terms {
        Terms {
            now_unix_s: now_unix_s(),
            days: 400,
            serial: [7; 16],
        }
    }

    pub(crate) fn issue(&self, label: &str) -> Certificate {
        let public = key(label).public();
        self.ca.issue(&self.id(label), &public, &self.terms()).unwrap()
    }

    pub(crate) fn identity(&self, label: &str) -> Identity {
        Identity::from_parts(&key(label), &self.issue(label).pem).unwrap()
    }

    pub(crate) fn hello(&self, label: &str) -> Hello {
        hello_of(self.chain, self.id(label))
    }

    pub(crate) fn config(&self, label: &str) -> QuicConfig {
        let role = match label.as_bytes()[0] {
            b'c' => Role::Drone,
            b'v' => Role::Validator,
            _ => Role::Client,
        };
        QuicConfig {
            listen: LOOPBACK,
            role,
            identity: self.identity(label),
            genesis: self.genesis.clone(),
            registry: self.registry.clone(),
            addresses: Default::default(),
            hello: self.hello(label),
        }
    }

    pub(crate) fn start(&self, label: &str) -> Arc<QuicTransport> {
        start_config(self.config(label), Arc::new(Echo)).unwrap()
    }

    pub(crate) fn start_serving(&self, label: &str, service: Arc<dyn Service>) -> Arc<QuicTransport> {
        start_config(self.config(label), service).unwrap()
    }

    pub(crate) fn start_within(&self, label: &str, vary: impl FnOnce(&mut Limits)) -> Arc<QuicTransport> {
        self.start_all(label, Arc::new(Echo), vary)
    }

    pub(crate) fn start_all(
        &self,
        label: &str,
        service: Arc<dyn Service>,
        vary: impl FnOnce(&mut Limits),
    ) -> Arc<QuicTransport> {
        let config = self.config(label);
        let mut limits = Limits::of(config.role);
        vary(&mut limits);
        QuicTransport::start_within(
            limits,
            config,
            service,
            Arc::new(TokioSpawner::new(Handle::current(), OnPanic::Log)),
            Arc::new(MachineClock::new()),
            Arc::new(MachineEntropy::new()),
        )
        .unwrap()
    }

    /// A pair that knows each other's addresses.
    pub(crate) fn pair(&self, a: &str, b: &str) -> (Arc<QuicTransport>, Arc<QuicTransport>) {
        let (left, right) = (self.start(a), self.start(b));
        left.add_address(self.id(b), right.local_addr());
        right.add_address(self.id(a), left.local_addr());
        (left, right)
    }
}

pub(crate) fn start_config(config: QuicConfig, service: Arc<dyn Service>) -> Result<Arc<QuicTransport>, StartError> {
    QuicTransport::start(
        config,
        service,
        Arc::new(TokioSpawner::new(Handle::current(), OnPanic::Log)),
        Arc::new(MachineClock::new()),
        Arc::new(MachineEntropy::new()),
    )
}

/// Answers with who asked and what.
pub(crate) struct Echo;

pub(crate) fn echo_of(idx: u32, kind: FrameKind, body: &[u8]) -> Bytes {
    let mut answer = format!("{idx} {kind:?} ").into_bytes();
    answer.extend_from_slice(&body[..body.len().min(100)]);
    answer.into()
}

impl Service for Echo {
    fn handle(&self, peer: Peer, kind: FrameKind, body: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
        assert_eq!(peer.protocol, kind.protocol());
        Box::pin(async move { Ok(echo_of(peer.idx.0, kind, &body)) })
    }
}

/// A service made of a function.
pub(crate) struct Answering<F>(pub(crate) F);

impl<F> Service for Answering<F>
where
    F: Fn(Peer, FrameKind, Bytes) -> BoxFuture<Result<Bytes, Refusal>> + Send + Sync + 'static,
{
    fn handle(&self, peer: Peer, kind: FrameKind, body: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
        self.0(peer, kind, body)
    }
}

/// What an attacker signs certificates with: any CA name, any key.
pub(crate) fn issuer(common_name: &str, ca: &KeyFile) -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    Issuer::new(params, rcgen_key(ca))
}

pub(crate) fn rcgen_key(key: &KeyFile) -> KeyPair {
    let der = key.to_pkcs8_der();
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(&der[..]), &rcgen::PKCS_ED25519).unwrap()
}

pub(crate) fn true_issuer(fleet: &Fleet) -> Issuer<'static, KeyPair> {
    issuer(&ca_common_name(fleet.name()), &key("ca"))
}

/// A leaf as the profile wants it, to be varied.
pub(crate) fn leaf_params(uris: &[String]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()))
        .collect();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

/// Certificate and private key in the form of the TLS library.
pub(crate) fn shown(certificate: &rcgen::Certificate, private: &KeyPair) -> Arc<CertifiedKey> {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(private.serialize_der()));
    let signer = tls::provider().key_provider.load_private_key(der).unwrap();
    Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signer))
}

/// Dials with any certificate, believes any server, and keeps what the server says at the end.
pub(crate) struct Attacker(quinn::Endpoint);

impl Attacker {
    pub(crate) fn new() -> Self {
        Self(quinn::Endpoint::client(LOOPBACK).unwrap())
    }

    pub(crate) async fn connect(
        &self,
        server: SocketAddr,
        certificate: Option<Arc<CertifiedKey>>,
        alpn: &[u8],
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        let config = quic_config(rustls_config(certificate, alpn));
        self.0.connect_with(config, server, SERVER_NAME).unwrap().await
    }

    /// How the server ends a connection on which nothing wrong is said after the handshake.
    pub(crate) async fn end_of(
        &self,
        server: SocketAddr,
        certificate: Option<Arc<CertifiedKey>>,
        alpn: &[u8],
        hello: &Hello,
    ) -> quinn::ConnectionError {
        match self.connect(server, certificate, alpn).await {
            Err(error) => error,
            Ok(connection) => {
                // May fail already: the end below says why.
                let _ = say_hello(&connection, hello).await;
                within(connection.closed()).await
            }
        }
    }

    /// A connection of a true member after both hellos, for frames that no honest sender makes.
    pub(crate) async fn join(
        &self,
        fleet: &Fleet,
        label: &str,
        to: SocketAddr,
        protocol: Protocol,
    ) -> quinn::Connection {
        let certified = fleet.identity(label).certified();
        let connection = self.connect(to, Some(certified), protocol.alpn()).await.unwrap();
        say_hello(&connection, &fleet.hello(label)).await.unwrap();
        connection
    }
}

fn rustls_config(certificate: Option<Arc<CertifiedKey>>, alpn: &[u8]) -> rustls::ClientConfig {
    let builder = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match certificate {
        Some(certificate) => builder.with_client_cert_resolver(Arc::new(Shown(certificate))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

fn quic_config(config: rustls::ClientConfig) -> quinn::ClientConfig {
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    quinn::ClientConfig::new(Arc::new(tls))
}

/// A client that keeps tickets and sends early data as soon as it may.
pub(crate) fn eager_config(certificate: Arc<CertifiedKey>, alpn: &[u8]) -> quinn::ClientConfig {
    let mut config = rustls_config(Some(certificate), alpn);
    config.enable_early_data = true;
    quic_config(config)
}

pub(crate) async fn say_hello(connection: &quinn::Connection, hello: &Hello) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| text(&e))?;
    let body = common::codec::encode(hello);
    let header = common::wire::frame::frame_header(common::wire::frame::HELLO_KIND, body.len());
    send.write_all(&header).await.map_err(|e| text(&e))?;
    send.write_all(&body).await.map_err(|e| text(&e))?;
    send.finish().map_err(|e| text(&e))?;
    within(recv.read_to_end(2_000)).await.map_err(|e| text(&e))?;
    Ok(())
}

/// Every wait of a test ends.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("the test waited for 20 seconds")
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
