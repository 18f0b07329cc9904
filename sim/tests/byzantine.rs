//! Processes in an enemy's hands: every actor in turn, and a run in which there are too many of them.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use common::{testing::Fleet, wire::frame::FrameKind};
use sim::{
    byzantine::{ActorKind, Enemies, Enemy, Hacked, Hand, Post},
    faults::Family,
    ports::{Leaves, Tap},
    random::Stream,
    run::{Plan, Report, Staging, run, run_staged, run_with},
    scenario::{Kind, Scripted},
};

/// Seeds for one actor.
const SEEDS_MAX: u64 = 5;

fn attacked(seed: u64, secs: u64, enemies: &[Enemy]) -> Plan {
    Plan {
        lasts: Duration::from_secs(secs),
        enemies: Enemies::of(enemies),
        ..Plan::byzantine(seed)
    }
}

fn is_harmless(report: &Report) {
    let seed = report.plan.seed;
    assert_eq!(
        report.violation, None,
        "seed {seed}: {:?}, {:#?}",
        report.enemies, report.processes
    );
    assert!(report.tasks_acked > 10, "seed {seed} shows nothing");
    assert_eq!(report.tasks_final, report.tasks_acked, "seed {seed}");
    assert_eq!(report.enemies.len(), report.plan.enemies.iter().count());
}

/// What an actor does at such a post, each by its name.
fn deeds_of(actor: ActorKind, is_member: bool) -> &'static [&'static str] {
    match (actor, is_member) {
        (ActorKind::Equivocator, _) => &["second proposal", "vote for the second proposal"],
        (ActorKind::DoubleVoter, _) => &["vote beside its own"],
        (ActorKind::Withholder, _) => &["held back"],
        (ActorKind::Forger, false) => &[
            "proposal that refers to nothing",
            "notice of no batch",
            "answered with a forged batch",
        ],
        (ActorKind::Forger, true) => &["attestation of another batch", "forged batch"],
        (ActorKind::Copyist, _) => &["copy with another signature", "copy with another payload"],
        (ActorKind::RootForger, _) => &[
            "proposal with a wrong state root",
            "proposal with a wrong outcome root",
            "proposal with older roots",
            "vote for wrong roots",
        ],
        (ActorKind::Replayer, _) => &["sent again"],
        (ActorKind::Selective, _) => &["not sent to this one", "sent late to this one"],
        (ActorKind::Amnesiac, _) => &["lives on a backup", "vote against a forgotten one"],
        (ActorKind::LyingLeader, _) => &[
            "commit index ahead of the truth",
            "another entry for one follower",
            "conflicting batch",
        ],
        (ActorKind::Poisoner, false) => &["poisoned answer"],
        // A member is asked for nothing that a poisoner damages, unless its snapshot is wanted.
        (ActorKind::Poisoner, true) => &[],
        (ActorKind::Spammer, _) => &["unasked request"],
        (ActorKind::Packer, _) => &[
            "bundle of rubbish",
            "bundle of one message again and again",
            "bundle of bundles",
            "bundle of too many",
            "bundle of nothing",
        ],
        (ActorKind::Twins, _) => &["vote", "proposal"],
    }
}

/// Every actor, with faults beside it, until it has done each of its deeds. One that finds no occasion gets another
/// seed and the next post: clusters bring their batches to some validators and not to others.
fn every_actor_at(posts: &[Post], fits: fn(ActorKind) -> bool) {
    for (number, actor) in (1..).zip(ActorKind::ALL.into_iter().filter(|actor| fits(*actor))) {
        let is_member = posts[0].cluster().is_some();
        let mut missing: BTreeSet<&str> = deeds_of(actor, is_member).iter().copied().collect();
        for (more, post) in (0..SEEDS_MAX).zip(posts.iter().copied().cycle()) {
            let mut plan = attacked(number + more * 100, 8, &[Enemy { post, actor }]);
            plan.weather.every_us = 4_000_000;
            // A mate of the leader is away for a while, and is sent a snapshot.
            plan.conditions.snapshot_entries = (40, 4);
            let away = Scripted {
                at_ms: 3_500,
                lasts_ms: 2_500,
                kind: Kind::Crash,
                who: vec!["c1-2".into()],
            };
            let report = run_with(plan, &[away]);
            is_harmless(&report);
            missing.retain(|deed| report.enemies.iter().all(|enemy| !enemy.deeds.contains_key(deed)));
            if missing.is_empty() {
                break;
            }
        }
        assert!(missing.is_empty(), "a {} never did {missing:?}", actor.word());
    }
}

#[test]
fn one_validator_of_four_harms_nobody() {
    every_actor_at(&[2, 3, 4, 1].map(Post::Validator), ActorKind::is_for_validators);
}

#[test]
fn hacked_leader_harms_no_other_cluster() {
    every_actor_at(&[Post::Leader { cluster: 1 }], ActorKind::is_for_members);
}

#[test]
fn hacked_member_harms_no_other_cluster() {
    let members = [1, 3].map(|agent| Post::Member { cluster: 1, agent });
    every_actor_at(&members, ActorKind::is_for_members);
}

#[test]
fn poisoner_damages_most_pieces_of_a_snapshot() {
    let fleet = Fleet::dev();
    let hand = Hand::of(&fleet, "c1-1", Stream::new(7));
    let mut hacked = Hacked::new(hand, ActorKind::Poisoner);
    let piece = Bytes::from(vec![5; 64]);
    let to = fleet.idx("c1-2");
    let sent = (0..100).map(|_| hacked.sends(0, to, FrameKind::RaftSnapshot, &piece));
    let damaged = sent.filter(|sent| *sent != Leaves::As(piece.clone())).count();
    assert!((50..100).contains(&damaged), "{damaged} of 100");
    assert_eq!(hacked.deeds().values().sum::<u64>(), damaged as u64);
}

#[test]
fn seeds_draw_enemies_that_harm_nobody() {
    for seed in 0..3 {
        let mut plan = Plan::byzantine(seed);
        plan.lasts = Duration::from_secs(8);
        is_harmless(&run(plan));
    }
}

/// The check of the check: half of the validators vote for everything, and the others cannot hear each other.
/// Each of these then finalizes a chain of its own, unless it sees the other one first and stops.
#[test]
fn two_double_voters_of_four_fork_the_chain_and_are_caught() {
    let double = |number| Enemy {
        post: Post::Validator(number),
        actor: ActorKind::DoubleVoter,
    };
    let is_caught = |seed| {
        let mut plan = attacked(seed, 30, &[double(1), double(2)]);
        plan.weather.every_us = 0;
        // From the begin: who hears of the other chain stops itself.
        let apart = Scripted {
            at_ms: 0,
            lasts_ms: 28_000,
            kind: Kind::InPieces,
            who: vec!["v3".into(), "v4".into()],
        };
        let staging = Staging {
            script: &[apart],
            ..Staging::default()
        };
        let report = run_staged(plan, staging);
        let violation = report.violation.expect("half of the validators are too many");
        assert!(report.faults.iter().all(|fault| fault.family == Family::Partition));
        eprintln!("seed {seed}: {violation}");
        violation.checker == "agreement"
    };
    assert!((1..=12).any(is_caught), "the checker notices within twelve seeds");
}
