//! Clusters that are cut off from the common history while others follow it.
//!
//! # Rules
//! * A cluster is behind by as much as the common state that its agents tell of is older than the youngest that any
//!   cluster tells of. When nothing becomes final anywhere, all grow old alike, and nobody is behind.
//! * It is an island from when it is behind by ten seconds until it is not any more.
//! * Nothing here is a violation: the story says what it wants to see.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use common::ids::{ClusterId, TaskId};

use crate::checkers::{Checker, Observation};

/// Behind by less it may only be slow.
const BEHIND_US: u64 = 10_000_000;

/// What islands of a run showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    /// How long a cluster was one, at most.
    pub(super) longest_us: u64,
    /// Tasks that clusters acknowledged while they were islands.
    pub(super) tasks: u64,
}

/// Looks out for islands.
#[derive(Default)]
pub(super) struct Lookout {
    /// The time of the common state that each cluster told of last.
    states_us: BTreeMap<ClusterId, u64>,
    /// Since when a cluster is an island.
    since_us: BTreeMap<ClusterId, u64>,
    tasks: BTreeSet<TaskId>,
    shown: Arc<Mutex<Shown>>,
}

impl Lookout {
    /// What it has seen, now and later.
    pub(super) fn shown(&self) -> Arc<Mutex<Shown>> {
        self.shown.clone()
    }
}

impl Checker for Lookout {
    fn name(&self) -> &'static str {
        "lookout"
    }

    fn observe(&mut self, now_us: u64, seen: &Observation) -> Result<(), String> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        match seen {
            Observation::Read {
                cluster,
                global_age_ms: Some(age_ms),
                ..
            } => {
                let state_us = now_us.saturating_sub(age_ms.saturating_mul(1_000));
                self.states_us.insert(*cluster, state_us);
                let newest_us = self.states_us.values().max().copied().unwrap_or(state_us);
                if newest_us - state_us < BEHIND_US {
                    self.since_us.remove(cluster);
                } else {
                    let since_us = *self.since_us.entry(*cluster).or_insert(now_us);
                    shown.longest_us = shown.longest_us.max(now_us - since_us);
                }
            }
            Observation::Acked {
                cluster,
                submitted: Some((task, _)),
                ..
            } if self.since_us.contains_key(cluster) => {
                self.tasks.insert(*task);
                shown.tasks = self.tasks.len() as u64;
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use common::{
        ids::{EntryId, Height, LogIndex},
        task::Scope,
        verdict::Verdict,
    };

    use super::*;

    fn read(cluster: u32, global_age_ms: Option<u64>) -> Observation {
        Observation::Read {
            agent: format!("c{}-1", cluster + 1),
            cluster: ClusterId(cluster),
            applied: LogIndex(1),
            staleness_ms: None,
            height: Height(1),
            global_age_ms,
        }
    }

    fn acked(cluster: u32, task: u8) -> Observation {
        Observation::Acked {
            agent: format!("c{}-1", cluster + 1),
            cluster: ClusterId(cluster),
            asked_us: 0,
            entry: EntryId([task; 32]),
            submitted: Some((TaskId([task; 32]), Scope::Cluster)),
            index: LogIndex(1),
            verdict: Verdict::Granted,
            copies: 2,
            voters: 3,
        }
    }

    fn shown(history: &[(u64, Observation)]) -> Shown {
        let mut lookout = Lookout::default();
        for (now_us, seen) in history {
            lookout.observe(*now_us, seen).unwrap();
        }
        *lookout.shown().lock().unwrap()
    }

    #[test]
    fn island_is_a_cluster_that_is_behind_another() {
        let history = [
            (1_000_000, read(0, Some(500))),
            (1_000_000, acked(0, 1)),
            (20_000_000, read(1, Some(1_000))),
            (20_100_000, read(0, Some(19_600))),
            (21_000_000, read(0, None)),
            (21_000_000, acked(0, 2)),
            (21_000_000, acked(0, 2)),
            (21_000_000, acked(1, 3)),
            (22_100_000, read(0, Some(21_600))),
            (23_000_000, read(0, Some(3_000))),
            (24_000_000, read(0, Some(4_000))),
            (24_000_000, acked(0, 4)),
        ];
        let longest_us = 2_000_000;
        assert_eq!(shown(&history), Shown { longest_us, tasks: 1 });
    }

    #[test]
    fn nobody_is_an_island_while_nothing_becomes_final() {
        let history = [
            (1_000_000, read(0, Some(0))),
            (1_000_000, read(1, Some(0))),
            (60_000_000, read(1, Some(59_000))),
            (60_000_000, acked(1, 1)),
            (61_000_000, read(0, Some(60_000))),
            (62_000_000, read(1, Some(61_000))),
        ];
        assert_eq!(shown(&history), Shown::default());
    }
}
