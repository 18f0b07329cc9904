//! Decides author-signed entries that are statically good and were not seen before, and applies them.

use super::{
    MachineEvent, RowFault,
    execute::{At, Execution},
    row::{Row, Standing, Submitted, TaskKeyId, TaskKeyRow},
};
use crate::{
    bug::{self, Bug},
    entry::{Action, Cause, EntryHeader, SignedEntry, life::Life},
    genesis::RoleSet,
    ids::{Assignment, TaskId},
    registry::{Member, Status},
    task::Scope,
    verdict::{Reason, Verdict},
};

impl Execution<'_> {
    /// Decides a statically good entry that was not seen before, and applies it if it is granted.
    pub(super) fn judge(&mut self, at: At<'_>, entry: &SignedEntry) -> Verdict {
        let header = &entry.header;
        if header.action == Action::Submit {
            return match header.scope {
                Scope::Cluster => self.submit_to_cluster(at, entry),
                Scope::Fleet => or_rejected(self.submit_to_fleet(at, entry)),
            };
        }
        let task = header.action.task().expect("only Submit and Renew name no task");
        let Some(row) = self.queue.tasks.get(&task) else {
            return match (at.entry.verdict, self.queue.retired(&task)) {
                (Verdict::Rejected(reason), _) => Verdict::Rejected(reason),
                (Verdict::Granted | Verdict::Late, Some(line)) => Verdict::Rejected(Reason::WrongState(line.state)),
                (Verdict::Granted | Verdict::Late, None) => Verdict::Rejected(Reason::UnknownTask),
            };
        };
        match row.scope() {
            Scope::Cluster if row.submitted.through != at.batch.cluster => foreign(at),
            Scope::Cluster => self.follow_cluster(at, entry, task),
            Scope::Fleet if is_operators(&header.action) => or_rejected(self.operate(at, header, task)),
            Scope::Fleet if header.action.assignment() != Some(row.standing.assignment) => {
                self.stale_assignment(at, header, task)
            }
            Scope::Fleet if row.standing.cluster != Some(at.batch.cluster) => foreign(at),
            Scope::Fleet => self.follow_cluster(at, entry, task),
        }
    }

    /// Does what the cluster decided, through the same table.
    fn follow_cluster(&mut self, at: At<'_>, entry: &SignedEntry, task: TaskId) -> Verdict {
        let header = &entry.header;
        match at.entry.verdict {
            Verdict::Rejected(reason) => Verdict::Rejected(reason),
            Verdict::Late => {
                self.complete_late(header, task);
                Verdict::Late
            }
            Verdict::Granted if is_expired(at, header) => Verdict::Rejected(Reason::Expired),
            Verdict::Granted => match self.grant(at, header, task) {
                Ok(()) => Verdict::Granted,
                // Ended here before the cluster knew: its result is kept, whoever was right.
                Err(_) if matches!(header.action, Action::Complete { .. }) => {
                    self.complete_late(header, task);
                    Verdict::Late
                }
                Err(reason) => {
                    if self
                        .queue
                        .tasks
                        .get(&task)
                        .is_some_and(|row| row.scope() == Scope::Cluster)
                    {
                        self.accuse(at, RowFault::Refused(reason));
                    }
                    Verdict::Rejected(reason)
                }
            },
        }
    }

    /// An entry about an assignment that is over: nothing but a record, unless its result was awaited.
    fn stale_assignment(&mut self, at: At<'_>, header: &EntryHeader, task: TaskId) -> Verdict {
        let is_result = matches!(header.action, Action::Complete { .. });
        match at.entry.verdict {
            // Fenced is what a cluster says that knows of the new assignment.
            Verdict::Rejected(reason) if !(is_result && reason == Reason::Fenced) => Verdict::Rejected(reason),
            _ => {
                self.complete_late(header, task);
                Verdict::Late
            }
        }
    }

    fn complete_late(&mut self, header: &EntryHeader, task: TaskId) {
        if let Action::Complete { fence, .. } = header.action {
            self.queue.update(&task, |row| {
                row.standing.life.complete_late(header.author, fence);
                row.drop_ended_custody();
            });
        }
    }

    fn grant(&mut self, at: At<'_>, header: &EntryHeader, task: TaskId) -> Result<(), Reason> {
        let is_marked = |row: &Row| row.standing.ends_at.is_some();
        let keeps_mark = self.queue.tasks.get(&task).is_some_and(is_marked) && self.has_unknown_link(&task);
        let height = self.height;
        self.queue.update(&task, |row| {
            let rules = row.rules();
            row.standing.life.grant(
                &header.action,
                header.author,
                (at.entry.founding, at.entry.index),
                row.standing.assignment,
                rules,
            )?;
            let is_taken_back = matches!(
                header.action,
                Action::ForceRequeue { .. }
                    | Action::Requeue {
                        cause: Cause::Operator,
                        ..
                    }
            );
            if is_taken_back && row.scope() == Scope::Fleet {
                // A claim of the cluster that had it must find another number, before the next assignment too.
                row.standing.custody = None;
                row.standing.assignment = row.standing.assignment.next();
            }
            row.drop_ended_custody();
            if row.is_waiting() && row.standing.ends_above(at.global_height).is_none() {
                // Queued again: `follow` marks it anew if a link has ended now. Of one that is unknown the mark may be all that is kept.
                row.standing.ends_at = keeps_mark.then_some((height, MachineEvent::LinkedTaskEnded));
            }
            Ok(())
        })
    }

    /// `Cancel`, operator's `Requeue` and `ForceRequeue` of fleet scope are decided here.
    fn operate(&mut self, at: At<'_>, header: &EntryHeader, task: TaskId) -> Result<(), Reason> {
        let member = self.active_author(header)?;
        let is_own = self
            .queue
            .tasks
            .get(&task)
            .is_some_and(|row| row.submitted.author == header.author);
        let is_cancel = matches!(header.action, Action::Cancel { .. });
        let may_cancel_own = is_own && is_cancel;
        if !may_cancel_own && !member.roles.contains(RoleSet::OP_TASK) {
            return Err(Reason::Denied);
        }
        if is_expired(at, header) {
            return Err(Reason::Expired);
        }
        if is_cancel && bug::active(Bug::CancelWithoutEffect) {
            return Ok(());
        }
        self.grant(at, header, task)
    }

    fn active_author(&self, header: &EntryHeader) -> Result<&Member, Reason> {
        let member = self.queue.registry.by_id(&header.author).ok_or(Reason::UnknownKey)?;
        if header.key_version != member.key_version() {
            return Err(Reason::StaleKey);
        }
        if member.status != Status::Active {
            return Err(Reason::Denied);
        }
        Ok(member)
    }

    fn submit_to_cluster(&mut self, at: At<'_>, entry: &SignedEntry) -> Verdict {
        match at.entry.verdict {
            Verdict::Granted if is_expired(at, &entry.header) => Verdict::Rejected(Reason::Expired),
            Verdict::Granted => {
                self.create(at, entry);
                Verdict::Granted
            }
            verdict => verdict,
        }
    }

    fn submit_to_fleet(&mut self, at: At<'_>, entry: &SignedEntry) -> Result<(), Reason> {
        let header = &entry.header;
        if !self.active_author(header)?.roles.contains(RoleSet::TASK_SUBMIT) {
            return Err(Reason::Denied);
        }
        if is_expired(at, header) {
            return Err(Reason::Expired);
        }
        let task = entry.task().expect("the shape was checked: the payload is a task");
        if task
            .constraints
            .cluster
            .is_some_and(|id| self.queue.cursor(id).is_none())
        {
            return Err(Reason::Constrained);
        }
        let key = TaskKeyId::of(&header.author, &task);
        if let Some(known) = self.queue.task_keys.get(&key) {
            return Err(if known.content == header.payload_hash {
                Reason::DuplicateOf(known.task)
            } else {
                Reason::KeyConflict(known.task)
            });
        }
        let (task, content) = (self.create(at, entry), header.payload_hash);
        self.queue.task_keys.insert(key, TaskKeyRow { key, task, content });
        Ok(())
    }

    fn create(&mut self, at: At<'_>, entry: &SignedEntry) -> TaskId {
        let (header, id) = (&entry.header, TaskId::from(at.id));
        let is_fleet = header.scope == Scope::Fleet;
        let submitted = Submitted {
            author: header.author,
            key_version: header.key_version,
            scope: header.scope,
            through: header.cluster,
            content: header.payload_hash,
            task: entry.task().expect("the shape was checked: the payload is a task"),
        };
        let standing = Standing {
            arrival: self.queue.arrivals,
            life: Life::default(),
            cluster: (!is_fleet).then_some(header.cluster),
            custody: None,
            assignment: Assignment(0),
            terms: (!is_fleet).then_some(self.queue.genesis.timing.lease),
            links_done: 0,
            ended: None,
            leaving: None,
            ends_at: None,
            events: Vec::new(),
            events_dropped: 0,
        };
        let row = Row::new(id, submitted, standing);
        assert!(
            self.queue.tasks.get(&id).is_none(),
            "an entry takes effect once: its number is used up"
        );
        self.queue.arrivals += 1;
        self.queue.index.insert(&row);
        self.queue.tasks.insert(id, row);
        id
    }
}

impl Row {
    /// Custody ends with the task.
    pub(super) fn drop_ended_custody(&mut self) {
        if !self.state().is_open() {
            self.standing.custody = None;
        }
    }
}

/// Committed above the height that its author allowed.
fn is_expired(at: At<'_>, header: &EntryHeader) -> bool {
    at.global_height > header.not_after_height
}

fn is_operators(action: &Action) -> bool {
    matches!(
        action,
        Action::Cancel { .. }
            | Action::ForceRequeue { .. }
            | Action::Requeue {
                cause: Cause::Operator,
                ..
            }
    )
}

/// An entry on a task that is another cluster's: no verdict of this cluster counts for it.
fn foreign(at: At<'_>) -> Verdict {
    match at.entry.verdict {
        Verdict::Rejected(reason) => Verdict::Rejected(reason),
        Verdict::Granted | Verdict::Late => Verdict::Rejected(Reason::NotInCustody),
    }
}

fn or_rejected(decision: Result<(), Reason>) -> Verdict {
    decision.map_or_else(Verdict::Rejected, |()| Verdict::Granted)
}
