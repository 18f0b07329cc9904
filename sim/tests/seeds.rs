//! A sample of seeds under faults, and every seed that once broke something.
//!
//! A seed that breaks something is kept under the name of what it showed. Its run changes with every change
//! of the shells, so it is a sample like any other afterwards; the cure has a test of its own.

use std::time::Duration;

use sim::{
    fleet::Population,
    run::{Plan, run},
};

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

/// A small snapshot is one frame, whose answer may take as long as the installation. Two of five members lost their
/// power under it; the leader waits for a broken connection then, not for the installation.
#[test]
fn member_that_dies_under_a_snapshot_is_sent_another_one() {
    is_clean(stormy(11, 15));
}

/// As above: two starts in a row wrote the journal of the guard and could not write its marker.
#[test]
fn starts_that_end_before_the_marker_do_not_pass_for_a_backup() {
    is_clean(stormy(23, 15));
}

/// A fleet with hardly any work was well at the first look after it healed. What it had finalized by then counted for
/// the end of the run, and not for the checker, which said that the height stays.
#[test]
fn fleet_that_is_well_at_the_first_look_has_recovered() {
    for seed in [17, 32] {
        let mut plan = Plan::small(seed);
        plan.population = Population {
            clusters: 1,
            agents: 3,
            validators: 4,
        };
        plan.weather.every_us = 0;
        plan.lasts = Duration::from_secs(2);
        plan.load.write_every = Duration::from_millis(1_500);
        assert_eq!(run(plan).violation, None, "seed {seed}");
    }
}

/// An operator whose submission was refused at the door, since its task key was another task's, sent the same bytes again five
/// seconds later, when the key had become free: they were accepted, rightly, and histories had been told of a rejection.
#[test]
fn write_that_was_refused_at_the_door_is_not_repeated() {
    assert_eq!(run(Plan::small(1_085)).violation, None);
}

/// After everything was cut off, more tasks ended, left and lost their lines within a moment than a state remembers. The
/// witness looked at validators now and then, and three tasks seemed lost; now it executes each block itself.
#[test]
fn task_that_comes_and_goes_between_two_looks_is_not_taken_for_lost() {
    for seed in [1_867, 1_957] {
        assert_eq!(run(Plan::small(seed)).violation, None, "seed {seed}");
    }
}

/// A write left through a cut of one direction and was committed by the majority; its agent heard of that seconds later from
/// members who had been cut off meanwhile, and was said to have acknowledged it without a majority.
#[test]
fn write_that_left_through_a_one_way_cut_is_acknowledged_when_it_is_heard_of() {
    assert_eq!(run(Plan::small(6_608)).violation, None);
}

/// A slow disk tells of a batch that it stored for the second time after the block with it was executed.
#[test]
fn validator_does_not_hold_a_batch_again_that_it_executed() {
    assert_eq!(run(Plan::small(7_701)).violation, None);
}
