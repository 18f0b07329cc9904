//! Issuing certificates: the fleet's CA and the leaf of a device.
//!
//! A certificate admits its holder to a handshake and says nothing about what it may do: roles stand
//! in the registry only, so that changing one needs no new certificate and a stolen CA carries no power.
//!
//! # Rules
//! * CA: Ed25519, subject `CN=fleet-ca FLEET`, `keyCertSign`, path length 0, 20 years.
//! * Leaf: Ed25519, empty subject, exactly one SAN, a URI that names the device (the form of a SPIFFE
//!   X.509 identity), `CA:false`, `digitalSignature`, server and client authentication.
//! * Valid from an hour before `now`: clocks differ. Expiry gates admission, never an established key.
//! * Time and serial are arguments.

use common::ids::DeviceId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType, SerialNumber, SubjectPublicKeyInfo, date_time_ymd, string::Ia5String,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use std::time::Duration;

use crate::identity::KeyFile;

/// Longest leaf certificate that is accepted, in DER.
pub const LEAF_BYTES_MAX: usize = 2 * 1024;
/// Validity of a device's certificate.
pub const LEAF_DAYS: u32 = 400;
/// Validity of an operator's certificate.
pub const OPERATOR_LEAF_DAYS: u32 = 90;
const CA_DAYS: u32 = 20 * 365;
const BACKDATED_S: u64 = 3_600;
const DAY_S: u64 = 86_400;

/// SubjectPublicKeyInfo of an Ed25519 key (RFC 8410) without the key.
pub(crate) const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The fleet's name is not fit for a URI.
    #[error(
        "the fleet name {0:?} must be 1 to 64 of a-z, 0-9, dot, dash and underscore, since certificates name it in a URI"
    )]
    FleetName(String),
    /// The certificate library refused.
    #[error("cannot make the certificate: {0}")]
    Library(#[from] rcgen::Error),
}

/// The common name of a fleet's CA certificates.
#[must_use]
pub fn ca_common_name(fleet: &str) -> String {
    format!("fleet-ca {fleet}")
}

/// The one name in a device's certificate.
#[must_use]
pub fn device_uri(fleet: &str, device: &DeviceId) -> String {
    format!("spiffe://{fleet}/device/{}", crate::base32::lower(&device.0))
}

/// A certificate in both its forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// For files.
    pub pem: String,
    /// For the wire.
    pub der: Vec<u8>,
}

/// When a certificate begins to hold, how long, and its number.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Seconds since the Unix epoch.
    pub now_unix_s: u64,
    /// Days from `now_unix_s` on.
    pub days: u32,
    /// Random bytes.
    pub serial: [u8; 16],
}

/// A fleet's certificate authority with its private key.
pub struct CertificateAuthority {
    fleet: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", ca_common_name(&self.fleet))
    }
}

impl CertificateAuthority {
    /// The authority of `fleet` with `key`; the genesis file lists its public key.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn new(fleet: &str, key: &KeyFile) -> Result<Self, IssueError> {
        let is_fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
        if fleet.is_empty() || fleet.len() > 64 || !fleet.chars().all(is_fit) {
            return Err(IssueError::FleetName(fleet.to_owned()));
        }
        let der = key.to_pkcs8_der();
        let key_pair = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(&der[..]), &PKCS_ED25519)?;
        Ok(Self {
            fleet: fleet.to_owned(),
            issuer: Issuer::new(ca_params(fleet), key_pair),
        })
    }

    /// The CA's own certificate, for other tools; peers know the CA by its key in the genesis file.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn certificate(&self, now_unix_s: u64, serial: [u8; 16]) -> Result<Certificate, IssueError> {
        let mut params = ca_params(&self.fleet);
        set_terms(
            &mut params,
            &Terms {
                now_unix_s,
                days: CA_DAYS,
                serial,
            },
        );
        Ok(both_forms(&params.self_signed(self.issuer.key())?))
    }

    /// A leaf for `device`, whose public key is `key`.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn issue(&self, device: &DeviceId, key: &[u8; 32], terms: &Terms) -> Result<Certificate, IssueError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri = Ia5String::try_from(device_uri(&self.fleet, device))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_terms(&mut params, terms);
        let spki = [&SPKI_PREFIX[..], key].concat();
        let subject = SubjectPublicKeyInfo::from_der(&spki)?;
        Ok(both_forms(&params.signed_by(&subject, &self.issuer)?))
    }
}

fn ca_params(fleet: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, ca_common_name(fleet));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn set_terms(params: &mut CertificateParams, terms: &Terms) {
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(terms.now_unix_s.saturating_sub(BACKDATED_S));
    params.not_after = epoch + Duration::from_secs(terms.now_unix_s + u64::from(terms.days) * DAY_S);
    let mut serial = terms.serial;
    // Positive and of full length whatever was drawn (RFC 5280 §4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}

fn both_forms(certificate: &rcgen::Certificate) -> Certificate {
    Certificate {
        pem: certificate.pem(),
        der: certificate.der().to_vec(),
    }
}
