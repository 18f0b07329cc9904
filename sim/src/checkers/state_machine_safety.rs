//! state-machine-safety: members at one position have one state, and a committed position never changes
//! its term.

use std::collections::BTreeMap;

use common::ids::{ClusterId, Digest, LogIndex, Term};

use super::{Checker, Observation};

/// Remembers the first state seen at each position.
#[derive(Default)]
pub struct StateMachineSafety {
    states: BTreeMap<(ClusterId, LogIndex), (Term, Digest, String)>,
}

impl Checker for StateMachineSafety {
    fn name(&self) -> &'static str {
        "state-machine-safety"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        let Observation::Applied {
            agent,
            cluster,
            position,
            digest,
            ..
        } = seen
        else {
            return Ok(());
        };
        let first = self.states.entry((*cluster, position.index));
        let (term, state, by) = first.or_insert_with(|| (position.term, *digest, agent.clone()));
        if *term != position.term {
            return Err(format!(
                "index {} of {cluster} is of term {term} for {by} and of term {} for {agent}",
                position.index, position.term
            ));
        }
        if state != digest {
            return Err(format!(
                "{agent} and {by} have different states at index {}",
                position.index
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    #[test]
    fn two_states_or_two_terms_at_one_index_are_caught() {
        let told = |second| {
            judge(
                StateMachineSafety::default(),
                &[(0, applied("c1-1", 1, 4, 1)), (1, second)],
            )
        };
        assert_eq!(told(applied("c1-2", 1, 4, 1)), Ok(()));
        assert!(told(applied("c1-2", 1, 4, 2)).unwrap_err().contains("different states"));
        assert!(told(applied("c1-2", 2, 4, 1)).unwrap_err().contains("term"));
    }
}
