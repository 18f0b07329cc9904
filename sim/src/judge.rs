//! Judges a run from what was acknowledged and from what each process holds in the end.

use std::collections::BTreeMap;

use common::{
    ids::{ClusterId, Digest, Height, LogIndex},
    task::TaskState,
};

use crate::{fleet::SimFleet, workload::Journal};

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Submissions acknowledged.
    pub acknowledged: u64,
    /// Of these, tasks in every validator's final state.
    pub finalized: u64,
    /// Of these, tasks in no validator's final state.
    pub lost: u64,
    /// Tasks whose completion was granted to more than one drone.
    pub doubled: u64,
    /// Of these, tasks that every validator's final state says are completed.
    pub completed: u64,
    /// Heights at which two processes hold different states, and indexes at which two members do.
    pub forks: u64,
    /// Lowest final height of a running validator.
    pub height: Height,
}

impl Verdict {
    /// Whether nothing was lost, doubled or forked, and everything acknowledged is final.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.forks == 0 && self.finalized == self.acknowledged
    }
}

/// Looks at every running process.
#[must_use]
pub fn judge(fleet: &SimFleet, journal: &Journal) -> Verdict {
    let validators: Vec<_> = fleet
        .validator_names()
        .iter()
        .filter_map(|name| fleet.validator(name))
        .collect();
    let states: Vec<_> = validators
        .iter()
        .map(|validator| validator.executed().get().queue.clone())
        .collect();
    let mut verdict = Verdict {
        acknowledged: journal.acknowledged.len() as u64,
        doubled: journal.completed.values().filter(|by| by.len() > 1).count() as u64,
        forks: forks(fleet),
        height: states.iter().map(|state| state.height()).min().unwrap_or_default(),
        ..Verdict::default()
    };
    for task in journal.acknowledged.keys() {
        let rows: Vec<_> = states.iter().filter_map(|state| state.task(task)).collect();
        verdict.lost += u64::from(rows.is_empty());
        if rows.len() == states.len() {
            verdict.finalized += 1;
            // The drone may not have heard that its completion was taken: the state says so.
            verdict.completed += u64::from(rows.iter().all(|row| row.state() == TaskState::Completed));
        }
    }
    verdict
}

/// Digests that should be equal and are not.
fn forks(fleet: &SimFleet) -> u64 {
    let mut global: BTreeMap<Height, Digest> = BTreeMap::new();
    let mut local: BTreeMap<(ClusterId, LogIndex), Digest> = BTreeMap::new();
    let mut forks = 0;
    for name in fleet.validator_names() {
        let Some(validator) = fleet.validator(&name) else {
            continue;
        };
        let queue = validator.executed().get().queue.clone();
        let first = *global.entry(queue.height()).or_insert(queue.state_root());
        forks += u64::from(first != queue.state_root());
    }
    for name in fleet.agent_names() {
        let Some(agent) = fleet.agent(&name) else { continue };
        let machine = agent.machine();
        let (cluster, index, digest, height, root) = machine.with(|state| {
            let queue = &state.queue;
            let global = queue.global();
            (
                queue.cluster(),
                queue.applied().0.index,
                queue.digest(),
                global.height(),
                global.state_root(),
            )
        });
        forks += u64::from(*local.entry((cluster, index)).or_insert(digest) != digest);
        forks += u64::from(*global.entry(height).or_insert(root) != root);
    }
    forks
}
