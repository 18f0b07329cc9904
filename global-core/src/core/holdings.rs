//! How much a core holds of what follows the chain.

use std::collections::BTreeMap;

use common::{
    ids::{ClusterId, Height},
    limits::ROOT_LAG,
};

use super::GlobalCore;
use crate::{consensus::LOOK_AHEAD, ledger::Execution};

/// How much a core holds.
///
/// What is open follows what the fleet does: views pass while nothing becomes final, and batches wait while they are not executed.
/// What is held follows what is open, whatever others send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Views above the last final one, up to the one that it is in.
    pub views_open: u64,
    /// Views of which it holds a proposal, votes or a certificate.
    pub views: u64,
    /// Final heights that were not executed at the time of the question before.
    pub heights_open: u64,
    /// Blocks, with the states of those that were executed.
    pub blocks: u64,
    /// Certified batches, of each cluster that has any.
    pub batches: BTreeMap<ClusterId, u64>,
}

impl Holdings {
    /// Greatest right number of views: single votes are counted a little ahead.
    #[must_use]
    pub fn views_max(&self) -> u64 {
        self.views_open + LOOK_AHEAD
    }

    /// Greatest right number of blocks: one that is held and one that a quorum agreed on in each view, and the final ones, of which
    /// the next execution needs some that were executed.
    #[must_use]
    pub fn blocks_max(&self) -> u64 {
        2 * self.views_max() + self.heights_open + ROOT_LAG
    }
}

impl<E: Execution> GlobalCore<E> {
    /// What it holds now. `before`: the height that was executed when this was asked the last time, before the last step. What is
    /// executed in one step is dropped in the next one.
    #[must_use]
    pub fn holdings(&self, before: Height) -> Holdings {
        let tip = self.tip();
        Holdings {
            views_open: self.view().0 - tip.view.0,
            views: self.consensus.views_held() as u64,
            heights_open: tip.height.0 - before.0,
            blocks: self.ledger.blocks_held() as u64,
            batches: self.pool.batches_held(),
        }
    }
}
