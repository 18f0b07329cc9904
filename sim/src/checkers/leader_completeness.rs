//! leader-completeness: who begins to lead holds everything that was committed under those who stand below it: leaders of
//! lower terms, and those of its own term with a lower id.

use std::collections::BTreeMap;

use common::ids::{ClusterId, LogIndex};

use super::{Checker, LeaderId, Observation};

/// Of one cluster.
#[derive(Default)]
struct Committed {
    /// Highest index of each leader's entries.
    under: BTreeMap<LeaderId, LogIndex>,
    /// The highest of all, and whose it is.
    highest: Option<(LogIndex, LeaderId)>,
}

/// Remembers what was committed under each leader.
#[derive(Default)]
pub struct LeaderCompleteness(BTreeMap<ClusterId, Committed>);

impl Committed {
    fn note(&mut self, index: LogIndex, leader: LeaderId) {
        let under = self.under.entry(leader).or_default();
        *under = (*under).max(index);
        self.highest = self.highest.max(Some((index, leader)));
    }

    /// A long log is no complete one: what it has at the highest index counts too.
    fn judge(&self, leader: LeaderId, last: LogIndex, held: Option<(LogIndex, LeaderId)>) -> Result<(), String> {
        if let (Some((at, of)), Some((index, committed))) = (held, self.highest)
            && committed < leader
            && at == index
            && of != committed
        {
            return Err(format!(
                "has a record of {of} at {at}, where one of {committed} was committed"
            ));
        }
        let before = self.under.range(..leader);
        match before.max_by_key(|(_, index)| **index) {
            Some((of, index)) if *index > last => {
                Err(format!("has a log up to {last}, and {index} of {of} was committed"))
            }
            _ => Ok(()),
        }
    }
}

impl Checker for LeaderCompleteness {
    fn name(&self) -> &'static str {
        "leader-completeness"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Committed {
                cluster,
                index,
                leader: Some(leader),
                ..
            } => {
                self.0.entry(*cluster).or_default().note(*index, *leader);
                Ok(())
            }
            Observation::Leads {
                agent,
                cluster,
                leader,
                last_index,
                held,
                ..
            } => {
                let committed = self.0.entry(*cluster).or_default();
                let judged = committed.judge(*leader, *last_index, *held);
                judged.map_err(|what| format!("{agent} leads as {leader} and {what}"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    /// After index 7 was committed under member 2 of term 2.
    fn told(leader_now: LeaderId, last: u64, held: Option<LeaderId>) -> Result<(), String> {
        let committed = Observation::Committed {
            agent: "c1-1".into(),
            cluster: ClusterId(0),
            index: LogIndex(7),
            leader: Some(leader(2, 2)),
            copies: 2,
            voters: 3,
        };
        let leads = leads("c1-2", leader_now, last, held.map(|of| (7, of)));
        judge(LeaderCompleteness::default(), &[(0, committed), (1, leads)])
    }

    #[test]
    fn leader_without_a_committed_entry_is_caught() {
        assert_eq!(told(leader(3, 1), 7, None), Ok(()));
        assert!(told(leader(3, 1), 6, None).unwrap_err().contains("up to 6"));
        assert_eq!(
            told(leader(1, 3), 6, None),
            Ok(()),
            "a late winner of an old term commits nothing"
        );
    }

    #[test]
    fn long_tail_of_an_older_leader_is_caught() {
        assert_eq!(told(leader(3, 1), 9, Some(leader(2, 2))), Ok(()));
        assert!(
            told(leader(3, 1), 9, Some(leader(1, 3)))
                .unwrap_err()
                .contains("of term 1")
        );
        assert!(told(leader(3, 1), 9, Some(leader(2, 1))).is_err(), "of the same term");
    }

    #[test]
    fn second_leader_of_a_term_is_asked_for_what_the_first_one_committed() {
        assert_eq!(told(leader(2, 3), 7, Some(leader(2, 2))), Ok(()));
        assert!(told(leader(2, 3), 6, None).is_err());
        assert!(told(leader(2, 3), 9, Some(leader(2, 1))).is_err());
        assert_eq!(told(leader(2, 1), 6, None), Ok(()), "a late winner with a lower id");
        assert_eq!(told(leader(2, 2), 6, None), Ok(()), "itself, in its next life");
    }
}
