//! What a finalized block does to the cluster's state.
//!
//! # Rules
//! * Upon the last part of the next block: the roots that it carries are compared with those computed here, and
//!   own batches with the outbox; a difference changes nothing but the recorded conflict. Otherwise the block
//!   is executed, a non-empty open batch closes at the height before it, and own batches in it leave the outbox.
//! * A fleet-scope row follows the global state for what is decided there: always when its assignment
//!   changed, when custody ended, and when no entry of this log about it waits to become final.
//!   While one waits, this log knows more of the holder than the global state does.
//! * A task that is assigned to this cluster gets a row.
//! * A fleet-scope `Submit` that was rejected ends its row.
//! * Waiting tasks of cluster scope that the global state has marked end here: deadline below a block's
//!   time, or a linked task elsewhere that ended otherwise than completed. A task that an entry of this log queued
//!   again is judged by its links anew when the global state has executed the entry.

use std::collections::{BTreeMap, BTreeSet};

use common::{
    batch::BatchItem,
    block::AdvancePart,
    entry::{SignatureOracle, transition::Event},
    global_queue::{BlockOutcome, MachineEvent, OrderedBatch, Outcome, Row},
    ids::{Height, LogIndex, LogPosition, TaskId},
    task::{Scope, TaskState},
    verdict::Verdict,
    wire::op::Finality,
};

use super::{Applied, ClusterQueue, Conflict, QueueEvent, TaskRow};
use crate::{
    Shared,
    batcher::{BatchConflict, OutboxBatch},
    global_view::{CheckedAdvance, Taken, check_joined},
};

impl ClusterQueue {
    pub(super) fn apply_part(
        &mut self,
        position: LogPosition,
        part: AdvancePart,
        oracle: &mut impl SignatureOracle,
        applied: &mut Applied,
    ) {
        if self.state.conflict.is_some() {
            return;
        }
        let next = self.global_height().next();
        let Taken::Complete(joined) = self.state.collected.take(next, &part) else {
            return;
        };
        let (cluster, chain) = (self.state.cluster, self.state.chain_id);
        if let Ok(advance) = check_joined(&joined, &part, cluster, &chain, &self.set) {
            self.apply_block(position, &advance, oracle, &mut applied.events);
        }
    }

    fn apply_block(
        &mut self,
        position: LogPosition,
        advance: &CheckedAdvance,
        oracle: &mut impl SignatureOracle,
        events: &mut Vec<QueueEvent>,
    ) {
        let block = &advance.finalized.block;
        if let Some(conflict) = self.other_roots(block) {
            return self.quarantine(conflict, events);
        }
        let own = match self.own_batches(advance) {
            Ok(own) => own,
            Err(conflict) => return self.quarantine(Conflict::Batch(conflict), events),
        };
        let batches: Vec<Option<OrderedBatch<'_>>> = (0..block.refs.len())
            .map(|at| match (&advance.batches[at], own.get(&at)) {
                (Some(batch), _) => OrderedBatch::finalized(&advance.finalized, at, &batch.header, &batch.entries),
                (None, Some(batch)) => OrderedBatch::finalized(&advance.finalized, at, &batch.header, &batch.entries),
                (None, None) => None,
            })
            .collect();
        let before = self.global_height();
        // Refused before anything changes: what the leader brought beside the header is bent, and another leader
        // may bring it whole; or a quorum finalized a block that does not follow ours, which shows a broken
        // assumption elsewhere. The view stays at its height and says so.
        let Ok(outcome) = self.global.apply(block, &batches, oracle) else {
            return;
        };
        let closed = self
            .state
            .batcher
            .close_before_block(position, before, &self.state.chain_id);
        self.state.roots.push(&outcome);
        events.extend(closed.map(QueueEvent::BatchClosed));
        let own_cut = self.take_final(outcome.height, events);
        self.follow(&outcome, &own, events);
        self.follow_dropped(&outcome.dropped);
        self.end_marked(position.index, events);
        self.retire();
        events.push(QueueEvent::BlockApplied {
            height: outcome.height,
            time: block.header.time,
            own_cut,
        });
    }

    /// The own batches that a block refers to and that are next, by position of the reference.
    fn own_batches(&self, advance: &CheckedAdvance) -> Result<BTreeMap<usize, Shared<OutboxBatch>>, BatchConflict> {
        let mut own = BTreeMap::new();
        let mut next = self.state.batcher.last_final().seq.next();
        for (at, named) in advance.finalized.block.refs.iter().enumerate() {
            let is_own = named.cluster == self.state.cluster && named.founding == self.state.founding;
            if is_own && named.seq == next {
                let batch = self.state.batcher.check_next_final(named.seq, named.digest)?;
                own.insert(at, batch.clone());
                next = next.next();
            }
        }
        Ok(own)
    }

    /// Takes out of the outbox what the global queue has executed. Returns the newest cut among it.
    fn take_final(&mut self, height: Height, events: &mut Vec<QueueEvent>) -> Option<LogIndex> {
        let cursor = self
            .global
            .cursor(self.state.cluster)
            .expect("the own cluster is in the genesis file");
        let (next, digest) = (cursor.next_seq, cursor.last_digest);
        let mut cut = None;
        while self.state.batcher.last_final().seq.next() < next {
            let batch = self.state.batcher.pop_final();
            cut = Some(batch.header.cut.index);
            events.push(QueueEvent::BatchFinal {
                seq: batch.header.seq,
                height,
            });
            self.forget_pending(&batch);
        }
        assert_eq!(
            self.state.batcher.last_final().digest,
            digest,
            "the outbox and the global queue follow one chain of batches"
        );
        cut
    }

    /// Events of a final batch stand in the global queue now.
    fn forget_pending(&mut self, batch: &OutboxBatch) {
        for row in &batch.entries {
            let BatchItem::Author(entry) = &row.item else {
                continue;
            };
            let task = match entry.header.action.task() {
                Some(task) => task,
                None => entry.id(&self.state.chain_id).into(),
            };
            if let Some(events) = self.state.pending.get_mut(&task) {
                let events = events.make_mut();
                let derived = &mut self.derived;
                events.retain(|event| {
                    let is_pending = event.index.is_some_and(|index| index > batch.header.cut.index);
                    if !is_pending {
                        derived.remove_event(&task, event);
                    }
                    is_pending
                });
                if events.is_empty() {
                    self.state.pending.remove(&task);
                }
            }
        }
    }

    /// Brings rows in line with what the block decided.
    fn follow(
        &mut self,
        outcome: &BlockOutcome,
        own: &BTreeMap<usize, Shared<OutboxBatch>>,
        events: &mut Vec<QueueEvent>,
    ) {
        let height = outcome.height;
        let mut touched: BTreeMap<TaskId, (Verdict, Option<TaskState>)> = BTreeMap::new();
        let mut entries = Vec::new();
        for outcome in &outcome.outcomes {
            match *outcome {
                Outcome::Batch { .. } => {}
                Outcome::Entry {
                    reference,
                    row,
                    id,
                    task,
                    verdict,
                    state,
                    ..
                } => {
                    let mut about = task;
                    if let Some(batch) = own.get(&(reference as usize)) {
                        entries.push((id, verdict));
                        about = about.or_else(|| task_of(batch, row));
                    }
                    // A rejected `Submit` made no task; its row here bears its id.
                    touched.insert(about.unwrap_or(TaskId::from(id)), (verdict, state));
                }
                Outcome::Machine { task, state, .. } => {
                    touched.insert(task, (Verdict::Granted, Some(state)));
                }
            }
        }
        if !entries.is_empty() {
            events.push(QueueEvent::EntriesFinal { height, entries });
        }
        for (task, (verdict, state)) in touched {
            self.follow_task(task, Finality::Final { height, verdict }, state, events);
        }
    }

    /// `state`: after the block, if there is such a task.
    fn follow_task(
        &mut self,
        task: TaskId,
        finality: Finality,
        state: Option<TaskState>,
        events: &mut Vec<QueueEvent>,
    ) {
        let final_cut = self.state.batcher.last_final().cut;
        let row = self.state.rows.get(&task);
        let global = self.global.task(&task);
        let new = match (row, global) {
            (None, Some(global)) => {
                let (new, state) = (self.adopted(global, finality), global.state());
                if new.is_none() {
                    self.follow_retired(task, state, events);
                }
                new
            }
            (Some(row), None) => without_global(row, finality, state, final_cut),
            (Some(row), Some(global)) => {
                let is_pending = row.changed_at > final_cut;
                let is_behind = row.assignment != global.standing.assignment
                    || (global.standing.custody.is_none() && row.state().is_open());
                let mut new = (**row).clone();
                if !is_pending {
                    new.finality = finality;
                }
                if row.scope == Scope::Fleet {
                    place(&mut new, global);
                    if is_behind || !is_pending {
                        new.life = global.standing.life.clone();
                    }
                }
                Some(new)
            }
            (None, None) => None,
        };
        if let Some(new) = new
            && self.state.rows.get(&task).is_none_or(|row| **row != new)
        {
            self.put_row(task, new, events);
        }
    }

    /// A row for a task that was assigned to this cluster and submitted elsewhere, or that was queued
    /// again after its row had left.
    fn adopted(&self, global: &Row, finality: Finality) -> Option<TaskRow> {
        let is_here = global.standing.custody.is_some() && global.standing.cluster == Some(self.state.cluster);
        let is_back = global.submitted.through == self.state.cluster && global.state().is_open();
        if global.scope() != Scope::Fleet || !(is_here || is_back) {
            return None;
        }
        Some(self.row_from(global, finality))
    }

    /// The row that the global state gives.
    pub(super) fn row_from(&self, global: &Row, finality: Finality) -> TaskRow {
        let submitted = &global.submitted;
        let mut row = TaskRow {
            author: submitted.author,
            scope: submitted.scope,
            through: submitted.through,
            content: submitted.content,
            task: Shared::new(submitted.task.clone()),
            life: global.standing.life.clone(),
            cluster: (submitted.scope == Scope::Cluster).then_some(submitted.through),
            assignment: global.standing.assignment,
            terms: self.genesis.timing.lease,
            finality,
            changed_at: LogIndex(0),
            // Of this cluster's own tasks only closed rows are made here; an entry that queues one again writes it.
            queued_at: Height(0),
        };
        if row.scope == Scope::Fleet {
            place(&mut row, global);
        } else if let Some(terms) = global.standing.terms {
            row.terms = terms;
        }
        row
    }

    /// Waiting tasks of cluster scope end if the global state has marked them by now: their deadline
    /// passed, or a linked task elsewhere ended otherwise than completed since they were queued last.
    ///
    /// The global state ends them just before the first batch that stood at this height, so both tiers
    /// judge every entry about them from one state.
    fn end_marked(&mut self, index: LogIndex, events: &mut Vec<QueueEvent>) {
        let time = self.global.time();
        let overdue = self
            .derived
            .deadlines
            .iter()
            .take_while(|(deadline, _)| *deadline < time);
        let candidates: BTreeSet<TaskId> = overdue
            .map(|(_, task)| *task)
            .chain(self.derived.linked.iter().copied())
            .collect();
        for task in candidates {
            let (Some(row), Some(global)) = (self.state.rows.get(&task), self.global.task(&task)) else {
                continue;
            };
            let Some(what) = global.standing.ends_above(row.queued_at) else {
                continue;
            };
            let event = match what {
                MachineEvent::LinkedTaskEnded => Event::LinkedTaskEnded,
                MachineEvent::Expired | MachineEvent::Assigned { .. } => Event::DeadlinePassed,
            };
            let mut row = TaskRow::clone(row);
            if row.life.happen(event).is_ok() {
                self.put_row(task, row, events);
                self.follow_links(task, index, events);
            }
        }
    }
}

/// Where the global tier placed a fleet-scope task.
fn place(row: &mut TaskRow, global: &Row) {
    row.assignment = global.standing.assignment;
    row.cluster = global.standing.cluster.filter(|_| global.standing.custody.is_some());
    if let Some(terms) = global.standing.terms {
        row.terms = terms;
    }
}

/// The task that an entry of a batch names.
fn task_of(batch: &OutboxBatch, row: u32) -> Option<TaskId> {
    match &batch.entries.get(row as usize)?.item {
        BatchItem::Author(entry) => entry.header.action.task(),
        BatchItem::Roster(_) => None,
    }
}

/// What becomes of a row that the global state does not have: a fleet-scope `Submit` that it rejected,
/// or a closed task that it has dropped, with this block perhaps.
fn without_global(row: &TaskRow, finality: Finality, state: Option<TaskState>, final_cut: LogIndex) -> Option<TaskRow> {
    let mut row = row.clone();
    if row.state().is_open() {
        if row.scope != Scope::Fleet {
            return None;
        }
        match state.filter(|state| !state.is_open()) {
            Some(state) => row.life.state = state,
            None => row.life.happen(Event::Cancel).ok()?,
        }
        (row.cluster, row.finality) = (None, finality);
    } else if row.changed_at <= final_cut {
        // What was decided elsewhere and came first stands, even where this log ended the task another way.
        row.life.state = state.filter(|state| !state.is_open()).unwrap_or(row.life.state);
        row.finality = finality;
    }
    Some(row)
}
