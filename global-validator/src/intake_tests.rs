use std::sync::Mutex;

use common::{
    batch::{BatchError, BatchItem, RosterChange},
    certificate::{CertificateError, Signers},
    codec::BoundedVec,
    entry::SignedEntry,
    global_queue::GlobalQueue,
    ids::{Epoch, RaftNodeId, View},
    roster::{Roster, RosterMember},
    task::Scope,
    testing::{ClusterLog, Fleet, Ledger, task},
    verdict::{Reason, Verdict},
};
use global_core::Holdings;
use transport::{memory::MemoryDisk, ports::Disk, watch::Watch};

use super::*;
use crate::{
    executed::Executed,
    test_ports::{on, spawner},
};

const C1: ClusterId = ClusterId(0);
const C2: ClusterId = ClusterId(1);

/// What was announced: sequence number, and whether it was news.
#[derive(Default)]
struct Heard(Mutex<Vec<(BatchSeq, bool)>>);

impl Announce for Heard {
    fn stored(&self, _batch: SharedBatch, stored: StoredBatch, is_news: bool) -> BoxFuture<()> {
        self.0.lock().unwrap().push((stored.batch.seq, is_news));
        Box::pin(async {})
    }
}

struct Place {
    fleet: Fleet,
    disk: MemoryDisk,
    intake: Intake,
    heard: Arc<Heard>,
    log: ClusterLog,
}

impl Place {
    fn new() -> Self {
        let (fleet, disk, heard) = (Fleet::new(2, 3, 4), MemoryDisk::new(), Arc::new(Heard::default()));
        let registry = Arc::new(fleet.registry.clone());
        let halt = Halt::default();
        let genesis = Arc::new(fleet.genesis.clone());
        let batches = BatchStore::open(&on(&disk), &spawner(), &halt, genesis, registry.clone()).unwrap();
        let blocks = BlockStore::open(&on(&disk), &spawner(), &halt, &fleet.chain).unwrap();
        let executed = Watch::new(Arc::new(Executed {
            queue: Arc::new(GlobalQueue::genesis(&fleet.genesis)),
            epoch: Epoch(0),
            view: View(1),
            is_listening: false,
            holdings: Holdings::default(),
        }));
        let verified = VerifiedEntries::new(registry.clone());
        let intake = Intake::new(registry, batches, blocks, executed, verified, heard.clone(), halt);
        Self {
            log: ClusterLog::new(&fleet, C1),
            fleet,
            disk,
            intake,
            heard,
        }
    }

    fn batch(&mut self, number: u64) -> CertifiedBatch {
        let task = task(&format!("k{number}"));
        let entry = self.fleet.submit("op1", C1, number, Scope::Fleet, &task);
        self.log.granted(&self.fleet, vec![entry])
    }

    async fn submit(&self, from: &str, batch: &CertifiedBatch) -> Result<BatchReceipt, IntakeError> {
        self.intake.submit(self.fleet.idx(from), batch.clone()).await
    }

    fn heard(&self) -> Vec<(u64, bool)> {
        let heard = self.heard.0.lock().unwrap();
        heard.iter().map(|(seq, is_news)| (seq.0, *is_news)).collect()
    }

    fn is_stored(&self, batch: &CertifiedBatch) -> bool {
        self.intake.batches.contains(&batch.digest(&self.fleet.chain))
    }
}

fn certificate_error(outcome: Result<BatchReceipt, IntakeError>) -> CertificateError {
    match outcome {
        Err(IntakeError::Batch(BatchError::Certificate(error))) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn stored_batch_is_on_the_disk_and_announced_once() {
    let mut place = Place::new();
    let batch = place.batch(1);
    assert_eq!(place.submit("c1-2", &batch).await, Ok(BatchReceipt::Stored));
    let digest = batch.digest(&place.fleet.chain);
    place.disk.crash();
    let (_, records) = place.disk.open_journal("batches-000000.seg").unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].1, batch.encoded());
    assert!(place.intake.batches.contains(&digest));
    assert_eq!(place.heard(), [(1, true)]);
}

#[tokio::test]
async fn same_batch_twice_gives_the_same_receipt_and_changes_nothing() {
    let mut place = Place::new();
    let batch = place.batch(1);
    for _ in 0..3 {
        assert_eq!(place.submit("c1-1", &batch).await, Ok(BatchReceipt::Stored));
    }
    let (_, records) = place.disk.open_journal("batches-000000.seg").unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(place.heard(), [(1, true), (1, false), (1, false)]);
}

#[tokio::test]
async fn batch_after_a_gap_is_parked_and_the_first_missing_is_named() {
    let mut place = Place::new();
    let batches: Vec<_> = (1..=3).map(|number| place.batch(number)).collect();
    let parked = Ok(BatchReceipt::Parked { next: BatchSeq(1) });
    assert_eq!(place.submit("c1-1", &batches[2]).await, parked);
    assert_eq!(place.submit("c1-1", &batches[1]).await, parked);
    assert_eq!(place.submit("c1-1", &batches[0]).await, Ok(BatchReceipt::Stored));
    assert_eq!(place.submit("c1-1", &batches[2]).await, Ok(BatchReceipt::Stored));
}

#[tokio::test]
async fn batch_too_far_above_a_gap_is_refused_for_now() {
    let mut place = Place::new();
    let batches: Vec<_> = (1..=PARKED_PER_CLUSTER_MAX + 2)
        .map(|number| place.batch(number))
        .collect();
    let last = batches.last().unwrap();
    assert!(matches!(
        place.submit("c1-1", last).await,
        Err(IntakeError::TooManyWait { .. })
    ));
    assert!(!place.is_stored(last));
    assert_eq!(place.submit("c1-1", &batches[0]).await, Ok(BatchReceipt::Stored));
    let parked = Ok(BatchReceipt::Parked { next: BatchSeq(2) });
    assert_eq!(place.submit("c1-1", last).await, parked);
}

#[tokio::test]
async fn batch_of_another_cluster_is_refused() {
    let mut place = Place::new();
    let batch = place.batch(1);
    for stranger in ["c2-1", "v2", "op1"] {
        assert_eq!(
            place.submit(stranger, &batch).await,
            Err(IntakeError::ForeignCluster(C1)),
            "{stranger}"
        );
    }
    assert!(!place.is_stored(&batch));
}

#[tokio::test]
async fn too_few_attestations_are_refused() {
    let mut place = Place::new();
    let mut batch = place.batch(1);
    let roster = place.fleet.roster(C1);
    let one = place.fleet.attest(&batch.header, &roster, 0).signature;
    batch.attestations = Signers::gather(3, &[(0, one)]);
    let error = certificate_error(place.submit("c1-1", &batch).await);
    assert_eq!(error, CertificateError::TooFew { got: 1, needed: 2 });
    assert!(!place.is_stored(&batch) && place.heard().is_empty());
}

#[tokio::test]
async fn duplicate_and_foreign_attestations_are_refused() {
    let mut place = Place::new();
    let good = place.batch(1);
    let roster = place.fleet.roster(C1);
    let signature = |position| place.fleet.attest(&good.header, &roster, position).signature;
    // One device twice: at its own place and at another's.
    let mut twice = good.clone();
    twice.attestations = Signers::gather(3, &[(0, signature(0)), (1, signature(0))]);
    let error = certificate_error(place.submit("c1-1", &twice).await);
    assert_eq!(error, CertificateError::BadSignature(1));
    // Devices of another cluster's roster.
    let mut foreign = good.clone();
    let other = place.fleet.roster(C2);
    let strangers: Vec<_> = (0..2)
        .map(|position| (position, place.fleet.attest(&good.header, &other, position).signature))
        .collect();
    foreign.attestations = Signers::gather(3, &strangers);
    let error = certificate_error(place.submit("c1-1", &foreign).await);
    assert_eq!(error, CertificateError::BadSignature(0));
    // A position that no member has, and more signatures than bits.
    let mut outside = good.clone();
    outside.attestations.bitmap = vec![0b1001].try_into().unwrap();
    let error = certificate_error(place.submit("c1-1", &outside).await);
    assert_eq!(error, CertificateError::Shape { members: 3 });
    let mut extra = good.clone();
    extra.attestations.signatures = vec![signature(0), signature(1), signature(2)].try_into().unwrap();
    let error = certificate_error(place.submit("c1-1", &extra).await);
    assert_eq!(error, CertificateError::Shape { members: 3 });
    assert!(!place.is_stored(&good) && place.heard().is_empty());
    assert_eq!(place.submit("c1-1", &good).await, Ok(BatchReceipt::Stored));
}

#[tokio::test]
async fn rows_that_do_not_match_the_header_are_refused() {
    let mut place = Place::new();
    let mut batch = place.batch(1);
    batch.entries = BoundedVec::new();
    assert!(matches!(
        place.submit("c1-1", &batch).await,
        Err(IntakeError::Batch(BatchError::Content(_)))
    ));
}

/// Its certificate and digest are those of the good copy. Validators that executed different copies of one batch would come
/// to different states.
#[tokio::test]
async fn another_copy_of_a_certified_batch_is_refused_and_the_good_one_is_taken_after_it() {
    let mut place = Place::new();
    let good = place.batch(1);
    let bent = |bend: fn(&mut SignedEntry)| {
        let mut copy = good.clone();
        let mut rows = copy.entries.into_inner();
        let BatchItem::Author(entry) = &mut rows[0].item else {
            panic!("an author's row")
        };
        bend(entry);
        copy.entries = rows.try_into().unwrap();
        assert_eq!(copy.digest(&place.fleet.chain), good.digest(&place.fleet.chain));
        copy
    };
    let copies = [
        bent(|entry| entry.signature = Default::default()),
        bent(|entry| entry.payload = Default::default()),
    ];
    for copy in &copies {
        assert!(matches!(
            place.submit("c1-1", copy).await,
            Err(IntakeError::Batch(BatchError::Content(_)))
        ));
    }
    assert_eq!(place.submit("c1-1", &good).await, Ok(BatchReceipt::Stored));
}

/// Others may have stored it before its roster was replaced, and a final block may refer to it. Whoever executes that
/// block later must be able to get it, or stands still for ever.
#[tokio::test]
async fn batch_under_a_roster_that_was_replaced_is_stored_for_a_block_that_refers_to_it() {
    let mut place = Place::new();
    let mut ledger = Ledger::new(Fleet::new(2, 3, 4));
    let old = place.fleet.roster(C1);
    let alone = |name: &str| Roster {
        members: vec![RosterMember {
            raft: RaftNodeId::new(place.fleet.idx(name), 1),
            key_version: Default::default(),
        }]
        .try_into()
        .unwrap(),
    };
    let two = Roster {
        members: old.members.to_vec()[..2].to_vec().try_into().unwrap(),
    };
    let row = |roster: &Roster| BatchItem::Roster(RosterChange { roster: roster.clone() });
    let refused = Verdict::Rejected(Reason::UnknownKey);
    let rows = vec![(refused, row(&alone("c1-3"))), (Verdict::Granted, row(&two))];
    let change = place.log.batch_of(&place.fleet, rows);
    assert_eq!(place.submit("c1-1", &change).await, Ok(BatchReceipt::Stored));
    ledger.block(vec![change], 100);
    let now = Executed {
        queue: Arc::new(ledger.queue.clone()),
        ..(*place.intake.executed.get()).clone()
    };
    place.intake.executed.set(Arc::new(now));

    let under = |roster: &Roster| {
        let mut log = place.log.clone();
        log.roster = roster.clone();
        log.beat(&place.fleet)
    };
    let (late, of_none) = (under(&old), [under(&alone("c1-3")), under(&place.fleet.roster(C2))]);
    for batch in of_none.into_iter().chain([late.clone()]) {
        let is_late = batch == late;
        let refused = place.submit("c1-1", &batch).await;
        assert!(matches!(
            refused,
            Err(IntakeError::Batch(BatchError::WrongRoster { .. }))
        ));
        let fetched = place.intake.take(batch.clone(), Origin::Validator).await;
        assert_eq!(fetched.is_ok(), is_late, "{fetched:?}");
        assert_eq!(place.is_stored(&batch), is_late);
    }
    let digest = late.digest(&place.fleet.chain);
    assert!(place.intake.batches.verified(&digest).unwrap().is_some());
}

/// The core may want it under a name that is not its own, or may not have heard of it.
#[tokio::test]
async fn batch_that_is_held_is_told_once_more_and_not_asked_for() {
    let mut place = Place::new();
    let (first, second) = (place.batch(1), place.batch(2));
    place.submit("c1-1", &first).await.unwrap();
    let chain = place.fleet.chain;
    assert!(place.intake.tell_if_held(&first.digest(&chain)).await);
    assert!(!place.intake.tell_if_held(&second.digest(&chain)).await);
    assert_eq!(place.heard(), [(1, true), (1, false)]);
    let mut ledger = Ledger::new(Fleet::new(2, 3, 4));
    ledger.block(vec![first.clone()], 100);
    let now = Executed {
        queue: Arc::new(ledger.queue.clone()),
        ..(*place.intake.executed.get()).clone()
    };
    place.intake.executed.set(Arc::new(now));
    assert!(place.intake.tell_if_held(&first.digest(&chain)).await);
    assert_eq!(place.heard().len(), 2, "it does not wait any more");
}

#[tokio::test]
async fn batch_with_a_bad_author_signature_is_taken() {
    let mut place = Place::new();
    let mut entry = place.fleet.submit("op1", C1, 1, Scope::Fleet, &task("k"));
    entry.signature = Default::default();
    let batch = place.log.granted(&place.fleet, vec![entry]);
    assert_eq!(place.submit("c1-1", &batch).await, Ok(BatchReceipt::Stored));
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let mut place = Place::new();
    let bytes = place.batch(1).encoded();
    let from = place.fleet.idx("c1-1");
    let mut trailing = bytes.clone();
    trailing.push(0);
    for body in [&bytes[..bytes.len() - 1], &trailing, &[], &[0xff; 100]] {
        for kind in [FrameKind::SubmitBatch, FrameKind::Follow, FrameKind::FeedBatch] {
            let outcome = place.intake.handle(from, kind, body.to_vec().into()).await;
            assert_eq!(outcome.unwrap_err().code, RefusalCode::Invalid);
        }
    }
    assert!(place.heard().is_empty());
}

#[tokio::test(start_paused = true)]
async fn follower_waits_at_most_ten_seconds_and_only_for_its_own_cluster() {
    let place = Place::new();
    let follow = |cluster| Follow {
        cluster,
        from: common::ids::Height(1),
        wait_ms: 3_600_000,
    };
    let began = tokio::time::Instant::now();
    let ask = |cluster| {
        let body = encode(&follow(cluster)).into();
        place.intake.handle(place.fleet.idx("c1-1"), FrameKind::Follow, body)
    };
    let answer: Followed = decode(&ask(C1).await.unwrap()).unwrap();
    assert!(answer.blocks.is_empty());
    assert_eq!((answer.next_seq, answer.founding), (BatchSeq(1), Founding(0)));
    assert_eq!(began.elapsed().as_secs(), 10);
    assert_eq!(ask(C2).await.unwrap_err().code, RefusalCode::Denied);
}
