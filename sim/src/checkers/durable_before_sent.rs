//! durable-before-sent: what a vote, a proposal or an answer pledges is on the disk of whoever sends it when it leaves.
//!
//! # Rules
//! * Of a validator: the record of its vote or proposal, and of a finalize vote the notarization that it answers.
//! * Of a member of a cluster: the vote that it grants, and the leader and the log that it acknowledges.
//!
//! What is only in memory is forgotten in a crash, and whoever sent it contradicts itself in its next life.

use super::{Checker, Observation};

/// Keeps nothing: the witness looks at the disk in the instant in which they leave.
pub struct DurableBeforeSent;

impl Checker for DurableBeforeSent {
    fn name(&self) -> &'static str {
        "durable-before-sent"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        let (what, lacks) = match seen {
            Observation::Voted {
                validator, vote, lacks, ..
            } => (
                format!("a vote of validator {validator} in view {}", vote.view()),
                lacks,
            ),
            Observation::Proposed {
                validator,
                ballot,
                lacks,
            } => (
                format!("a proposal of validator {validator} in view {}", ballot.view),
                lacks,
            ),
            Observation::Pledged {
                agent,
                term,
                index,
                lacks,
                ..
            } => (
                format!("an answer of {agent} in term {term} for its log up to {index}"),
                lacks,
            ),
            _ => return Ok(()),
        };
        match lacks {
            Some(lacks) => Err(format!("{what} left, and its disk lacks {lacks}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use common::{
        certificate::{Ballot, NullifyBallot, Vote},
        ids::{ClusterId, Epoch, LogIndex, Term, View},
    };

    use super::{super::*, *};

    #[test]
    fn proposal_that_left_before_its_record_was_durable_is_caught() {
        let proposed = |lacks| Observation::Proposed {
            validator: NodeIdx(9),
            ballot: Ballot {
                epoch: Epoch(0),
                view: View(4),
                height: Height(2),
                digest: Digest([1; 32]),
            },
            lacks,
        };
        assert_eq!(judge(DurableBeforeSent, &[(0, proposed(None))]), Ok(()));
        let told = judge(DurableBeforeSent, &[(0, proposed(Some("its record")))]);
        assert!(told.unwrap_err().contains("a proposal of validator 9"));
    }

    #[test]
    fn vote_that_left_before_its_record_was_durable_is_caught() {
        let voted = |lacks| Observation::Voted {
            validator: NodeIdx(9),
            vote: Vote::Nullify(NullifyBallot {
                epoch: Epoch(0),
                view: View(4),
            }),
            missing: None,
            lacks,
        };
        assert_eq!(judge(DurableBeforeSent, &[(0, voted(None))]), Ok(()));
        assert!(judge(DurableBeforeSent, &[(0, voted(Some("its record")))]).is_err());
    }

    #[test]
    fn answer_that_left_before_what_it_pledges_was_durable_is_caught() {
        let pledged = |lacks| Observation::Pledged {
            agent: "c1-2".into(),
            cluster: ClusterId(0),
            term: Term(3),
            index: LogIndex(9),
            lacks,
        };
        assert_eq!(judge(DurableBeforeSent, &[(0, pledged(None))]), Ok(()));
        let told = judge(DurableBeforeSent, &[(0, pledged(Some("the entry")))]);
        assert!(told.unwrap_err().contains("c1-2 in term 3 for its log up to 9"));
    }
}
