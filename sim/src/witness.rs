//! The witness of a run: hears everything that the shells show, and asks every checker.
//!
//! # Rules
//! * It sees true time, disks and links; the shells do not see it.
//! * The first violation counts: what follows from it says little. The run ends there.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use cluster_agent::{
    agent::AgentHandle,
    raft::{RaftRole, store::record_leader},
};
use common::{
    block::{BatchRef, Block, Proposal},
    certificate::{SignedVote, Vote},
    codec::decode,
    global_queue::GlobalQueue,
    ids::{BatchSeq, ClusterId, Digest, Height, LogIndex, LogPosition, NodeIdx, TaskId, Term, View},
    validator_set::ValidatorSet,
    wire::frame::FrameKind,
};
use global_validator::{Validator, batch_store::BatchStore};

use crate::{
    byzantine::suspects::Suspects,
    checkers::{Checker, LogTail, Observation},
    fleet::CrashSwitch,
    guard_disk::GuardDisks,
    ports::{Kept, Sender, SimDisk, SimLog},
    runtime::Process,
    trace::{Event, Trace},
};

/// An invariant that broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which: the name of the checker.
    pub checker: &'static str,
    /// When, in virtual time.
    pub at_ms: u64,
    /// What happened, in one sentence.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secs, ms) = (self.at_ms / 1_000, self.at_ms % 1_000);
        write!(f, "{secs}.{ms:03} s: {}: {}", self.checker, self.what)
    }
}

struct Inner {
    set: ValidatorSet,
    checkers: Vec<Box<dyn Checker>>,
    violation: Option<Violation>,
    suspects: Suspects,
    logs: BTreeMap<ClusterId, Vec<(String, SimLog)>>,
    /// Batches whose entries were told already.
    closed: BTreeMap<(ClusterId, BatchSeq), Digest>,
    /// Highest block told.
    executed: Height,
    /// Highest block whose batches were told.
    ordered: Height,
    /// Tasks that left the final state, and how many had left before each.
    left: BTreeMap<TaskId, u64>,
    /// So many were told.
    told_left: u64,
    /// Highest index that was applied in each cluster.
    committed: BTreeMap<ClusterId, LogIndex>,
    /// What proposals refer to, by view and digest; the newest.
    proposals: BTreeMap<(View, Digest), Vec<BatchRef>>,
    /// The last proposal of each validator, which goes to everybody.
    last_proposal: BTreeMap<NodeIdx, Bytes>,
    /// The last votes of each, which do too.
    last_votes: BTreeMap<NodeIdx, VecDeque<Bytes>>,
    /// Batches on the disks of running validators.
    stores: BTreeMap<NodeIdx, BatchStore>,
    guards: GuardDisks,
    /// Only this checker is asked.
    only: Option<&'static str>,
    applies: u64,
}

impl Inner {
    /// Whether `body` is one of the last votes that left `voter` in this life of it.
    fn has_heard_vote(&mut self, voter: NodeIdx, body: &Bytes) -> bool {
        let last = self.last_votes.entry(voter).or_default();
        if last.contains(body) {
            return true;
        }
        if last.len() == VOTES_MAX {
            last.pop_front();
        }
        last.push_back(body.clone());
        false
    }
}

/// Shared by everybody in a run.
#[derive(Clone)]
pub struct Witness {
    inner: Arc<Mutex<Inner>>,
    trace: Trace,
}

/// Proposals remembered.
const PROPOSALS_MAX: usize = 256;
/// Votes of one validator remembered.
const VOTES_MAX: usize = 4;
/// Records at the end of each log that are compared.
const TAIL: usize = 96;

impl Witness {
    /// A witness that asks `checkers` about a fleet with these validators.
    #[must_use]
    pub fn new(trace: Trace, set: ValidatorSet, checkers: Vec<Box<dyn Checker>>) -> Self {
        let inner = Inner {
            set,
            checkers,
            violation: None,
            suspects: Suspects::default(),
            logs: BTreeMap::new(),
            closed: BTreeMap::new(),
            executed: Height(0),
            ordered: Height(0),
            left: BTreeMap::new(),
            told_left: 0,
            committed: BTreeMap::new(),
            proposals: BTreeMap::new(),
            last_proposal: BTreeMap::new(),
            last_votes: BTreeMap::new(),
            stores: BTreeMap::new(),
            guards: GuardDisks::default(),
            only: None,
            applies: 0,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            trace,
        }
    }

    /// The same, but only the checker of this name is asked, and nothing else is a violation.
    #[must_use]
    pub fn only(self, checker: Option<&'static str>) -> Self {
        if checker.is_some() {
            let mut inner = self.lock();
            inner.only = checker;
            inner.checkers.retain(|each| Some(each.name()) == checker);
        }
        self
    }

    /// Another witness of the same run, who asks nobody: for clients whom nothing was promised.
    #[must_use]
    pub fn blind(&self) -> Self {
        Self::new(self.trace.clone(), self.lock().set.clone(), Vec::new())
    }

    /// Who is held to nothing, or to less.
    #[must_use]
    pub fn suspects(&self) -> Suspects {
        self.lock().suspects.clone()
    }

    /// Makes more of them known.
    pub fn suspect(&self, add: impl FnOnce(&mut Suspects)) {
        add(&mut self.lock().suspects);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True time of the run, microseconds.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.trace.now_us()
    }

    /// Shows `seen` to all checkers.
    pub fn see(&self, seen: &Observation) {
        let now_us = self.trace.now_us();
        let mut inner = self.lock();
        if inner.violation.is_some() {
            return;
        }
        let Inner { checkers, suspects, .. } = &mut *inner;
        let judging = (checkers.iter_mut()).filter(|checker| suspects.judges(checker.name(), seen));
        for checker in judging {
            if let Err(what) = checker.observe(now_us, seen) {
                let checker = checker.name();
                inner.violation = Some(Violation {
                    checker,
                    at_ms: now_us / 1_000,
                    what,
                });
                return;
            }
        }
    }

    /// Something that no checker can see is wrong.
    pub fn violate(&self, checker: &'static str, what: String) {
        let at_ms = self.trace.now_us() / 1_000;
        let mut inner = self.lock();
        if inner.only.is_none_or(|only| only == checker) {
            inner.violation.get_or_insert(Violation { checker, at_ms, what });
        }
    }

    /// The first violation, if there was one.
    #[must_use]
    pub fn violation(&self) -> Option<Violation> {
        self.lock().violation.clone()
    }

    /// How often a state machine was seen at a new position.
    #[must_use]
    pub fn applies(&self) -> u64 {
        self.lock().applies
    }

    /// The run has ended: every checker says its last word.
    pub fn finish(&self) {
        let now_us = self.trace.now_us();
        let mut inner = self.lock();
        if inner.violation.is_some() {
            return;
        }
        for checker in &mut inner.checkers {
            if let Err(what) = checker.finish(now_us) {
                let checker = checker.name();
                let at_ms = now_us / 1_000;
                inner.violation = Some(Violation { checker, at_ms, what });
                return;
            }
        }
    }

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
        self.lock().logs.entry(cluster).or_default().push((agent, log));
    }

    /// Makes the disk of a validator known, to be looked at when it votes.
    pub fn watch_guard(&self, validator: NodeIdx, disk: SimDisk) {
        self.lock().guards.watch(validator, disk);
    }

    /// Disks of a cluster that hold one record at `index`, or purged it, or did so when they were lost, and how many there
    /// are. The record is that of
    /// the `applier`; without one, or without a record on its disk, the one that most of them hold.
    #[must_use]
    pub fn copies(&self, cluster: ClusterId, applier: Option<&str>, index: LogIndex) -> (usize, usize) {
        let inner = self.lock();
        let logs = inner.logs.get(&cluster).map_or(&[][..], Vec::as_slice);
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

    /// Whether `state` has the task, or had it and let it leave.
    #[must_use]
    pub fn knows(&self, state: &GlobalQueue, task: &TaskId) -> bool {
        let has_left = || self.lock().left.get(task).is_some_and(|order| *order < state.left());
        state.state_of(task).is_some() || has_left()
    }

    /// Whether the task has left a final state, so that machines may say that they do not know it.
    #[must_use]
    pub fn has_left(&self, task: &TaskId) -> bool {
        self.lock().left.contains_key(task)
    }

    /// What the disk of `agent` has at the highest index that was applied in its cluster.
    fn held(&self, cluster: ClusterId, agent: &str) -> Option<LogPosition> {
        let inner = self.lock();
        let index = *inner.committed.get(&cluster)?;
        let (_, log) = inner.logs.get(&cluster)?.iter().find(|(name, _)| name == agent)?;
        let Kept::Record(record) = log.kept(index) else {
            return None;
        };
        let (term, _) = record_leader(&record)?;
        Some(LogPosition { term, index })
    }

    /// Shows the ends of all logs.
    pub fn look_at_logs(&self) {
        let logs: Vec<_> = self.lock().logs.iter().map(|(id, logs)| (*id, logs.clone())).collect();
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
        let highest = self.lock().committed.insert(*cluster, position.index);
        if let Some(highest) = highest.filter(|highest| *highest >= position.index) {
            self.lock().committed.insert(*cluster, highest);
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

    /// A frame leaves a device. What others than its signer send says nothing about the signer: honest validators pass
    /// on what an enemy proposed twice, and enemies put any name under anything.
    pub fn hear(&self, from: Sender, kind: FrameKind, body: &Bytes) {
        match kind {
            FrameKind::Vote if !from.is_hacked => {
                // It goes to everybody, and is judged when it first leaves.
                if self.lock().has_heard_vote(from.idx, body) {
                    return;
                }
                if let Ok(signed) = decode::<SignedVote>(body)
                    && signed.voter == from.idx
                {
                    let lacks = self.lock().guards.lacks(signed.voter, &signed.vote);
                    self.see(&Observation::Voted {
                        validator: signed.voter,
                        vote: signed.vote,
                        missing: self.missing_batch(&signed),
                        lacks,
                    });
                }
            }
            FrameKind::Proposal => {
                if self.lock().last_proposal.insert(from.idx, body.clone()).as_ref() == Some(body) {
                    return;
                }
                if let Ok(proposal) = decode::<Proposal>(body) {
                    self.tell_proposal(from, &proposal.block);
                }
            }
            _ => {}
        }
    }

    /// Remembers what the block refers to, and tells of it if it is the sender's own.
    fn tell_proposal(&self, from: Sender, block: &Block) {
        let ballot = block.header.ballot();
        let mut inner = self.lock();
        inner
            .proposals
            .insert((ballot.view, ballot.digest), block.refs.to_vec());
        if inner.proposals.len() > PROPOSALS_MAX {
            inner.proposals.pop_first();
        }
        let by = inner.set.leader(ballot.view);
        drop(inner);
        if by == from.idx && !from.is_hacked {
            self.see(&Observation::Proposed { validator: by, ballot });
        }
    }

    /// A batch of the block that is voted for, if its voter does not hold it.
    fn missing_batch(&self, signed: &SignedVote) -> Option<(ClusterId, BatchSeq)> {
        let Vote::Notarize(ballot) = signed.vote else {
            return None;
        };
        let inner = self.lock();
        let store = inner.stores.get(&signed.voter)?;
        let refs = inner.proposals.get(&(ballot.view, ballot.digest))?;
        let missing = refs.iter().find(|batch| !store.contains(&batch.digest))?;
        Some((missing.cluster, missing.seq))
    }

    /// Batches in the outbox that were not told before.
    fn newly_closed(&self, queue: &cluster_core::queue::ClusterQueue) -> Vec<Observation> {
        let (cluster, chain) = (queue.cluster(), *queue.chain_id());
        let mut inner = self.lock();
        let mut new = Vec::new();
        for batch in queue.batcher().outbox().rev() {
            let seq = batch.header.seq;
            if inner.closed.insert((cluster, seq), batch.digest) == Some(batch.digest) {
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

    /// Follows what a validator executes, as part of its process.
    pub fn watch_validator(&self, process: &Process, validator: &Validator, name: &str, idx: NodeIdx) {
        let (witness, validator, name) = (self.clone(), validator.clone(), name.to_owned());
        let mut inner = self.lock();
        inner.stores.insert(idx, validator.batches().clone());
        // What its disk holds may be less than in its last life.
        inner.last_votes.remove(&idx);
        drop(inner);
        drop(process.spawn(async move {
            let executed = validator.executed().clone();
            // What nobody told yet is told now, if this life begins above it.
            let mut height = executed.get().queue.height().min(witness.lock().executed);
            loop {
                let now = executed.wait_until(|executed| executed.queue.height() > height).await;
                while height < now.queue.height() {
                    height = height.next();
                    witness.tell_block(&validator, &name, height);
                }
                witness.tell_left(&now.queue);
                let root = now.queue.state_root();
                witness.trace.record(Event::Applied, idx.0, idx.0, &[&root.0]);
                let mut inner = witness.lock();
                inner.executed = inner.executed.max(height);
                inner.applies += 1;
                drop(inner);
                witness.see(&Observation::Root {
                    validator: name.clone(),
                    height,
                    root,
                });
            }
        }));
    }

    /// Tasks that left the final state and were not told yet.
    fn tell_left(&self, state: &GlobalQueue) {
        let told = self.lock().told_left;
        for line in state.left_after(told) {
            let mut inner = self.lock();
            inner.left.insert(line.id, line.order);
            inner.told_left = line.order + 1;
            drop(inner);
            self.see(&Observation::Left {
                task: line.id,
                state: line.state,
            });
        }
    }

    fn tell_block(&self, validator: &Validator, name: &str, height: Height) {
        let Ok(Some(found)) = validator.blocks().at(height) else {
            return self.violate(
                "agreement",
                format!("{name} executed height {height} and has no block there"),
            );
        };
        let refs = found
            .block
            .refs
            .iter()
            .map(|batch| (batch.cluster, batch.seq, batch.digest));
        self.see(&Observation::Executed {
            validator: name.to_owned(),
            height,
            block: found.block.digest(),
            refs: refs.collect(),
            carried_root: found.block.header.state_root,
        });
        self.tell_batches(validator, &found.block);
    }

    /// The batches of a block, if nobody told them before.
    fn tell_batches(&self, validator: &Validator, block: &Block) {
        let height = block.header.height;
        {
            let mut inner = self.lock();
            if inner.ordered >= height {
                return;
            }
            inner.ordered = height;
        }
        for batch in &block.refs {
            match validator.batches().get(&batch.digest) {
                Ok(Some(batch)) => self.see(&Observation::Ordered {
                    height,
                    batch: Arc::new(batch),
                }),
                Ok(None) | Err(_) => self.violate(
                    "validity",
                    format!("batch {} of {} is final and not on the disk", batch.seq, batch.cluster),
                ),
            }
        }
    }
}

fn tail(agent: String, log: &SimLog) -> Option<LogTail> {
    let (first, records) = log.tail(TAIL)?;
    Some(LogTail { agent, first, records })
}
