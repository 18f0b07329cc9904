//! linearizable, checked as the run goes: every acknowledged write is visible to every linearizable
//! read that began later. Entries have unique serials (their place in the log), so that is one comparison.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{ClusterId, LogIndex, TaskId};

use super::{Checker, Observation};

#[derive(Default)]
struct Cluster {
    /// Highest acknowledged index, with the time of each rise, ascending.
    acknowledged: Vec<(u64, LogIndex)>,
    tasks: BTreeMap<TaskId, u64>,
    /// Places in the log that were acknowledged, to find two entries at one.
    places: BTreeMap<LogIndex, common::ids::EntryId>,
    entries: BTreeSet<common::ids::EntryId>,
}

/// Remembers what each cluster acknowledged, and when.
#[derive(Default)]
pub struct Linearizable {
    clusters: BTreeMap<ClusterId, Cluster>,
}

impl Checker for Linearizable {
    fn name(&self) -> &'static str {
        "linearizable"
    }

    fn observe(&mut self, now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Acked {
                cluster,
                entry,
                submitted,
                index,
                ..
            } if index.0 > 0 => {
                let known = self.clusters.entry(*cluster).or_default();
                let first = *known.places.entry(*index).or_insert(*entry);
                if first != *entry {
                    return Err(format!(
                        "two entries were acknowledged at index {index} of {cluster}: {} and {}",
                        first.to_hex(),
                        entry.to_hex()
                    ));
                }
                if !known.entries.insert(*entry) && known.places.iter().any(|(at, id)| id == entry && at != index) {
                    return Err(format!(
                        "entry {} was acknowledged at two indexes of {cluster}",
                        entry.to_hex()
                    ));
                }
                if known.acknowledged.last().is_none_or(|(_, highest)| highest < index) {
                    known.acknowledged.push((now_us, *index));
                }
                if let Some((task, _)) = submitted {
                    known.tasks.entry(*task).or_insert(now_us);
                }
            }
            Observation::LinearizableRead {
                agent,
                cluster,
                asked_us,
                task,
                is_found,
                applied,
            } => {
                let Some(known) = self.clusters.get(cluster) else {
                    return Ok(());
                };
                let before = known.acknowledged.partition_point(|(at_us, _)| at_us < asked_us);
                if let Some((at_us, index)) = before.checked_sub(1).map(|last| known.acknowledged[last])
                    && index > *applied
                {
                    return Err(format!(
                        "{agent} answered a linearizable read from {applied}; {index} had been acknowledged {} us \
                         before it was asked",
                        asked_us - at_us
                    ));
                }
                if !is_found && known.tasks.get(task).is_some_and(|at_us| at_us < asked_us) {
                    return Err(format!(
                        "{agent} does not find task {}, which was acknowledged before",
                        task.to_hex()
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

    fn read(asked_us: u64, number: u8, is_found: bool, applied: u64) -> Observation {
        Observation::LinearizableRead {
            agent: "c1-2".into(),
            cluster: ClusterId(0),
            asked_us,
            task: TaskId([number; 32]),
            is_found,
            applied: LogIndex(applied),
        }
    }

    fn after_an_ack(seen: Observation) -> Result<(), String> {
        judge(Linearizable::default(), &[(10, acked("c1-1", 1, 1, 5)), (30, seen)])
    }

    #[test]
    fn stale_linearizable_read_is_caught_and_a_concurrent_one_is_not() {
        assert_eq!(after_an_ack(read(20, 1, true, 5)), Ok(()));
        assert_eq!(
            after_an_ack(read(5, 1, false, 4)),
            Ok(()),
            "it began before the acknowledgement"
        );
        assert!(
            after_an_ack(read(20, 1, true, 4))
                .unwrap_err()
                .contains("5 had been acknowledged")
        );
        assert!(
            after_an_ack(read(20, 1, false, 5))
                .unwrap_err()
                .contains("does not find")
        );
    }

    #[test]
    fn two_entries_at_one_index_and_one_entry_at_two_are_caught() {
        assert!(after_an_ack(acked("c1-1", 1, 2, 5)).is_err());
        assert!(after_an_ack(acked("c1-1", 1, 1, 6)).is_err());
        assert_eq!(after_an_ack(acked("c1-3", 1, 1, 5)), Ok(()), "a retry hears the same");
    }
}
