//! The dynamic rules: what an author-signed entry does to the state it finds.
//!
//! Decides, changes nothing: admission asks the same question before the entry enters the log, and
//! gives the same reason early.
//!
//! # Rules
//! * The author is active, signs with its newest key, has the role, and is not above
//!   `not_after_height`.
//! * `Claim`: this cluster has custody, the assignment number is the task's, linked tasks are
//!   completed, constraints hold, the counter is above the holder's, and claims are left.
//! * Entries of a holder name the fence of the task's newest claim. A result under another fence is
//!   [`Verdict::Late`]; everything else is [`Reason::Fenced`].
//! * `Release` and `Fail` change nothing if a `Claim` or `Renew` of the same holder with a higher
//!   counter was applied: a drone that restarted may count on the claim again.
//! * `Requeue` of an ended lease is signed by the device that led when the entry was appended, and is
//!   a no-op if a newer renewal was applied.

use std::borrow::Cow;

use common::{
    entry::{
        Action, Cause, Fence, SignedEntry,
        life::{Holder, Life, LifeRules},
    },
    genesis::{Kind, RoleSet},
    ids::{Assignment, EntryId, HolderCounter, LogIndex, RaftNodeId, TaskId},
    registry::{Member, Status},
    task::{Scope, Task, TaskState},
    verdict::{Reason, Verdict},
};

use super::{CLAIMS_PER_DEVICE_MAX, COMMITTED, ClusterQueue, TaskRow};
use crate::Shared;

/// What a decision changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    Nothing,
    /// The author's claims are renewed.
    Renew {
        /// The new counter.
        counter: HolderCounter,
    },
    /// The task's row becomes this one.
    Row {
        /// The row.
        row: Box<TaskRow>,
        /// The author's new counter as a holder.
        counter: Option<HolderCounter>,
    },
}

impl Change {
    fn row(row: TaskRow) -> Self {
        Self::Row {
            row: Box::new(row),
            counter: None,
        }
    }
}

type Decision = Result<(Verdict, Change), Reason>;

impl ClusterQueue {
    /// Decides a statically good entry of this cluster whose number is fresh, as if it stood at
    /// `index`, appended under `leader`.
    pub(crate) fn decide(
        &self,
        entry: &SignedEntry,
        id: EntryId,
        index: LogIndex,
        leader: RaftNodeId,
    ) -> (Verdict, Change) {
        self.try_decide(entry, id, index, leader)
            .unwrap_or_else(|reason| (Verdict::Rejected(reason), Change::Nothing))
    }

    fn try_decide(&self, entry: &SignedEntry, id: EntryId, index: LogIndex, leader: RaftNodeId) -> Decision {
        let author = self.check_author(entry)?;
        match entry.header.action {
            Action::Submit => self.submit(entry, id, index, author),
            Action::Renew { counter } => {
                self.check_drone(author)?;
                if counter <= self.holder_counter(&author.id) {
                    return Err(Reason::OldCounter);
                }
                Ok((Verdict::Granted, Change::Renew { counter }))
            }
            Action::Claim {
                task,
                assignment,
                counter,
            } => self.claim(entry, task, assignment, counter, index, author),
            Action::Progress { .. } | Action::Complete { .. } | Action::Fail { .. } | Action::Release { .. } => {
                self.holders_entry(entry, index, author)
            }
            Action::Requeue {
                task,
                cause: Cause::LeaseEnded { fence, renewed_at },
            } => {
                if author.idx != leader.idx() {
                    return Err(Reason::Denied);
                }
                self.lease_ended(entry, task, fence, renewed_at, index)
            }
            Action::Requeue {
                task,
                cause: Cause::Operator,
            }
            | Action::ForceRequeue { task } => {
                if !author.may(RoleSet::OP_TASK) {
                    return Err(Reason::Denied);
                }
                self.operators_entry(entry, task, index, author)
            }
            Action::Cancel { task } => self.operators_entry(entry, task, index, author),
        }
    }

    fn check_author(&self, entry: &SignedEntry) -> Result<&Member, Reason> {
        let header = &entry.header;
        let author = self.registry().by_id(&header.author).ok_or(Reason::UnknownKey)?;
        if author.status != Status::Active {
            return Err(Reason::Denied);
        }
        if header.key_version != author.key_version() {
            return Err(Reason::StaleKey);
        }
        if header.not_after_height < self.global_height() {
            return Err(Reason::Expired);
        }
        Ok(author)
    }

    fn check_drone(&self, author: &Member) -> Result<(), Reason> {
        let is_ours = author.kind == Kind::Drone && author.cluster == Some(self.cluster());
        if is_ours && author.may(RoleSet::TASK_CLAIM) {
            Ok(())
        } else {
            Err(Reason::Denied)
        }
    }

    /// The row of a task, in the scope that the author signed.
    fn row(&self, task: &TaskId, scope: Scope) -> Result<Cow<'_, TaskRow>, Reason> {
        let row = self.known_row(task).ok_or_else(|| self.missing(task))?;
        if row.scope != scope {
            return Err(Reason::UnknownTask);
        }
        if self.is_settled(task, &row) {
            return Err(Reason::WrongState(row.state()));
        }
        Ok(row)
    }

    /// What is said of a task without a row: it ended long ago, or is none of this cluster's.
    fn missing(&self, task: &TaskId) -> Reason {
        match self.global.state_of(task) {
            Some((state, Scope::Fleet, _)) if !state.is_open() => Reason::WrongState(state),
            Some((state, _, through)) if !state.is_open() && through == self.cluster() => Reason::WrongState(state),
            _ => Reason::UnknownTask,
        }
    }

    fn submit(&self, entry: &SignedEntry, id: EntryId, index: LogIndex, author: &Member) -> Decision {
        if !author.may(RoleSet::TASK_SUBMIT) {
            return Err(Reason::Denied);
        }
        let task = entry.task().map_err(|_| Reason::Malformed)?;
        let scope = entry.header.scope;
        if scope == Scope::Cluster {
            if let Some(known) = self.state.keys.get(&(author.id, task.key.clone())) {
                return Err(if known.content == entry.header.payload_hash {
                    Reason::DuplicateOf(known.task)
                } else {
                    Reason::KeyConflict(known.task)
                });
            }
            if task.constraints.cluster.is_some_and(|only| only != self.cluster()) {
                return Err(Reason::Constrained);
            }
            self.check_links(&task)?;
        }
        debug_assert!(!self.state.rows.contains_key(&TaskId::from(id)), "entry ids are unique");
        let row = TaskRow {
            author: author.id,
            scope,
            through: self.cluster(),
            content: entry.header.payload_hash,
            task: Shared::new(task),
            life: Life::default(),
            cluster: (scope == Scope::Cluster).then_some(self.cluster()),
            assignment: Assignment(0),
            terms: self.genesis.timing.lease,
            finality: COMMITTED,
            changed_at: index,
            queued_at: self.global_height(),
        };
        Ok((Verdict::Granted, Change::row(row)))
    }

    fn claim(
        &self,
        entry: &SignedEntry,
        task: TaskId,
        assignment: Assignment,
        counter: HolderCounter,
        index: LogIndex,
        author: &Member,
    ) -> Decision {
        self.check_drone(author)?;
        let row = self.row(&task, entry.header.scope)?;
        if row.cluster != Some(self.cluster()) {
            return Err(Reason::NotInCustody);
        }
        if row.assignment != assignment {
            return Err(Reason::Fenced);
        }
        if counter <= self.holder_counter(&author.id) {
            return Err(Reason::OldCounter);
        }
        let mut row = row.into_owned();
        self.grant(&mut row, entry, index, author)?;
        self.check_constraints(&row)?;
        if !self.links_are_completed(&task, &row) {
            return Err(Reason::Blocked);
        }
        let held = self
            .state
            .holders
            .get(&author.id)
            .map_or(0, |holder| holder.claims.len());
        if held >= CLAIMS_PER_DEVICE_MAX {
            return Err(Reason::TooManyClaims);
        }
        let change = Change::Row {
            row: Box::new(row),
            counter: Some(counter),
        };
        Ok((Verdict::Granted, change))
    }

    /// A task must not begin to wait for one of this cluster that ended and that the global queue lets go of:
    /// it fails at once here, and would wait for ever there.
    fn check_links(&self, task: &Task) -> Result<(), Reason> {
        match task.after.iter().find(|other| self.has_ended_for_good(other)) {
            Some(other) => Err(Reason::LinkEnded(*other)),
            None => Ok(()),
        }
    }

    /// No capability of a device is registered, so a task that asks for one excludes every drone.
    pub(super) fn check_constraints(&self, row: &TaskRow) -> Result<(), Reason> {
        let constraints = &row.task.constraints;
        let is_here = constraints.cluster.is_none_or(|only| only == self.cluster());
        if is_here && constraints.capabilities.is_empty() {
            Ok(())
        } else {
            Err(Reason::Constrained)
        }
    }

    /// Applies the entry to the row's life and marks it as changed by this log.
    fn grant(&self, row: &mut TaskRow, entry: &SignedEntry, index: LogIndex, author: &Member) -> Result<(), Reason> {
        let rules = LifeRules::of(&row.task);
        let at = (self.founding(), index);
        row.life
            .grant(&entry.header.action, author.id, at, row.assignment, rules)?;
        row.finality = COMMITTED;
        row.changed_at = index;
        if row.state() == TaskState::Queued {
            row.queued_at = self.global_height();
        }
        Ok(())
    }

    fn holders_entry(&self, entry: &SignedEntry, index: LogIndex, author: &Member) -> Decision {
        self.check_drone(author)?;
        let action = &entry.header.action;
        let task = action.task().ok_or(Reason::Malformed)?;
        let fence = action.fence().ok_or(Reason::Malformed)?;
        let row = self.row(&task, entry.header.scope)?;
        let is_in_custody = row.cluster == Some(self.cluster());
        let speaker = Holder {
            device: author.id,
            fence,
        };
        let is_held = is_in_custody && row.state().is_held();
        let is_awaited = row.state() == TaskState::Unknown
            && matches!(action, Action::Complete { .. })
            && row.assignment == fence.assignment;
        if row.life.holder == Some(speaker) && (is_held || (is_in_custody && is_awaited)) {
            if let Action::Fail { counter, .. } | Action::Release { counter, .. } = *action
                && counter < self.holder_counter(&author.id)
            {
                return Err(Reason::OldCounter);
            }
            let mut row = row.into_owned();
            self.grant(&mut row, entry, index, author)?;
            return Ok((Verdict::Granted, Change::row(row)));
        }
        if is_held && row.life.holder.is_some_and(|holder| holder.fence == fence) {
            return Err(Reason::NotHolder);
        }
        self.late_entry(&row, entry, speaker, index)
    }

    /// An entry under a claim that holds the task no more.
    fn late_entry(&self, row: &TaskRow, entry: &SignedEntry, speaker: Holder, index: LogIndex) -> Decision {
        if row.state() == TaskState::Completed && row.life.holder == Some(speaker) {
            return Err(Reason::WrongState(TaskState::Completed));
        }
        let fence = speaker.fence;
        let can_be_old = fence.assignment <= row.assignment && (fence.founding, fence.index) < (self.founding(), index);
        match entry.header.action {
            Action::Complete { .. } if can_be_old => {
                let mut row = row.clone();
                row.life.complete_late(speaker.device, fence);
                row.finality = COMMITTED;
                row.changed_at = index;
                Ok((Verdict::Late, Change::row(row)))
            }
            Action::Fail { .. } if can_be_old => Ok((Verdict::Late, Change::Nothing)),
            _ if !row.state().is_open() => Err(Reason::WrongState(row.state())),
            _ => Err(Reason::Fenced),
        }
    }

    fn lease_ended(
        &self,
        entry: &SignedEntry,
        task: TaskId,
        fence: Fence,
        renewed_at: LogIndex,
        index: LogIndex,
    ) -> Decision {
        let row = self.row(&task, entry.header.scope)?;
        let holder = row
            .holder()
            .filter(|holder| holder.fence == fence && row.cluster == Some(self.cluster()))
            .ok_or(Reason::Fenced)?;
        if self.renewed_at(&holder) > renewed_at {
            return Err(Reason::LeaseRenewed);
        }
        let device = self.registry().by_id(&holder.device).ok_or(Reason::UnknownKey)?;
        if !device.stops_by_itself {
            return Err(Reason::Denied);
        }
        let author = self.registry().by_id(&entry.header.author).ok_or(Reason::UnknownKey)?;
        let mut row = row.into_owned();
        self.grant(&mut row, entry, index, author)?;
        Ok((Verdict::Granted, Change::row(row)))
    }

    /// Index of the newest renewal of a claim: its own, or that of a later `Renew` of its holder.
    pub(crate) fn renewed_at(&self, holder: &Holder) -> LogIndex {
        let renewed = self.state.holders.get(&holder.device).map(|row| row.renewed_at);
        holder.fence.index.max(renewed.unwrap_or_default())
    }

    /// `Cancel`, operator's `Requeue`, `ForceRequeue`: decided here for cluster scope, accepted for
    /// ordering for fleet scope.
    fn operators_entry(&self, entry: &SignedEntry, task: TaskId, index: LogIndex, author: &Member) -> Decision {
        let known = self.known_row(&task);
        let scope = known.as_ref().map_or(entry.header.scope, |row| row.scope);
        let Some(row) = known else {
            // The global tier may know the task, or come to know it before it decides.
            return match (scope, self.missing(&task)) {
                (Scope::Fleet, Reason::UnknownTask) => Ok((Verdict::Granted, Change::Nothing)),
                (_, reason) => Err(reason),
            };
        };
        if self.is_settled(&task, &row) {
            return Err(Reason::WrongState(row.state()));
        }
        if author.id != row.author && !author.may(RoleSet::OP_TASK) {
            return Err(Reason::Denied);
        }
        let mut row = row.into_owned();
        match scope {
            Scope::Cluster => {
                if !matches!(entry.header.action, Action::Cancel { .. }) {
                    self.check_links(&row.task)?;
                }
                self.grant(&mut row, entry, index, author)?;
            }
            Scope::Fleet => {
                row.finality = COMMITTED;
                row.changed_at = index;
            }
        }
        Ok((Verdict::Granted, Change::row(row)))
    }
}
