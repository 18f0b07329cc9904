//! Submissions that wait on this agent's disk for a quorum, because their author asked for that.
//!
//! In: signed submissions while the cluster has no majority here. Out: each entered once, in the order in
//! which they came; its outcome, for a while. Called by: the operator's door, the drain.
//!
//! # Rules
//! * Only `Submit`: signed by its author, with a number, so that entering it twice is entering it once. A
//!   claim or a report is worth something now or not at all.
//! * "Buffered" is answered when the entry is durable, and means no more: it is in no log, and may be
//!   refused when it gets there.
//! * Upon a full buffer: `Overloaded(buffer)`. Nothing that waits is dropped.
//! * Upon a quorum: one entry after another; the next is entered when the outcome of the one before is known
//!   and durable here. A process that dies in between enters it again and gets the one answer.
//! * Outcomes are kept up to [`OUTCOMES_MAX`], the oldest goes. Of an entry that took effect nothing else is
//!   kept: the cluster's queue has it. The content of those that did not is kept up to [`CONTENT_BYTES_MAX`],
//!   the oldest goes, and its outcome stays.
//! * Upon a failed disk: the process ends. A damaged journal: the agent does not start (exit 78).
//!
//! # Invariants
//! * minority-is-read-only: nothing here is ever shown as accepted before its cluster's log has it.

mod drain;
mod journal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use common::{
    codec::{Wire, decode, encode},
    entry::{Action, SignedEntry},
    ids::{ChainId, ClusterId, DeviceId, EntryId, EntryNumber, KeyVersion, TaskId},
    task::{Scope, Task, TaskState},
    verdict::{Reason, Verdict},
    wire::op::{BufferedState, Finality, TaskView},
};
pub(crate) use drain::Buffered;
pub use journal::{BufferError, BufferJournal};
use serde::{Deserialize, Serialize};

/// Outcomes that are kept after their entries left.
pub const OUTCOMES_MAX: usize = 1_024;

/// Encoded bytes of entries without effect that are kept after they left, for who looks for his task here.
pub const CONTENT_BYTES_MAX: u64 = 256 * 1024;

/// Version of the journal's format. 1 knew no [`BufferRecord::Outcome`]; such a journal is read, and rewritten at the
/// start. An older release refuses a newer journal, as this one does.
pub const VERSION: u16 = 2;

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferLimits {
    /// Entries; 0 switches the buffer off.
    pub entries_max: usize,
    /// Their encoded bytes.
    pub bytes_max: u64,
}

/// Why an entry is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BufferRefusal {
    /// No room.
    #[error("{entries} entries of {bytes} bytes wait, at most {} of {} bytes may", .limits.entries_max, .limits.bytes_max)]
    Full {
        /// Entries that wait.
        entries: usize,
        /// Their bytes.
        bytes: u64,
        /// The bounds.
        limits: BufferLimits,
    },
    /// It is no submission.
    #[error("only submissions can wait for a quorum")]
    NotSubmit,
    /// Its number waits with other content.
    #[error("another entry with its number waits")]
    Conflict,
}

/// One record of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "records are made, encoded and gone")]
pub enum BufferRecord {
    /// The first record.
    Begin {
        /// Of the format: [`VERSION`], or an older one that is still read.
        version: u16,
    },
    /// An entry to be entered.
    Kept(SignedEntry),
    /// How entering it ended.
    Ended {
        /// Which.
        id: EntryId,
        /// Not `Waiting`.
        state: BufferedState,
    },
    /// How entering an entry ended whose content is not kept.
    Outcome {
        /// Which.
        id: EntryId,
        /// Not `Waiting`.
        state: BufferedState,
    },
}

impl Wire for BufferRecord {
    const BYTES_MAX: usize = 16 * 1024;
}

/// Why records of a journal do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// It does not decode.
    #[error("a record does not decode: {0}")]
    Malformed(#[from] common::codec::DecodeError),
    /// The first record is of a format that this release does not read.
    #[error("it is of format {got}, and formats up to {max} are known: use the newer release")]
    Version {
        /// Found.
        got: u16,
        /// Known here.
        max: u16,
    },
    /// A journal begins with its version, and says it once.
    #[error("it does not begin with its format")]
    NoBegin,
    /// An outcome of an entry that was not kept.
    #[error("an outcome of entry {0:?}, which was not kept")]
    Stranger(EntryId),
}

#[derive(Clone, Debug)]
struct Row {
    /// Order of arrival.
    seq: u64,
    /// Kept while it waits, and for a while if it had no effect.
    entry: Option<SignedEntry>,
    state: BufferedState,
}

/// What waits, and what became of what waited.
#[derive(Clone, Debug)]
pub struct Buffer {
    chain: ChainId,
    limits: BufferLimits,
    rows: BTreeMap<EntryId, Row>,
    waiting: BTreeMap<u64, EntryId>,
    ended: BTreeMap<u64, EntryId>,
    /// Those of `ended` whose content is kept, and its bytes.
    contents: BTreeMap<u64, EntryId>,
    content_bytes: u64,
    numbers: BTreeSet<(DeviceId, KeyVersion, ClusterId, EntryNumber)>,
    waiting_bytes: u64,
    next_seq: u64,
}

fn stream_of(entry: &SignedEntry) -> (DeviceId, KeyVersion, ClusterId, EntryNumber) {
    let header = &entry.header;
    (header.author, header.key_version, header.cluster, header.number)
}

fn bytes_of(entry: &SignedEntry) -> u64 {
    encode(entry).len() as u64
}

impl Buffer {
    /// Empty.
    #[must_use]
    pub fn new(chain: ChainId, limits: BufferLimits) -> Self {
        Self {
            chain,
            limits,
            rows: BTreeMap::new(),
            waiting: BTreeMap::new(),
            ended: BTreeMap::new(),
            contents: BTreeMap::new(),
            content_bytes: 0,
            numbers: BTreeSet::new(),
            waiting_bytes: 0,
            next_seq: 0,
        }
    }

    /// What the records of a journal say. Entries beyond limits that were lowered since still wait.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn replay(chain: ChainId, limits: BufferLimits, records: &[Vec<u8>]) -> Result<Self, ReplayError> {
        let mut buffer = Self::new(chain, limits);
        for (at, record) in records.iter().enumerate() {
            match (at, decode::<BufferRecord>(record)?) {
                (0, BufferRecord::Begin { version: 1..=VERSION }) => {}
                (0, BufferRecord::Begin { version: got }) => return Err(ReplayError::Version { got, max: VERSION }),
                (0, _) | (_, BufferRecord::Begin { .. }) => return Err(ReplayError::NoBegin),
                (_, BufferRecord::Kept(entry)) => buffer.keep(entry),
                (_, BufferRecord::Ended { id, state }) => {
                    if !buffer.rows.contains_key(&id) {
                        return Err(ReplayError::Stranger(id));
                    }
                    buffer.end(&id, state);
                }
                (_, BufferRecord::Outcome { id, state }) => buffer.outcome(id, state),
            }
        }
        Ok(buffer)
    }

    /// Whether `entry` may be kept now.
    ///
    /// # Errors
    /// [`BufferRefusal`].
    pub fn check(&self, entry: &SignedEntry) -> Result<(), BufferRefusal> {
        if !matches!(entry.header.action, Action::Submit) {
            return Err(BufferRefusal::NotSubmit);
        }
        if self.numbers.contains(&stream_of(entry)) {
            return Err(BufferRefusal::Conflict);
        }
        let (entries, bytes) = (self.waiting.len(), self.waiting_bytes);
        let limits = self.limits;
        if entries >= limits.entries_max || bytes + bytes_of(entry) > limits.bytes_max {
            return Err(BufferRefusal::Full { entries, bytes, limits });
        }
        Ok(())
    }

    /// An entry is durable in the journal.
    pub fn keep(&mut self, entry: SignedEntry) {
        let id = entry.id(&self.chain);
        if self.rows.contains_key(&id) {
            return;
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        self.waiting.insert(seq, id);
        self.waiting_bytes += bytes_of(&entry);
        self.numbers.insert(stream_of(&entry));
        let (entry, state) = (Some(entry), BufferedState::Waiting);
        self.rows.insert(id, Row { seq, entry, state });
    }

    /// An outcome of an entry whose content was forgotten.
    fn outcome(&mut self, id: EntryId, state: BufferedState) {
        let (seq, entry) = (self.next_seq, None);
        self.next_seq += 1;
        if self.rows.insert(id, Row { seq, entry, state }).is_none() {
            self.ended.insert(seq, id);
        }
        self.forget_oldest();
    }

    /// How entering it ended is durable in the journal.
    pub fn end(&mut self, id: &EntryId, state: BufferedState) {
        let Some(row) = self.rows.get_mut(id) else { return };
        row.state = state;
        if self.waiting.remove(&row.seq).is_none() {
            return;
        }
        let entry = row.entry.take().expect("the content of what waits is kept");
        let bytes = bytes_of(&entry);
        self.waiting_bytes -= bytes;
        self.numbers.remove(&stream_of(&entry));
        self.ended.insert(row.seq, *id);
        if !is_effective(&row.state) {
            self.contents.insert(row.seq, *id);
            self.content_bytes += bytes;
            row.entry = Some(entry);
        }
        self.forget_oldest();
    }

    /// Forgets contents, then outcomes, beyond their bounds.
    fn forget_oldest(&mut self) {
        while self.content_bytes > CONTENT_BYTES_MAX
            && let Some((_, oldest)) = self.contents.pop_first()
        {
            self.forget_content(&oldest);
        }
        while self.ended.len() > OUTCOMES_MAX
            && let Some((seq, oldest)) = self.ended.pop_first()
        {
            if self.contents.remove(&seq).is_some() {
                self.forget_content(&oldest);
            }
            self.rows.remove(&oldest);
        }
    }

    fn forget_content(&mut self, id: &EntryId) {
        let content = self.rows.get_mut(id).and_then(|row| row.entry.take());
        self.content_bytes -= content.as_ref().map_or(0, bytes_of);
    }

    /// The entry that came first of those that wait.
    #[must_use]
    pub fn first(&self) -> Option<(EntryId, SignedEntry)> {
        let id = self.waiting.values().next()?;
        Some((*id, self.rows.get(id)?.entry.clone()?))
    }

    /// Where an entry is; `None` if it never was here, or its outcome is forgotten.
    #[must_use]
    pub fn state(&self, id: &EntryId) -> Option<&BufferedState> {
        self.rows.get(id).map(|row| &row.state)
    }

    /// Entries that wait, and their bytes.
    #[must_use]
    pub fn waiting(&self) -> (usize, u64) {
        (self.waiting.len(), self.waiting_bytes)
    }

    /// A journal that says the same in as few records as there are.
    #[must_use]
    pub fn records(&self) -> Vec<BufferRecord> {
        let mut records = vec![BufferRecord::Begin { version: VERSION }];
        let mut rows: Vec<(&EntryId, &Row)> = self.rows.iter().collect();
        rows.sort_by_key(|(_, row)| row.seq);
        for (id, row) in rows {
            let (id, state) = (*id, row.state.clone());
            let Some(entry) = row.entry.clone() else {
                records.push(BufferRecord::Outcome { id, state });
                continue;
            };
            records.push(BufferRecord::Kept(entry));
            if state != BufferedState::Waiting {
                records.push(BufferRecord::Ended { id, state });
            }
        }
        records
    }

    /// A kept submission as a task, for who reads a queue that does not have it; `None` if its content is not
    /// kept (any more).
    #[must_use]
    pub fn view(&self, task: &TaskId) -> Option<TaskView> {
        let row = self.rows.get(&EntryId(task.0))?;
        view_of(*task, row)
    }

    /// All of them, in order of their ids.
    pub fn views(&self) -> impl Iterator<Item = TaskView> + '_ {
        self.rows.iter().filter_map(|(id, row)| view_of((*id).into(), row))
    }
}

fn view_of(id: TaskId, row: &Row) -> Option<TaskView> {
    let entry = row.entry.as_ref()?;
    let header = &entry.header;
    let task: Task = decode(&entry.payload).ok()?;
    let (state, finality) = match &row.state {
        BufferedState::Waiting => (TaskState::Queued, Finality::Buffered),
        BufferedState::Committed(answer) => (state_after(answer.verdict), refused(answer.verdict)),
        BufferedState::Refused { verdict, .. } => (state_after(*verdict), refused(*verdict)),
    };
    Some(TaskView {
        id,
        author: header.author,
        scope: header.scope,
        through: header.cluster,
        task,
        state,
        cluster: (header.scope == Scope::Cluster).then_some(header.cluster),
        custody_until: None,
        holder: None,
        attempts: 0,
        percent: 0,
        finality,
    })
}

/// Whether the cluster's queue has the task.
fn is_effective(state: &BufferedState) -> bool {
    matches!(state, BufferedState::Committed(answer) if answer.verdict == Verdict::Granted)
}

fn refused(verdict: Verdict) -> Finality {
    Finality::Refused { verdict }
}

/// The state of a task that never came to be.
fn state_after(verdict: Verdict) -> TaskState {
    match verdict {
        Verdict::Rejected(Reason::Expired) => TaskState::Expired,
        _ => TaskState::Failed,
    }
}
