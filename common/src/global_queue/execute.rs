//! Executes the references of one block, entry by entry.

use std::sync::Arc;

use super::{
    BlockOutcome, Cursor, Evidence, GlobalQueue, MachineEvent, Outcome, RowFault,
    outcome::outcome_root,
    plan::{ExecutePlan, RefPlan, is_good_roster},
    row::{
        EventEntry, HistoryEvent, NOTE_BYTES_MAX, Row, Standing, StreamKey, StreamRow, Submitted, TaskKeyId,
        TaskKeyRow, What,
    },
};
use crate::{
    batch::{BatchEntry, BatchItem},
    block::{BatchRef, Block},
    codec::Blob,
    entry::life::Life,
    entry::{Action, Cause, EntryHeader, SignatureOracle, SignedEntry},
    genesis::RoleSet,
    ids::{Assignment, BlockTime, Digest, EntryId, Height, TaskId},
    number_stream::{Lookup, NumberStream, content_tag},
    registry::{Member, Status},
    task::{Scope, TaskState},
    verdict::{Answer, Reason, Verdict},
};

/// One block on its way through the state.
pub(super) struct Execution<'q> {
    pub(super) queue: &'q mut GlobalQueue,
    pub(super) height: Height,
    pub(super) time: BlockTime,
    outcomes: Vec<Outcome>,
    evidence: Vec<Evidence>,
}

/// A row of a batch, with where it stands.
#[derive(Clone, Copy)]
struct At<'a> {
    batch: &'a BatchRef,
    global_height: Height,
    reference: u32,
    row: u32,
    id: EntryId,
    entry: &'a BatchEntry,
}

impl<'q> Execution<'q> {
    /// Moves the state's height and clock on to `block`.
    pub(super) fn begin(queue: &'q mut GlobalQueue, block: &Block) -> Self {
        let (height, time) = (block.header.height, block.header.time);
        queue.move_clock(time);
        queue.height = height;
        queue.tip = block.digest();
        Self {
            queue,
            height,
            time,
            outcomes: Vec::new(),
            evidence: Vec::new(),
        }
    }

    /// Executes one reference, or records why not.
    pub(super) fn reference(&mut self, plan: RefPlan<'_>, oracle: &mut impl SignatureOracle) {
        let reference = plan.position;
        match plan.decision {
            Err(reason) => {
                self.push(Outcome::Batch {
                    reference,
                    stale: Some(reason),
                });
            }
            Ok(execute) => {
                self.push(Outcome::Batch { reference, stale: None });
                self.batch(reference, &plan.reference, execute, oracle);
            }
        }
    }

    fn batch(&mut self, reference: u32, named: &BatchRef, plan: ExecutePlan<'_>, oracle: &mut impl SignatureOracle) {
        let header = plan.batch.header();
        if header.global_height > self.cursor_mut(named).global_height {
            self.end_clusters_own(named.cluster, header.global_height);
        }
        for ((row, entry), id) in (0u32..).zip(plan.batch.entries()).zip(plan.ids) {
            self.row(
                At {
                    batch: named,
                    global_height: header.global_height,
                    reference,
                    row,
                    id,
                    entry,
                },
                oracle,
            );
        }
        let (time, contact_at_us) = (self.time, self.queue.custody_clock_us());
        let cursor = self.cursor_mut(named);
        cursor.next_seq = header.seq.next();
        cursor.last_digest = named.digest;
        cursor.roster = plan.next_roster;
        cursor.roster_digest = header.next_roster;
        cursor.cut = header.cut;
        cursor.global_height = header.global_height;
        // Contact renews the custody of everything the cluster holds: see `custody_until`.
        cursor.last_contact = Some(time);
        cursor.contact_at_us = contact_at_us;
    }

    fn cursor_mut(&mut self, named: &BatchRef) -> &mut Cursor {
        &mut Arc::make_mut(&mut self.queue.cursors)[named.cluster.0 as usize]
    }

    fn row(&mut self, at: At<'_>, oracle: &mut impl SignatureOracle) {
        match &at.entry.item {
            BatchItem::Author(entry) => self.author_entry(at, entry, oracle),
            BatchItem::Roster(change) => {
                let is_good = is_good_roster(&self.queue.registry, at.batch.cluster, &change.roster);
                if !is_good {
                    self.accuse(at, RowFault::BadRoster);
                }
                let verdict = match at.entry.verdict {
                    Verdict::Granted if !is_good => Verdict::Rejected(Reason::Malformed),
                    verdict => verdict,
                };
                self.entry_outcome(at, None, verdict);
            }
        }
    }

    fn author_entry(&mut self, at: At<'_>, entry: &SignedEntry, oracle: &mut impl SignatureOracle) {
        if let Err((reason, fault)) = self.check_static(at, entry, oracle) {
            self.accuse(at, fault);
            self.entry_outcome(at, None, Verdict::Rejected(reason));
            return;
        }
        let header = &entry.header;
        let stream = StreamKey {
            author: header.author,
            key_version: header.key_version,
            cluster: header.cluster,
        };
        let tag = content_tag(&Digest(at.id.0));
        let lookup = self
            .queue
            .streams
            .get(&stream)
            .map_or(Lookup::Fresh, |row| row.stream.lookup(header.number, tag));
        let about = header.action.task().unwrap_or(at.id.into());
        let verdict = match lookup {
            Lookup::Repeated(answer) => answer.verdict,
            Lookup::Conflict => Verdict::Rejected(Reason::Conflict),
            Lookup::OutsideWindow => Verdict::Rejected(Reason::NumberWindow),
            Lookup::Fresh => {
                let verdict = self.judge(at, entry);
                let index = at.entry.index;
                self.queue.use_number(stream, header, tag, Answer { index, verdict });
                self.event(at, entry, about, verdict);
                // Links follow what was decided, after it in the block's outcomes.
                self.follow(about);
                return;
            }
        };
        self.entry_outcome(at, Some(about), verdict);
    }

    /// What is true of the entry for ever, under the key of this state.
    fn check_static(
        &self,
        at: At<'_>,
        entry: &SignedEntry,
        oracle: &mut impl SignatureOracle,
    ) -> Result<(), (Reason, RowFault)> {
        let header = &entry.header;
        if header.cluster != at.batch.cluster {
            return Err((Reason::WrongCluster, RowFault::WrongCluster(header.cluster)));
        }
        if matches!(header.action, Action::Renew { .. }) {
            return Err((Reason::Malformed, RowFault::Renewal));
        }
        entry
            .check_shape()
            .map_err(|fault| (Reason::Malformed, RowFault::Static(fault)))?;
        let registry = &self.queue.registry;
        let key = registry
            .key(&header.author, header.key_version)
            .ok_or((Reason::UnknownKey, RowFault::UnknownKey))?;
        if !oracle.is_signed_by(entry, registry.chain(), key) {
            let fault = RowFault::Static(crate::entry::StaticFault::BadSignature);
            return Err((Reason::Malformed, fault));
        }
        Ok(())
    }

    /// Decides a statically good entry that was not seen before, and applies it if it is granted.
    fn judge(&mut self, at: At<'_>, entry: &SignedEntry) -> Verdict {
        let header = &entry.header;
        if header.action == Action::Submit {
            return match header.scope {
                Scope::Cluster => self.submit_to_cluster(at, entry),
                Scope::Fleet => or_rejected(self.submit_to_fleet(at, entry)),
            };
        }
        let task = header.action.task().expect("only Submit and Renew name no task");
        let Some(row) = self.queue.tasks.get(&task) else {
            return match at.entry.verdict {
                Verdict::Rejected(reason) => Verdict::Rejected(reason),
                Verdict::Granted | Verdict::Late => Verdict::Rejected(Reason::UnknownTask),
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
        let may_cancel_own = is_own && matches!(header.action, Action::Cancel { .. });
        if !may_cancel_own && !member.roles.contains(RoleSet::OP_TASK) {
            return Err(Reason::Denied);
        }
        if is_expired(at, header) {
            return Err(Reason::Expired);
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
        if let Some(known) = self.queue.task_keys.get(&key).map(|row| row.task) {
            let row = self.queue.tasks.get(&known).expect("every task key names a row");
            return Err(if row.submitted.content == header.payload_hash {
                Reason::DuplicateOf(known)
            } else {
                Reason::KeyConflict(known)
            });
        }
        let id = self.create(at, entry);
        self.queue.task_keys.insert(key, TaskKeyRow { key, task: id });
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
            links_open: 0,
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

    /// Records the decision about an entry, in the outcomes and in its task's history.
    fn event(&mut self, at: At<'_>, entry: &SignedEntry, about: TaskId, verdict: Verdict) {
        let outcome = self.entry_outcome(at, Some(about), verdict);
        let height = self.height;
        let Some(row) = self.queue.tasks.get_mut(&about) else {
            return;
        };
        let header = &entry.header;
        let note_len = match header.action {
            Action::Submit => 0,
            _ => entry.payload.len().min(NOTE_BYTES_MAX),
        };
        let state = row.state();
        row.record(HistoryEvent {
            height,
            outcome,
            what: What::of(&header.action).expect("a renewal is no event"),
            entry: Some(EventEntry {
                id: at.id,
                author: header.author,
                cluster: at.batch.cluster,
                founding: at.entry.founding,
                index: at.entry.index,
                reference: at.reference,
                row: at.row,
            }),
            verdict,
            state,
            note: Blob::try_from(entry.payload[..note_len].to_vec()).expect("cut at the bound"),
        });
    }

    fn entry_outcome(&mut self, at: At<'_>, about: Option<TaskId>, verdict: Verdict) -> u32 {
        let row = about.and_then(|id| self.queue.tasks.get(&id));
        let (task, state) = (row.map(|row| row.id), row.map(Row::state));
        self.push(Outcome::Entry {
            reference: at.reference,
            row: at.row,
            id: at.id,
            task,
            verdict,
            state,
        })
    }

    /// Records a decision of the machinery that was applied to a row.
    pub(super) fn machine_event(&mut self, task: TaskId, what: MachineEvent) {
        let row = self.queue.tasks.get(&task).expect("the event was applied to this row");
        let state: TaskState = row.state();
        let outcome = self.push(Outcome::Machine { task, what, state });
        let height = self.height;
        let row = self.queue.tasks.get_mut(&task).expect("just read");
        row.record(HistoryEvent {
            height,
            outcome,
            what: What::Machine(what),
            entry: None,
            verdict: Verdict::Granted,
            state,
            note: Blob::new(),
        });
    }

    fn push(&mut self, outcome: Outcome) -> u32 {
        self.outcomes.push(outcome);
        (self.outcomes.len() - 1) as u32
    }

    fn accuse(&mut self, at: At<'_>, fault: RowFault) {
        self.evidence.push(Evidence {
            batch: *at.batch,
            row: at.row,
            id: at.id,
            fault,
        });
    }

    /// Digests of what changed.
    pub(super) fn finish(self) -> BlockOutcome {
        self.queue.refresh();
        BlockOutcome {
            height: self.height,
            outcome_root: outcome_root(&self.outcomes),
            outcomes: self.outcomes,
            state_root: self.queue.state_root(),
            evidence: self.evidence,
        }
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

impl GlobalQueue {
    fn use_number(&mut self, key: StreamKey, header: &EntryHeader, tag: u64, answer: Answer) {
        if self.streams.get(&key).is_none() {
            let stream = NumberStream::default();
            self.streams.insert(key, StreamRow { key, stream });
        }
        let row = self.streams.get_mut(&key).expect("just made");
        row.stream.record(header.number, tag, answer);
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
