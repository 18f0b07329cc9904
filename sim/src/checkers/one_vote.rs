//! one-vote: a validator proposes, notarizes and finalizes at most one block in a view, and never both
//! finalizes and nullifies one view. Over all lives of its process, and on every message that leaves it.
//!
//! The safety of the second tier rests on these two sentences; a fork needs more than one that breaks them, so
//! they are checked themselves.

use std::collections::BTreeMap;

use common::{
    certificate::{Ballot, Vote},
    ids::{Digest, Epoch, NodeIdx, View},
};

use super::{Checker, Observation};

/// What left a validator in one view.
#[derive(Default)]
struct Sent {
    proposed: Option<Digest>,
    notarized: Option<Digest>,
    finalized: Option<Digest>,
    is_nullified: bool,
}

/// Remembers everything that was signed.
#[derive(Default)]
pub struct OneVote {
    sent: BTreeMap<(NodeIdx, Epoch, View), Sent>,
}

fn only(slot: &mut Option<Digest>, ballot: &Ballot, who: NodeIdx, did: &str) -> Result<(), String> {
    let first = *slot.get_or_insert(ballot.digest);
    if first == ballot.digest {
        return Ok(());
    }
    let (view, second) = (ballot.view, ballot.digest);
    Err(format!(
        "validator {who} {did} two blocks in view {view}: {first} and {second}"
    ))
}

impl OneVote {
    fn sent(&mut self, who: NodeIdx, epoch: Epoch, view: View) -> &mut Sent {
        self.sent.entry((who, epoch, view)).or_default()
    }
}

impl Checker for OneVote {
    fn name(&self) -> &'static str {
        "one-vote"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Proposed { validator, ballot, .. } => {
                let sent = self.sent(*validator, ballot.epoch, ballot.view);
                only(&mut sent.proposed, ballot, *validator, "proposed")
            }
            Observation::Voted { validator, vote, .. } => {
                let sent = self.sent(*validator, vote.epoch(), vote.view());
                match vote {
                    Vote::Notarize(ballot) => only(&mut sent.notarized, ballot, *validator, "notarized")?,
                    Vote::Finalize(ballot) => only(&mut sent.finalized, ballot, *validator, "finalized")?,
                    Vote::Nullify(_) => sent.is_nullified = true,
                }
                if sent.is_nullified && sent.finalized.is_some() {
                    let view = vote.view();
                    return Err(format!(
                        "validator {validator} both finalized and nullified view {view}"
                    ));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use common::{certificate::NullifyBallot, ids::Height};

    use super::{super::*, *};

    fn ballot(block: u8) -> Ballot {
        Ballot {
            epoch: Epoch(0),
            view: View(4),
            height: Height(2),
            digest: Digest([block; 32]),
        }
    }

    fn voted(vote: Vote) -> Observation {
        Observation::Voted {
            validator: NodeIdx(9),
            vote,
            missing: None,
            lacks: None,
        }
    }

    fn nullified() -> Observation {
        voted(Vote::Nullify(NullifyBallot {
            epoch: Epoch(0),
            view: View(4),
        }))
    }

    fn told(first: Observation, second: Observation) -> Result<(), String> {
        judge(OneVote::default(), &[(0, first), (1, second)])
    }

    #[test]
    fn second_block_in_a_view_is_caught_and_a_repetition_is_not() {
        let kinds: [fn(Ballot) -> Observation; 3] = [
            |ballot| voted(Vote::Notarize(ballot)),
            |ballot| voted(Vote::Finalize(ballot)),
            |ballot| Observation::Proposed {
                validator: NodeIdx(9),
                ballot,
                lacks: None,
            },
        ];
        for kind in kinds {
            assert_eq!(told(kind(ballot(1)), kind(ballot(1))), Ok(()));
            assert!(
                told(kind(ballot(1)), kind(ballot(2)))
                    .unwrap_err()
                    .contains("two blocks")
            );
        }
    }

    #[test]
    fn view_that_is_finalized_and_nullified_is_caught_in_either_order() {
        let (notarize, finalize) = (voted(Vote::Notarize(ballot(1))), voted(Vote::Finalize(ballot(1))));
        assert!(told(finalize.clone(), nullified()).unwrap_err().contains("both"));
        assert!(told(nullified(), finalize).is_err());
        assert_eq!(
            told(notarize, nullified()),
            Ok(()),
            "giving up after a notarize vote is right"
        );
    }
}
