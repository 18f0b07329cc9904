//! The way back: the leader follows the finalized chain and brings it into the cluster's log.
//!
//! In: finalized blocks and batches from validators. Out: `GlobalAdvance` parts in the log.
//!
//! # Rules
//! * One member of a cluster follows, its leader; the others get the blocks by their log. One link to
//!   the ground is enough.
//! * Upon blocks: verify their proofs, find the bytes of every batch they refer to (the own cluster's
//!   are in the outbox), split, propose the parts in order. A group of blocks per batch interval, and full groups
//!   at once: one by one, a cluster would fall behind a chain that grows faster than its log commits.
//! * Upon a validator that fails, lags or is silent: the next one.
//! * Nothing here is trusted: every member checks the same again before it appends and when it applies.
//!
//! # Invariants
//! * agreement: blocks enter at the height that is next; parts of two leaders never mix.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use common::{
    batch::CertifiedBatch,
    block::{Advance, AdvanceBatch, AdvancePart, FinalizedBlock},
    codec::{BoundedVec, decode, encode},
    entry::LogEntry,
    ids::{DeviceId, Digest, Height},
    wire::{
        feed::{FetchByDigest, Follow, Followed},
        frame::FrameKind,
    },
};
use futures::StreamExt;

use crate::{
    raft::ProposeOutcome,
    shell::{Shell, body},
};

/// A validator is asked to wait for the next block as long as an idle chain takes, within these bounds.
const FOLLOW_WAIT_MS_MIN: u32 = 500;
const FOLLOW_WAIT_MS_MAX: u32 = 10_000;
/// Beyond the wait and some round trips, an answer may take this long. By it a dead validator is noticed.
const FOLLOW_SLACK: Duration = Duration::from_millis(1_500);
/// A batch by digest must be answered within this time.
const FETCH_DEADLINE: Duration = Duration::from_secs(5);
/// Blocks proposed together, and bytes after which no further one joins them.
const GROUP_BLOCKS_MAX: usize = 16;
const GROUP_BYTES_MAX: usize = 512 * 1024;
/// Parts of blocks handed over and not yet committed.
const PARTS_IN_FLIGHT_MAX: usize = 8;
/// How often a member that does not lead looks whether it does.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Why a block did not enter the log now.
#[derive(Debug, thiserror::Error)]
enum Obstacle {
    /// The validator's fault, or the link's: ask another one.
    #[error("{0}")]
    Source(String),
    /// Ours: not leading, or no quorum.
    #[error("the log did not take it: {0}")]
    Log(String),
}

impl Shell {
    /// Runs as long as the agent.
    pub(crate) async fn follow_blocks(self: Arc<Self>) {
        let mut turn = 0;
        while !self.is_ending() {
            let changes = self.raft.leader_changes();
            let seen = changes.version();
            if !self.is_leader() {
                let _ = self.within(LOOK_INTERVAL, changes.changed(seen)).await;
                continue;
            }
            let order = self.validators_by_distance();
            let Some(device) = order.get(turn % order.len().max(1)).copied() else {
                self.pause(FOLLOW_SLACK).await;
                continue;
            };
            let begun = tokio::time::Instant::now();
            match self.follow_once(device).await {
                Ok(0) => {
                    turn += 1;
                    // One that does not wait must not make this a tight loop.
                    self.pause(LOOK_INTERVAL.saturating_sub(begun.elapsed())).await;
                }
                Ok(_) => {}
                Err(Obstacle::Source(why)) => {
                    tracing::debug!(%device, why, "a validator was of no help on the way down");
                    self.validators
                        .note(device, false, self.now_us(), self.ports.entropy.next_u64());
                    // The order changes with the note: begin with the nearest one again.
                    turn = 0;
                    self.pause(self.jittered(LOOK_INTERVAL)).await;
                }
                Err(Obstacle::Log(why)) => {
                    tracing::debug!(why, "a block did not enter the log; it is tried again");
                    self.pause(Duration::from_millis(self.raft_config.heartbeat_ms)).await;
                }
            }
        }
    }

    /// Asks for what is next, and brings it in. Returns how many blocks entered.
    async fn follow_once(&self, device: DeviceId) -> Result<usize, Obstacle> {
        let from = self.machine.pulse().get().height.next();
        let question = Follow {
            cluster: self.me.cluster,
            from,
            wait_ms: self
                .genesis
                .timing
                .idle_block_interval_ms
                .clamp(FOLLOW_WAIT_MS_MIN, FOLLOW_WAIT_MS_MAX),
        };
        let round_trips = self.ports.transport.rtt(&device).unwrap_or_default() * 4;
        let deadline = Duration::from_millis(u64::from(question.wait_ms)) + round_trips + FOLLOW_SLACK;
        let answer = self
            .call_validator(device, FrameKind::Follow, body(&question), deadline)
            .await?;
        let Followed { blocks, batches, .. } = decode(&answer).map_err(|error| Obstacle::Source(error.to_string()))?;
        self.validators.note(device, true, self.now_us(), 0);
        let mut at_hand: BTreeMap<Digest, CertifiedBatch> = BTreeMap::new();
        for batch in batches.into_inner() {
            at_hand.insert(batch.digest(&self.chain), batch);
        }
        let mut entered = 0;
        let mut blocks = (from.0..).map(Height).zip(blocks.into_inner()).peekable();
        while blocks.peek().is_some() {
            let begun = tokio::time::Instant::now();
            let mut group = Group::default();
            while !group.is_full()
                && let Some((next, finalized)) = blocks.next()
            {
                group.add(next, self.parts_of(device, next, finalized, &mut at_hand).await?);
            }
            let is_full = group.is_full();
            self.propose_in_order(group.parts).await?;
            entered += group.blocks;
            // Others may have brought in more meanwhile, or a leader before us half of one.
            if self.machine.pulse().get().height != group.last {
                return Ok(entered);
            }
            // After a full group more wait: a cluster that was away catches up as fast as its log commits.
            if !is_full {
                self.pause(self.limits.batch_interval.saturating_sub(begun.elapsed()))
                    .await;
            }
        }
        Ok(entered)
    }

    async fn parts_of(
        &self,
        device: DeviceId,
        next: Height,
        finalized: FinalizedBlock,
        at_hand: &mut BTreeMap<Digest, CertifiedBatch>,
    ) -> Result<Vec<AdvancePart>, Obstacle> {
        let source = |why: String| Obstacle::Source(why);
        let verified = finalized
            .verify(&self.chain, &self.set)
            .map_err(|error| source(error.to_string()))?;
        let finalized = verified.into_inner();
        let (height, digest) = (finalized.block.header.height, finalized.block.digest());
        if height != next {
            return Err(source(format!("a block of height {height}, asked for was {next}")));
        }
        let mut batches = Vec::with_capacity(finalized.block.refs.len());
        for named in &finalized.block.refs {
            if named.cluster == self.me.cluster {
                batches.push(AdvanceBatch::Own(named.digest));
                continue;
            }
            let batch = match at_hand.remove(&named.digest) {
                Some(batch) => batch,
                None => self.fetch_batch(device, named.digest).await?,
            };
            batches.push(AdvanceBatch::Full(batch));
        }
        let batches = BoundedVec::try_from(batches).expect("as many as references, which have the same bound");
        Ok(AdvancePart::split(
            height,
            digest,
            &encode(&Advance { finalized, batches }),
        ))
    }

    async fn fetch_batch(&self, first: DeviceId, digest: Digest) -> Result<CertifiedBatch, Obstacle> {
        let mut last = Obstacle::Source("no validator is known".into());
        let others = self
            .validators_by_distance()
            .into_iter()
            .filter(|device| *device != first);
        for device in std::iter::once(first).chain(others) {
            let question = body(&FetchByDigest { digest });
            let found = self
                .call_validator(device, FrameKind::FeedBatch, question, FETCH_DEADLINE)
                .await;
            let decoded = found.and_then(|bytes| {
                decode::<CertifiedBatch>(&bytes).map_err(|error| Obstacle::Source(error.to_string()))
            });
            match decoded {
                Ok(batch) if batch.digest(&self.chain) == digest => return Ok(batch),
                Ok(_) => last = Obstacle::Source("another batch than the one asked for".into()),
                Err(obstacle) => last = obstacle,
            }
        }
        Err(last)
    }

    async fn call_validator(
        &self,
        device: DeviceId,
        kind: FrameKind,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, Obstacle> {
        let call = self.ports.transport.call(device, kind, body, deadline);
        call.await.map_err(|error| Obstacle::Source(error.to_string()))
    }

    /// Proposes parts before the ones ahead of them are committed, in their order: the log takes them in the order in which they are
    /// handed over, and what comes after a part that was not taken is a no-op.
    async fn propose_in_order(&self, parts: Vec<AdvancePart>) -> Result<(), Obstacle> {
        let proposals = parts.into_iter().map(LogEntry::GlobalAdvance).map(|entry| async move {
            match self.propose(&entry, self.limits.write_deadline).await {
                ProposeOutcome::Committed { .. } => Ok(()),
                ProposeOutcome::Refused(refusal) => Err(Obstacle::Log(refusal.to_string())),
                ProposeOutcome::Unknown => Err(Obstacle::Log("the outcome is not known".into())),
            }
        });
        // Polled in order for the first time, which is when a proposal is handed over. Never more than a
        // few at once: the largest block is larger than what may be in flight.
        let mut proposals = futures::stream::iter(proposals).buffered(PARTS_IN_FLIGHT_MAX);
        while let Some(outcome) = proposals.next().await {
            outcome?;
        }
        Ok(())
    }
}

/// Blocks that enter the log together: while one commits, a fleet at work finalizes several.
#[derive(Default)]
struct Group {
    parts: Vec<AdvancePart>,
    blocks: usize,
    bytes: usize,
    last: Height,
}

impl Group {
    fn add(&mut self, height: Height, parts: Vec<AdvancePart>) {
        self.bytes += parts.iter().map(|part| part.bytes.len()).sum::<usize>();
        self.parts.extend(parts);
        self.blocks += 1;
        self.last = height;
    }

    fn is_full(&self) -> bool {
        self.blocks >= GROUP_BLOCKS_MAX || self.bytes >= GROUP_BYTES_MAX
    }
}
