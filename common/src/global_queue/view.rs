//! What can be asked of the state.

use super::{Cursor, GlobalQueue, HistoryEvent, Row, row::StreamKey};
use crate::{
    codec::Label,
    entry::EntryHeader,
    genesis::Genesis,
    ids::EntryId,
    ids::{BatchSeq, BlockTime, ClusterId, DeviceId, Digest, EntryNumber, Founding, Height, KeyVersion, TaskId},
    number_stream::{Lookup, content_tag},
    registry::Registry,
    task::TaskState,
    verdict::{Answer, Verdict},
    wire::op::{EventView, Finality, HolderView, TaskView},
};

impl GlobalQueue {
    /// Height of the last block applied; 0 before the first.
    #[must_use]
    pub fn height(&self) -> Height {
        self.height
    }

    /// Time of that block.
    #[must_use]
    pub fn time(&self) -> BlockTime {
        self.time
    }

    /// Digest of that block's header; [`genesis_digest`](crate::block::genesis_digest) before the first.
    #[must_use]
    pub fn tip(&self) -> Digest {
        self.tip
    }

    /// Root of the state. Stands in the header [`ROOT_LAG`](crate::limits::ROOT_LAG) above.
    #[must_use]
    pub fn state_root(&self) -> Digest {
        self.root
    }

    /// Who is who.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The genesis file it began with.
    #[must_use]
    pub fn genesis_file(&self) -> &Genesis {
        &self.genesis
    }

    /// All clusters, ascending.
    pub fn clusters(&self) -> impl Iterator<Item = ClusterId> + use<> {
        (0..self.cursors.len() as u32).map(ClusterId)
    }

    /// How far a cluster's batches are executed.
    #[must_use]
    pub fn cursor(&self, cluster: ClusterId) -> Option<&Cursor> {
        self.cursors.get(cluster.0 as usize)
    }

    /// Founding and sequence number of the batch that is next of a cluster.
    #[must_use]
    pub fn next_batch(&self, cluster: ClusterId) -> Option<(Founding, BatchSeq)> {
        self.cursor(cluster).map(|cursor| (cursor.founding, cursor.next_seq))
    }

    /// One task.
    #[must_use]
    pub fn task(&self, id: &TaskId) -> Option<&Row> {
        self.tasks.get(id)
    }

    /// At most `limit` tasks above `after`, in order of their ids.
    pub fn tasks(&self, after: Option<TaskId>, limit: usize) -> impl Iterator<Item = &Row> {
        self.tasks.iter_after(after).map(|(_, row)| row).take(limit)
    }

    /// How many tasks are kept.
    #[must_use]
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// Tasks by state, in the order of [`TaskState::ALL`], those that left included.
    #[must_use]
    pub fn counts_by_state(&self) -> [u32; 10] {
        let mut counts = self.index.counts();
        for (count, left) in counts.iter_mut().zip(self.left) {
            *count = count.saturating_add(u32::try_from(left).unwrap_or(u32::MAX));
        }
        counts
    }

    /// Open tasks in a cluster's custody or of its own, in order of their ids.
    pub fn open_tasks_of(&self, cluster: ClusterId) -> impl Iterator<Item = &Row> {
        self.index
            .open_of(cluster)
            .map(|id| self.tasks.get(&id).expect("indexed rows exist"))
    }

    /// The highest number used in a stream, 0 if none.
    #[must_use]
    pub fn highest_number(&self, author: DeviceId, key_version: KeyVersion, cluster: ClusterId) -> EntryNumber {
        let key = StreamKey {
            author,
            key_version,
            cluster,
        };
        self.streams
            .get(&key)
            .map_or(EntryNumber(0), |row| row.stream.highest())
    }

    /// What was decided about an entry, as long as its stream remembers it.
    #[must_use]
    pub fn answer_to(&self, header: &EntryHeader, id: EntryId) -> Option<Answer> {
        let key = StreamKey {
            author: header.author,
            key_version: header.key_version,
            cluster: header.cluster,
        };
        let lookup = self
            .streams
            .get(&key)?
            .stream
            .lookup(header.number, content_tag(&Digest(id.0)));
        match lookup {
            Lookup::Repeated(answer) => Some(answer),
            Lookup::Fresh | Lookup::Conflict | Lookup::OutsideWindow => None,
        }
    }

    /// One task, as finalized blocks say.
    #[must_use]
    pub fn view(&self, id: &TaskId) -> Option<TaskView> {
        self.tasks.get(id).map(|row| self.view_of(row))
    }

    /// The view of a row of this state.
    #[must_use]
    pub fn view_of(&self, row: &Row) -> TaskView {
        let life = &row.standing.life;
        let is_held = row.state().is_held() || row.state() == TaskState::Unknown;
        TaskView {
            id: row.id,
            author: row.submitted.author,
            scope: row.scope(),
            through: row.submitted.through,
            task: row.task().clone(),
            state: row.state(),
            cluster: row.standing.cluster,
            custody_until: self.custody_until(row),
            holder: life.holder.filter(|_| is_held).map(|holder| HolderView {
                device: holder.device,
                fence: holder.fence,
            }),
            attempts: life.attempts,
            percent: life.percent,
            finality: self.finality_of(row),
        }
    }

    /// How final the newest event of a row is: where it stands, and what was decided.
    #[must_use]
    pub fn finality_of(&self, row: &Row) -> Finality {
        let newest = row.standing.events.last();
        Finality::Final {
            height: newest.map_or(self.height, |event| event.height),
            verdict: newest.map_or(Verdict::Granted, |event| event.verdict),
        }
    }

    /// Events of a task, in order; empty if it is not known.
    #[must_use]
    pub fn history(&self, id: &TaskId) -> Vec<EventView> {
        self.tasks
            .get(id)
            .map(|row| row.standing.events.iter().map(|event| event_view(row, event)).collect())
            .unwrap_or_default()
    }
}

fn event_view(row: &Row, event: &HistoryEvent) -> EventView {
    let machine_cluster = match event.what {
        super::What::Machine(super::MachineEvent::Assigned { cluster, .. }) => Some(cluster),
        _ => row.standing.cluster,
    };
    EventView {
        entry: event.entry.map(|entry| entry.id),
        what: Label::new(event.what.word()).expect("our words are short and plain"),
        author: event.entry.map(|entry| entry.author),
        cluster: event.entry.map_or(machine_cluster, |entry| Some(entry.cluster)),
        index: event.entry.map(|entry| entry.index),
        height: Some(event.height),
        verdict: event.verdict,
        state: event.state,
        note: event.note.clone(),
    }
}
