//! Whether a certificate shown in a handshake admits a peer.
//!
//! In: a certificate chain. Out: the registered device, or a refusal whose detail stays in the local log.
//!
//! # Rules
//! A peer is admitted when its leaf
//! * is at most [`LEAF_BYTES_MAX`] long, with at most one more certificate,
//! * chains to one of the CA keys of the genesis file, signed with Ed25519,
//! * certifies an Ed25519 key that the registry holds for an `Active` device,
//! * names that device in its one URI, and nothing else,
//! * is that of the device we dialled, if we dialled.
//!
//! The role for the protocol is checked right after the handshake, and the status again with every
//! request, since TLS looks only once.
//!
//! # Why expiry refuses nobody who is registered
//! Drones boot with a clock of 1970 and a fleet must not stop because a date passed. Admission of a
//! *new* key looks at the date, and happens where the registry changes. Here every accepted key is
//! registered and active already: a date outside of the validity is only logged.
//!
//! # Why one error outward
//! QUIC carries the text of a TLS error to the peer. Anybody can show a certificate that is not his:
//! the answer must not tell him whether its device is known, revoked or unknown.

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use common::{
    genesis::Genesis,
    ids::{DeviceId, to_hex},
    registry::{Member, Registry, Status},
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, PeerIncompatible, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, Der, ServerName, SignatureVerificationAlgorithm, TrustAnchor, UnixTime, alg_id},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::{EndEntityCert, KeyUsage};

use crate::certificate::{LEAF_BYTES_MAX, SPKI_PREFIX, ca_common_name, device_uri};
use crate::log_limit::LogLimit;

/// The registry in force, shared by everything that asks it and replaced as a whole.
#[derive(Clone, Debug)]
pub struct SharedRegistry(Arc<RwLock<Arc<Registry>>>);

impl SharedRegistry {
    /// Starts with `registry`.
    #[must_use]
    pub fn new(registry: Arc<Registry>) -> Self {
        Self(Arc::new(RwLock::new(registry)))
    }

    /// The registry now.
    #[must_use]
    pub fn load(&self) -> Arc<Registry> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another registry in force. Handshakes and requests from now on are judged by it;
    /// connections that are up are closed by [`crate::quic::QuicTransport::close_all`].
    pub fn replace(&self, registry: Arc<Registry>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = registry;
    }
}

/// Whom a fleet trusts to admit: its name and the keys of its certificate authorities.
#[derive(Clone, Debug)]
pub struct Trust {
    fleet: String,
    anchors: Vec<TrustAnchor<'static>>,
}

impl Trust {
    /// The name and CA keys of a genesis file.
    #[must_use]
    pub fn from_genesis(genesis: &Genesis) -> Self {
        let fleet = genesis.fleet.as_str().to_owned();
        let anchors = genesis.ca_keys.iter().map(|key| anchor(&fleet, key)).collect();
        Self { fleet, anchors }
    }
}

/// The CA with this key as webpki wants it: contents of the subject's and of the key's sequences.
fn anchor(fleet: &str, key: &[u8; 32]) -> TrustAnchor<'static> {
    let name = ca_common_name(fleet);
    // A label has at most 64 bytes, so every length below fits one byte under 128.
    let len = |value: usize| u8::try_from(value).expect("the fleet's name is a label");
    let mut subject = vec![0x31, len(name.len() + 9), 0x30, len(name.len() + 7)];
    subject.extend([0x06, 0x03, 0x55, 0x04, 0x03, 0x0c, len(name.len())]);
    subject.extend(name.as_bytes());
    TrustAnchor {
        subject: Der::from(subject),
        subject_public_key_info: Der::from([&SPKI_PREFIX[2..], key].concat()),
        name_constraints: None,
    }
}

/// The Ed25519 key that a certificate certifies, if it parses and is one.
#[must_use]
pub fn certified_key(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let leaf = EndEntityCert::try_from(certificate).ok()?;
    let spki = leaf.subject_public_key_info();
    spki.as_ref().strip_prefix(&SPKI_PREFIX)?.try_into().ok()
}

/// Why a certificate does not admit. For the local log and for tests; a peer never sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Too long, or too many.
    #[error("leaf of {leaf_bytes} bytes with {others} more certificates, at most {LEAF_BYTES_MAX} and 1 allowed")]
    TooLong {
        /// Length of the leaf.
        leaf_bytes: usize,
        /// Certificates beside the leaf.
        others: usize,
    },
    /// Not X.509.
    #[error("not a certificate: {0}")]
    Malformed(String),
    /// RSA, ECDSA or a malformed key.
    #[error("the certified key is not Ed25519")]
    NotEd25519,
    /// No CA of this fleet signed it, or it is not a leaf for this use.
    #[error("no CA of this fleet vouches for it: {0}")]
    Chain(String),
    /// The key belongs to nobody.
    #[error("key {0} is not in the registry")]
    Unregistered(String),
    /// The device is suspended or revoked.
    #[error("{device} ({label}) is {status:?}")]
    NotActive {
        /// Who.
        device: DeviceId,
        /// Name for people.
        label: String,
        /// What it is.
        status: Status,
    },
    /// The certificate names something else than the device of its key.
    #[error(
        "the key is that of {want}, the certificate names {got:?}; if this is a device of ours, the two sides hold \
         different genesis files (ours is of fleet {chain})"
    )]
    WrongName {
        /// URI expected.
        want: String,
        /// Names found.
        got: Vec<String>,
        /// Our fleet's short id.
        chain: String,
    },
    /// We dialled somebody else.
    #[error("dialled {want}, answered by {got}")]
    NotTheDialled {
        /// Whom we wanted.
        want: DeviceId,
        /// Who answered.
        got: DeviceId,
    },
}

/// Why a dial's verifier refused, for the error of the dial: TLS carries only the general one.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastRefusal(Arc<Mutex<Option<NotAdmitted>>>);

impl LastRefusal {
    fn set(&self, reason: NotAdmitted) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    pub(crate) fn take(&self) -> Option<NotAdmitted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Judges certificates by the genesis file's CAs and the registry. One per dial; cheap.
pub struct FleetVerifier {
    trust: Arc<Trust>,
    registry: SharedRegistry,
    expect: Option<DeviceId>,
    refusal: LastRefusal,
    log_limit: LogLimit,
    ed25519: Vec<&'static dyn SignatureVerificationAlgorithm>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for FleetVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "verifier of fleet {}", self.trust.fleet)
    }
}

impl FleetVerifier {
    /// `expect` is the device that was dialled, or `None` where others dial us.
    #[must_use]
    pub fn new(trust: Arc<Trust>, registry: SharedRegistry, expect: Option<DeviceId>) -> Self {
        let algorithms = crate::quic::tls::provider().signature_verification_algorithms;
        let ed25519 = algorithms
            .all
            .iter()
            .copied()
            .filter(|algorithm| algorithm.signature_alg_id() == alg_id::ED25519)
            .collect();
        Self {
            trust,
            registry,
            expect,
            refusal: LastRefusal::default(),
            log_limit: LogLimit::new(),
            ed25519,
            algorithms,
        }
    }

    /// Where the reason of a refusal is left.
    pub(crate) fn refusal(&self) -> LastRefusal {
        self.refusal.clone()
    }

    /// Judges a chain at `now`. `is_client`: whether its holder dialled us.
    ///
    /// # Errors
    /// [`NotAdmitted`]: refuse, and tell the peer nothing of it.
    pub fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        is_client: bool,
    ) -> Result<Member, NotAdmitted> {
        if leaf.len() > LEAF_BYTES_MAX || others.len() > 1 || others.iter().any(|c| c.len() > LEAF_BYTES_MAX) {
            return Err(NotAdmitted::TooLong {
                leaf_bytes: leaf.len(),
                others: others.len(),
            });
        }
        let parsed = EndEntityCert::try_from(leaf).map_err(|error| NotAdmitted::Malformed(format!("{error:?}")))?;
        let key = certified_key(leaf).ok_or(NotAdmitted::NotEd25519)?;
        let is_out_of_date = self.check_chain(&parsed, others, now, is_client)?;
        let registry = self.registry.load();
        let member = registry
            .by_tls_key(&key)
            .ok_or_else(|| NotAdmitted::Unregistered(to_hex(&key[..6])))?;
        if member.status != Status::Active {
            return Err(NotAdmitted::NotActive {
                device: member.id,
                label: member.label.to_string(),
                status: member.status,
            });
        }
        self.check_name(&parsed, member, &registry)?;
        if let Some(want) = self.expect
            && want != member.id
        {
            return Err(NotAdmitted::NotTheDialled { want, got: member.id });
        }
        if is_out_of_date {
            tracing::warn!(
                device = %member.id, label = %member.label,
                "the certificate is outside of its validity by this machine's clock; accepted, since its key is \
                 registered and active: renew the certificate, or set the clock"
            );
        }
        Ok(member.clone())
    }

    /// Verifies the chain, whatever the date says. Returns whether the date is outside of the validity.
    fn check_chain(
        &self,
        leaf: &EndEntityCert<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        is_client: bool,
    ) -> Result<bool, NotAdmitted> {
        let verify_at = |time| {
            let usage = if is_client {
                KeyUsage::client_auth()
            } else {
                KeyUsage::server_auth()
            };
            leaf.verify_for_usage(&self.ed25519, &self.trust.anchors, others, time, usage, None, None)
                .map(|_| ())
        };
        let failed = |error: webpki::Error| NotAdmitted::Chain(format!("{error:?}"));
        let clamped = match verify_at(now) {
            Ok(()) => return Ok(false),
            Err(webpki::Error::CertExpired { not_after, .. }) => not_after,
            Err(webpki::Error::CertNotValidYet { not_before, .. }) => not_before,
            Err(error) => return Err(failed(error)),
        };
        verify_at(clamped).map(|()| true).map_err(failed)
    }

    fn check_name(&self, leaf: &EndEntityCert<'_>, member: &Member, registry: &Registry) -> Result<(), NotAdmitted> {
        let want = device_uri(&self.trust.fleet, &member.id);
        let mut names = leaf.valid_uri_names();
        let is_named = names.next() == Some(want.as_str()) && names.next().is_none();
        if is_named && leaf.valid_dns_names().next().is_none() {
            return Ok(());
        }
        let shown = |name: &str| name.chars().filter(|c| !c.is_control()).take(128).collect::<String>();
        Err(NotAdmitted::WrongName {
            want,
            got: leaf
                .valid_uri_names()
                .chain(leaf.valid_dns_names())
                .take(4)
                .map(shown)
                .collect(),
            chain: registry.chain().to_string(),
        })
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        is_client: bool,
    ) -> Result<(), TlsError> {
        self.check(leaf, others, now, is_client).map(|_| ()).map_err(|reason| {
            // The claimed identity is not proven yet: nothing is counted against it.
            if let Some(not_logged) = self.log_limit.admit(tokio::time::Instant::now()) {
                tracing::warn!(%reason, not_logged, "a certificate was refused");
            }
            self.refusal.set(reason);
            refused()
        })
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        if signature.scheme != SignatureScheme::ED25519 {
            return Err(refused());
        }
        verify_tls13_signature(message, certificate, signature, &self.algorithms).map_err(|_| refused())
    }
}

/// The one error a peer sees.
fn refused() -> TlsError {
    TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

impl ServerCertVerifier for FleetVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        self.judge(leaf, others, now, false)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for FleetVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        self.judge(leaf, others, now, true)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
