//! What each executed final block decided, for proofs.
//!
//! Kept in memory, like the tasks that it is about, and computed again from the blocks at a start.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use common::{global_queue::Outcome, ids::Height};

/// Outcomes by height; clones share it.
#[derive(Clone, Default)]
pub struct Outcomes(Arc<Mutex<BTreeMap<Height, Arc<Vec<Outcome>>>>>);

impl Outcomes {
    /// Records what the final block at `height` decided.
    pub fn record(&self, height: Height, outcomes: Arc<Vec<Outcome>>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(height, outcomes);
    }

    /// What the final block at `height` decided, if it was executed.
    #[must_use]
    pub fn at(&self, height: Height) -> Option<Arc<Vec<Outcome>>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&height).cloned()
    }
}
