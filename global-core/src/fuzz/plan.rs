//! What a schedule is made of, and what may be wrong with it afterwards.

use crate::mutant::Mutant;

/// One schedule.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub weights: Vec<u64>,
    /// Positions of validators that are in the adversary's hands.
    pub byzantine: Vec<usize>,
    /// Positions that never start.
    pub down: Vec<usize>,
    pub delay_us: u64,
    pub jitter_us: u64,
    /// Before this the network does as it likes.
    pub heals_at_us: u64,
    pub loss_percent: u64,
    /// How much of what crosses a partition is lost.
    pub cut_percent: u64,
    pub crashes_per_validator: u64,
    pub batches_per_cluster: u64,
    /// Everybody stores one batch of each cluster this often; otherwise at random.
    pub feed_us: Option<u64>,
    /// When everybody stops and starts again at once.
    pub power_cuts_us: Vec<u64>,
    /// Until then no finalize vote arrives.
    pub finalize_votes_lost_until_us: u64,
    /// Whether a refusal of the guard is a failure. Without it only agreement and liveness are checked.
    pub is_guarded: bool,
    /// Blocks that everybody finalizes after the network healed.
    pub blocks_after: u64,
    pub mutant: Mutant,
}

impl Plan {
    /// A calm network of equals.
    pub fn calm(n: usize, delay_us: u64) -> Self {
        Self {
            seed: 1,
            weights: vec![1; n],
            byzantine: vec![],
            down: vec![],
            delay_us,
            jitter_us: 0,
            heals_at_us: 0,
            loss_percent: 0,
            cut_percent: 0,
            crashes_per_validator: 0,
            batches_per_cluster: 0,
            feed_us: None,
            power_cuts_us: vec![],
            finalize_votes_lost_until_us: 0,
            is_guarded: true,
            blocks_after: 10,
            mutant: Mutant::default(),
        }
    }
}

/// What a checker found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Two validators finalized different blocks at one height, or one saw that it happened.
    Fork(String),
    /// The network healed, and finality did not come.
    Stall(String),
    /// The core asked its guard for something that must never be signed.
    Guard(String),
}
