use common::{
    batch::Attestation,
    codec::{decode, encode},
    ids::{BatchSeq, ClusterId, Digest, Founding, LogIndex, RaftNodeId},
    task::Scope,
    testing::task,
};

use super::*;
use crate::testing::{OWN, TestCluster};

const ALL: LogIndex = LogIndex(u64::MAX);

fn me(c: &TestCluster, label: &str) -> RaftNodeId {
    RaftNodeId::new(c.fleet.idx(label), 1)
}

/// A cluster with `n` closed batches of one entry each.
fn with_batches(n: u64) -> TestCluster {
    let mut c = TestCluster::new();
    for i in 0..n {
        c.submit("op1", Scope::Cluster, &task(&format!("k{i}")));
        c.cut();
    }
    c
}

fn sign_next(c: &TestCluster, guard: &mut AttestGuard, label: &str) -> Option<ToSign> {
    let me = me(c, label);
    let (batch, decision) = guard.next(&c.queue, me, ALL)?;
    assert_eq!(decision, Decision::Sign);
    Some(guard.sign(&c.fleet.key(label), &c.fleet.chain, me, batch).unwrap())
}

fn attest(c: &TestCluster, label: &str) -> Vec<Attestation> {
    let mut guard = AttestGuard::default();
    std::iter::from_fn(|| sign_next(c, &mut guard, label).map(|signed| signed.attestation)).collect()
}

#[test]
fn each_batch_is_signed_once_in_order_and_only_when_durable() {
    let c = with_batches(3);
    let mut guard = AttestGuard::default();
    let me = me(&c, "c1-2");
    let cut = c.queue.batcher().batch(BatchSeq(2)).unwrap().header.cut.index;
    let mut seqs = Vec::new();
    while let Some((batch, decision)) = guard.next(&c.queue, me, cut) {
        assert_eq!(decision, Decision::Sign);
        seqs.push(batch.header.seq);
        let signed = guard.sign(&c.fleet.key("c1-2"), &c.fleet.chain, me, batch).unwrap();
        assert!(signed.record.is_some());
    }
    assert_eq!(seqs, [BatchSeq(1), BatchSeq(2)], "the third is not durable here");
}

#[test]
fn who_is_not_in_the_roster_signs_nothing() {
    let c = with_batches(1);
    let guard = AttestGuard::default();
    let new_directory = RaftNodeId::new(c.fleet.idx("c1-2"), 2);
    assert!(guard.next(&c.queue, new_directory, ALL).is_none());
}

#[test]
fn second_request_gets_the_same_signature_also_after_a_restart() {
    let c = with_batches(1);
    let mut guard = AttestGuard::default();
    let first = sign_next(&c, &mut guard, "c1-2").unwrap();
    let journal: Vec<GuardRecord> = first
        .record
        .iter()
        .map(|record| decode(&encode(record)).unwrap())
        .collect();
    let batch = c.queue.batcher().batch(BatchSeq(1)).unwrap();
    let mut restarted = AttestGuard::replay(journal).unwrap();
    let again = restarted
        .sign(&c.fleet.key("c1-2"), &c.fleet.chain, me(&c, "c1-2"), batch)
        .unwrap();
    assert_eq!((again.record, again.attestation), (None, first.attestation));
}

#[test]
fn other_digest_for_a_signed_batch_quarantines_and_is_never_signed() {
    let c = with_batches(1);
    let mut guard = AttestGuard::default();
    sign_next(&c, &mut guard, "c1-2").unwrap();
    let mut other = TestCluster::new();
    other.submit("op1", Scope::Cluster, &task("other"));
    other.cut();
    let (batch, decision) = guard.next(&other.queue, me(&c, "c1-2"), ALL).unwrap();
    let held = c.queue.batcher().batch(BatchSeq(1)).unwrap().digest;
    let quarantine = Decision::Quarantine {
        held,
        want: batch.digest,
    };
    assert_eq!(decision, quarantine);
    let refused = guard.sign(&c.fleet.key("c1-2"), &c.fleet.chain, me(&c, "c1-2"), batch);
    assert_eq!(refused, Err(quarantine));
}

#[test]
fn final_batches_are_forgotten_and_not_signed_again() {
    let c = with_batches(3);
    let mut guard = AttestGuard::default();
    while sign_next(&c, &mut guard, "c1-2").is_some() {}
    let record = guard.finalized(Founding(0), BatchSeq(2)).unwrap();
    assert_eq!(guard.finalized(Founding(0), BatchSeq(2)), None, "said once");
    assert_eq!(guard.len(), 1);
    let digest = |seq| c.queue.batcher().batch(BatchSeq(seq)).unwrap().digest;
    assert_eq!(guard.decide(Founding(0), BatchSeq(1), digest(1)), Decision::Past);
    assert!(matches!(
        guard.decide(Founding(0), BatchSeq(3), digest(3)),
        Decision::Repeat(_)
    ));
    assert_eq!(AttestGuard::replay(guard.compacted()).unwrap(), guard);
    assert_eq!(
        AttestGuard::replay([record])
            .unwrap()
            .decide(Founding(0), BatchSeq(2), digest(2)),
        Decision::Past
    );
}

#[test]
fn nothing_is_signed_for_a_founding_that_was_left() {
    let c = with_batches(1);
    let mut guard = AttestGuard::default();
    let left = guard.leave(Founding(0));
    assert!(guard.next(&c.queue, me(&c, "c1-2"), ALL).is_none());
    let restarted = AttestGuard::replay([left]).unwrap();
    let digest = c.queue.batcher().batch(BatchSeq(1)).unwrap().digest;
    assert_eq!(restarted.decide(Founding(0), BatchSeq(1), digest), Decision::Past);
}

#[test]
fn journal_with_two_digests_for_one_batch_is_refused() {
    let record = |byte| GuardRecord::Signed {
        founding: Founding(0),
        seq: BatchSeq(1),
        digest: Digest([byte; 32]),
        signature: Default::default(),
    };
    assert!(AttestGuard::replay([record(1), record(1)]).is_ok());
    assert!(AttestGuard::replay([record(1), record(2)]).is_err());
}

#[test]
fn quorum_certifies_and_one_less_does_not() {
    let c = with_batches(1);
    let mut collector = Collector::default();
    let [first, second, third] = ["c1-1", "c1-2", "c1-3"].map(|label| attest(&c, label).remove(0));
    assert_eq!(collector.add(&c.queue, third.clone()), Ok(None));
    assert_eq!(collector.add(&c.queue, third), Ok(None), "counts once");
    assert_eq!(
        collector.missing(&c.queue, BatchSeq(1)),
        [me(&c, "c1-1"), me(&c, "c1-2")]
    );
    let certified = collector.add(&c.queue, first).unwrap().unwrap();
    assert_eq!(certified.attestations.signatures.len(), 2);
    assert!(c.queue.global().verify_batch(certified).is_ok());
    let more = collector.add(&c.queue, second).unwrap().unwrap();
    assert_eq!(more.attestations.signatures.len(), 2, "a quorum is enough");
    assert_eq!(collector.certified(&c.queue, BatchSeq(1)), Some(more));
}

#[test]
fn attestation_that_is_foreign_forged_or_of_another_log_does_not_count() {
    let c = with_batches(1);
    let mut collector = Collector::default();
    let good = attest(&c, "c1-2").remove(0);
    let by_other = Attestation {
        by: me(&c, "c1-3"),
        ..good.clone()
    };
    assert_eq!(
        collector.add(&c.queue, by_other),
        Err(AttestError::BadSignature(me(&c, "c1-3")))
    );
    let outsider = Attestation {
        by: me(&c, "c2-1"),
        ..good.clone()
    };
    assert_eq!(
        collector.add(&c.queue, outsider),
        Err(AttestError::NotInRoster(me(&c, "c2-1")))
    );
    let elsewhere = Attestation {
        cluster: ClusterId(1),
        ..good.clone()
    };
    assert!(matches!(
        collector.add(&c.queue, elsewhere),
        Err(AttestError::Foreign { .. })
    ));
    let forked = Attestation {
        digest: Digest([1; 32]),
        ..good.clone()
    };
    assert!(matches!(
        collector.add(&c.queue, forked),
        Err(AttestError::OtherDigest { .. })
    ));
    assert_eq!(collector.add(&c.queue, good), Ok(None));
}

#[test]
fn attestation_that_comes_before_its_batch_closes_here_counts_afterwards() {
    let ahead = with_batches(2);
    let mut c = TestCluster::new();
    let mut collector = Collector::default();
    for label in ["c1-1", "c1-2"] {
        for attestation in attest(&ahead, label) {
            assert_eq!(collector.add(&c.queue, attestation), Ok(None));
        }
    }
    for (_, _, _, entry) in ahead.log.clone() {
        c.apply(entry);
    }
    let (certified, errors) = collector.refresh(&c.queue);
    assert_eq!(errors, []);
    let seqs: Vec<BatchSeq> = certified.iter().map(|batch| batch.header.seq).collect();
    assert_eq!(seqs, [BatchSeq(1), BatchSeq(2)]);
}

#[test]
fn early_attestations_are_bounded_and_the_nearest_stay() {
    let c = TestCluster::new();
    let mut collector = Collector::default();
    let early = |seq| Attestation {
        cluster: OWN,
        founding: Founding(0),
        seq: BatchSeq(seq),
        digest: Digest::default(),
        by: me(&c, "c1-2"),
        signature: Default::default(),
    };
    for seq in 2..1_026 {
        assert_eq!(collector.add(&c.queue, early(seq)), Ok(None));
    }
    assert_eq!(
        collector.add(&c.queue, early(2_000)),
        Err(AttestError::TooEarly(BatchSeq(2_000)))
    );
    assert_eq!(collector.add(&c.queue, early(1)), Ok(None));
    assert_eq!(
        collector.add(&c.queue, early(1_025)),
        Err(AttestError::TooEarly(BatchSeq(1_025))),
        "the furthest made room"
    );
}

#[test]
fn final_batch_needs_no_more_attestations() {
    let mut c = with_batches(1);
    let mut collector = Collector::default();
    let attestation = attest(&c, "c1-2").remove(0);
    collector.add(&c.queue, attestation.clone()).unwrap();
    c.finalize(20);
    collector.refresh(&c.queue);
    assert_eq!(collector.certified(&c.queue, BatchSeq(1)), None);
    assert_eq!(
        collector.add(&c.queue, attestation),
        Err(AttestError::Past(BatchSeq(1)))
    );
}
