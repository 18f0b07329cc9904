//! Keys and signatures. A private key can sign only what its type has a method for.

use core::fmt;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use super::{
    preimage::{Tag, preimage},
    sha256,
};
use crate::{
    batch::BatchHeader,
    certificate::{Ballot, NullifyBallot},
    entry::EntryHeader,
    ids::{ChainId, Digest},
    recall::{Room, known, recalled},
};

/// An Ed25519 signature (RFC 8032), in two halves so that serde can derive its encoding.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Signature {
    /// The encoded point R.
    pub r: [u8; 32],
    /// The scalar s, little endian.
    pub s: [u8; 32],
}

impl Signature {
    /// From the 64 bytes of RFC 8032.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 64]) -> Self {
        let mut signature = Self::default();
        signature.r.copy_from_slice(&bytes[..32]);
        signature.s.copy_from_slice(&bytes[32..]);
        signature
    }

    /// The 64 bytes of RFC 8032.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.r);
        bytes[32..].copy_from_slice(&self.s);
        bytes
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sig {}", crate::ids::to_hex(&self.r[..6]))
    }
}

/// Why 32 bytes are not accepted as a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a point of the curve.
    #[error("not a point of the curve")]
    NotAPoint,
    /// The same point has another, canonical encoding.
    #[error("not the canonical encoding of the point")]
    NotCanonical,
    /// A point of small order, under which one signature verifies for any message.
    #[error("a weak key of small order")]
    Weak,
    /// A point with a torsion component, on which verifiers may disagree.
    #[error("a key with a torsion component")]
    Torsion,
}

/// A public key that passed admission.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AdmittedKey(VerifyingKey);

impl AdmittedKey {
    /// Admits canonical, torsion-free keys of full order. About 30 us; once per key.
    ///
    /// # Errors
    /// [`KeyError`]: the key must not enter any registry.
    pub fn admit(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        recalled(Room::Key, || Digest(*bytes), || Self::admit_by_check(bytes))
    }

    fn admit_by_check(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NotAPoint)?;
        let point = key.to_edwards();
        if point.compress().to_bytes() != *bytes {
            return Err(KeyError::NotCanonical);
        }
        if key.is_weak() {
            return Err(KeyError::Weak);
        }
        if !point.is_torsion_free() {
            return Err(KeyError::Torsion);
        }
        Ok(Self(key))
    }

    /// The point A.
    pub(super) fn point(&self) -> curve25519_dalek::EdwardsPoint {
        self.0.to_edwards()
    }

    /// The 32 bytes of RFC 8032.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Whether `signature` over `message` verifies under this key, strictly.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        recalled(
            Room::Signature,
            || question(&self.to_bytes(), signature, message),
            || self.verifies_afresh(message, signature),
        )
    }

    /// The same, and no verdict of anybody who verified it is the answer: who made it says so, or it is computed.
    #[must_use]
    pub fn has_signed(&self, message: &[u8], signature: &Signature) -> bool {
        recalled(
            Room::Signed,
            || question(&self.to_bytes(), signature, message),
            || self.verifies_afresh(message, signature),
        )
    }

    fn verifies_afresh(&self, message: &[u8], signature: &Signature) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(&signature.to_bytes());
        self.0.verify_strict(message, &signature).is_ok()
    }
}

impl PartialOrd for AdmittedKey {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for AdmittedKey {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.to_bytes().cmp(&other.to_bytes())
    }
}

impl core::hash::Hash for AdmittedKey {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.to_bytes().hash(state);
    }
}

impl fmt::Debug for AdmittedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}", crate::ids::to_hex(&self.to_bytes()[..6]))
    }
}

/// A device's private key: signs entries and attestations. Also the device's TLS key.
#[derive(Clone)]
pub struct DeviceKey(SigningKey);

impl DeviceKey {
    /// From the 32-byte seed of RFC 8032.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// Signs an entry as its author.
    #[must_use]
    pub fn sign_entry(&self, chain: &ChainId, header: &EntryHeader) -> Signature {
        sign(&self.0, header.action.tag(), chain, header)
    }

    /// Attests a batch header as a member of the roster. Only the attestation guard calls this.
    #[must_use]
    pub fn sign_attestation(&self, chain: &ChainId, header: &BatchHeader) -> Signature {
        sign(&self.0, Tag::Batch, chain, header)
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "private key of {}", crate::ids::to_hex(&self.public()[..6]))
    }
}

/// A validator's private key for consensus. Lives only inside the signing guard.
#[derive(Clone)]
pub struct ConsensusKey(SigningKey);

impl ConsensusKey {
    /// From the 32-byte seed of RFC 8032.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// Signs a proposal as the leader of its view.
    #[must_use]
    pub fn sign_proposal(&self, chain: &ChainId, ballot: &Ballot) -> Signature {
        sign(&self.0, Tag::Proposal, chain, ballot)
    }

    /// Signs a notarize vote.
    #[must_use]
    pub fn sign_notarize(&self, chain: &ChainId, ballot: &Ballot) -> Signature {
        sign(&self.0, Tag::Notarize, chain, ballot)
    }

    /// Signs a finalize vote.
    #[must_use]
    pub fn sign_finalize(&self, chain: &ChainId, ballot: &Ballot) -> Signature {
        sign(&self.0, Tag::Finalize, chain, ballot)
    }

    /// Signs a nullify vote.
    #[must_use]
    pub fn sign_nullify(&self, chain: &ChainId, ballot: &NullifyBallot) -> Signature {
        sign(&self.0, Tag::Nullify, chain, ballot)
    }
}

impl fmt::Debug for ConsensusKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "consensus key of {}", crate::ids::to_hex(&self.public()[..6]))
    }
}

fn sign<T: Serialize>(key: &SigningKey, tag: Tag, chain: &ChainId, body: &T) -> Signature {
    let message = preimage(tag, chain, body);
    let signature = Signature::from_bytes(&key.sign(&message).to_bytes());
    let public = || key.verifying_key().to_bytes();
    for room in [Room::Signature, Room::Signed] {
        known(room, || question(&public(), &signature, &message), true);
    }
    signature
}

/// What is asked about a signature. The two parts in front have a fixed length.
pub(super) fn question(key: &[u8; 32], signature: &Signature, message: &[u8]) -> Digest {
    sha256(&[key, &signature.to_bytes(), message])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_and_small_order_keys_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(AdmittedKey::admit(&identity), Err(KeyError::Weak));
        assert_eq!(AdmittedKey::admit(&[0; 32]), Err(KeyError::Weak));
    }

    #[test]
    fn non_canonical_key_is_refused() {
        // y = p + 1 names the same point as y = 1.
        let mut bytes = [0xff; 32];
        bytes[0] = 0xee;
        bytes[31] = 0x7f;
        assert_ne!(AdmittedKey::admit(&bytes), AdmittedKey::admit(&[1; 32]));
        assert_eq!(AdmittedKey::admit(&bytes), Err(KeyError::NotCanonical));
    }

    #[test]
    fn device_key_is_admitted_and_its_signature_verifies_once_only() {
        let key = DeviceKey::from_seed(&[3; 32]);
        let admitted = AdmittedKey::admit(&key.public()).unwrap();
        let header = crate::batch::BatchHeader::default();
        let chain = ChainId([9; 32]);
        let signature = key.sign_attestation(&chain, &header);
        let message = preimage(Tag::Batch, &chain, &header);
        assert!(admitted.verifies(&message, &signature));
        let mut flipped = message;
        *flipped.last_mut().unwrap() ^= 1;
        assert!(!admitted.verifies(&flipped, &signature));
    }
}
