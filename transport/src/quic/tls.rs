//! TLS, configured by hand: the convenience constructors of QUIC libraries switch 0-RTT on.
//!
//! # Rules
//! * TLS 1.3 only, certificates from both sides, Ed25519 only.
//! * No early data (it can be replayed) and no resumption (a resumed handshake skips the verifier,
//!   so a revoked device could come back). A full handshake costs under a millisecond.
//! * Key exchange X25519MLKEM768, then X25519: what is recorded today stays secret.
//! * No server name is sent.

use std::{fmt, sync::Arc, time::Duration};

use common::wire::frame::Protocol;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    ClientConfig, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::UnixTime,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    time_provider::TimeProvider,
    version::TLS13,
};

use crate::{ports::Clock, verifier::FleetVerifier};

/// Stands where TLS wants a name; peers are known by their keys.
pub(crate) const SERVER_NAME: &str = "muster.invalid";

/// Algorithms of every handshake.
#[must_use]
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    Arc::new(provider)
}

/// Our certificate and key, shown to whoever asks.
#[derive(Clone, Debug)]
pub(crate) struct Shown(pub(crate) Arc<CertifiedKey>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        schemes.contains(&SignatureScheme::ED25519).then(|| self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// The wall clock of the port, for the validity dates of certificates.
pub(crate) struct WallTime(pub(crate) Arc<dyn Clock>);

impl fmt::Debug for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("wall clock")
    }
}

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_micros(self.0.wall().0)))
    }
}

/// For connections that others make to us, on any of `protocols`.
pub(crate) fn server_config(
    shown: &Shown,
    verifier: FleetVerifier,
    clock: &Arc<dyn Clock>,
    protocols: &[Protocol],
) -> QuicServerConfig {
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(WallTime(clock.clone())))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider supports TLS 1.3")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(shown.clone()));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.alpn().to_vec()).collect();
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    QuicServerConfig::try_from(config).expect("the provider has the cipher suite of QUIC's first packets")
}

/// For one connection that we make, on `protocol`.
pub(crate) fn client_config(
    shown: &Shown,
    verifier: FleetVerifier,
    clock: &Arc<dyn Clock>,
    protocol: Protocol,
) -> QuicClientConfig {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(WallTime(clock.clone())))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider supports TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(shown.clone()));
    config.alpn_protocols = vec![protocol.alpn().to_vec()];
    config.enable_early_data = false;
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    QuicClientConfig::try_from(config).expect("the provider has the cipher suite of QUIC's first packets")
}
