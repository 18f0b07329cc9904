//! Which leaders are not worth waiting for. Local, needs no agreement, and affects no safety.
//!
//! # Rule
//! A leader is *silent* if no proposal of it for any of its last [`SILENT_TURNS`] views has reached me,
//! however late, while a quorum was not silent. Its leader timer is 0.

use std::collections::BTreeMap;

use common::{
    ids::{NodeIdx, View},
    quorum::is_bft_quorum,
    validator_set::ValidatorSet,
};

/// Turns without a word after which a leader is silent.
pub const SILENT_TURNS: u32 = 3;

/// Turns that passed without a word, by leader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Elector {
    silent_turns: BTreeMap<NodeIdx, u32>,
}

impl Elector {
    /// A view of `leader` ended, and nothing of it had come.
    pub fn missed(&mut self, leader: NodeIdx) {
        let turns = self.silent_turns.entry(leader).or_default();
        *turns = turns.saturating_add(1);
    }

    /// A proposal of `leader` came, however late, or its block was notarized.
    pub fn heard(&mut self, leader: NodeIdx) {
        self.silent_turns.remove(&leader);
    }

    /// Whether the leader of `view` is silent.
    #[must_use]
    pub fn is_silent(&self, view: View, set: &ValidatorSet) -> bool {
        let is_silent = |device: &NodeIdx| self.silent_turns.get(device).is_some_and(|t| *t >= SILENT_TURNS);
        let speaking = set.members().iter().filter(|v| !is_silent(&v.device)).map(|v| v.weight);
        is_silent(&set.leader(view)) && is_bft_quorum(speaking.sum(), set.total_weight())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fixture::validator_set;

    #[test]
    fn a_leader_is_silent_after_so_many_turns_and_until_it_speaks() {
        let set = validator_set(&[1, 1, 1, 1]);
        let view = View(7);
        let leader = set.leader(view);
        let mut elector = Elector::default();
        for _ in 0..SILENT_TURNS {
            assert!(!elector.is_silent(view, &set));
            elector.missed(leader);
        }
        assert!(elector.is_silent(view, &set));
        assert!(!elector.is_silent(view.next(), &set));
        elector.heard(leader);
        assert!(!elector.is_silent(view, &set));
    }

    #[test]
    fn nobody_is_skipped_when_no_quorum_speaks() {
        let set = validator_set(&[1, 1, 1, 1]);
        let mut elector = Elector::default();
        for device in [0, 1] {
            for _ in 0..SILENT_TURNS {
                elector.missed(NodeIdx(device));
            }
        }
        assert!((1..9).all(|view| !elector.is_silent(View(view), &set)));
    }
}
