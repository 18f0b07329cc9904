//! Which references of a block are executed: decided from headers, before anything is changed.

use std::{collections::BTreeMap, sync::Arc};

use super::{GlobalQueue, StaleReason};
use crate::{
    batch::{BATCH_VERSION, BatchEntry, BatchError, BatchHeader, BatchItem, CertifiedBatch},
    block::{BatchRef, Block, FinalizedBlock},
    crypto::Verified,
    ids::{BlockTime, ClusterId, Digest, EntryId, Height},
    merkle,
    registry::Registry,
    roster::Roster,
    verdict::Verdict,
};

/// Header and rows of a batch that somebody vouches for: a quorum of its roster, or a finalized
/// block that refers to it (whose validators checked the roster's quorum).
#[derive(Clone, Copy, Debug)]
pub struct OrderedBatch<'a> {
    header: &'a BatchHeader,
    entries: &'a [BatchEntry],
}

impl<'a> OrderedBatch<'a> {
    /// A batch whose certificate was verified.
    #[must_use]
    pub fn certified(batch: &'a Verified<CertifiedBatch>) -> Self {
        Self {
            header: &batch.header,
            entries: &batch.entries,
        }
    }

    /// The batch that reference `at` of a finalized block names, or `None` if it names another.
    /// A cluster's own batch comes without attestations, from its outbox.
    #[must_use]
    pub fn finalized(
        block: &Verified<FinalizedBlock>,
        at: usize,
        header: &'a BatchHeader,
        entries: &'a [BatchEntry],
    ) -> Option<Self> {
        let block = &block.block;
        let named = block.refs.get(at)?.digest;
        (header.digest(&block.header.chain) == named).then_some(Self { header, entries })
    }

    /// Its header.
    #[must_use]
    pub fn header(&self) -> &'a BatchHeader {
        self.header
    }

    /// Its rows.
    #[must_use]
    pub fn entries(&self) -> &'a [BatchEntry] {
        self.entries
    }
}

/// Why a block was not applied. The caller's fault, or that of its disk; the state is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Not the next height.
    #[error("block at height {got}, next is {want}")]
    WrongHeight {
        /// Of the block.
        got: Height,
        /// Next.
        want: Height,
    },
    /// Not on the block applied last.
    #[error("the block's parent is {got}, applied last is {want}")]
    WrongParent {
        /// Named by the block.
        got: Digest,
        /// Applied last.
        want: Digest,
    },
    /// Not above its parent's time.
    #[error("block time {} us is not above the parent's {} us", got.0, want_above.0)]
    WrongTime {
        /// Of the block.
        got: BlockTime,
        /// Of its parent.
        want_above: BlockTime,
    },
    /// Another number of batches than references.
    #[error("{got} batches for {want} references")]
    WrongCount {
        /// Given.
        got: usize,
        /// References.
        want: usize,
    },
    /// The batch of a reference that is next was not given.
    #[error("the batch of reference {0} is next and was not given")]
    MissingBatch(usize),
    /// The batch given for a reference is another one, or its rows are not those under its root.
    #[error("what was given for reference {0} is not the batch it names")]
    OtherBatch(usize),
}

/// What happens to one reference.
pub(super) struct RefPlan<'a> {
    pub(super) position: u32,
    pub(super) reference: BatchRef,
    pub(super) decision: Result<ExecutePlan<'a>, StaleReason>,
}

/// A batch that is executed.
pub(super) struct ExecutePlan<'a> {
    pub(super) batch: OrderedBatch<'a>,
    /// Identities of its rows.
    pub(super) ids: Vec<EntryId>,
    /// In force afterwards.
    pub(super) next_roster: Arc<Roster>,
}

/// The part of a cursor that decides what is next.
#[derive(Clone)]
struct Next {
    founding: crate::ids::Founding,
    seq: crate::ids::BatchSeq,
    last_digest: Digest,
    roster: Arc<Roster>,
    roster_digest: Digest,
    global_height: Height,
}

impl GlobalQueue {
    /// Checks that a certified batch counts: certificate under the roster of this state, rows under
    /// their root, roster changes that lead where the header says.
    ///
    /// The proof stays good in later states: a batch is executed only while the roster it names is
    /// in force, and keys and memberships of a roster never change.
    ///
    /// # Errors
    /// [`BatchError`]. `WrongRoster` may mend itself: a batch before it may change the roster.
    pub fn verify_batch(&self, batch: CertifiedBatch) -> Result<Verified<CertifiedBatch>, BatchError> {
        let id = batch.header.cluster;
        let cursor = self.cursor(id).ok_or(BatchError::Content("no such cluster"))?;
        if batch.header.founding != cursor.founding {
            return Err(BatchError::Content("of another founding than the one in force"));
        }
        let model = self.genesis.clusters[id.0 as usize].fault_model;
        let batch = batch.verify(&self.registry, &cursor.roster, model)?;
        let next = next_roster(&self.registry, &cursor.roster, batch.header.cluster, &batch.entries);
        if next.digest() != batch.header.next_roster {
            return Err(BatchError::Content(
                "the rows lead to another roster than the header says",
            ));
        }
        Ok(batch)
    }

    /// Decides what happens to each reference of `block`, in order.
    pub(super) fn plan<'a>(
        &self,
        block: &Block,
        batches: &[Option<OrderedBatch<'a>>],
    ) -> Result<Vec<RefPlan<'a>>, ApplyError> {
        self.check_header(block)?;
        if batches.len() != block.refs.len() {
            return Err(ApplyError::WrongCount {
                got: batches.len(),
                want: block.refs.len(),
            });
        }
        let mut nexts = BTreeMap::new();
        let mut plans = Vec::with_capacity(batches.len());
        for (at, (reference, batch)) in block.refs.iter().zip(batches).enumerate() {
            plans.push(RefPlan {
                position: at as u32,
                reference: *reference,
                decision: self.decide(&mut nexts, block.header.height, at, reference, *batch)?,
            });
        }
        Ok(plans)
    }

    fn check_header(&self, block: &Block) -> Result<(), ApplyError> {
        let header = &block.header;
        if header.height != self.height.next() {
            return Err(ApplyError::WrongHeight {
                got: header.height,
                want: self.height.next(),
            });
        }
        if header.parent != self.tip {
            return Err(ApplyError::WrongParent {
                got: header.parent,
                want: self.tip,
            });
        }
        if header.time <= self.time {
            return Err(ApplyError::WrongTime {
                got: header.time,
                want_above: self.time,
            });
        }
        Ok(())
    }

    fn decide<'a>(
        &self,
        nexts: &mut BTreeMap<ClusterId, Next>,
        height: Height,
        at: usize,
        reference: &BatchRef,
        batch: Option<OrderedBatch<'a>>,
    ) -> Result<Result<ExecutePlan<'a>, StaleReason>, ApplyError> {
        let Some(cursor) = self.cursor(reference.cluster) else {
            return Ok(Err(StaleReason::UnknownCluster));
        };
        let next = nexts.entry(reference.cluster).or_insert_with(|| Next {
            founding: cursor.founding,
            seq: cursor.next_seq,
            last_digest: cursor.last_digest,
            roster: cursor.roster.clone(),
            roster_digest: cursor.roster_digest,
            global_height: cursor.global_height,
        });
        if reference.founding != next.founding {
            return Ok(Err(StaleReason::OtherFounding));
        }
        if reference.seq != next.seq {
            return Ok(Err(StaleReason::NotNext));
        }
        let batch = batch.ok_or(ApplyError::MissingBatch(at))?;
        let header = batch.header;
        if header.digest(self.registry.chain()) != reference.digest {
            return Err(ApplyError::OtherBatch(at));
        }
        // A leader can write any name before a digest that is held: that must stop nobody.
        if header.version != BATCH_VERSION
            || (header.cluster, header.founding, header.seq) != (reference.cluster, reference.founding, reference.seq)
        {
            return Ok(Err(StaleReason::Misnamed));
        }
        let ids = self.check_rows(&batch).ok_or(ApplyError::OtherBatch(at))?;
        if header.prev_digest != next.last_digest {
            return Ok(Err(StaleReason::OtherPredecessor));
        }
        if header.roster != next.roster_digest {
            return Ok(Err(StaleReason::OtherRoster));
        }
        if header.global_height < next.global_height || header.global_height >= height {
            return Ok(Err(StaleReason::ImpossibleHeight));
        }
        let roster = next_roster(&self.registry, &next.roster, header.cluster, batch.entries);
        if roster.digest() != header.next_roster {
            return Ok(Err(StaleReason::OtherNextRoster));
        }
        next.seq = next.seq.next();
        next.last_digest = reference.digest;
        next.roster = roster.clone();
        next.roster_digest = header.next_roster;
        next.global_height = header.global_height;
        Ok(Ok(ExecutePlan {
            batch,
            ids,
            next_roster: roster,
        }))
    }

    /// The rows' identities, if they are those under the header's root.
    fn check_rows(&self, batch: &OrderedBatch<'_>) -> Option<Vec<EntryId>> {
        if batch.header.count as usize != batch.entries.len() {
            return None;
        }
        let chain = self.registry.chain();
        let ids: Vec<EntryId> = batch.entries.iter().map(|row| row.id(chain)).collect();
        let leaves: Vec<Digest> = batch
            .entries
            .iter()
            .zip(&ids)
            .map(|(row, id)| row.entry_leaf(*id).digest())
            .collect();
        (merkle::root(&leaves) == batch.header.entries_root).then_some(ids)
    }
}

/// The roster in force after `entries`: the last that they entered.
fn next_roster(registry: &Registry, roster: &Arc<Roster>, cluster: ClusterId, entries: &[BatchEntry]) -> Arc<Roster> {
    let last = entered_rosters(registry, cluster, entries).next_back();
    last.map_or_else(|| roster.clone(), |entered| Arc::new(entered.clone()))
}

/// The rosters that rows of a batch of `cluster` bring into force one after the other: good ones, in granted rows.
pub fn entered_rosters<'a>(
    registry: &Registry,
    cluster: ClusterId,
    entries: &'a [BatchEntry],
) -> impl DoubleEndedIterator<Item = &'a Roster> {
    entries.iter().filter_map(move |row| match &row.item {
        BatchItem::Roster(change) if row.verdict == Verdict::Granted => {
            is_good_roster(registry, cluster, &change.roster).then_some(&change.roster)
        }
        _ => None,
    })
}

/// Whether every device of a roster is enrolled for the cluster, under a key it had. Static.
pub(super) fn is_good_roster(registry: &Registry, cluster: ClusterId, roster: &Roster) -> bool {
    roster.is_ordered()
        && roster.members.iter().all(|member| {
            registry.by_idx(member.raft.idx()).is_some_and(|device| {
                device.cluster == Some(cluster) && (member.key_version.0 as usize) < device.keys.len()
            })
        })
}
