//! election-safety: who begins to lead in a term holds everything that was committed in lower terms, and
//! nobody who led in a term leads in a lower one later, over crashes too (a lost vote shows here).
//!
//! A leader is named by term and member (two candidates of one term are ordered by their ids), so two
//! members may lead in one term, one after the other: log-matching and state-machine-safety judge that.

use std::collections::BTreeMap;

use common::ids::{ClusterId, LogIndex, Term};

use super::{Checker, Observation};

/// Remembers what was applied in each term, and in which term each agent led last.
#[derive(Default)]
pub struct ElectionSafety {
    applied: BTreeMap<ClusterId, BTreeMap<Term, LogIndex>>,
    led: BTreeMap<String, Term>,
}

impl Checker for ElectionSafety {
    fn name(&self) -> &'static str {
        "election-safety"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Applied { cluster, position, .. } => {
                let of_term = self
                    .applied
                    .entry(*cluster)
                    .or_default()
                    .entry(position.term)
                    .or_default();
                *of_term = (*of_term).max(position.index);
            }
            Observation::Leads {
                agent,
                cluster,
                term,
                last_index,
            } => {
                let last = self.led.entry(agent.clone()).or_insert(*term);
                if *term < *last {
                    return Err(format!("{agent} leads in term {term} after it led in term {last}"));
                }
                *last = *term;
                let before = self
                    .applied
                    .get(cluster)
                    .into_iter()
                    .flat_map(|terms| terms.range(..*term));
                let committed = before.map(|(_, index)| *index).max().unwrap_or_default();
                if committed > *last_index {
                    return Err(format!(
                        "{agent} leads in term {term} with a log up to {last_index}, and {committed} was committed before"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    fn leads(agent: &str, term: u64, last: u64) -> Observation {
        Observation::Leads {
            agent: agent.into(),
            cluster: ClusterId(0),
            term: Term(term),
            last_index: LogIndex(last),
        }
    }

    #[test]
    fn leader_without_a_committed_entry_is_caught() {
        let told = |leader| judge(ElectionSafety::default(), &[(0, applied("c1-1", 2, 7, 0)), (1, leader)]);
        assert_eq!(told(leads("c1-2", 3, 7)), Ok(()));
        assert!(told(leads("c1-2", 3, 6)).is_err());
        assert_eq!(
            told(leads("c1-2", 1, 6)),
            Ok(()),
            "a late winner of an old term commits nothing"
        );
    }

    #[test]
    fn member_that_forgot_its_term_is_caught() {
        assert!(
            judge(
                ElectionSafety::default(),
                &[(0, leads("c1-1", 4, 1)), (1, leads("c1-1", 3, 1))]
            )
            .is_err()
        );
    }
}
