//! leader-completeness: who begins to lead in a term holds everything that was committed in lower terms.

use std::collections::BTreeMap;

use common::ids::{ClusterId, LogIndex, LogPosition, Term};

use super::{Checker, Observation};

/// Remembers what was applied in each term, and the term of the highest index.
#[derive(Default)]
pub struct LeaderCompleteness {
    applied: BTreeMap<ClusterId, BTreeMap<Term, LogIndex>>,
    highest: BTreeMap<ClusterId, LogPosition>,
}

impl Checker for LeaderCompleteness {
    fn name(&self) -> &'static str {
        "leader-completeness"
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
                let highest = self.highest.entry(*cluster).or_insert(*position);
                if position.index > highest.index {
                    *highest = *position;
                }
                Ok(())
            }
            Observation::Leads {
                agent,
                cluster,
                term,
                last_index,
                held,
            } => {
                // A long log is no complete one: what it has there counts.
                if let (Some(held), Some(highest)) = (held, self.highest.get(cluster))
                    && highest.term < *term
                    && held.index == highest.index
                    && held.term != highest.term
                {
                    return Err(format!(
                        "{agent} leads in term {term} with a record of term {} at {}, and one of term {} was committed there",
                        held.term, held.index, highest.term
                    ));
                }
                let terms = self.applied.get(cluster).into_iter();
                let before = terms.flat_map(|terms| terms.range(..*term));
                let committed = before.map(|(_, index)| *index).max().unwrap_or_default();
                if committed <= *last_index {
                    return Ok(());
                }
                Err(format!(
                    "{agent} leads in term {term} with a log up to {last_index}, and {committed} was committed before"
                ))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    #[test]
    fn leader_without_a_committed_entry_is_caught() {
        let leads = |term, last| Observation::Leads {
            agent: "c1-2".into(),
            cluster: ClusterId(0),
            term: Term(term),
            last_index: LogIndex(last),
            held: None,
        };
        let told = |leader| {
            judge(
                LeaderCompleteness::default(),
                &[(0, applied("c1-1", 2, 7, 0)), (1, leader)],
            )
        };
        assert_eq!(told(leads(3, 7)), Ok(()));
        let with_tail = |of_term| {
            let mut leader = leads(3, 9);
            if let Observation::Leads { held, .. } = &mut leader {
                *held = Some(LogPosition {
                    term: Term(of_term),
                    index: LogIndex(7),
                });
            }
            told(leader)
        };
        assert_eq!(with_tail(2), Ok(()));
        assert!(
            with_tail(1).unwrap_err().contains("of term 1"),
            "a long tail of an older term"
        );
        assert!(told(leads(3, 6)).is_err());
        assert_eq!(
            told(leads(1, 6)),
            Ok(()),
            "a late winner of an old term commits nothing"
        );
    }
}
