//! The tree of blocks above the last final one, what each of them did to the state, and what is valid on it.
//! In: blocks, marks (notarized, final), executions. Out: judgements, paths to finality, what to execute next.
//!
//! # Rules
//! * Upon a notarized block whose parent is executed: execute it on a copy of the parent's state.
//! * Upon a final block: its ancestors are final; what does not descend from it is dropped.
//! * A header at height h carries the roots of height h - 2 on its own chain; below 2, those of genesis.
//!   In a proposal wrong roots make it invalid. In a notarized block they show that *this machine* is
//!   wrong: it halts.
//! * A reference is next on the parent's chain: after the cursors in the state of height - 2 and the
//!   references of the block since. (A function of the block and its ancestors; references that turn
//!   out stale in execution are no-ops.)
//!
//! # Invariants
//! * `heights_are_dense`: the finalized blocks are 1, 2, 3, ... and each names the one below as parent.
//! * Every block held descends from the last final one, or is one of the last final ones that are
//!   still needed: not executed yet, or among the last two executed.

mod execution;
mod judge;

use std::collections::BTreeMap;

use common::{
    block::{Block, FinalizedBlock, genesis_digest},
    bug::{self, Bug},
    ids::{BlockTime, ChainId, ClusterId, Digest, Epoch, Height, View},
    limits::ROOT_LAG,
};

pub use common::block::Roots;
pub use execution::{Cursor, Execution};
pub use judge::{Flaw, Judgement};

use crate::{block_builder::Site, effect::HaltReason};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Entry<E> {
    /// `None` for the genesis state.
    block: Option<Block>,
    height: Height,
    view: View,
    parent: Digest,
    time: BlockTime,
    /// A quorum notarized or finalized it, or a descendant.
    is_agreed: bool,
    state: Option<E>,
}

/// Where a final block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tip {
    /// Height; 0 for genesis.
    pub height: Height,
    /// View; 0 for genesis.
    pub view: View,
    /// The block.
    pub digest: Digest,
}

/// Why a block cannot be reached from the last final one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NoPath {
    /// This block is not here.
    Missing(Digest),
    /// The chain below does not meet my last final block.
    Fork {
        /// First block of that chain at or below my tip's height.
        block: Digest,
        /// Its height.
        height: Height,
    },
}

/// A stored finalized block does not fit the ones before it: the disk is corrupt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Not the child of the block before.
    #[error("height {got} with parent {parent} after {tip:?}")]
    NotNext {
        /// Height given.
        got: Height,
        /// Its parent.
        parent: Digest,
        /// Last block.
        tip: Tip,
    },
    /// Its roots are not those computed here.
    #[error("{0}")]
    Halt(#[from] HaltReason),
}

/// The tree. `E` is the state of the global queue, or a stand-in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ledger<E> {
    chain: ChainId,
    entries: BTreeMap<Digest, Entry<E>>,
    /// Final blocks still held, by height.
    final_blocks: BTreeMap<Height, Digest>,
    tip: Tip,
    /// Highest height that is final and executed.
    executed: Height,
}

impl<E: Execution> Ledger<E> {
    /// A ledger at the genesis state.
    #[must_use]
    pub fn genesis(chain: ChainId, time: BlockTime, state: E) -> Self {
        let digest = genesis_digest(&chain);
        let entry = Entry {
            block: None,
            height: Height(0),
            view: View(0),
            parent: Digest::default(),
            time,
            is_agreed: true,
            state: Some(state),
        };
        Self {
            chain,
            entries: [(digest, entry)].into(),
            final_blocks: [(Height(0), digest)].into(),
            tip: Tip {
                height: Height(0),
                view: View(0),
                digest,
            },
            executed: Height(0),
        }
    }

    /// Executes a finalized block from this validator's own disk, before the core starts.
    ///
    /// # Errors
    /// [`ReplayError`]: stop.
    pub fn replay(&mut self, finalized: &FinalizedBlock, batches: &E::Batches) -> Result<(), ReplayError> {
        self.restore(finalized)?;
        self.execute(&finalized.block.digest(), batches)?;
        while self.advance_executed().is_some() {}
        self.prune();
        Ok(())
    }

    /// Takes a finalized block from this validator's own disk whose batches, or those of a block below it, are
    /// not all here: it is final, and the core executes it when they are.
    ///
    /// # Errors
    /// [`ReplayError::NotNext`]: stop.
    pub fn restore(&mut self, finalized: &FinalizedBlock) -> Result<(), ReplayError> {
        let header = &finalized.block.header;
        if header.parent != self.tip.digest || header.height != self.tip.height.next() {
            return Err(ReplayError::NotNext {
                got: header.height,
                parent: header.parent,
                tip: self.tip,
            });
        }
        let digest = finalized.block.digest();
        self.insert(finalized.block.clone());
        self.finalize(&digest);
        Ok(())
    }

    /// The last final block.
    #[must_use]
    pub fn tip(&self) -> Tip {
        self.tip
    }

    /// The highest final height that was executed here.
    #[must_use]
    pub fn executed_height(&self) -> Height {
        self.executed
    }

    /// State after the highest final height that was executed here.
    #[must_use]
    pub fn executed_state(&self) -> &E {
        let digest = self.final_blocks[&self.executed];
        self.entries[&digest]
            .state
            .as_ref()
            .expect("the executed height has a state")
    }

    /// State after a block that is held here and was executed.
    #[must_use]
    pub fn state_of(&self, digest: &Digest) -> Option<&E> {
        self.entries.get(digest)?.state.as_ref()
    }

    /// A block above the last final one, or one of the last final ones.
    #[must_use]
    pub fn block(&self, digest: &Digest) -> Option<&Block> {
        self.entries.get(digest)?.block.as_ref()
    }

    /// Whether the block is held.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.entries.contains_key(digest)
    }

    /// How many blocks are held, final ones among them.
    #[must_use]
    pub fn blocks_held(&self) -> usize {
        self.entries.len()
    }

    /// Takes a block into the tree. Its parent may be missing. Blocks at or below the tip are not taken.
    pub fn insert(&mut self, block: Block) {
        let header = &block.header;
        if header.height <= self.tip.height {
            return;
        }
        let entry = Entry {
            height: header.height,
            view: header.view,
            parent: header.parent,
            time: header.time,
            is_agreed: false,
            state: None,
            block: Some(block),
        };
        let digest = entry.block.as_ref().expect("just set").digest();
        self.entries.entry(digest).or_insert(entry);
        // A block that comes late, below one that is marked.
        if self.entries.values().any(|e| e.is_agreed && e.parent == digest) {
            self.mark_agreed(&digest);
        }
    }

    /// Marks a notarized block and its ancestors: they are executed ahead of finality.
    pub fn mark_agreed(&mut self, digest: &Digest) {
        let mut cursor = *digest;
        while let Some(entry) = self.entries.get_mut(&cursor)
            && !entry.is_agreed
        {
            entry.is_agreed = true;
            cursor = entry.parent;
        }
    }

    /// Blocks from above the tip up to `digest`, ascending.
    ///
    /// # Errors
    /// [`NoPath`].
    pub fn path_to(&self, digest: &Digest) -> Result<Vec<Digest>, NoPath> {
        let mut path = Vec::new();
        let mut cursor = *digest;
        while cursor != self.tip.digest {
            let entry = self.entries.get(&cursor).ok_or(NoPath::Missing(cursor))?;
            if entry.height <= self.tip.height {
                return Err(NoPath::Fork {
                    block: cursor,
                    height: entry.height,
                });
            }
            path.push(cursor);
            // A parent at or below the tip's height that is not the tip is another chain.
            if entry.height == self.tip.height.next() && entry.parent != self.tip.digest {
                return Err(NoPath::Fork {
                    block: cursor,
                    height: entry.height,
                });
            }
            cursor = entry.parent;
        }
        path.reverse();
        Ok(path)
    }

    /// Makes the child of the tip final, and drops what does not descend from it.
    ///
    /// # Panics
    /// If `digest` is not a child of the tip: the caller walks a path from it.
    pub fn finalize(&mut self, digest: &Digest) {
        self.mark_agreed(digest);
        let entry = &self.entries[digest];
        assert_eq!(entry.parent, self.tip.digest, "finality goes up block by block");
        assert_eq!(entry.height, self.tip.height.next(), "heights are dense");
        self.tip = Tip {
            height: entry.height,
            view: entry.view,
            digest: *digest,
        };
        self.final_blocks.insert(entry.height, *digest);
        self.prune();
    }

    /// Whether a block that is not final refers to batches.
    #[must_use]
    pub fn has_unfinalized_refs(&self) -> bool {
        self.entries
            .values()
            .any(|e| e.height > self.tip.height && e.block.as_ref().is_some_and(|b| !b.refs.is_empty()))
    }

    /// How many of the last blocks of the chain up to `digest` are empty, counted up to [`ROOT_LAG`].
    /// `None` if one of them is missing.
    #[must_use]
    pub fn empty_blocks_in_a_row(&self, digest: &Digest) -> Option<u64> {
        let mut cursor = *digest;
        for empty in 0..ROOT_LAG {
            let entry = self.entries.get(&cursor)?;
            match &entry.block {
                // Nothing happened before the first block, so no root is owed.
                None => return Some(ROOT_LAG),
                Some(block) if !block.refs.is_empty() => return Some(empty),
                Some(_) => cursor = entry.parent,
            }
        }
        Some(ROOT_LAG)
    }

    /// Where a child of `parent` would stand, once what it needs was executed here.
    #[must_use]
    pub fn site_on(&self, parent: &Digest, epoch: Epoch, view: View) -> Option<Site> {
        let entry = self.entries.get(parent)?;
        Some(Site {
            chain: self.chain,
            epoch,
            view,
            parent: *parent,
            parent_view: entry.view,
            parent_height: entry.height,
            parent_time: entry.time,
            roots: self.lagging_state(entry)?.roots(),
        })
    }

    /// What is next of every cluster for a child of `parent`: after the state two below the child and
    /// the references of `parent`.
    #[must_use]
    pub fn cursors_on(&self, parent: &Digest) -> Option<BTreeMap<ClusterId, Cursor>> {
        let entry = self.entries.get(parent)?;
        let mut cursors = self.lagging_state(entry)?.cursors().clone();
        let parents = entry.block.iter().filter(|_| !bug::active(Bug::BatchReplayed));
        for batch in parents.flat_map(|block| &block.refs) {
            if let Some(cursor) = cursors.get_mut(&batch.cluster) {
                *cursor = cursor.after(batch);
            }
        }
        Some(cursors)
    }

    /// The state whose roots a child of `parent` carries.
    fn lagging_state<'a>(&'a self, parent: &'a Entry<E>) -> Option<&'a E> {
        let lagging = match &parent.block {
            None => parent,
            Some(_) => self.entries.get(&parent.parent)?,
        };
        lagging.state.as_ref()
    }

    /// The agreed blocks that can be executed now: not executed, on an executed parent.
    pub fn executable(&self) -> impl Iterator<Item = (Digest, &Block)> + '_ {
        self.entries.iter().filter_map(|(digest, entry)| {
            let parent = self.entries.get(&entry.parent)?;
            let is_due = entry.is_agreed && entry.state.is_none() && parent.state.is_some();
            is_due.then_some((*digest, entry.block.as_ref()?))
        })
    }

    /// Executes an agreed block on its parent's state. Does nothing if the block is gone or done.
    ///
    /// # Errors
    /// [`HaltReason::OtherRoots`]: a quorum has other roots in this block than this machine computed.
    pub fn execute(&mut self, digest: &Digest, batches: &E::Batches) -> Result<(), HaltReason> {
        let Some((block, mut state)) = self.entries.get(digest).and_then(|entry| {
            let parent = self.entries.get(&entry.parent)?;
            let is_due = entry.is_agreed && entry.state.is_none();
            is_due.then_some((entry.block.as_ref()?, parent.state.clone()?))
        }) else {
            return Ok(());
        };
        if let Some(parent) = self.entries.get(&block.header.parent)
            && let Some(lagging) = self.lagging_state(parent)
        {
            let (got, want) = (Roots::carried_by(&block.header), lagging.roots());
            if got != want && !bug::active(Bug::WrongRoots) {
                return Err(HaltReason::OtherRoots {
                    block: *digest,
                    height: block.header.height,
                    got,
                    want,
                });
            }
        }
        state.apply(block, batches);
        self.entries.get_mut(digest).expect("looked up above").state = Some(state);
        Ok(())
    }

    /// Takes the next final height that was executed, if there is one. Its state stays until
    /// [`prune`](Self::prune).
    pub fn advance_executed(&mut self) -> Option<(Height, Digest)> {
        let next = self.executed.next();
        let digest = *self.final_blocks.get(&next)?;
        self.entries[&digest].state.as_ref()?;
        self.executed = next;
        Some((next, digest))
    }

    /// Drops final blocks that nothing needs any more, and blocks on other chains.
    pub fn prune(&mut self) {
        if self.is_pruned() || bug::active(Bug::BlocksKept) {
            return;
        }
        // A child of the tip needs the state of the tip's parent; the next execution needs the parent's
        // state and, for its roots, the one before.
        self.final_blocks = self.final_blocks.split_off(&self.floor());
        let mut kept: std::collections::BTreeSet<Digest> = self.final_blocks.values().copied().collect();
        let mut above: Vec<(Height, Digest)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.height > self.tip.height)
            .map(|(digest, entry)| (entry.height, *digest))
            .collect();
        above.sort_unstable();
        for (height, digest) in above {
            let parent = self.entries[&digest].parent;
            // A block whose parent is not here yet may still turn out to be a descendant.
            let is_first = height == self.tip.height.next();
            let is_descendant = parent == self.tip.digest
                || (!is_first && (kept.contains(&parent) || !self.entries.contains_key(&parent)));
            if is_descendant {
                kept.insert(digest);
            }
        }
        self.entries.retain(|digest, _| kept.contains(digest));
    }

    /// The lowest final height whose state is needed.
    fn floor(&self) -> Height {
        Height(self.executed.0.min(self.tip.height.0).saturating_sub(ROOT_LAG - 1))
    }

    /// Whether [`prune`](Self::prune) would drop nothing: so it is in most steps, and this is cheaper to see.
    fn is_pruned(&self) -> bool {
        let is_needed = |digest: &Digest, entry: &Entry<E>| {
            if entry.height <= self.tip.height {
                return self.final_blocks.get(&entry.height) == Some(digest);
            }
            let is_first = entry.height == self.tip.height.next();
            let is_on_kept = |parent: &Entry<E>| parent.height < entry.height;
            entry.parent == self.tip.digest || (!is_first && self.entries.get(&entry.parent).is_none_or(is_on_kept))
        };
        let is_above = |(lowest, _): (&Height, _)| *lowest >= self.floor();
        self.final_blocks.first_key_value().is_none_or(is_above)
            && self.entries.iter().all(|(digest, entry)| is_needed(digest, entry))
    }
}

#[cfg(test)]
mod tests;
