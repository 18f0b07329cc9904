//! The replicated machine of a cluster: the pure queue, fed by Raft, and what this member knows beside it.
//!
//! In: committed commands with their positions. Out: answers; a [`Pulse`] that wakes whoever waits for
//! batches, blocks or positions. Called by: Raft (apply), everything else (reads).
//!
//! # Rules
//! * Equal commands at equal positions give equal queues and answers. Leases, freshness and times of
//!   apply stand beside the queue and never flow into it.
//! * Upon a command that does not decode: a recorded no-op. Members refuse to append one.
//! * Upon a snapshot from a peer: every author signature of outbox and open batch is checked before the
//!   state is accepted, since this member attests what it holds.
//!
//! # Invariants
//! * linearizable: the queue is the fold of the log up to the applied position.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cluster_core::{
    admission::StaticChecker,
    freshness::{Freshness, FreshnessLimits},
    lease::{LeaseWatch, Leases},
    queue::{Applied, ClusterQueue, QueueEvent, QueueRestoring},
};
use common::{
    batch::BatchItem,
    bug::{self, Bug},
    codec::{Wire, decode, encode},
    entry::{LogEntry, StaticVerdict},
    genesis::{Genesis, RoleSet},
    ids::{BatchSeq, ClusterId, DeviceId, Digest, EntryId, Height, LogPosition, RaftNodeId, Term},
    registry::Registry,
    verdict::Answer,
};
use serde::{Deserialize, Serialize};
use transport::watch::Watch;

use crate::{
    ports::Clock,
    raft::{AppendCheck, Origin, ReplicatedMachine, RestoreError, RestoreJob, SnapshotJob, SnapshotSource},
    signatures::Signatures,
};

/// Entries signed here whose finality is awaited as a sign of freshness; the oldest goes.
const OWN_ENTRIES_MAX: usize = 256;

/// What others wait for. Changes with every applied entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Last applied position.
    pub applied: LogPosition,
    /// Newest closed batch.
    pub closed: BatchSeq,
    /// Newest final batch.
    pub last_final: BatchSeq,
    /// Rows in the open batch.
    pub open_len: usize,
    /// Global height applied.
    pub height: Height,
    /// Finalized blocks contradict this log: one names another batch, or another state.
    pub is_conflict: bool,
}

/// The part of the [`Pulse`] that most tasks wait for: entries that are applied in between do not wake them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Newest closed batch.
    pub closed: BatchSeq,
    /// Newest final batch.
    pub last_final: BatchSeq,
    /// Nothing is in the open batch.
    pub is_open_empty: bool,
    /// Global height applied.
    pub height: Height,
    /// Finalized blocks contradict this log: one names another batch, or another state.
    pub is_conflict: bool,
}

impl From<Pulse> for Turn {
    fn from(pulse: Pulse) -> Self {
        Self {
            closed: pulse.closed,
            last_final: pulse.last_final,
            is_open_empty: pulse.open_len == 0,
            height: pulse.height,
            is_conflict: pulse.is_conflict,
        }
    }
}

/// Everything under the machine's lock.
pub struct State {
    /// The replicated state.
    pub queue: ClusterQueue,
    /// This drone's leases.
    pub leases: Leases,
    /// When claims and renewals were applied here, for a leader.
    pub lease_watch: LeaseWatch,
    /// How old answers may be.
    pub freshness: Freshness,
    /// The newest term, and when its first entry was applied here.
    term_applied: (Term, u64),
    own_entries: BTreeMap<EntryId, u64>,
    own_order: VecDeque<EntryId>,
}

impl State {
    /// When the first entry of `term` was applied here; `None` if none was.
    #[must_use]
    pub fn term_applied_us(&self, term: Term) -> Option<u64> {
        (self.term_applied.0 == term).then_some(self.term_applied.1)
    }

    /// An entry was signed here; `t0_us` was read before that.
    pub fn signed(&mut self, id: EntryId, t0_us: u64) {
        if self.own_entries.insert(id, t0_us).is_none() {
            self.own_order.push_back(id);
        }
        if self.own_order.len() > OWN_ENTRIES_MAX
            && let Some(oldest) = self.own_order.pop_front()
        {
            self.own_entries.remove(&oldest);
        }
    }

    fn after_apply(&mut self, position: LogPosition, applied: &Applied, now_us: u64) {
        self.moved_to(position, now_us);
        self.leases.after_apply(&self.queue, applied);
        self.lease_watch.after_apply(&self.queue, applied, now_us);
        for event in &applied.events {
            match event {
                QueueEvent::BlockApplied { .. } if bug::active(Bug::BlockIsEvidence) => {
                    self.freshness.own_entry_final(now_us);
                }
                QueueEvent::BlockApplied { own_cut: Some(cut), .. } => self.freshness.own_batch_final(*cut),
                QueueEvent::EntriesFinal { entries, .. } => {
                    for (id, _) in entries {
                        if let Some(t0_us) = self.own_entries.remove(id) {
                            self.freshness.own_entry_final(t0_us);
                        }
                    }
                }
                QueueEvent::Quarantined(_) => self.distrust(),
                _ => {}
            }
        }
        if self.own_order.len() > self.own_entries.len() {
            let known = &self.own_entries;
            self.own_order.retain(|id| known.contains_key(id));
        }
    }

    /// Ages follow what the queue says of its global view.
    fn distrust(&mut self) {
        if self.queue.is_global_refuted() {
            self.freshness.global_refuted();
        }
    }

    fn moved_to(&mut self, position: LogPosition, now_us: u64) {
        if position.term > self.term_applied.0 {
            self.term_applied = (position.term, now_us);
        }
        self.freshness.applied(position.index);
    }

    fn pulse(&self) -> Pulse {
        let batcher = self.queue.batcher();
        Pulse {
            applied: self.queue.applied().0,
            closed: batcher.last_closed().seq,
            last_final: batcher.last_final().seq,
            open_len: batcher.open_len(),
            height: self.queue.global_height(),
            is_conflict: self.queue.conflict().is_some(),
        }
    }
}

/// What the machine answers to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineAnswer(pub Option<Answer>);

impl Wire for MachineAnswer {
    const BYTES_MAX: usize = 256;
}

/// The machine. One per member.
pub struct Machine {
    genesis: Arc<Genesis>,
    cluster: ClusterId,
    signatures: Signatures,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    pulse: Watch<Pulse>,
    turn: Watch<Turn>,
}

impl Machine {
    /// The machine before the first entry.
    #[must_use]
    pub fn new(
        genesis: Arc<Genesis>,
        cluster: ClusterId,
        device: DeviceId,
        freshness: FreshnessLimits,
        clock: Arc<dyn Clock>,
        signatures: Signatures,
    ) -> Self {
        let clocks = genesis.timing.clocks;
        let state = State {
            queue: ClusterQueue::genesis(genesis.clone(), cluster),
            leases: Leases::new(device, &clocks),
            lease_watch: LeaseWatch::new(clocks),
            freshness: Freshness::new(clocks.drift_ppm, freshness),
            term_applied: (Term(0), 0),
            own_entries: BTreeMap::new(),
            own_order: VecDeque::new(),
        };
        let pulse = state.pulse();
        Self {
            genesis,
            cluster,
            signatures,
            clock,
            state: Mutex::new(state),
            pulse: Watch::new(pulse),
            turn: Watch::new(pulse.into()),
        }
    }

    /// Looks at the state, or notes something beside the queue. Never waits inside.
    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.lock())
    }

    /// What changes with every applied entry.
    #[must_use]
    pub fn pulse(&self) -> &Watch<Pulse> {
        &self.pulse
    }

    /// What changes when batches close and become final, and with each block.
    #[must_use]
    pub fn turn(&self) -> &Watch<Turn> {
        &self.turn
    }

    fn beat(&self, pulse: Pulse) {
        self.pulse.set_if_changed(pulse);
        self.turn.set_if_changed(pulse.into());
    }

    /// The check that a command must pass before it enters any log; members are looked up in `registry` as
    /// drones of `cluster`.
    #[must_use]
    pub fn append_check(&self, registry: Arc<Registry>, cluster: ClusterId) -> StaticAppendCheck {
        StaticAppendCheck {
            registry,
            cluster,
            checker: StaticChecker::of(&self.lock().queue),
            signatures: self.signatures.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic inside `apply` ends the process; a reader's panic leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_us(&self) -> u64 {
        self.clock.now().us
    }
}

impl ReplicatedMachine for Machine {
    fn apply(&self, position: LogPosition, leader: RaftNodeId, chain: Digest, command: &[u8]) -> Vec<u8> {
        let now_us = self.now_us();
        let mut state = self.lock();
        let answer = match decode::<LogEntry>(command) {
            Ok(entry) => {
                let applied = state
                    .queue
                    .apply(position, leader, chain, entry, &mut self.signatures.clone());
                state.after_apply(position, &applied, now_us);
                applied.answer
            }
            Err(error) => {
                tracing::error!(index = position.index.0, %error, "a committed command does not decode; it changes nothing");
                state.queue.advance_position(position, chain);
                state.moved_to(position, now_us);
                None
            }
        };
        let pulse = state.pulse();
        drop(state);
        self.beat(pulse);
        encode(&MachineAnswer(answer))
    }

    fn advance(&self, position: LogPosition, chain: Digest) {
        let now_us = self.now_us();
        let mut state = self.lock();
        state.queue.advance_position(position, chain);
        state.moved_to(position, now_us);
        let pulse = state.pulse();
        drop(state);
        self.beat(pulse);
    }

    fn snapshot(&self) -> SnapshotJob {
        let view = self.lock().queue.view();
        Box::new(move |sink| view.write_pieces(|section, bytes| sink.put(section, bytes)))
    }

    fn prepare(
        self: Arc<Self>,
        position: LogPosition,
        chain: Digest,
        origin: Origin,
        source: &mut dyn SnapshotSource,
    ) -> Result<RestoreJob, RestoreError> {
        let mut restoring = QueueRestoring::new(self.genesis.clone(), self.cluster);
        while let Some((section, bytes)) = source.next().map_err(refuse)? {
            restoring.add(section, &bytes).map_err(refuse)?;
        }
        let queue = restoring.finish().map_err(refuse)?;
        if queue.applied() != (position, chain) {
            return Err(RestoreError(format!(
                "it stands at {:?}, announced was {position:?}",
                queue.applied().0
            )));
        }
        if origin == Origin::Peer {
            check_signatures(&queue, &mut self.signatures.clone()).map_err(RestoreError)?;
        }
        Ok(Box::new(move || self.become_queue(position, queue)))
    }
}

fn refuse(error: impl std::fmt::Display) -> RestoreError {
    RestoreError(error.to_string())
}

impl Machine {
    /// Makes `queue`, which stands at `position`, the state in force.
    fn become_queue(&self, position: LogPosition, queue: ClusterQueue) {
        let now_us = self.now_us();
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.queue, queue);
        state.leases.forget();
        let State { queue, lease_watch, .. } = &mut *state;
        lease_watch.refresh(queue, now_us);
        state.distrust();
        state.moved_to(position, now_us);
        let pulse = state.pulse();
        drop(state);
        self.beat(pulse);
        // Not under the lock: it may be large.
        drop(before);
    }
}

/// Every author signature that this member will attest: of the outbox, and of the batch that is still
/// open, which it will close like every other member.
fn check_signatures(queue: &ClusterQueue, signatures: &mut Signatures) -> Result<(), String> {
    let batcher = queue.batcher();
    let closed = batcher.outbox().flat_map(|batch| batch.entries.iter());
    for row in closed.chain(batcher.open_rows()) {
        let BatchItem::Author(entry) = &row.item else { continue };
        match entry.clone().check_with(queue.registry(), signatures) {
            StaticVerdict::Good(_) => {}
            StaticVerdict::Bad(fault) => return Err(format!("entry {}: {fault}", row.index)),
            StaticVerdict::UnknownKey => return Err(format!("entry {}: unknown key", row.index)),
        }
    }
    Ok(())
}

/// Checks what is the same for ever about a command, with the signatures remembered.
pub struct StaticAppendCheck {
    registry: Arc<Registry>,
    cluster: ClusterId,
    checker: StaticChecker,
    signatures: Signatures,
}

impl AppendCheck for StaticAppendCheck {
    fn check(&self, command: &[u8]) -> Result<(), String> {
        let entry: LogEntry = decode(command).map_err(|error| error.to_string())?;
        self.checker
            .check(&entry, &mut self.signatures.clone())
            .map_err(|error| error.to_string())
    }

    fn check_members(&self, members: &[(RaftNodeId, DeviceId)]) -> Result<(), String> {
        for (raft, device) in members {
            let member = self.registry.by_idx(raft.idx());
            // Its status is not asked: a revocation that comes later does not undo a membership.
            let is_backed = member.is_some_and(|member| {
                member.id == *device && member.cluster == Some(self.cluster) && member.may(RoleSet::CLUSTER_VOTE)
            });
            if !is_backed {
                return Err(format!("{raft} as {device} is no voter's device of this cluster"));
            }
        }
        Ok(())
    }
}
