//! Faults do what their names say: each is met in a short story of its own.

use std::time::Duration;

use sim::{
    faults::{Family, Weather},
    run::{Plan, Report, run, run_scenario},
    scenario::Scenario,
    trace::Event,
};

/// A fleet of one cluster of five and four validators, with one fault from 3 s on.
fn story(kind: &str, who: &str, lasts_ms: u64) -> Report {
    story_of_writes(kind, who, lasts_ms, 100)
}

fn story_of_writes(kind: &str, who: &str, lasts_ms: u64, write_every_ms: u64) -> Report {
    let secs = 4 + lasts_ms.div_ceil(1_000);
    let text = format!(
        r#"
        title = "{kind}"
        story = "one fault, from its beginning to its end"
        clusters = 1
        agents = 5
        validators = 4
        secs = {secs}
        write_every_ms = {write_every_ms}
        [[fault]]
        at_ms = 3000
        lasts_ms = {lasts_ms}
        kind = "{kind}"
        who = ["{who}"]
        "#
    );
    let report = run_scenario(&Scenario::from_toml(&text).unwrap(), 1);
    assert_eq!(report.violation, None, "{kind} of {who}: {:#?}", report.processes);
    assert_eq!(report.tasks_final, report.tasks_acked, "{kind} of {who}");
    assert!(report.tasks_acked > 10, "{kind} of {who} shows nothing");
    assert_eq!(report.faults.len(), 1);
    report
}

#[test]
fn process_on_a_rotten_disk_refuses_to_start_until_it_is_mended() {
    for who in ["c1-2", "v2"] {
        let report = story("disk_rots", who, 4_000);
        assert!(
            report.faults[0].what.contains("(1 refused to start)"),
            "{:?}",
            report.faults
        );
    }
}

#[test]
fn validator_starts_in_1970_and_again_when_its_clock_is_right() {
    let report = story("clock_in1970", "v1", 8_000);
    assert_eq!(report.counts.of(Event::Killed), 2);
    assert_eq!(report.faults[0].what, "v1 booted with a wall clock in 1970");
}

/// One fault after the other, each of a clock, most of them of a validator that starts anew.
#[test]
fn drawn_clocks_are_wrong_when_validators_start_and_harm_nobody() {
    for seed in 0..2 {
        let plan = Plan::small(seed);
        let report = run(Plan {
            lasts: Duration::from_secs(20),
            weather: Weather {
                every_us: 2_000_000,
                lasts_us: (1_000_000, 5_000_000),
                at_once_max: 1,
                only: Some(Family::Clock),
            },
            ..plan
        });
        assert_eq!(report.violation, None, "seed {seed}: {:#?}", report.processes);
        let booted = report.faults.iter().filter(|fault| fault.what.contains("booted"));
        let booted = booted.count() as u64;
        assert!(booted > 1, "seed {seed}: {:?}", report.faults);
        assert_eq!(report.counts.of(Event::Killed), 2 * booted, "seed {seed}");
    }
}

#[test]
fn majority_can_die_behind_an_entry() {
    let report = story("crash_in_apply", "c1", 3_000);
    // With the majority gone nothing is applied any more: whether the others die as well is a matter of time.
    let met = (3..=5).any(|met| report.faults[0].what.contains(&format!("({met} met it)")));
    assert!(met, "{:?}", report.faults);
}

#[test]
fn member_dies_while_it_writes_a_snapshot() {
    // Enough entries that one is due.
    let report = story_of_writes("crash_in_snapshot", "c1-3", 25_000, 30);
    assert!(!report.faults[0].what.contains("wrote none"), "{:?}", report.faults);
}

#[test]
fn cluster_in_three_parts_acknowledges_nothing_and_says_so() {
    let report = story("three_ways", "c1", 6_000);
    assert!(report.no_quorum > 0, "{report:?}");
}

#[test]
fn ring_of_members_goes_on() {
    story("ring", "c1", 6_000);
}

#[test]
fn story_that_did_not_come_about_fails_and_says_what_is_missing() {
    let text = r#"
        title = "nobody dies"
        story = "a member is deaf for a second, and the story says that somebody dies"
        clusters = 1
        agents = 3
        validators = 4
        secs = 5
        [expect]
        killed_min = 1
        [[fault]]
        at_ms = 3000
        lasts_ms = 1000
        kind = "one_way_in"
        who = ["c1-2"]
    "#;
    let report = run_scenario(&Scenario::from_toml(text).unwrap(), 1);
    let violation = report.violation.expect("nobody died");
    assert_eq!(violation.checker, "expectation");
    assert!(
        violation.what.contains("processes killed: 0, at least 1"),
        "{violation}"
    );
}
