//! election-safety: nobody who led in a term leads in a lower one later, over crashes too (a lost vote shows here).
//!
//! A leader is named by term and member (two candidates of one term are ordered by their ids), so two
//! members may lead in one term, one after the other: log-matching and state-machine-safety judge that.

use std::collections::BTreeMap;

use common::ids::Term;

use super::{Checker, Observation};

/// Remembers in which term each agent led last.
#[derive(Default)]
pub struct ElectionSafety {
    led: BTreeMap<String, Term>,
}

impl Checker for ElectionSafety {
    fn name(&self) -> &'static str {
        "election-safety"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        let Observation::Leads { agent, term, .. } = seen else {
            return Ok(());
        };
        let last = self.led.entry(agent.clone()).or_insert(*term);
        if *term < *last {
            return Err(format!("{agent} leads in term {term} after it led in term {last}"));
        }
        *last = *term;
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
            held: None,
        }
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
