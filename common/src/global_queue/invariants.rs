//! What is true of every state, checked in full. For tests and the simulator.

use std::collections::BTreeSet;

use super::{EVENTS_PER_TASK_MAX, GlobalQueue, Row, index::Index, row::TaskKeyId};
use crate::task::{Scope, TaskState};

impl GlobalQueue {
    /// Checks the whole state against itself. Costs a pass over every row.
    ///
    /// # Panics
    /// With the broken sentence: a bug of ours.
    pub fn check_invariants(&self) {
        assert_eq!(
            self.root,
            self.state_root_from_scratch(),
            "the root is that of the contents"
        );
        let mut index = Index::new(self.cursors.len());
        let mut arrivals = BTreeSet::new();
        for (id, row) in self.tasks.iter() {
            assert_eq!(*id, row.id, "a row stands under its id");
            index.insert(row);
            self.check_row(row);
            assert!(arrivals.insert(row.standing.arrival), "tasks arrive one by one");
        }
        for (id, line) in self.retired.iter() {
            assert_eq!(*id, line.id, "a line stands under its id");
            assert!(self.tasks.get(id).is_none(), "{id} has left");
            assert!(!line.state.is_open(), "{id} had ended when it left");
            index.insert_retired(line.order, *id);
        }
        assert_eq!(index, self.index, "every index follows from the rows");
        assert_eq!(
            arrivals.len() as u64 + self.left(),
            self.arrivals,
            "every arrival is a row or left"
        );
        self.check_retention();
        self.check_task_keys();
        self.check_cursors();
    }

    fn check_row(&self, row: &Row) {
        let (standing, life, id) = (&row.standing, &row.standing.life, row.id);
        match row.scope() {
            Scope::Cluster => {
                assert_eq!(
                    standing.cluster,
                    Some(row.submitted.through),
                    "{id} never leaves its cluster"
                );
                assert_eq!(standing.assignment.0, 0, "{id} is never assigned");
                assert!(standing.custody.is_none(), "{id} is in nobody's custody");
                assert_ne!(row.state(), TaskState::Assigned, "{id} is never assigned");
            }
            Scope::Fleet => {
                let is_placed = row.state() == TaskState::Assigned || row.state().is_held();
                assert!(
                    !is_placed || standing.custody.is_some(),
                    "{id} is placed, so somebody has custody"
                );
                assert!(standing.ends_at.is_none(), "{id} is ended by no cluster's log");
            }
        }
        if standing.custody.is_some() {
            assert!(row.state().is_open(), "{id} is closed, so nobody has custody");
            assert!(
                standing.cluster.is_some() && standing.terms.is_some() && standing.assignment.0 > 0,
                "{id} in custody has a cluster, terms and a number"
            );
        }
        if let Some(terms) = &standing.terms {
            assert!(
                terms.check(&self.genesis.timing.clocks).is_ok(),
                "{id}: its lease ends within its custody"
            );
        }
        let must_have_holder = row.state().is_held() || row.state() == TaskState::Unknown;
        let must_not = row.is_waiting();
        assert!(!must_have_holder || life.holder.is_some(), "{id} is held by somebody");
        assert!(!must_not || life.holder.is_none(), "{id} waits, so nobody holds it");
        if let Some(holder) = life.holder.filter(|_| row.state().is_held()) {
            assert_eq!(
                holder.fence.assignment, standing.assignment,
                "{id}: the holder's token is the newest"
            );
        }
        for (at, linked) in row.task().after.iter().enumerate().filter(|_| row.state().is_open()) {
            let is_done = standing.links_done & (1 << at) != 0;
            if let Some((state, _, _)) = self.state_of(linked) {
                assert_eq!(is_done, state == TaskState::Completed, "{id} knows its open links");
            }
        }
        assert_eq!(
            standing.ended.is_some(),
            !row.state().is_open(),
            "{id} knows whether it ended"
        );
        assert!(
            standing.events.len() <= EVENTS_PER_TASK_MAX,
            "{id}: its history is bounded"
        );
        let newest = standing.events.last().expect("a row has at least its submission");
        assert_eq!(newest.state, row.state(), "{id}: its history leads to its state");
        assert!(
            standing.events.is_sorted_by_key(|event| (event.height, event.outcome)),
            "{id}: its history is in the order of the outcomes"
        );
    }

    fn check_task_keys(&self) {
        let fleet = self.tasks.iter().filter(|(_, row)| row.scope() == Scope::Fleet);
        let mut count = 0;
        for (id, line) in self.retired.iter() {
            if let Some(key) = line.key() {
                let known = self.task_keys.get(&key).expect("a fleet-scope task has its key");
                assert_eq!(known.task, *id, "one task key is one task");
                count += 1;
            }
        }
        for (id, row) in fleet {
            let key = TaskKeyId::of(&row.submitted.author, row.task());
            let known = self.task_keys.get(&key).expect("a fleet-scope task has its key");
            assert_eq!(known.task, *id, "one task key is one task");
            count += 1;
        }
        assert_eq!(count, self.task_keys.len(), "every task key has its task");
    }

    fn check_cursors(&self) {
        for (cluster, cursor) in self.clusters().zip(self.cursors.iter()) {
            assert_eq!(
                cursor.roster.digest(),
                cursor.roster_digest,
                "cluster {cluster}: the digest is the roster's"
            );
            assert!(cursor.next_seq.0 > 0, "cluster {cluster}: batches begin at 1");
            assert!(
                cursor.global_height < self.height || self.height.0 == 0,
                "cluster {cluster}: its log stood below the block that brought its batch"
            );
            assert!(
                cursor.last_contact.is_none_or(|contact| contact <= self.time),
                "cluster {cluster}: contact is not in the future"
            );
        }
        assert!(
            self.stretch_us <= self.time.0 - self.genesis.genesis_time.0,
            "gaps are part of the time that passed"
        );
    }
}
