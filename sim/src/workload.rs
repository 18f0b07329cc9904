//! What the fleet is asked to do in a run, and what it acknowledged.
//!
//! One client per cluster submits; one drone per agent claims, starts and completes through the door of
//! its on-board software. Whatever ends as refused or unknown is sent again with the same signed
//! bytes: that is what makes a retry harmless.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cluster_agent::agent::AgentHandle;
use common::{
    entry::{Progress, SignedEntry},
    ids::{ClusterId, TaskId},
    task::{Scope, TaskState},
    testing,
    verdict::Verdict,
    wire::cluster::WriteOutcome,
};
use transport::local::{Request, message::TaskRow};

use crate::{fleet::SimFleet, random::Stream};

/// How much is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Tasks submitted through each cluster; every second one is of fleet scope.
    pub tasks_per_cluster: u32,
    /// Between two submissions through one cluster.
    pub submit_every: Duration,
    /// How long a drone works on a task.
    pub work: Duration,
}

/// What was acknowledged, and by whom a task was completed.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// Tasks whose submission was acknowledged.
    pub acknowledged: BTreeMap<TaskId, Scope>,
    /// Drones whose completion of a task was acknowledged as granted.
    pub completed: BTreeMap<TaskId, Vec<String>>,
    /// Writes that had to be sent again.
    pub retries: u64,
}

/// The journal, shared by all clients of a run.
#[derive(Clone, Default)]
pub struct SharedJournal(Arc<Mutex<Journal>>);

impl SharedJournal {
    fn lock(&self) -> MutexGuard<'_, Journal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it holds now.
    #[must_use]
    pub fn snapshot(&self) -> Journal {
        self.lock().clone()
    }
}

/// Doors that outlive the agents behind them: the newest handle of each.
pub type Doors = Arc<Mutex<BTreeMap<String, AgentHandle>>>;

fn door(doors: &Doors, name: &str) -> Option<AgentHandle> {
    doors.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
}

/// Starts clients and drones. They run until the run ends.
pub fn start(fleet: &SimFleet, load: Load, seed: u64, journal: &SharedJournal, doors: &Doors) {
    let clients = crate::runtime::Process::new(crate::runtime::ProcessId(u32::MAX), seed);
    for cluster in (0..).map(ClusterId).take(fleet.fleet.genesis.clusters.len()) {
        let entries = entries(fleet, cluster, load.tasks_per_cluster);
        let names: Vec<String> = fleet.cluster(cluster).into_iter().map(|(name, _)| name).collect();
        let random = Stream::split(seed, 0x636c_6965 ^ u64::from(cluster.0) << 32);
        let client = Client {
            names,
            doors: doors.clone(),
            journal: journal.clone(),
            random,
        };
        clients.spawn(client.submit_all(entries, load.submit_every));
    }
    for name in fleet.agent_names() {
        let drone = Drone {
            name,
            doors: doors.clone(),
            journal: journal.clone(),
            work: load.work,
        };
        clients.spawn(drone.fly());
    }
}

fn entries(fleet: &SimFleet, cluster: ClusterId, count: u32) -> Vec<SignedEntry> {
    (1..=u64::from(count))
        .map(|number| {
            let scope = if number % 2 == 0 { Scope::Fleet } else { Scope::Cluster };
            let mut task = testing::task(&format!("c{}-{number}", cluster.0));
            task.places = vec![testing::place_in(cluster.0)].try_into().expect("one place fits");
            fleet.fleet.submit("op1", cluster, number, scope, &task)
        })
        .collect()
}

struct Client {
    names: Vec<String>,
    doors: Doors,
    journal: SharedJournal,
    random: Stream,
}

impl Client {
    async fn submit_all(mut self, entries: Vec<SignedEntry>, every: Duration) {
        for entry in entries {
            self.submit(entry).await;
            tokio::time::sleep(every).await;
        }
    }

    /// Sends the same bytes, to one member after the other, until one says committed.
    async fn submit(&mut self, entry: SignedEntry) {
        loop {
            let pick = self.random.between(0, self.names.len() as u64 - 1) as usize;
            if let Some(agent) = door(&self.doors, &self.names[pick])
                && let WriteOutcome::Committed(answer) = agent.enter(entry.clone()).await
            {
                let id = TaskId::from(entry.id(&agent.machine().with(|state| *state.queue.chain_id())));
                assert_eq!(
                    answer.verdict,
                    Verdict::Granted,
                    "the workload submits only what is allowed"
                );
                self.journal.lock().acknowledged.insert(id, entry.header.scope);
                return;
            }
            self.journal.lock().retries += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

struct Drone {
    name: String,
    doors: Doors,
    journal: SharedJournal,
    work: Duration,
}

/// Between two looks of a drone at the queue.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl Drone {
    async fn fly(self) {
        loop {
            if let Some(agent) = door(&self.doors, &self.name) {
                self.look(&agent).await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&self, agent: &AgentHandle) {
        let open = [
            TaskState::Queued,
            TaskState::Assigned,
            TaskState::Claimed,
            TaskState::Underway,
        ];
        let request = Request::Tasks {
            scope: None,
            states: open.to_vec(),
            after: None,
            limit: 64,
        };
        let Ok(reply) = agent.answer_local(request).await else {
            return;
        };
        let rows = reply.tasks.unwrap_or_default();
        if let Some(mine) = rows.iter().find(|row| row.is_mine) {
            return self.work_on(agent, mine).await;
        }
        let is_free = |row: &&TaskRow| {
            row.state == TaskState::Assigned || (row.state == TaskState::Queued && row.scope == Scope::Cluster)
        };
        if let Some(task) = rows.iter().filter(is_free).find_map(TaskRow::task_id) {
            // Another drone may be faster; then the next look shows it.
            let _ = agent.answer_local(Request::Claim { task }).await;
        }
    }

    /// Works only while the agent says that this drone may.
    async fn work_on(&self, agent: &AgentHandle, row: &TaskRow) {
        let (Some(task), Some(_)) = (row.task_id(), row.may_run_until_us) else {
            return;
        };
        if row.state == TaskState::Claimed {
            let start = Request::Progress {
                task,
                fence: None,
                progress: Progress::Started,
            };
            let _ = agent.answer_local(start).await;
            return;
        }
        tokio::time::sleep(self.work).await;
        let done = Request::Complete {
            task,
            fence: None,
            reason: String::new(),
        };
        if let Ok(reply) = agent.answer_local(done).await
            && reply.verdict.as_deref() == Some("granted")
        {
            let mut journal = self.journal.lock();
            let by = journal.completed.entry(task).or_default();
            if by.last() != Some(&self.name) {
                by.push(self.name.clone());
            }
        }
    }
}
