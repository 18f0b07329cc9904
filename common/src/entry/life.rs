//! The life of one task: state, holder, tries and progress, as both tiers compute them.
//!
//! A cluster applies an entry that it grants with [`Life::grant`]; the global tier applies the same
//! entry with the same call when the cluster's batch is executed. So their rows cannot drift apart.
//!
//! # Rules
//! * Who may act, and whether the fence or assignment number is the task's, is decided before.
//! * A granted `Claim` uses up one try, whatever becomes of it; `Fail` queues the task again only if
//!   it is retriable and tries are left.
//! * The holder stays on the row after the task ended (it is the one to be told of a cancel, and the
//!   one whose late result counts) and leaves it when the task is queued again.
//! * A result that comes too late changes nothing, except that it closes a task that waits in
//!   `unknown` for exactly this holder.

use serde::{Deserialize, Serialize};

use super::{
    Action, Cause, Fence, Progress,
    transition::{Event, next_state},
};
use crate::{
    ids::{Assignment, DeviceId, Founding, LogIndex},
    task::{AfterCustody, Task, TaskState},
    verdict::Reason,
};

/// A drone and the claim by which it holds a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The drone.
    pub device: DeviceId,
    /// Its claim.
    pub fence: Fence,
}

/// What a task's own content says about its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifeRules {
    /// How often it may be tried.
    pub attempts_max: u8,
    /// Whether it waits in `unknown` when its lease or custody ends while it is held.
    pub hold: bool,
}

impl LifeRules {
    /// The rules of `task`.
    #[must_use]
    pub fn of(task: &Task) -> Self {
        Self {
            attempts_max: task.attempts_max,
            hold: task.after_custody == AfterCustody::Hold,
        }
    }
}

/// Where a task is in its life.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Life {
    /// Where it is.
    pub state: TaskState,
    /// Who holds it, or held it last; none while it is queued or assigned.
    pub holder: Option<Holder>,
    /// Claims granted.
    pub attempts: u8,
    /// 0 to 100, as last reported under the newest claim.
    pub percent: u8,
    /// The newest result that came too late, and by whom.
    pub late_result: Option<Holder>,
}

impl Default for Life {
    fn default() -> Self {
        Self {
            state: TaskState::Queued,
            holder: None,
            attempts: 0,
            percent: 0,
            late_result: None,
        }
    }
}

impl Life {
    /// Applies an event of the machinery (assignment, deadline, ended link or custody).
    ///
    /// # Errors
    /// [`Reason::WrongState`]; nothing changed.
    pub fn happen(&mut self, event: Event) -> Result<(), Reason> {
        self.state = next_state(self.state, event)?;
        if matches!(self.state, TaskState::Queued | TaskState::Assigned) {
            self.holder = None;
            self.percent = 0;
        }
        Ok(())
    }

    /// Applies an entry that was granted: by `author`, at `index` of the log of `founding`.
    /// `assignment` is the task's (0 for cluster scope).
    ///
    /// A `Complete` of the last holder closes a task in `unknown`.
    ///
    /// # Errors
    /// [`Reason::WrongState`]; nothing changed. `Submit` and `Renew` are about no row: they are
    /// refused as malformed.
    pub fn grant(
        &mut self,
        action: &Action,
        author: DeviceId,
        at: (Founding, LogIndex),
        assignment: Assignment,
        rules: LifeRules,
    ) -> Result<(), Reason> {
        match *action {
            Action::Submit | Action::Renew { .. } => Err(Reason::Malformed),
            Action::Claim { .. } => {
                self.happen(Event::Claim)?;
                self.attempts = self.attempts.saturating_add(1);
                self.percent = 0;
                self.holder = Some(Holder {
                    device: author,
                    fence: Fence {
                        assignment,
                        founding: at.0,
                        index: at.1,
                    },
                });
                Ok(())
            }
            Action::Progress { progress, .. } => self.report(progress),
            Action::Complete { fence, .. } if self.awaits_result_of(author, fence) => self.happen(Event::LateComplete),
            Action::Complete { .. } => {
                self.happen(Event::Complete)?;
                self.percent = 100;
                Ok(())
            }
            Action::Fail { retriable, .. } => self.happen(Event::Fail {
                again: retriable && self.attempts < rules.attempts_max,
            }),
            Action::Release { .. } => self.happen(Event::Release),
            Action::Requeue {
                cause: Cause::LeaseEnded { .. },
                ..
            } => self.happen(Event::LeaseEnded { hold: rules.hold }),
            Action::Requeue {
                cause: Cause::Operator, ..
            } => self.happen(Event::OperatorRequeue),
            Action::ForceRequeue { .. } => self.happen(Event::ForceRequeue),
            Action::Cancel { .. } => self.happen(Event::Cancel),
        }
    }

    fn report(&mut self, progress: Progress) -> Result<(), Reason> {
        match progress {
            Progress::Started | Progress::Resumed => self.happen(Event::Underway),
            Progress::Paused => self.happen(Event::Pause),
            Progress::Percent(percent) => {
                self.happen(Event::Report)?;
                self.percent = percent.min(100);
                Ok(())
            }
        }
    }

    fn awaits_result_of(&self, device: DeviceId, fence: Fence) -> bool {
        self.state == TaskState::Unknown && self.holder == Some(Holder { device, fence })
    }

    /// Records a `Complete` that came too late. Closes the task if it waits for this result.
    pub fn complete_late(&mut self, device: DeviceId, fence: Fence) {
        if self.awaits_result_of(device, fence) {
            self.happen(Event::LateComplete)
                .expect("a late result closes `unknown`: the table's row");
        }
        self.late_result = Some(Holder { device, fence });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{HolderCounter, TaskId};

    const TASK: TaskId = TaskId([7; 32]);
    const DRONE: DeviceId = DeviceId([1; 32]);
    const RULES: LifeRules = LifeRules {
        attempts_max: 2,
        hold: true,
    };

    fn claim(life: &mut Life, index: u64) -> Fence {
        let action = Action::Claim {
            task: TASK,
            assignment: Assignment(3),
            counter: HolderCounter(1),
        };
        life.grant(&action, DRONE, (Founding(0), LogIndex(index)), Assignment(3), RULES)
            .unwrap();
        life.holder.unwrap().fence
    }

    fn grant(life: &mut Life, action: Action) -> Result<(), Reason> {
        life.grant(&action, DRONE, (Founding(0), LogIndex(99)), Assignment(3), RULES)
    }

    #[test]
    fn retriable_failure_queues_again_until_the_tries_are_used_up() {
        let mut life = Life::default();
        for (try_number, state) in [(1, TaskState::Queued), (2, TaskState::Failed)] {
            let fence = claim(&mut life, try_number);
            assert_eq!(fence.index, LogIndex(try_number));
            let fail = Action::Fail {
                task: TASK,
                fence,
                counter: HolderCounter(2),
                retriable: true,
            };
            grant(&mut life, fail).unwrap();
            assert_eq!(life.state, state);
        }
        assert!(life.holder.is_some(), "the last holder of an ended task is remembered");
    }

    #[test]
    fn late_result_closes_a_waiting_task_only_if_it_is_the_last_holders() {
        let mut life = Life::default();
        let fence = claim(&mut life, 4);
        grant(
            &mut life,
            Action::Requeue {
                task: TASK,
                cause: Cause::LeaseEnded {
                    fence,
                    renewed_at: LogIndex(4),
                },
            },
        )
        .unwrap();
        assert_eq!(life.state, TaskState::Unknown);
        let stranger = DeviceId([2; 32]);
        life.complete_late(stranger, fence);
        assert_eq!(life.state, TaskState::Unknown);
        life.complete_late(DRONE, fence);
        assert_eq!(life.state, TaskState::Completed);
        assert_eq!(life.late_result, Some(Holder { device: DRONE, fence }));
    }

    #[test]
    fn late_result_leaves_a_queued_task_as_it_is() {
        let mut life = Life::default();
        let fence = claim(&mut life, 4);
        grant(
            &mut life,
            Action::Release {
                task: TASK,
                fence,
                counter: HolderCounter(2),
            },
        )
        .unwrap();
        assert_eq!((life.state, life.holder), (TaskState::Queued, None));
        life.complete_late(DRONE, fence);
        assert_eq!(life.state, TaskState::Queued);
        assert!(life.late_result.is_some());
    }

    #[test]
    fn what_the_table_refuses_changes_nothing() {
        let mut life = Life::default();
        let before = life.clone();
        let fence = Fence::default();
        assert_eq!(
            grant(&mut life, Action::Complete { task: TASK, fence }),
            Err(Reason::WrongState(TaskState::Queued))
        );
        assert_eq!(grant(&mut life, Action::Submit), Err(Reason::Malformed));
        assert_eq!(life, before);
    }
}
