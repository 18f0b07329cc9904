use common::{
    block::{BatchRef, refs_root},
    ids::{BatchSeq, Founding},
};

use super::*;
use crate::{
    batch_pool::{BatchPool, StoredBatch},
    block_builder::build,
    fuzz::fixture::{CHAIN, Chained, GENESIS_TIME},
};

fn batch(seq: u64) -> BatchRef {
    BatchRef {
        cluster: ClusterId(0),
        founding: Founding(0),
        seq: BatchSeq(seq),
        digest: Digest([seq as u8 + 50; 32]),
    }
}

fn pool(seqs: std::ops::RangeInclusive<u64>) -> BatchPool {
    let mut pool = BatchPool::default();
    for seq in seqs {
        pool.insert(StoredBatch {
            batch: batch(seq),
            prev_digest: if seq == 1 {
                Digest::default()
            } else {
                batch(seq - 1).digest
            },
            bytes: 1,
        });
    }
    pool
}

fn genesis() -> Digest {
    genesis_digest(&CHAIN)
}

/// A valid block of `view` on `parent`.
fn child(ledger: &Ledger<Chained>, parent: &Digest, view: u64, refs: Vec<BatchRef>) -> Block {
    let site = ledger.site_on(parent, Epoch(0), View(view)).unwrap();
    build(&site, refs, GENESIS_TIME)
}

fn add(ledger: &mut Ledger<Chained>, parent: &Digest, view: u64, refs: Vec<BatchRef>) -> Digest {
    let block = child(ledger, parent, view, refs);
    let digest = block.digest();
    ledger.insert(block);
    ledger.mark_agreed(&digest);
    ledger.execute(&digest, &()).unwrap();
    digest
}

#[test]
fn headers_below_two_carry_the_genesis_roots_and_later_ones_those_of_two_below() {
    let mut ledger = Chained::ledger();
    let genesis_roots = Chained::genesis().roots();
    let one = add(&mut ledger, &genesis(), 1, vec![]);
    let two = add(&mut ledger, &one, 2, vec![]);
    let carried = |ledger: &Ledger<Chained>, digest| Roots::carried_by(&ledger.block(digest).unwrap().header);
    assert_eq!(carried(&ledger, &one), genesis_roots);
    assert_eq!(carried(&ledger, &two), genesis_roots);
    let three = add(&mut ledger, &two, 3, vec![]);
    assert_eq!(carried(&ledger, &three), ledger.state_of(&one).unwrap().roots());
    assert_ne!(carried(&ledger, &three), genesis_roots);
}

#[test]
fn a_wrong_root_in_a_proposal_makes_it_invalid() {
    let mut ledger = Chained::ledger();
    let one = add(&mut ledger, &genesis(), 1, vec![]);
    let mut block = child(&ledger, &one, 2, vec![]);
    assert_eq!(ledger.judge(&block, &BatchPool::default()), Judgement::Valid);
    block.header.state_root = Digest([9; 32]);
    let judged = ledger.judge(&block, &BatchPool::default());
    assert!(matches!(judged, Judgement::Invalid(Flaw::Roots { .. })), "{judged:?}");
}

#[test]
fn other_roots_in_an_agreed_block_halt() {
    let mut ledger = Chained::ledger();
    let one = add(&mut ledger, &genesis(), 1, vec![]);
    let mut block = child(&ledger, &one, 2, vec![]);
    block.header.outcome_root = Digest([9; 32]);
    let digest = block.digest();
    ledger.insert(block);
    assert_eq!(ledger.execute(&digest, &()), Ok(()), "not agreed: nothing to execute");
    ledger.mark_agreed(&digest);
    let halted = ledger.execute(&digest, &());
    assert!(matches!(halted, Err(HaltReason::OtherRoots { .. })), "{halted:?}");
}

#[test]
fn height_view_and_time_must_be_above_the_parents() {
    let mut ledger = Chained::ledger();
    let one = add(&mut ledger, &genesis(), 3, vec![]);
    let good = child(&ledger, &one, 4, vec![]);
    let judge = |change: fn(&mut Block)| {
        let mut block = good.clone();
        change(&mut block);
        ledger.judge(&block, &BatchPool::default())
    };
    assert_eq!(judge(|_| {}), Judgement::Valid);
    let is_not_above = |judged| matches!(judged, Judgement::Invalid(Flaw::NotAbove { .. }));
    assert!(is_not_above(judge(|b| b.header.height = Height(3))));
    assert!(is_not_above(judge(|b| b.header.parent_view = View(2))));
    assert!(is_not_above(judge(|b| b.header.view = View(3))));
    let judged = judge(|b| b.header.time = GENESIS_TIME);
    assert!(matches!(judged, Judgement::Invalid(Flaw::Time { .. })), "{judged:?}");
    let judged = judge(|b| b.header.next_set = Some(Digest::default()));
    assert_eq!(judged, Judgement::Invalid(Flaw::SetUnasked));
    let judged = judge(|b| b.header.version = 2);
    assert!(matches!(judged, Judgement::Invalid(Flaw::Form(_))), "{judged:?}");
}

#[test]
fn references_must_be_next_on_the_parents_chain() {
    let mut ledger = Chained::ledger();
    let one = add(&mut ledger, &genesis(), 1, vec![batch(1), batch(2)]);
    let judge = |refs: Vec<BatchRef>| {
        let mut block = child(&ledger, &one, 2, vec![]);
        block.header.refs_root = refs_root(&refs);
        block.refs = refs.try_into().unwrap();
        ledger.judge(&block, &pool(1..=3))
    };
    assert_eq!(judge(vec![batch(3)]), Judgement::Valid);
    for wrong in [vec![batch(2)], vec![batch(4)], vec![batch(3), batch(3)]] {
        let judged = judge(wrong.clone());
        assert!(matches!(judged, Judgement::Invalid(_)), "{wrong:?}: {judged:?}");
    }
    assert_eq!(
        judge(vec![batch(3), batch(4)]),
        Judgement::MissingBatches(vec![batch(4)])
    );
    let mut stranger = batch(3);
    stranger.cluster = ClusterId(99);
    assert!(matches!(
        judge(vec![stranger]),
        Judgement::Invalid(Flaw::NotNext { cursor: None, .. })
    ));
}

#[test]
fn a_held_batch_with_another_predecessor_makes_the_block_invalid() {
    let ledger = Chained::ledger();
    let mut pool = BatchPool::default();
    pool.insert(StoredBatch {
        batch: batch(1),
        prev_digest: Digest([3; 32]),
        bytes: 1,
    });
    let block = child(&ledger, &genesis(), 1, vec![batch(1)]);
    let judged = ledger.judge(&block, &pool);
    assert!(matches!(judged, Judgement::Invalid(Flaw::NotNext { .. })), "{judged:?}");
}

#[test]
fn a_missing_ancestor_and_a_missing_execution_are_only_not_yet() {
    let mut ledger = Chained::ledger();
    let one = add(&mut ledger, &genesis(), 1, vec![]);
    let two = add(&mut ledger, &one, 2, vec![]);
    let block = child(&ledger, &two, 3, vec![]);
    let pool = BatchPool::default();

    let mut behind = Chained::ledger();
    assert_eq!(behind.judge(&block, &pool), Judgement::MissingBlock(two));
    behind.insert(ledger.block(&two).unwrap().clone());
    assert_eq!(behind.judge(&block, &pool), Judgement::MissingBlock(one));
    behind.insert(ledger.block(&one).unwrap().clone());
    assert_eq!(behind.judge(&block, &pool), Judgement::NotExecuted);
    behind.mark_agreed(&one);
    behind.execute(&one, &()).unwrap();
    assert_eq!(behind.judge(&block, &pool), Judgement::Valid);
}

#[test]
fn a_block_that_comes_late_below_an_agreed_one_is_executed() {
    let mut source = Chained::ledger();
    let one = add(&mut source, &genesis(), 1, vec![]);
    let two = add(&mut source, &one, 2, vec![]);
    let mut ledger = Chained::ledger();
    ledger.insert(source.block(&two).unwrap().clone());
    ledger.mark_agreed(&two);
    assert_eq!(ledger.executable().count(), 0);
    ledger.insert(source.block(&one).unwrap().clone());
    let next: Vec<Digest> = ledger.executable().map(|(digest, _)| digest).collect();
    assert_eq!(next, [one]);
}

#[test]
fn finality_drops_other_branches_and_keeps_the_states_that_are_needed() {
    let mut ledger = Chained::ledger();
    let one = add(&mut ledger, &genesis(), 1, vec![]);
    let rival = add(&mut ledger, &genesis(), 2, vec![]);
    let on_rival = add(&mut ledger, &rival, 3, vec![]);
    let two = add(&mut ledger, &one, 4, vec![]);
    let three = add(&mut ledger, &two, 5, vec![]);
    assert_eq!(ledger.path_to(&three), Ok(vec![one, two, three]));
    ledger.finalize(&one);
    assert!(!ledger.contains(&rival) && !ledger.contains(&on_rival) && ledger.contains(&three));
    let fork = child(&Chained::ledger(), &genesis(), 2, vec![]);
    let fork_digest = fork.digest();
    ledger.insert(fork);
    assert_eq!(
        ledger.path_to(&fork_digest),
        Err(NoPath::Missing(fork_digest)),
        "not taken below the tip"
    );

    ledger.finalize(&two);
    assert_eq!(ledger.advance_executed(), Some((Height(1), one)));
    assert_eq!(ledger.advance_executed(), Some((Height(2), two)));
    assert_eq!(ledger.advance_executed(), None);
    assert!(ledger.state_of(&one).is_some(), "until it is pruned");
    ledger.finalize(&three);
    ledger.advance_executed();
    ledger.prune();
    assert!(!ledger.contains(&one) && ledger.state_of(&two).is_some());
    assert_eq!(ledger.executed_height(), Height(3));
    assert!(
        ledger.site_on(&three, Epoch(0), View(6)).is_some(),
        "the next block can be built"
    );
}

#[test]
fn a_chain_that_does_not_meet_the_final_block_is_a_fork() {
    let mut ledger = Chained::ledger();
    let one = add(&mut ledger, &genesis(), 1, vec![]);
    let mut elsewhere = Chained::ledger();
    let rival = add(&mut elsewhere, &genesis(), 2, vec![]);
    let on_rival = add(&mut elsewhere, &rival, 3, vec![]);
    ledger.finalize(&one);
    ledger.insert(elsewhere.block(&on_rival).unwrap().clone());
    // Its parent is at the height of the final block and is another one.
    let expected = NoPath::Fork {
        block: on_rival,
        height: Height(2),
    };
    assert_eq!(ledger.path_to(&on_rival), Err(expected));
}

#[test]
fn replay_refuses_a_block_that_does_not_follow() {
    let mut source = Chained::ledger();
    let one = add(&mut source, &genesis(), 1, vec![]);
    let two = add(&mut source, &one, 2, vec![]);
    let proof = common::block::ProofOfFinality {
        above: Default::default(),
        finalization: common::certificate::Finalization {
            ballot: source.block(&two).unwrap().header.ballot(),
            signers: Default::default(),
        },
    };
    let finalized = |digest| FinalizedBlock {
        block: source.block(digest).unwrap().clone(),
        proof: proof.clone(),
    };
    let mut ledger = Chained::ledger();
    assert!(matches!(
        ledger.replay(&finalized(&two), &()),
        Err(ReplayError::NotNext { .. })
    ));
    ledger.replay(&finalized(&one), &()).unwrap();
    ledger.replay(&finalized(&two), &()).unwrap();
    assert_eq!(ledger.executed_state(), source.state_of(&two).unwrap());
}

#[test]
fn owed_roots_are_counted_from_the_last_block_with_references() {
    let mut ledger = Chained::ledger();
    assert_eq!(
        ledger.empty_blocks_in_a_row(&genesis()),
        Some(ROOT_LAG),
        "genesis owes nothing"
    );
    let one = add(&mut ledger, &genesis(), 1, vec![batch(1)]);
    let two = add(&mut ledger, &one, 2, vec![]);
    let three = add(&mut ledger, &two, 3, vec![]);
    let rows = [one, two, three].map(|digest| ledger.empty_blocks_in_a_row(&digest));
    assert_eq!(rows, [Some(0), Some(1), Some(2)]);
    assert!(ledger.has_unfinalized_refs());
    ledger.finalize(&one);
    assert!(!ledger.has_unfinalized_refs());
}

#[test]
fn pruning_is_left_out_only_where_it_would_drop_nothing() {
    let mut ledger = Chained::ledger();
    let one = add(&mut ledger, &genesis(), 1, vec![]);
    let rival = add(&mut ledger, &genesis(), 2, vec![]);
    let above = add(&mut ledger, &rival, 3, vec![]);
    assert!(ledger.is_pruned(), "either may become final");
    ledger.finalize(&one);
    assert!(ledger.is_pruned() && ledger.contains(&one));
    assert!(!ledger.contains(&rival) && !ledger.contains(&above));
    let mut parent = one;
    for view in 4..8 {
        parent = add(&mut ledger, &parent, view, vec![]);
        ledger.finalize(&parent);
    }
    assert!(ledger.is_pruned(), "nothing of it was reported as executed");
    while ledger.advance_executed().is_some() {}
    assert!(!ledger.is_pruned() && ledger.contains(&one));
    ledger.prune();
    assert!(ledger.is_pruned() && !ledger.contains(&one));
}
