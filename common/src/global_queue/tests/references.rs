//! Which references of a block are executed.

use super::*;
use crate::{
    batch::{BatchError, BatchItem, RosterChange},
    block::BatchRef,
    certificate::CertificateError,
    crypto::Signature,
    entry::{SignedEntry, VerifyEach},
    ids::{Founding, NodeIdx, RaftNodeId},
    roster::{Roster, RosterMember},
    testing::ClusterLog,
};

fn stale(outcome: &BlockOutcome) -> Vec<Option<StaleReason>> {
    outcome
        .outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Batch { stale, .. } => Some(*stale),
            Outcome::Entry { .. } | Outcome::Machine { .. } => None,
        })
        .collect()
}

/// What a block changes besides the rows: to compare states that differ by empty blocks only.
fn contents(queue: &GlobalQueue) -> Vec<(Row, Option<BlockTime>)> {
    queue
        .tasks(None, usize::MAX)
        .map(|row| (row.clone(), queue.custody_until(row)))
        .collect()
}

#[test]
fn batch_is_executed_once_whatever_the_order_of_references() {
    let mut ledger = ledger();
    let first = ledger.submit("op1", C1, Scope::Fleet, &task("a"));
    let second = ledger.submit("op1", C1, Scope::Fleet, &task("b"));
    let first = ledger.granted(C1, vec![first]);
    let second = ledger.granted(C1, vec![second]);
    let outcome = ledger.block(vec![second.clone(), first.clone(), first.clone(), second.clone()], 100);
    assert_eq!(
        stale(&outcome),
        [Some(StaleReason::NotNext), None, Some(StaleReason::NotNext), None]
    );
    let before = contents(&ledger.queue);
    let again = ledger.block(vec![first, second], 100);
    assert_eq!(stale(&again), [Some(StaleReason::NotNext); 2]);
    assert_eq!(contents(&ledger.queue), before);
    let cursor = ledger.queue.cursor(C1).unwrap();
    assert_eq!(cursor.next_seq, BatchSeq(4));
    assert_eq!(cursor.last_digest, ledger.logs[0].prev_digest);
}

#[test]
fn batch_on_another_predecessor_changes_nothing() {
    let mut ledger = ledger();
    let mut fork = ledger.logs[0].clone();
    fork.prev_digest = Digest([7; 32]);
    let entry = ledger.submit("op1", C1, Scope::Fleet, &task("a"));
    let batch = fork.granted(&ledger.fleet, vec![entry]);
    let outcome = ledger.block(vec![batch], 100);
    assert_eq!(stale(&outcome), [Some(StaleReason::OtherPredecessor)]);
    assert_eq!(ledger.queue.task_count(), 0);
    assert_eq!(ledger.queue.next_batch(C1), Some((Founding(0), BatchSeq(2))));
}

#[test]
fn batch_of_another_founding_or_cluster_changes_nothing() {
    let mut ledger = ledger();
    let beat = ledger.beat(C1);
    let named = BatchRef::to(&beat, &ledger.fleet.chain);
    let refs = vec![
        BatchRef {
            founding: Founding(1),
            ..named
        },
        BatchRef {
            cluster: ClusterId(3),
            ..named
        },
    ];
    let block = ledger.chain.block_of(&ledger.fleet, refs, 100);
    let outcome = ledger.execute(block);
    assert_eq!(
        stale(&outcome),
        [Some(StaleReason::OtherFounding), Some(StaleReason::UnknownCluster)]
    );
}

#[test]
fn name_that_does_not_fit_the_digest_changes_nothing_and_stops_nobody() {
    let mut ledger = ledger();
    let beat = ledger.beat(C2);
    let batch_of_two = BatchRef::to(&beat, &ledger.fleet.chain);
    ledger.batches.insert(batch_of_two.digest, beat);
    let misnamed = BatchRef {
        cluster: C1,
        ..batch_of_two
    };
    assert_eq!(
        ledger.queue.next_batch(C1),
        Some((misnamed.founding, misnamed.seq)),
        "the name is that of the next batch"
    );
    let block = ledger.chain.block_of(&ledger.fleet, vec![misnamed, batch_of_two], 100);
    let outcome = ledger.execute(block);
    assert_eq!(stale(&outcome), [Some(StaleReason::Misnamed), None]);
    assert_eq!(ledger.queue.next_batch(C1), Some((misnamed.founding, misnamed.seq)));
}

#[test]
fn batch_that_stood_at_an_impossible_height_changes_nothing() {
    let mut ledger = ledger();
    contact(&mut ledger, &[C1]);
    for height in [Height(0), Height(99)] {
        let mut log = ledger.logs[0].clone();
        log.global_height = height;
        let batch = log.beat(&ledger.fleet);
        let outcome = ledger.block(vec![batch], 100);
        assert_eq!(
            stale(&outcome),
            [Some(StaleReason::ImpossibleHeight)],
            "height {height}"
        );
    }
}

/// The roster of `c1` without its last device.
fn smaller_roster(ledger: &Ledger) -> Roster {
    let members = ledger.fleet.roster(C1).members.to_vec();
    Roster {
        members: members[..2].to_vec().try_into().unwrap(),
    }
}

fn roster_batch(ledger: &mut Ledger, roster: Roster) -> CertifiedBatch {
    let item = BatchItem::Roster(RosterChange { roster });
    let log = &mut ledger.logs[0];
    log.global_height = ledger.queue.height();
    log.batch_of(&ledger.fleet, vec![(Verdict::Granted, item)])
}

#[test]
fn new_roster_signs_from_the_batch_after_its_entry() {
    let mut ledger = ledger();
    let old = ledger.fleet.roster(C1);
    let roster = smaller_roster(&ledger);
    let change = roster_batch(&mut ledger, roster.clone());
    assert_eq!(change.header.roster, old.digest());
    let mut of_the_old = ledger.logs[0].clone();
    of_the_old.roster = old;
    let of_the_old = of_the_old.beat(&ledger.fleet);
    let of_the_new = ledger.beat(C1);
    let outcome = ledger.block(vec![change, of_the_old.clone(), of_the_new.clone()], 100);
    assert_eq!(stale(&outcome), [None, Some(StaleReason::OtherRoster), None]);
    assert_eq!(*ledger.queue.cursor(C1).unwrap().roster, roster);
    assert!(matches!(
        ledger.queue.verify_batch(of_the_old),
        Err(BatchError::WrongRoster { .. })
    ));
    assert!(ledger.queue.verify_batch(of_the_new).is_ok());
}

#[test]
fn batch_whose_rows_lead_to_another_roster_than_it_says_changes_nothing() {
    let mut ledger = ledger();
    let stranger = RosterMember {
        raft: RaftNodeId::new(ledger.fleet.idx("c2-1"), 1),
        key_version: Default::default(),
    };
    for members in [
        vec![stranger],
        vec![],
        vec![RosterMember {
            raft: RaftNodeId::new(NodeIdx(999), 1),
            ..stranger
        }],
    ] {
        let roster = Roster {
            members: members.try_into().unwrap(),
        };
        let before = ledger.logs[0].clone();
        // The header says that the bad roster is next.
        let batch = roster_batch(&mut ledger, roster);
        assert!(matches!(
            ledger.queue.verify_batch(batch.clone()),
            Err(BatchError::Content(_))
        ));
        let outcome = ledger.block(vec![batch], 100);
        assert_eq!(stale(&outcome), [Some(StaleReason::OtherNextRoster)]);
        ledger.logs[0] = before;
    }
}

#[test]
fn wrong_block_is_refused_before_anything_changes() {
    let mut ledger = ledger();
    let batch = ledger.beat(C1);
    let good = ledger
        .chain
        .clone()
        .block(&ledger.fleet, std::slice::from_ref(&batch), 100);
    let verified = ledger.queue.verify_batch(batch).unwrap();
    let other = ledger.logs[1].clone().beat(&ledger.fleet);
    let other = ledger.queue.verify_batch(other).unwrap();
    let with = |change: fn(&mut Block)| {
        let mut block = good.clone();
        change(&mut block);
        block
    };
    let body = OrderedBatch::certified(&verified);
    let cases: Vec<(Block, Vec<Option<OrderedBatch<'_>>>, ApplyError)> = vec![
        (
            with(|block| block.header.height = Height(3)),
            vec![Some(body)],
            ApplyError::WrongHeight {
                got: Height(3),
                want: Height(2),
            },
        ),
        (
            with(|block| block.header.parent = Digest([1; 32])),
            vec![Some(body)],
            ApplyError::WrongParent {
                got: Digest([1; 32]),
                want: ledger.queue.tip(),
            },
        ),
        (
            with(|block| block.header.time = BlockTime(5)),
            vec![Some(body)],
            ApplyError::WrongTime {
                got: BlockTime(5),
                want_above: ledger.queue.time(),
            },
        ),
        (good.clone(), vec![], ApplyError::WrongCount { got: 0, want: 1 }),
        (good.clone(), vec![None], ApplyError::MissingBatch(0)),
        (
            good.clone(),
            vec![Some(OrderedBatch::certified(&other))],
            ApplyError::OtherBatch(0),
        ),
    ];
    let before = ledger.queue.clone();
    for (block, batches, want) in cases {
        assert_eq!(ledger.queue.apply(&block, &batches, &mut VerifyEach), Err(want));
        assert_eq!(ledger.queue, before);
    }
    assert!(ledger.queue.apply(&good, &[Some(body)], &mut VerifyEach).is_ok());
}

#[test]
fn rows_that_are_not_under_the_root_are_another_batch() {
    let mut ledger = ledger();
    let entry = ledger.submit("op1", C1, Scope::Fleet, &task("a"));
    let batch = ledger.granted(C1, vec![entry]);
    let finalized = ledger
        .fleet
        .finalize(ledger.chain.block(&ledger.fleet, std::slice::from_ref(&batch), 100));
    let finalized = finalized.verify(&ledger.fleet.chain, &ledger.fleet.set).unwrap();
    let mut rows = batch.entries.to_vec();
    rows[0].verdict = Verdict::Late;
    let forged = OrderedBatch::finalized(&finalized, 0, &batch.header, &rows);
    assert_eq!(
        ledger.queue.apply(&finalized.block, &[forged], &mut VerifyEach),
        Err(ApplyError::OtherBatch(0))
    );
    let mut header = batch.header.clone();
    header.count = 2;
    assert!(OrderedBatch::finalized(&finalized, 0, &header, &batch.entries).is_none());
    assert!(OrderedBatch::finalized(&finalized, 1, &batch.header, &batch.entries).is_none());
}

#[test]
fn certificate_with_too_few_duplicate_foreign_or_extra_signatures_is_refused() {
    let fleet = Fleet::new(2, 4, 1);
    let queue = GlobalQueue::genesis(&fleet.genesis);
    let mut log = ClusterLog::new(&fleet, C1);
    let batch = log.beat(&fleet);
    assert!(queue.verify_batch(batch.clone()).is_ok());
    let refused = |change: &dyn Fn(&mut Vec<Signature>, &mut Vec<u8>)| {
        let mut batch = batch.clone();
        let mut signatures = batch.attestations.signatures.to_vec();
        let mut bitmap = batch.attestations.bitmap.to_vec();
        change(&mut signatures, &mut bitmap);
        batch.attestations.signatures = signatures.try_into().unwrap();
        batch.attestations.bitmap = bitmap.try_into().unwrap();
        match queue.verify_batch(batch) {
            Err(BatchError::Certificate(error)) => error,
            other => panic!("accepted or refused for another reason: {other:?}"),
        }
    };
    let too_few = refused(&|signatures, bitmap| {
        signatures.pop();
        bitmap[0] = 0b011;
    });
    assert_eq!(too_few, CertificateError::TooFew { got: 2, needed: 3 });
    let duplicate = refused(&|signatures, _| signatures[2] = signatures[1]);
    assert_eq!(duplicate, CertificateError::BadSignature(2));
    let shape = CertificateError::Shape { members: 4 };
    assert_eq!(
        refused(&|signatures, _| signatures.push(signatures[0])),
        shape,
        "extra signature"
    );
    assert_eq!(refused(&|_, bitmap| bitmap[0] = 0b1_0011), shape, "padding bit");
    assert_eq!(refused(&|_, bitmap| bitmap.push(0)), shape, "longer bitmap");
    let foreign = fleet.attest(&batch.header, &fleet.roster(C2), 0).signature;
    assert_eq!(
        refused(&|signatures, _| signatures[0] = foreign),
        CertificateError::BadSignature(0)
    );
}

fn bend(batch: &mut CertifiedBatch, how: fn(&mut SignedEntry)) {
    let mut rows = batch.entries.clone().into_inner();
    let BatchItem::Author(entry) = &mut rows[0].item else {
        panic!("an author's row")
    };
    how(entry);
    batch.entries = rows.try_into().unwrap();
}

#[test]
fn batch_whose_rows_do_not_match_its_header_is_refused() {
    let fleet = Fleet::new(2, 3, 1);
    let queue = GlobalQueue::genesis(&fleet.genesis);
    let mut log = ClusterLog::new(&fleet, C1);
    let batch = log.granted(&fleet, vec![fleet.submit("op1", C1, 1, Scope::Fleet, &task("a"))]);
    let signed = |change: fn(&mut CertifiedBatch)| {
        let mut batch = batch.clone();
        change(&mut batch);
        // Signed anew by the whole quorum: the content is what is refused.
        let rows = batch.entries.into_inner();
        queue.verify_batch(fleet.certify(batch.header, rows, &fleet.roster(C1)))
    };
    let cases: [fn(&mut CertifiedBatch); 8] = [
        |batch| batch.header.count = 0,
        |batch| batch.entries = Default::default(),
        |batch| batch.header.entries_root = Digest([1; 32]),
        |batch| batch.header.last_index = crate::ids::LogIndex(9),
        |batch| batch.header.cut.index = crate::ids::LogIndex(0),
        |batch| batch.header.founding = Founding(1),
        // The same entry by its id, and another copy of it: executed, it would be malformed.
        |batch| bend(batch, |entry| entry.signature = Default::default()),
        |batch| bend(batch, |entry| entry.payload = Default::default()),
    ];
    for (i, change) in cases.into_iter().enumerate() {
        assert!(matches!(signed(change), Err(BatchError::Content(_))), "case {i}");
    }
    assert!(matches!(
        signed(|batch| batch.header.version = 1),
        Err(BatchError::Version { got: 1, want: 2 })
    ));
    assert!(matches!(
        signed(|batch| batch.header.cluster = ClusterId(1)),
        Err(BatchError::WrongRoster { .. })
    ));
}
