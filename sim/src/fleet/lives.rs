//! How processes are started, looked after and killed.
//!
//! # Rules
//! * A process that ends by itself is killed and started again after a while, as a supervisor would. It
//!   may end only when its disk was in trouble a short while ago; everything else is a finding.

use std::{sync::Arc, time::Duration};

use cluster_agent::{
    agent::{Agent, Settings},
    peers::Door as AgentDoor,
    ports::AgentPorts,
    raft::RaftConfig,
    shell::Ending,
};
use common::{codec::Label, ids::ClusterId};
use futures::FutureExt;
use global_validator::{Door as ValidatorDoor, Ports as ValidatorPorts, Setup, Validator, exit::Stop};

use super::{Machine, OpenDoor, SimFleet};
use crate::{
    byzantine::twins,
    ports::Host,
    runtime::{Process, SimRuntime},
    trace::Event,
};

/// Exit code of a member that its own cluster contradicts.
const EXIT_CONTRADICTED: u8 = 70;
/// Time after which a process that ended by itself is started again.
const RESTART_US: u64 = 1_000_000;

/// Small, so that logs are read from the disk too, and hundreds of agents fit in one process.
const LOG_CACHE_BYTES: usize = 64 * 1024;

impl SimFleet {
    /// Starts every process that does not run and need not be down, and ends those that must not go on.
    pub async fn supervise(&mut self) {
        let now_us = self.trace.now_us();
        self.look_after_all(now_us);
        let is_due =
            |machine: &Machine| machine.process.is_none() && !machine.is_lost && machine.down_until_us <= now_us;
        let due = self.machines.iter().filter(|(_, machine)| is_due(machine));
        let due: Vec<String> = due.map(|(name, _)| name.clone()).collect();
        for name in due {
            let started = if self.agents.contains_key(&name) {
                self.start_agent(&name).await
            } else {
                self.start_validator(&name).await
            };
            let is_in_trouble =
                self.machine(&name).troubles.excuse_some(now_us) || self.witness.suspects().has_process(&name);
            if let Err(reason) = started {
                if !is_in_trouble {
                    self.witness
                        .violate("restarts", format!("{name} does not start: {reason}"));
                }
                self.machine_mut(&name).down_until_us = now_us + RESTART_US;
            }
        }
        self.note_sides();
    }

    /// Ends processes that cannot go on, and tells the witness of those that had no reason.
    fn look_after_all(&mut self, now_us: u64) {
        let suspects = self.witness.suspects();
        let mut ended = Vec::new();
        for (name, machine) in &self.machines {
            let Some(process) = &machine.process else { continue };
            if suspects.has_process(name) {
                // Whoever holds it starts it again.
                if process.panicked().is_some() || self.ending(name).is_some() {
                    ended.push(name.clone());
                }
                continue;
            }
            if let Some(panic) = process.panicked() {
                self.witness.violate("no-panic", format!("{name} panicked: {panic}"));
            }
            let Some((code, reason)) = self.ending(name) else {
                continue;
            };
            let is_misled = code == EXIT_CONTRADICTED && suspects.has_mate(name);
            if !machine.troubles.excuse(code, now_us) && !is_misled {
                self.witness.violate(
                    "restarts",
                    format!("{name} ended by itself with exit code {code}: {reason}"),
                );
            }
            ended.push(name.clone());
        }
        for name in ended {
            self.kill(&name, now_us + RESTART_US);
        }
    }

    fn ending(&self, name: &str) -> Option<(u8, String)> {
        if let Some(agent) = self.agent(name) {
            return match agent.ended().now_or_never()? {
                Ending::Stopped => Some((0, "asked to stop".into())),
                Ending::Fatal { exit_code, reason } => Some((exit_code, reason)),
            };
        }
        let stop: Arc<Stop> = self.validator(name)?.stop_reason()?;
        Some((stop.exit_code(), stop.to_string()))
    }

    async fn start_agent(&mut self, name: &str) -> Result<(), String> {
        let process = self.life(name);
        let machine = self.machine(name);
        let (idx, device) = (machine.idx, machine.device);
        let (clock, disk) = (Arc::new(machine.clock.clone()), Arc::new(machine.disk.clone()));
        let transport = self.network.transport(device);
        let slot = self.agents.get_mut(name).expect("an agent of this fleet");
        let incarnation = slot.incarnation;
        let ports = AgentPorts {
            transport,
            clock,
            spawner: Arc::new(process.clone()),
            entropy: Arc::new(process.clone()),
            disk,
            log: Arc::new(slot.log.open(process.clone())),
            snapshots: Arc::new(slot.snapshots.clone()),
        };
        let (snapshot_entries, snapshot_entries_kept) = self.conditions.snapshot_entries;
        let raft = RaftConfig {
            cluster_name: name.to_owned(),
            snapshot_entries,
            snapshot_entries_kept,
            log_cache_bytes: LOG_CACHE_BYTES,
            ..RaftConfig::for_profile(self.conditions.profile)
        };
        let settings = Settings {
            genesis: self.genesis.clone(),
            device: idx,
            incarnation,
            key: self.fleet.key(name),
            limits: self.conditions.limits(&raft),
            raft,
        };
        let door = AgentDoor::default();
        let started = process.run(Agent::start::<SimRuntime>(settings, ports, &door)).await;
        let agent = match started {
            Ok(agent) => agent,
            Err(error) => {
                process.kill();
                return Err(error.to_string());
            }
        };
        self.network
            .connect(device, Host::First, process.clone(), Arc::new(door));
        self.trace.record(Event::Started, idx.0, idx.0, &[name.as_bytes()]);
        let crash = self.machine(name).crash_at_apply.clone();
        if !self.witness.suspects().has_process(name) {
            self.witness.watch_agent(&process, &agent, name, idx, crash);
        }
        let open = OpenDoor {
            process: process.clone(),
            agent: agent.clone(),
        };
        self.doors.set(name, Some(open));
        if let Some(slot) = self.agents.get_mut(name) {
            slot.handle = Some(agent);
        }
        let machine = self.machine_mut(name);
        machine.process = Some(process);
        let cluster = machine.cluster;
        self.sides_changed.extend(cluster);
        Ok(())
    }

    async fn start_validator(&mut self, name: &str) -> Result<(), String> {
        let process = self.life(name);
        let machine = self.machine(name);
        let (id, idx, device, host) = (machine.id, machine.idx, machine.device, machine.host);
        let label = name.trim_end_matches(twins::SUFFIX);
        let ports = ValidatorPorts {
            transport: self.network.transport_of(device, host),
            clock: Arc::new(machine.clock.clone()),
            spawner: Arc::new(process.clone()),
            entropy: Arc::new(process.clone()),
            disk: Arc::new(machine.disk.clone()),
        };
        let setup = Setup {
            genesis: self.genesis.clone(),
            label: Label::new(label).expect("names of a test fleet are labels"),
            consensus_key: self.fleet.consensus_key(label),
            clone_watch: Duration::from_millis(500),
        };
        let door = ValidatorDoor::new();
        let started = process.run(Validator::start(setup, ports, &door)).await;
        let validator = match started {
            Ok(validator) => validator,
            Err(stop) => {
                process.kill();
                return Err(stop.to_string());
            }
        };
        self.network.connect(device, host, process.clone(), Arc::new(door));
        self.trace.record(Event::Started, id.0, id.0, &[name.as_bytes()]);
        if !self.witness.suspects().has_process(name) {
            self.witness.watch_validator(&process, &validator, name, idx);
        }
        self.validators.insert(name.to_owned(), Some(validator));
        self.machine_mut(name).process = Some(process);
        self.sides_changed = (0..self.population.clusters).map(ClusterId).collect();
        Ok(())
    }

    /// A new life of a process. What it may blame its disk for begins anew.
    fn life(&mut self, name: &str) -> Process {
        let seed = self.seeds.next_u64();
        let machine = self.machine_mut(name);
        machine.troubles.begin_life();
        machine.started_off_us = machine.clock.wall_offset_us();
        Process::new(machine.id, seed)
    }

    /// Kills a process as kill -9 would, and keeps it down until `until_us`; its disk keeps what was
    /// synced. False if it did not run.
    pub fn kill(&mut self, name: &str, until_us: u64) -> bool {
        let machine = self.machine_mut(name);
        machine.down_until_us = machine.down_until_us.max(until_us);
        // A pause is one of this life.
        machine.paused_by.clear();
        let (process, disk) = (machine.process.take(), machine.disk.clone());
        let (device, host) = (machine.device, machine.host);
        let cluster = machine.cluster;
        let Some(process) = process else { return false };
        process.kill();
        disk.crash();
        if let Some(slot) = self.agents.get_mut(name) {
            slot.log.crash();
            slot.handle = None;
            self.doors.set(name, None);
        } else {
            self.validators.insert(name.to_owned(), None);
        }
        self.network.disconnect(&device, host);
        let id = process.id().0;
        self.trace.record(Event::Killed, id, id, &[name.as_bytes()]);
        self.sides_changed.extend(cluster);
        self.note_sides();
        true
    }

    /// The same of a machine that loses power: its boot-time clock begins anew.
    pub fn cut_power(&mut self, name: &str, until_us: u64) {
        self.kill(name, until_us);
        self.machine(name).clock.restart();
    }

    /// Nothing need be down any longer, but for what is lost.
    pub fn let_all_start(&mut self) {
        for machine in self.machines.values_mut() {
            machine.down_until_us = 0;
        }
    }
}
