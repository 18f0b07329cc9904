//! What holds of a state between two entries.

use common::{ids::TaskId, task::Scope};

use super::{CLAIMS_PER_DEVICE_MAX, ClusterQueue, Derived, KeyRow, TaskRow};

fn check(holds: bool, what: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(what) }
}

impl ClusterQueue {
    /// Checks everything that must hold between two entries. Run after every step in tests and in
    /// the simulator, and on every snapshot that arrives.
    ///
    /// # Errors
    /// A phrase that says what is broken.
    pub fn check_invariants(&self) -> Result<(), &'static str> {
        let state = &self.state;
        state.batcher.check_invariants(&state.chain_id)?;
        self.check_cursors()?;
        check(
            state.roots.newest() == self.global.state_root(),
            "the newest root is not that of the global queue",
        )?;
        check(
            self.derived == Derived::of(state),
            "what is derived from the rows differs from them",
        )?;
        self.check_retired()?;
        for (task, row) in state.rows.iter() {
            self.check_row(task, row)?;
        }
        self.check_holders()?;
        let mut keys = state.keys.values();
        check(
            keys.all(|key| key.left.is_none() == state.rows.contains_key(&key.task)),
            "a task key does not know whether its row has left",
        )
    }

    /// The outbox begins where the global queue ends.
    fn check_cursors(&self) -> Result<(), &'static str> {
        let batcher = &self.state.batcher;
        let cursor = self
            .global
            .cursor(self.state.cluster)
            .ok_or("the global queue does not know this cluster")?;
        let last = batcher.last_final();
        check(
            cursor.founding == self.state.founding,
            "the global queue is of another founding",
        )?;
        check(
            (cursor.next_seq, cursor.last_digest, cursor.cut.index) == (last.seq.next(), last.digest, last.cut),
            "the outbox does not begin where the global queue ends",
        )?;
        let first = batcher.outbox().next().map(|batch| batch.header.roster);
        check(
            first.unwrap_or_else(|| batcher.roster_before().digest()) == cursor.roster_digest,
            "the first batch that is not final is under another roster than the global queue's",
        )
    }

    fn check_retired(&self) -> Result<(), &'static str> {
        let state = &self.state;
        let mut retired = state.retired.iter();
        check(
            retired.all(|(task, _)| !state.rows.contains_key(task)),
            "a row has left and is here",
        )?;
        let mut retired = state.retired.iter();
        check(
            retired.all(|(task, _)| self.global.task(task).is_some()),
            "the state is kept of a task that the global queue has dropped",
        )
    }

    fn check_row(&self, task: &TaskId, row: &TaskRow) -> Result<(), &'static str> {
        let state = &self.state;
        check(row.changed_at <= state.applied.index, "a row was changed in the future")?;
        if row.scope == Scope::Cluster {
            check(
                row.cluster == Some(state.cluster) && row.assignment.0 == 0,
                "a cluster-scope task is elsewhere",
            )?;
            let key = KeyRow {
                task: *task,
                content: row.content,
                left: None,
            };
            check(
                state.keys.get(&(row.author, row.task.key.clone())) == Some(&key),
                "a cluster-scope task is missing among the keys",
            )?;
        }
        if !row.state().is_held() {
            return Ok(());
        }
        let holder = row.holder().ok_or("a held task has no holder")?;
        if row.cluster != Some(state.cluster) {
            return Ok(());
        }
        let claims = state.holders.get(&holder.device).map(|holder| &holder.claims);
        check(
            claims.is_some_and(|claims| claims.contains(task)),
            "a holder does not know its claim",
        )?;
        check(
            holder.fence.assignment == row.assignment && holder.fence.index <= state.applied.index,
            "a fence is not of this log",
        )
    }

    fn check_holders(&self) -> Result<(), &'static str> {
        let state = &self.state;
        let rows = state.rows.values();
        let held = rows.filter(|row| row.state().is_held() && row.cluster == Some(state.cluster));
        let claims: usize = state.holders.values().map(|holder| holder.claims.len()).sum();
        check(claims == held.count(), "a holder has a claim that no row names")?;
        let mut holders = state.holders.values();
        check(
            holders.all(|holder| holder.claims.len() <= CLAIMS_PER_DEVICE_MAX),
            "a device holds too many tasks",
        )
    }
}
