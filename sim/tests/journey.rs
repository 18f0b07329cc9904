//! Tasks on their journey through whole simulated fleets: start here to see all rooms at work.

use std::time::Duration;

use sim::{
    run::{Plan, run},
    trace::Event,
};

/// A plan without faults.
fn calm(seed: u64, secs: u64) -> Plan {
    let mut plan = Plan::small(seed);
    plan.weather.every_us = 0;
    plan.lasts = Duration::from_secs(secs);
    plan
}

#[test]
fn every_acknowledged_task_is_final_on_every_validator() {
    let report = run(calm(1, 10));
    assert_eq!(report.violation, None, "seed 1: {report:?}");
    assert!(report.tasks_acked > 100, "{report:?}");
    assert_eq!(report.tasks_final, report.tasks_acked);
    assert!(report.completed > 0 && report.linearizable_reads > 0, "{report:?}");
    assert!(report.counts.of(Event::Dropped) > 0, "a run without loss shows little");
}

#[test]
fn one_seed_gives_one_trace_and_another_seed_another() {
    let plan = |seed| {
        let mut plan = Plan::small(seed);
        plan.lasts = Duration::from_secs(10);
        plan.weather.every_us = 2_000_000;
        plan
    };
    let (first, second, other) = (run(plan(7)), run(plan(7)), run(plan(8)));
    assert_eq!(first, second);
    assert!(!first.faults.is_empty());
    assert_ne!(first.trace_hash, other.trace_hash);
}
