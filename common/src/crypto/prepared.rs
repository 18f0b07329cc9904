//! A key whose signatures are checked often: its multiples are computed once.
//!
//! # Rules
//! * It says exactly what [`AdmittedKey::verifies`] says: the equation of RFC 8032 §5.1.7 without
//!   cofactor, canonical s, canonical R of full order. Tests compare the two over good, damaged and hostile signatures.
//! * Arithmetic is curve25519-dalek's. Here stands which values go into the equation, and nothing else.
//!
//! # Why
//! A table of 30 KB saves the doublings of [k]A: a third of the time of a check, which is the largest
//! part of what a submission costs (`docs/decisions/0033-multiples-of-busy-keys.md`).

use std::sync::Arc;

use curve25519_dalek::{
    constants::ED25519_BASEPOINT_TABLE, edwards::EdwardsBasepointTable, scalar::Scalar, traits::BasepointTable,
};
use sha2::{Digest as _, Sha512};

use super::{AdmittedKey, Signature, keys::question, sha256};
use crate::recall::{Room, recalled};

/// An admitted key with a table of its multiples: 30 KB, made in some 100 us.
#[derive(Clone)]
pub struct PreparedKey {
    key: AdmittedKey,
    /// Multiples of -A.
    negated: Arc<EdwardsBasepointTable>,
}

impl PreparedKey {
    /// Computes the table.
    #[must_use]
    pub fn new(key: AdmittedKey) -> Self {
        let table = || Arc::new(EdwardsBasepointTable::create(&-key.point()));
        let negated = recalled(Room::Table, || sha256(&[&key.to_bytes()]), table);
        Self { key, negated }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &AdmittedKey {
        &self.key
    }

    /// Whether `signature` over `message` verifies under this key: as [`AdmittedKey::verifies`], sooner.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        let question = || question(&self.key.to_bytes(), signature, message);
        recalled(Room::Signature, question, || self.equation_holds(message, signature))
    }

    /// R = [s]B - [k]A with k = SHA-512(R, A, M), for encodings that are canonical.
    fn equation_holds(&self, message: &[u8], signature: &Signature) -> bool {
        let Some(s) = Option::<Scalar>::from(Scalar::from_canonical_bytes(signature.s)) else {
            return false;
        };
        let hash = Sha512::new()
            .chain_update(signature.r)
            .chain_update(self.key.to_bytes())
            .chain_update(message);
        let k = Scalar::from_bytes_mod_order_wide(&hash.finalize().into());
        let r = ED25519_BASEPOINT_TABLE.mul_base(&s) + self.negated.mul_base(&k);
        // Compared as bytes: an R that is no point, or no canonical encoding of one, equals nothing.
        r.compress().to_bytes() == signature.r && !r.is_small_order()
    }
}

#[cfg(test)]
mod tests {
    use curve25519_dalek::{constants::EIGHT_TORSION, edwards::EdwardsPoint};
    use ed25519_dalek::{Signer, SigningKey, Verifier, VerifyingKey};

    use super::*;

    /// A key with what its owner knows: an enemy may own one.
    struct Owner {
        signing: SigningKey,
        prepared: PreparedKey,
    }

    impl Owner {
        fn new(seed: u8) -> Self {
            let signing = SigningKey::from_bytes(&[seed; 32]);
            let key = AdmittedKey::admit(signing.verifying_key().as_bytes()).unwrap();
            let prepared = PreparedKey::new(key);
            Self { signing, prepared }
        }

        fn sign(&self, message: &[u8]) -> Signature {
            Signature::from_bytes(&self.signing.sign(message).to_bytes())
        }

        fn hash(&self, r: &[u8; 32], message: &[u8]) -> Scalar {
            let public = self.signing.verifying_key().to_bytes();
            let hash = Sha512::new().chain_update(r).chain_update(public).chain_update(message);
            Scalar::from_bytes_mod_order_wide(&hash.finalize().into())
        }

        /// What both ways say, which must be the same.
        fn says(&self, message: &[u8], signature: &Signature) -> bool {
            let known = self.prepared.key().verifies(message, signature);
            assert_eq!(
                self.prepared.verifies(message, signature),
                known,
                "{message:?} {signature:?}"
            );
            known
        }
    }

    #[test]
    fn good_signatures_verify_and_no_bit_of_them_may_change() {
        for seed in 0..8 {
            let owner = Owner::new(seed);
            let message = [seed; 40];
            for length in 0..message.len() {
                assert!(owner.says(&message[..length], &owner.sign(&message[..length])));
            }
            let good = owner.sign(&message).to_bytes();
            for bit in 0..512 {
                let mut bad = good;
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(!owner.says(&message, &Signature::from_bytes(&bad)), "bit {bit}");
            }
            for bit in 0..8 * message.len() {
                let mut other = message;
                other[bit / 8] ^= 1 << (bit % 8);
                assert!(!owner.says(&other, &Signature::from_bytes(&good)), "bit {bit}");
            }
            assert!(!Owner::new(seed + 1).says(&message, &Signature::from_bytes(&good)));
        }
    }

    #[test]
    fn scalars_that_are_not_canonical_are_refused() {
        let owner = Owner::new(1);
        let good = owner.sign(b"m");
        // s + iL stays below 2^256 for i below 16.
        let order = (-Scalar::ONE).to_bytes();
        let mut s = good.s;
        for _ in 1..16 {
            let mut carry = 1; // L is one more than its own -1.
            for (byte, add) in s.iter_mut().zip(order) {
                carry += u16::from(*byte) + u16::from(add);
                *byte = carry as u8;
                carry >>= 8;
            }
            if carry == 0 {
                assert!(!owner.says(b"m", &Signature { s, ..good }));
            }
        }
        for s in [[0; 32], [0xff; 32], order] {
            assert!(!owner.says(b"m", &Signature { s, ..good }));
        }
    }

    #[test]
    fn commitments_of_small_order_are_refused_even_if_the_equation_holds() {
        let owner = Owner::new(2);
        let identity = EdwardsPoint::default().compress().to_bytes();
        let s = owner.hash(&identity, b"m") * owner.signing.to_scalar();
        let bent = Signature {
            r: identity,
            s: s.to_bytes(),
        };
        let plain = VerifyingKey::from_bytes(&owner.prepared.key().to_bytes()).unwrap();
        let dalek = ed25519_dalek::Signature::from_bytes(&bent.to_bytes());
        assert!(plain.verify(b"m", &dalek).is_ok(), "what lenient code says");
        assert!(!owner.says(b"m", &bent));
        for point in EIGHT_TORSION {
            let r = point.compress().to_bytes();
            for s in [Scalar::ZERO, owner.hash(&r, b"m") * owner.signing.to_scalar()] {
                assert!(!owner.says(b"m", &Signature { r, s: s.to_bytes() }));
            }
        }
    }

    #[test]
    fn commitments_that_are_no_canonical_point_are_refused() {
        let owner = Owner::new(3);
        // y from p to 2^255 - 1, with both signs: points with a second encoding, or none.
        for low in 0xed..=0xff {
            for high in [0x7f, 0xff] {
                let mut r = [0xff; 32];
                (r[0], r[31]) = (low, high);
                let s = owner.hash(&r, b"m") * owner.signing.to_scalar();
                assert!(!owner.says(b"m", &Signature { r, s: s.to_bytes() }));
            }
        }
    }

    #[test]
    fn commitment_with_a_torsion_component_is_refused_as_the_equation_has_no_cofactor() {
        let owner = Owner::new(4);
        let secret = Scalar::from(77u8);
        for (i, torsion) in EIGHT_TORSION.iter().enumerate() {
            let r = (EdwardsPoint::mul_base(&secret) + torsion).compress().to_bytes();
            let s = secret + owner.hash(&r, b"m") * owner.signing.to_scalar();
            assert_eq!(owner.says(b"m", &Signature { r, s: s.to_bytes() }), i == 0);
        }
    }
}
