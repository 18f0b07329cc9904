//! Messages between an operator and any process (`muster-op/1`), and through a drone's local socket.
//!
//! Reads need the role `op.read`. Writes carry the author's own signature: the connection's role adds
//! nothing to them.

use serde::{Deserialize, Serialize};

use crate::{
    block::FinalizedBlock,
    codec::{Blob, BoundedVec, Label, Wire},
    entry::{Fence, SignedEntry},
    ids::{
        BatchSeq, BlockTime, ClusterId, DeviceId, Digest, EntryId, EntryNumber, Epoch, Founding, Height, KeyVersion,
        LogIndex, RaftNodeId, TaskId, Term, View,
    },
    task::{Scope, Task, TaskState},
    verdict::{Answer, Verdict},
    wire::frame::Protocol,
};

/// How a read may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Includes every write acknowledged before the request.
    Linearizable,
    /// What this process has applied, with its age.
    Local,
    /// What finalized blocks say.
    Final,
}

/// What an operator asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)]
pub enum OpRequest {
    /// Enter a signed entry (agents; forwarded to the leader once).
    Enter(SignedEntry),
    /// Enter a signed submission; without a quorum, keep it on this agent's disk and enter it later.
    EnterOrBuffer(SignedEntry),
    /// Where an entry is that this agent was asked to keep.
    Buffered {
        /// Which.
        id: EntryId,
    },
    /// One task.
    Task {
        /// Which.
        task: TaskId,
        /// How fresh.
        consistency: Consistency,
        /// Fail with `TooStale` beyond this age.
        staleness_ms_max: Option<u64>,
    },
    /// Tasks in order of their ids.
    Tasks {
        /// Only these states; empty means all.
        states: BoundedVec<TaskState, 10>,
        /// After this one.
        after: Option<TaskId>,
        /// At most this many, up to 256.
        limit: u16,
        /// How fresh.
        consistency: Consistency,
        /// Fail with `TooStale` beyond this age.
        staleness_ms_max: Option<u64>,
    },
    /// All events of one task.
    History {
        /// Which.
        task: TaskId,
    },
    /// The proof file of one task (validators).
    Prove {
        /// Which.
        task: TaskId,
    },
    /// The highest number used in an author's stream, so that a new client can go on.
    HighestNumber {
        /// Whose.
        author: DeviceId,
        /// Under which key.
        key_version: KeyVersion,
        /// Through which cluster.
        cluster: ClusterId,
    },
    /// State of this process.
    Status,
    /// Hand the leadership of the cluster over (its leader; needs the role `op.admin`).
    TransferLeader {
        /// A voter; `None`: whoever follows best.
        to: Option<RaftNodeId>,
    },
    /// Finalized blocks (validators), at most 64.
    Blocks {
        /// First height.
        from: Height,
        /// How many.
        limit: u16,
    },
    /// What this process measured of itself.
    Telemetry,
}

impl Wire for OpRequest {
    const BYTES_MAX: usize = 64 * 1024;
}

/// Why a write is not in the log and will not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteRefusal {
    /// No majority: the cluster or this side of it is read-only.
    NoQuorum {
        /// Last known leader.
        leader: Option<RaftNodeId>,
        /// Worth trying again after this time.
        retry_after_ms: u64,
    },
    /// Quorum is back, this member is still behind.
    CatchingUp {
        /// Entries behind.
        behind: u64,
    },
    /// A bounded queue is full.
    Overloaded {
        /// Which.
        what: Label,
        /// Worth trying again after this time.
        retry_after_ms: u64,
    },
    /// Refused by a rule; trying the same again does not help.
    Rejected {
        /// The rule, as a decision would put it.
        verdict: Verdict,
        /// More detail for people.
        detail: Label,
    },
}

/// What is known of a task's place in the global order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finality {
    /// On the disk of the agent that answers, in no log yet: it may still be refused.
    Buffered,
    /// It was buffered, and entering it changed nothing, for this reason.
    Refused {
        /// The cluster's decision.
        verdict: Verdict,
    },
    /// On a majority of its cluster's disks, not yet final.
    ClusterCommitted,
    /// In a finalized block, with this decision.
    Final {
        /// Height of the block.
        height: Height,
        /// The global tier's decision about the newest final event.
        verdict: Verdict,
    },
}

/// Where an entry is that an agent keeps for lack of a quorum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BufferedState {
    /// On the agent's disk, in no log as far as it knows.
    Waiting,
    /// In the cluster's log, with this decision.
    Committed(Answer),
    /// Without effect in any log, and for ever so.
    Refused {
        /// The rule, as a decision would put it.
        verdict: Verdict,
        /// More detail for people.
        detail: Label,
    },
}

/// Who holds a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderView {
    /// The drone.
    pub device: DeviceId,
    /// Its claim.
    pub fence: Fence,
}

/// One task, as one process sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskView {
    /// Identity.
    pub id: TaskId,
    /// Who submitted it.
    pub author: DeviceId,
    /// Whose queue it is in.
    pub scope: Scope,
    /// Cluster it was submitted through.
    pub through: ClusterId,
    /// Its content.
    pub task: Task,
    /// Where it is in its life.
    pub state: TaskState,
    /// Cluster that has custody, or whose it is.
    pub cluster: Option<ClusterId>,
    /// Until when, in block time.
    pub custody_until: Option<BlockTime>,
    /// Who holds it.
    pub holder: Option<HolderView>,
    /// Tries used.
    pub attempts: u8,
    /// 0 to 100, as last reported.
    pub percent: u8,
    /// How final.
    pub finality: Finality,
}

/// One event of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Entry that caused it; `None` for decisions of the machinery (assignment, expiry).
    pub entry: Option<EntryId>,
    /// In words: `submit`, `claim`, `assigned`, `expired` and so on.
    pub what: Label,
    /// Who signed.
    pub author: Option<DeviceId>,
    /// Cluster whose log holds it.
    pub cluster: Option<ClusterId>,
    /// Where in that log.
    pub index: Option<LogIndex>,
    /// Height of the block that made it final.
    pub height: Option<Height>,
    /// What was decided.
    pub verdict: Verdict,
    /// State of the task afterwards.
    pub state: TaskState,
    /// The author's note for people.
    pub note: Blob<256>,
}

impl Wire for EventView {
    const BYTES_MAX: usize = 1024;
}

/// What an agent may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Quorum in the cluster, validators reachable.
    Normal,
    /// Quorum in the cluster, no validators.
    Island,
    /// No quorum.
    ReadOnly,
    /// Quorum is back; log or snapshot behind.
    CatchingUp,
}

impl Mode {
    /// The word in tables and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Island => "island",
            Self::ReadOnly => "read_only",
            Self::CatchingUp => "catching_up",
        }
    }
}

/// What stands beside every value read from an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadContext {
    /// How it was answered.
    pub consistency: Consistency,
    /// Index applied when it was answered.
    pub applied: LogIndex,
    /// Raft term.
    pub term: Term,
    /// Leader as far as known.
    pub leader: Option<RaftNodeId>,
    /// Mode of the agent.
    pub mode: Mode,
    /// How old the value may be; `None` is "unknown".
    pub staleness_ms: Option<u64>,
    /// Global height applied.
    pub global_height: Height,
    /// How old the global view may be; `None` is "unknown".
    pub global_age_ms: Option<u64>,
}

/// What an agent warns of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Alarm {
    /// A round trip or a flush took longer within the last minute than its configuration assumes.
    ProfileDoesNotFit {
        /// Key of the configuration.
        key: Label,
        /// Its value.
        assumed_ms: u64,
        /// What was measured.
        measured_us: u64,
    },
    /// It leads, and no majority has acknowledged it for three election timeouts.
    LeaderWithoutQuorum,
    /// A finalized block names another batch than its log built: it has stopped as voter.
    OtherBatch {
        /// Which batch.
        seq: BatchSeq,
    },
    /// The global state that it computed is not the one that validators certified: it has stopped as voter.
    OtherState {
        /// The first height whose state differs.
        height: Height,
    },
}

impl Alarm {
    /// The word in its log.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::ProfileDoesNotFit { .. } => "profile_does_not_fit",
            Self::LeaderWithoutQuorum => "leader_without_quorum",
            Self::OtherBatch { .. } => "other_batch",
            Self::OtherState { .. } => "other_state",
        }
    }
}

impl core::fmt::Display for Alarm {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::ProfileDoesNotFit {
                key,
                assumed_ms,
                measured_us,
            } => write!(
                f,
                "{}: {} is {assumed_ms} ms, {measured_us} us measured",
                self.word(),
                key.as_str()
            ),
            Self::LeaderWithoutQuorum => f.write_str(self.word()),
            Self::OtherBatch { seq } => write!(
                f,
                "{}: final is another batch {seq} than its log built; it has stopped as voter",
                self.word()
            ),
            Self::OtherState { height } => write!(
                f,
                "{}: validators certified another state at height {height} than it computed; it has stopped as voter",
                self.word()
            ),
        }
    }
}

/// State of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Which device.
    pub device: DeviceId,
    /// Name for people.
    pub label: Label,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its founding.
    pub founding: Founding,
    /// Raft member id.
    pub raft: RaftNodeId,
    /// Whether it leads.
    pub is_leader: bool,
    /// Mode, freshness, heights.
    pub context: ReadContext,
    /// Milliseconds since it is in this mode.
    pub mode_age_ms: u64,
    /// Last index in its log.
    pub last_index: LogIndex,
    /// Voters of the cluster.
    pub voters: BoundedVec<RaftNodeId, 64>,
    /// Batches in the outbox, not yet final.
    pub outbox_batches: u32,
    /// Their bytes.
    pub outbox_bytes: u64,
    /// Entries that wait in the buffer for a quorum.
    pub buffer_entries: u32,
    /// Their bytes.
    pub buffer_bytes: u64,
    /// Sequence of the last batch that is final.
    pub final_seq: BatchSeq,
    /// Digest of the queue's state at `context.applied`.
    pub queue_digest: Digest,
    /// Digest of the global state at `context.global_height`.
    pub global_digest: Digest,
    /// Tasks by state, in the order of [`TaskState::ALL`].
    pub tasks: [u32; 10],
    /// What it warns of now.
    pub alarms: BoundedVec<Alarm, 8>,
    /// Microseconds since this process started.
    pub uptime_us: u64,
}

/// State of a validator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidatorStatus {
    /// Which device.
    pub device: DeviceId,
    /// Name for people.
    pub label: Label,
    /// Epoch of its set.
    pub epoch: Epoch,
    /// View it is in.
    pub view: View,
    /// Height of its last finalized block.
    pub height: Height,
    /// Digest of that block.
    pub block: Digest,
    /// Height executed.
    pub executed: Height,
    /// Digest of the state there.
    pub state_digest: Digest,
    /// Time of the last finalized block.
    pub block_time: BlockTime,
    /// This validator's clock less that time, microseconds.
    pub clock_offset_us: i64,
    /// Batches held that are not final.
    pub pending_batches: u32,
    /// Validators connected now, itself included.
    pub validators_up: u16,
    /// Validators in the set.
    pub validators: u16,
    /// Whether it still listens before its first vote.
    pub is_listening: bool,
    /// Tasks by state, in the order of [`TaskState::ALL`].
    pub tasks: [u32; 10],
    /// Microseconds since this process started.
    pub uptime_us: u64,
}

/// What a process sent for one protocol since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// UDP datagrams.
    pub datagrams: u64,
    /// Their payload, bytes: without the headers of UDP and IP.
    pub bytes: u64,
}

/// How long something took, over the newest samples; each on this process's own clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// What: `proposal_to_final`, `batch_to_final`.
    pub what: Label,
    /// Samples looked at.
    pub count: u32,
    /// Half of them took at most this, microseconds.
    pub p50_us: u32,
    /// 99 of 100 took at most this, microseconds.
    pub p99_us: u32,
}

/// What a process measured of itself: for benchmarks and people, no input of any decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Telemetry {
    /// By the protocol's name in the handshake, ascending.
    pub sent: BoundedVec<(Label, Sent), 8>,
    /// By what was measured.
    pub times: BoundedVec<Times, 8>,
}

impl Telemetry {
    /// From what a transport counted and a process timed.
    ///
    /// # Panics
    /// If more than 8 sorts of times are given.
    #[must_use]
    pub fn new(sent: Vec<(Protocol, Sent)>, times: Vec<Times>) -> Self {
        let name = |protocol: Protocol| {
            let name = core::str::from_utf8(protocol.alpn()).expect("names of protocols are ASCII");
            Label::new(name).expect("names of protocols are short")
        };
        let sent: Vec<_> = sent
            .into_iter()
            .map(|(protocol, sent)| (name(protocol), sent))
            .collect();
        Self {
            sent: sent.try_into().expect("there are five protocols"),
            times: times.try_into().expect("the caller gives a few"),
        }
    }
}

/// What an operator is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)]
pub enum OpAnswer {
    /// To `Enter`.
    Write {
        /// Identity of the entry: repeat the same bytes to learn the outcome.
        id: EntryId,
        /// How it ended.
        outcome: super::cluster::WriteOutcome,
        /// Mode of the agent when it ended.
        mode: Mode,
    },
    /// To `EnterOrBuffer` without a quorum, and to `Buffered`.
    Buffered {
        /// Identity of the entry; a submission's is its task's.
        id: EntryId,
        /// Where it is.
        state: BufferedState,
        /// Mode of the agent.
        mode: Mode,
    },
    /// To `Task`.
    Task {
        /// The task, or `None` if it is not known.
        task: Option<TaskView>,
        /// How it was read.
        context: ReadContext,
    },
    /// To `Tasks`.
    Tasks {
        /// In order of their ids.
        tasks: BoundedVec<TaskView, 256>,
        /// Whether there are more.
        more: bool,
        /// How they were read.
        context: ReadContext,
    },
    /// To `History`.
    History {
        /// In order.
        events: BoundedVec<EventView, 1024>,
        /// How they were read.
        context: ReadContext,
    },
    /// To `Prove`: an encoded proof file.
    Proof(Blob<{ 3 * 1024 * 1024 }>),
    /// To `HighestNumber`.
    HighestNumber(EntryNumber),
    /// To `Status`.
    Agent(AgentStatus),
    /// To `Status`.
    Validator(ValidatorStatus),
    /// To `TransferLeader`.
    Leader {
        /// Who leads now, as far as known.
        leader: Option<RaftNodeId>,
        /// In which term.
        term: Term,
    },
    /// To `Blocks`.
    Blocks(BoundedVec<FinalizedBlock, 64>),
    /// The answer would be older than the caller allows.
    TooStale {
        /// Age; `None` is "unknown".
        staleness_ms: Option<u64>,
        /// Mode of the process.
        mode: Mode,
    },
    /// A linearizable read found no quorum.
    NoQuorum {
        /// Last known leader.
        leader: Option<RaftNodeId>,
        /// Worth trying again after this time.
        retry_after_ms: u64,
    },
    /// Not known here.
    NotFound,
    /// This process does not answer such requests.
    Unsupported(Label),
    /// To `Telemetry`.
    Telemetry(Telemetry),
    /// To `Task`, `History` and `Prove`: the task was here, it ended, and it is no longer kept.
    NoLongerKept {
        /// The state in which it ended.
        state: TaskState,
        /// The height that closed it.
        ended: Height,
        /// Height of the state that says so.
        height: Height,
    },
}

impl Wire for OpAnswer {
    const BYTES_MAX: usize = 4 * 1024 * 1024;
}
