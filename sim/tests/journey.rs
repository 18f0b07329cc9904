//! The journey of tasks through a whole simulated fleet: start here to see all rooms at work.

use sim::{
    run::{Plan, run},
    trace::Event,
};

#[test]
fn every_acknowledged_task_is_final_on_every_validator_and_done_once() {
    let report = run(Plan::small(1));
    assert!(
        report.verdict.is_clean() && report.ended.is_empty(),
        "seed 1: {report:?}"
    );
    assert_eq!(report.verdict.acknowledged, 60);
    assert_eq!(report.verdict.completed, 60);
    assert!(report.counts.of(Event::Dropped) > 0, "a run without loss shows little");
}

#[test]
fn one_seed_gives_one_trace_and_another_seed_another() {
    let plan = |seed| {
        let mut plan = Plan::small(seed);
        plan.load.tasks_per_cluster = 4;
        plan.kills = 2;
        plan
    };
    let (first, second, other) = (run(plan(7)), run(plan(7)), run(plan(8)));
    assert_eq!(first, second);
    assert_ne!(first.trace_hash, other.trace_hash);
}

#[test]
fn processes_and_clusters_are_killed_and_nothing_acknowledged_is_lost() {
    for seed in 1..=6 {
        let mut plan = Plan::small(seed);
        plan.kills = 6;
        let report = run(plan);
        assert!(report.counts.of(Event::Killed) >= 6);
        assert!(
            report.verdict.is_clean() && report.ended.is_empty(),
            "seed {seed}: {report:?}"
        );
        assert_eq!(report.verdict.acknowledged, 60, "seed {seed}: {report:?}");
    }
}
