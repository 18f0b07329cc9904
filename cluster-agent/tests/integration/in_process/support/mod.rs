//! One cluster and its ground in one process, in virtual time, with disks that survive crashes.

pub mod ground;
pub mod liar;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use cluster_agent::{
    agent::{Agent, AgentHandle, Settings, StartError},
    config::Limits,
    peers::Door,
    ports::AgentPorts,
    raft::{
        LinkProfile, RaftConfig, TokioRuntime,
        store::{memory::MemoryLog, snapshot::MemorySnapshots},
    },
};
use common::{
    ids::{BlockTime, ClusterId, Founding, RaftNodeId, TaskId},
    task::Scope,
    testing::{Fleet, GENESIS_TIME},
    wire::{
        cluster::WriteOutcome,
        frame::Hello,
        op::{Consistency, Mode, OpAnswer, OpRequest, TaskView},
    },
};
use ground::Ground;
use tokio::task::AbortHandle;
use transport::{
    machine::MachineEntropy,
    memory::{MemoryDisk, MemoryNetwork},
    ports::{BoxFuture, Clock, Instant, Spawner},
    quic::hello_of,
};

/// How long anything may take, in virtual time.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const C1: ClusterId = ClusterId(0);
pub const AGENTS: [&str; 3] = ["c1-1", "c1-2", "c1-3"];

/// The clock of tokio, which tests pause.
pub struct TokioClock(tokio::time::Instant);

impl TokioClock {
    /// Begins now.
    pub fn start() -> Arc<Self> {
        Arc::new(Self(tokio::time::Instant::now()))
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Instant {
        Instant {
            us: 1_000_000 + self.0.elapsed().as_micros() as u64,
        }
    }

    fn wall(&self) -> BlockTime {
        BlockTime(GENESIS_TIME.0 + self.now().us)
    }
}

/// Tasks of one process, which can be killed together.
#[derive(Clone, Default)]
pub struct Process(Arc<Mutex<Vec<AbortHandle>>>);

impl Spawner for Process {
    #[allow(clippy::disallowed_methods, reason = "this is the spawner port of the tests")]
    fn spawn(&self, _name: &'static str, task: BoxFuture<()>) {
        let mut tasks = self.0.lock().unwrap();
        tasks.retain(|task| !task.is_finished());
        tasks.push(tokio::spawn(task).abort_handle());
    }
}

impl Process {
    fn kill(&self) {
        for task in self.0.lock().unwrap().drain(..) {
            task.abort();
        }
    }
}

/// What an agent's machine keeps when the agent dies.
#[derive(Clone)]
pub struct Disks {
    pub files: MemoryDisk,
    pub log: Arc<MemoryLog>,
    pub snapshots: MemorySnapshots,
    /// Which disk of the machine it is, from 1.
    pub incarnation: u32,
}

impl Disks {
    fn new(incarnation: u32) -> Self {
        Self {
            incarnation,
            files: MemoryDisk::new(),
            log: Arc::default(),
            snapshots: MemorySnapshots::default(),
        }
    }
}

pub struct Running {
    process: Process,
    pub agent: AgentHandle,
}

/// Cluster `c1` with three agents, and the ground.
pub struct Net {
    pub fleet: Fleet,
    pub network: MemoryNetwork,
    pub clock: Arc<TokioClock>,
    pub disks: BTreeMap<String, Disks>,
    pub running: BTreeMap<String, Running>,
    pub ground: Ground,
    pub raft: RaftConfig,
    pub limits: Limits,
    pub numbers: u64,
    pub labels: Vec<String>,
}

impl Net {
    /// Three agents. Nobody runs yet but the ground.
    pub fn new() -> Self {
        Self::of(AGENTS.len() as u32)
    }

    /// A cluster of `agents`. Nobody runs yet but the ground.
    pub fn of(agents: u32) -> Self {
        Self::with_fleet(Fleet::new(1, agents, 4), agents)
    }

    /// Cluster `c1` of `fleet`, of `agents`. Nobody runs yet but the ground.
    pub fn with_fleet(fleet: Fleet, agents: u32) -> Self {
        let labels: Vec<String> = (1..=agents).map(|n| format!("c1-{n}")).collect();
        let network = MemoryNetwork::new(Arc::new(Process::default()));
        let clock = TokioClock::start();
        let ground = Ground::new(&fleet, clock.clone());
        for label in ["v1", "v2", "v3", "v4"] {
            let hello = hello_of(fleet.chain, fleet.id(label));
            network.join(fleet.idx(label), hello, Arc::new(ground.clone()));
        }
        let raft = RaftConfig::for_profile(LinkProfile::Dev);
        Self {
            network,
            clock,
            disks: labels.iter().map(|label| (label.clone(), Disks::new(1))).collect(),
            running: BTreeMap::new(),
            ground,
            limits: Limits::for_raft(&raft),
            raft,
            numbers: 0,
            labels,
            fleet,
        }
    }

    /// All three run and a leader is known to all.
    pub async fn started() -> Self {
        Self::new().all_started().await
    }

    /// All agents run and a leader is known to all.
    pub async fn all_started(mut self) -> Self {
        for label in self.labels.clone() {
            self.start(&label).await;
        }
        self.leader().await;
        self
    }

    /// All agents run and are in mode `normal`.
    pub async fn normal(agents: u32) -> Self {
        let net = Self::of(agents).all_started().await;
        for label in &net.labels {
            net.mode(label, Mode::Normal).await;
        }
        net
    }

    /// Waits until `label` is in `mode`.
    pub async fn mode(&self, label: &str, mode: Mode) {
        self.eventually(&format!("{label} is {}", mode.word()), || {
            (self.agent(label).mode().get().mode == mode).then_some(())
        })
        .await;
    }

    pub async fn start(&mut self, label: &str) {
        if let Err(error) = self.try_start(label).await {
            panic!("{label} did not start: {error}");
        }
    }

    pub async fn try_start(&mut self, label: &str) -> Result<(), StartError> {
        let process = Process::default();
        let door = Door::default();
        let idx = self.fleet.idx(label);
        let disks = self.disks[label].clone();
        let hello = Hello {
            cluster: Some((C1, Founding(0))),
            raft: self.raft_id(label).0,
            ..hello_of(self.fleet.chain, self.fleet.id(label))
        };
        let ports = AgentPorts {
            transport: self.network.join(idx, hello, Arc::new(door.clone())),
            clock: self.clock.clone(),
            spawner: Arc::new(process.clone()),
            entropy: Arc::new(MachineEntropy::new()),
            disk: Arc::new(disks.files.clone()),
            log: disks.log.clone(),
            snapshots: Arc::new(disks.snapshots.clone()),
        };
        let settings = Settings {
            genesis: Arc::new(self.fleet.genesis.clone()),
            device: idx,
            incarnation: disks.incarnation,
            key: self.fleet.key(label),
            raft: self.raft.clone(),
            limits: self.limits,
        };
        let agent = Agent::start::<TokioRuntime>(settings, ports, &door).await?;
        self.running.insert(label.into(), Running { process, agent });
        Ok(())
    }

    /// The agent's process dies at once: what was not durable is gone.
    pub async fn crash(&mut self, label: &str) {
        let running = self
            .running
            .remove(label)
            .unwrap_or_else(|| panic!("{label} does not run"));
        self.network.leave(&self.fleet.id(label));
        running.process.kill();
        // Raft's own tasks end with its handle; the disk below has been cut off from it.
        running.agent.stop().await;
        self.disks[label].files.crash();
    }

    /// The Raft id of `label` on the disk it has now.
    pub fn raft_id(&self, label: &str) -> RaftNodeId {
        RaftNodeId::new(self.fleet.idx(label), self.disks[label].incarnation)
    }

    /// The disk of `label`, which does not run, is gone; the next one is empty and of the incarnation `next`.
    pub fn lose_disk(&mut self, label: &str, next: u32) {
        assert!(!self.running.contains_key(label), "{label} runs");
        self.disks.insert(label.into(), Disks::new(next));
    }

    /// The agents' clock.
    pub fn now_us(&self) -> u64 {
        self.clock.now().us
    }

    pub fn agent(&self, label: &str) -> &AgentHandle {
        &self.running[label].agent
    }

    /// Waits until all that run know one leader which a quorum has acknowledged.
    pub async fn leader(&self) -> String {
        let known = self.eventually("a leader is known to all", || {
            let leaders: Vec<_> = self
                .running
                .values()
                .map(|running| running.agent.raft().status().leader)
                .collect();
            let leader = leaders.first().copied().flatten()?;
            let label = self.fleet.label(leader.idx()).to_owned();
            let is_acked = self
                .running
                .get(&label)?
                .agent
                .raft()
                .status()
                .quorum_acked_age_ms
                .is_some();
            (leaders.iter().all(|other| *other == Some(leader)) && is_acked).then_some(label)
        });
        known.await
    }

    pub async fn follower(&self) -> String {
        let leader = self.leader().await;
        self.running
            .keys()
            .find(|label| **label != leader)
            .expect("three agents run")
            .clone()
    }

    /// Waits in virtual time until `look` finds something.
    pub async fn eventually<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let begun = tokio::time::Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "did not happen: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Cuts `label` off from all other agents, or heals that.
    pub fn set_island(&self, label: &str, is_cut_off: bool) {
        for other in self.labels.iter().filter(|other| **other != label) {
            self.network
                .set_link(self.fleet.id(label), self.fleet.id(other), !is_cut_off);
        }
    }

    /// Lets every frame between `side` and all other agents vanish, or heals that.
    pub fn set_silent(&self, side: &[&str], is_silent: bool) {
        for other in self.labels.iter().filter(|other| !side.contains(&other.as_str())) {
            for label in side {
                self.network
                    .set_silent(self.fleet.id(label), self.fleet.id(other), is_silent);
            }
        }
    }

    /// Cuts the whole cluster off from the ground, or heals that.
    pub fn set_ground(&self, is_up: bool) {
        for label in &self.labels {
            for validator in ["v1", "v2", "v3", "v4"] {
                self.network
                    .set_link(self.fleet.id(label), self.fleet.id(validator), is_up);
            }
        }
    }

    /// The next task of the operator, signed.
    pub fn signed_task(&mut self, scope: Scope) -> common::entry::SignedEntry {
        self.numbers += 1;
        let task = common::testing::task(&format!("task-{}", self.numbers));
        self.fleet.submit("op1", C1, self.numbers, scope, &task)
    }

    /// Submits the operator's next task through `label`, again until it is acknowledged.
    pub async fn submit(&mut self, label: &str, scope: Scope) -> TaskId {
        let entry = self.signed_task(scope);
        let id = TaskId::from(entry.id(&self.fleet.chain));
        let begun = tokio::time::Instant::now();
        loop {
            match self.agent(label).enter(entry.clone()).await {
                WriteOutcome::Committed(_) => return id,
                outcome => assert!(begun.elapsed() < PATIENCE, "not acknowledged: {outcome:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A task as `label` sees it.
    pub async fn task(&self, label: &str, task: TaskId, consistency: Consistency) -> Option<TaskView> {
        let request = OpRequest::Task {
            task,
            consistency,
            staleness_ms_max: None,
        };
        match self.agent(label).answer(request).await {
            OpAnswer::Task { task, .. } => task,
            other => panic!("{label} answered {other:?}"),
        }
    }
}
