//! Whether a block may be notarized. A function of the block and its ancestors, except for what is
//! only "not yet" here.

use std::collections::BTreeSet;

use common::{
    block::{BLOCK_VERSION, BatchRef, Block, genesis_digest, refs_root},
    ids::{BlockTime, Digest, Height, View},
};

use super::{Cursor, Execution, Ledger, Roots};
use crate::batch_pool::BatchPool;

/// Why a block is invalid, whoever looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Flaw {
    /// Format, references root, or another fleet.
    #[error("{0}")]
    Form(&'static str),
    /// Not the parent's height + 1, or another view than the parent's is named.
    #[error("height {height} naming parent view {parent_view}, the parent has height {parent_height} and view {want}")]
    NotAbove {
        /// Of the block.
        height: Height,
        /// Named by the block.
        parent_view: View,
        /// Of the parent.
        parent_height: Height,
        /// Of the parent.
        want: View,
    },
    /// Not later than the parent.
    #[error("time {got:?} is not above the parent's {parent:?}")]
    Time {
        /// Of the block.
        got: BlockTime,
        /// Of the parent.
        parent: BlockTime,
    },
    /// Roots other than those of the block two below.
    #[error("roots {got}, two below it is {want}")]
    Roots {
        /// In the header.
        got: Roots,
        /// Computed.
        want: Roots,
    },
    /// A reference that is not next.
    #[error("{batch:?} is not next: {cursor:?}")]
    NotNext {
        /// The reference.
        batch: BatchRef,
        /// What is next, if the cluster exists.
        cursor: Option<Cursor>,
    },
    /// It announces a set that nothing asked for.
    #[error("announces a validator set that no operation asked for")]
    SetUnasked,
}

/// What a voter thinks of a block.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Judgement {
    /// Vote.
    Valid,
    /// Not yet: this ancestor is missing.
    MissingBlock(Digest),
    /// Not yet: these batches are missing.
    MissingBatches(Vec<BatchRef>),
    /// Not yet: the block two below was not executed here.
    NotExecuted,
    /// Never.
    Invalid(Flaw),
}

impl<E: Execution> Ledger<E> {
    /// Judges `block` by everything but the clock and the certificates beside it.
    #[must_use]
    pub fn judge(&self, block: &Block, pool: &BatchPool) -> Judgement {
        let header = &block.header;
        if let Err(flaw) = self.check_form(block) {
            return Judgement::Invalid(flaw);
        }
        let Some(parent) = self.entries.get(&header.parent) else {
            return Judgement::MissingBlock(header.parent);
        };
        if header.height != parent.height.next() || header.parent_view != parent.view || header.view <= parent.view {
            return Judgement::Invalid(Flaw::NotAbove {
                height: header.height,
                parent_view: header.parent_view,
                parent_height: parent.height,
                want: parent.view,
            });
        }
        if header.time <= parent.time {
            return Judgement::Invalid(Flaw::Time {
                got: header.time,
                parent: parent.time,
            });
        }
        if parent.block.is_some() && !self.entries.contains_key(&parent.parent) {
            return Judgement::MissingBlock(parent.parent);
        }
        let (Some(lagging), Some(cursors)) = (self.lagging_state(parent), self.cursors_on(&header.parent)) else {
            return self.first_missing_below(&header.parent);
        };
        let (got, want) = (Roots::carried_by(header), lagging.roots());
        if got != want {
            return Judgement::Invalid(Flaw::Roots { got, want });
        }
        let mut cursors = cursors;
        let mut missing = Vec::new();
        for batch in &block.refs {
            let Some(cursor) = cursors.get_mut(&batch.cluster).filter(|cursor| cursor.is_next(batch)) else {
                let cursor = cursors.get(&batch.cluster).copied();
                return Judgement::Invalid(Flaw::NotNext { batch: *batch, cursor });
            };
            match pool.prev_digest(batch) {
                Some(prev) if prev != cursor.prev_digest => {
                    return Judgement::Invalid(Flaw::NotNext {
                        batch: *batch,
                        cursor: Some(*cursor),
                    });
                }
                Some(_) => {}
                None => missing.push(*batch),
            }
            *cursor = cursor.after(batch);
        }
        if missing.is_empty() {
            Judgement::Valid
        } else {
            Judgement::MissingBatches(missing)
        }
    }

    /// Time of a block's parent, if that is held.
    #[must_use]
    pub fn time_of(&self, digest: &Digest) -> Option<BlockTime> {
        self.entries.get(digest).map(|entry| entry.time)
    }

    fn check_form(&self, block: &Block) -> Result<(), Flaw> {
        let header = &block.header;
        let check = |holds: bool, what| if holds { Ok(()) } else { Err(Flaw::Form(what)) };
        check(header.version == BLOCK_VERSION, "unknown block format")?;
        check(header.chain == self.chain, "of another fleet")?;
        check(
            header.refs_root == refs_root(&block.refs),
            "refs root differs from the references",
        )?;
        check(
            header.parent != genesis_digest(&self.chain) || header.height == Height(1),
            "genesis is the parent of height 1 only",
        )?;
        let distinct: BTreeSet<_> = block.refs.iter().map(|b| (b.cluster, b.founding, b.seq)).collect();
        check(distinct.len() == block.refs.len(), "one number is referred to twice")?;
        if header.next_set.is_some() {
            return Err(Flaw::SetUnasked);
        }
        Ok(())
    }

    /// Why `digest` has no state: a block below is missing, or execution is behind.
    fn first_missing_below(&self, digest: &Digest) -> Judgement {
        match self.path_to(digest) {
            Err(super::NoPath::Missing(missing)) => Judgement::MissingBlock(missing),
            _ => Judgement::NotExecuted,
        }
    }
}
