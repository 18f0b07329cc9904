//! linearizable, by search: the history of one task of cluster scope must have an order that a single
//! queue could have produced (Wing & Gong 1993, as `stateright` implements it). Tasks are independent
//! objects, so each small history is judged alone (locality, Herlihy & Wing 1990).

use std::collections::BTreeMap;

use common::ids::TaskId;
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

use super::{Call, Checker, Observation, Told};

/// Calls of one history; the search takes exponential time.
const CALLS_MAX: usize = 12;
/// Histories kept; the first ones of a run are as good as later ones.
const TASKS_MAX: usize = 256;

/// A task as one queue would keep it. What drones and lease ends do between is left out: only the
/// submission and how the task ended count.
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
            (_, Call::Read) => {}
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
            (Call::Complete | Call::Cancel | Call::Submit, Told::Rejected) => true,
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
    calls: Vec<u64>,
}

/// Collects histories and judges them at the end.
#[derive(Default)]
pub struct Histories {
    tasks: BTreeMap<TaskId, History>,
}

impl Checker for Histories {
    fn name(&self) -> &'static str {
        "linearizable-history"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Called { call, task, what } => {
                if self.tasks.len() >= TASKS_MAX && !self.tasks.contains_key(task) {
                    return Ok(());
                }
                let history = self.tasks.entry(*task).or_insert_with(|| History {
                    tester: LinearizabilityTester::new(Stage::default()),
                    calls: Vec::new(),
                });
                if history.calls.len() < CALLS_MAX {
                    history.calls.push(*call);
                    history.tester.on_invoke(*call, *what)?;
                }
            }
            Observation::Answered { call, task, told } => {
                if let Some(history) = self.tasks.get_mut(task)
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
            if history.tester.serialized_history().is_none() {
                return Err(format!(
                    "no order of the calls on task {} explains their answers: {:?}",
                    task.to_hex(),
                    history.tester
                ));
            }
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
}
