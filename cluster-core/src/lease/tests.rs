use common::{
    entry::{LogEntry, SignedEntry},
    ids::Digest,
    task::{Scope, Task, TaskState},
    testing::task,
    verdict::Verdict,
};
use proptest::prelude::*;

use super::*;
use crate::testing::{TestCluster, verdict};

const SECOND: u64 = 1_000_000;
/// The `dev` profile: L 6 s, G 10.2 s, t_stop 0.5 s.
const L: u64 = 6 * SECOND;
const G: u64 = 10_200_000;

fn clocks(c: &TestCluster) -> ClockBounds {
    c.fleet.genesis.timing.clocks
}

fn leases(c: &TestCluster, label: &str) -> Leases {
    Leases::new(c.fleet.id(label), &clocks(c))
}

fn sign_claim(c: &mut TestCluster, label: &str, task: TaskId) -> SignedEntry {
    let scope = c.scope(&task);
    let action = c.claim_action(label, task);
    c.entry(label, scope, action)
}

fn sign_renew(c: &mut TestCluster, label: &str) -> SignedEntry {
    let counter = c.counter(label);
    c.entry(label, Scope::Cluster, Action::Renew { counter })
}

/// Notes `t0`, signs, applies.
fn enter(c: &mut TestCluster, leases: &mut Leases, entry: SignedEntry, t0_us: u64) -> Verdict {
    leases.signed(entry.id(&c.fleet.chain), t0_us);
    let applied = c.apply(LogEntry::Author(entry));
    leases.after_apply(&c.queue, &applied);
    verdict(&applied)
}

fn claim(c: &mut TestCluster, leases: &mut Leases, task: TaskId, t0_us: u64) {
    let entry = sign_claim(c, "c1-2", task);
    assert_eq!(enter(c, leases, entry, t0_us), Verdict::Granted);
}

fn renew(c: &mut TestCluster, leases: &mut Leases, t0_us: u64) {
    let entry = sign_renew(c, "c1-2");
    assert_eq!(enter(c, leases, entry, t0_us), Verdict::Granted);
}

fn finalize(c: &mut TestCluster, leases: &mut Leases) {
    c.cut();
    let batches = c.certified();
    let applied = c.block(&batches, 20);
    leases.after_apply(&c.queue, &applied);
}

#[test]
fn lease_counts_from_before_the_signature_and_only_once_it_is_applied() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let mut leases = leases(&c, "c1-2");
    let entry = sign_claim(&mut c, "c1-2", id);
    leases.signed(entry.id(&c.fleet.chain), 5 * SECOND);
    assert_eq!(leases.may_run(&id, 5 * SECOND), None, "not applied");
    let applied = c.apply(LogEntry::Author(entry));
    leases.after_apply(&c.queue, &applied);
    assert_eq!(leases.may_run(&id, 8 * SECOND), Some(5 * SECOND + L));
    assert_eq!(leases.may_run(&id, 5 * SECOND + L - 1), Some(5 * SECOND + L));
    assert_eq!(leases.may_run(&id, 5 * SECOND + L), None, "ended");
    renew(&mut c, &mut leases, 9 * SECOND);
    assert_eq!(leases.may_run(&id, 12 * SECOND), Some(9 * SECOND + L));
}

#[test]
fn fleet_lease_needs_a_block_with_a_batch_closed_at_or_above_the_claim() {
    let mut c = TestCluster::new();
    let id = c.assigned("op1", &task("k"));
    let mut leases = leases(&c, "c1-2");
    c.submit("op1", Scope::Cluster, &task("before"));
    c.cut();
    let before = c.certified();
    claim(&mut c, &mut leases, id, SECOND);
    assert_eq!(leases.may_run(&id, SECOND), None);
    let applied = c.block(&before, 20);
    leases.after_apply(&c.queue, &applied);
    assert_eq!(
        leases.may_run(&id, SECOND),
        None,
        "the batch was closed below the claim"
    );
    finalize(&mut c, &mut leases);
    assert_eq!(leases.may_run(&id, SECOND), Some(SECOND + L));
    // Renewed in the cluster only: the global part runs out.
    renew(&mut c, &mut leases, 6 * SECOND);
    renew(&mut c, &mut leases, 11 * SECOND);
    assert_eq!(leases.may_run(&id, 11 * SECOND), Some(SECOND + G));
    // A beat whose cut is above the renewals extends it.
    let applied = c.beat();
    leases.after_apply(&c.queue, &applied);
    finalize(&mut c, &mut leases);
    assert_eq!(leases.may_run(&id, 11 * SECOND), Some(11 * SECOND + L));
}

#[test]
fn fleet_leases_end_with_a_conflict_and_those_of_the_clusters_own_tasks_go_on() {
    let mut c = TestCluster::new();
    let fleet = c.assigned("op1", &task("fleet"));
    let own = c.submit("op1", Scope::Cluster, &task("own"));
    let mut leases = leases(&c, "c1-2");
    for id in [fleet, own] {
        claim(&mut c, &mut leases, id, SECOND);
    }
    finalize(&mut c, &mut leases);
    assert_eq!(leases.may_run(&fleet, 2 * SECOND), Some(SECOND + L));
    // Validators certified another state of this height.
    c.blocks.roots.get_mut(&c.queue.global_height()).unwrap().0 = Digest([9; 32]);
    finalize(&mut c, &mut leases);
    assert_eq!(leases.may_run(&fleet, 2 * SECOND), Some(SECOND + L));
    finalize(&mut c, &mut leases);
    assert!(c.queue.conflict().is_some());
    assert_eq!(leases.may_run(&fleet, 2 * SECOND), None);
    assert_eq!(leases.may_run(&own, 2 * SECOND), Some(SECOND + L));
    renew(&mut c, &mut leases, 3 * SECOND);
    finalize(&mut c, &mut leases);
    assert_eq!(leases.may_run(&fleet, 4 * SECOND), None);
    assert_eq!(leases.may_run(&own, 4 * SECOND), Some(3 * SECOND + L));
}

#[test]
fn late_result_under_an_old_fence_leaves_the_newer_lease_alone() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let mut leases = leases(&c, "c1-2");
    claim(&mut c, &mut leases, id, SECOND);
    let old = c.queue.held(&id).expect("it is held").fence;
    leases.end(&id, old, true, 2 * SECOND).expect("the vehicle has stopped");
    let counter = c.counter("c1-2");
    let release = Action::Release {
        task: id,
        fence: old,
        counter,
    };
    let release = c.entry("c1-2", Scope::Cluster, release);
    assert_eq!(enter(&mut c, &mut leases, release, 2 * SECOND), Verdict::Granted);
    claim(&mut c, &mut leases, id, 3 * SECOND);
    leases.end(&id, old, true, 4 * SECOND).expect("a late result");
    assert_eq!(leases.may_run(&id, 4 * SECOND), Some(3 * SECOND + L));
    renew(&mut c, &mut leases, 5 * SECOND);
    assert_eq!(leases.may_run(&id, 6 * SECOND), Some(5 * SECOND + L));
    // And an ended claim stays ended, whatever comes late after it.
    let new = c.queue.held(&id).expect("it is held").fence;
    leases.end(&id, new, true, 7 * SECOND).expect("the vehicle has stopped");
    leases.end(&id, old, true, 7 * SECOND).expect("a late result");
    renew(&mut c, &mut leases, 8 * SECOND);
    assert_eq!(leases.may_run(&id, 8 * SECOND), None);
    assert_eq!(leases.unreleased(&c.queue), vec![(id, new)]);
}

#[test]
fn refused_renewal_extends_nothing() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let mut leases = leases(&c, "c1-2");
    claim(&mut c, &mut leases, id, SECOND);
    let old = sign_renew(&mut c, "c1-2");
    renew(&mut c, &mut leases, 2 * SECOND);
    assert_ne!(enter(&mut c, &mut leases, old, 9 * SECOND), Verdict::Granted);
    assert_eq!(leases.deadline_us(&id), Some(2 * SECOND + L));
}

#[test]
fn nothing_is_held_after_a_restart_until_a_new_renewal_wins_it_back() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let mut before = leases(&c, "c1-2");
    claim(&mut c, &mut before, id, SECOND);
    let in_flight = sign_renew(&mut c, "c1-2");
    before.signed(in_flight.id(&c.fleet.chain), 2 * SECOND);

    let mut after = leases(&c, "c1-2");
    assert_eq!(after.may_run(&id, 3 * SECOND), None);
    assert_eq!(after.lost(&c.queue), [(id, c.fence(&id))]);
    let applied = c.apply(LogEntry::Author(in_flight));
    after.after_apply(&c.queue, &applied);
    assert_eq!(after.may_run(&id, 3 * SECOND), None, "its t0 was lost with the process");
    renew(&mut c, &mut after, 4 * SECOND);
    assert_eq!(after.may_run(&id, 4 * SECOND), Some(4 * SECOND + L));
    assert_eq!(after.lost(&c.queue), []);
    let fence = c.fence(&id);
    assert!(
        after.end(&id, fence, false, 1_000 * SECOND).is_err(),
        "the process before may have given it a deadline"
    );
    assert_eq!(after.end(&id, fence, true, 5 * SECOND), Ok(()));
}

#[test]
fn claim_that_was_ended_is_never_counted_on_again() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let mut leases = leases(&c, "c1-2");
    claim(&mut c, &mut leases, id, SECOND);
    let fence = c.fence(&id);
    leases.end(&id, fence, true, 2 * SECOND).unwrap();
    renew(&mut c, &mut leases, 3 * SECOND);
    assert_eq!(leases.may_run(&id, 3 * SECOND), None, "its release may be on the way");
    assert_eq!(leases.lost(&c.queue), []);
    assert_eq!(leases.unreleased(&c.queue), [(id, fence)]);
    c.release("c1-2", id, fence);
    assert_eq!(leases.unreleased(&c.queue), []);
    claim(&mut c, &mut leases, id, 5 * SECOND);
    assert_eq!(
        leases.may_run(&id, 5 * SECOND),
        Some(5 * SECOND + L),
        "a new claim is another"
    );
}

#[test]
fn claim_is_ended_only_when_the_vehicle_has_stopped() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let mut leases = leases(&c, "c1-2");
    claim(&mut c, &mut leases, id, SECOND);
    let fence = c.fence(&id);
    let given = leases.may_run(&id, 2 * SECOND).unwrap();
    let at_us = given + 500_250;
    let refused = StillRunning {
        given_until_us: given,
        at_us,
    };
    assert_eq!(leases.end(&id, fence, false, 3 * SECOND), Err(refused));
    leases.forget();
    assert_eq!(
        leases.end(&id, fence, false, 3 * SECOND),
        Err(refused),
        "a snapshot does not stop a vehicle"
    );
    assert_eq!(leases.end(&id, fence, false, at_us), Ok(()));
    // Never given to the vehicle: nothing to stop.
    let other = c.submit("op1", Scope::Cluster, &task("other"));
    claim(&mut c, &mut leases, other, SECOND);
    let fence = c.fence(&other);
    assert_eq!(leases.end(&other, fence, false, SECOND), Ok(()));
}

#[test]
fn lease_ends_with_the_hold_whoever_ended_it() {
    let mut c = TestCluster::new();
    let mut leases = leases(&c, "c1-2");
    let own = c.submit("op1", Scope::Cluster, &task("own"));
    let fleet_task = c.assigned("op1", &task("fleet"));
    claim(&mut c, &mut leases, own, SECOND);
    claim(&mut c, &mut leases, fleet_task, SECOND);
    finalize(&mut c, &mut leases);
    assert!(leases.may_run(&own, SECOND).is_some() && leases.may_run(&fleet_task, SECOND).is_some());
    let cancel = c.entry("op1", Scope::Cluster, Action::Cancel { task: own });
    let applied = c.apply(LogEntry::Author(cancel));
    leases.after_apply(&c.queue, &applied);
    assert_eq!(leases.may_run(&own, SECOND), None);
    c.author("op1", Scope::Fleet, Action::ForceRequeue { task: fleet_task });
    finalize(&mut c, &mut leases);
    assert_eq!(c.state(&fleet_task), TaskState::Assigned);
    assert_eq!(leases.may_run(&fleet_task, SECOND), None, "another assignment");
}

#[test]
fn renewal_is_due_after_a_quarter_of_the_lease() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let mut leases = leases(&c, "c1-2");
    assert!(!leases.is_renewal_due(u64::MAX), "nothing to renew");
    claim(&mut c, &mut leases, id, SECOND);
    assert!(!leases.is_renewal_due(SECOND + L / 4 - 1));
    assert!(leases.is_renewal_due(SECOND + L / 4));
    leases.signed(EntryId([1; 32]), SECOND + L / 4);
    assert!(!leases.is_renewal_due(SECOND + L / 4 + 1), "one is on its way");
    assert!(leases.is_renewal_due(SECOND + L / 2), "and seems to be lost");
}

#[test]
fn leader_waits_until_the_lease_has_certainly_ended() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let mut watch = LeaseWatch::new(clocks(&c));
    let wait = c.fleet.genesis.timing.lease.certainly_ended_after_us(&clocks(&c));
    let entry = sign_claim(&mut c, "c1-2", id);
    let applied = c.apply(LogEntry::Author(entry));
    watch.after_apply(&c.queue, &applied, SECOND);
    assert_eq!(watch.requeue_due(&c.queue, 0, SECOND + wait), []);
    assert_eq!(
        watch.clone().requeue_due(&c.queue, 3 * SECOND, SECOND + wait + 1),
        [],
        "its term began later"
    );
    let entry = sign_renew(&mut c, "c1-2");
    let applied = c.apply(LogEntry::Author(entry));
    watch.after_apply(&c.queue, &applied, 4 * SECOND);
    assert_eq!(watch.requeue_due(&c.queue, 0, SECOND + wait + 1), [], "renewed");
    let due = watch.requeue_due(&c.queue, 0, 4 * SECOND + wait + 1);
    assert_eq!(due.len(), 1);
    assert_eq!(watch.requeue_due(&c.queue, 0, 4 * SECOND + wait + 2), [], "once");
    assert_eq!(c.author("c1-1", due[0].scope, due[0].action()), Verdict::Granted);
    assert_eq!(c.state(&id), TaskState::Queued);
}

#[test]
fn state_from_a_snapshot_counts_from_when_it_was_first_seen() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    c.hold("c1-2", id);
    let mut watch = LeaseWatch::new(clocks(&c));
    let wait = c.fleet.genesis.timing.lease.certainly_ended_after_us(&clocks(&c));
    assert_eq!(watch.requeue_due(&c.queue, 0, 100 * SECOND), [], "never seen");
    watch.refresh(&c.queue, 100 * SECOND);
    watch.refresh(&c.queue, 101 * SECOND);
    assert_eq!(watch.requeue_due(&c.queue, 0, 100 * SECOND + wait), []);
    assert_eq!(watch.requeue_due(&c.queue, 0, 100 * SECOND + wait + 1).len(), 1);
}

/// What happens next in a history of one task, two drones and a leader.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// True time passes, milliseconds.
    Pass(u64),
    /// The drone signs a claim or a renewal; it stays in flight.
    Sign { drone: bool },
    /// Something in flight of this drone is applied; entries may overtake each other.
    Deliver { drone: bool, newest: bool },
    /// The drone gives the task back, if its vehicle has stopped by itself; it stays in flight.
    Release { drone: bool },
    /// The drone asks whether it may run.
    Run { drone: bool },
    /// The drone forgets everything.
    Restart { drone: bool },
    /// The leader takes back what it may.
    TakeBack,
    /// Another term begins.
    Elect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (1u64..4_000).prop_map(Step::Pass),
        1 => (5_500u64..8_500).prop_map(Step::Pass),
        3 => any::<bool>().prop_map(|drone| Step::Sign { drone }),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(drone, newest)| Step::Deliver { drone, newest }),
        2 => any::<bool>().prop_map(|drone| Step::Release { drone }),
        4 => any::<bool>().prop_map(|drone| Step::Run { drone }),
        1 => any::<bool>().prop_map(|drone| Step::Restart { drone }),
        4 => Just(Step::TakeBack),
        1 => Just(Step::Elect),
    ];
    prop::collection::vec(step, 1..60)
}

struct Drone {
    label: &'static str,
    leases: Leases,
    /// Parts per million by which its clock is fast.
    drift_ppm: i64,
    in_flight: VecDeque<SignedEntry>,
    /// True time until which the vehicle may move, stopping included.
    moves_until_us: u64,
}

/// The reading of a clock that is `drift_ppm` fast.
fn read(true_us: u64, drift_ppm: i64) -> u64 {
    (i128::from(true_us) * i128::from(1_000_000 + drift_ppm) / 1_000_000) as u64
}

/// The latest true time at which that clock reads `clock_us`.
fn true_time(clock_us: u64, drift_ppm: i64) -> u64 {
    ((u128::from(clock_us) + 1) * 1_000_000).div_ceil((1_000_000 + drift_ppm) as u128) as u64
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn two_drones_never_move_for_one_task_whatever_clocks_and_delays_do(
        steps in steps(),
        drifts in prop::array::uniform3(-1i64..=1),
    ) {
        const RHO: i64 = 20_000;
        let mut timing = common::testing::dev_timing();
        timing.clocks.drift_ppm = RHO as u32;
        timing.lease.custody_ms = 16_000;
        timing.lease.stop_ms = 2_000;
        let mut c = TestCluster::of(common::testing::Fleet::with_timing(1, 3, 4, timing));
        let id = c.submit("op1", Scope::Cluster, &Task { attempts_max: 255, ..task("k") });
        let mut watch = LeaseWatch::new(clocks(&c));
        let mut drones = [("c1-2", drifts[0]), ("c1-3", drifts[1])].map(|(label, drift)| Drone {
            label,
            leases: leases(&c, label),
            drift_ppm: drift * RHO,
            in_flight: VecDeque::new(),
            moves_until_us: 0,
        });
        let leader_drift = drifts[2] * RHO;
        let (mut now, mut term_applied_us) = (SECOND, 0);
        for step in steps {
            match step {
                Step::Pass(ms) => now += ms * 1_000,
                Step::Sign { drone } => {
                    let drone = &mut drones[usize::from(drone)];
                    let t0 = read(now, drone.drift_ppm);
                    let is_holder = c.queue.held(&id).is_some_and(|held| held.device == c.fleet.id(drone.label));
                    let entry = if is_holder { sign_renew(&mut c, drone.label) } else { sign_claim(&mut c, drone.label, id) };
                    drone.leases.signed(entry.id(&c.fleet.chain), t0);
                    drone.in_flight.push_back(entry);
                }
                Step::Release { drone } => {
                    let drone = &mut drones[usize::from(drone)];
                    let held = c.queue.held(&id).filter(|held| held.device == c.fleet.id(drone.label));
                    let is_stopped = drone.moves_until_us <= now;
                    if let Some(held) = held
                        && drone.leases.end(&id, held.fence, is_stopped, read(now, drone.drift_ppm)).is_ok()
                    {
                        prop_assert!(drone.moves_until_us <= now, "ended while the vehicle moves");
                        let counter = c.counter(drone.label);
                        let release = Action::Release { task: id, fence: held.fence, counter };
                        drone.in_flight.push_back(c.entry(drone.label, Scope::Cluster, release));
                    }
                }
                Step::Deliver { drone, newest } => {
                    let in_flight = &mut drones[usize::from(drone)].in_flight;
                    if let Some(entry) = if newest { in_flight.pop_back() } else { in_flight.pop_front() } {
                        let applied = c.apply(LogEntry::Author(entry));
                        watch.after_apply(&c.queue, &applied, read(now, leader_drift));
                        drones.iter_mut().for_each(|drone| drone.leases.after_apply(&c.queue, &applied));
                    }
                }
                Step::Run { drone } => {
                    let drone = &mut drones[usize::from(drone)];
                    if let Some(deadline) = drone.leases.may_run(&id, read(now, drone.drift_ppm)) {
                        let stop_us = u64::from(timing.lease.stop_ms) * 1_000;
                        let until = true_time(deadline, drone.drift_ppm) + stop_us;
                        drone.moves_until_us = drone.moves_until_us.max(until);
                    }
                }
                Step::Restart { drone } => {
                    let drone = &mut drones[usize::from(drone)];
                    drone.leases = leases(&c, drone.label);
                }
                Step::TakeBack => {
                    for due in watch.requeue_due(&c.queue, term_applied_us, read(now, leader_drift)) {
                        let entry = c.entry("c1-1", due.scope, due.action());
                        let applied = c.apply(LogEntry::Author(entry));
                        let is_moving = drones.iter().any(|drone| drone.moves_until_us > now);
                        prop_assert!(!is_moving || verdict(&applied) != Verdict::Granted, "taken from a moving vehicle");
                        watch.after_apply(&c.queue, &applied, read(now, leader_drift));
                        drones.iter_mut().for_each(|drone| drone.leases.after_apply(&c.queue, &applied));
                    }
                }
                Step::Elect => {
                    c.term = c.term.next();
                    term_applied_us = read(now, leader_drift);
                }
            }
            let moving = drones.iter().filter(|drone| drone.moves_until_us > now).count();
            prop_assert!(moving <= 1, "both vehicles may move at {now} us");
        }
    }
}
