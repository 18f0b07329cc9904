//! leader-completeness: who begins to lead in a term holds everything that was committed in lower terms.

use std::collections::BTreeMap;

use common::ids::{ClusterId, LogIndex, Term};

use super::{Checker, Observation};

/// Remembers what was applied in each term.
#[derive(Default)]
pub struct LeaderCompleteness {
    applied: BTreeMap<ClusterId, BTreeMap<Term, LogIndex>>,
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
                Ok(())
            }
            Observation::Leads {
                agent,
                cluster,
                term,
                last_index,
            } => {
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
        };
        let told = |leader| {
            judge(
                LeaderCompleteness::default(),
                &[(0, applied("c1-1", 2, 7, 0)), (1, leader)],
            )
        };
        assert_eq!(told(leads(3, 7)), Ok(()));
        assert!(told(leads(3, 6)).is_err());
        assert_eq!(
            told(leads(1, 6)),
            Ok(()),
            "a late winner of an old term commits nothing"
        );
    }
}
