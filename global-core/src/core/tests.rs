//! What the rooms do together: time, batches, roots, an empty chain, sync.

use common::{
    block::{Block, FinalizedBlock, ProofOfFinality},
    ids::{Digest, Height, NodeIdx, View},
};

use super::*;
use crate::fuzz::bench::{
    Bench, D_US, batch, finalize, finalized_in, notarize, nullify, proposed_in, stored, votes_in,
};

const BOUND_US: u64 = 50 * D_US;
const IDLE_US: u64 = 20 * D_US;
const D_MAX_US: u64 = 2 * D_US;

/// A block at another time than the clock's.
fn at_time(bench: &mut Bench, change: impl Fn(&mut u64)) -> Block {
    let mut block = bench.unknown_block(1, bench.genesis(), vec![]);
    change(&mut block.header.time.0);
    block
}

#[test]
fn a_block_from_the_future_is_held_until_the_clock_reaches_it() {
    let mut bench = Bench::follower_of(&[1]);
    let clock = bench.now.clock.0;
    let early = at_time(&mut bench, |time| *time = clock + BOUND_US + D_US);
    assert_eq!(votes_in(&bench.give(bench.proposal(&early))), []);
    assert_eq!(votes_in(&bench.wait(D_US - 1)), []);
    assert_eq!(votes_in(&bench.wait(1)), [notarize(&early)]);
}

#[test]
fn a_block_from_the_past_is_nullified() {
    let mut bench = Bench::follower_of(&[1]);
    bench.now.clock.0 += 2 * BOUND_US;
    let clock = bench.now.clock.0;
    let old = at_time(&mut bench, |time| *time = clock - BOUND_US - 1);
    assert_eq!(votes_in(&bench.give(bench.proposal(&old))), [nullify(1)]);
    let mut bench = Bench::follower_of(&[1]);
    bench.now.clock.0 += 2 * BOUND_US;
    let just = at_time(&mut bench, |time| *time = clock - BOUND_US);
    assert_eq!(votes_in(&bench.give(bench.proposal(&just))), [notarize(&just)]);
}

#[test]
fn age_is_judged_on_receipt_and_not_after_a_fetch() {
    let mut bench = Bench::follower_of(&[1]);
    let block = bench.block(1, bench.genesis(), vec![batch(1)]);
    bench.give(bench.proposal(&block));
    bench.now.clock.0 += 2 * BOUND_US;
    assert_eq!(votes_in(&bench.give(stored(1))), [notarize(&block)]);
}

#[test]
fn the_least_step_above_a_parent_from_the_future_is_right() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let clock = bench.now.clock.0;
    bench.now.clock.0 += 3 * BOUND_US;
    let one = bench.block(1, bench.genesis(), vec![]);
    let two = bench.block(2, one.digest(), vec![]);
    assert_eq!(two.header.time.0, one.header.time.0 + 1);
    bench.now.clock.0 = clock;
    // My clock is far behind a quorum's.
    bench.give(bench.proposal(&one));
    bench.certify(notarize(&one));
    assert!(votes_in(&bench.give(bench.proposal(&two))).contains(&notarize(&two)));
}

#[test]
fn a_missing_batch_is_fetched_from_the_proposer_and_the_vote_follows_when_it_lands() {
    let mut bench = Bench::follower_of(&[1]);
    let block = bench.block(1, bench.genesis(), vec![batch(1)]);
    let effects = bench.give(bench.proposal(&block));
    assert_eq!(votes_in(&effects), []);
    let leader = bench.set.leader(View(1));
    let asked = |e: &Effect| matches!(e, Effect::FetchBatch(w) if w.batch == batch(1) && w.from[0] == leader);
    assert_eq!(effects.iter().filter(|e| asked(e)).count(), 1, "{effects:?}");
    assert!(!bench.wait(D_US).iter().any(asked), "not again so soon");
    assert!(bench.wait(3 * D_US).iter().any(asked), "again when it does not come");
    assert_eq!(votes_in(&bench.give(stored(1))), [notarize(&block)]);
}

#[test]
fn a_missing_parent_is_fetched_and_the_vote_follows_when_it_lands() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let one = bench.block(1, bench.genesis(), vec![]);
    let two = bench.block(2, one.digest(), vec![]);
    let effects = bench.give(bench.proposal(&two));
    assert_eq!(votes_in(&effects), [finalize(&one)], "its notarization came along");
    let proposer = bench.set.leader(View(2));
    let asked = |e: &Effect| matches!(e, Effect::FetchBlock { digest, from } if *digest == one.digest() && from.contains(&proposer));
    assert!(effects.iter().any(asked), "{effects:?}");
    assert_eq!(
        votes_in(&bench.give(Input::BlockFetched(Box::new(one)))),
        [notarize(&two)]
    );
}

#[test]
fn a_wrong_root_in_a_proposal_is_nullified_and_in_a_notarized_block_it_halts() {
    let mut bench = Bench::follower_of(&[1]);
    let mut block = bench.unknown_block(1, bench.genesis(), vec![]);
    block.header.state_root = Digest([9; 32]);
    assert_eq!(votes_in(&bench.give(bench.proposal(&block))), [nullify(1)]);
    let effects = bench.certify(notarize(&block));
    assert!(
        matches!(effects.last(), Some(Effect::Halt(HaltReason::OtherRoots { .. }))),
        "{effects:?}"
    );
    assert!(bench.core.is_halted());
    assert_eq!(bench.give(Input::Tick), []);
}

#[test]
fn an_invalid_reference_is_nullified() {
    let mut bench = Bench::follower_of(&[1]);
    let block = bench.unknown_block(1, bench.genesis(), vec![batch(2)]);
    assert_eq!(votes_in(&bench.give(bench.proposal(&block))), [nullify(1)]);
}

#[test]
fn a_leader_with_nothing_to_say_rests_and_proposes_when_the_interval_is_over() {
    let mut bench = Bench::leader_of(1);
    assert_eq!(bench.wait(IDLE_US - 1), [], "nobody's timers run");
    let proposed = proposed_in(&bench.wait(1));
    assert_eq!(proposed.len(), 1);
    assert!(proposed[0].refs.is_empty());
}

#[test]
fn a_leader_proposes_at_once_when_a_batch_is_stored() {
    let mut bench = Bench::leader_of(1);
    let proposed = proposed_in(&bench.give(stored(1)));
    assert_eq!(
        proposed.iter().map(|b| b.refs.to_vec()).collect::<Vec<_>>(),
        [vec![batch(1)]]
    );
}

#[test]
fn after_a_block_with_references_two_empty_ones_are_owed_and_no_more() {
    let mut bench = Bench::leader_of(4);
    let mut parent = bench.genesis();
    for view in 1..=3 {
        let refs = if view == 1 { vec![batch(1)] } else { vec![] };
        let block = bench.block(view, parent, refs);
        bench.give(stored(1));
        bench.give(bench.proposal(&block));
        bench.certify(notarize(&block));
        bench.certify(finalize(&block));
        parent = block.digest();
    }
    assert_eq!(bench.view(), 4);
    assert_eq!(
        proposed_in(&bench.wait(IDLE_US - 1)),
        [],
        "the roots of block 1 stand in block 3"
    );
    assert_eq!(proposed_in(&bench.wait(1)).len(), 1);

    let mut bench = leader_with_a_root_owed();
    assert_eq!(proposed_in(&bench.wait(3 * D_MAX_US - 1)), [], "it waits for company");
    let proposed = proposed_in(&bench.wait(1));
    assert_eq!(proposed.len(), 1, "this one is owed");
    assert!(proposed[0].refs.is_empty());
}

/// Leads view 3, with a final block of references in view 1 and an empty one in view 2.
fn leader_with_a_root_owed() -> Bench {
    let mut bench = Bench::leader_of(3);
    let mut parent = bench.genesis();
    for view in 1..=2 {
        let refs = if view == 1 { vec![batch(1)] } else { vec![] };
        let block = bench.block(view, parent, refs);
        bench.give(stored(1));
        bench.give(bench.proposal(&block));
        bench.certify(notarize(&block));
        bench.certify(finalize(&block));
        parent = block.digest();
    }
    bench
}

#[test]
fn owed_root_travels_with_a_batch_that_comes_meanwhile() {
    let mut bench = leader_with_a_root_owed();
    assert_eq!(proposed_in(&bench.wait(D_US)), []);
    let proposed = proposed_in(&bench.give(stored(2)));
    assert_eq!(
        proposed.iter().map(|b| b.refs.to_vec()).collect::<Vec<_>>(),
        [vec![batch(2)]]
    );
}

/// The block of view 1, which refers to a batch and is not final.
fn notarized_with_a_batch(bench: &mut Bench) -> Block {
    let block = bench.block(1, bench.genesis(), vec![batch(1)]);
    bench.give(stored(1));
    bench.give(bench.proposal(&block));
    bench.certify(notarize(&block));
    block
}

#[test]
fn an_unfinalized_block_gets_an_empty_one_above_it_only_if_its_finalization_does_not_come() {
    let on_top = |is_finalized: bool| {
        let mut bench = Bench::leader_of(2);
        let block = notarized_with_a_batch(&mut bench);
        assert_eq!(bench.view(), 2);
        let early = bench.wait(D_US - 1);
        assert_eq!(proposed_in(&early), [], "finalize votes are on their way");
        if is_finalized {
            bench.certify(finalize(&block));
        }
        bench.wait(1)
    };
    assert_eq!(proposed_in(&on_top(true)), []);
    assert_eq!(proposed_in(&on_top(false)).len(), 1);
}

#[test]
fn voter_gives_the_leader_of_an_empty_block_its_time() {
    let mut bench = Bench::follower_of(&[2]);
    notarized_with_a_batch(&mut bench);
    assert_eq!(
        votes_in(&bench.wait(3 * D_US - 1)),
        [],
        "D to wait, then 2D to be heard"
    );
    assert_eq!(votes_in(&bench.wait(1)), [nullify(2)]);
}

#[test]
fn timers_that_ran_for_a_finalization_rest_when_it_has_come() {
    let mut bench = Bench::follower_of(&[2]);
    let block = notarized_with_a_batch(&mut bench);
    assert_eq!(votes_in(&bench.wait(2 * D_US)), [], "they run");
    bench.certify(finalize(&block));
    assert_eq!(
        votes_in(&bench.wait(IDLE_US - 1)),
        [],
        "the leader owes a root, for which nobody hurries"
    );
}

#[test]
fn batch_behind_a_new_block_gives_the_next_leader_its_time() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let block = bench.block(1, bench.genesis(), vec![batch(1)]);
    bench.give(stored(1));
    bench.give(bench.proposal(&block));
    bench.give(stored(2));
    bench.wait(2 * D_US);
    bench.certify(notarize(&block));
    bench.certify(finalize(&block));
    assert_eq!(bench.view(), 2);
    assert_eq!(
        votes_in(&bench.wait(4 * D_US - 1)),
        [],
        "2D to fetch it, 2D to be heard"
    );
    assert_eq!(votes_in(&bench.wait(1)), [nullify(2)]);
}

#[test]
fn silent_leader_is_given_up_as_soon_as_a_batch_waits() {
    let mut bench = Bench::follower_of(&[1]);
    let (me, dead) = (bench.me, bench.set.leader(View(1)));
    let (mut view, mut parent) = (1, bench.genesis());
    while view < 40 || bench.set.leader(View(view)) != dead {
        if bench.set.leader(View(view)) == dead {
            // Somebody waited for it.
            bench.votes(1, nullify(view));
            bench.certify(nullify(view));
        } else {
            let block = bench.block(view, parent, vec![]);
            if bench.set.leader(View(view)) != me {
                bench.give(bench.proposal(&block));
            }
            bench.certify(notarize(&block));
            bench.give(Input::BlockFetched(Box::new(block.clone())));
            bench.certify(finalize(&block));
            parent = block.digest();
        }
        view += 1;
    }
    assert_eq!(bench.view(), view);
    assert_eq!(votes_in(&bench.give(stored(1))), [nullify(view)]);
}

#[test]
fn a_batch_that_was_only_heard_of_starts_the_timers_for_a_while() {
    let mut bench = Bench::follower_of(&[1]);
    let from = NodeIdx(2);
    let effects = bench.give(Input::BatchHeard { batch: batch(1), from });
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, Effect::FetchBatch(w) if w.from == [from]))
    );
    assert_eq!(
        votes_in(&bench.wait(4 * D_US - 1)),
        [],
        "its leader has 2D to fetch it, and 2D to be heard"
    );
    assert_eq!(votes_in(&bench.wait(1)), [nullify(1)], "its leader does not propose it");
    bench.certify(nullify(1));
    bench.wait(HEARD_DELAYS * 2 * D_US);
    let resting = bench.view() + 1;
    bench.certify(nullify(bench.view()));
    assert_eq!(bench.view(), resting);
    let timer = |e: &Effect| matches!(e, Effect::SetTimer(_));
    let effects = bench.give(Input::BatchHeard { batch: batch(7), from });
    assert!(!effects.iter().any(|e| matches!(e, Effect::Vote(_))));
    assert!(effects.iter().filter(|e| timer(e)).count() <= 1);
}

#[test]
fn what_would_not_be_stored_is_not_fetched_upon_a_notice() {
    let mut bench = Bench::follower_of(&[1]);
    let from = NodeIdx(2);
    let mut is_fetched = |batch: BatchRef| {
        let effects = bench.give(Input::BatchHeard { batch, from });
        effects
            .iter()
            .any(|e| matches!(e, Effect::FetchBatch(w) if w.batch == batch))
    };
    // A cluster that contradicts itself: any number of certified batches of one number.
    let rival = |content: u8| BatchRef {
        digest: Digest([content; 32]),
        ..batch(1)
    };
    let fetched = (0..100).filter(|content| is_fetched(rival(*content))).count();
    assert_eq!(fetched, crate::batch_pool::RIVALS_MAX);
    // And any number of numbers that cannot be next for long.
    let fetched = (2..200).filter(|seq| is_fetched(batch(*seq))).count() as u64;
    assert_eq!(fetched, crate::batch_pool::PARKED_PER_CLUSTER_MAX);
    let nowhere = BatchRef {
        cluster: common::ids::ClusterId(99),
        ..batch(2)
    };
    assert!(!is_fetched(nowhere));
}

#[test]
fn executed_follows_final_height_by_height() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let one = bench.block(1, bench.genesis(), vec![batch(1)]);
    let two = bench.block(2, one.digest(), vec![]);
    bench.give(bench.proposal(&one));
    bench.give(bench.proposal(&two));
    let effects = bench.certify(finalize(&two));
    assert_eq!(finalized_in(&effects), [1, 2]);
    let executed = |effects: &[Effect]| -> Vec<u64> {
        let height = |e: &Effect| match e {
            Effect::Executed { height, .. } => Some(height.0),
            _ => None,
        };
        effects.iter().filter_map(height).collect()
    };
    assert_eq!(executed(&effects), [] as [u64; 0], "its batch is missing");
    let effects = bench.give(stored(1));
    assert_eq!(executed(&effects), [1, 2]);
    assert_eq!(bench.core.admission(&batch(1)), Some(Admission::Executed));
}

/// Two ways lead a batch to the disk, and a slow disk tells of the second one late.
#[test]
fn batch_that_is_stored_once_more_after_it_was_executed_is_not_held() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let one = bench.block(1, bench.genesis(), vec![batch(1)]);
    let two = bench.block(2, one.digest(), vec![]);
    bench.give(stored(1));
    assert_eq!(bench.core.holdings(Height(0)).batches.len(), 1);
    bench.give(bench.proposal(&one));
    bench.give(bench.proposal(&two));
    bench.certify(finalize(&two));
    assert_eq!(bench.core.ledger().executed_height(), Height(2));
    bench.give(stored(1));
    assert_eq!(bench.core.holdings(Height(2)).batches, Default::default());
    bench.give(stored(2));
    assert_eq!(bench.core.holdings(Height(2)).batches.len(), 1, "it comes next");
}

/// `count` blocks of empty heights, each final by its own finalization.
fn chain(bench: &mut Bench, count: u64) -> Vec<FinalizedBlock> {
    let mut parent = bench.genesis();
    let mut blocks = Vec::new();
    for view in 1..=count {
        let block = bench.block(view, parent, vec![]);
        parent = block.digest();
        let proof = ProofOfFinality {
            above: Default::default(),
            finalization: bench.finalization(&block.header.ballot()),
        };
        blocks.push(FinalizedBlock { block, proof });
    }
    blocks
}

#[test]
fn a_stored_final_block_whose_batch_is_missing_is_final_after_a_restart_and_only_the_batch_is_fetched() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let one = bench.block(1, bench.genesis(), vec![batch(1)]);
    let two = bench.block(2, one.digest(), vec![]);
    bench.give(bench.proposal(&one));
    bench.give(bench.proposal(&two));
    bench.certify(finalize(&two));
    let effects = bench.restart_on(&[one, two.clone()]);
    assert_eq!((bench.core.tip().digest, bench.view()), (two.digest(), 3));
    assert_eq!(bench.core.ledger().executed_height(), Height(0));
    let is_asked = |e: &Effect| matches!(e, Effect::FetchBatch(wanted) if wanted.batch == batch(1));
    assert!(effects.iter().any(is_asked), "{effects:?}");
    assert_eq!(asked_for(&effects), []);
    assert!(!effects.iter().any(|e| matches!(e, Effect::FetchBlock { .. })));
    bench.give(stored(1));
    assert_eq!(bench.core.ledger().executed_height(), Height(2));
}

fn asked_for(effects: &[Effect]) -> Vec<(NodeIdx, Height)> {
    let request = |e: &Effect| match e {
        Effect::RequestSync { to, from } => Some((*to, *from)),
        _ => None,
    };
    effects.iter().filter_map(request).collect()
}

fn answer(bench: &mut Bench, from: NodeIdx, blocks: &[FinalizedBlock]) -> Vec<Effect> {
    let blocks = blocks.iter().cloned().map(Checked::assumed).collect();
    bench.give(Input::SyncAnswered { from, blocks })
}

#[test]
fn who_is_far_behind_asks_for_finalized_blocks_and_takes_them_in_order() {
    let mut bench = Bench::follower_of(&[1]);
    let blocks = chain(&mut bench, 20);
    let effects = bench.certify(finalize(&blocks[19].block));
    let asked = asked_for(&effects);
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].1, Height(1));
    assert!(
        !effects.iter().any(|e| matches!(e, Effect::FetchBlock { .. })),
        "not one by one"
    );

    let effects = answer(&mut bench, asked[0].0, &blocks[..8]);
    assert_eq!(finalized_in(&effects), (1..=8).collect::<Vec<_>>());
    let next = asked_for(&effects);
    assert_eq!(next[0].1, Height(9));
    let effects = answer(&mut bench, next[0].0, &blocks[8..20]);
    assert_eq!(finalized_in(&effects), (9..=20).collect::<Vec<_>>());
    assert_eq!(bench.view(), 21);
    assert_eq!(bench.core.ledger().executed_height(), Height(20));
}

#[test]
fn a_peer_that_does_not_deliver_is_not_asked_again_while_there_are_others() {
    let mut bench = Bench::follower_of(&[1]);
    let blocks = chain(&mut bench, 20);
    let first = asked_for(&bench.certify(finalize(&blocks[19].block)))[0].0;
    let second = asked_for(&answer(&mut bench, first, &[]))[0].0;
    assert_ne!(first, second);
    // A gap brings nothing new either.
    let third = asked_for(&answer(&mut bench, second, &blocks[3..5]))[0].0;
    assert!(third != first && third != second);
    assert_eq!(asked_for(&bench.give(Input::SyncFailed { from: third })), []);
    assert!(
        !asked_for(&bench.wait(50 * D_US)).is_empty(),
        "after a while everybody gets another chance"
    );
}

#[test]
fn a_peer_that_claims_any_height_keeps_nobody_from_fetching_blocks() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let (peer, height) = (NodeIdx(3), Height(u64::MAX));
    let effects = bench.give(Input::PeerHeight { peer, height });
    assert_eq!(asked_for(&effects), [(peer, Height(1))], "it is asked to deliver");
    assert_eq!(asked_for(&answer(&mut bench, peer, &[])), []);
    let one = bench.block(1, bench.genesis(), vec![]);
    let two = bench.block(2, one.digest(), vec![]);
    let effects = bench.give(bench.proposal(&two));
    assert!(
        effects.iter().any(|e| matches!(e, Effect::FetchBlock { .. })),
        "{effects:?}"
    );
}

#[test]
fn a_synced_block_on_another_chain_halts() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let one = bench.block(1, bench.genesis(), vec![]);
    bench.give(bench.proposal(&one));
    bench.certify(finalize(&one));
    let rival = bench.block(2, bench.genesis(), vec![]);
    let on_rival = bench.block(3, rival.digest(), vec![]);
    let proof = ProofOfFinality {
        above: Default::default(),
        finalization: bench.finalization(&on_rival.header.ballot()),
    };
    let block = FinalizedBlock { block: on_rival, proof };
    let effects = answer(&mut bench, NodeIdx(1), &[block]);
    assert!(
        matches!(effects.last(), Some(Effect::Halt(HaltReason::Fork { .. }))),
        "{effects:?}"
    );
}

#[test]
fn what_is_known_already_moves_nothing() {
    let mut bench = Bench::follower_of(&[1]);
    let block = bench.block(1, bench.genesis(), vec![]);
    bench.give(bench.proposal(&block));
    bench.votes(1, notarize(&block));
    bench.certify(notarize(&block));
    let before = bench.core.clone();
    bench.now.at = bench.now.at.plus_us(1);
    assert_eq!(bench.votes(1, notarize(&block)), []);
    assert_eq!(bench.certify(notarize(&block)), []);
    assert_eq!(bench.core, before);
    assert_eq!(finalized_in(&bench.certify(finalize(&block))), [1]);
    let before = bench.core.clone();
    for vote in [notarize(&block), finalize(&block)] {
        assert_eq!(bench.votes(3, vote), [], "of a view that is final");
        assert_eq!(bench.certify(vote), []);
    }
    assert_eq!(bench.core, before);
}

#[test]
fn a_core_is_a_value() {
    let mut bench = Bench::follower_of(&[1]);
    let before = bench.core.clone();
    let block = bench.block(1, bench.genesis(), vec![]);
    bench.give(bench.proposal(&block));
    assert_ne!(bench.core, before);
    let after = bench.core.clone();
    bench.core = before;
    bench.guard = Guard::default();
    bench.give(bench.proposal(&block));
    assert_eq!(bench.core, after, "the same inputs give the same state");
}
