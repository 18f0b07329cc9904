//! Faults that overlap on one machine.

use std::sync::Arc;

use common::validator_set::ValidatorSet;
use futures::FutureExt;

use super::{
    Fault,
    disk::{Disk, Lost},
    process::{CrashInApply, CrashInSnapshot, Pause},
};
use crate::{fleet::SimFleet, ports::DiskTrouble, run::Plan, trace::Trace, witness::Witness};

const WHO: &str = "c1-1";

/// A fleet that runs, and faults that begin and end on [`WHO`].
fn on_a_fleet(test: impl FnOnce(&mut SimFleet)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let plan = Plan::small(1);
        let trace = Trace::begin();
        let make = |fleet: &common::testing::Fleet| {
            let set = ValidatorSet::from_genesis(&Arc::new(fleet.genesis.clone()));
            Witness::new(trace.clone(), set, Vec::new())
        };
        let mut fleet = SimFleet::new(plan.seed, plan.population, plan.conditions, trace.clone(), make);
        fleet.supervise().await;
        assert!(fleet.is_running(WHO));
        test(&mut fleet);
    });
}

fn who() -> Vec<String> {
    vec![WHO.to_owned()]
}

#[test]
fn crash_in_a_snapshot_does_not_mend_a_disk_that_is_full() {
    on_a_fleet(|fleet| {
        let mut full = Disk::new(1, who(), DiskTrouble::Full);
        let mut crash = CrashInSnapshot::new(2, WHO.to_owned(), 1_000);
        full.begin(fleet, 0);
        crash.begin(fleet, 0);
        assert_eq!(fleet.trouble(WHO), DiskTrouble::Full);
        crash.end(fleet, 0);
        assert_eq!(fleet.trouble(WHO), DiskTrouble::Full);
        crash.begin(fleet, 0);
        full.end(fleet, 0);
        assert!(matches!(fleet.trouble(WHO), DiskTrouble::Slow { .. }));
        crash.end(fleet, 0);
        assert_eq!(fleet.trouble(WHO), DiskTrouble::Healthy);
    });
}

#[test]
fn process_goes_on_when_the_last_of_its_pauses_ends() {
    on_a_fleet(|fleet| {
        let pause = |number| Pause { number, who: who() };
        pause(1).begin(fleet, 0);
        pause(2).begin(fleet, 0);
        pause(1).end(fleet, 0);
        assert!(fleet.is_paused(WHO));
        pause(2).end(fleet, 0);
        assert!(!fleet.is_paused(WHO));
    });
}

#[test]
fn pause_ends_with_the_life_that_it_stopped() {
    on_a_fleet(|fleet| {
        let pause = |number| Pause { number, who: who() };
        pause(1).begin(fleet, 0);
        fleet.kill(WHO, 0);
        assert!(!fleet.is_paused(WHO));
        pause(2).begin(fleet, 0);
        assert!(!fleet.is_paused(WHO), "nothing runs that could be stopped");
        pause(1).end(fleet, 0);
    });
}

#[test]
fn crash_in_an_apply_is_taken_back_by_the_last_that_wants_it() {
    on_a_fleet(|fleet| {
        let crash = |number| CrashInApply::new(number, who(), 1_000);
        crash(1).begin(fleet, 0);
        crash(2).begin(fleet, 0);
        crash(1).end(fleet, 0);
        assert!(fleet.crashes_at_apply(WHO));
        crash(2).end(fleet, 0);
        assert!(!fleet.crashes_at_apply(WHO));
    });
}

#[test]
fn one_validator_of_four_is_lost_for_good_and_no_second_one() {
    on_a_fleet(|fleet| {
        assert_eq!(fleet.validators_with_a_disk_to_lose().len(), 4);
        let mut lost = Lost::new(vec!["v2".to_owned()], 1_000);
        lost.begin(fleet, 0);
        lost.end(fleet, 1_000);
        fleet.let_all_start();
        fleet.supervise().now_or_never().expect("nothing is to be started");
        assert!(!fleet.is_running("v2"));
        assert_eq!(fleet.honest_validators(), ["v1", "v3", "v4"]);
        assert_eq!(fleet.validators_with_a_disk_to_lose(), Vec::<String>::new());
    });
}
