//! What a core must know before its first step.

use common::{
    genesis::Genesis,
    ids::{ChainId, NodeIdx},
    validator_set::ValidatorSet,
};

use crate::mutant::Mutant;

/// Bounds of the timers and of block time, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// Shortest D, the assumed one-way delay between validators.
    pub delay_us_min: u64,
    /// Longest D.
    pub delay_us_max: u64,
    /// A block at least this often.
    pub idle_block_interval_us: u64,
    /// b: how far a block's time may be from the clock of a voter.
    pub block_time_bound_us: u64,
}

/// Fixed for the life of a core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// The fleet.
    pub chain: ChainId,
    /// Who votes, with which weight.
    pub set: ValidatorSet,
    /// This validator, or `None` for one that only follows.
    pub me: Option<NodeIdx>,
    /// Bounds of timers.
    pub timing: Timing,
    pub(crate) mutant: Mutant,
}

/// Why a genesis file cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The region rule is not built yet; running without it would finalize with too few regions.
    #[error("regions_min is {0}: this version serves fleets without the region rule (0 or 1) only")]
    RegionRule(u8),
}

impl Config {
    /// The configuration of epoch 0.
    ///
    /// # Errors
    /// [`ConfigError`].
    ///
    /// # Panics
    /// If `genesis` was not validated: decoding it does.
    pub fn from_genesis(genesis: &Genesis, me: Option<NodeIdx>) -> Result<Self, ConfigError> {
        let timing = &genesis.timing;
        if timing.regions_min > 1 {
            return Err(ConfigError::RegionRule(timing.regions_min));
        }
        let us = |ms: u32| u64::from(ms) * 1_000;
        let set = ValidatorSet::from_genesis(genesis);
        let timing = Timing {
            delay_us_min: us(timing.delay_ms_min),
            delay_us_max: us(timing.delay_ms_max),
            idle_block_interval_us: us(timing.idle_block_interval_ms),
            block_time_bound_us: us(timing.clocks.block_time_bound_ms),
        };
        Ok(Self::new(genesis.chain_id(), set, me, timing))
    }

    /// A configuration of the given parts. A device outside `set` only follows.
    #[must_use]
    pub fn new(chain: ChainId, set: ValidatorSet, me: Option<NodeIdx>, timing: Timing) -> Self {
        let me = me.filter(|device| set.position(*device).is_some());
        Self {
            chain,
            set,
            me,
            timing,
            mutant: Mutant::NONE,
        }
    }
}
