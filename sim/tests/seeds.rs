//! A sample of seeds under faults, and every seed that once broke something.
//!
//! A seed that breaks something is kept under the name of what it showed. Its run changes with every change
//! of the shells, so it is a sample like any other afterwards; the cure has a test of its own.

use std::time::Duration;

use sim::run::{Plan, run};

fn is_clean(plan: Plan) {
    let report = run(plan);
    let seed = plan.seed;
    assert_eq!(report.violation, None, "seed {seed}: {:?}", report.faults);
    assert!(report.tasks_acked > 0, "seed {seed} shows nothing: {report:?}");
    assert_eq!(report.tasks_final, report.tasks_acked, "seed {seed}");
}

fn stormy(seed: u64, secs: u64) -> Plan {
    let mut plan = Plan::small(seed);
    plan.lasts = Duration::from_secs(secs);
    plan.weather.every_us = 3_000_000;
    plan
}

#[test]
fn sample_of_seeds_breaks_nothing() {
    for seed in 100..104 {
        is_clean(stormy(seed, 15));
    }
}

/// The disk of a validator failed at several starts in a row. Each left its mark in the guard's journal and
/// none in the marker, and the guard then took its own journal for a backup.
#[test]
fn disk_that_fails_at_each_start_does_not_cost_a_validator_its_key() {
    is_clean(stormy(1, 12));
}
