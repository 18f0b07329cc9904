//! Hashes, keys and signatures. The only room that names `ed25519-dalek`, `curve25519-dalek` and `sha2`.
//!
//! # Rules
//! * A signature is checked as `verify_strict` does it, one by one: plain and batch
//!   verification accept signatures that others refuse, and two honest machines that disagree
//!   about a signature are a split of consensus. [`PreparedKey`] gives the same answers sooner.
//! * A key is used only after [`AdmittedKey::admit`]: canonical, not weak, free of torsion.
//! * Every signature is over [`preimage::preimage`]: a tag of fixed length, the chain, the body.
//!   There is no untyped `sign(bytes)`: each purpose has its own method.
//! * [`known_answers::check`] runs before anything is signed or verified. It detects a build in
//!   which some dependency switched on lenient verification.

mod keys;
pub mod known_answers;
pub mod preimage;
mod prepared;
mod signed;

pub use keys::{AdmittedKey, ConsensusKey, DeviceKey, KeyError, Signature};
pub use prepared::PreparedKey;
pub use signed::{BadSignature, Verified};

use sha2::{Digest as _, Sha256};

use crate::ids::Digest;

/// SHA-256 of the concatenation of `parts`.
///
/// The caller makes the concatenation unambiguous (fixed-length parts, or one trailing part).
#[must_use]
pub fn sha256(parts: &[&[u8]]) -> Digest {
    let mut hashing = Hashing::default();
    for part in parts {
        hashing.update(part);
    }
    hashing.digest()
}

/// SHA-256 of what comes piece by piece. Where one piece ends and the next begins is the caller's to say.
#[derive(Clone, Default)]
pub struct Hashing(Sha256);

impl Hashing {
    /// Goes on with `part`.
    pub fn update(&mut self, part: &[u8]) {
        self.0.update(part);
    }

    /// Of everything so far.
    #[must_use]
    pub fn digest(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}
