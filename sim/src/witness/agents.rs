//! What agents apply and close, when they lead, and what the disks of their logs hold.

use std::collections::BTreeMap;

use bytes::Bytes;
use cluster_agent::{
    agent::AgentHandle,
    raft::{RaftRole, store::record_leader},
};
use common::ids::{BatchSeq, ClusterId, Digest, LogIndex, LogPosition, NodeIdx, Term};

use super::Witness;
use crate::{
    checkers::{LogTail, Observation},
    fleet::CrashSwitch,
    ports::{Kept, SimLog},
    runtime::Process,
    trace::Event,
};

/// What was told of them.
#[derive(Default)]
pub(super) struct Known {
    logs: BTreeMap<ClusterId, Vec<(String, SimLog)>>,
    /// Batches whose entries were told already.
    closed: BTreeMap<(ClusterId, BatchSeq), Digest>,
    /// Highest index that was applied in each cluster.
    committed: BTreeMap<ClusterId, LogIndex>,
}

/// Records at the end of each log that are compared.
const TAIL: usize = 96;

impl Witness {
    /// An agent reaches a majority of its cluster, or no longer.
    pub fn side(&self, agent: &str, cluster: ClusterId, has_majority: bool) {
        self.see(&Observation::Side {
            agent: agent.to_owned(),
            cluster,
            has_majority,
        });
    }

    /// Makes a log known, to be looked at when something is acknowledged.
    pub fn watch_log(&self, cluster: ClusterId, agent: String, log: SimLog) {
        self.lock().agents.logs.entry(cluster).or_default().push((agent, log));
    }

    /// Disks of a cluster that hold one record at `index`, or purged it, or did so when they were lost, and how many there
    /// are. The record is that of
    /// the `applier`; without one, or without a record on its disk, the one that most of them hold.
    #[must_use]
    pub fn copies(&self, cluster: ClusterId, applier: Option<&str>, index: LogIndex) -> (usize, usize) {
        let inner = self.lock();
        let logs = inner.agents.logs.get(&cluster).map_or(&[][..], Vec::as_slice);
        let mut equal: BTreeMap<Bytes, usize> = BTreeMap::new();
        let mut own = None;
        let mut purged = 0;
        for (name, log) in logs {
            match log.kept_or_lost(index) {
                Kept::Record(bytes) => {
                    if Some(name.as_str()) == applier {
                        own = Some(bytes.clone());
                    }
                    *equal.entry(bytes).or_default() += 1;
                }
                Kept::Purged => purged += 1,
                Kept::Nothing => {}
            }
        }
        let most = || equal.values().max().copied();
        let held = own.map_or_else(most, |own| equal.get(&own).copied());
        (held.unwrap_or(0) + purged, logs.len())
    }

    /// What the disk of `agent` has at the highest index that was applied in its cluster.
    fn held(&self, cluster: ClusterId, agent: &str) -> Option<LogPosition> {
        let inner = self.lock();
        let index = *inner.agents.committed.get(&cluster)?;
        let (_, log) = inner
            .agents
            .logs
            .get(&cluster)?
            .iter()
            .find(|(name, _)| name == agent)?;
        let Kept::Record(record) = log.kept(index) else {
            return None;
        };
        let (term, _) = record_leader(&record)?;
        Some(LogPosition { term, index })
    }

    /// Shows the ends of all logs.
    pub fn look_at_logs(&self) {
        let logs: Vec<_> = self
            .lock()
            .agents
            .logs
            .iter()
            .map(|(id, logs)| (*id, logs.clone()))
            .collect();
        for (cluster, logs) in logs {
            let logs = logs.into_iter().filter_map(|(agent, log)| tail(agent, &log)).collect();
            self.see(&Observation::Logs { cluster, logs });
        }
    }

    /// Follows what an agent applies and when it leads, as part of its process.
    /// `crash` ends the process behind an entry, before anything else of it takes a step.
    pub fn watch_agent(&self, process: &Process, agent: &AgentHandle, name: &str, idx: NodeIdx, crash: CrashSwitch) {
        // A new life is told before anything of it is.
        self.see(&Observation::Begins { agent: name.to_owned() });
        drop(process.spawn(self.clone().follow_applies(agent.clone(), name.to_owned(), idx, crash)));
        drop(process.spawn(self.clone().follow_elections(agent.clone(), name.to_owned())));
    }

    async fn follow_applies(self, agent: AgentHandle, name: String, idx: NodeIdx, crash: CrashSwitch) {
        let machine = agent.machine();
        let mut seen = 0;
        loop {
            machine.pulse().next(&mut seen).await;
            let (applied, closed) = machine.with(|state| {
                let queue = &state.queue;
                let applied = Observation::Applied {
                    agent: name.clone(),
                    cluster: queue.cluster(),
                    position: queue.applied().0,
                    digest: queue.digest(),
                    height: queue.global_height(),
                    root: queue.global().state_root(),
                };
                (applied, self.newly_closed(queue))
            });
            if let Observation::Applied { digest, .. } = &applied {
                self.trace.record(Event::Applied, idx.0, idx.0, &[&digest.0]);
            }
            self.lock().applies += 1;
            self.see(&applied);
            self.tell_committed(&applied);
            if crash.take() {
                Process::current().kill();
            }
            for batch in &closed {
                self.see(batch);
            }
        }
    }

    /// An index that nobody of the cluster stood at before.
    fn tell_committed(&self, applied: &Observation) {
        let Observation::Applied {
            agent,
            cluster,
            position,
            ..
        } = applied
        else {
            return;
        };
        let highest = self.lock().agents.committed.insert(*cluster, position.index);
        if let Some(highest) = highest.filter(|highest| *highest >= position.index) {
            self.lock().agents.committed.insert(*cluster, highest);
            return;
        }
        let (copies, voters) = self.copies(*cluster, Some(agent), position.index);
        self.see(&Observation::Committed {
            agent: agent.clone(),
            cluster: *cluster,
            index: position.index,
            copies,
            voters,
        });
    }

    /// Batches in the outbox that were not told before.
    fn newly_closed(&self, queue: &cluster_core::queue::ClusterQueue) -> Vec<Observation> {
        let (cluster, chain) = (queue.cluster(), *queue.chain_id());
        let mut inner = self.lock();
        let mut new = Vec::new();
        for batch in queue.batcher().outbox().rev() {
            let seq = batch.header.seq;
            if inner.agents.closed.insert((cluster, seq), batch.digest) == Some(batch.digest) {
                break;
            }
            new.push(Observation::Closed {
                cluster,
                seq,
                digest: batch.digest,
                entries: batch.entries.iter().map(|row| row.id(&chain)).collect(),
            });
        }
        new.reverse();
        new
    }

    async fn follow_elections(self, agent: AgentHandle, name: String) {
        let raft = agent.raft();
        let changes = raft.leader_changes();
        let cluster = agent.machine().with(|state| state.queue.cluster());
        let mut led = Term(0);
        loop {
            let seen = changes.version();
            // The whole status is dear, and most changes are heartbeats.
            if raft.is_leader() {
                let status = raft.status();
                if status.role == RaftRole::Leader && status.term != led {
                    led = status.term;
                    self.see(&Observation::Stands {
                        agent: name.clone(),
                        term: status.term,
                        is_leader: true,
                    });
                    self.see(&Observation::Leads {
                        agent: name.clone(),
                        cluster,
                        term: status.term,
                        last_index: status.last_index,
                        held: self.held(cluster, &name),
                    });
                }
            }
            changes.changed(seen).await;
        }
    }
}

fn tail(agent: String, log: &SimLog) -> Option<LogTail> {
    let (first, records) = log.tail(TAIL)?;
    Some(LogTail { agent, first, records })
}
