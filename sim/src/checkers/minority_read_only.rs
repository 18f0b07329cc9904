//! minority-read-only: whoever is on a side without a majority acknowledges nothing, and answers no
//! linearizable read.
//!
//! What was committed before the question may still be told: it is not a new promise. Neither is what a majority committed
//! meanwhile: a write may leave through a cut of one direction, and its place in the log be heard of later.

use std::collections::BTreeMap;

use common::ids::{ClusterId, LogIndex};

use super::{Checker, Observation};

/// Knows who is cut off since when, and when each index was first applied anywhere.
#[derive(Default)]
pub struct MinorityReadOnly {
    cut_off_since_us: BTreeMap<String, u64>,
    applied: BTreeMap<ClusterId, Vec<(LogIndex, u64)>>,
    /// Highest index that somebody with a majority on its side applied.
    applied_by_majority: BTreeMap<ClusterId, LogIndex>,
}

impl MinorityReadOnly {
    fn is_cut_off_since(&self, agent: &str, asked_us: u64) -> bool {
        self.cut_off_since_us
            .get(agent)
            .is_some_and(|since_us| *since_us <= asked_us)
    }

    fn was_applied_before(&self, cluster: ClusterId, index: LogIndex, at_us: u64) -> bool {
        let rises = self.applied.get(&cluster).map_or(&[][..], Vec::as_slice);
        let first = rises.partition_point(|(seen, _)| *seen < index);
        rises.get(first).is_some_and(|(_, seen_us)| *seen_us <= at_us)
    }
}

impl Checker for MinorityReadOnly {
    fn name(&self) -> &'static str {
        "minority-read-only"
    }

    fn observe(&mut self, now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Applied {
                agent,
                cluster,
                position,
                ..
            } => {
                if !self.cut_off_since_us.contains_key(agent) {
                    let highest = self.applied_by_majority.entry(*cluster).or_default();
                    *highest = (*highest).max(position.index);
                }
                let rises = self.applied.entry(*cluster).or_default();
                if rises.last().is_none_or(|(highest, _)| *highest < position.index) {
                    rises.push((position.index, now_us));
                }
            }
            Observation::Side {
                agent, has_majority, ..
            } => {
                if *has_majority {
                    self.cut_off_since_us.remove(agent);
                } else {
                    self.cut_off_since_us.entry(agent.clone()).or_insert(now_us);
                }
            }
            Observation::Acked {
                agent,
                cluster,
                asked_us,
                index,
                ..
            } if index.0 > 0
                && self.is_cut_off_since(agent, *asked_us)
                && !self.was_applied_before(*cluster, *index, *asked_us)
                && self
                    .applied_by_majority
                    .get(cluster)
                    .is_none_or(|highest| highest < index) =>
            {
                return Err(format!(
                    "{agent} acknowledged index {index} without a majority on its side since before it was asked"
                ));
            }
            Observation::LinearizableRead { agent, asked_us, .. } if self.is_cut_off_since(agent, *asked_us) => {
                return Err(format!(
                    "{agent} answered a linearizable read without a majority on its side since before it was asked"
                ));
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    fn side(has_majority: bool) -> Observation {
        Observation::Side {
            agent: "c1-1".into(),
            cluster: ClusterId(0),
            has_majority,
        }
    }

    #[test]
    fn acknowledgement_by_a_minority_is_caught() {
        let cut = (10, side(false));
        let told = |history: &[(u64, Observation)]| judge(MinorityReadOnly::default(), history);
        assert!(told(&[cut.clone(), (30, acked("c1-1", 20, 1, 5))]).is_err());
        assert_eq!(
            told(&[cut.clone(), (30, acked("c1-1", 9, 1, 5))]),
            Ok(()),
            "asked before the cut"
        );
        assert_eq!(
            told(&[cut.clone(), (15, side(true)), (30, acked("c1-1", 20, 1, 5))]),
            Ok(())
        );
        assert_eq!(
            told(&[cut.clone(), (30, acked("c1-2", 20, 1, 5))]),
            Ok(()),
            "of the other side"
        );
        let old = (5, applied("c1-1", 1, 5, 0));
        assert_eq!(
            told(&[old, cut.clone(), (30, acked("c1-1", 20, 1, 5))]),
            Ok(()),
            "committed long ago"
        );
        let by = |agent| (25, applied(agent, 1, 5, 0));
        let later = (30, acked("c1-1", 20, 1, 5));
        assert_eq!(
            told(&[cut.clone(), by("c1-2"), later.clone()]),
            Ok(()),
            "committed by the others, to whom the question still came"
        );
        assert!(told(&[cut.clone(), by("c1-1"), later]).is_err(), "by nobody but itself");
    }

    #[test]
    fn linearizable_read_by_a_minority_is_caught() {
        let read = Observation::LinearizableRead {
            agent: "c1-1".into(),
            cluster: ClusterId(0),
            asked_us: 20,
            task: TaskId([1; 32]),
            is_found: true,
            applied: LogIndex(9),
        };
        assert!(judge(MinorityReadOnly::default(), &[(10, side(false)), (21, read)]).is_err());
    }
}
