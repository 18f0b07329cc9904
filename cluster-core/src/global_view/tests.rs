use common::{
    batch::{BatchEntry, BatchItem},
    block::{Advance, AdvanceBatch, AdvancePart},
    codec::encode,
    entry::LogEntry,
    ids::{ClusterId, Digest, Height},
    limits::ADVANCE_PART_BYTES_MAX,
    task::{Scope, Task},
    testing::{ClusterLog, task},
};

use super::*;
use crate::testing::{OWN, TestCluster};

/// Batches of another cluster that fill more than one part.
fn large(c: &TestCluster) -> Vec<CertifiedBatch> {
    let mut log = ClusterLog::new(&c.fleet, ClusterId(1));
    let mut number = 0;
    let mut batches = Vec::new();
    for _ in 0..6 {
        let entries = (0..7)
            .map(|_| {
                number += 1;
                let big = Task {
                    payload: vec![1; 8 * 1024].try_into().unwrap(),
                    ..task(&format!("k{number}"))
                };
                c.fleet.submit("op1", ClusterId(1), number, Scope::Fleet, &big)
            })
            .collect();
        batches.push(log.granted(&c.fleet, entries));
    }
    batches
}

fn advance(c: &mut TestCluster, part: &AdvancePart) -> Height {
    c.apply(LogEntry::GlobalAdvance(part.clone()));
    c.queue.global_height()
}

#[test]
fn block_in_parts_takes_effect_at_its_last_part_and_only_in_order() {
    let mut c = TestCluster::new();
    let batches = large(&c);
    let (_, parts) = c.parts(&batches, 20);
    assert!(parts.len() > 1, "{} parts", parts.len());
    let last = parts.len() - 1;
    assert_eq!(advance(&mut c, &parts[last]), Height(0), "nothing collected before it");
    assert_eq!(advance(&mut c, &parts[0]), Height(0));
    assert_eq!(c.queue.collected().progress(), (Height(1), 1));
    assert_eq!(advance(&mut c, &parts[0]), Height(0), "a second part 1 begins again");
    assert_eq!(c.queue.collected().progress(), (Height(1), 1));
    for part in &parts[1..] {
        advance(&mut c, part);
    }
    assert_eq!(c.queue.global_height(), Height(1));
    assert_eq!(c.queue.collected().progress(), (Height(0), 0));
    assert_eq!(c.queue.global().task_count(), 42);
    let digest = c.queue.digest();
    for part in &parts {
        assert_eq!(advance(&mut c, part), Height(1), "a height other than the next");
    }
    assert_ne!(c.queue.digest(), digest, "the position moves on");
}

#[test]
fn parts_of_another_split_are_not_mixed_in() {
    let mut c = TestCluster::new();
    let batches = large(&c);
    let (block, parts) = c.parts(&batches, 20);
    // Another leader's encoding of the same block: the proof of finality has other signers.
    let mut other: Vec<AdvancePart> = parts.clone();
    for part in &mut other {
        part.split = Digest([5; 32]);
    }
    assert_eq!(other[0].block, block.digest());
    advance(&mut c, &parts[0]);
    advance(&mut c, &other[1]);
    assert_eq!(c.queue.collected().progress(), (Height(1), 1), "of another split");
    advance(&mut c, &other[0]);
    for part in &other[1..] {
        advance(&mut c, part);
    }
    assert_eq!(
        c.queue.global_height(),
        Height(0),
        "the parts do not have the digest they name"
    );
    for part in &parts {
        advance(&mut c, part);
    }
    assert_eq!(c.queue.global_height(), Height(1));
}

#[test]
fn part_1_of_the_next_height_discards_what_was_collected() {
    let mut c = TestCluster::new();
    let batches = large(&c);
    let (_, large_parts) = c.parts(&batches, 20);
    advance(&mut c, &large_parts[0]);
    // The chain that was finalized has another block at this height.
    c.restart_chain();
    let (_, small) = c.parts(&[], 20);
    assert_eq!(advance(&mut c, &small[0]), Height(1));
    assert_eq!(advance(&mut c, &large_parts[1]), Height(1));
}

fn repack(c: &TestCluster, part: &AdvancePart, change: impl FnOnce(&mut Advance)) -> AdvancePart {
    let mut advance: Advance = decode(&part.bytes).unwrap();
    change(&mut advance);
    let parts = AdvancePart::split(part.height, part.block, &encode(&advance));
    assert_eq!(parts.len(), 1);
    assert_eq!(c.queue.global_height(), Height(0));
    parts.into_iter().next().unwrap()
}

#[test]
fn block_that_is_not_final_or_carries_other_batches_is_refused_before_append_and_a_no_op() {
    let mut c = TestCluster::new();
    let mut log = ClusterLog::new(&c.fleet, ClusterId(1));
    let entry = c.fleet.submit("op1", ClusterId(1), 1, Scope::Fleet, &task("k"));
    let batch = log.granted(&c.fleet, vec![entry.clone()]);
    let (_, parts) = c.parts(&[batch], 20);
    let good = &parts[0];
    let check = |part: &AdvancePart| check_part_static(part, OWN, &c.fleet.chain, &c.fleet.set);
    assert_eq!(check(good), Ok(()));

    let unsigned = repack(&c, good, |advance| {
        let finalization = &mut advance.finalized.proof.finalization;
        finalization.signers.signatures = finalization
            .signers
            .signatures
            .iter()
            .rev()
            .copied()
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
    });
    assert!(matches!(check(&unsigned), Err(AdvanceError::Finality(_))));

    let other = ClusterLog::new(&c.fleet, ClusterId(1)).beat(&c.fleet);
    let swapped = repack(&c, good, |advance| {
        advance.batches = vec![AdvanceBatch::Full(other)].try_into().unwrap();
    });
    assert_eq!(check(&swapped), Err(AdvanceError::OtherBatch(0)));

    let missing = repack(&c, good, |advance| {
        let digest = advance.finalized.block.refs[0].digest;
        advance.batches = vec![AdvanceBatch::Own(digest)].try_into().unwrap();
    });
    assert_eq!(check(&missing), Err(AdvanceError::MissingBytes(0)));

    let forged = |forge: fn(&mut BatchEntry)| {
        repack(&c, good, |advance| {
            let AdvanceBatch::Full(batch) = &advance.batches[0] else {
                panic!("the batch is of another cluster");
            };
            let mut batch = batch.clone();
            let mut rows = batch.entries.into_inner();
            forge(&mut rows[0]);
            batch.entries = rows.try_into().unwrap();
            advance.batches = vec![AdvanceBatch::Full(batch)].try_into().unwrap();
        })
    };
    let forged_row = forged(|row| row.verdict = common::verdict::Verdict::Late);
    // The same entry by its id, in a copy that would be executed otherwise.
    let bent_row = forged(|row| {
        let BatchItem::Author(entry) = &mut row.item else {
            panic!("an author's row")
        };
        entry.signature = Default::default();
    });
    for other_row in [&forged_row, &bent_row] {
        assert!(matches!(check(other_row), Err(AdvanceError::Content(0, _))));
    }

    let renamed = AdvancePart {
        block: Digest([1; 32]),
        ..good.clone()
    };
    assert!(matches!(check(&renamed), Err(AdvanceError::OtherBlock { .. })));

    let torn = AdvancePart {
        bytes: good.bytes[1..].to_vec().try_into().unwrap(),
        ..good.clone()
    };
    assert_eq!(check(&torn), Err(AdvanceError::Split));

    for bad in [unsigned, swapped, missing, forged_row, bent_row, renamed, torn] {
        assert_eq!(advance(&mut c, &bad), Height(0));
    }
    assert_eq!(advance(&mut c, &parts[0]), Height(1));
}

#[test]
fn misnumbered_and_missized_parts_are_refused() {
    let c = TestCluster::new();
    let part = |part, parts, bytes: usize| AdvancePart {
        height: Height(1),
        block: Digest::default(),
        part,
        parts,
        split: Digest::default(),
        bytes: vec![0; bytes].try_into().unwrap(),
    };
    let full = ADVANCE_PART_BYTES_MAX;
    for bad in [
        part(0, 1, 10),
        part(2, 1, 10),
        part(1, 0, 10),
        part(1, 2, 10),
        part(2, 2, 0),
        part(1, ADVANCE_PARTS_MAX as u16 + 1, full),
    ] {
        let refused = check_part_static(&bad, OWN, &c.fleet.chain, &c.fleet.set);
        assert!(matches!(refused, Err(AdvanceError::Part { .. })), "{bad:?}");
    }
    let good = part(1, 2, full);
    assert_eq!(check_part_static(&good, OWN, &c.fleet.chain, &c.fleet.set), Ok(()));
}
