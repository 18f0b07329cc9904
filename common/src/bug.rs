//! Seeded bugs: rules that are broken on purpose, to show that the simulator's checkers see it.
//!
//! # Rules
//! * Without the cargo feature `seeded-bugs`, which is in no default, [`active`] is a constant `false` and there is
//!   nothing to switch on. CI shows that agents and validators are built without it.
//! * With it, at most one bug is active in a process, from its start to its end.
//! * A site is one line that asks `bug::active(Bug::X)`. A bug may need several sites, when a second lock stands behind
//!   the first.
//!
//! # Why
//! A checker that never objected to anything shows nothing. Each of these bugs is found by a named checker; the table
//! is in docs/verification.md. This is the only switch for the simulator in production code.

macro_rules! bugs {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// A rule that is not kept.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Bug {
            $($(#[$doc])* $name,)*
        }

        impl Bug {
            /// In the order of the variants.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name in commands and tables.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

bugs! {
    /// A leader takes an answer that does not come for an acknowledgement.
    CommitOnMinority = "commit-on-minority",
    /// A member answers a vote that it has not written.
    VoteNotDurable = "vote-not-durable",
    /// Appended entries are acknowledged before they are on the disk.
    AppendAckedEarly = "append-acked-early",
    /// A follower keeps what it holds where a leader sends something else.
    ConflictKept = "conflict-kept",
    /// A member votes for a candidate whose log is shorter than its own.
    VoteForShortLog = "vote-for-short-log",
    /// What is asked of a lost data directory is answered by the one that came after it.
    LostIdAnswered = "lost-id-answered",
    /// The roster goes on naming the data directory that was lost.
    RosterKept = "roster-kept",
    /// A linearizable read is answered by a leader that asked nobody.
    ReadWithoutQuorum = "read-without-quorum",
    /// A linearizable read does not wait until its position is applied.
    ReadNotAwaited = "read-not-awaited",
    /// The number of an entry is not looked up: a retry is decided again.
    DedupOff = "dedup-off",
    /// Answers are forgotten before their numbers leave the window.
    WindowEdgeEarly = "window-edge-early",
    /// The last row of a batch is left out when it closes.
    RowDropped = "row-dropped",
    /// What was referred to since the last executed block is referred to again.
    BatchReplayed = "batch-replayed",
    /// A batch is submitted once, whatever becomes of it.
    BatchNotResubmitted = "batch-not-resubmitted",
    /// One attestation less than a quorum certifies a batch.
    AttestationQuorumShort = "attestation-quorum-short",
    /// The leaf of an entry in a batch leaves out its signature and payload.
    LeafWithoutBytes = "leaf-without-bytes",
    /// Author signatures are not verified.
    AuthorUnchecked = "author-unchecked",
    /// A completed task can be claimed again.
    CompletedClaimable = "completed-claimable",
    /// An operator's cancel of a task of fleet scope is granted and changes nothing.
    CancelWithoutEffect = "cancel-without-effect",
    /// A task of fleet scope waits on when its deadline has passed.
    DeadlineIgnored = "deadline-ignored",
    /// A link counts as completed as soon as its task is known.
    LinkNotAwaited = "link-not-awaited",
    /// A lease counts from when it is asked for, not from before the renewal was signed.
    LeaseFromArrival = "lease-from-arrival",
    /// The leader's wait for the end of a lease leaves the drift of clocks out.
    LeaseWithoutDrift = "lease-without-drift",
    /// The leader takes a claim back when half of its lease is over.
    RequeueEarly = "requeue-early",
    /// A word of the leader counts as evidence of freshness.
    HeartbeatIsEvidence = "heartbeat-is-evidence",
    /// A leader takes its own state for fresh.
    LeaderAlwaysFresh = "leader-always-fresh",
    /// A read that allows an age is answered however old the state is.
    AllowedAgeIgnored = "allowed-age-ignored",
    /// A validator tells ages by its wall clock before a block was compared with that.
    StartClockTrusted = "start-clock-trusted",
    /// The arrival of a block counts as evidence of a fresh global view.
    BlockIsEvidence = "block-is-evidence",
    /// An agent that was cut off shows its vehicle no work any more.
    WorkHidden = "work-hidden",
    /// Submissions enter an outbox that is full.
    OutboxUnbounded = "outbox-unbounded",
    /// Of the outbox the open batch alone counts towards its quota.
    OutboxUncounted = "outbox-uncounted",
    /// A validator keeps every block and the state after it.
    BlocksKept = "blocks-kept",
    /// A validator keeps every batch in mind that it ever stored.
    BatchesKept = "batches-kept",
    /// No snapshot is ever due, so the log is never purged.
    LogNeverPurged = "log-never-purged",
    /// A snapshot leaves out which answers were given.
    SnapshotWithoutAnswers = "snapshot-without-answers",
    /// Half of the weight is a quorum of validators.
    QuorumOfHalf = "quorum-of-half",
    /// What a consensus key signed is not in the guard's journal.
    GuardForgets = "guard-forgets",
    /// A proposal leaves while its record is being written.
    ProposalNotDurable = "proposal-not-durable",
    /// Certificates are not made durable.
    CertificateNotDurable = "certificate-not-durable",
    /// A view that was nullified is finalized as well.
    FinalizeAfterNullify = "finalize-after-nullify",
    /// A view that was finalized is nullified as well.
    NullifyAfterFinalize = "nullify-after-finalize",
    /// Proposers carry wrong roots, and nobody compares them.
    WrongRoots = "wrong-roots",
    /// A validator that is far behind does not ask for what became final without it.
    SyncNotAsked = "sync-not-asked",
    /// No block and no batch is fetched.
    NoFetch = "no-fetch",
    /// Validators send nothing twice.
    NoResend = "no-resend",
    /// A validator votes for a block whose batches it does not hold.
    BatchesUnchecked = "batches-unchecked",
    /// A proof file leaves out how the task's entries were decided.
    DecisionUnproven = "decision-unproven",
    /// Whoever verifies a proof file believes what it says of decisions.
    DecisionUnchecked = "decision-unchecked",
    /// Signatures inside of certificates are not verified.
    CertificateUnchecked = "certificate-unchecked",
}

/// Whether `bug` is active in this process: never, without the feature.
#[cfg(not(feature = "seeded-bugs"))]
#[inline]
#[must_use]
pub const fn active(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "seeded-bugs")]
pub use seeded::{activate, active};

#[cfg(feature = "seeded-bugs")]
mod seeded {
    use std::sync::OnceLock;

    use super::Bug;

    static ACTIVE: OnceLock<Bug> = OnceLock::new();

    /// Whether `bug` is active in this process.
    #[must_use]
    pub fn active(bug: Bug) -> bool {
        ACTIVE.get() == Some(&bug)
    }

    /// Makes `bug` active until the process ends.
    ///
    /// # Panics
    /// If another one is: runs of one process must not differ.
    pub fn activate(bug: Bug) {
        let first = *ACTIVE.get_or_init(|| bug);
        assert_eq!(first, bug, "one bug at a time");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn words_are_distinct_and_nothing_is_active_by_itself() {
        let words: BTreeSet<&str> = Bug::ALL.iter().map(|bug| bug.word()).collect();
        assert_eq!(words.len(), Bug::ALL.len());
        assert!(Bug::ALL.iter().all(|bug| !active(*bug)));
    }
}
