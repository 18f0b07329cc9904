//! Decides who may run what until when: on the drone its own leases, on the leader whose lease has
//! certainly ended.
//!
//! In: times noted before signing, applied entries, finalized blocks. Out: deadlines, renewals due,
//! claims to take back. Called by: the agent's shell.
//!
//! # Rules
//! * A drone notes `t0` before it signs a `Claim` or `Renew` r. It counts on r (1) once it applied r
//!   as granted, and for a fleet-scope task (2) once it applied a block that executed a batch of its
//!   cluster closed at or above r. The lease runs while `now < t0(newest r with 1) + L`, and for
//!   fleet scope also `now < t0(newest r with 2) + G`.
//! * Upon a conflict with the validators: no block counts any more, and none that counted before.
//! * A claim is ended in memory before `Release`, `Fail` or `Complete` is signed, and never counted
//!   on again. It is ended only when the vehicle has stopped, or `t_stop` after the last deadline given.
//! * `t0` lives in memory only: after a restart no lease is held. A `Renew` signed afterwards may win
//!   one back.
//! * A leader proposes `Requeue` when [`LeaseTerms::certainly_ended_after_us`] has passed on its own
//!   clock since it applied the newest renewal, or since it applied the first entry of its own term if
//!   that is later; never for a vehicle that cannot stop by itself.
//!
//! # Invariants
//! * lease-exclusion: two drones never have a deadline in the future for one task.
//!
//! # Why
//! r cannot be in a block proposed before `t0`, so no beat, leader, replay or delay makes a lease
//! longer than its cluster's custody. `t0` is kept by entry id, not by counter: an entry signed before
//! a restart can then never be taken for one signed after it.
//!
//! # Source
//! Gray & Cheriton 1989, *Leases*; ARCHITECTURE.md, "Time".

use std::collections::{BTreeMap, VecDeque};

use common::{
    bug::{self, Bug},
    entry::{Action, Cause, Fence},
    ids::{DeviceId, EntryId, LogIndex, TaskId},
    lease_terms::{ClockBounds, LeaseTerms},
    task::Scope,
};

use crate::queue::{Applied, ClusterQueue, QueueEvent};

/// Signed claims and renewals whose outcome is awaited; the oldest goes.
const NOTED_MAX: usize = 256;
/// Renewals applied and not yet below a final batch, per claim; the oldest goes.
const UNCONFIRMED_MAX: usize = 64;

#[derive(Clone, Debug)]
struct Lease {
    fence: Fence,
    scope: Scope,
    terms: LeaseTerms,
    /// t0 of the newest r with (1).
    granted_t0_us: u64,
    /// (index, t0) of each r with (1) and without (2), ascending.
    unconfirmed: VecDeque<(LogIndex, u64)>,
    /// t0 of the newest r with (2).
    final_t0_us: Option<u64>,
}

/// The last deadline that the vehicle was given for a task. Outlives the lease.
#[derive(Clone, Copy, Debug)]
struct Given {
    fence: Fence,
    until_us: u64,
    stop_ms: u32,
}

impl Lease {
    fn deadline_us(&self) -> Option<u64> {
        let ms = |ms: u32| u64::from(ms) * 1_000;
        let in_cluster = self.granted_t0_us.saturating_add(ms(self.terms.lease_ms));
        match self.scope {
            Scope::Cluster => Some(in_cluster),
            Scope::Fleet => {
                let global = self.final_t0_us?.saturating_add(ms(self.terms.global_lease_ms));
                Some(in_cluster.min(global))
            }
        }
    }

    fn renew_after_us(&self) -> u64 {
        let shortest_ms = match self.scope {
            Scope::Cluster => self.terms.lease_ms,
            Scope::Fleet => self.terms.lease_ms.min(self.terms.global_lease_ms),
        };
        u64::from(shortest_ms) * 1_000 / 4
    }

    fn count(&mut self, index: LogIndex, t0_us: u64) {
        self.granted_t0_us = self.granted_t0_us.max(t0_us);
        if self.unconfirmed.len() == UNCONFIRMED_MAX {
            self.unconfirmed.pop_front();
        }
        self.unconfirmed.push_back((index, t0_us));
    }

    /// What blocks said counts no more: custody may be another cluster's.
    fn refute(&mut self) {
        self.unconfirmed.clear();
        self.final_t0_us = None;
    }

    fn confirm(&mut self, cut: LogIndex) {
        while let Some((index, t0_us)) = self.unconfirmed.front().copied()
            && index <= cut
        {
            self.unconfirmed.pop_front();
            self.final_t0_us = self.final_t0_us.max(Some(t0_us));
        }
    }
}

/// The vehicle may still be running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the vehicle was given until {given_until_us} us: ended only when it has stopped, or at {at_us} us")]
pub struct StillRunning {
    /// The last deadline given; [`u64::MAX`] if a process before this one may have given it.
    pub given_until_us: u64,
    /// When it has stopped by itself; [`u64::MAX`] if only a confirmation can tell.
    pub at_us: u64,
}

/// The leases of one drone.
#[derive(Clone, Debug)]
pub struct Leases {
    device: DeviceId,
    drift_ppm: u32,
    noted: BTreeMap<EntryId, u64>,
    noted_order: VecDeque<EntryId>,
    last_noted_us: Option<u64>,
    leases: BTreeMap<TaskId, Lease>,
    ended: BTreeMap<TaskId, Fence>,
    given: BTreeMap<TaskId, Given>,
    /// Claims that were granted to this process: no other one gave a deadline under them.
    claimed: BTreeMap<TaskId, Fence>,
}

impl Leases {
    /// None held, as after every start.
    #[must_use]
    pub fn new(device: DeviceId, clocks: &ClockBounds) -> Self {
        Self {
            device,
            drift_ppm: clocks.drift_ppm,
            noted: BTreeMap::new(),
            noted_order: VecDeque::new(),
            last_noted_us: None,
            leases: BTreeMap::new(),
            ended: BTreeMap::new(),
            given: BTreeMap::new(),
            claimed: BTreeMap::new(),
        }
    }

    /// A `Claim` or `Renew` was signed; `t0_us` was read before that. Call it before the entry leaves
    /// this process.
    pub fn signed(&mut self, entry: EntryId, t0_us: u64) {
        self.last_noted_us = self.last_noted_us.max(Some(t0_us));
        if self.noted.insert(entry, t0_us).is_none() {
            self.noted_order.push_back(entry);
        }
        if self.noted_order.len() > NOTED_MAX
            && let Some(oldest) = self.noted_order.pop_front()
        {
            self.noted.remove(&oldest);
        }
    }

    /// Takes note of what an applied entry did. Call it for every applied entry, in order.
    pub fn after_apply(&mut self, queue: &ClusterQueue, applied: &Applied) {
        let mut is_changed = false;
        for event in &applied.events {
            match event {
                QueueEvent::Claimed { task, device, fence } if *device == self.device => {
                    if let Some(t0_us) = applied.entry.and_then(|id| self.noted.remove(&id))
                        && let Some(held) = queue.held(task).filter(|held| held.fence == *fence)
                    {
                        self.claimed.insert(*task, *fence);
                        let lease = self.leases.entry(*task).insert_entry(Lease {
                            fence: *fence,
                            scope: held.scope,
                            terms: held.terms,
                            granted_t0_us: t0_us,
                            unconfirmed: VecDeque::new(),
                            final_t0_us: None,
                        });
                        lease.into_mut().count(fence.index, t0_us);
                    }
                }
                QueueEvent::Renewed { device, index } if *device == self.device => {
                    if let Some(t0_us) = applied.entry.and_then(|id| self.noted.remove(&id)) {
                        self.renewed(queue, *index, t0_us);
                    }
                }
                QueueEvent::BlockApplied { own_cut, .. } => {
                    is_changed = true;
                    if let Some(cut) = own_cut {
                        self.leases.values_mut().for_each(|lease| lease.confirm(*cut));
                    }
                }
                QueueEvent::HoldEnded { .. } => is_changed = true,
                QueueEvent::Quarantined(_) => self.leases.values_mut().for_each(Lease::refute),
                _ => {}
            }
        }
        if is_changed {
            let holds = |task: &TaskId, fence: Fence| {
                queue
                    .held(task)
                    .is_some_and(|held| held.device == self.device && held.fence == fence)
            };
            self.leases.retain(|task, lease| holds(task, lease.fence));
            self.ended.retain(|task, fence| holds(task, *fence));
            self.given.retain(|task, given| holds(task, given.fence));
            self.claimed.retain(|task, fence| holds(task, *fence));
        }
    }

    fn renewed(&mut self, queue: &ClusterQueue, index: LogIndex, t0_us: u64) {
        for held in queue.held_by(&self.device) {
            if self.ended.get(&held.task) == Some(&held.fence) {
                continue;
            }
            let lease = self.leases.entry(held.task).or_insert_with(|| Lease {
                fence: held.fence,
                scope: held.scope,
                terms: held.terms,
                granted_t0_us: t0_us,
                unconfirmed: VecDeque::new(),
                final_t0_us: None,
            });
            lease.count(index, t0_us);
        }
    }

    /// Forgets every lease: after a snapshot replaced the state, since what happened between is unknown.
    pub fn forget(&mut self) {
        self.leases.clear();
        self.noted.clear();
        self.noted_order.clear();
    }

    /// Until when, in microseconds of the own clock, the vehicle may run `task`; `None` if it may not.
    /// The deadline counts as given to the vehicle. Read the clock after the command is built, and
    /// put the deadline into the command.
    #[must_use]
    pub fn may_run(&mut self, task: &TaskId, now_us: u64) -> Option<u64> {
        let lease = self.leases.get(task)?;
        let mut deadline = lease.deadline_us().filter(|deadline| now_us < *deadline)?;
        if bug::active(Bug::LeaseFromArrival) {
            deadline = now_us + u64::from(lease.terms.lease_ms) * 1_000;
        }
        let given = self.given.entry(*task).or_insert(Given {
            fence: lease.fence,
            until_us: deadline,
            stop_ms: lease.terms.stop_ms,
        });
        given.fence = lease.fence;
        given.until_us = given.until_us.max(deadline);
        Some(deadline)
    }

    /// The same without giving a deadline to anybody, for displays.
    #[must_use]
    pub fn deadline_us(&self, task: &TaskId) -> Option<u64> {
        self.leases.get(task)?.deadline_us()
    }

    /// Tasks with a lease in memory, valid or run out, ascending.
    pub fn tasks(&self) -> impl Iterator<Item = TaskId> + '_ {
        self.leases.keys().copied()
    }

    /// Whether a `Renew` should be signed now: a quarter of the shortest lease has passed.
    #[must_use]
    pub fn is_renewal_due(&self, now_us: u64) -> bool {
        self.leases.values().any(|lease| {
            let since = self.last_noted_us.unwrap_or(0).max(lease.granted_t0_us);
            now_us >= since.saturating_add(lease.renew_after_us())
        })
    }

    /// Tasks that the queue says this drone holds and that it has no lease for: after a restart. A
    /// `Renew` may win them back, a `Release` gives them back.
    #[must_use]
    pub fn lost(&self, queue: &ClusterQueue) -> Vec<(TaskId, Fence)> {
        queue
            .held_by(&self.device)
            .filter(|held| !self.leases.contains_key(&held.task) && !self.ended.contains_key(&held.task))
            .map(|held| (held.task, held.fence))
            .collect()
    }

    /// Claims that were ended here and that the queue still shows. Their `Release`, `Fail` or `Complete`
    /// is on its way, lost, or was refused (a `Renew` with a higher counter overtook it); since a `Renew`
    /// for other tasks covers them too, the shell brings it in again until the queue shows it.
    #[must_use]
    pub fn unreleased(&self, queue: &ClusterQueue) -> Vec<(TaskId, Fence)> {
        let ended = queue.held_by(&self.device).map(|held| (held.task, held.fence));
        ended
            .filter(|(task, fence)| self.ended.get(task) == Some(fence))
            .collect()
    }

    /// Ends a lease for good, before `Release`, `Fail` or `Complete` is signed under `fence`.
    /// `is_stopped`: the vehicle side confirmed that it stopped. A claim that was made before this
    /// process started ends only so, since the deadlines given under it are not known.
    ///
    /// # Errors
    /// [`StillRunning`]: neither confirmed nor certain by time.
    pub fn end(&mut self, task: &TaskId, fence: Fence, is_stopped: bool, now_us: u64) -> Result<(), StillRunning> {
        if !is_stopped && self.claimed.get(task) != Some(&fence) {
            return Err(StillRunning {
                given_until_us: u64::MAX,
                at_us: u64::MAX,
            });
        }
        if let Some(given) = self.given.get(task).filter(|given| given.fence == fence) {
            let stop_us = u64::from(given.stop_ms) * 1_000;
            let drift_us = (stop_us * u64::from(self.drift_ppm)).div_ceil(1_000_000);
            let (given_until_us, at_us) = (given.until_us, given.until_us.saturating_add(stop_us + drift_us));
            if !is_stopped && now_us < at_us {
                return Err(StillRunning { given_until_us, at_us });
            }
        }
        // A result that comes late speaks for an old claim: a newer one goes on, or stays ended.
        self.given.retain(|id, given| id != task || given.fence > fence);
        self.leases.retain(|id, lease| id != task || lease.fence > fence);
        let ended = self.ended.entry(*task).or_insert(fence);
        *ended = (*ended).max(fence);
        Ok(())
    }
}

/// A claim whose lease has certainly ended: what the leader signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequeueProposal {
    /// Which task.
    pub task: TaskId,
    /// Its scope, for the entry's header.
    pub scope: Scope,
    /// The claim and the newest renewal seen.
    pub cause: Cause,
}

impl RequeueProposal {
    /// The action to sign with the leader's device key.
    #[must_use]
    pub fn action(&self) -> Action {
        Action::Requeue {
            task: self.task,
            cause: self.cause,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    renewed_at: LogIndex,
    applied_us: u64,
    proposed_us: Option<u64>,
}

/// What a member measures so that it can take claims back while it leads.
#[derive(Clone, Debug)]
pub struct LeaseWatch {
    clocks: ClockBounds,
    seen: BTreeMap<(TaskId, Fence), Seen>,
}

impl LeaseWatch {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(clocks: ClockBounds) -> Self {
        Self {
            clocks,
            seen: BTreeMap::new(),
        }
    }

    /// Notes when claims and renewals were applied here. Call it for every applied entry, in order; a
    /// late note only makes the leader wait longer.
    pub fn after_apply(&mut self, queue: &ClusterQueue, applied: &Applied, now_us: u64) {
        let seen_now = |renewed_at| Seen {
            renewed_at,
            applied_us: now_us,
            proposed_us: None,
        };
        for event in &applied.events {
            match event {
                QueueEvent::Claimed { task, fence, .. } => {
                    if let Some(held) = queue.held(task) {
                        self.seen.insert((*task, *fence), seen_now(held.renewed_at));
                    }
                }
                QueueEvent::Renewed { device, index } => {
                    for held in queue.held_by(device) {
                        self.seen.insert((held.task, held.fence), seen_now(*index));
                    }
                }
                QueueEvent::HoldEnded { task, fence, .. } => {
                    self.seen.remove(&(*task, *fence));
                }
                _ => {}
            }
        }
    }

    /// Compares with the queue: new claims and renewals count from now. Call it after a snapshot.
    pub fn refresh(&mut self, queue: &ClusterQueue, now_us: u64) {
        let mut seen = BTreeMap::new();
        for held in queue.all_held() {
            let key = (held.task, held.fence);
            let fresh = Seen {
                renewed_at: held.renewed_at,
                applied_us: now_us,
                proposed_us: None,
            };
            let known = self.seen.get(&key).filter(|known| known.renewed_at == held.renewed_at);
            seen.insert(key, known.copied().unwrap_or(fresh));
        }
        self.seen = seen;
    }

    /// Claims to take back. Call it only while leading, with the time at which the first entry of the
    /// own term was applied here. A proposal is repeated after the length of the lease.
    pub fn requeue_due(&mut self, queue: &ClusterQueue, term_applied_us: u64, now_us: u64) -> Vec<RequeueProposal> {
        let mut due = Vec::new();
        for held in queue.all_held().filter(|held| held.stops_by_itself) {
            let Some(seen) = self.seen.get_mut(&(held.task, held.fence)) else {
                continue;
            };
            let since = seen.applied_us.max(term_applied_us);
            let is_ended = now_us.saturating_sub(since) > held.terms.certainly_ended_after_us(&self.clocks);
            let is_repeat = seen
                .proposed_us
                .is_some_and(|at| now_us.saturating_sub(at) < u64::from(held.terms.lease_ms) * 1_000);
            if seen.renewed_at == held.renewed_at && is_ended && !is_repeat {
                seen.proposed_us = Some(now_us);
                due.push(RequeueProposal {
                    task: held.task,
                    scope: held.scope,
                    cause: Cause::LeaseEnded {
                        fence: held.fence,
                        renewed_at: held.renewed_at,
                    },
                });
            }
        }
        due
    }
}

#[cfg(test)]
mod tests;
