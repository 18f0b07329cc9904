//! What faults do to a machine, alone and when they overlap.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::{
    codec::{decode, encode},
    wire::{
        frame::FrameKind,
        op::{OpAnswer, OpRequest, ValidatorStatus},
    },
};
use futures::FutureExt;
use transport::ports::{Clock as _, Transport};

use super::{
    Family, Fault, Strike,
    clock::Clock,
    disk::{Disk, Lost, Rot},
    draw,
    partition::{Partition, between},
    process::{Crash, CrashInApply, CrashInSnapshot, Pause, PowerLoss},
};
use crate::{
    byzantine::{ActorKind, Enemies, Enemy, Post},
    fleet::SimFleet,
    ports::{DiskTrouble, Rotten},
    random::Stream,
    run::Plan,
    trace::Trace,
    witness::Witness,
};

const WHO: &str = "c1-1";

fn in_virtual_time(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(test);
}

/// A fleet that runs.
async fn fleet_that_runs() -> SimFleet {
    hacked_fleet_that_runs(&[]).await
}

/// The same, some of it in enemies' hands.
async fn hacked_fleet_that_runs(enemies: &[Enemy]) -> SimFleet {
    let mut plan = Plan::small(1);
    plan.conditions.snapshot_entries = (20, 10);
    let trace = Trace::begin();
    let make = |fleet: &common::testing::Fleet| {
        let genesis = Arc::new(fleet.genesis.clone());
        Witness::new(trace.clone(), genesis, Vec::new())
    };
    let mut fleet = SimFleet::new(plan.seed, plan.population, plan.conditions, trace.clone(), make);
    fleet.hack(Enemies::of(enemies));
    fleet.supervise().await;
    assert!(fleet.is_running(WHO));
    fleet
}

/// Faults that begin and end on [`WHO`].
fn on_a_fleet(test: impl FnOnce(&mut SimFleet)) {
    in_virtual_time(async { test(&mut fleet_that_runs().await) });
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

/// Lets the fleet live for so long.
async fn live(fleet: &mut SimFleet, ms: u64) {
    for _ in 0..ms / 20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        fleet.supervise().await;
    }
}

/// What a validator says of itself.
async fn status(fleet: &SimFleet, name: &str) -> ValidatorStatus {
    let operator = fleet.network.transport(fleet.fleet.id("op1"));
    for _ in 0..20 {
        let body: Bytes = encode(&OpRequest::Status).into();
        let asked = operator.call(fleet.fleet.id(name), FrameKind::Operate, body, Duration::from_secs(1));
        let answer = asked.await.ok().and_then(|bytes| decode(&bytes).ok());
        if let Some(OpAnswer::Validator(status)) = answer {
            return status;
        }
    }
    panic!("{name} does not answer");
}

/// How far block time of `v1` is from the newest block before a fault, in it and after it, in seconds; and how many
/// blocks became final in it.
async fn clock_of_v1(mut fault: Clock) -> ([i64; 3], u64) {
    let mut fleet = fleet_that_runs().await;
    let mut off_s = [0; 3];
    live(&mut fleet, 3_000).await;
    let before = status(&fleet, "v1").await;
    off_s[0] = before.clock_offset_us / 1_000_000;
    fault.begin(&mut fleet, 3_000_000);
    live(&mut fleet, 10_000).await;
    let wrong = status(&fleet, "v1").await;
    off_s[1] = wrong.clock_offset_us / 1_000_000;
    fault.end(&mut fleet, 13_000_000);
    live(&mut fleet, 5_000).await;
    off_s[2] = status(&fleet, "v1").await.clock_offset_us / 1_000_000;
    (off_s, wrong.height.0 - before.height.0)
}

#[test]
fn clock_that_is_wrong_at_the_start_is_block_time_until_the_next_one_and_a_jump_is_not() {
    in_virtual_time(async {
        let who = || vec!["v1".to_owned()];
        let (off_s, _) = clock_of_v1(Clock::in_1970(who())).await;
        assert!(
            off_s[0].abs() < 10 && off_s[1] < -1_000_000_000 && off_s[2].abs() < 10,
            "{off_s:?}"
        );
        let (off_s, _) = clock_of_v1(Clock::booted(who(), 3_600_000_000)).await;
        assert!(
            off_s[0].abs() < 10 && off_s[1].abs_diff(3_600) < 10 && off_s[2].abs() < 10,
            "{off_s:?}"
        );
        let (off_s, _) = clock_of_v1(Clock::jumped(who(), 3_600_000_000)).await;
        assert!(off_s.iter().all(|off_s| off_s.abs() < 10), "{off_s:?}");
    });
}

/// What is said of many drawn faults of these families.
fn drawn(fleet: &SimFleet, families: &[Family]) -> Vec<String> {
    let mut random = Stream::new(1);
    let strike = |family| Strike {
        number: 1,
        family,
        at_us: 0,
        lasts_us: 0,
        chance: 0,
        what: String::new(),
    };
    let strikes = families.iter().cycle().take(2_000);
    strikes
        .map(|family| draw(&strike(*family), fleet, &mut random).describe())
        .collect()
}

#[test]
fn nothing_is_drawn_for_a_validator_that_is_lost() {
    on_a_fleet(|fleet| {
        let is_of = |who: &'static str| move |what: &String| what.contains(who);
        assert!(drawn(fleet, &Family::ALL).iter().any(is_of("v2")));
        Lost::new(vec!["v2".to_owned()], 1_000).begin(fleet, 0);
        let after = drawn(fleet, &Family::ALL);
        assert!(after.iter().any(is_of("v1")));
        assert_eq!(after.into_iter().find(is_of("v2")), None);
    });
}

#[test]
fn cuts_of_an_identity_are_of_both_its_hosts_and_each_host_may_crash_or_have_a_bad_disk() {
    in_virtual_time(async {
        let twins = Enemy {
            post: Post::Validator(4),
            actor: ActorKind::Twins,
        };
        let mut fleet = hacked_fleet_that_runs(&[twins]).await;
        let is_open = |fleet: &SimFleet, a, b| fleet.network.is_open(fleet.id(a), fleet.id(b));
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let directions = between(&fleet, &names(&["v1"]), &names(&["v4"]));
        let [near, far, twin] = ["v1", "v4", "v4-twin"].map(|name| fleet.id(name).0);
        let want = [(near, far), (near, twin), (far, near), (twin, near)];
        assert_eq!(directions, want.into());
        let mut cut = Partition::new(1, "split", &names(&["v1"]), directions, 0);
        cut.begin(&mut fleet, 0);
        assert!(!is_open(&fleet, "v1", "v4") && !is_open(&fleet, "v1", "v4-twin"));
        assert!(is_open(&fleet, "v2", "v4") && is_open(&fleet, "v2", "v4-twin"));
        cut.end(&mut fleet, 0);
        assert!(is_open(&fleet, "v1", "v4-twin"));
        for family in [Family::Disk, Family::Process] {
            let drawn = drawn(&fleet, &[family]);
            assert!(drawn.iter().any(|what| what.contains("v4-twin")), "{family:?}");
        }
        let who = vec![("v4-twin".to_owned(), 1_000)];
        Crash { what: "crash", who }.begin(&mut fleet, 0);
        assert!(fleet.is_running("v4") && !fleet.is_running("v4-twin"));
    });
}

/// Whether a process runs with a rotten disk, and how the fault describes itself; it runs when the disk is mended.
async fn on_a_rotten_disk(fleet: &mut SimFleet, who: &str, mut rot: Rot) -> (bool, String) {
    rot.begin(fleet, 0);
    live(fleet, 3_000).await;
    let runs = fleet.is_running(who);
    rot.end(fleet, 0);
    live(fleet, 3_000).await;
    assert!(fleet.is_running(who));
    assert_eq!(fleet.witness.violation(), None);
    (runs, rot.describe())
}

#[test]
fn start_on_a_rotten_marker_or_snapshot_is_refused_and_a_running_process_does_not_read_them() {
    in_virtual_time(async {
        let mut fleet = fleet_that_runs().await;
        // Each block is an entry of every cluster.
        live(&mut fleet, 40_000).await;
        assert!(fleet.snapshots(WHO).is_some_and(|snapshots| snapshots.begun() > 0));
        let rot = |who: &str, what| Rot::new(1, vec![who.to_owned()], 700).of(what);
        for (who, what) in [("v1", Rotten::Files), (WHO, Rotten::Snapshots)] {
            let (runs, told) = on_a_rotten_disk(&mut fleet, who, rot(who, what)).await;
            assert!(!runs && told.contains("(1 refused to start)"), "{told}");
            let (runs, told) = on_a_rotten_disk(&mut fleet, who, rot(who, what).under_running()).await;
            assert!(runs && told.contains("(0 refused to start)"), "{told}");
        }
    });
}

#[test]
fn boot_time_begins_anew_where_power_is_lost_and_nowhere_else() {
    in_virtual_time(async {
        let mut fleet = fleet_that_runs().await;
        let restarted = |fleet: &mut SimFleet, who: &str, mut fault: Box<dyn Fault>| {
            let before = fleet.clock(who).now();
            fault.begin(fleet, 0);
            fault.end(fleet, 0);
            let after = fleet.clock(who).now();
            assert!(after == before || after.us == 0);
            after < before
        };
        let (agent, validator) = (who(), vec!["v1".to_owned()]);
        let down = vec![(WHO.to_owned(), 1_000), ("v1".to_owned(), 1_000)];
        let lost = |who| Box::new(Lost::new(who, 1_000));
        let goes_on: [(&str, Box<dyn Fault>); 4] = [
            (
                WHO,
                Box::new(Crash {
                    what: "crash",
                    who: down.clone(),
                }),
            ),
            (
                WHO,
                Box::new(Pause {
                    number: 1,
                    who: agent.clone(),
                }),
            ),
            (WHO, Box::new(Rot::new(2, agent.clone(), 700).under_running())),
            ("v1", Box::new(Clock::jumped(validator.clone(), -5))),
        ];
        for (who, fault) in goes_on {
            let what = fault.describe();
            assert!(!restarted(&mut fleet, who, fault), "{what}");
        }
        let begins_anew: [(&str, Box<dyn Fault>); 6] = [
            (WHO, Box::new(PowerLoss { who: down.clone() })),
            ("v1", Box::new(PowerLoss { who: down })),
            (WHO, Box::new(Rot::new(3, agent.clone(), 700))),
            ("v1", Box::new(Clock::in_1970(validator.clone()))),
            (WHO, lost(agent)),
            ("v1", lost(validator)),
        ];
        for (who, fault) in begins_anew {
            let what = fault.describe();
            live(&mut fleet, 3_000).await;
            assert!(fleet.is_running(who) && fleet.clock(who).now().us > 0);
            assert!(restarted(&mut fleet, who, fault), "{what}");
        }
        assert_eq!(fleet.witness.violation(), None);
    });
}
