//! durable-before-sent: when a vote or a proposal of a validator leaves, its record is on the validator's disk, and when
//! a finalize vote leaves, so is the notarization that it answers.
//!
//! What is only in memory is forgotten in a crash, and the validator contradicts itself in its next life.

use super::{Checker, Observation};

/// Keeps nothing: the witness looks at the journal in the instant in which they leave.
pub struct DurableBeforeSent;

impl Checker for DurableBeforeSent {
    fn name(&self) -> &'static str {
        "durable-before-sent"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        let (what, validator, view, lacks) = match seen {
            Observation::Voted {
                validator, vote, lacks, ..
            } => ("vote", validator, vote.view(), lacks),
            Observation::Proposed {
                validator,
                ballot,
                lacks,
            } => ("proposal", validator, ballot.view, lacks),
            _ => return Ok(()),
        };
        match lacks {
            Some(lacks) => Err(format!(
                "a {what} of validator {validator} in view {view} left, and its disk lacks {lacks}"
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use common::{
        certificate::{Ballot, NullifyBallot, Vote},
        ids::{Epoch, View},
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
}
