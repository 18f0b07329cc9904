//! What a run shows to its checkers: plain values with true times, made by the witness and the clients.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use bytes::Bytes;
use common::{
    batch::CertifiedBatch,
    certificate::{Ballot, Vote},
    entry::Fence,
    global_queue::HistoryEvent,
    ids::{
        BatchSeq, BlockTime, ClusterId, Digest, EntryId, Height, LogIndex, LogPosition, NodeIdx, RaftNodeId, TaskId,
        Term,
    },
    task::{Scope, TaskState},
    verdict::Verdict,
};
use global_core::Holdings;

/// What a client asked of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Submit it.
    Submit,
    /// Hold it.
    Claim,
    /// End it as its holder.
    Complete,
    /// End it as an operator.
    Cancel,
    /// Queue it again as an operator: it ended, or nobody knows who holds it.
    Requeue,
    /// A linearizable read.
    Read,
}

/// What it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The write took effect.
    Granted,
    /// It changed nothing.
    Rejected,
    /// There is no such task.
    Absent,
    /// It is not ended.
    Open,
    /// It is completed.
    Completed,
    /// It was canceled.
    Canceled,
    /// It ended in another way.
    Ended,
}

/// What a submission asks for that decides when its task may begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Tasks that must be completed before.
    pub after: Vec<TaskId>,
    /// It ends when block time passes this, if nobody holds it then.
    pub deadline: Option<BlockTime>,
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// How it is.
    pub state: TaskState,
    /// What happened to it.
    pub events: Vec<HistoryEvent>,
}

/// A log as it was on a disk: the index of its first record, and its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogTail {
    /// Whose.
    pub agent: String,
    /// Index of the first record below.
    pub first: LogIndex,
    /// Without a gap.
    pub records: Vec<Bytes>,
}

/// Who leads, or led when a record was appended. Ordered as members order those who want to lead: by term, and in one term by
/// their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaderId {
    /// In which term.
    pub term: Term,
    /// Which member.
    pub member: RaftNodeId,
}

impl fmt::Display for LeaderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of term {}", self.member, self.term)
    }
}

/// How a fleet is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Clusters without a leader that its members agree on.
    pub leaderless: Vec<ClusterId>,
    /// Agents that are not in mode `normal`, or do not know how old what they say is.
    pub unwell: Vec<String>,
    /// Agents that do not vote and sign under the id of the disk that they have.
    pub outsiders: Vec<String>,
    /// Clusters that have not shown since the fleet healed that tasks are taken and done there, and what they did not show.
    pub idle: Vec<(ClusterId, &'static str)>,
    /// Writes whose author still waits for an answer.
    pub open_writes: u64,
    /// Bytes in all outboxes.
    pub outbox_bytes: u64,
    /// Acknowledged tasks that are not final everywhere.
    pub not_final: u64,
    /// Lowest height of a validator.
    pub height: Height,
}

/// Something that a run shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// An agent's queue stands at a new position.
    Applied {
        /// Who.
        agent: String,
        /// Where.
        cluster: ClusterId,
        /// Position.
        position: LogPosition,
        /// Digest of the queue there.
        digest: Digest,
        /// Height of its global view.
        height: Height,
        /// Digest of that view.
        root: Digest,
    },
    /// An agent has closed a batch.
    Closed {
        /// Where.
        cluster: ClusterId,
        /// Number of the batch.
        seq: BatchSeq,
        /// Its digest.
        digest: Digest,
        /// Entries in it, in their order.
        entries: Vec<EntryId>,
    },
    /// A validator has executed a block.
    Executed {
        /// Who.
        validator: String,
        /// Height of the block.
        height: Height,
        /// Digest of the block.
        block: Digest,
        /// Batches in it, in their order.
        refs: Vec<(ClusterId, BatchSeq, Digest)>,
        /// The state that its header carries: of the block two below.
        carried_root: Digest,
        /// Time of the block.
        time: BlockTime,
    },
    /// A batch of a final block, as a validator holds it. Told once.
    Ordered {
        /// Height of the block.
        height: Height,
        /// The batch with its attestations.
        batch: Arc<CertifiedBatch>,
    },
    /// A validator sent a proposal.
    Proposed {
        /// Who.
        validator: NodeIdx,
        /// What it signed.
        ballot: Ballot,
        /// What its disk lacks of what must be there before the proposal leaves.
        lacks: Option<&'static str>,
    },
    /// A validator sent a vote.
    Voted {
        /// Who.
        validator: NodeIdx,
        /// What it signed.
        vote: Vote,
        /// A batch of the block it votes for that it does not hold then.
        missing: Option<(ClusterId, BatchSeq)>,
        /// What its disk lacks of what must be there before the vote leaves.
        lacks: Option<&'static str>,
    },
    /// A validator's state after a block.
    Root {
        /// Who.
        validator: String,
        /// Height of the block.
        height: Height,
        /// Digest of the state.
        root: Digest,
    },
    /// An agent begins to lead.
    Leads {
        /// Who.
        agent: String,
        /// Where.
        cluster: ClusterId,
        /// As whom.
        leader: LeaderId,
        /// Last index of its log, synced or not.
        last_index: LogIndex,
        /// The highest index that was applied in its cluster, and who led when the record that its disk has there was appended,
        /// if it has one.
        held: Option<(LogIndex, LeaderId)>,
        /// Members.
        voters: usize,
    },
    /// A member's disk says who is to lead, as far as it is concerned. Told of each time, in order.
    Backs {
        /// Whose disk.
        agent: String,
        /// Where.
        cluster: ClusterId,
        /// How many of its disks were lost before this one.
        disk: u64,
        /// Who is to lead.
        candidate: LeaderId,
        /// Whether that one was elected.
        is_elected: bool,
    },
    /// A life of an agent's process begins. Nothing of it was seen before.
    Begins {
        /// Whose.
        agent: String,
    },
    /// A member answered another one's request of Raft, and pledged something by that.
    Pledged {
        /// Who answered.
        agent: String,
        /// Where.
        cluster: ClusterId,
        /// The term in which it pledged it.
        term: Term,
        /// Up to where it says that it holds the log; 0 if it says nothing of that.
        index: LogIndex,
        /// What its disk lacks of what it pledged.
        lacks: Option<&'static str>,
    },
    /// A member's term and what it takes for committed, now and then and when it begins to lead.
    Stands {
        /// Who.
        agent: String,
        /// Its term.
        term: Term,
        /// Whether it leads.
        is_leader: bool,
        /// Last index that it knows to be committed.
        committed: LogIndex,
        /// The term on its disk; 0 if there is none.
        durable_term: Term,
    },
    /// An entry was applied for the first time in its cluster.
    Committed {
        /// By whom.
        agent: String,
        /// Where.
        cluster: ClusterId,
        /// Its place in the log.
        index: LogIndex,
        /// Who led when it was appended, if a disk still tells.
        leader: Option<LeaderId>,
        /// Members with its record there on their disks, or that purged it.
        copies: usize,
        /// Members.
        voters: usize,
    },
    /// A write was acknowledged as committed.
    Acked {
        /// Who answered.
        agent: String,
        /// Where.
        cluster: ClusterId,
        /// When it was asked.
        asked_us: u64,
        /// The entry.
        entry: EntryId,
        /// Set if a task was submitted and granted.
        submitted: Option<(TaskId, Scope)>,
        /// Its place in the log; 0 if the answer names none.
        index: LogIndex,
        /// What was decided there.
        verdict: Verdict,
        /// Members that hold this entry there on their disks, or purged what was there.
        copies: usize,
        /// Members.
        voters: usize,
    },
    /// A write was refused by a rule before it entered any log.
    Refused {
        /// Who answered.
        agent: String,
        /// Where.
        cluster: ClusterId,
        /// When it was asked.
        asked_us: u64,
        /// The entry.
        entry: EntryId,
        /// Why.
        verdict: Verdict,
    },
    /// A read that says how old it may be.
    Read {
        /// Who answered.
        agent: String,
        /// Where.
        cluster: ClusterId,
        /// Index that was applied.
        applied: LogIndex,
        /// Age of the cluster's state, if known.
        staleness_ms: Option<u64>,
        /// Height that was applied.
        height: Height,
        /// Age of the global view, if known.
        global_age_ms: Option<u64>,
    },
    /// A read of somebody who allows an age was answered, or refused for that.
    ReadWithin {
        /// Who was asked.
        agent: String,
        /// Where.
        cluster: ClusterId,
        /// Greatest age that is allowed.
        age_ms_max: u64,
        /// Age that was told, if it is known.
        age_ms: Option<u64>,
        /// Whether it was answered.
        is_answered: bool,
    },
    /// A validator answered a read of final state.
    FinalRead {
        /// Who answered.
        validator: String,
        /// When it was asked.
        asked_us: u64,
        /// Height that was executed.
        height: Height,
        /// Age of the state, if known.
        age_ms: Option<u64>,
    },
    /// What a final state says of a task of fleet scope.
    FinalState {
        /// Who answered.
        validator: String,
        /// Height that was executed.
        height: Height,
        /// Which task.
        task: TaskId,
        /// How it is there.
        state: TaskState,
    },
    /// A linearizable read of a task was answered.
    LinearizableRead {
        /// Who answered.
        agent: String,
        /// Where.
        cluster: ClusterId,
        /// When it was asked.
        asked_us: u64,
        /// Of which task.
        task: TaskId,
        /// Whether it was there.
        is_found: bool,
        /// Index that was applied.
        applied: LogIndex,
    },
    /// An operator begins to write something.
    Wished {
        /// What was signed.
        entry: EntryId,
        /// Through which cluster.
        cluster: ClusterId,
        /// About which task.
        task: TaskId,
        /// Whose queue it is meant for.
        scope: Scope,
        /// Set if it is a submission.
        wanted: Option<Wanted>,
    },
    /// A call on a task began.
    Called {
        /// Number of the call.
        call: u64,
        /// On which task.
        task: TaskId,
        /// Whose queue it is in.
        scope: Scope,
        /// What.
        what: Call,
    },
    /// It was answered.
    Answered {
        /// Number of the call.
        call: u64,
        /// On which task.
        task: TaskId,
        /// How.
        told: Told,
    },
    /// A vehicle begins to act on a task, or ends.
    Acts {
        /// Which vehicle.
        drone: String,
        /// On which task.
        task: TaskId,
        /// The claim by which it holds it.
        fence: Fence,
        /// Begins or ends.
        is_begin: bool,
    },
    /// An agent reaches a majority of its cluster, or no longer.
    Side {
        /// Who.
        agent: String,
        /// Where.
        cluster: ClusterId,
        /// Both ways, over others if need be.
        has_majority: bool,
    },
    /// What the disks of one cluster hold.
    Logs {
        /// Where.
        cluster: ClusterId,
        /// Their ends.
        logs: Vec<LogTail>,
    },
    /// What a process keeps.
    Sizes {
        /// Who.
        agent: String,
        /// Bytes in its outbox.
        outbox_bytes: u64,
        /// Their quota.
        outbox_bytes_max: u64,
        /// Records in its log.
        log_records: u64,
        /// Most that snapshots should leave.
        log_records_max: u64,
    },
    /// What a validator's core holds.
    Holds {
        /// Who.
        validator: String,
        /// Height that it has executed.
        height: Height,
        /// How much, by its own count.
        holdings: Holdings,
    },
    /// Every fault is over and everything runs.
    Healed,
    /// How the fleet is, now and then after it healed.
    Health(Health),
    /// A task left the final state, since it had ended and was due.
    Left {
        /// Which.
        task: TaskId,
        /// How it had ended.
        state: TaskState,
    },
    /// How acknowledged tasks of fleet scope stand in one final state at the end, as far as it keeps them.
    Fates {
        /// Time of the block behind that state.
        time: BlockTime,
        /// State and history of each.
        tasks: Arc<BTreeMap<TaskId, Fate>>,
    },
    /// The tasks that a process knows at the end, or knew until they had ended and were due.
    Knows {
        /// Who.
        process: String,
        /// An agent's cluster: it must know what was acknowledged there. A validator knows all.
        cluster: Option<ClusterId>,
        /// Tasks.
        tasks: Arc<BTreeSet<TaskId>>,
    },
    /// A proof file that a validator made.
    Proof {
        /// Of which task.
        task: TaskId,
        /// The file.
        bytes: Vec<u8>,
        /// What that validator's final state says of the task after it answered; nothing if the state has no such task.
        history: Vec<HistoryEvent>,
        /// When it was asked, every honest validator had the signed decisions of this height and those below.
        decided: Height,
    },
}
