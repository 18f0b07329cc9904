//! linearizable, by search: the history of one task of cluster scope must have an order that a single
//! queue could have produced (Wing & Gong 1993, as `stateright` implements it). Tasks are independent
//! objects, so each small history is judged alone (locality, Herlihy & Wing 1990).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::{ids::TaskId, task::Scope};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

use super::{Call, Checker, Observation, Told};

/// Calls of one history; the search takes exponential time.
const CALLS_MAX: usize = 12;
/// Histories kept; the oldest is judged when there are more.
const TASKS_MAX: usize = 256;

/// A task as one queue would keep it. Who holds it is left out, since the end of a lease is nobody's call: a claim is
/// good while the task is open. The submission and how the task ended count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Absent,
    Open,
    Completed,
    Canceled,
    /// In a way that is not among the calls.
    Ended,
}

impl SequentialSpec for Stage {
    type Op = Call;
    type Ret = Told;

    fn invoke(&mut self, call: &Call) -> Told {
        match (*self, call) {
            (Self::Absent, Call::Submit) => *self = Self::Open,
            (Self::Open, Call::Complete) => *self = Self::Completed,
            (Self::Open, Call::Cancel) => *self = Self::Canceled,
            // It may have ended without a read that says so.
            (Self::Open | Self::Ended, Call::Requeue) => *self = Self::Open,
            (Self::Open, Call::Claim) | (_, Call::Read) => {}
            // The same bytes again change nothing, and hear what the first did.
            (_, Call::Submit) => return Told::Granted,
            _ => return Told::Rejected,
        }
        match (*self, call) {
            (Self::Absent, Call::Read) => Told::Absent,
            (Self::Open, Call::Read) => Told::Open,
            (Self::Completed, Call::Read) => Told::Completed,
            (Self::Canceled, Call::Read) => Told::Canceled,
            (Self::Ended, Call::Read) => Told::Ended,
            _ => Told::Granted,
        }
    }

    fn is_valid_step(&mut self, call: &Call, told: &Told) -> bool {
        match (call, told) {
            // Rules that this object does not know may reject a write.
            (Call::Claim | Call::Complete | Call::Cancel | Call::Requeue | Call::Submit, Told::Rejected) => true,
            // Links and tries may end an open task at any moment.
            (Call::Read, Told::Ended) if matches!(*self, Self::Open | Self::Ended) => {
                *self = Self::Ended;
                true
            }
            _ => self.invoke(call) == *told,
        }
    }
}

struct History {
    tester: LinearizabilityTester<u64, Stage>,
    calls: BTreeSet<u64>,
    /// Too long to be searched: what it has by now is judged, and what comes later is not.
    is_closed: bool,
}

impl History {
    fn new() -> Self {
        Self {
            tester: LinearizabilityTester::new(Stage::default()),
            calls: BTreeSet::new(),
            is_closed: false,
        }
    }

    fn judge(&self, task: &TaskId) -> Result<(), String> {
        if self.tester.serialized_history().is_some() {
            return Ok(());
        }
        Err(format!(
            "no order of the calls on task {} explains their answers: {:?}",
            task.to_hex(),
            self.tester
        ))
    }
}

/// Collects histories; judges each when it makes room for a newer one, or at the end.
#[derive(Default)]
pub struct Histories {
    tasks: BTreeMap<TaskId, History>,
    /// Of all tasks, in the order of their first call.
    order: VecDeque<TaskId>,
    /// Judged and gone.
    judged: BTreeSet<TaskId>,
}

impl Histories {
    fn called(&mut self, call: u64, task: TaskId, what: Call) -> Result<(), String> {
        if self.judged.contains(&task) {
            return Ok(());
        }
        if !self.tasks.contains_key(&task) {
            self.order.push_back(task);
        }
        let history = self.tasks.entry(task).or_insert_with(History::new);
        // A call that is left out may have changed what later answers say.
        history.is_closed |= history.calls.len() == CALLS_MAX;
        if !history.is_closed {
            history.calls.insert(call);
            history.tester.on_invoke(call, what)?;
        }
        if self.tasks.len() > TASKS_MAX {
            let oldest = self.order.pop_front().expect("each task has its place");
            let history = self.tasks.remove(&oldest).expect("each place has its task");
            self.judged.insert(oldest);
            history.judge(&oldest)?;
        }
        Ok(())
    }
}

impl Checker for Histories {
    fn name(&self) -> &'static str {
        "linearizable-history"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Called {
                call,
                task,
                scope: Scope::Cluster,
                what,
            } => return self.called(*call, *task, *what),
            Observation::Answered { call, task, told } => {
                if let Some(history) = self.tasks.get_mut(task)
                    && !history.is_closed
                    && history.calls.contains(call)
                {
                    history.tester.on_return(*call, *told)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, _now_us: u64) -> Result<(), String> {
        for (task, history) in &self.tasks {
            history.judge(task)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    /// Steps: a call begins, or is answered.
    fn told(steps: &[(u64, Result<Call, Told>)]) -> Result<(), String> {
        let task = TaskId([1; 32]);
        let step = |(call, step): &(u64, Result<Call, Told>)| match *step {
            Ok(what) => Observation::Called {
                call: *call,
                task,
                scope: Scope::Cluster,
                what,
            },
            Err(told) => Observation::Answered {
                call: *call,
                task,
                told,
            },
        };
        let history: Vec<_> = steps.iter().map(|each| (0, step(each))).collect();
        judge(Histories::default(), &history)
    }

    #[test]
    fn read_that_misses_an_acknowledged_submit_has_no_order() {
        let submitted = [(1, Ok(Call::Submit)), (1, Err(Told::Granted)), (2, Ok(Call::Read))];
        let with = |answer| told(&[&submitted[..], &[(2, Err(answer))]].concat());
        assert_eq!(with(Told::Open), Ok(()));
        assert!(with(Told::Absent).is_err());
        assert!(with(Told::Completed).is_err(), "nobody completed it");
    }

    #[test]
    fn unanswered_call_may_have_happened_or_not() {
        let unknown = [(1, Ok(Call::Submit)), (2, Ok(Call::Read))];
        for answer in [Told::Absent, Told::Open] {
            assert_eq!(told(&[&unknown[..], &[(2, Err(answer))]].concat()), Ok(()));
        }
    }

    #[test]
    fn task_ends_once_and_never_comes_back() {
        let ended = [
            (1, Ok(Call::Submit)),
            (1, Err(Told::Granted)),
            (2, Ok(Call::Cancel)),
            (2, Err(Told::Granted)),
        ];
        let then = |what, answer| told(&[&ended[..], &[(3, Ok(what)), (3, Err(answer))]].concat());
        assert_eq!(then(Call::Complete, Told::Rejected), Ok(()));
        assert!(then(Call::Complete, Told::Granted).is_err());
        assert!(then(Call::Read, Told::Open).is_err());
    }

    #[test]
    fn claim_of_what_ended_has_no_order() {
        let ended = [
            (1, Ok(Call::Submit)),
            (1, Err(Told::Granted)),
            (2, Ok(Call::Claim)),
            (2, Err(Told::Granted)),
            (3, Ok(Call::Complete)),
            (3, Err(Told::Granted)),
            (4, Ok(Call::Claim)),
        ];
        let then = |answer| told(&[&ended[..], &[(4, Err(answer))]].concat());
        assert_eq!(then(Told::Rejected), Ok(()));
        assert!(then(Told::Granted).is_err());
    }

    #[test]
    fn oldest_history_is_judged_when_there_are_too_many() {
        let mut checker = Histories::default();
        let mut see = |call: u64, task: u16, step: Result<Call, Told>| {
            let mut id = [0; 32];
            id[..2].copy_from_slice(&task.to_be_bytes());
            let task = TaskId(id);
            let seen = match step {
                Ok(what) => Observation::Called {
                    call,
                    task,
                    scope: Scope::Cluster,
                    what,
                },
                Err(told) => Observation::Answered { call, task, told },
            };
            checker.observe(0, &seen)
        };
        // Nobody submitted task 0, and it is said to be there.
        assert_eq!(see(1, 0, Ok(Call::Read)), Ok(()));
        assert_eq!(see(1, 0, Err(Told::Open)), Ok(()));
        for task in 1..TASKS_MAX as u16 {
            assert_eq!(see(1 + u64::from(task), task, Ok(Call::Submit)), Ok(()));
        }
        assert!(see(9_999, TASKS_MAX as u16, Ok(Call::Submit)).is_err());
    }
}
