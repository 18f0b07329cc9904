//! The replicated state of one cluster: a pure function of its log.
//!
//! In: log entries with their positions. Out: answers, events. Called by: the agent's replicated
//! machine, which is the one place that applies.
//!
//! # Rules
//! * Upon an author-signed entry: static verdict under the keys of the state at this position, then
//!   the number stream, then the dynamic rules (room `decide`). Whoever fails is a no-op with a reason.
//! * A repeated number with the same content gets the same answer and enters no batch. A row of a
//!   batch is exactly an entry that used up its number.
//! * `Renew` is in no number stream and in no batch: the holder's counter orders it.
//! * Cluster-scope tasks are decided here. `Submit`, `Cancel`, operator's `Requeue` and `ForceRequeue`
//!   of fleet scope are accepted for ordering here and take effect at their `GlobalAdvance`.
//! * `not_after_height` is judged against this log's own global height.
//! * A closed task whose end is final leaves its row after a retention (`retention.rs`): from then on the
//!   global queue stands for the row, as long as it keeps the task.
//! * A claimed task becomes claimable only by its holder, the end of its lease, or an operator's
//!   `ForceRequeue`.
//!
//! # Invariants
//! * agreement: the roots of each height are those that validators certified, or the conflict is recorded.
//! * linearizable: every member that applied the same log has the same state, digest included.
//! * exactly-once: each entry that used up a number is in exactly one batch.
//! * one-holder: a task has at most one holder, and a holder's claims are the rows that name it.
//! * snapshot-is-replay: a restored snapshot equals the state after the log it stands for.
//!
//! # Why
//! Two tiers judge one entry from one state: what depends on this cluster's log is decided here and
//! travels as the row's verdict; what depends on the order of all clusters comes back in blocks.

mod advance;
mod change;
mod conflict;
mod decide;
mod derived;
mod digest;
mod event;
mod invariants;
mod retention;
mod row;
mod snapshot;
mod view;

#[cfg(test)]
mod random;
#[cfg(test)]
mod random_links;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use common::{
    batch::{BatchEntry, BatchItem, RosterChange},
    codec::{Blob, Label},
    entry::{Action, LogEntry, SignatureOracle, SignedEntry, StaticVerdict},
    genesis::{FaultModel, Genesis},
    global_queue::GlobalQueue,
    ids::{
        ChainId, ClusterId, DeviceId, Digest, EntryId, EntryNumber, Founding, Height, HolderCounter, KeyVersion,
        LogIndex, LogPosition, RaftNodeId, TaskId,
    },
    number_stream::{Lookup, NumberStream, content_tag},
    registry::Registry,
    roster::Roster,
    task::{TaskKey, TaskState},
    validator_set::ValidatorSet,
    verdict::{Answer, Reason, Verdict},
    wire::op::{EventView, Finality},
};
pub use conflict::Conflict;
use conflict::RecentRoots;
pub use event::{Applied, QueueEvent};
pub use retention::{RETENTION, Retention};
use row::KeyRow;
pub use row::{Held, HolderRow, TaskRow};
pub use snapshot::{QueueRestoring, QueueView, SECTIONS_MAX, SnapshotError};

use crate::{Shared, SharedMap, batcher::Batcher, global_view::Collected};
use decide::Change;
use derived::Derived;

/// Tasks that one drone may hold.
pub const CLAIMS_PER_DEVICE_MAX: usize = 64;
/// Events of one task kept until they are final; the oldest report goes first.
pub const PENDING_EVENTS_MAX: usize = 256;

/// What is encoded into a snapshot, the global queue apart. A copy takes constant time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    chain_id: ChainId,
    cluster: ClusterId,
    founding: Founding,
    applied: LogPosition,
    chain: Digest,
    rows: SharedMap<TaskId, Shared<TaskRow>>,
    /// Events of this log that are not final; the final ones stand in the global queue.
    pending: SharedMap<TaskId, Shared<Vec<EventView>>>,
    /// Of cluster scope; they outlive their rows by a retention of their own.
    keys: SharedMap<(DeviceId, TaskKey), KeyRow>,
    streams: SharedMap<(DeviceId, KeyVersion), Shared<NumberStream>>,
    holders: SharedMap<DeviceId, HolderRow>,
    /// Tasks whose rows have left and that the global queue keeps, with the state that they would show.
    retired: SharedMap<TaskId, TaskState>,
    /// Tasks by state whose rows have left and that the global queue has dropped.
    gone: [u64; 10],
    batcher: Batcher,
    collected: Collected,
    /// Of the global queue.
    roots: RecentRoots,
    conflict: Option<Conflict>,
}

/// The state of one cluster after a prefix of its log. Cloning copies pointers: a view for a snapshot.
#[derive(Clone, Debug)]
pub struct ClusterQueue {
    genesis: Arc<Genesis>,
    set: Arc<ValidatorSet>,
    state: State,
    global: GlobalQueue,
    derived: Derived,
    retention: Retention,
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
        let global = GlobalQueue::genesis(&genesis);
        Self {
            set: Arc::new(ValidatorSet::from_genesis(&genesis)),
            state: State {
                chain_id: genesis.chain_id(),
                cluster,
                founding,
                applied: LogPosition::default(),
                chain: Digest::default(),
                rows: SharedMap::default(),
                pending: SharedMap::default(),
                keys: SharedMap::default(),
                streams: SharedMap::default(),
                holders: SharedMap::default(),
                retired: SharedMap::default(),
                gone: [0; 10],
                batcher: Batcher::new(cluster, founding, roster),
                collected: Collected::default(),
                roots: RecentRoots::genesis(&global),
                conflict: None,
            },
            global,
            derived: Derived::new(cluster),
            retention: Retention::in_force(),
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
            let stream = self.state.streams.or_default(&stream).make_mut();
            self.derived.answers -= stream.remembered() as u64;
            stream.record(entry.header.number, content_tag(&Digest(id.0)), answer(verdict));
            self.derived.answers += stream.remembered() as u64;
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
        let state = match change {
            Change::Nothing => self.known_row(&task).map(|row| row.state()),
            Change::Renew { counter } => {
                let holder = self.state.holders.or_default(&author);
                holder.counter = counter;
                holder.renewed_at = index;
                events.push(QueueEvent::Renewed { device: author, index });
                return;
            }
            Change::Row { row, counter } => {
                if let Some(counter) = counter {
                    self.state.holders.or_default(&author).counter = counter;
                }
                let state = row.state();
                self.put_row(task, *row, events);
                Some(state)
            }
        };
        if let Some(state) = state {
            let event = EventView {
                entry: Some(id),
                what: word(entry.header.action.word()),
                author: Some(author),
                cluster: Some(self.state.cluster),
                index: Some(index),
                height: None,
                verdict,
                state,
                note: note_of(entry),
            };
            self.remember(task, event);
            self.follow_links(task, index, events);
        }
    }

    /// Keeps an event until it is final; drops the oldest when too many wait.
    fn remember(&mut self, task: TaskId, event: EventView) {
        if event.entry == Some(EntryId(task.0)) {
            // A new task. Most have no other event: room for just that.
            self.derived.add_event(&task, &event);
            if let Some(before) = self.state.pending.insert(task, Shared::new(vec![event])) {
                // Only where one entry took effect twice, a rule that the simulator can break.
                before.iter().for_each(|event| self.derived.remove_event(&task, event));
            }
            return;
        }
        let events = self.state.pending.or_default(&task).make_mut();
        if events.len() == PENDING_EVENTS_MAX {
            self.derived.remove_event(&task, &events.remove(0));
        }
        self.derived.add_event(&task, &event);
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
