//! Checkers: one file per invariant, under the name that ARCHITECTURE.md gives it.
//!
//! # Rules
//! * A checker sees plain [`Observation`]s with true times, and says in one sentence what is wrong.
//! * It knows nothing of shells: a test shows it a forged history, and it must object.
//! * A call that was not answered is unknown: it may have happened, now or later.

mod agreement;
mod batches_held;
mod bounded_memory;
mod committed_on_quorum;
mod durable;
mod durable_before_sent;
mod election_safety;
mod exactly_once;
mod histories;
mod honest_staleness;
mod leader_completeness;
mod linearizable;
mod log_matching;
mod minority_read_only;
mod monotonic;
mod one_holder;
mod one_vote;
mod recovers;
mod state_machine_safety;
mod validity;
mod verifiable_offline;

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use common::{
    batch::CertifiedBatch,
    certificate::{Ballot, Vote},
    genesis::Genesis,
    ids::{BatchSeq, ClusterId, Digest, EntryId, Height, LogIndex, LogPosition, NodeIdx, TaskId, Term},
    task::{Scope, TaskState},
};

pub use recovers::SETTLE_US;

/// What a client asked of one task of cluster scope, for histories.
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
        /// In which term.
        term: Term,
        /// Last index of its log, synced or not.
        last_index: LogIndex,
        /// What its disk has at the highest index that was applied in its cluster, if it has a record there.
        held: Option<LogPosition>,
    },
    /// A life of an agent's process begins. Nothing of it was seen before.
    Begins {
        /// Whose.
        agent: String,
    },
    /// A member's term, now and then and when it begins to lead.
    Stands {
        /// Who.
        agent: String,
        /// Its term.
        term: Term,
        /// Whether it leads: then the term is on its disk, and on others'.
        is_leader: bool,
    },
    /// An entry was applied for the first time in its cluster.
    Committed {
        /// By whom.
        agent: String,
        /// Where.
        cluster: ClusterId,
        /// Its place in the log.
        index: LogIndex,
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
        /// Members that hold equal records there on their disks, or purged it.
        copies: usize,
        /// Members.
        voters: usize,
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
    /// A call on a task of cluster scope began.
    Called {
        /// Number of the call.
        call: u64,
        /// On which task.
        task: TaskId,
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
    /// Every fault is over and everything runs.
    Healed,
    /// How the fleet is, now and then after it healed.
    Health {
        /// Clusters without a leader that its members agree on.
        leaderless: Vec<ClusterId>,
        /// Agents that are not in mode `normal`, or do not know how old what they say is.
        unwell: Vec<String>,
        /// Agents that do not vote and sign under the id of the disk that they have.
        outsiders: Vec<String>,
        /// Writes whose author still waits for an answer.
        open_writes: u64,
        /// Bytes in all outboxes.
        outbox_bytes: u64,
        /// Acknowledged tasks that are not final everywhere.
        not_final: u64,
        /// Lowest height of a validator.
        height: Height,
    },
    /// A task left the final state, since it had ended and was due.
    Left {
        /// Which.
        task: TaskId,
        /// How it had ended.
        state: TaskState,
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
    },
}

/// Watches one invariant.
pub trait Checker: Send {
    /// Its name in ARCHITECTURE.md, with dashes.
    fn name(&self) -> &'static str;

    /// Takes note of what happened at the true time `now_us` of the run.
    ///
    /// # Errors
    /// One sentence about what is broken.
    fn observe(&mut self, now_us: u64, seen: &Observation) -> Result<(), String>;

    /// The run has ended.
    ///
    /// # Errors
    /// As [`observe`](Self::observe).
    fn finish(&mut self, _now_us: u64) -> Result<(), String> {
        Ok(())
    }
}

/// Names of [`all`] checkers.
pub const NAMES: [&str; 21] = [
    "durable",
    "linearizable",
    "linearizable-history",
    "exactly-once",
    "agreement",
    "validity",
    "one-holder",
    "honest-staleness",
    "minority-read-only",
    "verifiable-offline",
    "recovers",
    "election-safety",
    "leader-completeness",
    "committed-on-quorum",
    "monotonic",
    "state-machine-safety",
    "log-matching",
    "one-vote",
    "batches-held",
    "durable-before-sent",
    "bounded-memory",
];

/// All checkers, for a fleet of this genesis file.
#[must_use]
pub fn all(genesis: &Arc<Genesis>) -> Vec<Box<dyn Checker>> {
    vec![
        Box::new(durable::Durable::default()),
        Box::new(linearizable::Linearizable::default()),
        Box::new(histories::Histories::default()),
        Box::new(exactly_once::ExactlyOnce::default()),
        Box::new(agreement::Agreement::default()),
        Box::new(validity::Validity::new(genesis.clone())),
        Box::new(one_holder::OneHolder::default()),
        Box::new(honest_staleness::HonestStaleness::default()),
        Box::new(minority_read_only::MinorityReadOnly::default()),
        Box::new(verifiable_offline::VerifiableOffline::new(genesis.clone())),
        Box::new(recovers::Recovers::default()),
        Box::new(election_safety::ElectionSafety::default()),
        Box::new(leader_completeness::LeaderCompleteness::default()),
        Box::new(committed_on_quorum::CommittedOnQuorum),
        Box::new(monotonic::Monotonic::default()),
        Box::new(state_machine_safety::StateMachineSafety::default()),
        Box::new(log_matching::LogMatching::default()),
        Box::new(one_vote::OneVote::default()),
        Box::new(batches_held::BatchesHeld),
        Box::new(durable_before_sent::DurableBeforeSent),
        Box::new(bounded_memory::BoundedMemory),
    ]
}

/// For tests of checkers: a history, each step with its time.
#[cfg(test)]
fn judge(mut checker: impl Checker, history: &[(u64, Observation)]) -> Result<(), String> {
    let mut last_us = 0;
    for (now_us, seen) in history {
        checker.observe(*now_us, seen)?;
        last_us = *now_us;
    }
    checker.finish(last_us)
}

#[cfg(test)]
fn applied(agent: &str, term: u64, index: u64, digest: u8) -> Observation {
    Observation::Applied {
        agent: agent.into(),
        cluster: ClusterId(0),
        position: LogPosition {
            term: Term(term),
            index: LogIndex(index),
        },
        digest: Digest([digest; 32]),
        height: Height(0),
        root: Digest([0; 32]),
    }
}

#[cfg(test)]
fn acked(agent: &str, asked_us: u64, number: u8, index: u64) -> Observation {
    let id = EntryId([number; 32]);
    Observation::Acked {
        agent: agent.into(),
        cluster: ClusterId(0),
        asked_us,
        entry: id,
        submitted: Some((TaskId::from(id), Scope::Cluster)),
        index: LogIndex(index),
        copies: 2,
        voters: 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_all_checkers() {
        let genesis = Arc::new(common::testing::Fleet::dev().genesis);
        let all = all(&genesis);
        assert_eq!(all.iter().map(|checker| checker.name()).collect::<Vec<_>>(), NAMES);
    }
}
