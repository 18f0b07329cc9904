//! Known-answer test of the signature code, run at every start.
//!
//! # Why
//! Cargo features unify over a whole build, so any dependency could switch on ed25519-dalek's
//! `legacy_compatibility`; then even strict verification accepts malleable signatures, and two
//! builds of one fleet disagree about a block. The check is a few signatures long.

use ed25519_dalek::VerifyingKey;

use super::{AdmittedKey, PreparedKey, Signature, sha256};
use crate::ids;

/// The build verifies signatures or hashes wrongly. Do not run it: stop with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("known-answer test failed: {0}. This build must not be used: check its dependency features")]
pub struct KnownAnswerFailed(&'static str);

/// RFC 8032 §7.1, test 2: public key, one-byte message 0x72, signature.
const RFC8032_PUBLIC: &str = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
const RFC8032_R: &str = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da";
const RFC8032_S: &str = "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
/// Order of the group, L = 2^252 + 27742317777372353535851937790883648493, little endian.
const GROUP_ORDER: &str = "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010";
/// FIPS 180-4, SHA-256 of "abc".
const SHA256_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// Checks SHA-256, acceptance of a good signature, and refusal of the four that lenient code accepts.
///
/// # Errors
/// [`KnownAnswerFailed`] names the first answer that was wrong.
pub fn check() -> Result<(), KnownAnswerFailed> {
    let expect = |holds: bool, what| if holds { Ok(()) } else { Err(KnownAnswerFailed(what)) };
    expect(sha256(&[b"a", b"bc"]).to_hex() == SHA256_ABC, "SHA-256 of \"abc\"")?;

    let key = AdmittedKey::admit(&bytes(RFC8032_PUBLIC)).map_err(|_| KnownAnswerFailed("RFC 8032 key admitted"))?;
    let good = Signature {
        r: bytes(RFC8032_R),
        s: bytes(RFC8032_S),
    };
    let prepared = PreparedKey::new(key);
    let verify = |message: &[u8], signature: &Signature| {
        let answer = key.verifies(message, signature);
        expect(
            prepared.verifies(message, signature) == answer,
            "the same with multiples of the key",
        )?;
        Ok(answer)
    };
    expect(verify(&[0x72], &good)?, "RFC 8032 signature accepted")?;
    expect(!verify(&[0x73], &good)?, "other message refused")?;

    let malleable = Signature {
        s: plus_group_order(good.s),
        ..good
    };
    expect(!verify(&[0x72], &malleable)?, "malleable signature (s + L) refused")?;

    // Under the identity key, R = identity and s = 0 verify any message with the plain equation.
    let mut identity = [0; 32];
    identity[0] = 1;
    let universal = ed25519_dalek::Signature::from_components(identity, [0; 32]);
    let weak = VerifyingKey::from_bytes(&identity).map_err(|_| KnownAnswerFailed("identity decodes"))?;
    expect(
        weak.verify_strict(b"anything", &universal).is_err(),
        "universal signature refused",
    )?;
    expect(AdmittedKey::admit(&identity).is_err(), "key of small order refused")?;

    let identity_r = Signature { r: identity, ..good };
    expect(!verify(&[0x72], &identity_r)?, "signature with R = identity refused")
}

fn bytes(hex: &str) -> [u8; 32] {
    let mut out = [0; 32];
    assert!(
        ids::from_hex(hex, &mut out),
        "constants above are 64 hexadecimal digits"
    );
    out
}

fn plus_group_order(s: [u8; 32]) -> [u8; 32] {
    let order = bytes(GROUP_ORDER);
    let mut sum = [0; 32];
    let mut carry = 0u16;
    for i in 0..32 {
        carry += u16::from(s[i]) + u16::from(order[i]);
        sum[i] = carry as u8;
        carry >>= 8;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_build_gives_the_known_answers() {
        assert_eq!(check(), Ok(()));
    }

    #[test]
    fn malleable_signature_is_the_same_scalar_modulo_the_group_order() {
        let s = bytes(RFC8032_S);
        assert_ne!(plus_group_order(s), s);
        assert_eq!(plus_group_order([0; 32]), bytes(GROUP_ORDER));
    }
}
