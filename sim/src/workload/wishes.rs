//! What an operator wishes: tasks whose every field that decides something is used, and second thoughts about earlier ones.
//!
//! # Rules
//! * Work is anywhere in the fleet, so that fleet-scope tasks go to other clusters than the one that took them.
//! * Some submissions have the task key of an earlier task: a duplicate while that one is remembered, a task of its own
//!   afterwards. Some entries are good for a few blocks only.
//! * A task is freed by force once at most, and only where an answer said that its state is `unknown`: whoever does so more
//!   often takes it from a vehicle that holds it by then.

use common::{
    crypto::DeviceKey,
    entry::{Action, Cause, EntryDraft, SignedEntry},
    ids::{BlockTime, ClusterId, Height, TaskId},
    task::{AfterCustody, OnLeaseLoss, Scope, Task},
    testing,
};

use super::Desk;
use crate::{checkers::Call, ports::EPOCH, random::Stream};

/// A wish in this many is about an earlier task.
const SECOND_THOUGHT_ONE_IN: u64 = 10;
/// A submission in this many is linked to an earlier task.
const LINK_ONE_IN: u64 = 8;
/// A submission in this many has the task key of an earlier one.
const REUSE_ONE_IN: u64 = 12;
/// So many back at most; fleet-scope tasks share an eighth as many keys.
const REUSED_AMONG: u64 = 400;
/// An entry in this many is good for a few blocks only.
const SHORT_ONE_IN: u64 = 12;
/// A task in this many has a deadline, within so many milliseconds.
const DEADLINE_ONE_IN: u64 = 8;
const DEADLINE_MS_MAX: u64 = 20_000;
/// A task in this many waits for an operator when whoever held it is gone.
const HOLD_ONE_IN: u64 = 6;

/// What an operator wants to be written.
pub(super) struct Wish {
    /// Signed.
    pub entry: SignedEntry,
    /// What it asks for.
    pub call: Call,
    /// Whether a grant of the cluster makes a task of it: the key of a fleet-scope task is judged by the global queue.
    pub makes_task: bool,
}

/// Thinks of wishes, one after the other.
pub(super) struct Wishes {
    desk: Desk,
    /// Made once: the public half takes a scalar multiplication.
    operator: DeviceKey,
    cluster: ClusterId,
    clusters: u32,
    random: Stream,
    number: u64,
}

impl Wishes {
    /// Of the operator of `cluster`.
    pub fn new(desk: Desk, cluster: ClusterId, random: Stream) -> Self {
        let clusters = u32::try_from(desk.fleet.genesis.clusters.len()).expect("clusters are few");
        Self {
            operator: desk.fleet.key("op1"),
            desk,
            cluster,
            clusters,
            random,
            number: 0,
        }
    }

    /// Number of the last wish.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next one.
    pub fn next(&mut self) -> Wish {
        if self.is_one_in(SECOND_THOUGHT_ONE_IN)
            && let Some(wish) = self.second_thought()
        {
            return wish;
        }
        self.submit()
    }

    /// A submission.
    pub fn submit(&mut self) -> Wish {
        self.number += 1;
        let scope = self.scope();
        let is_reused = self.is_one_in(REUSE_ONE_IN);
        let mut task = self.task(scope, is_reused);
        if self.is_one_in(LINK_ONE_IN) {
            // A cluster's own task may wait for the fleet's.
            let linked = match scope {
                Scope::Cluster => self.scope(),
                Scope::Fleet => Scope::Fleet,
            };
            let earlier = self.earlier(linked);
            task.after = earlier
                .into_iter()
                .collect::<Vec<_>>()
                .try_into()
                .expect("one link fits");
        }
        let draft = self.draft(scope, Action::Submit);
        let fleet = &self.desk.fleet;
        Wish {
            entry: SignedEntry::submit(&self.operator, &fleet.chain, draft, &task),
            call: Call::Submit,
            makes_task: !(is_reused && scope == Scope::Fleet),
        }
    }

    fn task(&mut self, scope: Scope, is_reused: bool) -> Task {
        let key = match (is_reused, scope) {
            (false, _) => self.number.to_string(),
            (true, Scope::Cluster) => {
                let back = self.random.between(1, REUSED_AMONG);
                self.number.saturating_sub(back).to_string()
            }
            // Nobody is promised a task of these.
            (true, Scope::Fleet) => format!("again-{}", self.random.between(1, REUSED_AMONG / 8)),
        };
        let mut task = testing::task(&format!("c{}-{key}", self.cluster.0));
        let zone = match scope {
            Scope::Cluster => self.cluster.0,
            Scope::Fleet => self.any_cluster().0,
        };
        let places = vec![testing::place_in(zone)];
        task.places = places.try_into().expect("one place fits");
        task.priority = if self.is_one_in(4) { 200 } else { task.priority };
        task.attempts_max = u8::try_from(self.random.between(1, 3)).expect("it is 3 at most");
        if self.is_one_in(DEADLINE_ONE_IN) {
            let left_us = self.random.between(1, DEADLINE_MS_MAX) * 1_000;
            task.deadline = Some(BlockTime(EPOCH.0 + self.desk.witness.now_us() + left_us));
        }
        if self.is_one_in(HOLD_ONE_IN) {
            task.after_custody = AfterCustody::Hold;
            task.on_lease_loss = OnLeaseLoss::Continue;
        }
        task
    }

    /// Something about an earlier task: it is freed if an answer said that nobody knows who holds it, else canceled or tried
    /// again. `None` if there is none.
    fn second_thought(&mut self) -> Option<Wish> {
        let unknown = self.desk.journal().free(self.cluster);
        let (scope, action, call) = match unknown {
            Some((task, scope)) => (scope, Action::ForceRequeue { task }, Call::Requeue),
            None => {
                let scope = self.scope();
                let task = self.earlier(scope)?;
                match self.random.between(0, 1) {
                    0 => (scope, Action::Cancel { task }, Call::Cancel),
                    _ => {
                        let cause = Cause::Operator;
                        (scope, Action::Requeue { task, cause }, Call::Requeue)
                    }
                }
            }
        };
        self.number += 1;
        let draft = self.draft(scope, action);
        let fleet = &self.desk.fleet;
        Some(Wish {
            entry: SignedEntry::sign(&self.operator, &fleet.chain, draft, Default::default()),
            call,
            makes_task: false,
        })
    }

    fn draft(&mut self, scope: Scope, action: Action) -> EntryDraft {
        let draft = self.desk.fleet.draft("op1", self.cluster, self.number, scope, action);
        if !self.is_one_in(SHORT_ONE_IN) {
            return draft;
        }
        let blocks = self.random.between(1, 60);
        EntryDraft {
            not_after_height: Height(self.desk.witness.height().0 + blocks),
            ..draft
        }
    }

    fn scope(&mut self) -> Scope {
        match self.random.between(0, 1) {
            0 => Scope::Cluster,
            _ => Scope::Fleet,
        }
    }

    fn any_cluster(&mut self) -> ClusterId {
        let last = u64::from(self.clusters - 1);
        ClusterId(u32::try_from(self.random.between(0, last)).expect("a number of a cluster"))
    }

    fn is_one_in(&mut self, many: u64) -> bool {
        self.random.between(1, many) == 1
    }

    /// A drawn task of `scope` among the last ones acknowledged: through this cluster, or for the fleet through any.
    fn earlier(&mut self, scope: Scope) -> Option<TaskId> {
        let through = match scope {
            Scope::Cluster => self.cluster,
            Scope::Fleet => self.any_cluster(),
        };
        let journal = self.desk.journal();
        let all = journal.order.get(&through)?;
        let recent = all.iter().rev().take(32);
        let recent: Vec<TaskId> = recent
            .filter(|task| journal.acknowledged[*task].1 == scope)
            .copied()
            .collect();
        drop(journal);
        let last = (recent.len() as u64).checked_sub(1)?;
        Some(recent[self.random.between(0, last) as usize])
    }
}
