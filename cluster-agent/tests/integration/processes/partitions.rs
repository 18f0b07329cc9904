//! Partitions of real processes, cut by the relay between them at random moments: no acknowledged write is lost, none is doubled,
//! no minority acknowledges one, no age is below the truth (invariants 1, 2, 7, 8, 10 of ARCHITECTURE.md).
//!
//! The moments come from a seed that is printed; `MUSTER_CUT_SEED` and `MUSTER_CUT_ROUNDS` choose others.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use cluster_agent::raft::{LinkProfile, RaftConfig};
use common::ids::{LogIndex, TaskId};
use rand::RngExt as _;
use tokio::time::Instant;
use transport::{ports::Service, relay::Rule};

use super::{
    harness::{Shape, VALIDATORS},
    partition::World,
};
use crate::in_process::support::{TokioClock, ground::Ground};

/// A machine that runs other tests beside this one may be late by this much.
const MARGIN: Duration = Duration::from_secs(60);
const DEV: &str = "\n[link]\nprofile = \"dev\"\n";
/// The log forgets after some fifty entries what every member has.
const SMALL_LOG: &str = "\n[limits]\nsnapshot_entries = 40\nsnapshot_entries_kept = 10\n\n[link]\nprofile = \"dev\"\n";

fn shape(agents: u32) -> Shape {
    Shape {
        agents,
        relay: None,
        has_ground: false,
        config: DEV,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn isolated_leader_acknowledges_nothing_and_the_others_go_on() {
    let mut world = World::start("leader", shape(3), |_| {}).await;
    for _ in 0..world.rounds {
        world.pause(300).await;
        let (leader, term) = world.leader().await;
        let others = world.others(&[&leader]);
        let is_whole = world.cut_alone_some_way(&leader);
        world.leader_among(&others, term).await;
        world.acknowledged_by(&others, 2).await;
        world.goes_read_only(&leader, is_whole).await;
        world.pause(300).await;
        world.heal().await;
    }
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn isolated_follower_disturbs_nobody_and_catches_up() {
    let mut world = World::start("follower", shape(3), |_| {}).await;
    let (_, first_term) = world.leader().await;
    for _ in 0..world.rounds {
        world.pause(300).await;
        let (leader, _) = world.leader().await;
        let follower = world.others(&[&leader]).swap_remove(0);
        let others = world.others(&[&follower]);
        let is_whole = world.cut_alone_some_way(&follower);
        world.acknowledged_by(&others, 10).await;
        world.goes_read_only(&follower, is_whole).await;
        // Longer than its patience with a silent leader.
        world.pause(1_500).await;
        world.heal().await;
    }
    let (_, last_term) = world.leader().await;
    // It asks before it raises the term (Raft thesis 9.6); a busy machine may change its leader now and then.
    // One that does not would raise it several times in each round.
    let allowed = world.rounds / 2;
    assert!(last_term - first_term <= allowed, "term {first_term} to {last_term}");
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connected_majority_elects_although_the_old_leader_still_reaches_its_bridge() {
    let probe = Duration::from_millis(RaftConfig::for_profile(LinkProfile::Dev).quorum_probe_ms);
    let mut world = World::start("bridge", shape(5), |_| {}).await;
    let mut waits = Vec::new();
    for _ in 0..world.rounds {
        world.pause(300).await;
        let (leader, term) = world.leader().await;
        let mut majority = world.others(&[&leader]);
        let alone = majority.pop().expect("five voters");
        // The last of the three is the bridge: the old leader reaches it and nobody else.
        for cut in &majority[..2] {
            world.place().relay().cut(&leader, cut).unwrap();
        }
        world.cut_alone(&alone);
        let begun = Instant::now();
        world.leader_among(&majority, term).await;
        waits.push(begun.elapsed());
        assert!(begun.elapsed() < 2 * probe + MARGIN, "{:?}", begun.elapsed());
        world.acknowledged_by(&majority, 1).await;
        world.goes_read_only(&alone, true).await;
        world.heal().await;
    }
    waits.sort();
    println!(
        "bridge: a leader after {:?}, at most {:?}",
        waits[waits.len() / 2],
        waits[waits.len() - 1]
    );
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flapping_link_flaps_no_leader() {
    let mut world = World::start("flapping", shape(3), |_| {}).await;
    let (_, first_term) = world.leader().await;
    let mut flaps = 0;
    for _ in 0..world.rounds {
        let (leader, _) = world.leader().await;
        let follower = world.others(&[&leader]).swap_remove(0);
        for _ in 0..world.random.random_range(2..6) {
            world.place().relay().cut(&leader, &follower).unwrap();
            // From a hiccup to longer than a follower's patience with a silent leader.
            world.pause(1_000).await;
            world.place().relay().heal();
            world.pause(200).await;
            flaps += 1;
        }
        world.heal().await;
    }
    let (_, last_term) = world.leader().await;
    println!("flapping: {flaps} flaps, term {first_term} to {last_term}");
    // A busy machine may change its leader now and then; a flapping one would with every flap.
    assert!(
        last_term - first_term <= flaps / 3,
        "{flaps} flaps: term {first_term} to {last_term}"
    );
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_cut_from_its_validators_beyond_its_log_hands_everything_over_once_and_in_order() {
    let (mut world, ground) = over_ground("validators", 3).await;
    world.add_clients();
    for round in 0..world.rounds {
        world.pause(300).await;
        let (leader, _) = world.leader().await;
        cut_from_validators(&world);
        let since = Instant::now();
        let mut at_work = world.labels();
        // Every second time a follower is away as well, for longer than the log remembers: it needs a snapshot.
        if round % 2 == 1 {
            let follower = world.others(&[&leader]).swap_remove(0);
            world.cut_alone(&follower);
            at_work.retain(|label| *label != follower);
        }
        let last = world
            .status(&leader)
            .await
            .map_or(LogIndex(0), |status| status.last_index);
        world
            .until("the log has forgotten what it held at the cut", async || {
                let (leader, _) = world.leader_among(&at_work, 0).await;
                let status = world.status(&leader).await?;
                (status.last_index.0 > last.0 + 130).then_some(())
            })
            .await;
        let sent = world.tasks_sent_since(since);
        let passed: Vec<_> = handed_over(&ground)
            .into_iter()
            .filter(|task| sent.contains(task))
            .collect();
        assert!(passed.is_empty(), "over a cut link: {passed:?}");
        world.heal().await;
        let before = world.acknowledged_tasks();
        world
            .until("what was acknowledged is final", async || {
                let final_ones: BTreeSet<TaskId> = handed_over(&ground).into_iter().collect();
                before.keys().all(|task| final_ones.contains(task)).then_some(())
            })
            .await;
    }
    world.judge().await;
    all_is_handed_over_once_and_in_order(&world, &ground).await;
    for label in world.labels() {
        let snapshots = world.place().path(&label).join("data/snapshots");
        assert!(
            std::fs::read_dir(&snapshots).is_ok_and(|mut files| files.next().is_some()),
            "{label} made no snapshot"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_links_and_processes_fail_no_promise_is_broken() {
    let (mut world, ground) = over_ground("storm", 5).await;
    for _ in 0..world.rounds {
        // Partitions that overlap in time and are seldom symmetric: a leader changes sides with its writes in flight.
        for _ in 0..world.random.random_range(1..4) {
            let ends: Vec<String> = world.place().ports.keys().cloned().collect();
            for from in &ends {
                for to in ends.iter().filter(|to| *to != from) {
                    let rule = any_rule(&mut world);
                    world.place().relay().set([(from.as_str(), to.as_str())], rule).unwrap();
                }
            }
            world.pause(1_200).await;
            if world.random.random_ratio(1, 4) {
                let victim = world.others(&[]).swap_remove(0);
                world.restart(&victim);
            }
        }
        world.heal().await;
    }
    world.judge().await;
    all_is_handed_over_once_and_in_order(&world, &ground).await;
}

/// Nearly half of the links are cut, a quarter is bad, the others are as they should be.
fn any_rule(world: &mut World) -> Rule {
    let random = &mut world.random;
    match random.random_range(0..100) {
        0..45 => Rule::CUT,
        45..70 => Rule {
            drops_all: false,
            loss_ppm: random.random_range(0..500_000),
            delay_us: random.random_range(0..60_000),
            jitter_us: random.random_range(0..60_000),
            reorder_ppm: random.random_range(0..100_000),
            reorder_us: 20_000,
            duplicate_ppm: random.random_range(0..200_000),
        },
        _ => Rule::default(),
    }
}

/// A cluster with validators and a small log, and their ground.
async fn over_ground(name: &'static str, agents: u32) -> (World, Ground) {
    let mut ground = None;
    let shape = Shape {
        has_ground: true,
        config: SMALL_LOG,
        ..shape(agents)
    };
    let world = World::start(name, shape, |place| {
        let started = Ground::new(&place.fleet, TokioClock::start());
        let service: Arc<dyn Service> = Arc::new(started.clone());
        place.start_ground(&service);
        ground = Some(started);
    });
    let world = world.await;
    (world, ground.expect("it was started"))
}

fn handed_over(ground: &Ground) -> Vec<TaskId> {
    ground.entries().into_iter().map(TaskId::from).collect()
}

/// After the judge: what was acknowledged is final, each once, in the order of the cluster's log, and nothing else is.
async fn all_is_handed_over_once_and_in_order(world: &World, ground: &Ground) {
    let acknowledged = world.acknowledged_tasks();
    world
        .until("everything acknowledged is final", async || {
            (handed_over(ground).len() >= acknowledged.len()).then_some(())
        })
        .await;
    let tasks = handed_over(ground);
    let indexes: Vec<Option<LogIndex>> = tasks.iter().map(|task| acknowledged.get(task).copied()).collect();
    assert!(indexes.iter().all(Option::is_some), "what nobody was told of");
    assert!(indexes.is_sorted_by(|one, next| one < next), "twice, or out of order");
    assert_eq!(indexes.len(), acknowledged.len());
}

fn cut_from_validators(world: &World) {
    let labels = world.labels();
    let links = labels
        .iter()
        .flat_map(|agent| VALIDATORS.map(|validator| (agent.as_str(), validator)));
    let both = links.flat_map(|(agent, validator)| [(agent, validator), (validator, agent)]);
    world.place().relay().set(both, Rule::CUT).unwrap();
}
