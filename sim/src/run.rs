//! One run: a fleet under a workload and faults in virtual time, from one seed.
//!
//! # Rules
//! * For the length of the plan the operators write and faults come. Then everything heals, and work goes on until each
//!   cluster has shown that it can: a submission is acknowledged, and a vehicle claims a task, acts on it and completes it. From
//!   then on nothing new is asked for. The fleet has a bounded time for both.
//! * A violation ends the run at once.

mod looks;
mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use common::{
    codec::{decode, encode},
    ids::{ClusterId, Digest, Height, TaskId},
    recall::Recall,
    retention_scale::Shortened,
    wire::{
        frame::FrameKind,
        op::{OpAnswer, OpRequest},
    },
};
use transport::ports::Transport;

pub(crate) use plan::KEEPS_ALL;
pub use plan::Plan;

use crate::{
    byzantine::EnemyReport,
    checkers::{self, Checker, Observation, SETTLE_US},
    faults::{Injected, Nemesis, Strike},
    fleet::SimFleet,
    scenario::{Scenario, Scripted},
    schedule::Schedule,
    timeline::Timeline,
    trace::{Counts, Trace, Volume},
    witness::{Violation, Witness},
    workload::{self, Desk},
};

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
    /// Faults, in the order of their ends; those that were in force when the run ended come last.
    pub faults: Vec<Injected>,
    /// Those that were drawn, as they are replayed.
    pub strikes: Vec<Strike>,
    /// What enemies did.
    pub enemies: Vec<EnemyReport>,
    /// Tasks whose submission was acknowledged.
    pub tasks_acked: u64,
    /// Of these, final on every validator.
    pub tasks_final: u64,
    /// How the tasks of the final state stand, kept or not, by the word of their state.
    pub tasks_by_state: BTreeMap<&'static str, u64>,
    /// Tasks that left the final state, since they had ended and were due.
    pub tasks_left: u64,
    /// Tasks kept in the final state that are with another cluster than the one that took them.
    pub tasks_moved: u64,
    /// Batches executed by every honest validator.
    pub batches_final: u64,
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
    scenario.run(seed, Staging::default())
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
    let _shortened = Shortened::by(plan.conditions.keeps_one_in);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime with a timer only needs memory");
    runtime.block_on(simulate(plan, staging))
}

/// Between two looks at processes and faults.
pub(crate) const TICK_US: u64 = 20_000;
/// Looks at sizes and logs come every so many ticks.
const TICKS_PER_INSPECTION: u64 = 50;
/// Looks at the health of a healed fleet come every so many ticks.
const TICKS_PER_HEALTH: u64 = 10;
/// Proofs asked for at the end.
const PROOFS: usize = 3;
/// In a run of this length something is acknowledged, and done after it healed.
const WORK_AFTER: Duration = Duration::from_secs(10);
/// Clusters with less or longer work than this show nothing in the time they have.
const WRITE_EVERY_MAX: Duration = Duration::from_secs(2);
/// See [`WRITE_EVERY_MAX`].
const WORK_MAX: Duration = Duration::from_secs(5);
/// Questions for one of them.
const PROOF_TRIES: usize = 12;
/// Wait for an answer.
const PROOF_PATIENCE: Duration = Duration::from_secs(5);

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
        let mut checkers = checkers::all(&genesis);
        checkers.extend(extra);
        Witness::new(trace.clone(), genesis, checkers).only(plan.judge)
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
        world.has_worked();
        // What happened since the last look counts too.
        world.inspect();
        world.fleet.witness.finish();
    }
    world.report()
}

impl World {
    /// One tick. False when something is broken.
    async fn tick(&mut self) -> bool {
        tokio::time::sleep(Duration::from_micros(TICK_US)).await;
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
        let healed_us = self.trace.now_us();
        self.nemesis.heal(&mut self.fleet, healed_us);
        self.fleet.supervise().await;
        self.fleet.witness.see(&Observation::Healed);
        // Heights count from here, for the checker too.
        self.fleet.witness.see(&Observation::Health(self.health(healed_us)));
        let first = self.lowest_height();
        loop {
            if !self.tick().await {
                return false;
            }
            if !self.ticks.is_multiple_of(TICKS_PER_HEALTH) {
                continue;
            }
            let health = self.health(healed_us);
            if health.idle.is_empty() {
                self.desk.close();
            }
            let is_well = health.missing(first).is_empty();
            self.fleet.witness.see(&Observation::Health(health));
            if is_well || self.trace.now_us() - healed_us > SETTLE_US + 1_000_000 {
                return self.fleet.witness.violation().is_none();
            }
        }
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
                .filter(|task| witness.knows(&state, task))
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
                let is_known = |task: &&TaskId| queue.task_row(task).is_some() || witness.knows(queue.global(), task);
                let known: BTreeSet<TaskId> = tasks.iter().filter(is_known).copied().collect();
                (queue.cluster(), known)
            });
            witness.see(&Observation::Knows {
                process: name,
                cluster: Some(cluster),
                tasks: Arc::new(known),
            });
        }
        if let Some(fates) = self.fates() {
            witness.see(&fates);
        }
        // Proofs are made of tasks that are kept.
        let kept: Vec<TaskId> = tasks.into_iter().filter(|task| !witness.has_left(task)).collect();
        let step = (kept.len() / PROOFS).max(1);
        for task in kept.iter().step_by(step) {
            self.ask_for_proof(*task).await;
        }
    }

    /// A fleet that refuses everything breaks nothing else.
    fn has_worked(&self) {
        let is_long = self.plan.lasts >= WORK_AFTER && self.plan.load.write_every < self.plan.lasts / 4;
        let suspects = self.fleet.witness.suspects();
        let mut clusters = (0..self.plan.population.clusters).map(ClusterId);
        let is_asked = clusters.any(|cluster| !suspects.has_cluster(cluster));
        if is_long && is_asked && self.desk.journal().acknowledged.is_empty() {
            self.fleet
                .witness
                .violate("recovers", "nothing was acknowledged in the whole run".into());
        }
    }

    async fn ask_for_proof(&self, task: TaskId) {
        let operator = self.fleet.network.transport(self.fleet.fleet.id("op1"));
        let body: Bytes = encode(&OpRequest::Prove { task }).into();
        // A link may lose a question.
        for name in self.fleet.honest_validators().iter().cycle().take(PROOF_TRIES) {
            let validator = self.fleet.fleet.id(name);
            let (before, decided) = (self.history(name, &task), self.lowest_decided());
            let asked = operator.call(validator, FrameKind::Operate, body.clone(), PROOF_PATIENCE);
            match asked.await.ok().and_then(|bytes| decode(&bytes).ok()) {
                Some(OpAnswer::Proof(bytes)) => {
                    return self.fleet.witness.see(&Observation::Proof {
                        task,
                        bytes: bytes.to_vec(),
                        // It may have left since: then nothing has happened to it for long.
                        history: self.history(name, &task).or(before).unwrap_or_default(),
                        decided,
                    });
                }
                // It left in the meantime.
                Some(OpAnswer::NoLongerKept { .. }) if self.fleet.witness.has_left(&task) => return,
                _ => {}
            }
        }
        let task = task.to_hex();
        self.fleet.witness.violate(
            "verifiable-offline",
            format!("task {task} is final, and no validator makes a proof of it"),
        );
    }

    fn report(self) -> Report {
        let (trace_hash, counts) = self.trace.summary();
        let (tasks_final, batches_final) = (self.tasks_final(), self.batches_final());
        let tally = self.tally();
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
            faults: self.nemesis.injected(self.trace.now_us()),
            strikes: self.nemesis.drawn().to_vec(),
            enemies: self.fleet.enemies(),
            tasks_acked: journal.acknowledged.len() as u64,
            tasks_final,
            tasks_by_state: tally.by_state,
            tasks_left: tally.left,
            tasks_moved: tally.moved,
            batches_final,
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
