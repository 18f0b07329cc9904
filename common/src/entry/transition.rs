//! The transition table of a task: the one place that says which event leads from which state where.
//!
//! Who may cause an event, and whether its fence is the task's, is decided before this table is asked.

use crate::{
    bug::{self, Bug},
    task::TaskState,
    verdict::Reason,
};

/// Something that happens to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The global tier placed it with a cluster.
    Assigned,
    /// A drone takes it.
    Claim,
    /// Its holder starts, resumes or reports.
    Underway,
    /// Its holder pauses.
    Pause,
    /// Its holder reports without a change of state.
    Report,
    /// Its holder finished it.
    Complete,
    /// Its holder could not do it.
    Fail {
        /// Whether it is queued again: retriable, and attempts remain.
        again: bool,
    },
    /// Its holder gives it back.
    Release,
    /// Its lease has certainly ended.
    LeaseEnded {
        /// Whether the task says `hold`.
        hold: bool,
    },
    /// The custody of its cluster ended.
    CustodyEnded {
        /// Whether the task says `hold`.
        hold: bool,
    },
    /// An operator queues it again after it ended.
    OperatorRequeue,
    /// An operator frees it.
    ForceRequeue,
    /// Its author or an operator ends it.
    Cancel,
    /// Block time passed its deadline.
    DeadlinePassed,
    /// A linked task ended otherwise than completed.
    LinkedTaskEnded,
    /// A result of a former holder arrives.
    LateComplete,
}

/// The state after `event` in state `from`.
///
/// # Errors
/// [`Reason::WrongState`] with the state found, if the table has no such row.
pub fn next_state(from: TaskState, event: Event) -> Result<TaskState, Reason> {
    use TaskState::{Assigned, Canceled, Claimed, Completed, Expired, Failed, Paused, Queued, Underway, Unknown};
    let hold_or = |hold: bool, to| if hold { Unknown } else { to };
    let to = match (event, from) {
        (Event::Assigned, Queued) => Assigned,
        (Event::Claim, Queued | Assigned) => Claimed,
        (Event::Underway, Claimed | Underway | Paused) => Underway,
        (Event::Pause, Claimed | Underway | Paused) => Paused,
        (Event::Report, Claimed | Underway | Paused) => from,
        (Event::Complete, Claimed | Underway | Paused) if bug::active(Bug::CompletedClaimable) => Queued,
        (Event::Complete, Claimed | Underway | Paused) => Completed,
        (Event::Fail { again: true }, Claimed | Underway | Paused) => Queued,
        (Event::Fail { again: false }, Claimed | Underway | Paused) => Failed,
        (Event::Release, Claimed | Underway | Paused) => Queued,
        (Event::LeaseEnded { hold }, Claimed | Underway | Paused) => hold_or(hold, Queued),
        (Event::CustodyEnded { .. }, Assigned) => Queued,
        (Event::CustodyEnded { hold }, Claimed | Underway | Paused) => hold_or(hold, Queued),
        (Event::OperatorRequeue, Failed | Expired) => Queued,
        (Event::ForceRequeue, Claimed | Underway | Paused | Unknown) => Queued,
        (Event::Cancel, Queued | Assigned | Claimed | Underway | Paused | Unknown) => Canceled,
        (Event::DeadlinePassed, Queued | Assigned) => Expired,
        (Event::LinkedTaskEnded, Queued | Assigned) => Failed,
        (Event::LateComplete, Unknown) => Completed,
        (_, found) => return Err(Reason::WrongState(found)),
    };
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 20] = [
        Event::Assigned,
        Event::Claim,
        Event::Underway,
        Event::Pause,
        Event::Report,
        Event::Complete,
        Event::Fail { again: true },
        Event::Fail { again: false },
        Event::Release,
        Event::LeaseEnded { hold: true },
        Event::LeaseEnded { hold: false },
        Event::CustodyEnded { hold: true },
        Event::CustodyEnded { hold: false },
        Event::OperatorRequeue,
        Event::ForceRequeue,
        Event::Cancel,
        Event::DeadlinePassed,
        Event::LinkedTaskEnded,
        Event::LateComplete,
        Event::Report,
    ];

    #[test]
    fn nothing_but_an_operators_requeue_leads_out_of_an_ended_state() {
        for from in TaskState::ALL.into_iter().filter(|state| !state.is_open()) {
            for event in EVENTS {
                match next_state(from, event) {
                    Ok(to) => {
                        assert_eq!(event, Event::OperatorRequeue, "{from} --{event:?}--> {to}");
                        assert!(matches!(from, TaskState::Failed | TaskState::Expired));
                    }
                    Err(reason) => assert_eq!(reason, Reason::WrongState(from)),
                }
            }
        }
    }

    #[test]
    fn held_task_becomes_claimable_only_by_its_holder_its_leases_end_or_an_operator() {
        for from in TaskState::ALL.into_iter().filter(|state| state.is_held()) {
            for event in EVENTS {
                if next_state(from, event) == Ok(TaskState::Queued) {
                    assert!(
                        matches!(
                            event,
                            Event::Release
                                | Event::Fail { again: true }
                                | Event::LeaseEnded { hold: false }
                                | Event::CustodyEnded { hold: false }
                                | Event::ForceRequeue
                        ),
                        "{from} --{event:?}--> queued"
                    );
                }
            }
        }
    }

    #[test]
    fn task_that_holds_waits_in_unknown_and_its_late_result_closes_it() {
        let unknown = next_state(TaskState::Underway, Event::CustodyEnded { hold: true });
        assert_eq!(unknown, Ok(TaskState::Unknown));
        assert_eq!(
            next_state(TaskState::Unknown, Event::LateComplete),
            Ok(TaskState::Completed)
        );
        assert_eq!(
            next_state(TaskState::Queued, Event::LateComplete),
            Err(Reason::WrongState(TaskState::Queued))
        );
    }
}
