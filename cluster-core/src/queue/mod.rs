//! The replicated state of one cluster: a pure function of its log.
//!
//! In: log entries with their positions. Out: answers, events. Called by: the agent's replicated
//! machine, which is the one place that applies.
//!
//! # Rules
//! * Upon an author-signed entry: static verdict under the keys of the state at this position, then
//!   the number stream, then the dynamic rules ([`decide`]). Whoever fails is a no-op with a reason.
//! * A repeated number with the same content gets the same answer and enters no batch. A row of a
//!   batch is exactly an entry that used up its number.
//! * `Renew` is in no number stream and in no batch: the holder's counter orders it.
//! * Cluster-scope tasks are decided here. `Submit`, `Cancel`, operator's `Requeue` and `ForceRequeue`
//!   of fleet scope are accepted for ordering here and take effect at their `GlobalAdvance`.
//! * `not_after_height` is judged against this log's own global height.
//! * A claimed task becomes claimable only by its holder, the end of its lease, or an operator's
//!   `ForceRequeue`.
//!
//! # Invariants
//! * linearizable: every member that applied the same log has the same state, digest included.
//! * exactly-once: each entry that used up a number is in exactly one batch.
//! * one-holder: a task has at most one holder, and a holder's claims are the rows that name it.
//! * snapshot-is-replay: a restored snapshot equals the state after the log it stands for.
//!
//! # Why
//! Two tiers judge one entry from one state: what depends on this cluster's log is decided here and
//! travels as the row's verdict; what depends on the order of all clusters comes back in blocks.

mod advance;
mod decide;
mod row;
mod snapshot;
mod view;

#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use common::{
    batch::{BatchEntry, BatchItem, RosterChange},
    codec::{Blob, Label},
    entry::{Action, Fence, LogEntry, SignatureOracle, SignedEntry, StaticVerdict, transition::Event},
    genesis::{FaultModel, Genesis},
    global_queue::GlobalQueue,
    ids::{
        BatchSeq, BlockTime, ChainId, ClusterId, DeviceId, Digest, EntryId, EntryNumber, Founding, Height,
        HolderCounter, KeyVersion, LogIndex, LogPosition, RaftNodeId, TaskId,
    },
    number_stream::{Lookup, NumberStream, content_tag},
    registry::Registry,
    roster::Roster,
    task::{Scope, TaskKey, TaskState},
    validator_set::ValidatorSet,
    verdict::{Answer, Reason, Verdict},
    wire::op::{EventView, Finality},
};
use serde::{Deserialize, Serialize};

pub use row::{Held, HolderRow, TaskRow};
pub use snapshot::SnapshotError;

use crate::{
    Shared,
    batcher::{Batcher, Conflict, OutboxBatch},
    global_view::Collected,
};
use decide::Change;

/// Tasks that one drone may hold.
pub const CLAIMS_PER_DEVICE_MAX: usize = 64;
/// Events of one task kept until they are final; the oldest report goes first.
pub const PENDING_EVENTS_MAX: usize = 256;

/// What is encoded into a snapshot, the global queue apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    chain_id: ChainId,
    cluster: ClusterId,
    founding: Founding,
    applied: LogPosition,
    chain: Digest,
    rows: BTreeMap<TaskId, Shared<TaskRow>>,
    /// Events of this log that are not final; the final ones stand in the global queue.
    pending: BTreeMap<TaskId, Shared<Vec<EventView>>>,
    keys: BTreeMap<(DeviceId, TaskKey), TaskId>,
    streams: BTreeMap<(DeviceId, KeyVersion), Shared<NumberStream>>,
    holders: BTreeMap<DeviceId, HolderRow>,
    batcher: Batcher,
    collected: Collected,
    conflict: Option<Conflict>,
}

/// What follows from the rows and is rebuilt instead of stored.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Derived {
    cluster: ClusterId,
    /// Cluster-scope tasks that expire, by deadline.
    deadlines: BTreeSet<(BlockTime, TaskId)>,
    /// Cluster-scope tasks that wait for a task, by that task.
    waiting: BTreeMap<TaskId, BTreeSet<TaskId>>,
    /// Open cluster-scope tasks that wait for others.
    linked: BTreeSet<TaskId>,
    /// Tasks of this cluster that nobody holds, the most urgent first.
    unclaimed: BTreeSet<Urgency>,
    /// Rows by state, in the order of [`TaskState::ALL`].
    counts: [u32; 10],
    /// Sum of the digests of all rows: equal states have equal sums, whatever the order of changes.
    sum: [u64; 4],
}

/// Highest priority, then earliest deadline, then task.
type Urgency = (Reverse<u8>, u64, TaskId);

/// What one log entry did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The author-signed entry, if it was one.
    pub entry: Option<EntryId>,
    /// What its author is answered.
    pub answer: Option<Answer>,
    /// What changed, in order.
    pub events: Vec<QueueEvent>,
}

/// Something that a member of the cluster acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueEvent {
    /// A batch closed: attest it.
    BatchClosed(Shared<OutboxBatch>),
    /// A batch of this cluster is final: records and attestations of it may go.
    BatchFinal {
        /// Which.
        seq: BatchSeq,
        /// Height of the block.
        height: Height,
    },
    /// Author-signed entries of this cluster that became final, with the global tier's decisions.
    EntriesFinal {
        /// Height of the block.
        height: Height,
        /// In order of the block.
        entries: Vec<(EntryId, Verdict)>,
    },
    /// A finalized block took effect.
    BlockApplied {
        /// Its height.
        height: Height,
        /// Its time.
        time: BlockTime,
        /// Index at which the newest batch of this cluster in it was closed.
        own_cut: Option<LogIndex>,
    },
    /// A task has another state.
    TaskChanged {
        /// Which.
        task: TaskId,
        /// `None` for a new row.
        from: Option<TaskState>,
        /// Now.
        to: TaskState,
    },
    /// A drone of this cluster holds a task.
    Claimed {
        /// Which.
        task: TaskId,
        /// Who.
        device: DeviceId,
        /// Its token.
        fence: Fence,
    },
    /// All claims of a drone were renewed.
    Renewed {
        /// Who.
        device: DeviceId,
        /// By the entry at this index.
        index: LogIndex,
    },
    /// A drone holds a task no more. If the task was ended or taken from it, it is told to abort.
    HoldEnded {
        /// Which.
        task: TaskId,
        /// Who held it.
        device: DeviceId,
        /// Its token.
        fence: Fence,
        /// State of the task now.
        state: TaskState,
    },
    /// The roster in force after this entry.
    RosterChanged(Roster),
    /// A finalized block names another batch than this log built: stop as voter, with this proof.
    Quarantined(Conflict),
}

/// The state of one cluster after a prefix of its log. Cloning copies pointers: a view for a snapshot.
#[derive(Clone, Debug)]
pub struct ClusterQueue {
    genesis: Arc<Genesis>,
    set: Arc<ValidatorSet>,
    state: State,
    global: GlobalQueue,
    derived: Derived,
}

impl ClusterQueue {
    /// The state before the first entry of founding 0.
    ///
    /// # Panics
    /// If `cluster` is not in the genesis file: configuration was checked against it.
    #[must_use]
    pub fn genesis(genesis: Arc<Genesis>, cluster: ClusterId) -> Self {
        let roster = genesis
            .founding_roster(cluster)
            .expect("the cluster is in the genesis file");
        let founding = Founding(0);
        Self {
            set: Arc::new(ValidatorSet::from_genesis(&genesis)),
            global: GlobalQueue::genesis(&genesis),
            state: State {
                chain_id: genesis.chain_id(),
                cluster,
                founding,
                applied: LogPosition::default(),
                chain: Digest::default(),
                rows: BTreeMap::new(),
                pending: BTreeMap::new(),
                keys: BTreeMap::new(),
                streams: BTreeMap::new(),
                holders: BTreeMap::new(),
                batcher: Batcher::new(cluster, founding, roster),
                collected: Collected::default(),
                conflict: None,
            },
            derived: Derived::new(cluster),
            genesis,
        }
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.state.cluster
    }

    /// Its founding.
    #[must_use]
    pub fn founding(&self) -> Founding {
        self.state.founding
    }

    /// The fleet.
    #[must_use]
    pub fn chain_id(&self) -> &ChainId {
        &self.state.chain_id
    }

    /// The genesis file.
    #[must_use]
    pub fn genesis_file(&self) -> &Arc<Genesis> {
        &self.genesis
    }

    /// The registry in force here.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        self.global.registry()
    }

    /// The validators whose finalizations are accepted here.
    #[must_use]
    pub fn validators(&self) -> &ValidatorSet {
        &self.set
    }

    /// What the attestation quorum must withstand.
    #[must_use]
    pub fn fault_model(&self) -> FaultModel {
        self.genesis.clusters[self.state.cluster.0 as usize].fault_model
    }

    /// Last applied position and the chain of the log there.
    #[must_use]
    pub fn applied(&self) -> (LogPosition, Digest) {
        (self.state.applied, self.state.chain)
    }

    /// Open batch, outbox and cursors.
    #[must_use]
    pub fn batcher(&self) -> &Batcher {
        &self.state.batcher
    }

    /// The verified view of the global queue.
    #[must_use]
    pub fn global(&self) -> &GlobalQueue {
        &self.global
    }

    /// Height of the last block that took effect.
    #[must_use]
    pub fn global_height(&self) -> Height {
        self.global.height()
    }

    /// Parts of the next block that were collected.
    #[must_use]
    pub fn collected(&self) -> &Collected {
        &self.state.collected
    }

    /// The roster in force.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        self.state.batcher.roster()
    }

    /// The proof that this log was forked, if a finalized block gave one.
    #[must_use]
    pub fn conflict(&self) -> Option<&Conflict> {
        self.state.conflict.as_ref()
    }

    /// Passes an entry of Raft's own (a new term, a membership): only the position moves.
    ///
    /// # Panics
    /// If the position does not ascend.
    pub fn advance_position(&mut self, position: LogPosition, chain: Digest) {
        assert!(
            position.index > self.state.applied.index,
            "positions ascend: {position:?} after {:?}",
            self.state.applied
        );
        self.state.applied = position;
        self.state.chain = chain;
    }

    /// Applies the entry at `position`. `leader` led when it was appended, `chain` is the chain of the
    /// log with it, `oracle` answers whether a signature is good.
    ///
    /// # Panics
    /// If the position does not ascend.
    pub fn apply(
        &mut self,
        position: LogPosition,
        leader: RaftNodeId,
        chain: Digest,
        entry: LogEntry,
        oracle: &mut impl SignatureOracle,
    ) -> Applied {
        assert!(
            position.index > self.state.applied.index,
            "positions ascend: {position:?} after {:?}",
            self.state.applied
        );
        let mut applied = Applied::default();
        let (height, fleet) = (self.global_height(), self.state.chain_id);
        match entry {
            LogEntry::Author(entry) => self.apply_author(position, leader, entry, oracle, &mut applied),
            LogEntry::Cut { seq } => {
                let closed = self.state.batcher.cut(seq, position, height, &fleet);
                applied.events.extend(closed.map(QueueEvent::BatchClosed));
            }
            LogEntry::Beat { seq } => {
                let closed = self.state.batcher.beat(seq, position, height, &fleet);
                applied.events.extend(closed.map(QueueEvent::BatchClosed));
            }
            LogEntry::Roster(change) => self.apply_roster(position, change, &mut applied),
            LogEntry::GlobalAdvance(part) => self.apply_part(position, part, oracle, &mut applied),
            LogEntry::RegistryNotice(_) => {}
        }
        self.state.applied = position;
        self.state.chain = chain;
        applied
    }

    fn apply_author(
        &mut self,
        position: LogPosition,
        leader: RaftNodeId,
        entry: SignedEntry,
        oracle: &mut impl SignatureOracle,
        applied: &mut Applied,
    ) {
        let id = entry.id(&self.state.chain_id);
        applied.entry = Some(id);
        let answer = |verdict| Answer {
            index: position.index,
            verdict,
        };
        let refused = |reason| Some(answer(Verdict::Rejected(reason)));
        let entry = match entry.check_with(self.global.registry(), oracle) {
            StaticVerdict::Good(entry) => entry.into_inner(),
            StaticVerdict::Bad(_) => {
                applied.answer = refused(Reason::Malformed);
                return;
            }
            StaticVerdict::UnknownKey => {
                applied.answer = refused(Reason::UnknownKey);
                return;
            }
        };
        if entry.header.cluster != self.state.cluster {
            applied.answer = refused(Reason::WrongCluster);
            return;
        }
        let is_renewal = matches!(entry.header.action, Action::Renew { .. });
        if !is_renewal {
            match self.lookup(&entry, id) {
                Lookup::Fresh => {}
                Lookup::Repeated(answer) => {
                    applied.answer = Some(answer);
                    return;
                }
                Lookup::Conflict => {
                    applied.answer = refused(Reason::Conflict);
                    return;
                }
                Lookup::OutsideWindow => {
                    applied.answer = refused(Reason::NumberWindow);
                    return;
                }
            }
        }
        let (verdict, change) = self.decide(&entry, id, position.index, leader);
        applied.answer = Some(answer(verdict));
        if !is_renewal {
            let stream = (entry.header.author, entry.header.key_version);
            let stream = self.state.streams.entry(stream).or_default();
            stream
                .make_mut()
                .record(entry.header.number, content_tag(&Digest(id.0)), answer(verdict));
        }
        self.perform(&entry, id, position.index, verdict, change, &mut applied.events);
        if !is_renewal {
            self.add_to_batch(position.index, verdict, BatchItem::Author(entry), &mut applied.events);
        }
    }

    /// What the number stream says about a statically good entry of this cluster.
    pub(crate) fn lookup(&self, entry: &SignedEntry, id: EntryId) -> Lookup {
        let stream = (entry.header.author, entry.header.key_version);
        let tag = content_tag(&Digest(id.0));
        match self.state.streams.get(&stream) {
            Some(stream) => stream.lookup(entry.header.number, tag),
            None => NumberStream::default().lookup(entry.header.number, tag),
        }
    }

    fn add_to_batch(&mut self, index: LogIndex, verdict: Verdict, item: BatchItem, events: &mut Vec<QueueEvent>) {
        let row = BatchEntry {
            founding: self.state.founding,
            index,
            verdict,
            item,
        };
        let height = self.global_height();
        let closed = self
            .state
            .batcher
            .add(row, self.state.applied, height, &self.state.chain_id);
        events.extend(closed.map(QueueEvent::BatchClosed));
    }

    fn perform(
        &mut self,
        entry: &SignedEntry,
        id: EntryId,
        index: LogIndex,
        verdict: Verdict,
        change: Change,
        events: &mut Vec<QueueEvent>,
    ) {
        let author = entry.header.author;
        let task = entry.header.action.task().unwrap_or(TaskId::from(id));
        match change {
            Change::Nothing => {}
            Change::Renew { counter } => {
                let holder = self.state.holders.entry(author).or_default();
                holder.counter = counter;
                holder.renewed_at = index;
                events.push(QueueEvent::Renewed { device: author, index });
                return;
            }
            Change::Row { row, counter } => {
                if let Some(counter) = counter {
                    self.state.holders.entry(author).or_default().counter = counter;
                }
                self.put_row(task, *row, events);
            }
        }
        if let Some(row) = self.state.rows.get(&task) {
            let event = EventView {
                entry: Some(id),
                what: word(entry.header.action.word()),
                author: Some(author),
                cluster: Some(self.state.cluster),
                index: Some(index),
                height: None,
                verdict,
                state: row.state(),
                note: note_of(entry),
            };
            self.remember(task, event);
            self.follow_links(task, index, events);
        }
    }

    /// Keeps an event until it is final; drops the oldest when too many wait.
    fn remember(&mut self, task: TaskId, event: EventView) {
        let events = self.state.pending.entry(task).or_default().make_mut();
        if events.len() == PENDING_EVENTS_MAX {
            events.remove(0);
        }
        events.push(event);
    }

    fn apply_roster(&mut self, position: LogPosition, change: RosterChange, applied: &mut Applied) {
        let answer = |verdict| Answer {
            index: position.index,
            verdict,
        };
        if let Err(reason) = self.check_roster_static(&change) {
            applied.answer = Some(answer(Verdict::Rejected(reason)));
            return;
        }
        applied.answer = Some(answer(Verdict::Granted));
        if change.roster == *self.roster() {
            return;
        }
        let roster = change.roster.clone();
        self.add_to_batch(
            position.index,
            Verdict::Granted,
            BatchItem::Roster(change),
            &mut applied.events,
        );
        applied.events.push(QueueEvent::RosterChanged(roster));
    }

    /// Whether a `Roster` entry is good: ordered, and every device with this key was enrolled for this
    /// cluster at or below this log's global height. Followers refuse to append a bad one.
    ///
    /// # Errors
    /// [`Reason::Malformed`], [`Reason::UnknownKey`] or [`Reason::WrongCluster`].
    pub fn check_roster_static(&self, change: &RosterChange) -> Result<(), Reason> {
        if !change.roster.is_ordered() {
            return Err(Reason::Malformed);
        }
        for member in &change.roster.members {
            let device = self
                .registry()
                .by_idx(member.raft.idx())
                .filter(|device| device.keys.len() > member.key_version.0 as usize)
                .ok_or(Reason::UnknownKey)?;
            if device.cluster != Some(self.state.cluster) {
                return Err(Reason::WrongCluster);
            }
        }
        Ok(())
    }

    /// Replaces a row, or adds one, and keeps everything derived in step. The one writer of rows.
    fn put_row(&mut self, task: TaskId, row: TaskRow, events: &mut Vec<QueueEvent>) {
        let before = self.state.rows.get(&task).cloned();
        let (from, to) = (before.as_ref().map(|row| row.state()), row.state());
        let held = |row: &TaskRow| row.holder().filter(|_| row.cluster == Some(self.state.cluster));
        let (was_held, is_held) = (before.as_deref().and_then(held), held(&row));
        if was_held != is_held {
            if let Some(claim) = was_held {
                let holder = self.state.holders.entry(claim.device).or_default();
                assert!(
                    holder.claims.remove(&task),
                    "a holder's claims are the rows that name it"
                );
                events.push(QueueEvent::HoldEnded {
                    task,
                    device: claim.device,
                    fence: claim.fence,
                    state: to,
                });
            }
            if let Some(claim) = is_held {
                self.state.holders.entry(claim.device).or_default().claims.insert(task);
                events.push(QueueEvent::Claimed {
                    task,
                    device: claim.device,
                    fence: claim.fence,
                });
            }
        }
        if from != Some(to) {
            events.push(QueueEvent::TaskChanged { task, from, to });
        }
        if let Some(before) = &before {
            self.derived.remove(&task, before);
        } else if row.scope == Scope::Cluster {
            self.state.keys.insert((row.author, row.task.key.clone()), task);
        }
        self.derived.add(&task, &row);
        self.state.rows.insert(task, Shared::new(row));
    }

    /// Lets links follow after something happened to `task`. Tasks of this cluster's own queue that
    /// wait for a task of it that ended otherwise than completed fail at once, `task` itself included.
    /// A task elsewhere ends its followers with the block that shows it.
    fn follow_links(&mut self, task: TaskId, index: LogIndex, events: &mut Vec<QueueEvent>) {
        let mut worklist: Vec<TaskId> = self.derived.waiting.get(&task).into_iter().flatten().copied().collect();
        if self.derived.linked.contains(&task) {
            worklist.push(task);
        }
        while let Some(task) = worklist.pop() {
            let Some(row) = self.state.rows.get(&task) else {
                continue;
            };
            if !row.task.after.iter().any(|other| self.has_ended_badly(other)) {
                continue;
            }
            let mut row = TaskRow::clone(row);
            if row.life.happen(Event::LinkedTaskEnded).is_ok() {
                row.changed_at = index;
                self.put_row(task, row, events);
                worklist.extend(self.derived.waiting.get(&task).into_iter().flatten());
            }
        }
    }

    /// Whether a task of this cluster's own queue ended otherwise than completed.
    fn has_ended_badly(&self, task: &TaskId) -> bool {
        self.state.rows.get(task).is_some_and(|row| {
            row.scope == Scope::Cluster && !row.state().is_open() && row.state() != TaskState::Completed
        })
    }

    /// State of a task here, or in the global view.
    fn task_state(&self, task: &TaskId) -> Option<TaskState> {
        match self.state.rows.get(task) {
            Some(row) => Some(row.state()),
            None => self.global.task(task).map(common::global_queue::Row::state),
        }
    }

    /// The highest number in a stream, 0 if there is none: where an author goes on.
    #[must_use]
    pub fn highest_number(&self, author: &DeviceId, key_version: KeyVersion) -> EntryNumber {
        self.state
            .streams
            .get(&(*author, key_version))
            .map_or(EntryNumber(0), |stream| stream.highest())
    }

    /// The highest counter of a granted claim or renewal of a drone, 0 if there is none.
    #[must_use]
    pub fn holder_counter(&self, device: &DeviceId) -> HolderCounter {
        self.state
            .holders
            .get(device)
            .map_or(HolderCounter(0), |holder| holder.counter)
    }
}

impl Derived {
    fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            deadlines: BTreeSet::new(),
            waiting: BTreeMap::new(),
            linked: BTreeSet::new(),
            unclaimed: BTreeSet::new(),
            counts: [0; 10],
            sum: [0; 4],
        }
    }

    fn of(cluster: ClusterId, rows: &BTreeMap<TaskId, Shared<TaskRow>>) -> Self {
        let mut derived = Self::new(cluster);
        for (task, row) in rows {
            derived.add(task, row);
        }
        derived
    }

    /// Where a task stands among those that nobody holds.
    fn urgency(&self, task: &TaskId, row: &TaskRow) -> Option<Urgency> {
        let is_unclaimed = matches!(row.state(), TaskState::Queued | TaskState::Assigned);
        let deadline = row.task.deadline.map_or(u64::MAX, |deadline| deadline.0);
        (is_unclaimed && row.cluster == Some(self.cluster)).then_some((Reverse(row.task.priority), deadline, *task))
    }

    fn add(&mut self, task: &TaskId, row: &TaskRow) {
        self.counts[row.state() as usize] += 1;
        self.unclaimed.extend(self.urgency(task, row));
        for (sum, part) in self.sum.iter_mut().zip(snapshot::row_digest(task, row)) {
            *sum = sum.wrapping_add(part);
        }
        if !row.state().is_open() {
            return;
        }
        if row.scope == Scope::Fleet {
            return;
        }
        if let Some(deadline) = row.task.deadline {
            self.deadlines.insert((deadline, *task));
        }
        if !row.task.after.is_empty() {
            self.linked.insert(*task);
        }
        for other in &row.task.after {
            self.waiting.entry(*other).or_default().insert(*task);
        }
    }

    fn remove(&mut self, task: &TaskId, row: &TaskRow) {
        self.counts[row.state() as usize] -= 1;
        if let Some(urgency) = self.urgency(task, row) {
            self.unclaimed.remove(&urgency);
        }
        for (sum, part) in self.sum.iter_mut().zip(snapshot::row_digest(task, row)) {
            *sum = sum.wrapping_sub(part);
        }
        if !row.state().is_open() {
            return;
        }
        if row.scope == Scope::Fleet {
            return;
        }
        self.linked.remove(task);
        if let Some(deadline) = row.task.deadline {
            self.deadlines.remove(&(deadline, *task));
        }
        for other in &row.task.after {
            if let Some(waiting) = self.waiting.get_mut(other) {
                waiting.remove(task);
                if waiting.is_empty() {
                    self.waiting.remove(other);
                }
            }
        }
    }
}

fn word(text: &str) -> Label {
    Label::new(text.to_owned()).expect("words of this crate are short and printable")
}

/// The beginning of an author's note, cut at a character.
fn note_of(entry: &SignedEntry) -> Blob<256> {
    if entry.header.action == Action::Submit {
        return Blob::new();
    }
    let text = String::from_utf8_lossy(&entry.payload);
    let mut end = text.len().min(256);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Blob::try_from(text.as_bytes()[..end].to_vec()).expect("it was cut at the bound")
}

/// Finality of a row right after an entry of this log changed it.
const COMMITTED: Finality = Finality::ClusterCommitted;
