//! `sim soak`: many seeds, several at a time.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde_json::{Value, json};

use super::{COMMIT, Output, Shape, complain, timed};
use crate::run::{Report, run};

#[derive(Default)]
struct Totals {
    runs: u64,
    virtual_ms: u64,
    node_ms: u64,
    faults: BTreeMap<&'static str, u64>,
    tasks_acked: u64,
    violations: Vec<Value>,
}

/// A soak says how far it is every so many runs.
const RUNS_PER_WORD: u64 = 50;

impl Totals {
    fn in_words(&self) -> String {
        format!(
            "{:.1} node-hours, {} faults, {} violations",
            self.node_ms as f64 / 3.6e6,
            self.faults.values().sum::<u64>(),
            self.violations.len()
        )
    }
}

/// Runs the seeds; whether all were clean.
pub(super) fn soak((from, to): (u64, u64), jobs: u8, shape: Shape, output: Output) -> bool {
    let next = AtomicU64::new(from);
    let totals = std::sync::Mutex::new(Totals::default());
    #[allow(
        clippy::disallowed_methods,
        reason = "how fast the simulator is, beside the simulation"
    )]
    let began = std::time::Instant::now();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= to {
                return;
            }
            let (report, wall) = timed(|| run(shape.plan(seed)));
            complain(&report, &shape.command(seed));
            let mut totals = totals.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            add(&mut totals, &report, wall, shape);
            if totals.runs.is_multiple_of(RUNS_PER_WORD) {
                eprintln!("sim: {} of {} runs, {}", totals.runs, to - from, totals.in_words());
            }
        }
    };
    // Runs share nothing: each has its own thread and its own time.
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    let totals = totals.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let summary = json!({
        "seeds": [from, to],
        "commit": COMMIT,
        "runs": totals.runs,
        "sim_seconds": totals.virtual_ms as f64 / 1e3,
        "node_hours": totals.node_ms as f64 / 3.6e6,
        "wall_seconds": began.elapsed().as_secs_f64(),
        "faults": totals.faults.values().sum::<u64>(),
        "faults_by_family": totals.faults,
        "tasks_acked": totals.tasks_acked,
        "violations": totals.violations,
    });
    match output {
        Output::Json => println!("{summary}"),
        Output::Table => println!("{summary:#}"),
    }
    totals.violations.is_empty()
}

fn add(totals: &mut Totals, report: &Report, wall: Duration, shape: Shape) {
    totals.runs += 1;
    totals.virtual_ms += report.virtual_ms;
    totals.node_ms += report.virtual_ms * u64::from(report.plan.population.nodes());
    for fault in &report.faults {
        *totals.faults.entry(fault.family.word()).or_default() += 1;
    }
    totals.tasks_acked += report.tasks_acked;
    if let Some(violation) = &report.violation {
        totals.violations.push(json!({
            "seed": report.plan.seed,
            "checker": violation.checker,
            "at_ms": violation.at_ms,
            "what": violation.what,
            "command": shape.command(report.plan.seed),
            "wall_seconds": wall.as_secs_f64(),
        }));
    }
}
