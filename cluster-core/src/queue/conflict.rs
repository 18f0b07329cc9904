//! Proof in a finalized block that this state is not the fleet's.
//!
//! # Rules
//! * A header carries the roots of the height [`ROOT_LAG`] below it, and a quorum of the validators
//!   computed them. So the roots of the last [`ROOT_LAG`] heights are part of the state, and each block that
//!   follows ours is compared before it is executed.
//! * An own batch in a block is compared with the outbox.
//! * Upon a difference: it is recorded and nothing of the global queue is followed from then on. A member
//!   with a conflict stops as voter, its leases of fleet scope count no more, and it calls nothing final
//!   that rests on a refuted state.
//!
//! # Why
//! Everything else that is checked about a block is about what went in. This alone is about what came out,
//! so it finds what no input shows: another release, a bug, a bent copy of a batch, rotten memory.

use common::{
    block::{Block, Roots},
    global_queue::{BlockOutcome, GlobalQueue, outcome_root},
    ids::{Digest, Height},
    limits::ROOT_LAG,
    wire::op::Finality,
};
use serde::{Deserialize, Serialize};

use super::{COMMITTED, ClusterQueue, QueueEvent};
use crate::batcher::BatchConflict;

const _: () = assert!(ROOT_LAG > 0);

/// Why nothing of the global queue is followed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Conflict {
    /// This log was forked.
    #[error(transparent)]
    Batch(BatchConflict),
    /// The global state here is not the one that the validators certified.
    #[error(
        "the global state computed at height {height} is {computed}, validators certified {certified}; \
         nothing above height {last} is followed"
    )]
    State {
        /// Height whose roots differ: the first one, since every height is compared.
        height: Height,
        /// Roots computed here.
        computed: Roots,
        /// Roots in the finalized header [`ROOT_LAG`] above.
        certified: Roots,
        /// Height of the last block that took effect here.
        last: Height,
    },
}

/// Roots of the last heights, oldest first: those that the next headers will carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecentRoots([Roots; ROOT_LAG as usize]);

impl RecentRoots {
    /// Before the first block: heights up to [`ROOT_LAG`] carry the roots of the genesis state.
    pub(super) fn genesis(queue: &GlobalQueue) -> Self {
        let roots = Roots {
            state: queue.state_root(),
            outcomes: outcome_root(&[]),
        };
        Self([roots; ROOT_LAG as usize])
    }

    /// After the next block.
    pub(super) fn push(&mut self, outcome: &BlockOutcome) {
        self.0.rotate_left(1);
        self.0[self.0.len() - 1] = Roots {
            state: outcome.state_root,
            outcomes: outcome.outcome_root,
        };
    }

    /// State root after the last block.
    pub(super) fn newest(&self) -> Digest {
        self.0[self.0.len() - 1].state
    }

    fn oldest(&self) -> Roots {
        self.0[0]
    }
}

impl ClusterQueue {
    /// Records a conflict; from here on nothing of the global queue is followed.
    pub(super) fn quarantine(&mut self, conflict: Conflict, events: &mut Vec<QueueEvent>) {
        self.state.conflict = Some(conflict);
        events.push(QueueEvent::Quarantined(conflict));
    }

    /// The conflict, if a finalized block carries other roots than were computed here.
    ///
    /// A block on another parent says nothing about this chain: it is not followed, and not compared.
    pub(super) fn other_roots(&self, block: &Block) -> Option<Conflict> {
        let header = &block.header;
        let (certified, computed) = (Roots::carried_by(header), self.state.roots.oldest());
        if header.parent != self.global.tip() || certified == computed {
            return None;
        }
        Some(Conflict::State {
            height: Height(header.height.0.saturating_sub(ROOT_LAG)),
            computed,
            certified,
            last: self.global_height(),
        })
    }

    /// Why nothing of the global queue is followed any more, if a finalized block gave a proof.
    #[must_use]
    pub fn conflict(&self) -> Option<&Conflict> {
        self.state.conflict.as_ref()
    }

    /// Whether the global queue here is one that no quorum has. Nothing that rests on it is final.
    #[must_use]
    pub fn is_global_refuted(&self) -> bool {
        matches!(self.state.conflict, Some(Conflict::State { .. }))
    }

    /// What may be said of a finality that was read from this state.
    #[must_use]
    pub fn stated(&self, finality: Finality) -> Finality {
        match finality {
            Finality::Final { .. } if self.is_global_refuted() => COMMITTED,
            finality => finality,
        }
    }
}
