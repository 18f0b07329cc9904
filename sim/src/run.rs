//! One run: a fleet under a workload and faults in virtual time, from one seed.
//!
//! # Rules
//! * For the length of the plan the operators write and faults come. Then everything heals, nothing new is
//!   asked for, and the fleet has a bounded time to settle.
//! * A violation ends the run at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use cluster_agent::raft::{LinkProfile, RaftConfig};
use cluster_core::queue::ClusterQueue;
use common::{
    codec::{decode, encode},
    ids::{ClusterId, Digest, Height, TaskId},
    recall::Recall,
    validator_set::ValidatorSet,
    wire::{
        frame::FrameKind,
        op::{OpAnswer, OpRequest},
    },
};
use transport::ports::Transport;

use crate::{
    byzantine::{Enemies, EnemyReport},
    checkers::{self, Checker, Observation, SETTLE_US},
    faults::{Injected, Nemesis, Strike, Weather},
    fleet::{Conditions, DRIFT_PPM, Population, SimFleet},
    ports::{DiskTiming, LinkConditions},
    random::Stream,
    scenario::{Scenario, Scripted},
    schedule::Schedule,
    timeline::{Sample, Timeline},
    trace::{Counts, Trace, Volume},
    witness::{Violation, Witness},
    workload::{self, Desk, Load},
};

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Determines everything below chance.
    pub seed: u64,
    /// Processes.
    pub population: Population,
    /// Links, disks, clocks.
    pub conditions: Conditions,
    /// Work.
    pub load: Load,
    /// Faults.
    pub weather: Weather,
    /// How long the operators write and faults come.
    pub lasts: Duration,
    /// Only the checker of this name judges; `None`: all do.
    pub judge: Option<&'static str>,
    /// Processes in an enemy's hands.
    pub enemies: Enemies,
}

/// Delays of 2 to 20 ms, a little loss.
const USUAL_LINKS: LinkConditions = LinkConditions {
    delay_us_min: 2_000,
    delay_us_max: 20_000,
    loss_ppm: 1_000,
    spike_ppm: 0,
    spike_us: 0,
    duplicate_ppm: 0,
    bytes_per_second: 0,
};

impl Plan {
    /// The population for finding bugs: 3 clusters of 3 agents and 4 validators in half of the seeds, else 1
    /// to 3 clusters of 3 to 7; a fault every 8 s, up to 3 at once.
    #[must_use]
    pub fn small(seed: u64) -> Self {
        let mut random = Stream::split(seed, 0x706f_7075);
        let (clusters, agents) = match random.between(0, 7) {
            0 => (1, 5),
            1 => (2, 5),
            2 => (1, 7),
            3 => (2, 4),
            _ => (3, 3),
        };
        let snapshot_entries = random.between(100, 1_500);
        Self {
            seed,
            population: Population {
                clusters,
                agents,
                validators: 4,
            },
            conditions: Conditions {
                links: USUAL_LINKS,
                disks: DiskTiming {
                    sync_us_min: 500,
                    sync_us_max: 5_000,
                },
                drift_ppm_max: DRIFT_PPM,
                profile: LinkProfile::Dev,
                snapshot_entries: (snapshot_entries, snapshot_entries / 2),
                outbox_bytes_max: None,
            },
            load: Load {
                write_every: Duration::from_millis(100),
                read_every: Duration::from_millis(200),
                look_us: (100_000, 400_000),
                work_max: Duration::from_secs(3),
            },
            weather: Weather {
                every_us: 8_000_000,
                lasts_us: (500_000, 15_000_000),
                at_once_max: 3,
                only: None,
            },
            lasts: Duration::from_secs(40),
            judge: None,
            enemies: Enemies::default(),
        }
    }

    /// The population for enemies: 2 clusters of 3 agents and 4 validators, one of these in an enemy's
    /// hands, and in half of the seeds the leader of a cluster as well; faults beside them.
    #[must_use]
    pub fn byzantine(seed: u64) -> Self {
        let small = Self::small(seed);
        let population = Population {
            clusters: 2,
            agents: 3,
            validators: 4,
        };
        Self {
            population,
            lasts: Duration::from_secs(20),
            enemies: Enemies::draw(seed, population),
            ..small
        }
    }

    /// The population for scale: 50 clusters of 10 agents and 7 validators.
    #[must_use]
    pub fn fleet(seed: u64) -> Self {
        let small = Self::small(seed);
        Self {
            population: Population {
                clusters: 50,
                agents: 10,
                validators: 7,
            },
            conditions: Conditions {
                profile: LinkProfile::Mesh,
                snapshot_entries: (10_000, 5_000),
                ..small.conditions
            },
            load: Load {
                write_every: Duration::from_secs(1),
                read_every: Duration::from_secs(5),
                look_us: (1_000_000, 3_000_000),
                ..small.load
            },
            ..small
        }
    }
}

/// What a run left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The plan.
    pub plan: Plan,
    /// Equal in every run of this plan by this build.
    pub trace_hash: Digest,
    /// Events behind the hash.
    pub counts: Counts,
    /// Frames delivered, by the kind byte of their header.
    pub delivered: BTreeMap<u8, Volume>,
    /// State machines seen at a new position.
    pub applies: u64,
    /// Virtual time it took.
    pub virtual_ms: u64,
    /// Faults, in the order of their ends.
    pub faults: Vec<Injected>,
    /// Those that were drawn, as they are replayed.
    pub strikes: Vec<Strike>,
    /// What enemies did.
    pub enemies: Vec<EnemyReport>,
    /// Tasks whose submission was acknowledged.
    pub tasks_acked: u64,
    /// Of these, final on every validator.
    pub tasks_final: u64,
    /// Completions acknowledged to drones.
    pub completed: u64,
    /// Writes sent again.
    pub retries: u64,
    /// Linearizable reads answered.
    pub linearizable_reads: u64,
    /// Writes and reads refused for want of a majority.
    pub no_quorum: u64,
    /// Lowest final height of a validator.
    pub height: Height,
    /// How each process stood at the end, a line each.
    pub processes: Vec<String>,
    /// How it looked second by second, if it was filmed.
    pub timeline: Timeline,
    /// What broke, if anything did.
    pub violation: Option<Violation>,
}

/// Beside a plan: what happens when, and who looks on.
#[derive(Default)]
pub struct Staging<'a> {
    /// Faults that were drawn before, in the place of new ones.
    pub replayed: Option<Vec<Strike>>,
    /// Faults of a scenario.
    pub script: &'a [Scripted],
    /// Checkers beside [`checkers::all`].
    pub checkers: Vec<Box<dyn Checker>>,
    /// Whether [`Report::timeline`] is kept.
    pub is_filmed: bool,
}

/// Runs `plan` to its end.
///
/// # Panics
/// If a rule of the simulator itself is broken.
#[must_use]
pub fn run(plan: Plan) -> Report {
    run_staged(plan, Staging::default())
}

/// Runs a scenario with the chance of `seed`.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn run_scenario(scenario: &Scenario, seed: u64) -> Report {
    run_with(scenario.plan(seed), &scenario.faults)
}

/// Runs `plan` with the faults of `script` beside those it draws.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn run_with(plan: Plan, script: &[Scripted]) -> Report {
    let staging = Staging {
        script,
        ..Staging::default()
    };
    run_staged(plan, staging)
}

/// Runs a schedule: equal to the run that it was taken from, if nothing was left out.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn run_schedule(schedule: &Schedule) -> Report {
    let staging = Staging {
        replayed: Some(schedule.strikes.clone()),
        ..Staging::default()
    };
    run_staged(schedule.plan(), staging)
}

/// Runs `plan` with these faults and checkers.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn run_staged(plan: Plan, staging: Staging<'_>) -> Report {
    // All machines of the run check the same signatures and blocks.
    let _recall = Recall::begin();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime with a timer only needs memory");
    runtime.block_on(simulate(plan, staging))
}

/// Between two looks at processes and faults.
const TICK: Duration = Duration::from_millis(20);
/// Looks at sizes and logs come every so many ticks.
const TICKS_PER_INSPECTION: u64 = 50;
/// Looks at the health of a healed fleet come every so many ticks.
const TICKS_PER_HEALTH: u64 = 10;
/// Proofs asked for at the end.
const PROOFS: usize = 3;
/// Records above what snapshots leave that a log may have: what comes in while one is made and purged.
const LOG_SLACK: u64 = 3_000;

struct World {
    plan: Plan,
    trace: Trace,
    fleet: SimFleet,
    desk: Desk,
    nemesis: Nemesis,
    timeline: Option<Timeline>,
    ticks: u64,
}

async fn simulate(plan: Plan, mut staging: Staging<'_>) -> Report {
    let trace = Trace::begin();
    let extra = std::mem::take(&mut staging.checkers);
    let make = |fleet: &common::testing::Fleet| {
        let genesis = Arc::new(fleet.genesis.clone());
        let set = ValidatorSet::from_genesis(&genesis);
        let mut checkers = checkers::all(&genesis);
        checkers.extend(extra);
        Witness::new(trace.clone(), set, checkers).only(plan.judge)
    };
    let mut fleet = SimFleet::new(plan.seed, plan.population, plan.conditions, trace.clone(), make);
    fleet.hack(plan.enemies);
    fleet.supervise().await;
    let desk = workload::start(&fleet, plan.load, plan.seed);
    let mut world = World {
        nemesis: match staging.replayed {
            Some(strikes) => Nemesis::replaying(strikes),
            None => Nemesis::new(plan.seed, plan.weather),
        }
        .with_script(staging.script),
        timeline: staging.is_filmed.then(Timeline::default),
        plan,
        trace,
        fleet,
        desk,
        ticks: 0,
    };
    if world.live().await && world.settle().await {
        world.ask_at_the_end().await;
        world.fleet.witness.finish();
    }
    world.report()
}

impl World {
    /// One tick. False when something is broken.
    async fn tick(&mut self) -> bool {
        tokio::time::sleep(TICK).await;
        self.ticks += 1;
        let now_us = self.trace.now_us();
        self.nemesis.step(&mut self.fleet, now_us);
        self.fleet.step_enemies(now_us);
        self.fleet.supervise().await;
        if self.ticks.is_multiple_of(TICKS_PER_INSPECTION) {
            self.inspect();
            self.film();
        }
        self.fleet.witness.violation().is_none()
    }

    async fn live(&mut self) -> bool {
        let ends_us = u64::try_from(self.plan.lasts.as_micros()).unwrap_or(u64::MAX);
        while self.trace.now_us() < ends_us {
            if !self.tick().await {
                return false;
            }
        }
        true
    }

    /// Heals everything and waits until the fleet has settled. False when something is broken.
    async fn settle(&mut self) -> bool {
        self.desk.close();
        let healed_us = self.trace.now_us();
        self.nemesis.heal(&mut self.fleet, healed_us);
        self.fleet.supervise().await;
        self.fleet.witness.see(&Observation::Healed);
        // Heights count from here, for the checker too.
        self.fleet.witness.see(&self.health());
        let first = self.lowest_height();
        loop {
            if !self.tick().await {
                return false;
            }
            if !self.ticks.is_multiple_of(TICKS_PER_HEALTH) {
                continue;
            }
            let health = self.health();
            self.fleet.witness.see(&health);
            let is_well = matches!(
                &health,
                Observation::Health { leaderless, open_writes: 0, outbox_bytes: 0, not_final: 0, height }
                    if leaderless.is_empty() && *height > first
            );
            if is_well || self.trace.now_us() - healed_us > SETTLE_US + 1_000_000 {
                return self.fleet.witness.violation().is_none();
            }
        }
    }

    fn inspect(&self) {
        self.fleet.witness.look_at_logs();
        let (entries, kept) = self.plan.conditions.snapshot_entries;
        let quota = self
            .plan
            .conditions
            .limits(&RaftConfig::for_profile(self.plan.conditions.profile))
            .outbox_bytes_max;
        for name in self.fleet.agent_names() {
            let (Some(agent), Some(log)) = (self.fleet.agent(&name), self.fleet.log(&name)) else {
                continue;
            };
            let records = log.range().map_or(0, |(first, last)| last.0 + 1 - first.0);
            self.fleet.witness.see(&Observation::Sizes {
                agent: name.clone(),
                outbox_bytes: agent.machine().with(|state| state.queue.batcher().pending_bytes()),
                outbox_bytes_max: quota,
                log_records: records,
                log_records_max: entries + kept + LOG_SLACK,
            });
        }
    }

    /// Adds a sample to the timeline, if there is one.
    fn film(&mut self) {
        let Some(mut timeline) = self.timeline.take() else {
            return;
        };
        let at_ms = self.trace.now_us() / 1_000;
        let acknowledged = self.desk.journal().acknowledged.len() as u64;
        let clusters = self.fleet.clusters();
        let leader = |members: &Vec<String>| {
            let name = self.fleet.leader(members)?;
            let term = self.fleet.agent(&name)?.status().context.term.0;
            Some((name, term))
        };
        let most = |members: &Vec<String>, of: fn(&ClusterQueue) -> u64| {
            let agents = members.iter().filter_map(|name| self.fleet.agent(name));
            agents
                .map(|agent| agent.machine().with(|state| of(&state.queue)))
                .max()
                .unwrap_or(0)
        };
        let honest = self.fleet.honest_validators();
        let highest = honest.iter().filter_map(|name| self.fleet.validator(name));
        let highest = highest.map(|validator| validator.executed().get().queue.height()).max();
        let sample = Sample {
            at_ms,
            leaders: clusters.iter().map(leader).collect(),
            open_tasks: clusters
                .iter()
                .map(|members| most(members, |queue| queue.open_tasks()))
                .collect(),
            outbox_bytes: clusters
                .iter()
                .map(|members| most(members, |queue| queue.batcher().pending_bytes()))
                .collect(),
            finality_lag_ms: timeline.lag_ms(at_ms, acknowledged, self.tasks_final()),
            heights: (self.lowest_height(), highest.unwrap_or_default()),
        };
        timeline.samples.push(sample);
        self.timeline = Some(timeline);
    }

    fn lowest_height(&self) -> Height {
        let names = self.fleet.honest_validators();
        let heights = names.iter().map(|name| {
            let validator = self.fleet.validator(name);
            validator.map_or(Height(0), |validator| validator.executed().get().queue.height())
        });
        heights.min().unwrap_or_default()
    }

    fn health(&self) -> Observation {
        let mut leaderless = Vec::new();
        let mut outbox_bytes = 0;
        let suspects = self.fleet.witness.suspects();
        let clusters = (0..).zip(self.fleet.clusters());
        for (number, members) in clusters.filter(|(number, _)| !suspects.has_cluster(ClusterId(*number))) {
            let leader = self.fleet.leader(&members);
            let leader = leader.and_then(|name| Some(self.fleet.agent(&name)?.status().raft));
            let follows = |name: &String| {
                let known = self.fleet.agent(name).map(|agent| agent.status().context.leader);
                known == Some(leader)
            };
            if leader.is_none() || !members.iter().all(follows) {
                leaderless.push(ClusterId(number));
            }
            for agent in members.iter().filter_map(|name| self.fleet.agent(name)) {
                outbox_bytes += agent.machine().with(|state| {
                    let batcher = state.queue.batcher();
                    let rows = batcher.outbox().filter(|batch| !batch.entries.is_empty());
                    rows.map(|batch| batch.bytes).sum::<u64>() + batcher.open_len() as u64
                });
            }
        }
        let (acknowledged, open_writes) = {
            let journal = self.desk.journal();
            (journal.acknowledged.len() as u64, journal.open_writes)
        };
        Observation::Health {
            leaderless,
            open_writes,
            outbox_bytes,
            not_final: acknowledged - self.tasks_final(),
            height: self.lowest_height(),
        }
    }

    /// Acknowledged tasks that every validator's final state has.
    fn tasks_final(&self) -> u64 {
        let names = self.fleet.honest_validators();
        let states: Vec<_> = names
            .iter()
            .map(|name| Some(self.fleet.validator(name)?.executed().get().queue.clone()))
            .collect();
        let is_final = |task: &&TaskId| {
            let has = |state: &Option<Arc<common::global_queue::GlobalQueue>>| {
                state.as_ref().is_some_and(|state| state.task(task).is_some())
            };
            states.iter().all(has)
        };
        self.desk.journal().acknowledged.keys().filter(is_final).count() as u64
    }

    /// What everybody knows, and proofs of some tasks.
    async fn ask_at_the_end(&self) {
        let witness = &self.fleet.witness;
        let tasks: Vec<TaskId> = self.desk.journal().acknowledged.keys().copied().collect();
        for name in self.fleet.validator_names() {
            let Some(validator) = self.fleet.validator(&name) else {
                continue;
            };
            let state = validator.executed().get().queue.clone();
            let known: BTreeSet<TaskId> = tasks
                .iter()
                .filter(|task| state.task(task).is_some())
                .copied()
                .collect();
            witness.see(&Observation::Knows {
                process: name,
                cluster: None,
                tasks: Arc::new(known),
            });
        }
        for name in self.fleet.agent_names() {
            let Some(agent) = self.fleet.agent(&name) else { continue };
            let (cluster, known) = agent.machine().with(|state| {
                let queue = &state.queue;
                let is_known = |task: &&TaskId| queue.task_row(task).is_some() || queue.global().task(task).is_some();
                let known: BTreeSet<TaskId> = tasks.iter().filter(is_known).copied().collect();
                (queue.cluster(), known)
            });
            witness.see(&Observation::Knows {
                process: name,
                cluster: Some(cluster),
                tasks: Arc::new(known),
            });
        }
        let step = (tasks.len() / PROOFS).max(1);
        for task in tasks.iter().step_by(step) {
            self.ask_for_proof(*task).await;
        }
    }

    async fn ask_for_proof(&self, task: TaskId) {
        let operator = self.fleet.network.transport(self.fleet.fleet.id("op1"));
        let honest = self.fleet.honest_validators();
        let Some(validator) = honest.first().map(|name| self.fleet.fleet.id(name)) else {
            return;
        };
        let body = encode(&OpRequest::Prove { task }).into();
        let asked = operator
            .call(validator, FrameKind::Operate, body, Duration::from_secs(30))
            .await;
        if let Some(OpAnswer::Proof(bytes)) = asked.ok().and_then(|bytes| decode(&bytes).ok()) {
            self.fleet.witness.see(&Observation::Proof {
                task,
                bytes: bytes.to_vec(),
            });
        }
    }

    /// Where everybody stands, for whoever looks into a violation.
    fn processes(&self) -> Vec<String> {
        let agent = |name: &String| {
            let Some(agent) = self.fleet.agent(name) else {
                return format!("{name}: down");
            };
            let (status, raft) = (agent.status(), agent.raft().status());
            let context = &status.context;
            let (closed, open) = agent.machine().with(|state| {
                let batcher = state.queue.batcher();
                (batcher.last_closed().seq, batcher.open_len())
            });
            format!(
                "{name}: {:?} of term {} under {:?}, applied {} of {}, snapshot {}, purged {}, batches {closed} closed and \
                 {} final, {open} rows open, outbox {} bytes, height {}, {}, age {:?} ms, global age {:?} ms",
                raft.role,
                context.term,
                context.leader.map(|id| id.idx().0),
                context.applied,
                status.last_index,
                raft.snapshot.index,
                raft.purged.index,
                status.final_seq,
                status.outbox_bytes,
                context.global_height,
                context.mode.word(),
                context.staleness_ms,
                context.global_age_ms,
            )
        };
        let validator = |name: &String| {
            let Some(validator) = self.fleet.validator(name) else {
                return format!("{name}: down");
            };
            let executed = validator.executed().get();
            let queue = &executed.queue;
            let next: Vec<String> = queue
                .clusters()
                .filter_map(|cluster| Some(format!("{} of {cluster}", queue.next_batch(cluster)?.1)))
                .collect();
            let (height, next) = (validator.blocks().tip().0, next.join(", "));
            format!(
                "{name}: view {}, height {height}, executed {}, next batches {next}{}",
                executed.view,
                queue.height(),
                if executed.is_listening { ", listening" } else { "" }
            )
        };
        let agents = self.fleet.agent_names();
        let validators = self.fleet.validator_names();
        agents
            .iter()
            .map(agent)
            .chain(validators.iter().map(validator))
            .collect()
    }

    fn report(self) -> Report {
        let (trace_hash, counts) = self.trace.summary();
        let tasks_final = self.tasks_final();
        let height = self.lowest_height();
        let processes = self.processes();
        let journal = self.desk.journal();
        Report {
            plan: self.plan,
            trace_hash,
            counts,
            delivered: self.trace.delivered(),
            applies: self.fleet.witness.applies(),
            virtual_ms: self.trace.now_us() / 1_000,
            faults: self.nemesis.injected().to_vec(),
            strikes: self.nemesis.drawn().to_vec(),
            enemies: self.fleet.enemies(),
            tasks_acked: journal.acknowledged.len() as u64,
            tasks_final,
            completed: journal.completed,
            retries: journal.retries,
            linearizable_reads: journal.linearizable_reads,
            no_quorum: journal.no_quorum,
            height,
            processes,
            timeline: self.timeline.unwrap_or_default(),
            violation: self.fleet.witness.violation(),
        }
    }
}
