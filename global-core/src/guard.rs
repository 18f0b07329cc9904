//! What a consensus key never signs: the rules of the signing guard, as data.
//! In: what is about to be signed. Out: whether it is new, was signed before, or is refused.
//!
//! The shell makes a record durable before the message leaves, in a journal outside of the database.
//!
//! # Rules
//! * Upon a proposal or a notarize vote, when one of that view with other content is recorded: refuse.
//! * Upon a finalize vote, when its view was nullified or another block finalized in it: refuse.
//! * Upon a nullify vote, when its view was finalized: refuse.
//! * Upon a notarize vote below the highest view voted in: refuse.
//! * Upon anything at or below the compacted finalization: refuse.
//! * Upon the same content again: the same signature. That is what a resend uses.
//!
//! A finalize vote for an older view is allowed while the records of that view are here.
//!
//! # Why
//! The safety of the protocol rests on two sentences: a validator notarizes at most one block per
//! view, and it never both finalizes and nullifies one view. The core keeps them too; the guard is
//! the second lock, and the one that holds over restarts.

use std::collections::BTreeMap;

use common::{
    bug::{self, Bug},
    certificate::{Ballot, NullifyBallot, Vote},
    codec::Wire,
    ids::{Digest, Epoch, View},
};
use serde::{Deserialize, Serialize};

/// Epoch and view, in the order in which they are compared.
pub type Turn = (Epoch, View);

/// One signed message of mine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GuardRecord {
    /// I proposed this block.
    Proposal(Ballot),
    /// I voted.
    Vote(Vote),
}

impl Wire for GuardRecord {
    const BYTES_MAX: usize = 128;
}

impl GuardRecord {
    /// Epoch and view it belongs to.
    #[must_use]
    pub fn turn(&self) -> Turn {
        match self {
            GuardRecord::Proposal(ballot) => (ballot.epoch, ballot.view),
            GuardRecord::Vote(vote) => (vote.epoch(), vote.view()),
        }
    }
}

/// What was signed in one view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signed {
    /// Block proposed.
    pub proposal: Option<Ballot>,
    /// Block notarized.
    pub notarize: Option<Ballot>,
    /// Block finalized.
    pub finalize: Option<Ballot>,
    /// View given up.
    pub nullify: Option<NullifyBallot>,
}

/// May be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Admitted {
    /// First make the record durable, then sign and send.
    New,
    /// The record is there: sign again, which gives the same signature.
    Again,
}

/// Must not be signed. The core never asks for this: the shell stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardRefusal {
    /// At or below the finalization up to which records were dropped.
    #[error("view {got:?} is at or below the compacted {compacted:?}")]
    Compacted {
        /// Asked for.
        got: Turn,
        /// Floor.
        compacted: Turn,
    },
    /// Another block was proposed, notarized or finalized in this view.
    #[error("block {got} in a view in which {signed} was signed")]
    OtherBlock {
        /// Asked for.
        got: Digest,
        /// Recorded.
        signed: Digest,
    },
    /// The view was nullified.
    #[error("finalize in view {0:?}, which was nullified")]
    Nullified(Turn),
    /// The view was finalized.
    #[error("nullify in view {0:?}, which was finalized")]
    Finalized(Turn),
    /// A vote was cast in a later view.
    #[error("notarize in view {got:?}, votes were cast in {highest:?}")]
    BelowHighest {
        /// Asked for.
        got: Turn,
        /// Highest view with a vote.
        highest: Turn,
    },
}

/// All records above the compacted finalization.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Guard {
    compacted: Option<Turn>,
    signed: BTreeMap<Turn, Signed>,
}

impl Guard {
    /// A guard from its journal: the floor and the records above it, in the order they were written.
    ///
    /// # Errors
    /// [`GuardRefusal`] if the records contradict each other: the journal is corrupt.
    pub fn recover(
        compacted: Option<Turn>,
        records: impl IntoIterator<Item = GuardRecord>,
    ) -> Result<Self, GuardRefusal> {
        let mut guard = Self {
            compacted,
            signed: BTreeMap::new(),
        };
        for record in records {
            guard.admit(record)?;
        }
        Ok(guard)
    }

    /// Decides on `record` and holds it. If it is [`Admitted::New`] the caller makes it durable
    /// before the message leaves.
    ///
    /// # Errors
    /// [`GuardRefusal`]; nothing changes.
    pub fn admit(&mut self, record: GuardRecord) -> Result<Admitted, GuardRefusal> {
        let turn = record.turn();
        if let Some(compacted) = self.compacted.filter(|floor| turn <= *floor) {
            return Err(GuardRefusal::Compacted { got: turn, compacted });
        }
        let signed = self.signed.get(&turn).copied().unwrap_or_default();
        let same = |before: Option<Ballot>, ballot: Ballot| match before {
            Some(before) if before == ballot => Ok(Admitted::Again),
            Some(before) => Err(GuardRefusal::OtherBlock {
                got: ballot.digest,
                signed: before.digest,
            }),
            None => Ok(Admitted::New),
        };
        let admitted = match record {
            GuardRecord::Proposal(ballot) => same(signed.proposal, ballot)?,
            GuardRecord::Vote(Vote::Notarize(ballot)) => {
                let admitted = same(signed.notarize, ballot)?;
                match self.highest_vote() {
                    Some(highest) if admitted == Admitted::New && turn < highest => {
                        return Err(GuardRefusal::BelowHighest { got: turn, highest });
                    }
                    _ => admitted,
                }
            }
            GuardRecord::Vote(Vote::Finalize(ballot)) => {
                if signed.nullify.is_some() && !bug::active(Bug::FinalizeAfterNullify) {
                    return Err(GuardRefusal::Nullified(turn));
                }
                same(signed.finalize, ballot)?
            }
            GuardRecord::Vote(Vote::Nullify(_)) => {
                if signed.finalize.is_some() && !bug::active(Bug::NullifyAfterFinalize) {
                    return Err(GuardRefusal::Finalized(turn));
                }
                if signed.nullify.is_some() {
                    Admitted::Again
                } else {
                    Admitted::New
                }
            }
        };
        let signed = self.signed.entry(turn).or_default();
        match record {
            GuardRecord::Proposal(ballot) => signed.proposal = Some(ballot),
            GuardRecord::Vote(Vote::Notarize(ballot)) => signed.notarize = Some(ballot),
            GuardRecord::Vote(Vote::Finalize(ballot)) => signed.finalize = Some(ballot),
            GuardRecord::Vote(Vote::Nullify(ballot)) => signed.nullify = Some(ballot),
        }
        Ok(admitted)
    }

    /// Drops the records at or below `finalization`, whose block and all below it are durable, and
    /// refuses these views from now on. Returns whether anything changed.
    pub fn compact(&mut self, finalization: Turn) -> bool {
        if self.compacted.is_some_and(|floor| finalization <= floor) {
            return false;
        }
        self.compacted = Some(finalization);
        self.signed = self.signed.split_off(&(finalization.0, finalization.1.next()));
        true
    }

    /// The floor.
    #[must_use]
    pub fn compacted(&self) -> Option<Turn> {
        self.compacted
    }

    /// What was signed above the floor, ascending.
    #[must_use]
    pub fn signed(&self) -> &BTreeMap<Turn, Signed> {
        &self.signed
    }

    /// All records above the floor, for a rewritten journal.
    #[must_use]
    pub fn records(&self) -> Vec<GuardRecord> {
        self.signed
            .values()
            .flat_map(|signed| {
                [
                    signed.proposal.map(GuardRecord::Proposal),
                    signed.notarize.map(|ballot| GuardRecord::Vote(Vote::Notarize(ballot))),
                    signed.finalize.map(|ballot| GuardRecord::Vote(Vote::Finalize(ballot))),
                    signed.nullify.map(|ballot| GuardRecord::Vote(Vote::Nullify(ballot))),
                ]
            })
            .flatten()
            .collect()
    }

    /// Whether exactly this is recorded. A valid vote of my key above the floor that is not: a clone.
    #[must_use]
    pub fn holds(&self, record: &GuardRecord) -> bool {
        let Some(signed) = self.signed.get(&record.turn()) else {
            return false;
        };
        match record {
            GuardRecord::Proposal(ballot) => signed.proposal == Some(*ballot),
            GuardRecord::Vote(Vote::Notarize(ballot)) => signed.notarize == Some(*ballot),
            GuardRecord::Vote(Vote::Finalize(ballot)) => signed.finalize == Some(*ballot),
            GuardRecord::Vote(Vote::Nullify(ballot)) => signed.nullify == Some(*ballot),
        }
    }

    /// Highest view with a notarize or nullify vote, which is what a later notarize may not be below.
    ///
    /// Finalize votes answer older views, so they do not raise it. Nor do proposals.
    fn highest_vote(&self) -> Option<Turn> {
        self.signed
            .iter()
            .rev()
            .find(|(_, signed)| signed.notarize.is_some() || signed.nullify.is_some())
            .map(|(turn, _)| *turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::Height;

    fn ballot(view: u64, block: u8) -> Ballot {
        Ballot {
            epoch: Epoch(0),
            view: View(view),
            height: Height(view),
            digest: Digest([block; 32]),
        }
    }

    fn proposal(view: u64, block: u8) -> GuardRecord {
        GuardRecord::Proposal(ballot(view, block))
    }

    fn notarize(view: u64, block: u8) -> GuardRecord {
        GuardRecord::Vote(Vote::Notarize(ballot(view, block)))
    }

    fn finalize(view: u64, block: u8) -> GuardRecord {
        GuardRecord::Vote(Vote::Finalize(ballot(view, block)))
    }

    fn nullify(view: u64) -> GuardRecord {
        let epoch = Epoch(0);
        GuardRecord::Vote(Vote::Nullify(NullifyBallot {
            epoch,
            view: View(view),
        }))
    }

    fn guard(records: &[GuardRecord]) -> Guard {
        Guard::recover(None, records.iter().copied()).unwrap()
    }

    #[test]
    fn a_second_proposal_or_notarize_with_other_content_is_refused() {
        let mut guard = guard(&[proposal(3, 1), notarize(3, 1)]);
        let other = GuardRefusal::OtherBlock {
            got: Digest([2; 32]),
            signed: Digest([1; 32]),
        };
        assert_eq!(guard.admit(proposal(3, 2)), Err(other));
        assert_eq!(guard.admit(notarize(3, 2)), Err(other));
        assert_eq!(guard.admit(notarize(3, 1)), Ok(Admitted::Again));
        assert_eq!(guard.admit(proposal(3, 1)), Ok(Admitted::Again));
    }

    #[test]
    fn finalize_after_nullify_and_nullify_after_finalize_are_refused() {
        let turn = (Epoch(0), View(3));
        assert_eq!(
            guard(&[nullify(3)]).admit(finalize(3, 1)),
            Err(GuardRefusal::Nullified(turn))
        );
        assert_eq!(
            guard(&[finalize(3, 1)]).admit(nullify(3)),
            Err(GuardRefusal::Finalized(turn))
        );
        assert!(guard(&[finalize(3, 1)]).admit(finalize(3, 2)).is_err());
        assert_eq!(guard(&[nullify(3)]).admit(nullify(3)), Ok(Admitted::Again));
    }

    #[test]
    fn notarize_below_the_highest_vote_is_refused_and_an_older_finalize_is_not() {
        let mut guard = guard(&[notarize(3, 1), nullify(5)]);
        assert_eq!(
            guard.admit(notarize(4, 1)),
            Err(GuardRefusal::BelowHighest {
                got: (Epoch(0), View(4)),
                highest: (Epoch(0), View(5)),
            })
        );
        assert_eq!(guard.admit(notarize(3, 1)), Ok(Admitted::Again));
        assert_eq!(guard.admit(finalize(3, 1)), Ok(Admitted::New));
    }

    #[test]
    fn at_or_below_the_compacted_finalization_everything_is_refused() {
        let mut guard = guard(&[notarize(3, 1), finalize(3, 1), nullify(5)]);
        assert!(guard.compact((Epoch(0), View(3))));
        assert!(!guard.compact((Epoch(0), View(2))), "the floor only rises");
        for record in [notarize(3, 1), finalize(3, 1), nullify(2), proposal(1, 1)] {
            assert!(
                matches!(guard.admit(record), Err(GuardRefusal::Compacted { .. })),
                "{record:?}"
            );
        }
        assert_eq!(guard.records(), [nullify(5)]);
        assert!(guard.holds(&nullify(5)) && !guard.holds(&nullify(6)));
    }

    #[test]
    fn a_later_epoch_is_above_every_view_of_an_earlier_one() {
        let mut guard = guard(&[notarize(9, 1)]);
        guard.compact((Epoch(0), View(9)));
        let mut first = ballot(1, 1);
        first.epoch = Epoch(1);
        assert_eq!(guard.admit(GuardRecord::Vote(Vote::Notarize(first))), Ok(Admitted::New));
    }

    #[test]
    fn a_recovered_guard_refuses_what_the_lost_one_refused() {
        let before = guard(&[notarize(3, 1), finalize(3, 1), nullify(4), proposal(6, 2)]);
        let after = Guard::recover(None, before.records()).unwrap();
        assert_eq!(after, before);
        assert!(
            Guard::recover(None, [nullify(4), finalize(4, 1)]).is_err(),
            "a corrupt journal"
        );
    }
}
