//! Entries that passed the checks and are not in the log yet.
//!
//! A lane sends its next request before the last one is in the log, and openraft takes requests of several
//! streams in any order. The history that a request claims must therefore agree also with what was let
//! through just before: else two requests, each good by itself, would meet in the log as a fork, and the
//! log has only one answer to that, which is to stop the member.
//!
//! # Invariants
//! * Every entry that was admitted and not answered by openraft is known here, with its chain, whether or not
//!   the peer still waits for the answer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use common::ids::Digest;

use super::codec::WireLogId;

/// Chains by log id, and how many requests claim each.
type Claims = BTreeMap<WireLogId, (Digest, usize)>;

/// What is on its way. Clones share it.
#[derive(Clone, Default)]
pub(super) struct OnTheWay(Arc<Mutex<Claims>>);

/// The ids of one request, known until this is dropped.
pub(super) struct Claim {
    ids: Vec<WireLogId>,
    of: OnTheWay,
}

/// The view while a request is checked: no other is admitted meanwhile.
pub(super) struct Checking<'a> {
    claims: MutexGuard<'a, Claims>,
    of: &'a OnTheWay,
}

impl OnTheWay {
    fn lock(&self) -> MutexGuard<'_, Claims> {
        // Counters and digests are whole after each statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn check(&self) -> Checking<'_> {
        Checking {
            claims: self.lock(),
            of: self,
        }
    }
}

impl Checking<'_> {
    /// The chain at `id`, if an entry with this id is on its way.
    pub fn chain_at(&self, id: WireLogId) -> Option<Digest> {
        self.claims.get(&id).map(|(chain, _)| *chain)
    }

    /// Lets a request through. Its chains do not contradict [`chain_at`](Self::chain_at).
    pub fn admit(mut self, chains: impl IntoIterator<Item = (WireLogId, Digest)>) -> Claim {
        let mut ids = Vec::new();
        for (id, chain) in chains {
            let (held, count) = self.claims.entry(id).or_insert((chain, 0));
            assert_eq!(*held, chain, "chains are compared before they are admitted");
            *count += 1;
            ids.push(id);
        }
        Claim {
            ids,
            of: self.of.clone(),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = self.of.lock();
        for id in &self.ids {
            if let Some((_, count)) = claims.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    claims.remove(id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{LogIndex, RaftNodeId, Term};

    use super::*;

    #[test]
    fn entry_is_known_until_the_last_request_with_it_was_answered() {
        let id = WireLogId {
            term: Term(1),
            leader: RaftNodeId(2),
            index: LogIndex(3),
        };
        let (on_the_way, chain) = (OnTheWay::default(), Digest([7; 32]));
        let first = on_the_way.check().admit([(id, chain)]);
        let again = on_the_way.check().admit([(id, chain)]);
        drop(first);
        assert_eq!(on_the_way.check().chain_at(id), Some(chain));
        drop(again);
        assert_eq!(on_the_way.check().chain_at(id), None);
    }
}
