//! Which checker notices which seeded bug, and on which stage.

use common::bug::Bug;

use super::Stage;

/// A bug, who must notice it, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The rule that is broken.
    pub bug: Bug,
    /// The checker that alone judges the run.
    pub checker: &'static str,
    /// The plan.
    pub stage: Stage,
}

const fn row(bug: Bug, checker: &'static str, stage: Stage) -> Row {
    Row { bug, checker, stage }
}

/// Every bug has a row, and so has every checker.
pub const TABLE: &[Row] = &[
    row(Bug::AppendAckedEarly, "durable", Stage::Storm),
    row(Bug::AppendAckedEarly, "durable-before-sent", Stage::Storm),
    row(Bug::CommitOnMinority, "committed-on-quorum", Stage::Cuts),
    row(Bug::CommitOnMinority, "minority-read-only", Stage::Cuts),
    row(Bug::VoteNotDurable, "monotonic", Stage::Crashes),
    row(Bug::VoteNotDurable, "election-safety", Stage::Crashes),
    row(Bug::VoteNotDurable, "durable-before-sent", Stage::Crashes),
    row(Bug::VoteForShortLog, "leader-completeness", Stage::Cuts),
    row(Bug::LostIdAnswered, "leader-completeness", Stage::LostDisks),
    row(Bug::RosterKept, "recovers", Stage::LostDisks),
    row(Bug::ConflictKept, "log-matching", Stage::Cuts),
    row(Bug::ConflictKept, "state-machine-safety", Stage::Cuts),
    row(Bug::ReadWithoutQuorum, "minority-read-only", Stage::Cuts),
    row(Bug::ReadWithoutQuorum, "linearizable", Stage::Cuts),
    row(Bug::ReadNotAwaited, "linearizable", Stage::Jitter),
    row(Bug::DedupOff, "exactly-once", Stage::Storm),
    row(Bug::WindowEdgeEarly, "exactly-once", Stage::Storm),
    row(Bug::RowDropped, "exactly-once", Stage::Rush),
    row(Bug::BatchReplayed, "exactly-once", Stage::Storm),
    row(Bug::BatchNotResubmitted, "recovers", Stage::Island),
    row(Bug::AttestationQuorumShort, "validity", Stage::Storm),
    row(Bug::LeafWithoutBytes, "agreement", Stage::Copies),
    row(Bug::AuthorUnchecked, "validity", Stage::Storm),
    row(Bug::CompletedClaimable, "linearizable-history", Stage::Storm),
    row(Bug::CancelWithoutEffect, "ends-visibly", Stage::Storm),
    row(Bug::DeadlineIgnored, "ends-visibly", Stage::Storm),
    row(Bug::LinkNotAwaited, "ends-visibly", Stage::Storm),
    row(Bug::LeaseFromArrival, "one-holder", Stage::Leases),
    row(Bug::LeaseWithoutDrift, "one-holder", Stage::Drift),
    row(Bug::RequeueEarly, "one-holder", Stage::Leases),
    row(Bug::HeartbeatIsEvidence, "honest-staleness", Stage::Cuts),
    row(Bug::LeaderAlwaysFresh, "honest-staleness", Stage::Cuts),
    row(Bug::AllowedAgeIgnored, "honest-staleness", Stage::Cuts),
    row(Bug::BlockIsEvidence, "honest-staleness", Stage::Storm),
    row(Bug::StartClockTrusted, "honest-staleness", Stage::OldClock),
    row(Bug::WorkHidden, "recovers", Stage::Island),
    row(Bug::OutboxUnbounded, "bounded-memory", Stage::FullOutbox),
    row(Bug::OutboxUncounted, "bounded-memory", Stage::FullOutbox),
    row(Bug::BlocksKept, "bounded-memory", Stage::Rush),
    row(Bug::BatchesKept, "bounded-memory", Stage::Rush),
    row(Bug::LogNeverPurged, "bounded-memory", Stage::Rush),
    row(Bug::SnapshotWithoutAnswers, "state-machine-safety", Stage::Snapshots),
    row(Bug::QuorumOfHalf, "agreement", Stage::Stations),
    row(Bug::GuardForgets, "one-vote", Stage::Crashes),
    row(Bug::ProposalNotDurable, "durable-before-sent", Stage::Storm),
    row(Bug::CertificateNotDurable, "durable-before-sent", Stage::Storm),
    row(Bug::FinalizeAfterNullify, "one-vote", Stage::BadLinks),
    row(Bug::NullifyAfterFinalize, "one-vote", Stage::BadLinks),
    row(Bug::WrongRoots, "agreement", Stage::Storm),
    row(Bug::SyncNotAsked, "recovers", Stage::Absence),
    row(Bug::NoFetch, "recovers", Stage::Storm),
    row(Bug::NoResend, "recovers", Stage::Apart),
    row(Bug::BatchesUnchecked, "batches-held", Stage::Storm),
    row(Bug::DecisionUnproven, "verifiable-offline", Stage::Rush),
    row(Bug::DecisionUnchecked, "verifiable-offline", Stage::Rush),
    row(Bug::CertificateUnchecked, "verifiable-offline", Stage::Rush),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::NAMES;

    #[test]
    fn every_bug_and_every_checker_has_a_row() {
        for bug in Bug::ALL {
            assert!(TABLE.iter().any(|row| row.bug == *bug), "{} has no row", bug.word());
        }
        for name in NAMES {
            assert!(
                TABLE.iter().any(|row| row.checker == name),
                "{name} never caught anything"
            );
        }
        assert!(TABLE.iter().all(|row| NAMES.contains(&row.checker)));
    }
}
