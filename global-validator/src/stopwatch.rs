//! How long blocks and batches take until they are final, for operators and benchmarks; nothing is decided by it.
//!
//! # Rules
//! * A block is timed by the validator that proposed it: from its draft until it is final and durable there.
//! * A batch is timed by each validator: from when it was durable there until a final block there names it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use common::{block::FinalizedBlock, codec::Label, ids::Digest, wire::op::Times};

/// Samples kept of each sort, and beginnings that wait for their end.
const KEPT_MAX: usize = 4_096;

/// The measurements; clones share them.
#[derive(Clone, Default)]
pub struct Stopwatch(Arc<Mutex<Both>>);

#[derive(Default)]
struct Both {
    blocks: Timed,
    batches: Timed,
}

/// Times of one sort.
#[derive(Default)]
struct Timed {
    begun_us: BTreeMap<Digest, u64>,
    order: VecDeque<Digest>,
    took_us: VecDeque<u32>,
}

impl Timed {
    fn begin(&mut self, what: Digest, now_us: u64) {
        if self.begun_us.contains_key(&what) {
            return;
        }
        self.begun_us.insert(what, now_us);
        self.order.push_back(what);
        if self.order.len() > KEPT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.begun_us.remove(&oldest);
        }
    }

    fn end(&mut self, what: &Digest, now_us: u64) {
        let Some(begun_us) = self.begun_us.remove(what) else {
            return;
        };
        if self.took_us.len() == KEPT_MAX {
            self.took_us.pop_front();
        }
        let took_us = now_us.saturating_sub(begun_us);
        self.took_us.push_back(u32::try_from(took_us).unwrap_or(u32::MAX));
    }

    fn times(&self, what: &str) -> Times {
        let mut took_us: Vec<u32> = self.took_us.iter().copied().collect();
        took_us.sort_unstable();
        let below = |percent: usize| {
            let at = (took_us.len() * percent).div_ceil(100).saturating_sub(1);
            took_us.get(at).copied().unwrap_or(0)
        };
        Times {
            what: Label::new(what).expect("our words are short and plain"),
            count: took_us.len() as u32,
            p50_us: below(50),
            p99_us: below(99),
        }
    }
}

impl Stopwatch {
    fn with<T>(&self, work: impl FnOnce(&mut Both) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// This validator proposes a block.
    pub fn proposed(&self, block: Digest, now_us: u64) {
        self.with(|both| both.blocks.begin(block, now_us));
    }

    /// A batch is durable here.
    pub fn batch_stored(&self, batch: Digest, now_us: u64) {
        self.with(|both| both.batches.begin(batch, now_us));
    }

    /// Blocks are final and durable here.
    pub fn are_final(&self, blocks: &[FinalizedBlock], now_us: u64) {
        if blocks.is_empty() {
            return;
        }
        self.with(|both| {
            for finalized in blocks {
                both.blocks.end(&finalized.block.digest(), now_us);
                for named in finalized.block.refs.iter() {
                    both.batches.end(&named.digest, now_us);
                }
            }
        });
    }

    /// What was measured so far.
    #[must_use]
    pub fn times(&self) -> Vec<Times> {
        self.with(|both| {
            vec![
                both.blocks.times("proposal_to_final"),
                both.batches.times("batch_to_final"),
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u64) -> Digest {
        let mut digest = Digest::default();
        digest.0[..8].copy_from_slice(&n.to_be_bytes());
        digest
    }

    #[test]
    fn only_what_began_here_is_timed_and_once() {
        let mut timed = Timed::default();
        timed.begin(digest(1), 100);
        timed.begin(digest(1), 200);
        timed.end(&digest(1), 350);
        timed.end(&digest(1), 900);
        timed.end(&digest(2), 900);
        let times = timed.times("x");
        assert_eq!((times.count, times.p50_us, times.p99_us), (1, 250, 250));
    }

    #[test]
    fn what_never_ends_is_forgotten_and_old_samples_leave() {
        let mut timed = Timed::default();
        let most = KEPT_MAX as u64;
        (0..2 * most).for_each(|n| timed.begin(digest(n), 0));
        assert_eq!((timed.begun_us.len(), timed.order.len()), (KEPT_MAX, KEPT_MAX));
        for n in 2 * most..4 * most {
            timed.begin(digest(n), 0);
            timed.end(&digest(n), n);
        }
        assert_eq!((timed.times("x").count as usize, timed.begun_us.len()), (KEPT_MAX, 0));
        assert!(timed.took_us.iter().all(|us| u64::from(*us) >= 3 * most));
    }
}
