//! What the queue answers to readers.

use common::{
    entry::{SignedEntry, life::Holder},
    global_queue::Row,
    ids::{DeviceId, EntryId, TaskId},
    task::{Scope, TaskState},
    verdict::{Answer, Verdict},
    wire::op::{EventView, HolderView, TaskView},
};

use super::{ClusterQueue, Held, TaskRow};

/// Encoded bytes of an answer that a number stream remembers, about.
const ANSWER_BYTES: u64 = 16;
/// The same of a number stream without its answers, and of a holder without its claims.
const STREAM_BYTES: u64 = 40;
/// The same of a claim in its holder's row.
const HELD_BYTES: u64 = 32;
/// The same of the state of a task whose row has left.
const RETIRED_BYTES: u64 = 33;
/// The same of a batch in the outbox without its rows: header, digest and roster.
const BATCH_BYTES: u64 = 320;

impl ClusterQueue {
    /// The row of a task: of this cluster's own tasks, and of fleet-scope tasks submitted through it
    /// or assigned to it.
    #[must_use]
    pub fn task_row(&self, task: &TaskId) -> Option<&TaskRow> {
        self.state.rows.get(task).map(|row| &**row)
    }

    /// All rows in order of their ids.
    pub fn task_rows(&self) -> impl DoubleEndedIterator<Item = (&TaskId, &TaskRow)> + ExactSizeIterator {
        self.state.rows.iter().map(|(task, row)| (task, &**row))
    }

    /// One task as a reader sees it.
    #[must_use]
    pub fn task_view(&self, task: &TaskId) -> Option<TaskView> {
        self.task_row(task).map(|row| self.view_of(task, row))
    }

    /// One task as the global queue says.
    #[must_use]
    pub fn global_task_view(&self, task: &TaskId) -> Option<TaskView> {
        self.global.task(task).map(|row| self.global_view_of(row))
    }

    /// The view of a row of the global queue.
    #[must_use]
    pub fn global_view_of(&self, row: &Row) -> TaskView {
        let mut view = self.global.view_of(row);
        view.finality = self.stated(view.finality);
        view
    }

    fn view_of(&self, task: &TaskId, row: &TaskRow) -> TaskView {
        let custody_until = match row.scope {
            Scope::Cluster => None,
            Scope::Fleet => self
                .global
                .task(task)
                .and_then(|global| self.global.custody_until(global)),
        };
        TaskView {
            id: *task,
            author: row.author,
            scope: row.scope,
            through: row.through,
            task: (*row.task).clone(),
            state: row.state(),
            cluster: row.cluster,
            custody_until,
            holder: row.holder().map(|holder| HolderView {
                device: holder.device,
                fence: holder.fence,
            }),
            attempts: row.life.attempts,
            percent: row.life.percent,
            finality: self.stated(row.finality),
        }
    }

    /// Tasks after `after` in order of their ids, at most `limit`, and whether there are more.
    /// `states`: only these; empty means all.
    #[must_use]
    pub fn task_views(&self, states: &[TaskState], after: Option<&TaskId>, limit: usize) -> (Vec<TaskView>, bool) {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(*after));
        let mut rows = self
            .state
            .rows
            .from(from)
            .filter(|(_, row)| states.is_empty() || states.contains(&row.state()));
        let views = rows
            .by_ref()
            .take(limit)
            .map(|(task, row)| self.view_of(task, row))
            .collect();
        (views, rows.next().is_some())
    }

    /// Tasks that a drone of this cluster could claim, the most urgent first: highest priority, then
    /// earliest deadline, then id. What on-board software looks through for work.
    #[must_use]
    pub fn claimable(&self, limit: usize) -> Vec<TaskId> {
        let unclaimed = self.derived.unclaimed.iter().map(|(_, _, task)| *task);
        unclaimed
            .filter(|task| {
                self.state
                    .rows
                    .get(task)
                    .is_some_and(|row| self.links_are_completed(task, row) && self.check_constraints(row).is_ok())
            })
            .take(limit)
            .collect()
    }

    /// All remembered events of a task: the final ones in the global order, then those of this log
    /// that are not final yet. Without heights if the global queue here is refuted.
    #[must_use]
    pub fn history(&self, task: &TaskId) -> Vec<EventView> {
        let mut events = self.global.history(task);
        if self.is_global_refuted() {
            events.iter_mut().for_each(|event| event.height = None);
        }
        let pending = self.state.pending.get(task);
        events.extend(pending.iter().flat_map(|events| events.iter().cloned()));
        events
    }

    /// What was decided about `entry`, whose digest is `id`, as far as its task tells: also when its number has
    /// fallen below the window of remembered answers. `None`: it has no effect here. If its own event is
    /// forgotten, the index is the one at which its task changed last.
    #[must_use]
    pub fn effect_of(&self, entry: &SignedEntry, id: EntryId) -> Option<Answer> {
        let named = entry.header.action.task();
        let task = named.unwrap_or(TaskId::from(id));
        let events = self.history(&task);
        if let Some(event) = events.iter().find(|event| event.entry == Some(id)) {
            let (index, verdict) = (event.index?, event.verdict);
            return Some(Answer { index, verdict });
        }
        let row = self.known_row(&task).filter(|_| named.is_none())?;
        Some(Answer {
            index: row.changed_at,
            verdict: Verdict::Granted,
        })
    }

    /// Tasks by state, in the order of [`TaskState::ALL`], those whose rows have left included.
    #[must_use]
    pub fn counts(&self) -> [u32; 10] {
        let mut counts = self.derived.counts;
        for ((count, retired), gone) in counts.iter_mut().zip(self.derived.retired).zip(self.state.gone) {
            let gone = u32::try_from(gone).unwrap_or(u32::MAX);
            *count = count.saturating_add(retired).saturating_add(gone);
        }
        counts
    }

    /// Open tasks with a row here.
    #[must_use]
    pub fn open_tasks(&self) -> u64 {
        let all = TaskState::ALL.iter().zip(self.derived.counts);
        all.filter(|(state, _)| state.is_open())
            .map(|(_, count)| u64::from(count))
            .sum()
    }

    /// Encoded bytes of everything that a snapshot carries and that grows: rows, events that are not
    /// final, task keys, number streams, holders, open batch, outbox, collected parts, and the global
    /// queue. Not far from a snapshot's length: half of it at least and twice at most, but for some
    /// kilobytes of what is small.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        let (state, derived) = (&self.state, &self.derived);
        let held = self.derived.counts.iter().zip(TaskState::ALL);
        let held: u64 = held
            .filter(|(_, state)| state.is_held())
            .map(|(count, _)| u64::from(*count))
            .sum();
        let collected: u64 = state.collected.bytes().map(|part| part.len() as u64).sum();
        derived.bytes
            + derived.pending_bytes
            + derived.key_bytes
            + derived.answers * ANSWER_BYTES
            + (state.streams.len() + state.holders.len()) as u64 * STREAM_BYTES
            + held * HELD_BYTES
            + state.retired.len() as u64 * RETIRED_BYTES
            + state.batcher.pending_bytes()
            + state.batcher.outbox().len() as u64 * BATCH_BYTES
            + collected
            + self.global.state_bytes()
    }

    /// The claim that holds `task` in this cluster.
    #[must_use]
    pub fn held(&self, task: &TaskId) -> Option<Held> {
        let row = self.state.rows.get(task)?;
        let holder = row.holder().filter(|_| row.cluster == Some(self.cluster()))?;
        Some(self.held_of(*task, row, &holder))
    }

    fn held_of(&self, task: TaskId, row: &TaskRow, holder: &Holder) -> Held {
        Held {
            task,
            scope: row.scope,
            device: holder.device,
            fence: holder.fence,
            renewed_at: self.renewed_at(holder),
            terms: row.terms,
            stops_by_itself: self
                .registry()
                .by_id(&holder.device)
                .is_some_and(|device| device.stops_by_itself),
        }
    }

    /// What `device` holds in this cluster, in order of task ids.
    pub fn held_by(&self, device: &DeviceId) -> impl Iterator<Item = Held> + '_ {
        let claims = self.state.holders.get(device).map(|holder| &holder.claims);
        claims.into_iter().flatten().filter_map(|task| self.held(task))
    }

    /// Everything held in this cluster, by holder and task.
    pub fn all_held(&self) -> impl Iterator<Item = Held> + '_ {
        let claims = self.state.holders.values().flat_map(|holder| &holder.claims);
        claims.filter_map(|task| self.held(task))
    }
}
