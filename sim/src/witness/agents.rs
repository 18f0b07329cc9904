//! What agents apply and close, when they lead, what they answer each other, and what the disks of their logs hold.

use std::collections::BTreeMap;

use bytes::Bytes;
use cluster_agent::{
    agent::AgentHandle,
    peers::MEMBER_BYTES,
    raft::{
        Pledge, RaftRole, RaftRpc, RaftStatus, pledge_of,
        store::{record_command, record_leader, record_vote},
    },
};
use common::{
    codec::decode,
    entry::LogEntry,
    ids::{BatchSeq, ChainId, ClusterId, Digest, EntryId, LogIndex, NodeIdx, Term},
    wire::frame::FrameKind,
};

use super::Witness;
use crate::{
    checkers::{LeaderId, LogTail, Observation},
    fleet::CrashSwitch,
    ports::{Kept, SimLog, SimSnapshots},
    runtime::Process,
    trace::Event,
};

/// What was told of them.
#[derive(Default)]
pub(super) struct Known {
    logs: BTreeMap<ClusterId, Vec<(String, SimLog)>>,
    /// Where members are in `logs`, and their snapshots.
    places: BTreeMap<NodeIdx, (ClusterId, usize, SimSnapshots)>,
    /// Answers to appends.
    append_answers: u64,
    /// Batches whose entries were told already.
    closed: BTreeMap<(ClusterId, BatchSeq), Digest>,
    /// Highest index that was applied in each cluster.
    committed: BTreeMap<ClusterId, LogIndex>,
}

impl Known {
    /// What each disk of a cluster has at `index`, or had there when it was lost.
    fn kept_at(&self, cluster: ClusterId, index: LogIndex) -> impl Iterator<Item = (&str, Kept)> {
        let logs = self.logs.get(&cluster).map_or(&[][..], Vec::as_slice);
        logs.iter()
            .map(move |(name, log)| (name.as_str(), log.kept_or_lost(index)))
    }

    /// The log of one member.
    fn log(&self, cluster: ClusterId, agent: &str) -> Option<&SimLog> {
        let mut logs = self.logs.get(&cluster)?.iter();
        logs.find(|(name, _)| name == agent).map(|(_, log)| log)
    }

    /// Votes on the disks of a cluster that nobody looked at.
    fn new_votes(&self, cluster: ClusterId) -> Vec<Observation> {
        let mut new = Vec::new();
        for (agent, log) in self.logs.get(&cluster).into_iter().flatten() {
            for (disk, vote) in log.take_new_votes() {
                let Some((term, member, is_elected)) = record_vote(&vote) else {
                    continue;
                };
                new.push(Observation::Backs {
                    agent: agent.clone(),
                    cluster,
                    disk,
                    candidate: LeaderId { term, member },
                    is_elected,
                });
            }
        }
        new
    }

    /// What a member pledged by an answer, and what its disk lacks of that.
    fn pledged(&self, member: NodeIdx, kind: FrameKind, request: &[u8], answer: &[u8]) -> Option<Observation> {
        let pledge = match kind {
            FrameKind::RaftLane => pledge_of(RaftRpc::Append, request, answer),
            FrameKind::RaftAppend => pledge_of(RaftRpc::Append, request.get(MEMBER_BYTES..)?, answer),
            _ => {
                let (rpc, request) = request.get(MEMBER_BYTES..)?.split_first()?;
                pledge_of(RaftRpc::from_code(*rpc)?, request, answer)
            }
        }?;
        let (cluster, place, snapshots) = self.places.get(&member)?;
        let (agent, log) = self.logs.get(cluster)?.get(*place)?;
        Some(Observation::Pledged {
            agent: agent.clone(),
            cluster: *cluster,
            term: pledge.vote.0,
            index: pledge.entry.map_or(LogIndex(0), |(.., index)| index),
            lacks: lacks(log, snapshots, &pledge),
        })
    }

    /// The highest index that was applied in a cluster, and whose record a member's disk has there.
    fn held(&self, cluster: ClusterId, agent: &str) -> Option<(LogIndex, LeaderId)> {
        let index = *self.committed.get(&cluster)?;
        match self.log(cluster, agent)?.kept(index) {
            Kept::Record(record) => Some((index, leader_of(&record)?)),
            Kept::Purged | Kept::Nothing => None,
        }
    }

    /// What the disks have at an index that `applier` was the first to apply. The record on its own disk counts; if there is
    /// none, the one that most of them hold.
    fn committed_at(&self, cluster: ClusterId, applier: &str, index: LogIndex) -> Observation {
        let mut equal: BTreeMap<Bytes, usize> = BTreeMap::new();
        let mut own = None;
        let (mut purged, mut voters) = (0, 0);
        for (name, kept) in self.kept_at(cluster, index) {
            voters += 1;
            match kept {
                Kept::Record(bytes) => {
                    if name == applier {
                        own = Some(bytes.clone());
                    }
                    *equal.entry(bytes).or_default() += 1;
                }
                Kept::Purged => purged += 1,
                Kept::Nothing => {}
            }
        }
        let most = || equal.iter().max_by_key(|(_, count)| **count);
        let held = own.map_or_else(most, |own| equal.get_key_value(&own));
        Observation::Committed {
            agent: applier.to_owned(),
            cluster,
            index,
            leader: held.and_then(|(record, _)| leader_of(record)),
            copies: held.map_or(0, |(_, count)| *count) + purged,
            voters,
        }
    }

    /// How many of them have a record there that is the one looked for, or purged it, and how many there are.
    fn copies(&self, cluster: ClusterId, index: LogIndex, is_it: impl Fn(&[u8]) -> bool) -> (usize, usize) {
        // Most of them are equal.
        let mut asked: BTreeMap<Bytes, bool> = BTreeMap::new();
        let mut holds = |kept| match kept {
            Kept::Record(record) => *asked.entry(record).or_insert_with_key(|record| is_it(record)),
            Kept::Purged => true,
            Kept::Nothing => false,
        };
        let (mut copies, mut disks) = (0, 0);
        for (_, kept) in self.kept_at(cluster, index) {
            disks += 1;
            copies += usize::from(holds(kept));
        }
        (copies, disks)
    }
}

/// What a disk lacks of what was pledged.
fn lacks(log: &SimLog, snapshots: &SimSnapshots, pledge: &Pledge) -> Option<&'static str> {
    let vote = log.vote().and_then(|vote| record_vote(&vote));
    let Some(vote) = vote.filter(|vote| *vote >= pledge.vote) else {
        return Some("the vote");
    };
    let (term, leader, index) = pledge.entry?;
    let is_held = match log.kept(index) {
        // A snapshot that was taken over is durable before the records below it are purged, whatever they are.
        _ if index <= snapshots.upto() => true,
        Kept::Record(record) => record_leader(&record) == Some((term, leader)),
        Kept::Purged => true,
        Kept::Nothing => false,
    };
    // A later leader may have had it replaced by now.
    (!is_held && vote == pledge.vote).then_some("the entry")
}

/// Who led when a record was appended.
fn leader_of(record: &[u8]) -> Option<LeaderId> {
    let (term, member) = record_leader(record)?;
    Some(LeaderId { term, member })
}

/// The author-signed entry in a record of a log.
fn entry_of(record: &[u8], chain: &ChainId) -> Option<EntryId> {
    match decode::<LogEntry>(&record_command(record)?).ok()? {
        LogEntry::Author(signed) => Some(signed.id(chain)),
        _ => None,
    }
}

/// One in so many answers to appends is looked at: to read what it answers is dear.
const APPEND_ANSWERS_ONE_IN: u64 = 16;
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

    /// Makes a log known, to be looked at when something is acknowledged or a member pledges something.
    pub fn watch_log(&self, cluster: ClusterId, member: NodeIdx, agent: String, kept: (SimLog, SimSnapshots)) {
        let (log, snapshots) = kept;
        let Known { logs, places, .. } = &mut self.lock().agents;
        let logs = logs.entry(cluster).or_default();
        places.insert(member, (cluster, logs.len(), snapshots));
        logs.push((agent, log));
    }

    /// An honest member of a cluster answers another one.
    pub(super) fn hear_member(&self, member: NodeIdx, kind: FrameKind, request: &[u8], answer: &[u8]) {
        let pledged = {
            let known = &mut self.lock().agents;
            if kind != FrameKind::RaftVote {
                known.append_answers += 1;
                if !known.append_answers.is_multiple_of(APPEND_ANSWERS_ONE_IN) {
                    return;
                }
            }
            known.pledged(member, kind, request, answer)
        };
        if let Some(pledged) = pledged {
            self.see(&pledged);
        }
    }

    /// Disks of a cluster that hold this entry at `index`, or purged what was there, or did so when they were lost, and how many
    /// there are.
    #[must_use]
    pub fn copies_of(&self, entry: &EntryId, cluster: ClusterId, index: LogIndex, chain: &ChainId) -> (usize, usize) {
        let is_it = |record: &[u8]| entry_of(record, chain).as_ref() == Some(entry);
        self.lock().agents.copies(cluster, index, is_it)
    }

    /// Tells whom the members of a cluster back since it was told last, and then where one of them stands.
    pub fn tell_stand(&self, cluster: ClusterId, agent: &str, status: &RaftStatus) {
        let (backed, durable_term) = {
            let inner = self.lock();
            let vote = inner.agents.log(cluster, agent).and_then(SimLog::vote);
            let durable_term = vote
                .and_then(|vote| record_vote(&vote))
                .map_or(Term(0), |(term, ..)| term);
            (inner.agents.new_votes(cluster), durable_term)
        };
        for backs in &backed {
            self.see(backs);
        }
        self.see(&Observation::Stands {
            agent: agent.to_owned(),
            term: status.term,
            is_leader: status.role == RaftRole::Leader,
            committed: status.committed.index,
            durable_term,
        });
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
        let committed = self.lock().agents.committed_at(*cluster, agent, position.index);
        self.see(&committed);
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
                    self.tell_stand(cluster, &name, &status);
                    let (held, voters) = {
                        let known = &self.lock().agents;
                        let members = known.logs.get(&cluster).map_or(0, Vec::len);
                        (known.held(cluster, &name), members)
                    };
                    self.see(&Observation::Leads {
                        agent: name.clone(),
                        cluster,
                        leader: LeaderId {
                            term: status.term,
                            member: status.id,
                        },
                        last_index: status.last_index,
                        held,
                        voters,
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

#[cfg(test)]
mod tests {
    use cluster_agent::raft::store::{LogOp, LogRecord, LogStore};

    use super::*;
    use crate::{
        ports::{DiskTiming, SimDisk},
        runtime::ProcessId,
        trace::Trace,
    };

    const TIMING: DiskTiming = DiskTiming {
        sync_us_min: 1_000,
        sync_us_max: 1_000,
    };

    /// A log whose disk holds `record` at index 1.
    async fn log_with(record: &'static [u8]) -> SimLog {
        let mut log = SimLog::new(SimDisk::new(0, 1, TIMING, Trace::begin()));
        let (told, done) = tokio::sync::oneshot::channel();
        let record = LogRecord {
            index: LogIndex(1),
            bytes: Bytes::from_static(record),
        };
        log.open(Process::new(ProcessId(0), 1)).submit(
            LogOp::Append(vec![record]),
            Box::new(move |outcome| drop(told.send(outcome))),
        );
        assert_eq!(done.await, Ok(Ok(())));
        log
    }

    #[tokio::test(start_paused = true)]
    async fn majority_that_holds_another_entry_is_no_copy_of_the_acknowledged_one() {
        let mut known = Known::default();
        let logs = known.logs.entry(ClusterId(0)).or_default();
        for (name, record) in [("c1-1", &b"acknowledged"[..]), ("c1-2", b"other"), ("c1-3", b"other")] {
            logs.push((name.to_owned(), log_with(record).await));
        }
        let copies = |index, wanted: &[u8]| known.copies(ClusterId(0), LogIndex(index), |record| record == wanted);
        assert_eq!(copies(1, b"acknowledged"), (1, 3));
        assert_eq!(copies(1, b"other"), (2, 3));
        assert_eq!(copies(2, b"other"), (0, 3));
    }
}
