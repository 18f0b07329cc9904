//! Which author signatures were found good, so that execution need not check them again.
//! In: batches as they come in, off the consensus task. Out: answers to execution.
//!
//! # Rules
//! * Upon a batch that is taken: verify each entry's signature once, under the key the registry has.
//! * Remembered is "this signature under this key over these bytes", nothing about whose key it is:
//!   that is looked up in the state on which the block executes.
//! * A bad signature is not remembered: execution finds out itself.
//!
//! # Why
//! A block may refer to thousands of entries; thirty microseconds each would hold up votes.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use common::{
    batch::{BatchItem, CertifiedBatch},
    crypto::{AdmittedKey, sha256},
    entry::{SignatureOracle, SignedEntry},
    ids::{ChainId, Digest},
    registry::Registry,
};

/// Signatures that are remembered; the oldest is forgotten first.
const REMEMBERED_MAX: usize = 65_536;

#[derive(Default)]
struct Known {
    good: BTreeSet<Digest>,
    order: VecDeque<Digest>,
}

/// The memory; clones share it.
#[derive(Clone)]
pub struct VerifiedEntries {
    registry: Arc<Registry>,
    known: Arc<Mutex<Known>>,
}

impl VerifiedEntries {
    /// Remembers nothing yet. Keys are those of `registry`.
    #[must_use]
    pub fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            known: Arc::default(),
        }
    }

    fn name(entry: &SignedEntry, preimage: &[u8], key: &AdmittedKey) -> Digest {
        sha256(&[&key.to_bytes(), &entry.signature.to_bytes(), preimage])
    }

    fn is_known(&self, name: &Digest) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.good.contains(name)
    }

    fn remember(&self, name: Digest) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.good.insert(name) {
            return;
        }
        known.order.push_back(name);
        if known.order.len() > REMEMBERED_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.good.remove(&oldest);
        }
    }

    /// Verifies the author signatures in `batch` that are not known to be good.
    pub fn learn(&self, batch: &CertifiedBatch) {
        let mut oracle = self.clone();
        for row in &batch.entries {
            if let BatchItem::Author(entry) = &row.item
                && let Some(key) = self.registry.key(&entry.header.author, entry.header.key_version)
            {
                oracle.is_signed_by(entry, self.registry.chain(), key);
            }
        }
    }
}

impl SignatureOracle for VerifiedEntries {
    fn is_signed_by(&mut self, entry: &SignedEntry, chain: &ChainId, key: &AdmittedKey) -> bool {
        let preimage = entry.preimage(chain);
        let name = Self::name(entry, &preimage, key);
        if self.is_known(&name) {
            return true;
        }
        let is_good = entry.is_signature_over(&preimage, key);
        if is_good {
            self.remember(name);
        }
        is_good
    }
}

#[cfg(test)]
mod tests {
    use common::{
        ids::ClusterId,
        task::Scope,
        testing::{ClusterLog, Fleet, task},
    };

    use super::*;

    #[test]
    fn known_signature_is_not_taken_for_another_key_or_other_bytes() {
        let fleet = Fleet::dev();
        let entry = fleet.submit("op1", ClusterId(0), 1, Scope::Fleet, &task("k"));
        let mut log = ClusterLog::new(&fleet, ClusterId(0));
        let batch = log.granted(&fleet, vec![entry.clone()]);
        let mut verified = VerifiedEntries::new(Arc::new(fleet.registry.clone()));
        verified.learn(&batch);
        let key = *fleet.registry.key(&fleet.id("op1"), Default::default()).unwrap();
        assert!(verified.is_known(&VerifiedEntries::name(&entry, &entry.preimage(&fleet.chain), &key)));
        assert!(verified.is_signed_by(&entry, &fleet.chain, &key));
        let other = *fleet.registry.key(&fleet.id("c1-1"), Default::default()).unwrap();
        assert!(!verified.is_signed_by(&entry, &fleet.chain, &other));
        let mut forged = entry;
        forged.header.scope = Scope::Cluster;
        assert!(!verified.is_signed_by(&forged, &fleet.chain, &key));
    }

    #[test]
    fn memory_is_bounded() {
        let fleet = Fleet::dev();
        let verified = VerifiedEntries::new(Arc::new(fleet.registry.clone()));
        for i in 0..REMEMBERED_MAX as u64 + 10 {
            verified.remember(sha256(&[&i.to_be_bytes()]));
        }
        let known = verified.known.lock().unwrap();
        assert_eq!((known.good.len(), known.order.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
    }
}
