//! The door of the clusters (`muster-feed/1`): batches come up, finalized blocks go down.
//! In: requests of cluster members. Out: receipts, blocks, batches; stored batches to the driver.
//! Called by: the transport, through [`crate::service`].
//!
//! # Rules
//! * Upon a batch of the submitter's own cluster, certified under the roster in force, whose
//!   predecessor is executed or stored: store it durably, announce it to all validators, then receipt.
//! * Upon one with a gap before it: the same (bounded), and the receipt names the first one missing.
//! * Upon one that is executed or stored already: the same answer, nothing changes.
//! * Upon anything else: refuse. Nothing changes.
//! * Upon a follower: wait at most ten seconds for the height it wants, then answer with what there is.
//!
//! # Invariants
//! * batch-durable-before-receipt: `Stored` is said only of a batch that survives a power cut.
//!
use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::{
    batch::{BatchError, CertifiedBatch},
    block::BatchRef,
    codec::{Wire, decode, encode},
    crypto::Verified,
    global_queue::{Cursor, GlobalQueue},
    ids::{BatchSeq, ClusterId, Digest, Founding, NodeIdx},
    registry::Registry,
    wire::{
        feed::{BatchReceipt, FetchByDigest, Follow, Followed},
        frame::{FrameKind, Refusal, RefusalCode},
    },
};

use global_core::batch_pool::{HELD_PER_CLUSTER_MAX, PARKED_PER_CLUSTER_MAX, RIVALS_MAX, StoredBatch};
use transport::{log_limit::LogLimits, ports::BoxFuture};

use crate::{
    batch_store::{BatchStore, SharedBatch, stored},
    block_store::BlockStore,
    executed::ExecutedWatch,
    exit::Stop,
    halt::Halt,
    segments::Stopped,
    verified_entries::VerifiedEntries,
};

/// Longest wait of a follower.
pub const FOLLOW_WAIT_MAX: Duration = Duration::from_secs(10);
/// Room for everything in an answer but blocks and batches.
const FOLLOWED_OVERHEAD_BYTES: usize = 1024;

/// How a batch came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From a member of its cluster: the other validators do not know it yet.
    Cluster,
    /// From another validator, because it was announced or a block refers to it.
    Validator,
}

/// What happens after a batch was stored.
pub trait Announce: Send + Sync + 'static {
    /// Tells the core; and all other validators, if it `is_news` to them.
    fn stored(&self, batch: SharedBatch, stored: StoredBatch, is_news: bool) -> BoxFuture<()>;
}

/// The door of the clusters; clones share it.
#[derive(Clone)]
pub struct Intake {
    registry: Arc<Registry>,
    batches: BatchStore,
    blocks: BlockStore,
    executed: ExecutedWatch,
    verified: VerifiedEntries,
    announce: Arc<dyn Announce>,
    halt: Halt,
    /// About whom how many lines were written.
    complaints: Arc<LogLimits<NodeIdx>>,
}

/// Why a batch is not taken. The submitter is told; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
    /// Not this cluster's member, or no such cluster.
    #[error("cluster {0} is not the submitter's")]
    ForeignCluster(ClusterId),
    /// Of another founding.
    #[error("founding {got}, in force is {want}")]
    WrongFounding {
        /// Of the batch.
        got: Founding,
        /// In force.
        want: Founding,
    },
    /// Executed with other content.
    #[error("batch {0} was finalized with other content")]
    OtherWasFinalized(BatchSeq),
    /// Not certified.
    #[error("{0}")]
    Batch(#[from] BatchError),
    /// Too many wait already.
    #[error("{got} batches wait, at most {max}")]
    TooManyWait {
        /// Waiting.
        got: u64,
        /// Bound.
        max: u64,
    },
    /// The validator is ending.
    #[error("{0}")]
    Stopped(#[from] Stopped),
}

impl IntakeError {
    fn refusal(&self) -> Refusal {
        let code = match self {
            Self::ForeignCluster(_) => RefusalCode::Denied,
            Self::WrongFounding { .. } | Self::Stopped(_) => RefusalCode::NotNow,
            Self::OtherWasFinalized(_) | Self::Batch(_) => RefusalCode::Invalid,
            Self::TooManyWait { .. } => RefusalCode::Busy,
        };
        Refusal::new(code, &self.to_string())
    }
}

impl Intake {
    /// The door to `batches` and `blocks`, judging by `executed`.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        batches: BatchStore,
        blocks: BlockStore,
        executed: ExecutedWatch,
        verified: VerifiedEntries,
        announce: Arc<dyn Announce>,
        halt: Halt,
    ) -> Self {
        Self {
            registry,
            batches,
            blocks,
            executed,
            verified,
            announce,
            halt,
            complaints: Arc::default(),
        }
    }

    /// Answers one request of the device `from`.
    ///
    /// # Errors
    /// What the peer is told.
    pub async fn handle(&self, from: NodeIdx, kind: FrameKind, body: Bytes) -> Result<Bytes, Refusal> {
        let invalid = |error: common::codec::DecodeError| Refusal::new(RefusalCode::Invalid, &error.to_string());
        match kind {
            FrameKind::SubmitBatch => {
                let batch: CertifiedBatch = decode(&body).map_err(invalid)?;
                let receipt = self.submit(from, batch).await.map_err(|error| {
                    if let Some(not_logged) = self.complaints.admit(from) {
                        tracing::warn!(device = %from, not_logged, "batch refused: {error}");
                    }
                    error.refusal()
                })?;
                Ok(encode(&receipt).into())
            }
            FrameKind::Follow => {
                let follow: Follow = decode(&body).map_err(invalid)?;
                self.follow(from, follow).await.map(|answer| encode(&answer).into())
            }
            FrameKind::FeedBatch => {
                let wanted: FetchByDigest = decode(&body).map_err(invalid)?;
                self.batch_bytes(&wanted.digest)
            }
            _ => Err(Refusal::new(RefusalCode::Invalid, "not a request of a cluster")),
        }
    }

    /// Bytes of a stored batch, for clusters and validators alike.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn batch_bytes(&self, digest: &Digest) -> Result<Bytes, Refusal> {
        match self.batches.bytes(digest) {
            Ok(Some(bytes)) => Ok(bytes.into()),
            Ok(None) => Err(Refusal::new(RefusalCode::NotFound, "no such batch")),
            Err(stop) => Err(self.failed(stop)),
        }
    }

    fn failed(&self, stop: Stop) -> Refusal {
        self.halt.stop(stop);
        Refusal::new(RefusalCode::NotNow, "stopping")
    }

    /// Takes a batch from the device `from`.
    ///
    /// # Errors
    /// [`IntakeError`].
    pub async fn submit(&self, from: NodeIdx, batch: CertifiedBatch) -> Result<BatchReceipt, IntakeError> {
        let cluster = batch.header.cluster;
        if self.registry.by_idx(from).and_then(|member| member.cluster) != Some(cluster) {
            return Err(IntakeError::ForeignCluster(cluster));
        }
        self.take(batch, Origin::Cluster).await
    }

    /// Takes a batch. One that a validator delivers is stored whatever is missing before it: blocks
    /// refer to it.
    ///
    /// # Errors
    /// [`IntakeError`].
    pub async fn take(&self, batch: CertifiedBatch, origin: Origin) -> Result<BatchReceipt, IntakeError> {
        let (cluster, seq, founding) = (batch.header.cluster, batch.header.seq, batch.header.founding);
        let executed = self.executed.get();
        let cursor = executed
            .queue
            .cursor(cluster)
            .ok_or(IntakeError::ForeignCluster(cluster))?;
        if founding != cursor.founding {
            return Err(IntakeError::WrongFounding {
                got: founding,
                want: cursor.founding,
            });
        }
        let is_stored = self.batches.contains(&batch.digest(self.registry.chain()));
        if seq < cursor.next_seq {
            return if is_stored {
                Ok(BatchReceipt::Final)
            } else {
                Err(IntakeError::OtherWasFinalized(seq))
            };
        }
        // What a validator delivers was asked for by the core, which bounds it.
        if !is_stored && origin == Origin::Cluster {
            self.check_room(cursor, &batch)?;
        }
        let batch = Arc::new(self.verify(&executed.queue, batch, origin)?);
        self.verified.learn(&batch);
        let (stored, is_new) = self.batches.put(batch.clone()).await?;
        let is_news = is_new && origin == Origin::Cluster;
        self.announce.stored(batch, stored, is_news).await;
        let next = self.first_missing(cluster, cursor);
        if next <= seq {
            Ok(BatchReceipt::Parked { next })
        } else {
            Ok(BatchReceipt::Stored)
        }
    }

    /// Checks a batch under the roster in force, or, if the core asked for it, under another one that its cluster had, or
    /// will have by a batch that is stored here. Others may have stored it before that roster was replaced, and a final
    /// block refers to it: whether it counts is for the execution to say, which must have it.
    fn verify(
        &self,
        queue: &GlobalQueue,
        batch: CertifiedBatch,
        origin: Origin,
    ) -> Result<Verified<CertifiedBatch>, BatchError> {
        let is_of_another = queue
            .cursor(batch.header.cluster)
            .is_some_and(|cursor| cursor.roster_digest != batch.header.roster);
        if origin == Origin::Validator && is_of_another && self.batches.knows_roster(&batch) {
            return self.batches.verify(batch);
        }
        queue.verify_batch(batch)
    }

    /// Whether the batch is stored here. If it waits to be executed the core is told once more.
    pub async fn tell_if_held(&self, digest: &Digest) -> bool {
        let batch = match self.batches.verified(digest) {
            Ok(Some(batch)) => batch,
            Ok(None) => return false,
            Err(stop) => {
                self.halt.stop(stop);
                return true;
            }
        };
        let header = &batch.header;
        let executed = self.executed.get();
        let cursor = executed.queue.cursor(header.cluster);
        if cursor.is_some_and(|cursor| header.founding == cursor.founding && header.seq >= cursor.next_seq) {
            let name = BatchRef::to(&batch, self.registry.chain());
            let stored = stored(&name, &batch, encode::<CertifiedBatch>(&batch).len());
            self.announce.stored(batch, stored, false).await;
        }
        true
    }

    /// Whether one more batch may be stored: not too far above what is missing, not a third rival.
    fn check_room(&self, cursor: &Cursor, batch: &CertifiedBatch) -> Result<(), IntakeError> {
        let header = &batch.header;
        let rivals = self.batches.rivals(header.cluster, header.founding, header.seq);
        if rivals >= RIVALS_MAX {
            return Err(IntakeError::TooManyWait {
                got: rivals as u64,
                max: RIVALS_MAX as u64,
            });
        }
        let missing = self.first_missing(header.cluster, cursor);
        let parked = header.seq.0.saturating_sub(missing.0);
        if parked > PARKED_PER_CLUSTER_MAX {
            return Err(IntakeError::TooManyWait {
                got: parked,
                max: PARKED_PER_CLUSTER_MAX,
            });
        }
        let pending = header.seq.0 - cursor.next_seq.0;
        if pending >= HELD_PER_CLUSTER_MAX {
            return Err(IntakeError::TooManyWait {
                got: pending,
                max: HELD_PER_CLUSTER_MAX,
            });
        }
        Ok(())
    }

    fn first_missing(&self, cluster: ClusterId, cursor: &Cursor) -> BatchSeq {
        let mut next = cursor.next_seq;
        while self.batches.rivals(cluster, cursor.founding, next) > 0 {
            next = next.next();
        }
        next
    }

    async fn follow(&self, from: NodeIdx, follow: Follow) -> Result<Followed, Refusal> {
        let own = self.registry.by_idx(from).and_then(|member| member.cluster);
        if own != Some(follow.cluster) {
            return Err(Refusal::new(RefusalCode::Denied, "the cluster is not the asker's"));
        }
        let wait = Duration::from_millis(u64::from(follow.wait_ms)).min(FOLLOW_WAIT_MAX);
        let reached = self.blocks.tip_watch().wait_until(|tip| *tip >= follow.from);
        // Not reached in time: the answer says so by having no blocks.
        let _ = tokio::time::timeout(wait, reached).await;
        self.followed(follow).map_err(|stop| self.failed(stop))
    }

    fn followed(&self, follow: Follow) -> Result<Followed, Stop> {
        let executed = self.executed.get();
        let mut room = Followed::BYTES_MAX - FOLLOWED_OVERHEAD_BYTES;
        let blocks = self.blocks.range(follow.from, 64, room / 2)?;
        room -= blocks.iter().map(|block| encode(block).len()).sum::<usize>();
        let mut batches = Vec::new();
        let refs = blocks.iter().flat_map(|block| block.block.refs.iter());
        for name in refs.filter(|name| name.cluster != follow.cluster) {
            // Final before it came here, or referred to in vain: the follower asks by digest.
            let Some(bytes) = self.batches.bytes(&name.digest)? else {
                continue;
            };
            // In order as far as they go: the follower applies them as it reads.
            if bytes.len() > room || batches.len() == 1024 {
                break;
            }
            room -= bytes.len();
            batches.extend(self.batches.get(&name.digest)?);
        }
        let cursor = executed.queue.cursor(follow.cluster);
        Ok(Followed {
            blocks: blocks.try_into().expect("at most 64 were asked for"),
            batches: batches.try_into().expect("cut at the bound"),
            tip: self.blocks.tip().0,
            next_seq: cursor.map_or(BatchSeq(0), |cursor| cursor.next_seq),
            founding: cursor.map_or(Founding(0), |cursor| cursor.founding),
        })
    }
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
