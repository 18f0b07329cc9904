//! Tasks on their journey through whole simulated fleets: start here to see all rooms at work.

use std::{num::NonZeroU64, time::Duration};

use cluster_agent::raft::LinkProfile;
use common::wire::frame::FrameKind;
use sim::{
    ports::LinkConditions,
    run::{Plan, Report, run, run_scenario},
    scenario::Scenario,
    trace::Event,
};

/// A plan without faults.
fn calm(seed: u64, secs: u64) -> Plan {
    let mut plan = Plan::small(seed);
    plan.weather.every_us = 0;
    plan.lasts = Duration::from_secs(secs);
    plan
}

fn frames(report: &Report, kind: FrameKind) -> u64 {
    report.delivered.get(&kind.byte()).map_or(0, |volume| volume.frames)
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

/// What nobody asks for, no checker watches over.
#[test]
fn tasks_end_in_every_way_go_to_other_clusters_and_leave() {
    let mut plan = calm(1, 60);
    plan.population.clusters = 2;
    plan.population.agents = 3;
    plan.conditions.keeps_one_in = NonZeroU64::new(1_024).unwrap();
    let report = run(plan);
    assert_eq!(report.violation, None, "{report:?}");
    for ended in ["completed", "canceled", "failed", "expired"] {
        assert!(report.tasks_by_state[ended] > 0, "{ended}: {:?}", report.tasks_by_state);
    }
    assert!(report.tasks_left > 100 && report.tasks_moved > 0, "{report:?}");
    assert_eq!(report.tasks_final, report.tasks_acked, "those that left are final");
    let mut keeps_all = calm(1, 20);
    keeps_all.conditions.keeps_one_in = NonZeroU64::MIN;
    assert_eq!(run(keeps_all).tasks_left, 0);
}

/// Each member attests a batch to its leader, and the leader submits it: once, wherever finality takes as long as it
/// always does.
#[test]
fn batches_are_attested_and_submitted_once_while_finality_is_as_usual() {
    let mut plan = calm(1, 60);
    plan.population.clusters = 1;
    plan.population.agents = 5;
    plan.conditions.profile = LinkProfile::Satcom;
    plan.conditions.links = LinkConditions {
        // Round trips that the profile just allows for.
        delay_us_min: 150_000,
        delay_us_max: 220_000,
        ..LinkConditions::default()
    };
    let others = u64::from(plan.population.agents - 1);
    let report = run(plan);
    assert_eq!(report.violation, None, "{report:?}");
    let (batches, attestations, submissions) = (
        report.batches_final,
        frames(&report, FrameKind::Attest),
        frames(&report, FrameKind::SubmitBatch),
    );
    assert!(batches > 20, "{report:?}");
    // Some are under way when the run ends.
    let at_most = batches + batches / 10 + 1;
    assert!(
        attestations <= others * at_most && submissions <= at_most,
        "{batches} batches, {attestations} attestations, {submissions} submissions"
    );
}

/// A cluster without validators says of each batch as much as with them, and a little more as time goes by. Its batches grow,
/// and are final soon after the link is back.
#[test]
fn long_island_is_quiet_and_its_backlog_drains_fast() {
    let (agents, island_secs) = (5, 120);
    let text = format!(
        r#"
        title = "island"
        story = "a cluster without validators until the run ends"
        clusters = 1
        agents = {agents}
        validators = 4
        secs = {secs}
        write_every_ms = 1000
        [[fault]]
        at_ms = 10000
        lasts_ms = {lasts_ms}
        kind = "from_validators"
        who = ["c1"]
        "#,
        secs = 10 + island_secs,
        lasts_ms = 1_000 * island_secs,
    );
    let report = run_scenario(&Scenario::from_toml(&text).unwrap(), 1);
    assert_eq!(report.violation, None, "{report:?}");
    assert_eq!(report.tasks_final, report.tasks_acked);
    assert!(report.tasks_acked > island_secs / 2, "{report:?}");
    let drained_ms = report.virtual_ms - 1_000 * (10 + island_secs);
    let (batches, attestations) = (report.batches_final, frames(&report, FrameKind::Attest));
    // Each member to the leader; and each to each of what would be submitted first, every 40 s.
    let again = 8 * agents * (agents - 1) * (1 + island_secs / 40);
    let at_most = (agents - 1) * (batches + batches / 10) + again;
    let found = format!("{batches} batches, {attestations} attestations, drained in {drained_ms} ms");
    assert!(attestations <= at_most, "{found}");
    assert!(batches <= 140, "{found}");
    assert!(drained_ms <= 15_000, "{found}");
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
