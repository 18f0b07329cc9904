//! Votes and certificates of the BFT tier, and the one encoding of "these signed".
//!
//! A certificate holds a bitmap over an ordered set and the signatures in bitmap order. It has one
//! encoding only: bitmap of exactly `ceil(n / 8)` bytes, no padding bits, as many signatures as bits.

use serde::{Deserialize, Serialize};

use crate::{
    bug::{self, Bug},
    codec::{Blob, BoundedVec, Wire},
    crypto::{
        AdmittedKey, Signature,
        preimage::{Tag, preimage},
    },
    ids::{ChainId, Digest, Epoch, Height, NodeIdx, View},
    limits,
    quorum::bft_quorum,
    validator_set::ValidatorSet,
};

/// Format version of a certificate, inside every [`Signers`].
pub const CERTIFICATE_VERSION: u8 = 1;

/// Which members of an ordered set signed, and their signatures.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Signers {
    /// [`CERTIFICATE_VERSION`].
    pub version: u8,
    /// Bit `i % 8` of byte `i / 8` stands for member `i`.
    pub bitmap: Blob<{ limits::VALIDATORS_MAX / 8 }>,
    /// In order of the bits.
    pub signatures: BoundedVec<Signature, { limits::VALIDATORS_MAX }>,
}

/// Why a certificate is worth nothing. The sender's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Unknown format.
    #[error("certificate format version {0}, this build reads 1")]
    Version(u8),
    /// Bitmap length, padding bits or number of signatures do not fit the set.
    #[error("bitmap and signatures do not fit a set of {members}")]
    Shape {
        /// Size of the set.
        members: usize,
    },
    /// A member without a key in this registry.
    #[error("member {0} has no key in the registry")]
    ForeignSigner(usize),
    /// A signature does not verify.
    #[error("the signature of member {0} does not verify")]
    BadSignature(usize),
    /// Below the quorum.
    #[error("{got} of {needed} needed")]
    TooFew {
        /// Members or weight that signed.
        got: u64,
        /// Needed.
        needed: u64,
    },
    /// Of another epoch than the set's.
    #[error("certificate of epoch {got}, the set is of epoch {want}")]
    WrongEpoch {
        /// Of the certificate.
        got: Epoch,
        /// Of the set.
        want: Epoch,
    },
}

impl Signers {
    /// Gathers signatures of members of a set of `members`; `signed` is ascending by position.
    ///
    /// # Panics
    /// If a position is outside the set or not ascending: the collector keys by position.
    #[must_use]
    pub fn gather(members: usize, signed: &[(usize, Signature)]) -> Self {
        assert!(signed.is_sorted_by(|a, b| a.0 < b.0), "positions ascend");
        let mut bitmap = vec![0u8; members.div_ceil(8)];
        for (position, _) in signed {
            assert!(*position < members, "position {position} is outside a set of {members}");
            bitmap[position / 8] |= 1 << (position % 8);
        }
        let signatures: Vec<Signature> = signed.iter().map(|(_, signature)| *signature).collect();
        Self {
            version: CERTIFICATE_VERSION,
            bitmap: bitmap.try_into().expect("sets are bounded by VALIDATORS_MAX"),
            signatures: signatures.try_into().expect("as many signatures as bits"),
        }
    }

    /// Positions of the signers in a set of `members`, ascending, if the shape is the one encoding.
    ///
    /// # Errors
    /// [`CertificateError::Version`], [`CertificateError::Shape`].
    pub fn positions(&self, members: usize) -> Result<Vec<usize>, CertificateError> {
        if self.version != CERTIFICATE_VERSION {
            return Err(CertificateError::Version(self.version));
        }
        let shape = CertificateError::Shape { members };
        if self.bitmap.len() != members.div_ceil(8) {
            return Err(shape);
        }
        let positions: Vec<usize> = (0..self.bitmap.len() * 8)
            .filter(|i| self.bitmap[i / 8] & (1 << (i % 8)) != 0)
            .collect();
        if positions.len() != self.signatures.len() || positions.last().is_some_and(|last| *last >= members) {
            return Err(shape);
        }
        Ok(positions)
    }

    /// Verifies every signature over `message`. Returns the positions that signed.
    ///
    /// # Errors
    /// [`CertificateError`]: one bad signature makes the certificate worthless.
    pub fn verify(&self, message: &[u8], keys: &[Option<&AdmittedKey>]) -> Result<Vec<usize>, CertificateError> {
        let positions = self.positions(keys.len())?;
        for (position, signature) in positions.iter().zip(&self.signatures) {
            let key = keys[*position].ok_or(CertificateError::ForeignSigner(*position))?;
            if !key.verifies(message, signature) && !bug::active(Bug::CertificateUnchecked) {
                return Err(CertificateError::BadSignature(*position));
            }
        }
        Ok(positions)
    }
}

/// What a proposal, a notarize and a finalize vote are signed over; each with its own tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// Epoch of the set.
    pub epoch: Epoch,
    /// View of the block.
    pub view: View,
    /// Height of the block.
    pub height: Height,
    /// Digest of the block.
    pub digest: Digest,
}

/// What a nullify vote is signed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NullifyBallot {
    /// Epoch of the set.
    pub epoch: Epoch,
    /// The view that shall have no block.
    pub view: View,
}

/// One validator's vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Vote {
    /// "This is the one block I support in this view."
    Notarize(Ballot),
    /// "I saw it notarized, and I have not nullified its view."
    Finalize(Ballot),
    /// "I give this view up, and I have not finalized in it."
    Nullify(NullifyBallot),
}

impl Vote {
    /// Epoch it is cast in.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        match self {
            Vote::Notarize(ballot) | Vote::Finalize(ballot) => ballot.epoch,
            Vote::Nullify(ballot) => ballot.epoch,
        }
    }

    /// View it is about.
    #[must_use]
    pub fn view(&self) -> View {
        match self {
            Vote::Notarize(ballot) | Vote::Finalize(ballot) => ballot.view,
            Vote::Nullify(ballot) => ballot.view,
        }
    }

    /// The signed bytes.
    #[must_use]
    pub fn preimage(&self, chain: &ChainId) -> Vec<u8> {
        match self {
            Vote::Notarize(ballot) => preimage(Tag::Notarize, chain, ballot),
            Vote::Finalize(ballot) => preimage(Tag::Finalize, chain, ballot),
            Vote::Nullify(ballot) => preimage(Tag::Nullify, chain, ballot),
        }
    }
}

/// A vote on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SignedVote {
    /// What is voted.
    pub vote: Vote,
    /// Device number of the voter.
    pub voter: NodeIdx,
    /// With its consensus key.
    pub signature: Signature,
}

impl SignedVote {
    /// Whether the voter is in `set` and signed this.
    #[must_use]
    pub fn is_signed(&self, chain: &ChainId, set: &ValidatorSet) -> bool {
        let Some(position) = set.position(self.voter) else {
            return false;
        };
        self.vote.epoch() == set.epoch()
            && set.members()[position]
                .key
                .verifies(&self.vote.preimage(chain), &self.signature)
    }
}

impl Wire for SignedVote {
    const BYTES_MAX: usize = 512;
}

macro_rules! bft_certificate {
    ($(#[$doc:meta])* $name:ident, $ballot:ty, $vote:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name {
            /// What the quorum voted.
            pub ballot: $ballot,
            /// Who, with signatures; bits are positions in the validator set.
            pub signers: Signers,
        }

        impl $name {
            /// Checks epoch, signatures and weight: more than two thirds.
            ///
            /// # Errors
            /// [`CertificateError`].
            pub fn verify(&self, chain: &ChainId, set: &ValidatorSet) -> Result<(), CertificateError> {
                if self.ballot.epoch != set.epoch() {
                    return Err(CertificateError::WrongEpoch { got: self.ballot.epoch, want: set.epoch() });
                }
                let message = $vote(self.ballot).preimage(chain);
                let positions = self.signers.verify(&message, &set.keys())?;
                let weight: u64 = positions.iter().map(|position| set.members()[*position].weight).sum();
                let needed = bft_quorum(set.total_weight());
                if weight < needed {
                    return Err(CertificateError::TooFew { got: weight, needed });
                }
                Ok(())
            }
        }

        impl Wire for $name {
            const BYTES_MAX: usize = 16 * 1024;
        }
    };
}

bft_certificate!(
    /// A quorum of notarize votes for one block.
    Notarization, Ballot, Vote::Notarize
);
bft_certificate!(
    /// A quorum of finalize votes for one block: the commit certificate.
    Finalization, Ballot, Vote::Finalize
);
bft_certificate!(
    /// A quorum of nullify votes for a view.
    Nullification, NullifyBallot, Vote::Nullify
);
