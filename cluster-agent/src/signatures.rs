//! Remembers which signatures were found good, so that an entry is verified once per process and not
//! at admission, append, apply and attestation each.
//!
//! # Rules
//! * What is remembered is exactly "this signature over these bytes verifies under this key". Whether
//!   the key is the author's is looked up in the state each time.
//! * A bad signature is not remembered: whoever sends it pays for the check.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use common::{
    bug::{self, Bug},
    crypto::{AdmittedKey, sha256},
    entry::{SignatureOracle, SignedEntry},
    ids::{ChainId, Digest},
};

/// Signatures remembered: more than the entries between an admission and the certificate of their batch.
const REMEMBERED_MAX: usize = 16_384;

#[derive(Default)]
struct Remembered {
    good: BTreeSet<Digest>,
    order: VecDeque<Digest>,
}

/// The memory. Clones share it.
#[derive(Clone, Default)]
pub struct Signatures(Arc<Mutex<Remembered>>);

impl Signatures {
    /// Whether `entry` was signed with `key` for `chain`.
    #[must_use]
    pub fn is_good(&self, entry: &SignedEntry, chain: &ChainId, key: &AdmittedKey) -> bool {
        let message = entry.preimage(chain);
        let name = sha256(&[&entry.signature.to_bytes(), &key.to_bytes(), &message]);
        if self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .good
            .contains(&name)
        {
            return true;
        }
        if !key.verifies(&message, &entry.signature) && !bug::active(Bug::AuthorUnchecked) {
            return false;
        }
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.good.insert(name) {
            remembered.order.push_back(name);
        }
        if remembered.order.len() > REMEMBERED_MAX
            && let Some(oldest) = remembered.order.pop_front()
        {
            remembered.good.remove(&oldest);
        }
        true
    }
}

impl SignatureOracle for Signatures {
    fn is_signed_by(&mut self, entry: &SignedEntry, chain: &ChainId, key: &AdmittedKey) -> bool {
        self.is_good(entry, chain, key)
    }
}
