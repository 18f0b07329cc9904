//! What a leader changes about the members of its cluster: a drone that lost its disk comes back under a new
//! Raft id, first without a vote, then in the place of the old id, which leaves.
//!
//! # Rules
//! * Upon a configuration that was left half-done: finish it, with the newest id of each device.
//! * Upon a learner that holds the log, of a device that votes under an older id: one swap through joint
//!   consensus. Not before the roster of the last swap is final: those who sign for it must not go first.
//! * Upon a learner of a device that has a newer id: it leaves.
//! * Upon a roster that names an older id than the one that votes: a `Roster` entry. The devices stay.
//! * One step at a time, each computed anew from what is in force, so that a new leader goes on where the old
//!   one stood.
//!
//! # Invariants
//! * one-id: an id that was replaced never votes or signs again; of a device the greatest id counts.
//!
//! Source: `cluster-tier` design, section 5; Ongaro's dissertation, chapter 4.

use std::collections::BTreeSet;

use common::{
    bug::{self, Bug},
    ids::{NodeIdx, RaftNodeId},
    roster::{Roster, RosterMember},
};

/// Members as a leader knows them.
#[derive(Clone, Copy, Debug)]
pub struct Members<'a> {
    /// Voters; of a joint configuration those of both halves.
    pub voters: &'a [RaftNodeId],
    /// Members without a vote.
    pub learners: &'a [RaftNodeId],
    /// A change of voters has begun and is not finished.
    pub is_joint: bool,
    /// Learners that hold the log up to a short lag and were heard of lately.
    pub ready: &'a [RaftNodeId],
    /// Ids that asked to be members lately, and whose devices the connections proved.
    pub asking: &'a BTreeSet<RaftNodeId>,
    /// The roster in force in the log.
    pub roster: &'a Roster,
    /// It is also the one under which the next batch is finalized.
    pub is_roster_final: bool,
}

/// The next change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberStep {
    /// This one becomes a member without a vote.
    Add(RaftNodeId),
    /// These vote, and nobody else.
    Vote(BTreeSet<RaftNodeId>),
    /// These leave; none of them votes.
    Leave(BTreeSet<RaftNodeId>),
    /// This roster stands from here on.
    Enter(Roster),
}

/// What an id is in a cluster that its device belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A member, with a vote or without.
    Member,
    /// The newest of its device, and no member yet.
    Newcomer,
    /// A newer one of its device is known: this one must not be used again.
    Retired(RaftNodeId),
}

impl Members<'_> {
    fn newest(&self, device: NodeIdx) -> Option<RaftNodeId> {
        let known = self.voters.iter().chain(self.learners).copied();
        let attesting = self.roster.members.iter().map(|member| member.raft);
        known.chain(attesting).filter(|id| id.idx() == device).max()
    }

    /// What `id` is here.
    #[must_use]
    pub fn standing(&self, id: RaftNodeId) -> Standing {
        if self.voters.contains(&id) || self.learners.contains(&id) {
            return Standing::Member;
        }
        let newer = self.newest(id.idx()).filter(|newest| *newest > id);
        newer.map_or(Standing::Newcomer, Standing::Retired)
    }

    /// The one next step, if something is to be done.
    #[must_use]
    pub fn next_step(&self) -> Option<MemberStep> {
        if self.is_joint {
            return Some(MemberStep::Vote(newest_of_each(self.voters)));
        }
        if let Some(roster) = self.roster_of_voters().filter(|_| !bug::active(Bug::RosterKept)) {
            return Some(MemberStep::Enter(roster));
        }
        // Before anything that one device alone can ask for again and again.
        if let Some(voters) = self.swap().filter(|_| self.is_roster_final) {
            return Some(MemberStep::Vote(voters));
        }
        let leaving = self.outdated_learners();
        if !leaving.is_empty() {
            return Some(MemberStep::Leave(leaving));
        }
        let mut newcomers = self.asking.iter().rev();
        let newcomer = newcomers.find(|id| self.standing(**id) == Standing::Newcomer);
        newcomer.copied().map(MemberStep::Add)
    }

    /// Learners of devices that vote, learn or ask under a newer id.
    fn outdated_learners(&self) -> BTreeSet<RaftNodeId> {
        let is_outdated = |learner: &RaftNodeId| {
            let others = self.voters.iter().chain(self.learners).chain(self.asking);
            let mut of_device = others.filter(|other| other.idx() == learner.idx());
            of_device.any(|other| other > learner)
        };
        self.learners.iter().copied().filter(is_outdated).collect()
    }

    /// The voters with a ready learner in the place of its device's older id; of several the one that was renewed
    /// the least often.
    fn swap(&self) -> Option<BTreeSet<RaftNodeId>> {
        let replaces = |old: &RaftNodeId, new: &RaftNodeId| old.idx() == new.idx() && old < new;
        let old_of = |new: &RaftNodeId| self.voters.iter().copied().find(|old| replaces(old, new));
        let swaps = self.ready.iter().filter_map(|new| Some((old_of(new)?, *new)));
        let (old, new) = swaps.min_by_key(|(_, new)| (new.incarnation(), *new))?;
        let stay = self.voters.iter().copied().filter(|voter| *voter != old);
        Some(stay.chain([new]).collect())
    }

    /// The roster with the ids under which its devices vote, if that is another one.
    fn roster_of_voters(&self) -> Option<Roster> {
        let voting = |member: &RosterMember| {
            let ids = self.voters.iter().copied();
            ids.filter(|voter| voter.idx() == member.raft.idx()).max()
        };
        let renewed = self.roster.members.iter().map(|member| RosterMember {
            raft: voting(member).map_or(member.raft, |voter| voter.max(member.raft)),
            ..*member
        });
        let members: Vec<_> = renewed.collect();
        let members = members.try_into().expect("as many as before");
        Some(Roster { members }).filter(|roster| roster != self.roster)
    }
}

/// Of the ids of one device the greatest.
fn newest_of_each(ids: &[RaftNodeId]) -> BTreeSet<RaftNodeId> {
    let is_newest = |id: &&RaftNodeId| !ids.iter().any(|other| other.idx() == id.idx() && other > *id);
    ids.iter().filter(is_newest).copied().collect()
}

#[cfg(test)]
mod tests {
    use common::ids::KeyVersion;
    use proptest::prelude::*;

    use super::*;

    fn id(device: u32, incarnation: u32) -> RaftNodeId {
        RaftNodeId::new(NodeIdx(device), incarnation)
    }

    fn roster(ids: &[RaftNodeId]) -> Roster {
        let members = ids.iter().map(|raft| RosterMember {
            raft: *raft,
            key_version: KeyVersion(0),
        });
        Roster {
            members: members.collect::<Vec<_>>().try_into().unwrap(),
        }
    }

    const FOUNDERS: fn() -> [RaftNodeId; 3] = || [id(1, 1), id(2, 1), id(3, 1)];

    static NOBODY: BTreeSet<RaftNodeId> = BTreeSet::new();

    fn step(members: &Members<'_>) -> Option<MemberStep> {
        members.next_step()
    }

    fn members<'a>(voters: &'a [RaftNodeId], learners: &'a [RaftNodeId], roster: &'a Roster) -> Members<'a> {
        Members {
            voters,
            learners,
            is_joint: false,
            ready: &[],
            asking: &NOBODY,
            roster,
            is_roster_final: true,
        }
    }

    #[test]
    fn lost_member_comes_back_as_learner_then_votes_then_signs_and_its_old_id_leaves() {
        let (founders, first) = (FOUNDERS(), roster(&FOUNDERS()));
        let (old, new) = (id(2, 1), id(2, 2));
        let at_first = members(&founders, &[], &first);
        assert_eq!(step(&at_first), None);
        let asking = [new].into();
        let asked = Members {
            asking: &asking,
            ..at_first
        };
        assert_eq!(step(&asked), Some(MemberStep::Add(new)));
        let learners = [new];
        let with_learner = Members {
            asking: &asking,
            ..members(&founders, &learners, &first)
        };
        assert_eq!(step(&with_learner), None, "it does not hold the log yet");
        let ready = Members {
            ready: &learners,
            ..with_learner
        };
        let swapped = [id(1, 1), new, id(3, 1)];
        assert_eq!(step(&ready), Some(MemberStep::Vote(swapped.into())));
        let joint = [id(1, 1), old, new, id(3, 1)];
        let half_done = Members {
            is_joint: true,
            ..members(&joint, &[], &first)
        };
        assert_eq!(step(&half_done), Some(MemberStep::Vote(swapped.into())));
        let demoted = [old];
        let second = roster(&swapped);
        let voting = members(&swapped, &demoted, &first);
        assert_eq!(step(&voting), Some(MemberStep::Enter(second.clone())));
        let signing = members(&swapped, &demoted, &second);
        assert_eq!(step(&signing), Some(MemberStep::Leave([old].into())));
        let still_heard = Members {
            ready: &demoted,
            is_roster_final: true,
            ..signing
        };
        assert_eq!(
            step(&still_heard),
            Some(MemberStep::Leave([old].into())),
            "it never comes back"
        );
        assert_eq!(step(&members(&swapped, &[], &second)), None);
    }

    #[test]
    fn second_member_is_not_replaced_before_the_roster_of_the_first_is_final() {
        let voters = [id(1, 1), id(2, 2), id(3, 1)];
        let (learners, in_force) = ([id(3, 2)], roster(&voters));
        let waiting = Members {
            ready: &learners,
            is_roster_final: false,
            ..members(&voters, &learners, &in_force)
        };
        assert_eq!(step(&waiting), None);
        let free = Members {
            is_roster_final: true,
            ..waiting
        };
        assert!(matches!(step(&free), Some(MemberStep::Vote(_))));
    }

    #[test]
    fn id_that_was_replaced_is_told_so_and_a_newer_one_takes_the_place_of_a_learner() {
        let (founders, first) = (FOUNDERS(), roster(&FOUNDERS()));
        let learners = [id(2, 2)];
        let now = members(&founders, &learners, &first);
        assert_eq!(now.standing(id(2, 1)), Standing::Member);
        assert_eq!(now.standing(id(2, 2)), Standing::Member);
        assert_eq!(now.standing(id(2, 3)), Standing::Newcomer);
        let asking = [id(2, 3)].into();
        let asked = Members { asking: &asking, ..now };
        assert_eq!(step(&asked), Some(MemberStep::Leave(learners.into())));
        let voters = [id(1, 1), id(2, 3), id(3, 1)];
        let later = members(&voters, &[], &first);
        assert_eq!(later.standing(id(2, 2)), Standing::Retired(id(2, 3)));
        let newest = id(2, 3);
        assert_eq!(
            later.standing(id(2, 1)),
            Standing::Retired(newest),
            "it signs, but votes no more"
        );
        let asking = [id(2, 1), id(2, 2)].into();
        let signing = roster(&voters);
        let asked = Members {
            asking: &asking,
            ..members(&voters, &[], &signing)
        };
        assert_eq!(step(&asked), None, "who was replaced may ask for ever");
    }

    proptest! {
        /// Whatever is in force: the steps end, every device that voted votes under its newest ready id, and the
        /// roster names the ids that vote.
        #[test]
        fn steps_end_with_one_id_of_each_device(
            incarnations in proptest::collection::vec((1u32..4, 0u32..4, any::<bool>(), any::<bool>()), 1..8),
            is_joint in any::<bool>(),
        ) {
            let with_idx: Vec<_> = (1u32..).zip(incarnations).collect();
            let mut voters: BTreeSet<_> = with_idx.iter().map(|(device, (votes, ..))| id(*device, *votes)).collect();
            let newcomer = |(device, (votes, learns, ..)): &(u32, (u32, u32, bool, bool))| {
                (*learns > 0 && learns != votes).then(|| id(*device, *learns))
            };
            let mut learners: BTreeSet<_> = with_idx.iter().filter(|(.., (.., asks))| !asks).filter_map(newcomer).collect();
            let asking: BTreeSet<_> = with_idx.iter().filter(|(.., (.., asks))| *asks).filter_map(newcomer).collect();
            let ready: BTreeSet<_> = with_idx
                .iter()
                .filter(|(_, (_, _, is_ready, _))| *is_ready)
                .filter_map(newcomer)
                .collect();
            let mut in_force = roster(&voters.iter().map(|voter| id(voter.idx().0, 1)).collect::<Vec<_>>());
            let mut is_joint = is_joint;
            let devices = voters.len();
            for _ in 0..64 {
                let voting: Vec<_> = voters.iter().copied().collect();
                let learning: Vec<_> = learners.iter().copied().collect();
                let fit: Vec<_> = learners.intersection(&ready).copied().collect();
                let now = Members {
                    is_joint,
                    ready: &fit,
                    asking: &asking,
                    ..members(&voting, &learning, &in_force)
                };
                match step(&now) {
                    None => break,
                    Some(MemberStep::Add(newcomer)) => {
                        prop_assert!(!voters.contains(&newcomer));
                        prop_assert!(learners.insert(newcomer));
                    }
                    Some(MemberStep::Vote(next)) => {
                        prop_assert_eq!(next.len(), devices, "no device loses its vote");
                        learners = learners.union(&voters).filter(|id| !next.contains(id)).copied().collect();
                        (voters, is_joint) = (next, false);
                    }
                    Some(MemberStep::Leave(leaving)) => {
                        prop_assert!(leaving.is_disjoint(&voters));
                        learners.retain(|learner| !leaving.contains(learner));
                    }
                    Some(MemberStep::Enter(next)) => {
                        prop_assert!(next.is_ordered());
                        in_force = next;
                    }
                }
            }
            prop_assert!(!is_joint);
            for voter in &voters {
                prop_assert!(!ready.iter().any(|fit| fit.idx() == voter.idx() && fit > voter), "{voter} was replaced");
                prop_assert!(!learners.iter().any(|learner| learner.idx() == voter.idx() && learner < voter));
            }
            let signing: BTreeSet<_> = in_force.members.iter().map(|member| member.raft).collect();
            prop_assert_eq!(signing, voters);
        }
    }
}
