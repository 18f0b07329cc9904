//! election-safety: who leads was backed by a majority of its cluster's disks under its very leader id, and no other member
//! ever leads under that id.
//!
//! A leader is named by term and member (two candidates of one term are ordered by their ids), so two members may lead in
//! one term, one after the other; leader-completeness, log-matching and state-machine-safety judge that.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::ClusterId;

use super::{Checker, LeaderId, Observation};

/// What belongs to one leader id.
#[derive(Default)]
struct Election {
    /// Whose disks ever backed it; a disk that was lost since did so too.
    backers: BTreeSet<String>,
    /// Who leads under it.
    leader: Option<String>,
}

/// Remembers every election.
#[derive(Default)]
pub struct ElectionSafety(BTreeMap<(ClusterId, LeaderId), Election>);

impl Checker for ElectionSafety {
    fn name(&self) -> &'static str {
        "election-safety"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Backs {
                agent,
                cluster,
                candidate,
                ..
            } => {
                let election = self.0.entry((*cluster, *candidate)).or_default();
                election.backers.insert(agent.clone());
                Ok(())
            }
            Observation::Leads {
                agent,
                cluster,
                leader,
                voters,
                ..
            } => {
                let election = self.0.entry((*cluster, *leader)).or_default();
                let first = election.leader.get_or_insert_with(|| agent.clone());
                if first != agent {
                    return Err(format!("{agent} leads as {leader}, as {first} did"));
                }
                let backers = election.backers.len();
                if 2 * backers <= *voters {
                    return Err(format!(
                        "{agent} leads as {leader}, and {backers} of {voters} disks backed it"
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
    use super::{super::*, *};

    fn told(history: &[Observation]) -> Result<(), String> {
        let history: Vec<_> = history.iter().map(|seen| (0, seen.clone())).collect();
        judge(ElectionSafety::default(), &history)
    }

    #[test]
    fn leader_that_no_majority_of_disks_backed_is_caught() {
        let (first, second) = (leader(4, 1), leader(4, 2));
        let own = backs("c1-1", 0, first, false);
        let leads = leads("c1-1", first, 1, None);
        let with = |other| told(&[own.clone(), other, leads.clone()]);
        assert_eq!(with(backs("c1-2", 0, first, true)), Ok(()));
        assert!(
            with(own.clone()).unwrap_err().contains("1 of 3 disks"),
            "twice the same"
        );
        assert!(
            with(backs("c1-2", 0, second, false)).is_err(),
            "another one of that term"
        );
        assert!(with(backs("c1-2", 0, leader(5, 1), false)).is_err(), "in another term");
    }

    #[test]
    fn two_members_under_one_leader_id_are_caught() {
        let one = leader(4, 1);
        let backed = [backs("c1-1", 0, one, false), backs("c1-2", 0, one, false)];
        let then = |agent| {
            let leads = [leads("c1-1", one, 1, None), leads(agent, one, 1, None)];
            told(&[&backed[..], &leads[..]].concat())
        };
        assert_eq!(then("c1-1"), Ok(()), "again, in its next life");
        assert!(then("c1-3").unwrap_err().contains("as c1-1 did"));
    }
}
