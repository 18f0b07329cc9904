//! A task in the global queue, and a cluster's cursor.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    outcome::MachineEvent,
    shared_map::{BucketKey, Digested, section},
};
use crate::{
    codec::{Blob, to_bytes},
    entry::{
        Action, Progress,
        life::{Life, LifeRules},
    },
    ids::{
        Assignment, BatchSeq, BlockTime, ClusterId, DeviceId, Digest, EntryId, Founding, Height, KeyVersion, LogIndex,
        LogPosition, TaskId,
    },
    lease_terms::LeaseTerms,
    number_stream::NumberStream,
    roster::Roster,
    task::{Scope, Task, TaskState},
    verdict::Verdict,
};

/// Events kept of one task; beyond it the least telling are dropped and counted.
pub const EVENTS_PER_TASK_MAX: usize = 512;
/// Weight of a row without its submission and events: not less than its encoded length.
const ROW_WEIGHT: usize = 256;
/// Weight of an event without its note: not less than its encoded length.
const EVENT_WEIGHT: usize = 192;
/// Bytes kept of an author's note.
pub const NOTE_BYTES_MAX: usize = 256;

/// What never changes about a task: its submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// Who submitted it.
    pub author: DeviceId,
    /// Under which key.
    pub key_version: KeyVersion,
    /// Whose queue it is in.
    pub scope: Scope,
    /// The cluster it was submitted through.
    pub through: ClusterId,
    /// Digest of the encoded task: tells a repeated task key from a conflict.
    pub content: Digest,
    /// What is to be done.
    pub task: Task,
}

/// What an event was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum What {
    Submit,
    Cancel,
    Claim,
    Start,
    Pause,
    Resume,
    Percent(u8),
    Complete,
    Fail,
    Release,
    Requeue,
    ForceRequeue,
    Machine(MachineEvent),
}

impl What {
    /// What an action asks for; `None` for a renewal, which stands in no history.
    #[must_use]
    pub fn of(action: &Action) -> Option<Self> {
        Some(match action {
            Action::Submit => Self::Submit,
            Action::Cancel { .. } => Self::Cancel,
            Action::Claim { .. } => Self::Claim,
            Action::Renew { .. } => return None,
            Action::Progress { progress, .. } => match progress {
                Progress::Started => Self::Start,
                Progress::Paused => Self::Pause,
                Progress::Resumed => Self::Resume,
                Progress::Percent(percent) => Self::Percent(*percent),
            },
            Action::Complete { .. } => Self::Complete,
            Action::Fail { .. } => Self::Fail,
            Action::Release { .. } => Self::Release,
            Action::Requeue { .. } => Self::Requeue,
            Action::ForceRequeue { .. } => Self::ForceRequeue,
        })
    }

    /// The word used in tables and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Cancel => "cancel",
            Self::Claim => "claim",
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Percent(_) => "progress",
            Self::Complete => "complete",
            Self::Fail => "fail",
            Self::Release => "release",
            Self::Requeue => "requeue",
            Self::ForceRequeue => "force-requeue",
            Self::Machine(event) => event.word(),
        }
    }
}

/// Where the entry behind an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventEntry {
    /// Its identity.
    pub id: EntryId,
    /// Who signed it.
    pub author: DeviceId,
    /// Cluster whose log holds it.
    pub cluster: ClusterId,
    /// Founding of that log.
    pub founding: Founding,
    /// Where in that log.
    pub index: LogIndex,
    /// Position of its batch among the block's references.
    pub reference: u32,
    /// Position of its row in the batch.
    pub row: u32,
}

/// One event of a task, with its place in the global order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEvent {
    /// Height of the block.
    pub height: Height,
    /// Position among the block's outcomes.
    pub outcome: u32,
    /// What it was.
    pub what: What,
    /// The entry that caused it; `None` for decisions of the machinery.
    pub entry: Option<EventEntry>,
    /// What was decided.
    pub verdict: Verdict,
    /// State of the task afterwards.
    pub state: TaskState,
    /// The author's note for people, cut at [`NOTE_BYTES_MAX`].
    pub note: Blob<NOTE_BYTES_MAX>,
}

/// A cluster's right to a fleet-scope task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Custody {
    /// Founding of the cluster that it was given to.
    pub founding: Founding,
    /// The custody clock when it was given, microseconds; see
    /// [`custody_until`](super::GlobalQueue::custody_until).
    pub given_at_us: u64,
}

/// What changes about a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Order of arrival among all tasks.
    pub arrival: u64,
    /// State, holder, tries, progress, late result.
    pub life: Life,
    /// The cluster that has custody or had it last; for cluster scope the one whose it is.
    pub cluster: Option<ClusterId>,
    /// Custody in force (fleet scope).
    pub custody: Option<Custody>,
    /// Grows with every assignment and take-back; 0 for cluster scope.
    pub assignment: Assignment,
    /// C, L, G and t_stop: written at the assignment, for cluster scope at the submission.
    pub terms: Option<LeaseTerms>,
    /// Which of the linked tasks are completed: bit i for link i. A link that was seen completed stays
    /// so, when nothing is kept of it any more too.
    pub links_done: u8,
    /// Height that closed the task; `None` while it is open.
    pub ended: Option<Height>,
    /// Height since which a closed task's cluster takes no entry that opens it again: it leaves once a
    /// batch that stood there was executed.
    pub leaving: Option<Height>,
    /// Cluster scope: the height whose `GlobalAdvance` ends the task in its cluster's log, and why; read with
    /// [`ends_above`](Self::ends_above).
    pub ends_at: Option<(Height, MachineEvent)>,
    /// In order; at most [`EVENTS_PER_TASK_MAX`].
    pub events: Vec<HistoryEvent>,
    /// Events that were dropped beyond that.
    pub events_dropped: u32,
}

impl Standing {
    /// Why a waiting task ends in its cluster's log, if an entry queued it last where that log stood at height `queued_at`.
    ///
    /// An ended link that was marked up to there speaks of the task as it was: since then the link may be open again, or
    /// completed. A deadline that has passed stays so.
    #[must_use]
    pub fn ends_above(&self, queued_at: Height) -> Option<MachineEvent> {
        let (height, what) = self.ends_at?;
        (what != MachineEvent::LinkedTaskEnded || height > queued_at).then_some(what)
    }
}

/// A task in the global queue.
///
/// A closed task leaves after a retention; a [`Retired`](super::Retired) line stands for it afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Identity.
    pub id: TaskId,
    /// What never changes.
    pub submitted: Arc<Submitted>,
    /// What does.
    pub standing: Standing,
    /// Digest of what never changes, so that a change does not hash it again.
    submitted_digest: Digest,
    /// Its encoded length.
    submitted_bytes: usize,
}

impl Row {
    pub(super) fn new(id: TaskId, submitted: Submitted, standing: Standing) -> Self {
        let encoded = to_bytes(&submitted);
        Self {
            id,
            submitted_digest: section(b"muster/v1/task-submitted", &encoded),
            submitted_bytes: encoded.len(),
            submitted: Arc::new(submitted),
            standing,
        }
    }

    /// What is to be done.
    #[must_use]
    pub fn task(&self) -> &Task {
        &self.submitted.task
    }

    /// Whose queue it is in.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.submitted.scope
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> TaskState {
        self.standing.life.state
    }

    /// What its content says about its life.
    #[must_use]
    pub fn rules(&self) -> LifeRules {
        LifeRules::of(self.task())
    }

    /// Whether it waits to be assigned: fleet scope, queued, with nobody, all links completed.
    #[must_use]
    pub fn is_assignable(&self) -> bool {
        self.scope() == Scope::Fleet
            && self.state() == TaskState::Queued
            && self.standing.custody.is_none()
            && self.links_open() == 0
    }

    /// Linked tasks that are not completed.
    #[must_use]
    pub fn links_open(&self) -> u8 {
        self.task().after.len() as u8 - self.standing.links_done.count_ones() as u8
    }

    /// What the row counts for in the bound on closed rows: not less than its encoded length.
    pub(super) fn weight(&self) -> usize {
        let notes: usize = self.standing.events.iter().map(|event| event.note.len()).sum();
        self.submitted_bytes + ROW_WEIGHT + EVENT_WEIGHT * self.standing.events.len() + notes
    }

    /// Whether nobody has begun it, so that a deadline or an ended link may end it.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        matches!(self.state(), TaskState::Queued | TaskState::Assigned)
    }

    pub(super) fn record(&mut self, event: HistoryEvent) {
        let events = &mut self.standing.events;
        if events.len() >= EVENTS_PER_TASK_MAX {
            // The submission stays; of the rest go first the reports, then what changed nothing, then the oldest.
            let at = (1..events.len())
                .find(|i| matches!(events[*i].what, What::Percent(_)))
                .or_else(|| (1..events.len()).find(|i| events[*i].verdict != Verdict::Granted))
                .unwrap_or(1);
            events.remove(at);
            self.standing.events_dropped += 1;
        }
        events.push(event);
    }
}

impl Digested for Row {
    fn digest(&self) -> (Digest, usize) {
        let encoded = to_bytes(&(self.id, self.submitted_digest, &self.standing));
        let bytes = encoded.len() - self.submitted_digest.0.len() + self.submitted_bytes;
        (section(b"muster/v1/task-row", &encoded), bytes)
    }
}

impl BucketKey for TaskId {
    fn first_bytes(&self) -> [u8; 2] {
        [self.0[0], self.0[1]]
    }
}

/// Names a number stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct StreamKey {
    pub(super) author: DeviceId,
    pub(super) key_version: KeyVersion,
    pub(super) cluster: ClusterId,
}

impl BucketKey for StreamKey {
    fn first_bytes(&self) -> [u8; 2] {
        [self.author.0[0], self.author.0[1]]
    }
}

/// A number stream under its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StreamRow {
    pub(super) key: StreamKey,
    pub(super) stream: NumberStream,
}

impl Digested for StreamRow {
    fn digest(&self) -> (Digest, usize) {
        let encoded = to_bytes(self);
        (section(b"muster/v1/stream-row", &encoded), encoded.len())
    }
}

/// Names an author's task key of fleet scope: its digest, since keys have any length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct TaskKeyId(pub(super) [u8; 32]);

impl TaskKeyId {
    pub(super) fn of(author: &DeviceId, task: &Task) -> Self {
        Self(section(b"muster/v1/task-key", &to_bytes(&(author, &task.key))).0)
    }
}

impl BucketKey for TaskKeyId {
    fn first_bytes(&self) -> [u8; 2] {
        [self.0[0], self.0[1]]
    }
}

/// The one task of a task key, for as long as anything is kept of that task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TaskKeyRow {
    pub(super) key: TaskKeyId,
    pub(super) task: TaskId,
    /// Digest of the encoded task: tells a repeated key from a conflict.
    pub(super) content: Digest,
}

impl Digested for TaskKeyRow {
    fn digest(&self) -> (Digest, usize) {
        let encoded = to_bytes(self);
        (section(b"muster/v1/task-key-row", &encoded), encoded.len())
    }
}

/// How far a cluster's batches are executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Founding in force.
    pub founding: Founding,
    /// The batch that is executed next.
    pub next_seq: BatchSeq,
    /// Digest of the header executed last; zeros before the first.
    pub last_digest: Digest,
    /// Roster that attests the next batch.
    pub roster: Arc<Roster>,
    /// Its digest.
    pub roster_digest: Digest,
    /// Log position that closed the batch executed last.
    pub cut: LogPosition,
    /// Global height that the batch executed last stood at.
    pub global_height: Height,
    /// Block time of the last contact: an executed batch or beat.
    pub last_contact: Option<BlockTime>,
    /// The custody clock then, microseconds.
    pub contact_at_us: u64,
}
