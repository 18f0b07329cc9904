//! monotonic: a member's term never goes back, over all lives of its process, and within one life its applied
//! position never does.

use std::collections::BTreeMap;

use common::ids::{LogIndex, Term};

use super::{Checker, Observation};

/// Remembers where each member stood last.
#[derive(Default)]
pub struct Monotonic {
    terms: BTreeMap<String, Term>,
    applied: BTreeMap<String, LogIndex>,
}

impl Checker for Monotonic {
    fn name(&self) -> &'static str {
        "monotonic"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Stands {
                agent,
                term,
                is_new_life,
            } => {
                if *is_new_life {
                    self.applied.remove(agent);
                }
                let last = self.terms.entry(agent.clone()).or_insert(*term);
                if *term < *last {
                    return Err(format!("{agent} is in term {term} after it was in term {last}"));
                }
                *last = *term;
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

    fn stands(term: u64, is_new_life: bool) -> Observation {
        Observation::Stands {
            agent: "c1-1".into(),
            term: Term(term),
            is_new_life,
        }
    }

    #[test]
    fn term_that_goes_back_is_caught_over_restarts_too() {
        let told = |second| judge(Monotonic::default(), &[(0, stands(4, false)), (1, second)]);
        assert_eq!(told(stands(4, true)), Ok(()));
        assert!(told(stands(3, true)).is_err());
        assert!(told(stands(3, false)).is_err());
    }

    #[test]
    fn applied_position_goes_back_only_with_a_restart() {
        let (before, after) = (applied("c1-1", 1, 7, 0), applied("c1-1", 1, 6, 0));
        assert!(judge(Monotonic::default(), &[(0, before.clone()), (1, after.clone())]).is_err());
        let restart = stands(1, true);
        assert_eq!(
            judge(Monotonic::default(), &[(0, before), (1, restart), (2, after)]),
            Ok(())
        );
    }
}
