//! monotonic: whom a disk backs never goes back, over all lives of its process, and a member is in no term that is not on its
//! disk; the terms in which a member leads never go back over lost disks either. Within one life neither its term nor
//! what it takes for committed nor its applied position does.

use std::collections::BTreeMap;

use common::ids::{LogIndex, Term};

use super::{Checker, LeaderId, Observation};

/// Remembers where each member stood last.
#[derive(Default)]
pub struct Monotonic {
    /// On which disk, whom, and whether that one was elected.
    backed: BTreeMap<String, (u64, LeaderId, bool)>,
    led: BTreeMap<String, Term>,
    /// In this life, whether it leads or not.
    terms: BTreeMap<String, Term>,
    committed: BTreeMap<String, LogIndex>,
    applied: BTreeMap<String, LogIndex>,
}

/// Puts `now` in the place of what was last known of `agent`.
///
/// # Errors
/// What was known, if `now` is below it.
fn advance<T: Copy + Ord>(known: &mut BTreeMap<String, T>, agent: &str, now: T) -> Result<(), T> {
    match known.insert(agent.to_owned(), now) {
        Some(last) if now < last => Err(last),
        _ => Ok(()),
    }
}

impl Monotonic {
    fn stands(&mut self, agent: &str, term: Term, is_leader: bool, committed: LogIndex) -> Result<(), String> {
        let back_from = |last| format!("{agent} is in term {term} after it was in term {last}");
        advance(&mut self.terms, agent, term).map_err(back_from)?;
        if is_leader {
            advance(&mut self.led, agent, term).map_err(back_from)?;
        }
        advance(&mut self.committed, agent, committed)
            .map_err(|last| format!("{agent} takes index {committed} for committed after it took {last}"))
    }
}

impl Checker for Monotonic {
    fn name(&self) -> &'static str {
        "monotonic"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Begins { agent } => {
                self.applied.remove(agent);
                self.committed.remove(agent);
                self.terms.remove(agent);
                Ok(())
            }
            Observation::Backs {
                agent,
                disk,
                candidate,
                is_elected,
                ..
            } => {
                let now = (*disk, *candidate, *is_elected);
                advance(&mut self.backed, agent, now)
                    .map_err(|(_, last, _)| format!("the disk of {agent} backs {candidate} after it backed {last}"))
            }
            Observation::Stands {
                agent,
                term,
                durable_term,
                ..
            } if durable_term < term => Err(format!(
                "{agent} is in term {term}, and its disk has term {durable_term}: its next life goes back"
            )),
            Observation::Stands {
                agent,
                term,
                is_leader,
                committed,
                ..
            } => self.stands(agent, *term, *is_leader, *committed),
            Observation::Applied { agent, position, .. } => advance(&mut self.applied, agent, position.index)
                .map_err(|last| format!("{agent} stands at index {} after it stood at {last}", position.index)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    fn stands(term: u64, is_leader: bool, committed: u64, durable_term: u64) -> Observation {
        Observation::Stands {
            agent: "c1-1".into(),
            term: Term(term),
            is_leader,
            committed: LogIndex(committed),
            durable_term: Term(durable_term),
        }
    }

    fn begins() -> Observation {
        Observation::Begins { agent: "c1-1".into() }
    }

    fn told(history: &[Observation]) -> Result<(), String> {
        let history: Vec<_> = history.iter().map(|seen| (0, seen.clone())).collect();
        judge(Monotonic::default(), &history)
    }

    #[test]
    fn term_in_which_a_member_leads_goes_back_in_no_life() {
        let then = |term| told(&[stands(4, true, 0, 4), begins(), stands(term, true, 0, 5)]);
        assert_eq!(then(4), Ok(()));
        assert_eq!(then(5), Ok(()));
        assert!(then(3).is_err());
    }

    #[test]
    fn follower_whose_vote_is_lost_is_caught() {
        assert_eq!(told(&[stands(0, false, 0, 0)]), Ok(()));
        assert!(told(&[stands(4, false, 0, 3)]).unwrap_err().contains("goes back"));
        let goes_back = [stands(4, false, 0, 4), stands(3, false, 0, 4)];
        assert!(told(&goes_back).is_err(), "in one life");
    }

    #[test]
    fn vote_on_one_disk_that_goes_back_is_caught_over_restarts_too() {
        let then = |disk, candidate, is_elected| {
            let first = backs("c1-1", 0, leader(4, 2), true);
            told(&[first, begins(), backs("c1-1", disk, candidate, is_elected)])
        };
        assert_eq!(then(0, leader(4, 2), true), Ok(()));
        assert_eq!(then(0, leader(4, 3), false), Ok(()), "a later candidate of the term");
        assert!(then(0, leader(4, 1), false).unwrap_err().contains("1 of term 4"));
        assert!(then(0, leader(3, 3), false).is_err());
        assert!(then(0, leader(4, 2), false).is_err(), "it was elected before");
        assert_eq!(then(1, leader(1, 1), false), Ok(()), "the disk was lost");
    }

    #[test]
    fn what_is_taken_for_committed_goes_back_only_with_a_restart() {
        let (before, after) = (stands(4, false, 7, 4), stands(4, false, 6, 4));
        assert!(told(&[before.clone(), after.clone()]).unwrap_err().contains("index 6"));
        assert_eq!(told(&[before, begins(), after]), Ok(()));
    }

    #[test]
    fn applied_position_goes_back_only_with_a_restart() {
        let (before, after) = (applied("c1-1", 1, 7, 0), applied("c1-1", 1, 6, 0));
        assert!(told(&[before.clone(), after.clone()]).is_err());
        assert_eq!(told(&[before, begins(), after]), Ok(()));
    }
}
