//! One run: a fleet under a workload in virtual time, from one seed.

use std::{sync::Arc, time::Duration};

use common::ids::Digest;

use crate::{
    faults::Nemesis,
    fleet::{Conditions, Population, SimFleet},
    judge::{Verdict, judge},
    ports::{DiskTiming, LinkConditions},
    trace::{Counts, Trace},
    workload::{self, Doors, Load, SharedJournal},
};

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Determines everything below chance.
    pub seed: u64,
    /// Processes.
    pub population: Population,
    /// Links and disks.
    pub conditions: Conditions,
    /// Work.
    pub load: Load,
    /// How often a process or a whole cluster is killed and started again.
    pub kills: u32,
    /// The run ends when all work is done and final, and at this virtual time at the latest.
    pub lasts: Duration,
}

impl Plan {
    /// 3 clusters of 3 agents and 4 validators, delays of 2 to 20 ms, 1 % loss, a small workload.
    #[must_use]
    pub fn small(seed: u64) -> Self {
        Self {
            seed,
            population: Population {
                clusters: 3,
                agents: 3,
                validators: 4,
            },
            conditions: Conditions {
                links: LinkConditions {
                    delay_us_min: 2_000,
                    delay_us_max: 20_000,
                    loss_ppm: 10_000,
                },
                disks: DiskTiming {
                    sync_us_min: 500,
                    sync_us_max: 5_000,
                },
            },
            load: Load {
                tasks_per_cluster: 20,
                submit_every: Duration::from_millis(200),
                work: Duration::from_millis(500),
            },
            kills: 0,
            lasts: Duration::from_secs(120),
        }
    }
}

/// What a run left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Equal in every run of this plan by this build.
    pub trace_hash: Digest,
    /// Events behind the hash.
    pub counts: Counts,
    /// Virtual time it took.
    pub virtual_ms: u64,
    /// Writes sent again.
    pub retries: u64,
    /// What it came to.
    pub verdict: Verdict,
    /// Why a process ended by itself, if one did.
    pub ended: Vec<String>,
}

/// Runs `plan` to its end.
///
/// # Panics
/// If a shell refuses to start, or breaks a rule that the simulated ports check.
#[must_use]
pub fn run(plan: Plan) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime with a timer only needs memory");
    runtime.block_on(simulate(plan))
}

/// Between two looks at whether the work is done.
const LOOK_EVERY: Duration = Duration::from_millis(500);

async fn simulate(plan: Plan) -> Report {
    let trace = Trace::begin();
    let mut fleet = SimFleet::new(plan.seed, plan.population, plan.conditions, trace.clone());
    fleet.start_all().await;
    let (journal, doors) = (SharedJournal::default(), Doors::default());
    for name in fleet.agent_names() {
        let agent = fleet.agent(&name).expect("all agents were started");
        doors.lock().expect("nobody holds it yet").insert(name, agent);
    }
    workload::start(&fleet, plan.load, plan.seed, &journal, &doors);
    let mut nemesis = Nemesis::new(plan.seed, plan.kills, &fleet);
    let tasks = u64::from(plan.load.tasks_per_cluster) * u64::from(plan.population.clusters);
    let mut verdict = Verdict::default();
    while u128::from(trace.now_us()) < plan.lasts.as_micros() {
        tokio::time::sleep(LOOK_EVERY).await;
        if !nemesis.is_done() {
            nemesis.strike(&mut fleet, trace.now_us(), &doors).await;
            continue;
        }
        verdict = judge(&fleet, &journal.snapshot());
        if verdict.acknowledged == tasks && verdict.completed == tasks && verdict.is_clean() {
            break;
        }
    }
    let (trace_hash, counts) = trace.summary();
    Report {
        seed: plan.seed,
        trace_hash,
        counts,
        virtual_ms: trace.now_us() / 1_000,
        retries: journal.snapshot().retries,
        verdict,
        ended: ended(&fleet),
    }
}

fn ended(fleet: &SimFleet) -> Vec<String> {
    let stopped = |name: &String| {
        let reason: Arc<_> = fleet.validator(name)?.stop_reason()?;
        Some(format!("{name}: {reason}"))
    };
    fleet.validator_names().iter().filter_map(stopped).collect()
}
