//! batches-held: a validator votes for a block only when it holds every batch that the block refers to, so that a
//! finalized block is held by honest validators.

use common::certificate::Vote;

use super::{Checker, Observation};

/// Keeps nothing: the witness looks at the voter's disk in the instant of the vote.
pub struct BatchesHeld;

impl Checker for BatchesHeld {
    fn name(&self) -> &'static str {
        "batches-held"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Voted {
                validator,
                vote: Vote::Notarize(ballot),
                missing: Some((cluster, seq)),
                ..
            } => Err(format!(
                "validator {validator} voted for block {} of view {} and does not hold batch {seq} of {cluster}",
                ballot.digest, ballot.view
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use common::{
        certificate::Ballot,
        ids::{Epoch, NodeIdx, View},
    };

    use super::{super::*, *};

    #[test]
    fn vote_without_a_batch_is_caught() {
        let voted = |missing| Observation::Voted {
            validator: NodeIdx(9),
            vote: Vote::Notarize(Ballot {
                epoch: Epoch(0),
                view: View(4),
                height: Height(2),
                digest: Digest([1; 32]),
            }),
            missing,
            lacks: None,
        };
        assert_eq!(judge(BatchesHeld, &[(0, voted(None))]), Ok(()));
        assert!(judge(BatchesHeld, &[(0, voted(Some((ClusterId(0), BatchSeq(3)))))]).is_err());
    }
}
