//! Remembers which signatures were found good, so that an entry is verified once per process and not
//! at admission, append, apply and attestation each; and prepares the keys that sign most.
//!
//! # Rules
//! * What is remembered is exactly "this signature over these bytes verifies under this key". Whether
//!   the key is the author's is looked up in the state each time.
//! * A bad signature is not remembered: whoever sends it pays for the check.
//! * Memory is bounded: a signature takes the place of another one, a busy key that of the one that was idle longest.

#![allow(clippy::disallowed_types, reason = "looked up by signature and never iterated")]

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::BuildHasherDefault,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use common::{
    bug::{self, Bug},
    crypto::{AdmittedKey, PreparedKey, Signature},
    entry::{EntryHeader, SignatureOracle, SignedEntry},
    first_bytes::FirstBytes,
    ids::ChainId,
};

/// Signatures remembered: more than the entries between an admission and the certificate of their batch.
const REMEMBERED_MAX: usize = 16_384;
/// Keys of which is known how much they sign.
const KEYS_MAX: usize = 32;
/// From how many signatures on a key is worth its table.
const BUSY: u32 = 32;

/// How much a key signs.
#[derive(Default)]
struct Use {
    signatures: u32,
    /// Counts all signatures of all keys.
    last: u64,
    prepared: Option<Arc<PreparedKey>>,
}

/// What a signature is good for.
#[derive(PartialEq, Eq)]
struct Good {
    header: EntryHeader,
    chain: ChainId,
    key: [u8; 32],
}

#[derive(Default)]
struct Remembered {
    /// Boxed, since a table that grows has more places than lines.
    good: HashMap<Signature, Box<Good>, BuildHasherDefault<FirstBytes>>,
    /// Oldest first.
    order: VecDeque<Signature>,
    keys: BTreeMap<AdmittedKey, Use>,
    checked: u64,
}

impl Remembered {
    fn remember(&mut self, signature: Signature, good: Good) {
        if self.good.insert(signature, Box::new(good)).is_none() {
            self.order.push_back(signature);
        }
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.good.remove(&oldest);
        }
    }

    /// Counts a signature of `key`. Its multiples, if they are known or wanted by now.
    fn busy(&mut self, key: &AdmittedKey) -> Option<Arc<PreparedKey>> {
        self.checked += 1;
        if !self.keys.contains_key(key) && self.keys.len() == KEYS_MAX {
            let idle = self
                .keys
                .iter()
                .min_by_key(|(_, known)| known.last)
                .map(|(key, _)| *key);
            idle.and_then(|key| self.keys.remove(&key));
        }
        let known = self.keys.entry(*key).or_default();
        known.last = self.checked;
        known.signatures = known.signatures.saturating_add(1);
        if known.signatures >= BUSY && known.prepared.is_none() {
            known.prepared = Some(Arc::new(PreparedKey::new(*key)));
        }
        known.prepared.clone()
    }
}

/// The memory. Clones share it.
#[derive(Clone, Default)]
pub struct Signatures(Arc<Mutex<Remembered>>);

impl Signatures {
    /// Whether `entry` was signed with `key` for `chain`.
    #[must_use]
    pub fn is_good(&self, entry: &SignedEntry, chain: &ChainId, key: &AdmittedKey) -> bool {
        let good = Good {
            header: entry.header.clone(),
            chain: *chain,
            key: key.to_bytes(),
        };
        let prepared = {
            let mut remembered = self.lock();
            if remembered
                .good
                .get(&entry.signature)
                .is_some_and(|known| **known == good)
            {
                return true;
            }
            remembered.busy(key)
        };
        let message = entry.preimage(chain);
        let verifies = match prepared {
            Some(prepared) => prepared.verifies(&message, &entry.signature),
            None => key.verifies(&message, &entry.signature),
        };
        if !verifies && !bug::active(Bug::AuthorUnchecked) {
            return false;
        }
        self.lock().remember(entry.signature, good);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        // Guarded sections leave the memory whole: a lost line is a check more.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SignatureOracle for Signatures {
    fn is_signed_by(&mut self, entry: &SignedEntry, chain: &ChainId, key: &AdmittedKey) -> bool {
        self.is_good(entry, chain, key)
    }
}

#[cfg(test)]
mod tests {
    use common::{
        entry::Action,
        ids::{ClusterId, TaskId},
        task::Scope,
        testing::Fleet,
    };

    use super::*;

    const C1: ClusterId = ClusterId(0);

    fn cancel(fleet: &Fleet, author: &str, number: u64) -> SignedEntry {
        let action = Action::Cancel { task: TaskId([1; 32]) };
        fleet.entry(author, C1, number, Scope::Fleet, action)
    }

    fn key(fleet: &Fleet, label: &str) -> AdmittedKey {
        AdmittedKey::admit(&fleet.key(label).public()).unwrap()
    }

    #[test]
    fn signature_is_remembered_for_its_own_bytes_key_and_chain_only() {
        let fleet = Fleet::dev();
        let (op1, op2) = (key(&fleet, "op1"), key(&fleet, "c1-1"));
        let signatures = Signatures::default();
        let good = cancel(&fleet, "op1", 1);
        for _ in 0..2 {
            assert!(signatures.is_good(&good, &fleet.chain, &op1));
            assert!(!signatures.is_good(&good, &fleet.chain, &op2), "another key");
            assert!(!signatures.is_good(&good, &ChainId([9; 32]), &op1), "another fleet");
            let mut other = good.clone();
            other.header.number = other.header.number.next();
            assert!(!signatures.is_good(&other, &fleet.chain, &op1), "other content");
            let mut bent = good.clone();
            bent.signature.s[0] ^= 1;
            assert!(!signatures.is_good(&bent, &fleet.chain, &op1), "another signature");
        }
        assert_eq!(signatures.lock().good.len(), 1, "bad ones are not remembered");
    }

    #[test]
    fn busy_keys_are_prepared_and_say_the_same() {
        let fleet = Fleet::dev();
        let op1 = key(&fleet, "op1");
        let signatures = Signatures::default();
        for number in 1..=u64::from(2 * BUSY) {
            let good = cancel(&fleet, "op1", number);
            let mut bent = good.clone();
            bent.signature.r[3] ^= 4;
            assert!(signatures.is_good(&good, &fleet.chain, &op1));
            assert!(!signatures.is_good(&bent, &fleet.chain, &op1));
        }
        assert!(signatures.lock().keys[&op1].prepared.is_some());
    }

    #[test]
    fn memory_of_signatures_and_keys_is_bounded() {
        let mut remembered = Remembered::default();
        for i in 0..KEYS_MAX as u8 + 9 {
            let key = AdmittedKey::admit(&common::crypto::DeviceKey::from_seed(&[i; 32]).public()).unwrap();
            for _ in 0..BUSY {
                remembered.busy(&key);
            }
        }
        assert_eq!(remembered.keys.len(), KEYS_MAX);
        let header = cancel(&Fleet::dev(), "op1", 1).header;
        for i in 0..REMEMBERED_MAX as u32 + 9 {
            let mut signature = Signature::default();
            signature.r[..4].copy_from_slice(&i.to_be_bytes());
            let good = Good {
                header: header.clone(),
                chain: ChainId::default(),
                key: [0; 32],
            };
            remembered.remember(signature, good);
        }
        assert_eq!(remembered.good.len(), REMEMBERED_MAX);
        assert_eq!(remembered.order.len(), REMEMBERED_MAX);
    }
}
