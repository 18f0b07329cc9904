//! What exactly is signed: `tag (32 bytes) || chain id (32 bytes) || canonical body`.
//!
//! # Why
//! A tag of fixed length is prefix-free, so a signature made for one purpose never verifies for
//! another. The chain id keeps the signatures of one fleet out of every other. All tags begin with
//! `muster/v1/`, which no TLS 1.3 CertificateVerify (64 spaces) and no X.509 structure (0x30) does,
//! so one device key may serve TLS and entries.

use serde::Serialize;

use crate::{codec::to_bytes_behind, ids::ChainId};

/// One signing purpose. The name is part of the signed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Tag {
    Submit,
    Cancel,
    Claim,
    Renew,
    Progress,
    Complete,
    Fail,
    Release,
    Requeue,
    ForceRequeue,
    Batch,
    Proposal,
    Notarize,
    Finalize,
    Nullify,
}

impl Tag {
    const fn name(self) -> &'static [u8] {
        match self {
            Tag::Submit => b"muster/v1/submit",
            Tag::Cancel => b"muster/v1/cancel",
            Tag::Claim => b"muster/v1/claim",
            Tag::Renew => b"muster/v1/renew",
            Tag::Progress => b"muster/v1/progress",
            Tag::Complete => b"muster/v1/complete",
            Tag::Fail => b"muster/v1/fail",
            Tag::Release => b"muster/v1/release",
            Tag::Requeue => b"muster/v1/requeue",
            Tag::ForceRequeue => b"muster/v1/force-requeue",
            Tag::Batch => b"muster/v1/batch",
            Tag::Proposal => b"muster/v1/proposal",
            Tag::Notarize => b"muster/v1/notarize",
            Tag::Finalize => b"muster/v1/finalize",
            Tag::Nullify => b"muster/v1/nullify",
        }
    }

    /// The tag as it stands in the signed bytes: its name, padded with zeros.
    #[must_use]
    pub const fn bytes(self) -> [u8; 32] {
        let name = self.name();
        let mut bytes = [0; 32];
        let mut i = 0;
        while i < name.len() {
            bytes[i] = name[i];
            i += 1;
        }
        bytes
    }
}

/// The signed bytes for `body` in the fleet `chain`.
#[must_use]
pub fn preimage<T: Serialize>(tag: Tag, chain: &ChainId, body: &T) -> Vec<u8> {
    to_bytes_behind(&[&tag.bytes(), &chain.0], body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_body_differs_by_purpose_and_by_fleet() {
        let one = preimage(Tag::Notarize, &ChainId([1; 32]), &7u64);
        assert_ne!(one, preimage(Tag::Finalize, &ChainId([1; 32]), &7u64));
        assert_ne!(one, preimage(Tag::Notarize, &ChainId([2; 32]), &7u64));
        assert_eq!(&one[..19], b"muster/v1/notarize\0");
    }
}
