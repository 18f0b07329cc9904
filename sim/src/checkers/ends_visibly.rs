//! ends-visibly: what was accepted for the fleet ends visibly, done or rejected with a reason, and then stays so.
//!
//! # Rules
//! * Every entry about a task of fleet scope that the task's own cluster accepted stands in its history at the end.
//! * A granted entry has its effect: who is told that a task was canceled finds it canceled. A rejected one has none.
//! * A task that ended stays as it ended, from the height on at which one final state said so. One that failed or expired is
//!   queued again by an operator's `Requeue` alone.
//! * No task waits in a final state whose block is above its deadline, or while a task that it follows has ended otherwise
//!   than completed.
//! * A vehicle begins to act on a task only after somebody has asked to complete each one that it follows; and not if
//!   nobody had asked for the task when a block passed its deadline.
//!
//! # Why
//! Validators and agents compute the global queue with the same code: `agreement` sees equal states, and not that all of them
//! are wrong. Here it is asked what operators and vehicles wanted. A call without an answer counts as one that happened, and
//! states are compared in the order of their heights, so that an old answer is no contradiction.

use std::collections::{BTreeMap, BTreeSet};

use common::{
    global_queue::{HistoryEvent, MachineEvent, What},
    ids::{BlockTime, ClusterId, EntryId, Height, TaskId},
    task::{Scope, TaskState},
    verdict::Verdict,
};

use super::{Call, Checker, Fate, Observation, Wanted};

/// What is known of a task.
#[derive(Default)]
struct Known {
    /// The cluster that it was submitted through, if it is of fleet scope.
    through: Option<ClusterId>,
    wanted: Wanted,
    /// Entries about it that were accepted, and where.
    accepted: Vec<(ClusterId, EntryId)>,
    /// When somebody first asked for it.
    claimed_us: Option<u64>,
    /// Whether somebody asked to complete it.
    may_be_completed: bool,
    /// Whether an operator asked to queue it again.
    may_be_requeued: bool,
    /// In final states.
    states: BTreeMap<Height, TaskState>,
}

/// Remembers what was asked for and what final states said.
#[derive(Default)]
pub struct EndsVisibly {
    tasks: BTreeMap<TaskId, Known>,
    /// What operators write about which task, until it is accepted.
    wishes: BTreeMap<EntryId, (ClusterId, TaskId)>,
    /// Block times, and when the first validator executed their blocks; both ascend.
    times: Vec<(BlockTime, u64)>,
    executed: Height,
}

impl Known {
    /// Whether a task in the state `from` may be in `to` later.
    fn may_become(&self, from: TaskState, to: TaskState) -> bool {
        let is_final = matches!(from, TaskState::Completed | TaskState::Canceled);
        from.is_open() || from == to || (!is_final && self.may_be_requeued)
    }

    fn is_seen(&mut self, height: Height, state: TaskState) -> Result<(), String> {
        if let Some((below, before)) = self.states.range(..=height).next_back()
            && (!self.may_become(*before, state) || (*below == height && *before != state))
        {
            return Err(format!("is {before} at height {below} and {state} at height {height}"));
        }
        if let Some((above, after)) = self.states.range(height..).next()
            && !self.may_become(state, *after)
        {
            return Err(format!("is {state} at height {height} and {after} at height {above}"));
        }
        self.states.insert(height, state);
        Ok(())
    }

    /// Walks through the history of the task.
    fn judge(&self, fate: &Fate) -> Result<(), String> {
        let mut state = None;
        for event in &fate.events {
            if let Some(before) = state {
                self.judge_step(before, event)?;
            }
            if event.verdict == Verdict::Granted && !has_effect(event) {
                return Err(format!("is {} after {:?} was granted", event.state, event.what));
            }
            state = Some(event.state);
        }
        if state != Some(fate.state) {
            return Err(format!("is {}, and its history ends with {state:?}", fate.state));
        }
        let entries: BTreeSet<EntryId> = fate.events.iter().filter_map(|event| Some(event.entry?.id)).collect();
        // What another cluster accepted may have been ordered before the submission.
        let own = self
            .accepted
            .iter()
            .filter(|(cluster, _)| Some(*cluster) == self.through);
        match own.map(|(_, entry)| entry).find(|entry| !entries.contains(*entry)) {
            Some(entry) => Err(format!("has no word of entry {} in its history", entry.to_hex())),
            None => Ok(()),
        }
    }

    fn judge_step(&self, before: TaskState, event: &HistoryEvent) -> Result<(), String> {
        let (what, state) = (event.what, event.state);
        if before == state {
            return Ok(());
        }
        if let Verdict::Rejected(reason) = event.verdict {
            return Err(format!("became {state} by {what:?}, which was rejected: {reason}"));
        }
        if before.is_open() || (what == What::Requeue && self.may_become(before, state)) {
            return Ok(());
        }
        Err(format!(
            "was {before} and became {state} by {what:?} at height {}",
            event.height
        ))
    }
}

/// Whether the state after a granted event can be one that it leads to.
fn has_effect(event: &HistoryEvent) -> bool {
    let state = event.state;
    match event.what {
        What::Submit | What::Release | What::ForceRequeue => state == TaskState::Queued,
        What::Cancel => state == TaskState::Canceled,
        What::Claim => state == TaskState::Claimed,
        What::Start | What::Resume => state == TaskState::Underway,
        What::Pause => state == TaskState::Paused,
        What::Percent(_) => state.is_held(),
        What::Complete => state == TaskState::Completed,
        What::Fail => matches!(state, TaskState::Queued | TaskState::Failed),
        What::Requeue => matches!(state, TaskState::Queued | TaskState::Unknown),
        What::Machine(MachineEvent::Assigned { .. }) => state == TaskState::Assigned,
        What::Machine(MachineEvent::Expired) => state == TaskState::Expired,
        What::Machine(MachineEvent::LinkedTaskEnded) => state == TaskState::Failed,
    }
}

impl EndsVisibly {
    fn called(&mut self, now_us: u64, task: TaskId, what: Call) {
        let known = self.tasks.entry(task).or_default();
        match what {
            Call::Claim => {
                known.claimed_us.get_or_insert(now_us);
            }
            Call::Complete => known.may_be_completed = true,
            Call::Requeue => known.may_be_requeued = true,
            Call::Submit | Call::Cancel | Call::Read => {}
        }
    }

    fn begins(&self, drone: &str, task: TaskId) -> Result<(), String> {
        let Some(known) = self.tasks.get(&task) else {
            return Ok(());
        };
        let is_asked_for = |link: &&TaskId| self.tasks.get(*link).is_some_and(|known| known.may_be_completed);
        if let Some(link) = known.wanted.after.iter().find(|link| !is_asked_for(link)) {
            return Err(format!(
                "{drone} begins to act on task {}, which follows task {}, and nobody has completed that",
                task.to_hex(),
                link.to_hex()
            ));
        }
        let passed_us = known.wanted.deadline.and_then(|deadline| self.passed_us(deadline));
        let is_late =
            passed_us.is_some_and(|passed_us| known.claimed_us.is_none_or(|claimed_us| claimed_us > passed_us));
        if is_late && known.through.is_some() && !known.may_be_requeued {
            return Err(format!(
                "{drone} begins to act on task {}, which nobody had asked for when its deadline passed",
                task.to_hex()
            ));
        }
        Ok(())
    }

    /// When a block above `deadline` was executed first.
    fn passed_us(&self, deadline: BlockTime) -> Option<u64> {
        let at = self.times.partition_point(|(time, _)| *time <= deadline);
        self.times.get(at).map(|(_, at_us)| *at_us)
    }

    fn judge_fates(&self, time: BlockTime, fates: &BTreeMap<TaskId, Fate>) -> Result<(), String> {
        for (task, fate) in fates {
            let of_task = |what: String| format!("task {} {what}", task.to_hex());
            let Some(known) = self.tasks.get(task) else { continue };
            known.judge(fate).map_err(of_task)?;
            if !matches!(fate.state, TaskState::Queued | TaskState::Assigned) {
                continue;
            }
            if known.wanted.deadline.is_some_and(|deadline| deadline < time) {
                return Err(of_task(format!("is {}, and its deadline has passed", fate.state)));
            }
            let ended = |link: &TaskId| {
                let fate = fates.get(link)?;
                (!fate.state.is_open() && fate.state != TaskState::Completed).then_some(fate.state)
            };
            if let Some(ended) = known.wanted.after.iter().find_map(ended) {
                return Err(of_task(format!("is {}, and follows one that is {ended}", fate.state)));
            }
        }
        Ok(())
    }
}

impl Checker for EndsVisibly {
    fn name(&self) -> &'static str {
        "ends-visibly"
    }

    fn observe(&mut self, now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Wished {
                entry,
                cluster,
                task,
                scope,
                wanted,
            } => {
                self.wishes.insert(*entry, (*cluster, *task));
                if let Some(wanted) = wanted {
                    let known = self.tasks.entry(*task).or_default();
                    known.through = (*scope == Scope::Fleet).then_some(*cluster);
                    known.wanted = wanted.clone();
                }
            }
            Observation::Acked {
                entry,
                verdict: Verdict::Granted,
                ..
            } => {
                if let Some((cluster, task)) = self.wishes.remove(entry) {
                    self.tasks.entry(task).or_default().accepted.push((cluster, *entry));
                }
            }
            Observation::Called { task, what, .. } => self.called(now_us, *task, *what),
            Observation::Executed { height, time, .. } if *height > self.executed => {
                self.executed = *height;
                self.times.push((*time, now_us));
            }
            Observation::FinalState {
                validator,
                height,
                task,
                state,
            } => {
                let known = self.tasks.entry(*task).or_default();
                let seen = known.is_seen(*height, *state);
                return seen.map_err(|what| format!("task {} {what}, says {validator}", task.to_hex()));
            }
            Observation::Acts {
                drone,
                task,
                is_begin: true,
                ..
            } => return self.begins(drone, *task),
            Observation::Fates { time, tasks } => return self.judge_fates(*time, tasks),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use common::{
        codec::Blob,
        global_queue::EventEntry,
        ids::{DeviceId, Founding},
        verdict::Reason,
    };

    use super::{super::*, *};

    const TASK: TaskId = TaskId([1; 32]);
    const LINK: TaskId = TaskId([2; 32]);

    /// A submission through the first cluster, of the task whose id is that of its entry.
    fn submitted(task: TaskId, after: &[TaskId], deadline: Option<u64>) -> Observation {
        Observation::Wished {
            entry: EntryId(task.0),
            cluster: ClusterId(0),
            task,
            scope: Scope::Fleet,
            wanted: Some(Wanted {
                after: after.to_vec(),
                deadline: deadline.map(BlockTime),
            }),
        }
    }

    fn called(task: TaskId, what: Call) -> Observation {
        Observation::Called {
            call: 1,
            task,
            scope: Scope::Fleet,
            what,
        }
    }

    fn begins(task: TaskId) -> Observation {
        Observation::Acts {
            drone: "c1-1".into(),
            task,
            fence: Default::default(),
            is_begin: true,
        }
    }

    fn block(height: u64, time: u64) -> Observation {
        Observation::Executed {
            validator: "v1".into(),
            height: Height(height),
            block: Digest([0; 32]),
            refs: Vec::new(),
            carried_root: Digest([0; 32]),
            time: BlockTime(time),
        }
    }

    fn says(height: u64, state: TaskState) -> Observation {
        Observation::FinalState {
            validator: "v1".into(),
            height: Height(height),
            task: TASK,
            state,
        }
    }

    fn event(what: What, number: u8, verdict: Verdict, state: TaskState) -> HistoryEvent {
        HistoryEvent {
            height: Height(1),
            outcome: 0,
            what,
            entry: Some(EventEntry {
                id: EntryId([number; 32]),
                author: DeviceId([0; 32]),
                cluster: ClusterId(0),
                founding: Founding(0),
                index: LogIndex(1),
                reference: 0,
                row: 0,
            }),
            verdict,
            state,
            note: Blob::new(),
        }
    }

    fn fates(time: u64, fates: &[(TaskId, TaskState, &[HistoryEvent])]) -> Observation {
        let fate = |(task, state, events): &(TaskId, TaskState, &[HistoryEvent])| {
            let (state, events) = (*state, events.to_vec());
            (*task, Fate { state, events })
        };
        Observation::Fates {
            time: BlockTime(time),
            tasks: Arc::new(fates.iter().map(fate).collect()),
        }
    }

    fn told(history: &[Observation]) -> Result<(), String> {
        let history: Vec<_> = (0..).zip(history).map(|(at, seen)| (at, seen.clone())).collect();
        judge(EndsVisibly::default(), &history)
    }

    #[test]
    fn ended_task_that_opens_without_an_operator_is_caught_at_whatever_height_it_is_read() {
        use TaskState::{Assigned, Canceled, Completed, Expired, Queued};
        assert_eq!(told(&[says(3, Queued), says(5, Completed), says(4, Assigned)]), Ok(()));
        assert!(
            told(&[says(5, Completed), says(6, Assigned)])
                .unwrap_err()
                .contains("height 6")
        );
        assert!(
            told(&[says(6, Assigned), says(5, Canceled)])
                .unwrap_err()
                .contains("height 5")
        );
        assert!(told(&[says(5, Queued), says(5, Assigned)]).is_err());
        assert!(told(&[says(5, Expired), says(6, Queued)]).is_err());
        let requeue = called(TASK, Call::Requeue);
        assert_eq!(told(&[requeue.clone(), says(5, Expired), says(6, Queued)]), Ok(()));
        assert!(told(&[requeue, says(5, Completed), says(6, Queued)]).is_err());
    }

    #[test]
    fn grant_without_effect_and_effect_without_a_grant_are_caught() {
        let of = |events: &[HistoryEvent]| {
            let state = events.last().map_or(TaskState::Queued, |event| event.state);
            told(&[submitted(TASK, &[], None), fates(9, &[(TASK, state, events)])])
        };
        let (granted, rejected) = (Verdict::Granted, Verdict::Rejected(Reason::Denied));
        let begun = event(What::Submit, 1, granted, TaskState::Queued);
        let cancel = |verdict, state| event(What::Cancel, 3, verdict, state);
        assert_eq!(of(&[begun.clone(), cancel(granted, TaskState::Canceled)]), Ok(()));
        assert_eq!(of(&[begun.clone(), cancel(rejected, TaskState::Queued)]), Ok(()));
        let without = of(&[begun.clone(), cancel(granted, TaskState::Queued)]);
        assert!(without.unwrap_err().contains("is queued after Cancel was granted"));
        let rejected = of(&[begun.clone(), cancel(rejected, TaskState::Canceled)]);
        assert!(rejected.unwrap_err().contains("which was rejected"));
        let again = event(What::Claim, 4, granted, TaskState::Claimed);
        let again = of(&[begun.clone(), cancel(granted, TaskState::Canceled), again]);
        assert!(again.unwrap_err().contains("was canceled and became claimed"));
        let silent = [
            submitted(TASK, &[], None),
            fates(9, &[(TASK, TaskState::Failed, &[begun])]),
        ];
        assert!(told(&silent).unwrap_err().contains("its history ends with"));
    }

    #[test]
    fn accepted_entry_of_which_the_history_says_nothing_is_caught() {
        let begun = [event(What::Submit, 1, Verdict::Granted, TaskState::Queued)];
        let cancel = |cluster| Observation::Wished {
            entry: EntryId([7; 32]),
            cluster: ClusterId(cluster),
            task: TASK,
            scope: Scope::Fleet,
            wanted: None,
        };
        let of = |cluster, acks: &[Observation]| {
            let wished = [submitted(TASK, &[], None), cancel(cluster)];
            let fates = [fates(9, &[(TASK, TaskState::Queued, &begun)])];
            told(&[&wished[..], acks, &fates].concat())
        };
        assert_eq!(of(0, &[]), Ok(()), "nobody accepted it");
        assert!(
            of(0, &[acked("c1-1", 0, 7, 9)])
                .unwrap_err()
                .contains("no word of entry")
        );
        assert_eq!(
            of(1, &[acked("c2-1", 0, 7, 9)]),
            Ok(()),
            "it may have come before the submission"
        );
    }

    #[test]
    fn task_that_waits_after_its_deadline_or_its_link_is_caught() {
        let (granted, queued) = (Verdict::Granted, TaskState::Queued);
        let begun = |number| event(What::Submit, number, granted, queued);
        let waits = |time| {
            told(&[
                submitted(TASK, &[], Some(9)),
                fates(time, &[(TASK, queued, &[begun(1)])]),
            ])
        };
        assert_eq!(waits(9), Ok(()));
        assert!(waits(10).unwrap_err().contains("its deadline has passed"));
        let follows = |state| {
            let link = [begun(2), event(What::Fail, 5, granted, state)];
            let wished = [submitted(LINK, &[], None), submitted(TASK, &[LINK], None)];
            let fates = [fates(9, &[(TASK, queued, &[begun(1)]), (LINK, state, &link)])];
            told(&[&wished[..], &fates].concat())
        };
        assert_eq!(follows(queued), Ok(()));
        assert!(
            follows(TaskState::Failed)
                .unwrap_err()
                .contains("follows one that is failed")
        );
    }

    #[test]
    fn vehicle_that_begins_before_its_link_or_after_its_deadline_is_caught() {
        let after = |calls: &[Observation]| {
            let wished = [submitted(LINK, &[], None), submitted(TASK, &[LINK], None)];
            told(&[&wished[..], calls, &[begins(TASK)]].concat())
        };
        assert!(
            after(&[called(LINK, Call::Claim)])
                .unwrap_err()
                .contains("nobody has completed")
        );
        assert_eq!(after(&[called(LINK, Call::Complete)]), Ok(()), "it may have been");
        let (wished, claim) = (submitted(TASK, &[], Some(9)), called(TASK, Call::Claim));
        let late = [wished.clone(), block(1, 10), claim.clone(), begins(TASK)];
        assert!(told(&late).unwrap_err().contains("when its deadline passed"));
        assert_eq!(
            told(&[wished.clone(), block(1, 9), claim.clone(), begins(TASK)]),
            Ok(())
        );
        assert_eq!(
            told(&[wished, claim, block(1, 10), begins(TASK)]),
            Ok(()),
            "it was held"
        );
    }
}
