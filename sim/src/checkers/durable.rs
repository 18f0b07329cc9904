//! durable: a task that was acknowledged is on the disks of a majority of its cluster's voters.
//!
//! Looked at in the instant of the acknowledgement, on the disks themselves, and once more at the end:
//! no process may have forgotten a task that is open, or was not due to leave.

use std::collections::BTreeMap;

use common::ids::{ClusterId, TaskId};

use super::{Checker, Observation};

/// Remembers what was acknowledged.
#[derive(Default)]
pub struct Durable {
    acknowledged: BTreeMap<TaskId, ClusterId>,
}

impl Checker for Durable {
    fn name(&self) -> &'static str {
        "durable"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Acked {
                agent,
                cluster,
                entry,
                submitted,
                index,
                copies,
                voters,
                ..
            } => {
                if index.0 > 0 && 2 * copies <= *voters {
                    return Err(format!(
                        "{agent} acknowledged entry {} at {index}, which {copies} of {voters} disks hold",
                        entry.to_hex()
                    ));
                }
                if let Some((task, _)) = submitted {
                    self.acknowledged.insert(*task, *cluster);
                }
            }
            Observation::Left { task, state } if state.is_open() => {
                return Err(format!(
                    "task {} left the final state though it is open: {state:?}",
                    task.to_hex()
                ));
            }
            Observation::Knows {
                process,
                cluster,
                tasks,
            } => {
                let must_know = |of: &ClusterId| cluster.is_none_or(|own| own == *of);
                let lost = self
                    .acknowledged
                    .iter()
                    .find(|(task, of)| must_know(of) && !tasks.contains(*task));
                if let Some((task, _)) = lost {
                    return Err(format!(
                        "task {} was acknowledged and {process} does not know it",
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
    use std::{collections::BTreeSet, sync::Arc};

    use common::task::TaskState;

    use super::{super::*, *};

    #[test]
    fn acknowledgement_on_one_disk_of_three_is_caught() {
        let mut one_copy = acked("c1-1", 0, 1, 5);
        assert_eq!(judge(Durable::default(), &[(9, one_copy.clone())]), Ok(()));
        if let Observation::Acked { copies, .. } = &mut one_copy {
            *copies = 1;
        }
        assert!(
            judge(Durable::default(), &[(9, one_copy)])
                .unwrap_err()
                .contains("1 of 3 disks")
        );
    }

    #[test]
    fn open_task_that_leaves_is_caught() {
        let left = |state| {
            let task = TaskId([1; 32]);
            judge(Durable::default(), &[(1, Observation::Left { task, state })])
        };
        assert_eq!(left(TaskState::Completed), Ok(()));
        assert!(left(TaskState::Claimed).unwrap_err().contains("is open"));
    }

    #[test]
    fn forgotten_task_is_caught_where_it_should_be_known() {
        let knows = |cluster, numbers: &[u8]| Observation::Knows {
            process: "p".into(),
            cluster,
            tasks: Arc::new(
                numbers
                    .iter()
                    .map(|number| TaskId([*number; 32]))
                    .collect::<BTreeSet<_>>(),
            ),
        };
        let after = |knows| judge(Durable::default(), &[(1, acked("c1-1", 0, 1, 5)), (2, knows)]);
        assert_eq!(after(knows(None, &[1, 2])), Ok(()));
        assert_eq!(after(knows(Some(ClusterId(1)), &[])), Ok(()), "of another cluster");
        assert!(after(knows(None, &[2])).is_err());
        assert!(after(knows(Some(ClusterId(0)), &[])).is_err());
    }
}
