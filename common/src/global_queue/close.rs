//! What is judged after a block's references: deadlines, custody, assignment, and who leaves.
//!
//! # The custody clock
//! Custody of a task lasts until block time T. Contact of the cluster at block time t sets T to t + C.
//! If a block's time is more than C / 4 above its parent's, every custody grows by that gap: silence
//! of the validators is not silence of a cluster. Both are one clock that follows block time and
//! stands still over such gaps: T = (that clock at the last contact) + C + (sum of the gaps). So a
//! renewal is one field of the cluster's cursor, whatever the cluster holds.

use super::{Custody, GlobalQueue, MachineEvent, execute::Execution, row::Row};
use crate::{
    bug::{self, Bug},
    entry::transition::Event,
    ids::{BlockTime, ClusterId, Height, TaskId},
    task::Scope,
};

impl Execution<'_> {
    /// Everything that follows the references, in its order.
    pub(super) fn close(&mut self) {
        self.end_overdue();
        // Take-back of custody belongs here, between deadlines and assignment, and is not done yet:
        // `custody_until` of a task may lie in the past, is shown so, and a later contact renews it.
        // It will end custody by `Event::CustodyEnded`, count `assignment` up, and leave alone every
        // task whose vehicle cannot stop by itself.
        self.assign();
        self.dropped = self.queue.retire();
    }

    /// Ends waiting tasks whose deadline is below block time. Those of a cluster's own queue are only
    /// marked: its log ends them when it applies this block.
    fn end_overdue(&mut self) {
        for id in self.queue.index.overdue(self.time) {
            let row = self.queue.tasks.get(&id).expect("indexed rows exist");
            match row.scope() {
                // An earlier one of these may have ended it as its link.
                Scope::Fleet if !row.is_waiting() || bug::active(Bug::DeadlineIgnored) => {}
                Scope::Fleet => self.end_waiting(id, MachineEvent::Expired),
                Scope::Cluster => {
                    let mark = (self.height, MachineEvent::Expired);
                    self.queue.update(&id, |row| {
                        row.standing.ends_at.get_or_insert(mark);
                    });
                }
            }
        }
    }

    /// Ends what a cluster's log ended when it applied the blocks up to `height`.
    pub(super) fn end_clusters_own(&mut self, cluster: ClusterId, height: Height) {
        for id in self.queue.index.ending(cluster, height) {
            let row = self.queue.tasks.get(&id).expect("indexed rows exist");
            let marked = row.standing.ends_at.filter(|_| row.is_waiting());
            if let Some((_, what)) = marked {
                self.end_waiting(id, what);
            }
        }
    }

    fn end_waiting(&mut self, id: TaskId, what: MachineEvent) {
        let event = match what {
            MachineEvent::LinkedTaskEnded => Event::LinkedTaskEnded,
            MachineEvent::Expired | MachineEvent::Assigned { .. } => Event::DeadlinePassed,
        };
        self.queue.update(&id, |row| {
            row.standing
                .life
                .happen(event)
                .expect("the caller saw that the task waits: the table's row");
            row.drop_ended_custody();
        });
        self.machine_event(id, what);
        self.follow(id);
    }

    /// Places waiting tasks, by priority and arrival, with clusters in contact. What finds none waits
    /// for the next block.
    fn assign(&mut self) {
        let in_contact: Vec<ClusterId> = self
            .queue
            .clusters()
            .filter(|id| self.queue.is_in_contact(*id))
            .collect();
        if in_contact.is_empty() {
            return;
        }
        let waiting: Vec<TaskId> = self.queue.index.pool().collect();
        for id in waiting {
            let row = self.queue.tasks.get(&id).expect("indexed rows exist");
            if let Some(cluster) = self.queue.place(row, &in_contact) {
                self.assign_to(id, cluster);
            }
        }
    }

    fn assign_to(&mut self, id: TaskId, cluster: ClusterId) {
        let founding = self.queue.cursor(cluster).expect("a cluster in contact").founding;
        let (given_at_us, terms) = (self.queue.custody_clock_us(), self.queue.genesis.timing.lease);
        let assignment = self.queue.update(&id, |row| {
            row.standing
                .life
                .happen(Event::Assigned)
                .expect("what waits to be assigned is queued: the table's row");
            row.standing.cluster = Some(cluster);
            row.standing.custody = Some(Custody { founding, given_at_us });
            row.standing.assignment = row.standing.assignment.next();
            row.standing.terms = Some(terms);
            row.standing.assignment
        });
        self.machine_event(id, MachineEvent::Assigned { cluster, assignment });
    }
}

impl GlobalQueue {
    /// Moves the block time on; a long gap stretches every custody.
    pub(super) fn move_clock(&mut self, time: BlockTime) {
        let gap_us = time.0 - self.time.0;
        if gap_us > u64::from(self.genesis.timing.lease.custody_ms) * 1_000 / 4 {
            self.stretch_us += gap_us;
        }
        self.time = time;
    }

    /// The custody clock now, microseconds.
    pub(super) fn custody_clock_us(&self) -> u64 {
        self.time.0 - self.stretch_us
    }

    /// Until when, in block time, the task's cluster has custody of it if it is not heard of again;
    /// `None` if nobody has.
    #[must_use]
    pub fn custody_until(&self, row: &Row) -> Option<BlockTime> {
        let (custody, terms) = (row.standing.custody?, row.standing.terms?);
        let cursor = self.cursor(row.standing.cluster?)?;
        let renewed_at_us = if cursor.founding == custody.founding {
            cursor.contact_at_us.max(custody.given_at_us)
        } else {
            custody.given_at_us
        };
        Some(BlockTime(renewed_at_us.saturating_add(self.stretch_us)).plus_ms(u64::from(terms.custody_ms)))
    }

    /// Whether a batch or beat of the cluster was executed within the custody time before this block.
    #[must_use]
    pub fn is_in_contact(&self, cluster: ClusterId) -> bool {
        let custody_us = u64::from(self.genesis.timing.lease.custody_ms) * 1_000;
        self.cursor(cluster)
            .and_then(|cursor| cursor.last_contact)
            .is_some_and(|contact| self.time.0.saturating_sub(contact.0) <= custody_us)
    }

    /// Where a task goes: a cluster whose zone holds its first place, else any; of several the one
    /// with the fewest open tasks, then the lowest.
    fn place(&self, row: &Row, in_contact: &[ClusterId]) -> Option<ClusterId> {
        let task = row.task();
        let allowed = in_contact
            .iter()
            .filter(|id| task.constraints.cluster.is_none_or(|only| only == **id));
        let holds_place = |id: &ClusterId| {
            task.places.first().is_some_and(|place| {
                self.genesis.clusters[id.0 as usize]
                    .zones
                    .iter()
                    .any(|zone| zone.contains(place))
            })
        };
        allowed
            .min_by_key(|id| (!holds_place(id), self.index.open_count(**id), id.0))
            .copied()
    }
}
