//! Whom a validator that was down asks for finalized blocks, and from which height.
//! In: what peers are known to hold, answers, failures. Out: one request at a time.
//!
//! # Rules
//! * Upon evidence that a height is final (a finalization that a quorum signed, or a peer's word) more
//!   than [`FETCHED_HEIGHTS_MAX`] above mine: ask one peer for everything from my final height + 1.
//! * Upon an answer: its blocks are taken if each follows the one before and carries its own proof of
//!   finality. Anything else, or nothing new, or no answer: the peer is dropped until it connects again.
//!
//! # Invariants
//! * A peer's height only grows, and is never below my own final height when it is asked.
//! * One request is under way at most.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{Height, NodeIdx};

/// Up to so many heights behind, blocks are fetched one by one along the certificates: cheaper, and the
/// blocks above the last final one come along.
pub const FETCHED_HEIGHTS_MAX: u64 = 4;
/// Final blocks that may wait for their execution before more are asked for.
pub const UNEXECUTED_MAX: u64 = 256;

/// State of block sync.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sync {
    /// Heights that peers are known to hold.
    heights: BTreeMap<NodeIdx, Height>,
    /// Peers that did not deliver what they claimed.
    dropped: BTreeSet<NodeIdx>,
    /// The request under way.
    asked: Option<NodeIdx>,
}

impl Sync {
    /// `peer` holds all final blocks up to `height`, it says or has signed.
    pub fn learn(&mut self, peer: NodeIdx, height: Height) {
        let known = self.heights.entry(peer).or_default();
        *known = height.max(*known);
    }

    /// `peer` is connected anew: what it failed to do before is forgotten.
    pub fn connected(&mut self, peer: NodeIdx) {
        self.dropped.remove(&peer);
    }

    /// `peer` answered with blocks, or failed to. `advanced`: whether the answer brought anything new.
    pub fn answered(&mut self, peer: NodeIdx, advanced: bool) {
        if self.asked == Some(peer) {
            self.asked = None;
        }
        if !advanced {
            self.dropped.insert(peer);
        }
    }

    /// Forgets the request under way and all failures. Called when a view timer passes, so that a lost
    /// answer, or a moment in which nobody could deliver, stops nothing for good.
    pub fn retry(&mut self) {
        self.asked = None;
        self.dropped.clear();
    }

    /// Whom to ask now, if anybody. `finalized`, `executed`: my own heights.
    pub fn poll(&mut self, finalized: Height, executed: Height) -> Option<NodeIdx> {
        if self.asked.is_some() || finalized.0 - executed.0 > UNEXECUTED_MAX {
            return None;
        }
        let candidates = self
            .heights
            .iter()
            .filter(|(peer, height)| Self::is_far(**height, finalized) && !self.dropped.contains(peer));
        let (peer, _) = candidates.max_by_key(|(peer, height)| (**height, std::cmp::Reverse(**peer)))?;
        self.asked = Some(*peer);
        self.asked
    }

    /// Whether `height` is so far above `finalized` that it is not worth walking there block by block.
    #[must_use]
    pub fn is_far(height: Height, finalized: Height) -> bool {
        height.0 > finalized.0.saturating_add(FETCHED_HEIGHTS_MAX)
    }

    /// Whether anybody is known, or says, to be that far ahead.
    #[must_use]
    pub fn has_somebody_to_ask(&self, finalized: Height) -> bool {
        self.heights.values().any(|height| Self::is_far(*height, finalized))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeIdx = NodeIdx(1);
    const B: NodeIdx = NodeIdx(2);

    #[test]
    fn nobody_is_asked_for_what_is_near_or_below() {
        let mut sync = Sync::default();
        sync.learn(A, Height(10));
        assert_eq!(sync.poll(Height(10), Height(10)), None);
        assert_eq!(sync.poll(Height(6), Height(6)), None);
        assert_eq!(sync.poll(Height(5), Height(5)), Some(A));
        assert_eq!(sync.poll(Height(5), Height(5)), None, "one request at a time");
    }

    #[test]
    fn a_peers_height_only_grows() {
        let mut sync = Sync::default();
        sync.learn(A, Height(10));
        sync.learn(A, Height(3));
        assert_eq!(sync.poll(Height(0), Height(0)), Some(A));
    }

    #[test]
    fn a_peer_that_does_not_deliver_is_dropped_until_it_connects_again() {
        let mut sync = Sync::default();
        sync.learn(A, Height(20));
        sync.learn(B, Height(10));
        assert_eq!(sync.poll(Height(0), Height(0)), Some(A), "the highest first");
        sync.answered(A, false);
        assert_eq!(sync.poll(Height(0), Height(0)), Some(B));
        sync.answered(B, true);
        assert_eq!(sync.poll(Height(1), Height(1)), Some(B));
        sync.answered(B, false);
        assert_eq!(sync.poll(Height(1), Height(1)), None);
        sync.connected(A);
        assert_eq!(sync.poll(Height(1), Height(1)), Some(A));
    }

    #[test]
    fn nothing_more_is_asked_for_while_execution_is_far_behind() {
        let mut sync = Sync::default();
        sync.learn(A, Height(10_000));
        assert_eq!(sync.poll(Height(1_000), Height(1_000 - UNEXECUTED_MAX - 1)), None);
        assert_eq!(sync.poll(Height(1_000), Height(1_000 - UNEXECUTED_MAX)), Some(A));
    }
}
