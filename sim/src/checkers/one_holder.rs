//! one-holder: two vehicles never act on one task at one true instant, and of two that act in turn the later one has the
//! greater fence: whoever both of them reach can tell who holds it.
//!
//! A vehicle acts until the deadline that it was given, on its own drifting clock, and as long after as it
//! takes to stop. It goes on when its agent is dead, paused or cut off.

use std::collections::BTreeMap;

use common::{entry::Fence, ids::TaskId};

use super::{Checker, Observation};

/// Remembers who acts, and who acted last.
#[derive(Default)]
pub struct OneHolder {
    acting: BTreeMap<TaskId, String>,
    last: BTreeMap<TaskId, (String, Fence)>,
}

impl OneHolder {
    fn begins(&mut self, drone: &str, task: TaskId, fence: Fence) -> Result<(), String> {
        let (other, name) = (self.acting.insert(task, drone.to_owned()), task.to_hex());
        if let Some(other) = other.filter(|other| other != drone) {
            return Err(format!("{drone} begins to act on task {name} while {other} still does"));
        }
        match self.last.insert(task, (drone.to_owned(), fence)) {
            // One who was interrupted may go on under its claim.
            Some((last, before)) if before > fence || (before == fence && last != drone) => Err(format!(
                "{drone} begins to act on task {name} under {fence:?}, which is not above {before:?} of {last}"
            )),
            _ => Ok(()),
        }
    }
}

impl Checker for OneHolder {
    fn name(&self) -> &'static str {
        "one-holder"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Acts {
                drone,
                task,
                fence,
                is_begin: true,
            } => self.begins(drone, *task, *fence),
            Observation::Acts { drone, task, .. } => {
                if self.acting.get(task) == Some(drone) {
                    self.acting.remove(task);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{Assignment, Founding};

    use super::{super::*, *};

    fn acts(drone: &str, assignment: u64, index: u64, is_begin: bool) -> Observation {
        Observation::Acts {
            drone: drone.into(),
            task: TaskId([1; 32]),
            fence: Fence {
                assignment: Assignment(assignment),
                founding: Founding(0),
                index: LogIndex(index),
            },
            is_begin,
        }
    }

    #[test]
    fn second_vehicle_on_a_task_is_caught_until_the_first_has_stopped() {
        let (first, stopped) = (acts("c1-1", 0, 4, true), acts("c1-1", 0, 4, false));
        let second = acts("c1-2", 0, 9, true);
        assert!(judge(OneHolder::default(), &[(0, first.clone()), (5, second.clone())]).is_err());
        assert_eq!(
            judge(OneHolder::default(), &[(0, first), (4, stopped), (5, second)]),
            Ok(())
        );
    }

    #[test]
    fn later_vehicle_under_a_fence_that_is_not_greater_is_caught() {
        let after = |drone, assignment, index| {
            let first = [(0, acts("c1-1", 2, 7, true)), (4, acts("c1-1", 2, 7, false))];
            let later = (5, acts(drone, assignment, index, true));
            judge(OneHolder::default(), &[&first[..], &[later]].concat())
        };
        assert_eq!(after("c1-2", 2, 8), Ok(()));
        assert_eq!(after("c2-1", 3, 1), Ok(()), "a log of another cluster may be shorter");
        assert_eq!(after("c1-1", 2, 7), Ok(()), "it goes on");
        assert!(after("c1-2", 2, 7).unwrap_err().contains("not above"));
        assert!(after("c1-2", 2, 6).is_err());
        assert!(after("c2-1", 1, 9).is_err());
        assert!(after("c1-1", 1, 9).is_err());
    }
}
