//! What the fleet is asked to do in a run, and what it acknowledged.
//!
//! * [`operator`]: writes what it wishes (`wishes`), and sends the same bytes again after an unknown end.
//! * [`vehicle`]: a drone that claims tasks and acts on them while it may.
//! * [`reader`]: asks every agent and validator what it knows, and how old that is.

pub mod operator;
pub mod reader;
pub mod vehicle;
mod wishes;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{
    ids::{ClusterId, EntryId, LogIndex, TaskId},
    task::Scope,
    testing::Fleet,
    verdict::Verdict,
};

use crate::{
    checkers::{Call, Observation, Told},
    fleet::{Doors, SimFleet},
    random::Stream,
    runtime::{Process, ProcessId},
    witness::Witness,
};

/// Between two reads of each validator.
const FINAL_READ_EVERY: Duration = Duration::from_secs(2);

/// How much is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Between two writes of an operator; one operator per cluster.
    pub write_every: Duration,
    /// Between two reads of each agent.
    pub read_every: Duration,
    /// Shortest and longest pause between two looks of a drone at its agent's queue.
    pub look_us: (u64, u64),
    /// How long a drone works on a task, at most.
    pub work_max: Duration,
    /// Claims that a drone holds at once, at most: it works on one, and may wait for others to become final.
    pub claims_max: u16,
}

/// What was acknowledged so far.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// Tasks whose submission was acknowledged as granted.
    pub acknowledged: BTreeMap<TaskId, (ClusterId, Scope)>,
    /// Acknowledged tasks in their order, by cluster.
    pub order: BTreeMap<ClusterId, Vec<TaskId>>,
    /// Tasks of which an answer said that their state is `unknown`; false once they were freed by force.
    pub unknown: BTreeMap<TaskId, bool>,
    /// Writes without an answer.
    pub open_writes: u64,
    /// Writes that had to be sent again.
    pub retries: u64,
    /// Completions acknowledged as granted.
    pub completed: u64,
    /// Linearizable reads answered.
    pub linearizable_reads: u64,
    /// Writes and reads refused for want of a majority.
    pub no_quorum: u64,
    /// Of each cluster, the newest submission that was acknowledged, by when it was asked for. Microseconds.
    submitted_us: BTreeMap<ClusterId, u64>,
    /// Of each cluster, the newest task that a vehicle claimed, acted on and completed, by when it was claimed.
    worked_us: BTreeMap<ClusterId, u64>,
    calls: u64,
}

impl Journal {
    fn has_submitted(&mut self, cluster: ClusterId, asked_us: u64) {
        let newest = self.submitted_us.entry(cluster).or_default();
        *newest = asked_us.max(*newest);
    }

    fn has_worked(&mut self, cluster: ClusterId, claimed_us: u64) {
        let newest = self.worked_us.entry(cluster).or_default();
        *newest = claimed_us.max(*newest);
    }

    /// What `cluster` has not shown by anything that was asked for at `since_us` or later; `None` if nothing is missing.
    #[must_use]
    pub fn lacks_since(&self, cluster: ClusterId, since_us: u64) -> Option<&'static str> {
        let is_old = |newest: &BTreeMap<ClusterId, u64>| newest.get(&cluster).is_none_or(|at_us| *at_us < since_us);
        if is_old(&self.submitted_us) {
            Some("no submission was acknowledged")
        } else if is_old(&self.worked_us) {
            Some("no vehicle has claimed a task, acted on it and completed it")
        } else {
            None
        }
    }

    /// A task submitted through `cluster` that waits in `unknown`, to be freed by force: each once.
    fn free(&mut self, cluster: ClusterId) -> Option<(TaskId, Scope)> {
        let Self {
            acknowledged, unknown, ..
        } = self;
        let mut waiting = unknown.iter_mut().filter(|(_, waits)| **waits);
        let (task, waits, scope) = waiting.find_map(|(task, waits)| match acknowledged.get(task) {
            Some((through, scope)) if *through == cluster => Some((*task, waits, *scope)),
            _ => None,
        })?;
        *waits = false;
        Some((task, scope))
    }
}

/// An entry that an agent says is committed.
struct Written {
    cluster: ClusterId,
    entry: EntryId,
    /// Its place in the log; 0 if the answer names none.
    index: LogIndex,
    /// What was decided there.
    verdict: Verdict,
    /// Set if a task was submitted and granted.
    submitted: Option<(TaskId, Scope)>,
}

/// What all clients of a run share.
#[derive(Clone)]
pub struct Desk {
    /// The ways in.
    pub doors: Doors,
    /// Who is told.
    pub witness: Witness,
    /// Keys.
    pub fleet: Arc<Fleet>,
    journal: Arc<Mutex<Journal>>,
    /// The run comes to its end. Shared by all desks of it.
    is_closed: Arc<AtomicBool>,
}

impl Desk {
    /// An empty journal before the doors of `fleet`.
    #[must_use]
    pub fn of(fleet: &SimFleet) -> Self {
        Self {
            doors: fleet.doors.clone(),
            witness: fleet.witness.clone(),
            fleet: Arc::new(fleet.fleet.clone()),
            journal: Arc::default(),
            is_closed: Arc::default(),
        }
    }

    /// For clients of a cluster with a hacked member: nobody judges what they are told.
    fn unheard(&self) -> Self {
        Self {
            witness: self.witness.blind(),
            journal: Arc::default(),
            ..self.clone()
        }
    }

    /// The journal.
    pub fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No new work from now on; what was begun is finished.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// Whether new work may begin.
    fn is_open(&self) -> bool {
        !self.is_closed.load(Ordering::Relaxed)
    }

    /// Tells that a call on a task begins; returns its number.
    fn called(&self, task: TaskId, scope: Scope, what: Call) -> u64 {
        let call = {
            let mut journal = self.journal();
            journal.calls += 1;
            journal.calls
        };
        self.witness.see(&Observation::Called {
            call,
            task,
            scope,
            what,
        });
        call
    }

    /// Tells that `agent` acknowledged an entry, in the instant in which it does.
    fn acknowledged(&self, agent: String, asked_us: u64, written: Written) {
        // Who passes an answer of its leader on may itself still hold something else there: all disks count.
        let Written { cluster, index, .. } = written;
        let (copies, voters) = self
            .witness
            .copies_of(&written.entry, cluster, index, &self.fleet.chain);
        self.witness.see(&Observation::Acked {
            agent,
            cluster: written.cluster,
            asked_us,
            entry: written.entry,
            submitted: written.submitted,
            index: written.index,
            verdict: written.verdict,
            copies,
            voters,
        });
    }

    fn answered(&self, call: u64, task: TaskId, told: Told) {
        self.witness.see(&Observation::Answered { call, task, told });
    }
}

/// Starts all clients. They run until the run ends.
pub fn start(fleet: &SimFleet, load: Load, seed: u64) -> Desk {
    let desk = Desk::of(fleet);
    let unheard = desk.unheard();
    let suspects = fleet.witness.suspects();
    let clients = Process::new(ProcessId(u32::MAX), seed);
    for (number, agents) in (0..).zip(fleet.clusters()) {
        let cluster = ClusterId(number);
        let desk = if suspects.has_cluster(cluster) { &unheard } else { &desk };
        let stream = |purpose: u64| Stream::split(seed, purpose ^ u64::from(number) << 40);
        let operator = operator::Operator::new(desk.clone(), cluster, agents.clone(), stream(0x6f70));
        drop(clients.spawn(operator.work(load.write_every)));
        for (at, name) in (0..).zip(agents) {
            let stream = |purpose: u64| stream(purpose ^ at << 32);
            let reader = reader::Reader::new(desk.clone(), cluster, name.clone(), stream(0x7265));
            drop(clients.spawn(reader.work(load.read_every)));
            let vehicle = vehicle::Vehicle::new(
                desk.clone(),
                cluster,
                name.clone(),
                fleet.clock(&name).apart(),
                stream(0x7665),
            );
            drop(clients.spawn(vehicle.fly(load)));
        }
    }
    for (at, name) in (0..).zip(fleet.honest_validators()) {
        let operator = fleet.network.transport(fleet.fleet.id("op1"));
        let stream = Stream::split(seed, 0x6669_6e61 ^ at << 32);
        let reader = reader::FinalReader::new(desk.clone(), operator, name, stream);
        drop(clients.spawn(reader.work(FINAL_READ_EVERY)));
    }
    desk
}
