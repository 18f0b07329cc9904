//! durable-before-sent: when a vote of a validator leaves, its record is on the validator's disk, and when a finalize
//! vote leaves, so is the notarization that it answers.
//!
//! What is only in memory is forgotten in a crash, and the validator contradicts itself in its next life.

use super::{Checker, Observation};

/// Keeps nothing: the witness looks at the journal in the instant of the vote.
pub struct DurableBeforeSent;

impl Checker for DurableBeforeSent {
    fn name(&self) -> &'static str {
        "durable-before-sent"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Voted {
                validator,
                vote,
                lacks: Some(lacks),
                ..
            } => Err(format!(
                "a vote of validator {validator} in view {} left, and its disk lacks {lacks}",
                vote.view()
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use common::{
        certificate::{NullifyBallot, Vote},
        ids::{Epoch, NodeIdx, View},
    };

    use super::{super::*, *};

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
