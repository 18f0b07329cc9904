//! What authenticated devices did wrong, counted. Nothing is banned by it: banning a voter would let
//! an attacker provoke the loss of a quorum. Bounded by the registry, since only its devices count.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use common::ids::DeviceId;

#[derive(Debug, Default)]
pub(crate) struct Scores(Mutex<BTreeMap<DeviceId, u64>>);

impl Scores {
    /// Counts `points` against `device` and returns its sum.
    pub(crate) fn add(&self, device: DeviceId, points: u32) -> u64 {
        let mut scores = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let score = scores.entry(device).or_default();
        *score = score.saturating_add(points.into());
        *score
    }

    pub(crate) fn get(&self, device: &DeviceId) -> u64 {
        let scores = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        scores.get(device).copied().unwrap_or(0)
    }
}
