//! What an operator must hear of at once: a peer or a leader broke the protocol.
//!
//! An alarm changes nothing by itself; the request that raised it was refused. Who listens decides
//! whether this member stops as voter ([`RaftHandle::quarantine`](super::RaftHandle::quarantine)).

use std::sync::Arc;

use common::ids::{Digest, LogIndex, RaftNodeId, Term};

/// Receives alarms; must not block and must not call back into the Raft handle.
pub type AlarmSink = Arc<dyn Fn(RaftAlarm) + Send + Sync>;

/// Evidence of a broken or lying peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RaftAlarm {
    /// A leader sent an entry or a previous entry that has our id and another history.
    ForkedLog {
        /// Where the two histories have one id.
        index: LogIndex,
        /// Our chain there.
        ours: Digest,
        /// The leader's.
        theirs: Digest,
    },
    /// A leader wanted to replace an entry that is committed here.
    ConflictBelowCommitted {
        /// The entry in question.
        index: LogIndex,
        /// What is committed here.
        committed: LogIndex,
    },
    /// A leader sent a command that no honest leader appends; the whole append was refused.
    BadCommand {
        /// The leader.
        from: RaftNodeId,
        /// Where it wanted the command.
        index: LogIndex,
        /// What is wrong with it.
        why: String,
    },
    /// A leader sent a membership that the registry does not back; the whole append was refused.
    BadMembership {
        /// The leader.
        from: RaftNodeId,
        /// Where it wanted it.
        index: LogIndex,
        /// What is wrong with it.
        why: String,
    },
    /// One who is not a member wanted a vote.
    NotAMember {
        /// Who.
        from: RaftNodeId,
        /// In which term.
        term: Term,
    },
    /// A second member leads in one term. Told once per term; nothing was refused. A split vote can do that
    /// too: members of one term are ordered by their ids.
    TwoLeaders {
        /// The term.
        term: Term,
        /// Who was heard of first.
        first: RaftNodeId,
        /// The other.
        second: RaftNodeId,
    },
    /// A peer spoke with another member's id.
    WrongSender {
        /// Who the connection belongs to.
        from: RaftNodeId,
        /// Who the request says it is from.
        claimed: RaftNodeId,
    },
    /// A peer's term is further ahead than elections can have brought it.
    TermJump {
        /// The peer.
        from: RaftNodeId,
        /// Our term.
        ours: Term,
        /// Its term.
        theirs: Term,
    },
    /// A snapshot whose bytes do not have their digest, or that do not decode.
    BadSnapshot {
        /// The sender.
        from: RaftNodeId,
        /// What is wrong with it.
        why: String,
    },
}

impl RaftAlarm {
    /// Whom it is about, if the evidence names somebody.
    #[must_use]
    pub fn about(&self) -> Option<RaftNodeId> {
        match self {
            Self::ForkedLog { .. } | Self::ConflictBelowCommitted { .. } => None,
            Self::BadCommand { from, .. }
            | Self::BadMembership { from, .. }
            | Self::NotAMember { from, .. }
            | Self::WrongSender { from, .. }
            | Self::TermJump { from, .. }
            | Self::BadSnapshot { from, .. } => Some(*from),
            Self::TwoLeaders { second, .. } => Some(*second),
        }
    }
}
