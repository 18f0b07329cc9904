//! Small sets of validators and a stand-in for the global queue, for tests.

use std::collections::BTreeMap;

use common::{
    block::Block,
    codec::Label,
    crypto::{AdmittedKey, ConsensusKey, sha256},
    ids::{BatchSeq, BlockTime, ChainId, ClusterId, Digest, Epoch, Founding, NodeIdx},
    validator_set::{Validator, ValidatorSet},
};

use crate::{
    config::{Config, Timing},
    ledger::{Cursor, Execution, Ledger, Roots},
};

/// The fleet of all tests.
pub const CHAIN: ChainId = ChainId([7; 32]);
/// Block time of genesis.
pub const GENESIS_TIME: BlockTime = BlockTime(1_000_000_000);
/// Clusters of the fleet.
pub const CLUSTERS: u32 = 2;

/// The key of the validator at `position`.
pub fn key(position: u8) -> ConsensusKey {
    ConsensusKey::from_seed(&[position + 1; 32])
}

/// Validators 0, 1, 2, ... with these weights.
pub fn validator_set(weights: &[u64]) -> ValidatorSet {
    let members = (0u8..)
        .zip(weights)
        .map(|(position, weight)| Validator {
            device: NodeIdx(u32::from(position)),
            key: AdmittedKey::admit(&key(position).public()).unwrap(),
            weight: *weight,
            region: Label::default(),
        })
        .collect();
    ValidatorSet::new(Epoch(0), members)
}

/// Timers for one-way delays of up to `delay_us`.
pub fn timing(delay_us: u64) -> Timing {
    Timing {
        delay_us_min: delay_us,
        delay_us_max: 2 * delay_us,
        idle_block_interval_us: 20 * delay_us,
        block_time_bound_us: 50 * delay_us,
    }
}

/// The configuration of validator `me`.
pub fn config(set: &ValidatorSet, me: u32, timing: Timing) -> Config {
    Config::new(CHAIN, set.clone(), Some(NodeIdx(me)), timing)
}

/// Hashes every block into a digest, and counts batches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chained {
    state: Digest,
    outcomes: Digest,
    cursors: BTreeMap<ClusterId, Cursor>,
}

impl Chained {
    /// The state before the first block.
    pub fn genesis() -> Self {
        let first = Cursor {
            founding: Founding(0),
            next: BatchSeq(1),
            prev_digest: Digest::default(),
        };
        Self {
            state: Digest([1; 32]),
            outcomes: Digest([2; 32]),
            cursors: (0..CLUSTERS).map(|cluster| (ClusterId(cluster), first)).collect(),
        }
    }

    /// A ledger at genesis.
    pub fn ledger() -> Ledger<Self> {
        Ledger::genesis(CHAIN, GENESIS_TIME, Self::genesis())
    }
}

impl Execution for Chained {
    type Batches = ();

    fn apply(&mut self, block: &Block, (): &()) {
        for batch in &block.refs {
            if let Some(cursor) = self.cursors.get_mut(&batch.cluster).filter(|c| c.is_next(batch)) {
                *cursor = cursor.after(batch);
            }
        }
        self.outcomes = block.header.refs_root;
        self.state = sha256(&[&self.state.0, &block.digest().0]);
    }

    fn roots(&self) -> Roots {
        Roots {
            state: self.state,
            outcomes: self.outcomes,
        }
    }

    fn cursors(&self) -> &BTreeMap<ClusterId, Cursor> {
        &self.cursors
    }
}
