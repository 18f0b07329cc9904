//! The processes of a run: how they are started, watched, killed and started again.
//!
//! Disks outlive processes. Everything else of a process dies with it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use cluster_agent::{
    agent::{Agent, AgentHandle, Settings},
    config::Limits,
    peers::Door as AgentDoor,
    ports::AgentPorts,
    raft::{LinkProfile, RaftConfig},
};
use common::{
    codec::Label,
    genesis::Timing,
    ids::{ClusterId, Founding, NodeIdx, RaftNodeId},
    lease_terms::{ClockBounds, LeaseTerms},
    testing::Fleet,
    wire::frame::{Hello, WIRE_VERSION},
};
use global_validator::{Door as ValidatorDoor, Ports as ValidatorPorts, Setup, Validator};

use crate::{
    ports::{DiskTiming, LinkConditions, SimClock, SimDisk, SimLog, SimNetwork, SimSnapshots},
    random::Stream,
    runtime::{Process, ProcessId, SimRuntime},
    trace::{Event, Trace},
};

/// How many processes of each sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Population {
    /// Clusters.
    pub clusters: u32,
    /// Agents in each cluster.
    pub agents: u32,
    /// Validators.
    pub validators: u32,
}

/// The machine under every process of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Links.
    pub links: LinkConditions,
    /// Disks.
    pub disks: DiskTiming,
}

struct AgentSlot {
    disk: SimDisk,
    log: SimLog,
    snapshots: SimSnapshots,
    running: Option<(Process, AgentHandle)>,
}

struct ValidatorSlot {
    disk: SimDisk,
    running: Option<(Process, Validator)>,
}

/// A simulated fleet. Names are those of a development fleet: `c1-1`, `v1`, operator `op1`.
pub struct SimFleet {
    /// Keys and genesis file.
    pub fleet: Fleet,
    /// The links, for faults.
    pub network: SimNetwork,
    trace: Trace,
    seeds: Stream,
    agents: BTreeMap<String, AgentSlot>,
    validators: BTreeMap<String, ValidatorSlot>,
}

/// The timing of a development fleet, for links of up to 100 ms.
fn timing() -> Timing {
    Timing {
        clocks: ClockBounds {
            block_time_bound_ms: 500,
            clock_error_ms: 100,
            drift_ppm: 500,
        },
        idle_block_interval_ms: 1_000,
        delay_ms_min: 10,
        delay_ms_max: 100,
        lease: LeaseTerms {
            custody_ms: 12_000,
            lease_ms: 6_000,
            global_lease_ms: 10_200,
            stop_ms: 500,
        },
        regions_min: 0,
    }
}

impl SimFleet {
    /// A fleet of `population` with empty disks; nothing runs yet.
    #[must_use]
    pub fn new(seed: u64, population: Population, conditions: Conditions, trace: Trace) -> Self {
        let Population {
            clusters,
            agents,
            validators,
        } = population;
        let fleet = Fleet::with_timing(clusters, agents, validators, timing());
        let network = SimNetwork::new(seed, conditions.links, trace.clone());
        let disk = |idx: NodeIdx| SimDisk::new(idx.0, seed, conditions.disks, trace.clone());
        let mut agent_slots = BTreeMap::new();
        let mut validator_slots = BTreeMap::new();
        for member in fleet.registry.members() {
            let (label, disk) = (member.label.as_str().to_owned(), disk(member.idx));
            let cluster = member.cluster.map(|cluster| (cluster, Founding(0)));
            let raft = cluster.map_or(0, |_| RaftNodeId::new(member.idx, 1).0);
            let hello = Hello {
                version: WIRE_VERSION,
                chain: fleet.chain,
                device: member.id,
                cluster,
                raft,
            };
            network.enroll(ProcessId(member.idx.0), member.idx, hello);
            if cluster.is_some() {
                let (log, snapshots) = (SimLog::new(disk.clone()), SimSnapshots::new(disk.clone()));
                agent_slots.insert(
                    label,
                    AgentSlot {
                        disk,
                        log,
                        snapshots,
                        running: None,
                    },
                );
            } else if member.consensus_key.is_some() {
                validator_slots.insert(label, ValidatorSlot { disk, running: None });
            }
        }
        let seeds = Stream::split(seed, 0x6c69_6665);
        Self {
            fleet,
            network,
            trace,
            seeds,
            agents: agent_slots,
            validators: validator_slots,
        }
    }

    /// Names of all agents.
    #[must_use]
    pub fn agent_names(&self) -> Vec<String> {
        self.agents.keys().cloned().collect()
    }

    /// Names of all validators.
    #[must_use]
    pub fn validator_names(&self) -> Vec<String> {
        self.validators.keys().cloned().collect()
    }

    /// A running agent.
    #[must_use]
    pub fn agent(&self, name: &str) -> Option<AgentHandle> {
        self.agents
            .get(name)?
            .running
            .as_ref()
            .map(|(_, handle)| handle.clone())
    }

    /// A running validator.
    #[must_use]
    pub fn validator(&self, name: &str) -> Option<Validator> {
        self.validators
            .get(name)?
            .running
            .as_ref()
            .map(|(_, validator)| validator.clone())
    }

    /// The running agents of a cluster, by name.
    #[must_use]
    pub fn cluster(&self, cluster: ClusterId) -> Vec<(String, AgentHandle)> {
        let prefix = format!("c{}-", cluster.0 + 1);
        let of_cluster = self.agents.iter().filter(|(name, _)| name.starts_with(&prefix));
        of_cluster
            .filter_map(|(name, slot)| Some((name.clone(), slot.running.as_ref()?.1.clone())))
            .collect()
    }

    /// Starts everything that does not run.
    ///
    /// # Panics
    /// If a shell refuses its own disk: in a simulation that is a bug.
    pub async fn start_all(&mut self) {
        for name in self.validator_names() {
            self.start_validator(&name).await;
        }
        for name in self.agent_names() {
            self.start_agent(&name).await;
        }
    }

    /// Starts a process by name, if it does not run.
    ///
    /// # Panics
    /// If it refuses to start, or there is none of this name.
    pub async fn start(&mut self, name: &str) {
        if self.agents.contains_key(name) {
            self.start_agent(name).await;
        } else {
            self.start_validator(name).await;
        }
    }

    /// Starts an agent, if it does not run.
    ///
    /// # Panics
    /// If it refuses to start.
    pub async fn start_agent(&mut self, name: &str) {
        let idx = self.fleet.idx(name);
        let (clock, process) = (self.clock(idx), self.life(idx));
        let device = self.fleet.id(name);
        let slot = self.agents.get_mut(name).expect("an agent of this fleet");
        if slot.running.is_some() {
            return;
        }
        let ports = AgentPorts {
            transport: self.network.transport(device),
            clock: Arc::new(clock),
            spawner: Arc::new(process.clone()),
            entropy: Arc::new(process.clone()),
            disk: Arc::new(slot.disk.clone()),
            log: Arc::new(slot.log.open(process.clone())),
            snapshots: Arc::new(slot.snapshots.clone()),
        };
        let raft = RaftConfig {
            cluster_name: name.to_owned(),
            ..RaftConfig::for_profile(LinkProfile::Dev)
        };
        let settings = Settings {
            genesis: Arc::new(self.fleet.genesis.clone()),
            device: idx,
            incarnation: 1,
            key: self.fleet.key(name),
            limits: Limits::for_raft(&raft),
            raft,
        };
        let door = AgentDoor::default();
        let started = process.run(Agent::start::<SimRuntime>(settings, ports, &door)).await;
        let handle = started.unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        self.network.connect(device, process.clone(), Arc::new(door));
        self.trace.record(Event::Started, idx.0, idx.0, name.as_bytes());
        watch_agent(&process, &handle, self.trace.clone(), idx);
        slot.running = Some((process, handle));
    }

    /// Starts a validator, if it does not run.
    ///
    /// # Panics
    /// If it refuses to start.
    pub async fn start_validator(&mut self, name: &str) {
        let idx = self.fleet.idx(name);
        let (clock, process) = (self.clock(idx), self.life(idx));
        let device = self.fleet.id(name);
        let slot = self.validators.get_mut(name).expect("a validator of this fleet");
        if slot.running.is_some() {
            return;
        }
        let ports = ValidatorPorts {
            transport: self.network.transport(device),
            clock: Arc::new(clock),
            spawner: Arc::new(process.clone()),
            entropy: Arc::new(process.clone()),
            disk: Arc::new(slot.disk.clone()),
        };
        let setup = Setup {
            genesis: Arc::new(self.fleet.genesis.clone()),
            label: Label::new(name).expect("names of a test fleet are labels"),
            consensus_key: self.fleet.consensus_key(name),
            clone_watch: Duration::from_millis(500),
        };
        let door = ValidatorDoor::new();
        let started = process.run(Validator::start(setup, ports, &door)).await;
        let validator = started.unwrap_or_else(|stop| panic!("{name} does not start: {stop}"));
        self.network.connect(device, process.clone(), Arc::new(door));
        self.trace.record(Event::Started, idx.0, idx.0, name.as_bytes());
        watch_validator(&process, &validator, self.trace.clone(), idx);
        slot.running = Some((process, validator));
    }

    /// Kills a process as kill -9 would; its disk keeps what was synced. False if it did not run.
    pub fn kill(&mut self, name: &str) -> bool {
        let process = match (self.agents.get_mut(name), self.validators.get_mut(name)) {
            (Some(slot), _) => slot.running.take().map(|(process, _)| process),
            (_, Some(slot)) => slot.running.take().map(|(process, _)| process),
            _ => None,
        };
        let Some(process) = process else { return false };
        process.kill();
        self.network.disconnect(&self.fleet.id(name));
        let id = process.id().0;
        self.trace.record(Event::Killed, id, id, name.as_bytes());
        true
    }

    fn life(&mut self, idx: NodeIdx) -> Process {
        Process::new(ProcessId(idx.0), self.seeds.next_u64())
    }

    /// A clock that showed some minutes when the run began, as machines that booted at different times do.
    fn clock(&self, idx: NodeIdx) -> SimClock {
        SimClock::new(self.trace.clone(), u64::from(idx.0 + 1) * 60_000_000)
    }
}

/// Records the digest of the queue after each step of the log.
fn watch_agent(process: &Process, handle: &AgentHandle, trace: Trace, idx: NodeIdx) {
    let machine = handle.machine();
    process.spawn(async move {
        let mut seen = 0;
        loop {
            machine.pulse().next(&mut seen).await;
            let digest = machine.with(|state| state.queue.digest());
            trace.record(Event::Applied, idx.0, idx.0, &digest.0);
        }
    });
}

/// Records the root of the state after each executed block.
fn watch_validator(process: &Process, validator: &Validator, trace: Trace, idx: NodeIdx) {
    let executed = validator.executed().clone();
    process.spawn(async move {
        let mut height = common::ids::Height(0);
        loop {
            let now = executed.wait_until(|executed| executed.queue.height() > height).await;
            height = now.queue.height();
            trace.record(Event::Applied, idx.0, idx.0, &now.queue.state_root().0);
        }
    });
}
