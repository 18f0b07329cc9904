//! Executes the references of one block, entry by entry.

use std::sync::Arc;

use super::{
    BlockOutcome, Cursor, Evidence, GlobalQueue, MachineEvent, Outcome, Retired, RowFault,
    outcome::outcome_root,
    plan::{ExecutePlan, RefPlan, is_good_roster},
    row::{EventEntry, HistoryEvent, NOTE_BYTES_MAX, Row, StreamKey, StreamRow, What},
};
use crate::{
    batch::{BatchEntry, BatchItem},
    block::{BatchRef, Block},
    codec::Blob,
    entry::{Action, EntryHeader, SignatureOracle, SignedEntry, StaticFault},
    ids::{BlockTime, Digest, EntryId, Height, TaskId},
    number_stream::{Lookup, NumberStream, content_tag},
    task::TaskState,
    verdict::{Answer, Reason, Verdict},
};

/// One block on its way through the state.
pub(super) struct Execution<'q> {
    pub(super) queue: &'q mut GlobalQueue,
    pub(super) height: Height,
    pub(super) time: BlockTime,
    outcomes: Vec<Outcome>,
    evidence: Vec<Evidence>,
    pub(super) dropped: Vec<Retired>,
}

/// A row of a batch, with where it stands.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) batch: &'a BatchRef,
    /// Height at which the cluster's log stood.
    pub(super) global_height: Height,
    pub(super) reference: u32,
    pub(super) row: u32,
    pub(super) id: EntryId,
    pub(super) entry: &'a BatchEntry,
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
            dropped: Vec::new(),
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
            let fault = RowFault::Static(StaticFault::BadSignature);
            return Err((Reason::Malformed, fault));
        }
        Ok(())
    }

    /// Records the decision about an entry, in the outcomes and in its task's history.
    fn event(&mut self, at: At<'_>, entry: &SignedEntry, about: TaskId, verdict: Verdict) {
        let outcome = self.entry_outcome(at, Some(about), verdict);
        let height = self.height;
        let Some(state) = self.queue.tasks.get(&about).map(Row::state) else {
            return;
        };
        let header = &entry.header;
        let note_len = match header.action {
            Action::Submit => 0,
            _ => entry.payload.len().min(NOTE_BYTES_MAX),
        };
        let event = HistoryEvent {
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
        };
        self.queue.update(&about, |row| row.record(event));
    }

    fn entry_outcome(&mut self, at: At<'_>, about: Option<TaskId>, verdict: Verdict) -> u32 {
        let task = about.filter(|id| self.queue.state_of(id).is_some());
        let state = task.and_then(|id| self.queue.state_of(&id)).map(|(state, _, _)| state);
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
        let event = HistoryEvent {
            height,
            outcome,
            what: What::Machine(what),
            entry: None,
            verdict: Verdict::Granted,
            state,
            note: Blob::new(),
        };
        self.queue.update(&task, |row| row.record(event));
    }

    fn push(&mut self, outcome: Outcome) -> u32 {
        self.outcomes.push(outcome);
        (self.outcomes.len() - 1) as u32
    }

    pub(super) fn accuse(&mut self, at: At<'_>, fault: RowFault) {
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
            dropped: self.dropped,
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
