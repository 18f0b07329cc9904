//! Who this process is: a private key on disk and the certificate that admits it.
//!
//! In: paths. Out: [`Identity`], or an error that says what is wrong with the file and what to do.
//!
//! # Rules
//! * A private key file is read only if nobody else can have read it and nothing about its form is
//!   unusual: see [`key_file`].
//! * A certificate is used only with the key it was made for.
//! * Secrets are wiped from memory when dropped; no `Debug` prints them.

pub mod key_file;
#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{
    crypto::{DeviceKey, sha256},
    genesis::Genesis,
    ids::{ChainId, DeviceId, to_hex},
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

pub use key_file::{KeyFile, KeyFileError};

use crate::{certificate::LEAF_BYTES_MAX, verifier};

/// Longest certificate file: two certificates in PEM.
pub const CERTIFICATE_FILE_BYTES_MAX: u64 = 16 * 1024;

/// Why a key and a certificate do not make an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The key file is unusable.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The certificate file cannot be read.
    #[error("cannot read the certificate file {path}: {source}; correct `certificate` in the configuration file")]
    CertificateUnreadable {
        /// File.
        path: PathBuf,
        /// Of the file system.
        source: io::Error,
    },
    /// Not one or two certificates in PEM.
    #[error(
        "{origin} is not a certificate file of one or two PEM blocks CERTIFICATE: {why}; have it issued again with `fleet ca sign`"
    )]
    CertificateMalformed {
        /// File, or where else it came from.
        origin: String,
        /// What is wrong.
        why: String,
    },
    /// The certificate was made for another key.
    #[error(
        "the key does not match the certificate: {key_origin} holds the private key of {key}, {certificate_origin} \
         certifies {certified}; put the two files of one device together"
    )]
    KeyMismatch {
        /// Key file.
        key_origin: String,
        /// Public key that belongs to the key file, in hexadecimal.
        key: String,
        /// Certificate file.
        certificate_origin: String,
        /// Public key in the certificate, in hexadecimal.
        certified: String,
    },
}

/// A device's private key with the certificate chain that admits it.
pub struct Identity {
    device_key: DeviceKey,
    chain: Vec<CertificateDer<'static>>,
    certified: Arc<CertifiedKey>,
    reset_secret: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "identity with {:?}", self.device_key)
    }
}

impl Identity {
    /// Reads a key file and a certificate file (the leaf first, at most one more).
    ///
    /// # Errors
    /// [`IdentityError`]: the process must not start; the text says what to do.
    pub fn load(key: &Path, certificate: &Path) -> Result<Self, IdentityError> {
        let key_file = KeyFile::load(key)?;
        let pem = read_bounded(certificate).map_err(|source| IdentityError::CertificateUnreadable {
            path: certificate.to_owned(),
            source,
        })?;
        Self::from_named_parts(
            &key_file,
            &pem,
            &format!("{}", key.display()),
            &format!("{}", certificate.display()),
        )
    }

    /// From a key and a PEM certificate chain in memory, as `fleet` makes them.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn from_parts(key: &KeyFile, certificate_pem: &str) -> Result<Self, IdentityError> {
        Self::from_named_parts(key, certificate_pem.as_bytes(), "the key", "the certificate")
    }

    fn from_named_parts(
        key: &KeyFile,
        pem: &[u8],
        key_origin: &str,
        certificate_origin: &str,
    ) -> Result<Self, IdentityError> {
        let malformed = |why: String| IdentityError::CertificateMalformed {
            origin: certificate_origin.to_owned(),
            why,
        };
        let chain = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| malformed(format!("{error:?}")))?;
        if chain.is_empty() || chain.len() > 2 {
            return Err(malformed(format!("{} certificates", chain.len())));
        }
        if chain[0].len() > LEAF_BYTES_MAX {
            return Err(malformed(format!(
                "the first certificate has {} bytes, at most {LEAF_BYTES_MAX} allowed",
                chain[0].len()
            )));
        }
        let certified = verifier::certified_key(&chain[0])
            .ok_or_else(|| malformed("the first certificate does not certify an Ed25519 key".into()))?;
        if certified != key.public() {
            return Err(IdentityError::KeyMismatch {
                key_origin: key_origin.to_owned(),
                key: to_hex(&key.public()),
                certificate_origin: certificate_origin.to_owned(),
                certified: to_hex(&certified),
            });
        }
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8_der().to_vec()));
        let signer = crate::quic::tls::provider()
            .key_provider
            .load_private_key(der)
            .expect("a PKCS#8 v1 Ed25519 key is readable by the TLS library");
        Ok(Self {
            device_key: key.device_key(),
            certified: Arc::new(CertifiedKey::new(chain.clone(), signer)),
            chain,
            // Derived, so that it survives a restart and no peer can compute it.
            reset_secret: Zeroizing::new(sha256(&[b"muster/v1/quic-stateless-reset", key.seed()]).0),
        })
    }

    /// The key that signs entries and attestations.
    #[must_use]
    pub fn device_key(&self) -> &DeviceKey {
        &self.device_key
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.device_key.public()
    }

    /// The device that has this as its first key in the fleet `chain`.
    #[must_use]
    pub fn device_id(&self, chain: &ChainId) -> DeviceId {
        Genesis::device_id(chain, &self.public())
    }

    /// Leaf first.
    #[must_use]
    pub fn certificate_chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    /// Secret under which stateless resets are made (RFC 9000 §10.3): with the same one after a
    /// restart, peers learn at once that their old connections are gone.
    pub(crate) fn reset_secret(&self) -> &[u8; 32] {
        &self.reset_secret
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(CERTIFICATE_FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > CERTIFICATE_FILE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("longer than {CERTIFICATE_FILE_BYTES_MAX} bytes"),
        ));
    }
    Ok(bytes)
}
