//! The processes of a run: how they are started, watched, killed, paused and started again.
//!
//! # Rules
//! * Disks and clocks outlive processes. Everything else of a process dies with it: see `lives`.

mod conditions;
mod doors;
mod enemies;
mod lives;
mod lost_disks;
mod sides;
#[cfg(test)]
mod tests;
mod troubles;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cluster_agent::{agent::AgentHandle, raft::RaftRole};
use common::{
    genesis::Genesis,
    ids::{ClusterId, DeviceId, Founding, NodeIdx, RaftNodeId},
    registry::Member,
    testing::Fleet,
    wire::frame::{Hello, WIRE_VERSION},
};
use global_validator::Validator;

use conditions::timing;
pub use conditions::{Conditions, DRIFT_PPM, Population};
pub use doors::{CrashSwitch, Doors, OpenDoor};
use enemies::Placed;
use troubles::Troubles;

use crate::{
    byzantine::{Enemy, twins},
    ports::{Direction, DiskTrouble, Host, RecordPool, SimClock, SimDisk, SimLog, SimNetwork, SimSnapshots},
    random::Stream,
    runtime::{Process, ProcessId},
    trace::Trace,
    witness::Witness,
};

/// What a process runs on.
struct Machine {
    id: ProcessId,
    idx: NodeIdx,
    device: DeviceId,
    /// Of an agent.
    cluster: Option<ClusterId>,
    host: Host,
    disk: SimDisk,
    clock: SimClock,
    process: Option<Process>,
    /// What the wall clock was off by when the last life of its process began.
    started_off_us: i64,
    /// Its process dies behind the next entry that it applies.
    crash_at_apply: CrashSwitch,
    /// The faults that want that.
    crash_wanted_by: BTreeSet<u64>,
    down_until_us: u64,
    /// A validator whose disk is lost: its key must not sign again, and there is no other.
    is_lost: bool,
    /// What is wrong with its disk, and what its process may blame on it.
    troubles: Troubles,
    /// The faults that stop this life of its process, and since when there is one.
    paused_by: BTreeSet<u64>,
    paused_since_us: u64,
}

impl Machine {
    /// The machine of `member`, or with [`Host::Second`] another one of its identity; nothing runs on it yet.
    fn new(id: ProcessId, member: &Member, host: Host, disk: SimDisk, clock: SimClock) -> Self {
        Self {
            id,
            idx: member.idx,
            device: member.id,
            cluster: member.cluster,
            host,
            disk,
            clock,
            process: None,
            started_off_us: 0,
            crash_at_apply: CrashSwitch::default(),
            crash_wanted_by: BTreeSet::new(),
            down_until_us: 0,
            is_lost: false,
            troubles: Troubles::default(),
            paused_by: BTreeSet::new(),
            paused_since_us: 0,
        }
    }
}

struct AgentSlot {
    /// Which disk of its machine it is, from 1.
    incarnation: u32,
    log: SimLog,
    snapshots: SimSnapshots,
    handle: Option<AgentHandle>,
}

/// A simulated fleet. Names are those of a development fleet: `c1-1`, `v1`, operator `op1`.
pub struct SimFleet {
    /// Keys and genesis file.
    pub fleet: Fleet,
    /// The same file for every process: it has a line for each device of the fleet.
    genesis: Arc<Genesis>,
    /// How many processes there are.
    pub population: Population,
    /// Its machines when nothing is wrong.
    pub conditions: Conditions,
    /// The links.
    pub network: SimNetwork,
    /// Ways to the running agents.
    pub doors: Doors,
    /// Who is told what happens.
    pub witness: Witness,
    trace: Trace,
    seeds: Stream,
    machines: BTreeMap<String, Machine>,
    agents: BTreeMap<String, AgentSlot>,
    validators: BTreeMap<String, Option<Validator>>,
    /// Cut directions by the number of the fault that cuts them.
    cuts: BTreeMap<u64, BTreeSet<Direction>>,
    sides: BTreeMap<String, bool>,
    /// Clusters in which something was cut, opened, started or killed since their sides were looked at.
    sides_changed: BTreeSet<ClusterId>,
    placed: Vec<Placed>,
    /// Enemies that wait for a leader.
    waiting: Vec<Enemy>,
}

impl Drop for SimFleet {
    /// A soak plays thousands of fleets in one process.
    fn drop(&mut self) {
        for process in self.machines.values().filter_map(|machine| machine.process.as_ref()) {
            process.kill();
        }
        self.doors.close_all();
        self.network.dissolve();
    }
}

impl SimFleet {
    /// A fleet of `population` with empty disks; nothing runs yet.
    #[must_use]
    pub fn new(
        seed: u64,
        population: Population,
        conditions: Conditions,
        trace: Trace,
        make: impl FnOnce(&Fleet) -> Witness,
    ) -> Self {
        let fleet = Fleet::with_timing(
            population.clusters,
            population.agents,
            population.validators,
            timing(conditions.drift_ppm_max),
        );
        let network = SimNetwork::new(seed, conditions.links, trace.clone());
        let witness = make(&fleet);
        network.listen(Arc::new(witness.clone()));
        let mut drifts = Stream::split(seed, 0x6472_6966);
        let mut sim = Self {
            genesis: Arc::new(fleet.genesis.clone()),
            fleet,
            population,
            conditions,
            network,
            doors: Doors::default(),
            witness,
            seeds: Stream::split(seed, 0x6c69_6665),
            trace,
            machines: BTreeMap::new(),
            agents: BTreeMap::new(),
            validators: BTreeMap::new(),
            cuts: BTreeMap::new(),
            sides: BTreeMap::new(),
            sides_changed: BTreeSet::new(),
            placed: Vec::new(),
            waiting: Vec::new(),
        };
        let mut pools: BTreeMap<ClusterId, RecordPool> = BTreeMap::new();
        for member in sim.fleet.registry.members() {
            let cluster = member.cluster.map(|cluster| (cluster, Founding(0)));
            let hello = Hello {
                version: WIRE_VERSION,
                chain: sim.fleet.chain,
                device: member.id,
                cluster,
                raft: cluster.map_or(0, |_| RaftNodeId::new(member.idx, 1).0),
            };
            sim.network.enroll(ProcessId(member.idx.0), member.idx, hello);
            let name = member.label.as_str().to_owned();
            let disk = SimDisk::new(member.idx.0, seed, conditions.disks, sim.trace.clone());
            if let Some(cluster) = member.cluster {
                let pool = pools.entry(cluster).or_default();
                let slot = AgentSlot {
                    incarnation: 1,
                    log: SimLog::sharing(disk.clone(), pool.clone()),
                    snapshots: SimSnapshots::new(disk.clone()),
                    handle: None,
                };
                let kept = (slot.log.clone(), slot.snapshots.clone());
                sim.witness.watch_log(cluster, member.idx, name.clone(), kept);
                sim.agents.insert(name.clone(), slot);
            } else if member.consensus_key.is_some() {
                sim.witness.watch_disk(member.idx, &disk, sim.fleet.chain);
                sim.validators.insert(name.clone(), None);
            } else {
                continue;
            }
            // Validators' clocks are held together from outside, or nothing would become final.
            let is_agent = member.cluster.is_some();
            let most = u64::from(if is_agent {
                conditions.drift_ppm_max
            } else {
                conditions.drift_ppm_max.min(DRIFT_PPM)
            });
            let drift_ppm = drifts.between(0, 2 * most) as i64 - most as i64;
            // Machines booted at different times.
            let clock = SimClock::new(sim.trace.clone(), u64::from(member.idx.0 + 1) * 60_000_000, drift_ppm);
            let machine = Machine::new(ProcessId(member.idx.0), member, Host::First, disk, clock);
            sim.machines.insert(name, machine);
        }
        sim
    }

    /// Names of all agents.
    #[must_use]
    pub fn agent_names(&self) -> Vec<String> {
        self.agents.keys().cloned().collect()
    }

    /// Names of all validators; the second of twins is not counted.
    #[must_use]
    pub fn validator_names(&self) -> Vec<String> {
        let is_first = |name: &&String| self.machine(name).host == Host::First;
        self.validators.keys().filter(is_first).cloned().collect()
    }

    /// Names of the machines that validators run on: the second of twins too, and none whose disk is lost, to which
    /// nothing can happen any more.
    #[must_use]
    pub fn validator_machines(&self) -> Vec<String> {
        let mut names: Vec<String> = self.validators.keys().cloned().collect();
        names.retain(|name| !self.is_lost(name));
        names
    }

    /// Names of the validators whose disks are not lost.
    #[must_use]
    pub fn validators_left(&self) -> Vec<String> {
        let mut names = self.validator_names();
        names.retain(|name| !self.is_lost(name));
        names
    }

    /// Names of the validators that are in nobody's hands, and not lost.
    #[must_use]
    pub fn honest_validators(&self) -> Vec<String> {
        let mut names = self.validator_names();
        names.retain(|name| self.placed.iter().all(|enemy| enemy.who != *name) && !self.is_lost(name));
        names
    }

    /// Whether this is a validator whose disk is lost, so that it does not come back.
    #[must_use]
    pub fn is_lost(&self, name: &str) -> bool {
        self.machine(name).is_lost
    }

    /// Names of the agents of each cluster.
    #[must_use]
    pub fn clusters(&self) -> Vec<Vec<String>> {
        (0..self.population.clusters)
            .map(|cluster| self.members(ClusterId(cluster)))
            .collect()
    }

    fn members(&self, cluster: ClusterId) -> Vec<String> {
        let name = |agent| format!("c{}-{agent}", cluster.0 + 1);
        (1..=self.population.agents).map(name).collect()
    }

    /// A running agent.
    #[must_use]
    pub fn agent(&self, name: &str) -> Option<&AgentHandle> {
        self.agents.get(name)?.handle.as_ref()
    }

    /// A running validator.
    #[must_use]
    pub fn validator(&self, name: &str) -> Option<&Validator> {
        self.validators.get(name)?.as_ref()
    }

    /// The agent of a cluster that leads in the newest term, if one leads.
    #[must_use]
    pub fn leader(&self, cluster: &[String]) -> Option<String> {
        let statuses = cluster
            .iter()
            .filter_map(|name| Some((name, self.agent(name)?.raft().status())));
        let leaders = statuses.filter(|(_, status)| status.role == RaftRole::Leader);
        let newest = leaders.max_by_key(|(_, status)| status.term);
        newest.map(|(name, _)| name.clone())
    }

    fn machine(&self, name: &str) -> &Machine {
        self.machines
            .get(name)
            .unwrap_or_else(|| panic!("no process is called {name}"))
    }

    fn machine_mut(&mut self, name: &str) -> &mut Machine {
        self.machines
            .get_mut(name)
            .unwrap_or_else(|| panic!("no process is called {name}"))
    }

    /// The number of a process.
    #[must_use]
    pub fn id(&self, name: &str) -> ProcessId {
        self.machine(name).id
    }

    /// The numbers of the processes behind an identity: one, or two if it has a twin.
    pub fn ids(&self, name: &str) -> impl Iterator<Item = ProcessId> + use<> {
        let twin = self.machines.get(&format!("{name}{}", twins::SUFFIX));
        let twin = twin.map(|machine| machine.id);
        std::iter::once(self.id(name)).chain(twin)
    }

    /// The clocks of a machine.
    #[must_use]
    pub fn clock(&self, name: &str) -> SimClock {
        self.machine(name).clock.clone()
    }

    /// What the wall clock of a machine was off by when the last life of its process began.
    #[must_use]
    pub fn started_off_us(&self, name: &str) -> i64 {
        self.machine(name).started_off_us
    }

    /// The log of an agent.
    #[must_use]
    pub fn log(&self, name: &str) -> Option<&SimLog> {
        self.agents.get(name).map(|slot| &slot.log)
    }

    /// The snapshots of an agent.
    #[must_use]
    pub fn snapshots(&self, name: &str) -> Option<&SimSnapshots> {
        self.agents.get(name).map(|slot| &slot.snapshots)
    }

    /// Begins trouble of a disk in the name of the fault `number`, beside that of others, or ends it with
    /// [`DiskTrouble::Healthy`].
    pub fn set_trouble(&mut self, number: u64, name: &str, trouble: DiskTrouble) {
        let now_us = self.trace.now_us();
        let machine = self.machine_mut(name);
        machine.troubles.set(number, trouble, now_us);
        machine.disk.set_trouble(machine.troubles.worst());
    }

    /// What is wrong with a disk.
    #[must_use]
    pub fn trouble(&self, name: &str) -> DiskTrouble {
        self.machine(name).disk.trouble()
    }

    /// An agent's process dies behind the next entry that it applies, in the name of the fault `number`; `false` takes
    /// that back, unless another fault wants it too.
    pub fn set_crash_at_apply(&mut self, number: u64, name: &str, is_set: bool) {
        let machine = self.machine_mut(name);
        if is_set {
            machine.crash_wanted_by.insert(number);
            machine.crash_at_apply.set(true);
            return;
        }
        machine.crash_wanted_by.remove(&number);
        if machine.crash_wanted_by.is_empty() {
            machine.crash_at_apply.set(false);
        }
    }

    /// Whether an agent's process is to die behind the next entry.
    #[must_use]
    pub fn crashes_at_apply(&self, name: &str) -> bool {
        self.machine(name).crash_at_apply.is_set()
    }

    /// Whether a process runs.
    #[must_use]
    pub fn is_running(&self, name: &str) -> bool {
        self.machine(name).process.is_some()
    }

    /// Whether a process died in the midst of something, and its machine does not know yet.
    #[must_use]
    pub fn has_died(&self, name: &str) -> bool {
        self.machine(name).process.as_ref().is_some_and(Process::is_killed)
    }

    /// Stops every task of a process where it stands, in the name of the fault `number`, until
    /// [`resume`](Self::resume). A process that does not run is not stopped when it starts.
    pub fn pause(&mut self, number: u64, name: &str) {
        let now_us = self.trace.now_us();
        let machine = self.machine_mut(name);
        if let Some(process) = &machine.process {
            process.pause();
            if machine.paused_by.is_empty() {
                machine.paused_since_us = now_us;
            }
            machine.paused_by.insert(number);
        }
    }

    /// Lets it go on, unless another fault stops it too.
    pub fn resume(&mut self, number: u64, name: &str) {
        let now_us = self.trace.now_us();
        let machine = self.machine_mut(name);
        if !machine.paused_by.remove(&number) || !machine.paused_by.is_empty() {
            return;
        }
        machine.troubles.resume(now_us - machine.paused_since_us, now_us);
        if let Some(process) = &machine.process {
            process.resume();
        }
    }

    /// Whether a process is stopped.
    #[must_use]
    pub fn is_paused(&self, name: &str) -> bool {
        self.machine(name).process.as_ref().is_some_and(Process::is_paused)
    }
}
