//! By whom this leader was followed, and since when: what confirms a linearizable read.
//!
//! In: each request that a member answered. Out: whether a majority follows. Called by: the network, reads.
//!
//! # Rules
//! * Every request gets a number when it is sent, and every read one when it begins. The answer to a request says
//!   that its sender followed the leader that the request names after the number was given.
//! * Upon a read: a majority of each voter set must have answered requests with greater numbers than the read's, all
//!   of the leader that gave the read its position. This member counts for itself.
//!
//! # Invariants
//! * linearizable: no read is confirmed by an answer that was given before it began.
//!
//! # Why
//! openraft counts by the time at which it made a request, and takes an answer for one to every request that ends
//! with the same entry. News of a commit ends where the request before it ends. So an answer that was given long before
//! a read, and arrives late, would pass for one to the news that was made after the read had begun, although its
//! sender may have elected another leader meanwhile. openraft's own count is kept beside this one; an honest
//! confirmation passes here before openraft hears of it, and waits for nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use common::ids::{RaftNodeId, Term};

use super::{codec::WireVote, signal::Signal};

/// A leader: its term and itself.
pub(super) type Leadership = (Term, RaftNodeId);

/// Orders requests and reads of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number(u64);

/// The newest answered request of each member.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    next: AtomicU64,
    /// At most as many as there ever were members.
    newest: Mutex<BTreeMap<RaftNodeId, (Leadership, Number)>>,
    /// Rises with each answer.
    pub changes: Signal,
}

impl Confirmations {
    /// For a request that is about to be sent, or a read that begins.
    pub fn number(&self) -> Number {
        Number(self.next.fetch_add(1, Ordering::SeqCst))
    }

    /// `by` has answered the request `number` of the leader of `vote`, and knew no greater vote then.
    pub fn answered(&self, by: RaftNodeId, vote: WireVote, number: Number) {
        let answered = ((vote.term, vote.candidate), number);
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let known = newest.entry(by).or_insert(answered);
        *known = (*known).max(answered);
        drop(newest);
        self.changes.notify();
    }

    /// Whether a majority of each of `voters` has followed `leader`, which is this member, since `read` began.
    pub fn is_followed<'a>(
        &self,
        leader: Leadership,
        read: Number,
        voters: impl IntoIterator<Item = &'a BTreeSet<u64>>,
    ) -> bool {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let follows = |voter: &&u64| {
            let voter = RaftNodeId(**voter);
            let is_answered = |(of, number): &(Leadership, Number)| *of == leader && *number > read;
            voter == leader.1 || newest.get(&voter).is_some_and(is_answered)
        };
        let mut voters = voters.into_iter();
        voters.all(|set| set.iter().filter(follows).count() > set.len() / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(term: u64) -> WireVote {
        WireVote {
            term: Term(term),
            candidate: RaftNodeId(1),
            is_committed: true,
        }
    }

    #[test]
    fn read_counts_answers_to_later_requests_of_its_own_leader_alone() {
        let seen = Confirmations::default();
        let leader = (Term(4), RaftNodeId(1));
        let voters = [BTreeSet::from([1, 2, 3])];
        let early = seen.number();
        let read = seen.number();
        seen.answered(RaftNodeId(2), vote(4), early);
        assert!(!seen.is_followed(leader, read, &voters), "sent before the read");
        seen.answered(RaftNodeId(2), vote(5), seen.number());
        assert!(!seen.is_followed(leader, read, &voters), "of another leadership");
        seen.answered(RaftNodeId(7), vote(4), seen.number());
        assert!(!seen.is_followed(leader, read, &voters), "of no voter");
        seen.answered(RaftNodeId(3), vote(4), seen.number());
        assert!(seen.is_followed(leader, read, &voters));
        seen.answered(RaftNodeId(3), vote(4), early);
        assert!(
            seen.is_followed(leader, read, &voters),
            "a late answer takes nothing away"
        );
    }

    #[test]
    fn read_needs_a_majority_of_both_halves_of_a_joint_membership() {
        let seen = Confirmations::default();
        let leader = (Term(4), RaftNodeId(1));
        let halves = [BTreeSet::from([1, 2, 3]), BTreeSet::from([3, 4, 5])];
        let read = seen.number();
        seen.answered(RaftNodeId(2), vote(4), seen.number());
        seen.answered(RaftNodeId(4), vote(4), seen.number());
        assert!(!seen.is_followed(leader, read, &halves));
        seen.answered(RaftNodeId(5), vote(4), seen.number());
        assert!(seen.is_followed(leader, read, &halves));
        assert!(seen.is_followed(leader, seen.number(), &[BTreeSet::from([1])]), "alone");
    }
}
