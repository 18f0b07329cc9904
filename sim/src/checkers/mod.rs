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
mod ends_visibly;
mod exactly_once;
mod histories;
mod honest_staleness;
mod leader_completeness;
mod linearizable;
mod log_matching;
mod minority_read_only;
mod monotonic;
mod observation;
mod one_holder;
mod one_vote;
mod recovers;
mod state_machine_safety;
mod validity;
mod verifiable_offline;

use std::sync::Arc;

use common::genesis::Genesis;

pub use observation::{Call, Fate, Health, LeaderId, LogTail, Observation, Told, Wanted};
pub use recovers::SETTLE_US;

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
pub const NAMES: [&str; 22] = [
    "durable",
    "linearizable",
    "linearizable-history",
    "exactly-once",
    "ends-visibly",
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
        Box::new(ends_visibly::EndsVisibly::default()),
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
        Box::new(bounded_memory::BoundedMemory::default()),
    ]
}

#[cfg(test)]
use common::{
    ids::{
        BatchSeq, BlockTime, ClusterId, Digest, EntryId, Height, LogIndex, LogPosition, NodeIdx, RaftNodeId, TaskId,
        Term,
    },
    task::Scope,
    verdict::Verdict,
};

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
fn leader(term: u64, member: u64) -> LeaderId {
    LeaderId {
        term: Term(term),
        member: RaftNodeId(member),
    }
}

#[cfg(test)]
fn leads(agent: &str, leader: LeaderId, last: u64, held: Option<(u64, LeaderId)>) -> Observation {
    Observation::Leads {
        agent: agent.into(),
        cluster: ClusterId(0),
        leader,
        last_index: LogIndex(last),
        held: held.map(|(index, of)| (LogIndex(index), of)),
        voters: 3,
    }
}

#[cfg(test)]
fn backs(agent: &str, disk: u64, candidate: LeaderId, is_elected: bool) -> Observation {
    Observation::Backs {
        agent: agent.into(),
        cluster: ClusterId(0),
        disk,
        candidate,
        is_elected,
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
        verdict: Verdict::Granted,
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
