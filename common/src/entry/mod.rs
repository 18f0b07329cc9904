//! Entries: what an author signs, and what stands in a cluster's log.
//!
//! # Rules
//! * The signed bytes are the header; the payload is bound by digest and length. So every preimage
//!   is short, and checking a signature does not depend on the payload's size.
//! * An entry's id is the digest of its signed bytes. The signature never influences an id, an order
//!   or a duplicate.
//! * *Static* checks (encoding, size, chain, signature under the key that the registry ever recorded)
//!   give the same verdict for ever and gate append, attestation and batches. Everything else is
//!   *dynamic* and decided in `apply`.

mod action;
pub mod life;
pub mod transition;

pub use action::{Action, Cause, Fence, Progress};

use serde::{Deserialize, Serialize};

use crate::{
    batch::RosterChange,
    block::AdvancePart,
    bug::{self, Bug},
    codec::{Blob, Wire, encode},
    crypto::{AdmittedKey, DeviceKey, Signature, Verified, preimage::preimage, sha256},
    ids::{BatchSeq, ChainId, ClusterId, DeviceId, Digest, EntryId, EntryNumber, Height, KeyVersion},
    limits,
    number_stream::NUMBER_MAX,
    registry::Registry,
    task::{Scope, Task},
};

/// Payload of an entry: a task's content, a reason for people.
pub type Payload = Blob<{ limits::PAYLOAD_BYTES_MAX }>;

/// What the author signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryHeader {
    /// Who signs.
    pub author: DeviceId,
    /// With which of its keys.
    pub key_version: KeyVersion,
    /// The cluster whose log it enters; refused elsewhere.
    pub cluster: ClusterId,
    /// Its number in the stream (author, key version, cluster). Ignored for `Renew`, which is in none.
    pub number: EntryNumber,
    /// Refused if first committed at a greater global height.
    pub not_after_height: Height,
    /// Scope of the task it is about.
    pub scope: Scope,
    /// What is asked for.
    pub action: Action,
    /// SHA-256 of the payload.
    pub payload_hash: Digest,
    /// Length of the payload.
    pub payload_len: u32,
}

impl EntryHeader {
    /// The bytes that are signed.
    #[must_use]
    pub fn preimage(&self, chain: &ChainId) -> Vec<u8> {
        preimage(self.action.tag(), chain, self)
    }

    /// The entry's identity.
    #[must_use]
    pub fn id(&self, chain: &ChainId) -> EntryId {
        EntryId(sha256(&[&self.preimage(chain)]).0)
    }
}

/// An entry as it travels and as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedEntry {
    /// The signed part.
    pub header: EntryHeader,
    /// Bound by the header.
    pub payload: Payload,
    /// By the author.
    pub signature: Signature,
}

/// Why an entry can never be good, whatever any registry says. Evidence against who let it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StaticFault {
    /// The payload is not the one that was signed.
    #[error("payload of {got} bytes does not match the signed digest and length {want}")]
    WrongPayload {
        /// Length found.
        got: usize,
        /// Length signed.
        want: u32,
    },
    /// The payload of a `Submit` is no valid task.
    #[error("the payload is not a valid task: {0}")]
    BadTask(crate::codec::DecodeError),
    /// The number is above the largest.
    #[error("number {0} is above the largest")]
    NumberTooLarge(EntryNumber),
    /// The signature does not verify under the registered key.
    #[error("the signature does not verify under the author's key")]
    BadSignature,
}

/// Outcome of the static checks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)]
pub enum StaticVerdict {
    /// Good for ever.
    Good(Verified<SignedEntry>),
    /// Bad for ever.
    Bad(StaticFault),
    /// No verdict: the key is not in this registry. `apply` decides, from the state at its position.
    UnknownKey,
}

impl SignedEntry {
    /// Signs an entry. `payload` is at most [`PAYLOAD_BYTES_MAX`](limits::PAYLOAD_BYTES_MAX).
    #[must_use]
    pub fn sign(key: &DeviceKey, chain: &ChainId, draft: EntryDraft, payload: Payload) -> Self {
        let header = EntryHeader {
            author: draft.author,
            key_version: draft.key_version,
            cluster: draft.cluster,
            number: draft.number,
            not_after_height: draft.not_after_height,
            scope: draft.scope,
            action: draft.action,
            payload_hash: sha256(&[&payload]),
            payload_len: payload.len() as u32,
        };
        let signature = key.sign_entry(chain, &header);
        Self {
            header,
            payload,
            signature,
        }
    }

    /// Signs the submission of `task`.
    #[must_use]
    pub fn submit(key: &DeviceKey, chain: &ChainId, draft: EntryDraft, task: &Task) -> Self {
        let payload = encode(task).try_into().expect("a task's bound is the payload's bound");
        Self::sign(
            key,
            chain,
            EntryDraft {
                action: Action::Submit,
                ..draft
            },
            payload,
        )
    }

    /// The bytes that were signed.
    #[must_use]
    pub fn preimage(&self, chain: &ChainId) -> Vec<u8> {
        self.header.preimage(chain)
    }

    /// The entry's identity.
    #[must_use]
    pub fn id(&self, chain: &ChainId) -> EntryId {
        self.header.id(chain)
    }

    /// Static checks that need no key.
    ///
    /// # Errors
    /// [`StaticFault`]: refuse and count it against the sender.
    pub fn check_shape(&self) -> Result<(), StaticFault> {
        if self.payload.len() != self.header.payload_len as usize
            || sha256(&[&self.payload]) != self.header.payload_hash
        {
            return Err(StaticFault::WrongPayload {
                got: self.payload.len(),
                want: self.header.payload_len,
            });
        }
        if self.header.number > NUMBER_MAX {
            return Err(StaticFault::NumberTooLarge(self.header.number));
        }
        if self.header.action == Action::Submit {
            self.task().map_err(StaticFault::BadTask)?;
        }
        Ok(())
    }

    /// The submitted task, decoded from the payload of a `Submit`.
    ///
    /// # Errors
    /// If the payload is no valid task.
    pub fn task(&self) -> Result<Task, crate::codec::DecodeError> {
        crate::codec::decode(&self.payload)
    }

    /// Whether the signature verifies under `key`. About 30 us.
    #[must_use]
    pub fn is_signed_by(&self, chain: &ChainId, key: &AdmittedKey) -> bool {
        self.is_signature_over(&self.preimage(chain), key)
    }

    /// The same, for who has the [`preimage`](Self::preimage) at hand.
    #[must_use]
    pub fn is_signature_over(&self, preimage: &[u8], key: &AdmittedKey) -> bool {
        key.verifies(preimage, &self.signature) || bug::active(Bug::AuthorUnchecked)
    }

    /// All static checks, with the keys that `registry` ever recorded.
    #[must_use]
    pub fn check(self, registry: &Registry) -> StaticVerdict {
        self.check_with(registry, &mut VerifyEach)
    }

    /// The same, asking `oracle` whether a signature is good under a key.
    #[must_use]
    pub fn check_with(self, registry: &Registry, oracle: &mut impl SignatureOracle) -> StaticVerdict {
        if let Err(fault) = self.check_shape() {
            return StaticVerdict::Bad(fault);
        }
        let Some(key) = registry.key(&self.header.author, self.header.key_version) else {
            return StaticVerdict::UnknownKey;
        };
        if oracle.is_signed_by(&self, registry.chain(), key) {
            StaticVerdict::Good(Verified::new(self))
        } else {
            StaticVerdict::Bad(StaticFault::BadSignature)
        }
    }
}

/// Answers "is this signature good under this key", possibly from memory.
///
/// What may be remembered is exactly that pair; whether the key is the author's is looked up in the
/// state each time.
pub trait SignatureOracle {
    /// Whether `entry` was signed with `key` for `chain`.
    fn is_signed_by(&mut self, entry: &SignedEntry, chain: &ChainId, key: &AdmittedKey) -> bool;
}

/// The oracle that remembers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerifyEach;

impl SignatureOracle for VerifyEach {
    fn is_signed_by(&mut self, entry: &SignedEntry, chain: &ChainId, key: &AdmittedKey) -> bool {
        entry.is_signed_by(chain, key)
    }
}

/// What an author fills in; digest and length of the payload follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryDraft {
    /// Who signs.
    pub author: DeviceId,
    /// With which of its keys.
    pub key_version: KeyVersion,
    /// The cluster whose log it shall enter.
    pub cluster: ClusterId,
    /// Number in the stream.
    pub number: EntryNumber,
    /// Latest global height.
    pub not_after_height: Height,
    /// Scope of the task it is about.
    pub scope: Scope,
    /// What is asked for.
    pub action: Action,
}

impl Wire for SignedEntry {
    const BYTES_MAX: usize = limits::ENTRY_BYTES_MAX;
}

/// One item of a cluster's Raft log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)]
pub enum LogEntry {
    /// Signed by its author.
    Author(SignedEntry),
    /// Closes the open batch early, if it is `seq` and not empty.
    Cut {
        /// The batch meant.
        seq: BatchSeq,
    },
    /// Closes the open batch early, if it is `seq` and empty: a sign of life.
    Beat {
        /// The batch meant.
        seq: BatchSeq,
    },
    /// Changes the roster; travels in the batch.
    Roster(RosterChange),
    /// Part of a finalized block on its way down.
    GlobalAdvance(AdvancePart),
    /// News of the registry, kept for the record; changes nothing in `apply`.
    RegistryNotice(Payload),
}

impl Wire for LogEntry {
    const BYTES_MAX: usize = limits::LOG_ENTRY_BYTES_MAX;
}
