//! The one global queue: which task is where in its life, who has custody, and why. Validators and
//! agents both run it, so their digests agree.
//!
//! In: a block with the batches it refers to. Out: [`BlockOutcome`]. Everything is a pure function
//! of the genesis file and the blocks applied.
//!
//! # Rules
//! * A reference is executed only if it is its cluster's next batch: founding and seq are next, it
//!   follows the batch executed last, names the roster in force, a possible global height, and the
//!   roster its rows lead to. Otherwise it is a recorded no-op.
//! * Every author signature is checked under the key of this state. A statically bad entry is a
//!   no-op and evidence against the signers; its batch is executed all the same.
//! * Every statically good entry uses up its number in the stream (author, key version, cluster).
//! * The cluster decided, and this state follows: every entry on a cluster-scope task; on a
//!   fleet-scope task the entries of drones and `Requeue` of an ended lease, if they name the task's
//!   assignment number. If they do not, they are `Late`.
//! * Decided here: number streams, expiry of entries, `Submit` and operators' entries of fleet scope,
//!   task keys, custody, assignment, deadlines, links.
//! * A cluster ends its own tasks (deadline, link to a task elsewhere) when its log applies the block
//!   that shows the reason. So this state ends them just before the first batch that stood at that height.
//!   An entry that queues such a task again leaves no mark of an ended link from its log's height or below: the links are
//!   looked at again when the entry is executed. If nothing is known of one then, the mark is renewed: it may be all that is
//!   left of a link that ended.
//! * After the references: deadlines, then (not yet: take-back of custody), then assignment, by
//!   priority and arrival, to a cluster in contact. At the very end closed tasks leave whose time has
//!   come (`retention.rs`), by height and count alone.
//!
//! # Invariants
//! * `exactly-once-upward`: a cluster's executed batches are a gap-free prefix, each once.
//! * `agreement-of-state`: equal blocks give equal state roots, whatever snapshots were taken between.
//!
//! # Why
//! The verdict of a cluster is taken where only its log knows (who held which claim when), and not
//! where two clusters could disagree. Otherwise one entry would be judged from two states.

mod close;
mod execute;
mod index;
mod invariants;
mod judge;
mod links;
mod outcome;
mod plan;
mod retention;
mod row;
mod sections;
mod shared_map;
mod snapshot;
#[cfg(test)]
mod tests;
mod view;

use std::sync::Arc;

pub use outcome::{BlockOutcome, Evidence, MachineEvent, Outcome, RowFault, StaleReason, outcome_root};
pub use plan::{ApplyError, OrderedBatch, entered_rosters};
pub use retention::{RETENTION, Retention, Retired};
pub use row::{
    Cursor, Custody, EVENTS_PER_TASK_MAX, EventEntry, HistoryEvent, NOTE_BYTES_MAX, Row, Standing, Submitted, What,
};
pub use sections::{PIECE_BYTES, Pieces, Restoring, Section};
pub use snapshot::RestoreError;

use index::Index;
use row::{StreamKey, StreamRow, TaskKeyId, TaskKeyRow};
use shared_map::{HashedMap, section};

use crate::{
    block::{Block, genesis_digest},
    codec::to_bytes,
    crypto::sha256,
    entry::SignatureOracle,
    genesis::{Genesis, padded},
    ids::{BatchSeq, BlockTime, ClusterId, Digest, Founding, Height, LogPosition, TaskId},
    recall::{Room, recalled, recalled_change},
    registry::Registry,
};

/// The state after a block. Copies share what they do not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalQueue {
    genesis: Arc<Genesis>,
    registry: Arc<Registry>,
    height: Height,
    time: BlockTime,
    /// Digest of the last block applied; [`genesis_digest`] at height 0.
    tip: Digest,
    /// How much longer the fleet's custodies have become by gaps between block times, microseconds.
    stretch_us: u64,
    /// Tasks that ever arrived.
    arrivals: u64,
    /// Of these, tasks that left, by the state in which they did.
    left: [u64; 10],
    cursors: Arc<Vec<Cursor>>,
    tasks: HashedMap<TaskId, Row>,
    retired: HashedMap<TaskId, Retired>,
    task_keys: HashedMap<TaskKeyId, TaskKeyRow>,
    streams: HashedMap<StreamKey, StreamRow>,
    index: Index,
    retention: Retention,
    root: Digest,
}

impl GlobalQueue {
    /// The state at height 0.
    ///
    /// # Panics
    /// If `genesis` was not validated: decoding it does.
    #[must_use]
    pub fn genesis(genesis: &Genesis) -> Self {
        recalled(Room::Genesis, || Digest(genesis.chain_id().0), || Self::begin(genesis))
    }

    fn begin(genesis: &Genesis) -> Self {
        let registry = Registry::from_genesis(genesis);
        let cursors = (0u32..)
            .map(ClusterId)
            .zip(&genesis.clusters)
            .map(|(id, _)| {
                let roster = genesis.founding_roster(id).expect("the cluster stands in the file");
                Cursor {
                    founding: Founding(0),
                    next_seq: BatchSeq(1),
                    last_digest: Digest::default(),
                    roster_digest: roster.digest(),
                    roster: Arc::new(roster),
                    cut: LogPosition::default(),
                    global_height: Height(0),
                    last_contact: None,
                    contact_at_us: 0,
                }
            })
            .collect();
        let mut queue = Self {
            tip: genesis_digest(registry.chain()),
            registry: Arc::new(registry),
            height: Height(0),
            time: genesis.genesis_time,
            stretch_us: 0,
            arrivals: 0,
            left: [0; 10],
            cursors: Arc::new(cursors),
            tasks: HashedMap::new(),
            retired: HashedMap::new(),
            task_keys: HashedMap::new(),
            streams: HashedMap::new(),
            index: Index::new(genesis.clusters.len()),
            retention: Retention::in_force(),
            genesis: Arc::new(genesis.clone()),
            root: Digest::default(),
        };
        queue.refresh();
        queue
    }

    /// Executes the next block. `batches[i]` is what reference `i` names; it may be `None` only if the
    /// reference is not its cluster's next one. `oracle` says whether a signature is good under a key.
    ///
    /// # Errors
    /// [`ApplyError`], before anything is changed: the caller gave another block or other batches than
    /// the chain holds.
    pub fn apply(
        &mut self,
        block: &Block,
        batches: &[Option<OrderedBatch<'_>>],
        oracle: &mut impl SignatureOracle,
    ) -> Result<BlockOutcome, ApplyError> {
        // A block says what its batches are, and not which of them are here.
        let held: Vec<u8> = batches.iter().map(|batch| u8::from(batch.is_some())).collect();
        let question = |queue: &Self| sha256(&[&queue.tip.0, &queue.root.0, &block.digest().0, &held]);
        recalled_change(Room::Execution, self, question, |queue| {
            queue.execute(block, batches, oracle)
        })
    }

    fn execute(
        &mut self,
        block: &Block,
        batches: &[Option<OrderedBatch<'_>>],
        oracle: &mut impl SignatureOracle,
    ) -> Result<BlockOutcome, ApplyError> {
        let plans = self.plan(block, batches)?;
        let mut run = execute::Execution::begin(self, block);
        for plan in plans {
            run.reference(plan, oracle);
        }
        run.close();
        Ok(run.finish())
    }

    /// Brings digests and root up to date after a change.
    fn refresh(&mut self) {
        self.tasks.refresh();
        self.retired.refresh();
        self.task_keys.refresh();
        self.streams.refresh();
        self.root = self.root_over([
            self.tasks.root(),
            self.retired.root(),
            self.task_keys.root(),
            self.streams.root(),
        ]);
    }

    /// The root from those of the maps and everything that is small.
    fn root_over(&self, maps: [Digest; 4]) -> Digest {
        let cursors: Vec<u8> = self
            .cursors
            .iter()
            .flat_map(|c| {
                to_bytes(&(
                    c.founding,
                    c.next_seq,
                    c.last_digest,
                    c.roster_digest,
                    c.cut,
                    c.global_height,
                    c.last_contact,
                    c.contact_at_us,
                ))
            })
            .collect();
        let small = to_bytes(&(
            self.registry.chain(),
            self.height,
            self.time,
            self.tip,
            self.stretch_us,
            self.arrivals,
            self.left,
            section(b"muster/v1/cursors", &cursors),
            maps,
        ));
        sha256(&[&padded(b"muster/v1/state"), &small])
    }

    /// The root computed from the state alone, without any cache: equal to
    /// [`state_root`](Self::state_root), which tests and `check_invariants` make sure of.
    #[must_use]
    pub fn state_root_from_scratch(&self) -> Digest {
        self.root_over([
            self.tasks.root_from_scratch(),
            self.retired.root_from_scratch(),
            self.task_keys.root_from_scratch(),
            self.streams.root_from_scratch(),
        ])
    }

    /// Changes a row and keeps every index true, and the height that closed it.
    fn update<R>(&mut self, id: &TaskId, change: impl FnOnce(&mut Row) -> R) -> R {
        let row = self.tasks.get_mut(id).expect("the caller found the row");
        self.index.remove(row);
        let result = change(row);
        if row.state().is_open() {
            (row.standing.ended, row.standing.leaving) = (None, None);
        } else {
            row.standing.ended.get_or_insert(self.height);
        }
        self.index.insert(row);
        result
    }
}
