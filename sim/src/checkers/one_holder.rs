//! one-holder: two vehicles never act on one task at one true instant.
//!
//! A vehicle acts until the deadline that it was given, on its own drifting clock, and as long after as it
//! takes to stop. It goes on when its agent is dead, paused or cut off.

use std::collections::BTreeMap;

use common::ids::TaskId;

use super::{Checker, Observation};

/// Remembers who acts.
#[derive(Default)]
pub struct OneHolder {
    acting: BTreeMap<TaskId, String>,
}

impl Checker for OneHolder {
    fn name(&self) -> &'static str {
        "one-holder"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        let Observation::Acts { drone, task, is_begin } = seen else {
            return Ok(());
        };
        if !is_begin {
            if self.acting.get(task) == Some(drone) {
                self.acting.remove(task);
            }
            return Ok(());
        }
        match self.acting.insert(*task, drone.clone()) {
            Some(other) if other != *drone => Err(format!(
                "{drone} begins to act on task {} while {other} still does",
                task.to_hex()
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    #[test]
    fn second_vehicle_on_a_task_is_caught_until_the_first_has_stopped() {
        let acts = |drone: &str, is_begin| Observation::Acts {
            drone: drone.into(),
            task: TaskId([1; 32]),
            is_begin,
        };
        let (first, stopped, second) = (acts("c1-1", true), acts("c1-1", false), acts("c1-2", true));
        assert!(judge(OneHolder::default(), &[(0, first.clone()), (5, second.clone())]).is_err());
        assert_eq!(
            judge(OneHolder::default(), &[(0, first), (4, stopped), (5, second)]),
            Ok(())
        );
    }
}
