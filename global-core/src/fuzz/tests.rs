//! What the schedules claim.

use std::sync::atomic::{AtomicU64, Ordering};

use common::ids::Height;

use super::{
    network::Network,
    plan::{Failure, Plan},
};
use crate::{
    consensus::UNFINALIZED_BLOCKS_MAX,
    mutant::{Fault, Mutant},
};

/// Schedules in an ordinary run; `SCHEDULES=100000 cargo test` runs more.
const SCHEDULES: u64 = 2_000;

/// The schedule of a seed.
fn schedule(seed: u64, mutant: Mutant) -> Plan {
    let (n, faulty) = [(4, 1), (7, 2), (5, 1), (4, 0)][(seed % 4) as usize];
    let byzantine: Vec<usize> = (0..faulty).map(|i| (seed as usize / 4 + i) % n).collect();
    // Whoever is faulty or down has less than a third of the weight.
    let is_one_down = faulty == 0 && seed % 3 == 1;
    let weights = (0..n).map(|i| match seed % 3 {
        0 if !byzantine.contains(&i) => 1 + (seed / 3 + i as u64) % 2,
        _ => 1,
    });
    Plan {
        seed,
        weights: weights.collect(),
        byzantine,
        // Of four validators without a faulty one, one may be down for good.
        down: if is_one_down {
            vec![(seed / 8) as usize % 4]
        } else {
            vec![]
        },
        jitter_us: 5_000,
        heals_at_us: 1_000_000,
        loss_percent: 10,
        cut_percent: if seed.is_multiple_of(5) { 60 } else { 98 },
        crashes_per_validator: (seed / 2) % 3,
        batches_per_cluster: 6,
        blocks_after: 4,
        mutant,
        ..Plan::calm(n, 10_000)
    }
}

/// Runs all seeds up to `count` on all processors. Returns failures in order of their seeds.
fn run_all(count: u64, plan: impl Fn(u64) -> Plan + Sync) -> Vec<(u64, Failure)> {
    let next = AtomicU64::new(1);
    let work = || {
        let mut failures = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > count {
                return failures;
            }
            if let Err(failure) = Network::new(plan(seed)).run() {
                failures.push((seed, failure));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    #[expect(clippy::disallowed_methods, reason = "each thread runs networks of its own seeds")]
    let mut failures: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    failures.sort_by_key(|(seed, _)| *seed);
    failures
}

fn assert_none(count: u64, failures: &[(u64, Failure)]) {
    let first = &failures[..failures.len().min(5)];
    assert!(failures.is_empty(), "{} of {count} seeds: {first:?}", failures.len());
}

#[test]
fn schedules_neither_fork_nor_stall() {
    let wanted = std::env::var("SCHEDULES").ok().and_then(|count| count.parse().ok());
    let count = wanted.unwrap_or(SCHEDULES);
    assert_none(count, &run_all(count, |seed| schedule(seed, Mutant::default())));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [2, 5, 11] {
        let runs = [0, 1].map(|_| Network::new(schedule(seed, Mutant::default())).run());
        let [a, b] = runs.map(|run| run.map(|network| (network.now_us(), network.seen.finalized)));
        assert_eq!(a, b, "seed {seed}");
    }
}

/// A batch of each cluster in every delay: somebody always has something to propose.
fn busy(n: usize, delay_us: u64) -> Plan {
    Plan {
        batches_per_cluster: 40,
        feed_us: Some(delay_us),
        blocks_after: 20,
        ..Plan::calm(n, delay_us)
    }
}

#[test]
fn a_block_is_final_three_delays_after_its_proposal_and_the_next_follows_after_two() {
    const DELAY_US: u64 = 50_000;
    for n in [4, 5, 7, 10, 20] {
        let network = Network::new(busy(n, DELAY_US)).run().unwrap();
        let mut proposals = Vec::new();
        for height in 1..=20 {
            for of in 0..n {
                let (digest, final_at) = network.seen.finalized[&(of, Height(height))];
                let proposed_at = network.seen.proposed[&digest];
                assert_eq!(
                    final_at - proposed_at,
                    3 * DELAY_US,
                    "n = {n}, height {height}, validator {of}"
                );
                proposals.push(proposed_at);
            }
        }
        proposals.dedup();
        assert_eq!(proposals.len(), 20, "n = {n}: one proposal per height");
        for pair in proposals.windows(2) {
            assert_eq!(pair[1] - pair[0], 2 * DELAY_US, "n = {n}");
        }
    }
}

#[test]
fn a_stored_batch_is_final_within_three_delays_and_a_block_interval() {
    const DELAY_US: u64 = 50_000;
    let network = Network::new(busy(4, DELAY_US)).run().unwrap();
    let final_at = |digest| {
        let all = network.seen.finalized.values().filter(|(d, _)| *d == digest);
        all.map(|(_, at)| *at).max().unwrap()
    };
    for (batch, stored_at) in &network.seen.stored {
        if let Some(block) = network.seen.refs.get(batch).filter(|_| batch.seq.0 < 30) {
            let took_us = final_at(*block) - stored_at;
            assert!(took_us <= 5 * DELAY_US, "{batch:?} took {took_us} us");
        }
    }
}

#[test]
fn a_crashed_validator_of_four_stops_nothing() {
    for down in 0..4 {
        let plan = Plan {
            down: vec![down],
            ..busy(4, 10_000)
        };
        let network = Network::new(plan)
            .run()
            .unwrap_or_else(|failure| panic!("without {down}: {failure:?}"));
        // 40 batches in 40 delays; a silent leader is waited for a few times, then skipped.
        assert!(
            network.now_us() < 200 * 10_000,
            "without {down}: {} us",
            network.now_us()
        );
    }
}

#[test]
fn all_four_restart_at_once_at_any_moment_and_continue() {
    for moment in 0..60 {
        let plan = Plan {
            power_cuts_us: vec![moment * 3_300, moment * 3_300 + 150_000],
            heals_at_us: 400_000,
            cut_percent: 0,
            batches_per_cluster: 10,
            feed_us: Some(10_000),
            ..Plan::calm(4, 10_000)
        };
        let run = Network::new(plan).run();
        run.unwrap_or_else(|failure| panic!("power cut {moment}: {failure:?}"));
    }
}

#[test]
fn one_validator_alone_is_its_own_quorum() {
    let plan = Plan {
        power_cuts_us: (1..40).map(|cut| cut * 7_300).collect(),
        heals_at_us: 400_000,
        ..busy(1, 10_000)
    };
    Network::new(plan).run().unwrap();
}

/// No finalize vote arrives for a while, and batches never end.
fn unfinalized(mutant: Mutant) -> Plan {
    Plan {
        finalize_votes_lost_until_us: 4_000_000,
        batches_per_cluster: 400,
        feed_us: Some(10_000),
        blocks_after: UNFINALIZED_BLOCKS_MAX + 4,
        mutant,
        ..Plan::calm(4, 10_000)
    }
}

#[test]
fn at_the_depth_cap_blocks_go_on_without_references_and_more_slowly() {
    let network = Network::new(unfinalized(Mutant::default())).run().unwrap();
    let height_of = |block: &common::ids::Digest| {
        let mut finalized = network.seen.finalized.iter();
        finalized
            .find(|(_, (digest, _))| digest == block)
            .map(|((_, height), _)| height.0)
    };
    let mut proposed: Vec<(u64, u64)> = network
        .seen
        .proposed
        .iter()
        .filter_map(|(digest, at)| Some((height_of(digest)?, *at)))
        .collect();
    proposed.sort_unstable();
    let before_votes: Vec<_> = proposed.iter().filter(|(_, at)| *at < 4_000_000).collect();
    let capped: Vec<_> = before_votes
        .iter()
        .filter(|(height, _)| *height > UNFINALIZED_BLOCKS_MAX)
        .collect();
    assert!(!capped.is_empty(), "the cap was reached: {before_votes:?}");
    for (height, at) in capped {
        let before = proposed.iter().find(|(h, _)| *h + 1 == *height).unwrap().1;
        assert!(
            at - before > 2 * 10_000,
            "height {height} came after {} us",
            at - before
        );
    }
    let with_refs = network.seen.refs.values().filter_map(height_of);
    let first = with_refs.filter(|height| *height > UNFINALIZED_BLOCKS_MAX);
    let first_refs_at = first
        .map(|height| proposed.iter().find(|(h, _)| *h == height).unwrap().1)
        .min();
    assert!(first_refs_at.is_none_or(|at| at >= 4_000_000), "{first_refs_at:?}");
}

/// As at the hard cap, where nothing can be proposed any more: only finalize votes for old views can help,
/// and more views have been given up since than are sent again at once.
#[test]
fn finalize_votes_that_were_lost_for_long_are_sent_again_and_the_chain_goes_on() {
    let plan = Plan {
        finalize_votes_lost_until_us: 60_000_000,
        ..unfinalized(Mutant(Some(Fault::SilentAtDepthCap)))
    };
    let network = Network::new(plan).run().unwrap();
    let given_up = network.seen.proposed.len() as u64;
    assert!(given_up > UNFINALIZED_BLOCKS_MAX, "{given_up}");
}

#[test]
fn silence_at_the_depth_cap_is_seen() {
    let heights = |mutant| {
        let network = Network::new(unfinalized(mutant)).run();
        network.map(|network| {
            let early = network.seen.proposed.values().filter(|at| **at < 4_000_000);
            early.count() as u64
        })
    };
    assert!(heights(Mutant::default()).unwrap() > UNFINALIZED_BLOCKS_MAX);
    let silent = heights(Mutant(Some(Fault::SilentAtDepthCap)));
    assert!(silent.is_ok_and(|count| count == UNFINALIZED_BLOCKS_MAX));
}

/// The first seed whose schedule shows the fault.
fn find(fault: Fault, is_guarded: bool, seeds: u64) -> Option<(u64, Failure)> {
    (1..=seeds).find_map(|seed| {
        let plan = Plan {
            is_guarded,
            ..schedule(seed, Mutant(Some(fault)))
        };
        Some((seed, Network::new(plan).run().err()?))
    })
}

/// Agreement, halting and liveness alone see these: the guard is switched off.
#[test]
fn every_mutant_is_killed() {
    use Fault::*;
    let mutants = [
        ParentUnchecked,
        NullificationsUnchecked,
        FinalizeAfterNullify,
        QuorumOfHalf,
        VotesNotPersisted,
        RestartAtOldView,
        CertificatesNotPersisted,
        BatchesUnchecked,
        RootsUnchecked,
        NoFetch,
        NoResend,
    ];
    for fault in mutants {
        let found = find(fault, false, 1_000);
        assert!(found.is_some(), "{fault:?} survived");
        println!("{fault:?}: {found:?}");
    }
}

/// These two break a sentence on which safety rests, and other rules mask what would follow: a
/// validator finalizes one block per view however many it notarized, and keeps the first notarization
/// it sees; who nullified a view it finalized must also miss every copy of its finalization. So it is
/// the rule itself that is checked, on every vote: the guard sees them.
#[test]
fn mutants_that_are_masked_are_seen_by_the_guard() {
    for fault in [Fault::DoubleNotarize, Fault::NullifyAfterFinalize] {
        let found = find(fault, true, 200);
        assert!(matches!(found, Some((_, Failure::Guard(_)))), "{fault:?}: {found:?}");
    }
}

#[test]
fn agreement_can_fail_with_too_many_byzantine_validators() {
    let forked = (1..200).any(|seed| {
        let plan = Plan {
            weights: vec![1; 4],
            byzantine: vec![(seed % 4) as usize, (seed % 4 + 1) as usize % 4],
            down: vec![],
            ..schedule(seed, Mutant::default())
        };
        matches!(Network::new(plan).run(), Err(Failure::Fork(_)))
    });
    assert!(forked, "half of the weight forks nobody: the checker sees nothing");
}
