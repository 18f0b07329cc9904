//! The way back: the leader follows the finalized chain and brings it into the cluster's log.
//!
//! In: finalized blocks and batches from validators. Out: `GlobalAdvance` parts in the log.
//!
//! # Rules
//! * One member of a cluster follows, its leader; the others get the blocks by their log. One link to
//!   the ground is enough.
//! * Upon blocks: verify their proofs, find the bytes of every batch they refer to (the own cluster's
//!   are in the outbox), hold them against the references, split, propose the parts in order. A group of blocks per
//!   batch interval, and full groups at once: one by one, a cluster would fall behind a chain that grows faster than
//!   its log commits.
//! * Upon a validator that fails, lags, lies or is silent: the next one (`sources`).
//! * Nothing here is trusted: every member checks the same again before it appends and when it applies.
//!
//! # Invariants
//! * agreement: blocks enter at the height that is next; parts of two leaders never mix.
//!
//! # Why
//! What is checked here would be refused by the log as well, but too late: the log does not know who gave it, and takes the
//! parts of a large block one by one, for nothing.

mod sources;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use common::{
    batch::CertifiedBatch,
    block::{Advance, AdvanceBatch, AdvancePart, BatchRef, FinalizedBlock},
    codec::{BoundedVec, decode, encode},
    entry::LogEntry,
    ids::{BlockTime, ChainId, DeviceId, Digest, Height},
    wire::{
        feed::{FetchByDigest, Follow, Followed},
        frame::FrameKind,
    },
};
use futures::StreamExt;
use transport::ports::CallError;

use self::sources::{Sources, Turn};
use crate::{
    raft::{ProposeOutcome, ProposeRefusal},
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
    /// The link's fault: nothing was sent.
    #[error("{0}")]
    Link(String),
    /// The validator did not answer in time, or refused: ask another one.
    #[error("{0}")]
    NoAnswer(String),
    /// The validator's fault: ask another one.
    #[error("{0}")]
    Source(String),
    /// Ours: not leading, or no quorum.
    #[error("the log did not take it: {0}")]
    Log(String),
}

impl From<CallError> for Obstacle {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unreachable(_) => Self::Link(error.to_string()),
            _ => Self::NoAnswer(error.to_string()),
        }
    }
}

/// What an answer brought.
struct Gave {
    /// Time of the last block that entered; `None`: there were none.
    newest: Option<BlockTime>,
    answered_us: u64,
    /// How long the log took for full groups of them.
    entering_us: u64,
    /// Of the blocks that entered.
    bytes: usize,
    /// The validator gave a block, and a batch of it somebody else had to give.
    is_short: bool,
}

/// Where the batches of one answer come from.
struct Supply {
    device: DeviceId,
    /// They came with the blocks.
    at_hand: BTreeMap<Digest, CertifiedBatch>,
    /// `device` did not give one that it was asked for.
    is_short: bool,
}

impl Shell {
    /// Runs as long as the agent.
    pub(crate) async fn follow_blocks(self: Arc<Self>) {
        // The pace of beats: a cluster that is unheard of for as long has lost nothing yet.
        let contact_us = u64::from(self.genesis.timing.lease.custody_ms) * 1_000 / 4;
        let mut sources = Sources::new(contact_us);
        while !self.is_ending() {
            let changes = self.raft.leader_changes();
            let seen = changes.version();
            // A log in conflict takes no more blocks, whoever leads.
            if !self.is_leader() || self.machine.pulse().get().is_conflict {
                sources.pause();
                let _ = self.within(LOOK_INTERVAL, changes.changed(seen)).await;
                continue;
            }
            let is_alive = |device: &DeviceId| self.is_alive(device);
            let Some(turn) = sources.turn(self.validators_by_distance(), is_alive, self.now_us()) else {
                self.pause(FOLLOW_SLACK).await;
                continue;
            };
            let begun = tokio::time::Instant::now();
            let transfer = Duration::from_micros(sources.transfer_us(turn, self.now_us()));
            match self.follow_once(turn, transfer).await {
                Ok(gave) => {
                    let behind = sources.gave(turn, gave.newest, gave.answered_us);
                    sources.entered(gave.bytes, gave.entering_us);
                    for device in behind.into_iter().chain(gave.is_short.then_some(turn.device)) {
                        tracing::warn!(%device, "a validator holds blocks or batches back");
                        sources.doubt(device, self.now_us(), self.ports.entropy.next_u64());
                    }
                    if gave.newest.is_none() {
                        // One that does not wait must not make this a tight loop.
                        self.pause(LOOK_INTERVAL.saturating_sub(begun.elapsed())).await;
                    }
                }
                Err(Obstacle::Log(why)) => {
                    tracing::debug!(why, "a block did not enter the log; it is tried again");
                    self.pause(Duration::from_millis(self.raft_config.heartbeat_ms)).await;
                }
                Err(obstacle) => self.leave_source(&mut sources, turn, &obstacle).await,
            }
        }
    }

    async fn leave_source(&self, sources: &mut Sources, turn: Turn, obstacle: &Obstacle) {
        let device = turn.device;
        tracing::debug!(%device, %obstacle, "a validator was of no help on the way down");
        let (now_us, jitter_us) = (self.now_us(), self.ports.entropy.next_u64());
        self.validators.note(device, false, now_us, jitter_us);
        match obstacle {
            Obstacle::NoAnswer(_) => sources.no_answer(turn, now_us, jitter_us),
            Obstacle::Source(_) => sources.doubt(device, now_us, jitter_us),
            // The order changes with the note.
            Obstacle::Link(_) if turn.is_comparison => sources.begin_again(),
            Obstacle::Link(_) | Obstacle::Log(_) => sources.pause(),
        }
        self.pause(self.jittered(LOOK_INTERVAL)).await;
    }

    /// Asks for what is next, and brings it in. `transfer`: an answer may take so much longer than a small one.
    async fn follow_once(&self, turn: Turn, transfer: Duration) -> Result<Gave, Obstacle> {
        let from = self.machine.pulse().get().height.next();
        let (answer, answered_us) = self.ask_for_blocks(turn, from, transfer).await?;
        let mut supply = Supply {
            device: turn.device,
            at_hand: BTreeMap::new(),
            is_short: false,
        };
        for batch in answer.batches.into_inner() {
            supply.at_hand.insert(batch.digest(&self.chain), batch);
        }
        let (mut newest, mut bytes, mut entering) = (None, 0, Duration::ZERO);
        let mut blocks = (from.0..).map(Height).zip(answer.blocks.into_inner()).peekable();
        while blocks.peek().is_some() {
            let begun = tokio::time::Instant::now();
            let mut group = Group::default();
            while !group.is_full()
                && let Some((next, finalized)) = blocks.next()
            {
                let time = finalized.block.header.time;
                group.add(next, time, self.parts_of(next, finalized, &mut supply).await?);
            }
            let is_full = group.is_full();
            newest = Some(group.newest);
            let before = self.machine.pulse().get().height;
            if before >= group.last {
                // They stood in the log already, from a leader before, and were applied meanwhile.
                continue;
            }
            let handed_over = tokio::time::Instant::now();
            self.propose_in_order(group.parts).await?;
            if is_full {
                // Who gives less answers for the time that little takes.
                entering += handed_over.elapsed();
            }
            let height = self.machine.pulse().get().height;
            if height == before {
                return Err(Obstacle::Source(format!("blocks above {before} changed nothing")));
            }
            bytes += group.bytes;
            // Others may have brought in more meanwhile.
            if height != group.last {
                break;
            }
            // After a full group more wait: a cluster that was away catches up as fast as its log commits.
            if !is_full {
                self.pause(self.limits.batch_interval.saturating_sub(begun.elapsed()))
                    .await;
            }
        }
        self.validators.note(turn.device, true, self.now_us(), 0);
        Ok(Gave {
            newest,
            answered_us,
            entering_us: u64::try_from(entering.as_micros()).unwrap_or(u64::MAX),
            bytes,
            is_short: supply.is_short,
        })
    }

    /// The answer to a question for blocks from `from` on, and when it came.
    async fn ask_for_blocks(&self, turn: Turn, from: Height, transfer: Duration) -> Result<(Followed, u64), Obstacle> {
        let idle_ms = self.genesis.timing.idle_block_interval_ms;
        let wait_ms = idle_ms.clamp(FOLLOW_WAIT_MS_MIN, FOLLOW_WAIT_MS_MAX);
        let question = Follow {
            cluster: self.me.cluster,
            from,
            wait_ms: if turn.is_comparison { 0 } else { wait_ms },
        };
        let round_trips = self.ports.transport.rtt(&turn.device).unwrap_or_default() * 4;
        let deadline = Duration::from_millis(u64::from(question.wait_ms)) + round_trips + FOLLOW_SLACK + transfer;
        let answer = self
            .call_validator(turn.device, FrameKind::Follow, body(&question), deadline)
            .await?;
        let answered_us = self.now_us();
        let answer = decode(&answer).map_err(|error| Obstacle::Source(error.to_string()))?;
        Ok((answer, answered_us))
    }

    async fn parts_of(
        &self,
        next: Height,
        finalized: FinalizedBlock,
        supply: &mut Supply,
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
            batches.push(if named.cluster == self.me.cluster {
                AdvanceBatch::Own(named.digest)
            } else {
                AdvanceBatch::Full(self.batch_of(named, supply).await?)
            });
        }
        let batches = BoundedVec::try_from(batches).expect("as many as references, which have the same bound");
        Ok(AdvancePart::split(
            height,
            digest,
            &encode(&Advance { finalized, batches }),
        ))
    }

    /// The batch that a block refers to, held against the reference.
    async fn batch_of(&self, named: &BatchRef, supply: &mut Supply) -> Result<CertifiedBatch, Obstacle> {
        if let Some(batch) = supply.at_hand.remove(&named.digest) {
            return check_named(batch, named, &self.chain).map_err(Obstacle::Source);
        }
        if !supply.is_short {
            match self.fetch_batch(supply.device, named).await {
                Ok(batch) => return Ok(batch),
                Err(obstacle) => self.blame(supply.device, &obstacle),
            }
            supply.is_short = true;
        }
        let mut last = Obstacle::Source("no other validator is known".into());
        let others = self.validators_by_distance();
        for device in others.into_iter().filter(|device| *device != supply.device) {
            match self.fetch_batch(device, named).await {
                Ok(batch) => return Ok(batch),
                Err(obstacle) => {
                    self.blame(device, &obstacle);
                    last = obstacle;
                }
            }
        }
        Err(last)
    }

    fn blame(&self, device: DeviceId, obstacle: &Obstacle) {
        tracing::debug!(%device, %obstacle, "a validator did not give a batch");
        let jitter_us = self.ports.entropy.next_u64();
        self.validators.note(device, false, self.now_us(), jitter_us);
    }

    async fn fetch_batch(&self, device: DeviceId, named: &BatchRef) -> Result<CertifiedBatch, Obstacle> {
        let question = body(&FetchByDigest { digest: named.digest });
        let answer = self.call_validator(device, FrameKind::FeedBatch, question, FETCH_DEADLINE);
        let bytes = answer.await.map_err(|obstacle| match obstacle {
            // Who gives a block has its batches.
            Obstacle::NoAnswer(why) => Obstacle::Source(why),
            other => other,
        })?;
        let batch = decode(&bytes).map_err(|error| Obstacle::Source(error.to_string()))?;
        check_named(batch, named, &self.chain).map_err(Obstacle::Source)
    }

    async fn call_validator(
        &self,
        device: DeviceId,
        kind: FrameKind,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, Obstacle> {
        let call = self.ports.transport.call(device, kind, body, deadline);
        Ok(call.await?)
    }

    /// Proposes parts before the ones ahead of them are committed, in their order: the log takes them in the order in which they are
    /// handed over, and what comes after a part that was not taken is a no-op.
    async fn propose_in_order(&self, parts: Vec<AdvancePart>) -> Result<(), Obstacle> {
        let proposals = parts.into_iter().map(LogEntry::GlobalAdvance).map(|entry| async move {
            match self.propose(&entry, self.limits.write_deadline).await {
                ProposeOutcome::Committed { .. } => Ok(()),
                // Every member would refuse it, whoever proposes it.
                ProposeOutcome::Refused(ProposeRefusal::BadCommand(why)) => Err(Obstacle::Source(why)),
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

/// The batch, if it is the one that `named` refers to: its rows too, which the digest does not cover directly.
fn check_named(batch: CertifiedBatch, named: &BatchRef, chain: &ChainId) -> Result<CertifiedBatch, String> {
    if BatchRef::to(&batch, chain) != *named {
        return Err("another batch than the one that the block refers to".into());
    }
    batch.check_content(chain).map_err(|error| error.to_string())?;
    Ok(batch)
}

/// Blocks that enter the log together: while one commits, a fleet at work finalizes several.
#[derive(Default)]
struct Group {
    parts: Vec<AdvancePart>,
    blocks: usize,
    bytes: usize,
    last: Height,
    newest: BlockTime,
}

impl Group {
    fn add(&mut self, height: Height, time: BlockTime, parts: Vec<AdvancePart>) {
        self.bytes += parts.iter().map(|part| part.bytes.len()).sum::<usize>();
        self.parts.extend(parts);
        self.blocks += 1;
        self.last = height;
        self.newest = time;
    }

    fn is_full(&self) -> bool {
        self.blocks >= GROUP_BLOCKS_MAX || self.bytes >= GROUP_BYTES_MAX
    }
}
