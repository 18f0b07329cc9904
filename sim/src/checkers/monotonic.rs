//! monotonic: the terms in which a member leads never go back, over all lives of its process; within one life neither its
//! term nor its applied position ever does.

use std::collections::BTreeMap;

use common::ids::{LogIndex, Term};

use super::{Checker, Observation};

/// Remembers where each member stood last.
#[derive(Default)]
pub struct Monotonic {
    led: BTreeMap<String, Term>,
    /// In this life, whether it leads or not: a follower's new term may die unsaid with its process.
    terms: BTreeMap<String, Term>,
    applied: BTreeMap<String, LogIndex>,
}

impl Checker for Monotonic {
    fn name(&self) -> &'static str {
        "monotonic"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Begins { agent } => {
                self.applied.remove(agent);
                self.terms.remove(agent);
            }
            Observation::Stands { agent, term, is_leader } => {
                let of_life = Some(&mut self.terms);
                let of_all = is_leader.then_some(&mut self.led);
                for known in of_life.into_iter().chain(of_all) {
                    let last = known.entry(agent.clone()).or_insert(*term);
                    if *term < *last {
                        return Err(format!("{agent} is in term {term} after it was in term {last}"));
                    }
                    *last = *term;
                }
            }
            Observation::Applied { agent, position, .. } => {
                let last = self.applied.entry(agent.clone()).or_insert(position.index);
                if position.index < *last {
                    return Err(format!(
                        "{agent} stands at index {} after it stood at {last}",
                        position.index
                    ));
                }
                *last = position.index;
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    fn stands(term: u64, is_leader: bool) -> Observation {
        Observation::Stands {
            agent: "c1-1".into(),
            term: Term(term),
            is_leader,
        }
    }

    fn begins() -> Observation {
        Observation::Begins { agent: "c1-1".into() }
    }

    #[test]
    fn term_that_goes_back_is_caught_over_restarts_too() {
        let told = |then| {
            judge(
                Monotonic::default(),
                &[(0, stands(4, true)), (1, begins()), (2, stands(then, true))],
            )
        };
        assert_eq!(told(4), Ok(()));
        assert_eq!(told(5), Ok(()));
        assert!(told(3).is_err());
        let follows = |between: Option<Observation>| {
            let history = [Some(stands(4, false)), between, Some(stands(3, false))];
            let history: Vec<_> = history.into_iter().flatten().map(|seen| (0, seen)).collect();
            judge(Monotonic::default(), &history)
        };
        assert!(follows(None).is_err());
        assert_eq!(follows(Some(begins())), Ok(()), "a term that was told nobody");
    }

    #[test]
    fn applied_position_goes_back_only_with_a_restart() {
        let (before, after) = (applied("c1-1", 1, 7, 0), applied("c1-1", 1, 6, 0));
        assert!(judge(Monotonic::default(), &[(0, before.clone()), (1, after.clone())]).is_err());
        assert_eq!(
            judge(Monotonic::default(), &[(0, before), (1, begins()), (2, after)]),
            Ok(())
        );
    }
}
