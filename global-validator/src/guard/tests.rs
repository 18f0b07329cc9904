use common::{
    certificate::{Finalization, Notarization, NullifyBallot, Signers},
    ids::{Epoch, Height, View},
    testing::Fleet,
    wire::bft::Certificate,
};
use transport::{machine::MachineEntropy, memory::MemoryDisk};

use super::*;
use crate::exit::EXIT_REFUSED_FOR_SAFETY;

struct Place {
    fleet: Fleet,
    disk: MemoryDisk,
}

impl Place {
    fn new() -> Self {
        Self {
            fleet: Fleet::new(1, 3, 4),
            disk: MemoryDisk::new(),
        }
    }

    fn owner(&self, label: &str) -> Owner {
        Owner {
            chain: self.fleet.chain,
            device: self.fleet.id(label),
            idx: self.fleet.idx(label),
        }
    }

    fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(self.disk.clone())
    }

    async fn open_as(&self, label: &str, owner: Owner) -> Result<SigningGuard, Stop> {
        let entropy: Arc<dyn Entropy> = Arc::new(MachineEntropy::new());
        SigningGuard::open(&self.disk(), &entropy, self.fleet.consensus_key(label), owner).await
    }

    /// Opens the guard as after a crash of the process.
    async fn open(&self) -> Result<SigningGuard, Stop> {
        self.disk.crash();
        self.open_as("v1", self.owner("v1")).await
    }

    async fn append(&self, record: &JournalRecord) {
        self.append_bytes(encode(record)).await;
    }

    async fn append_bytes(&self, bytes: Vec<u8>) {
        let (mut journal, _) = self.disk.open_journal(GUARD_FILE).unwrap();
        journal.append(vec![bytes]).await.unwrap();
    }

    fn records(&self) -> Vec<JournalRecord> {
        let (_, records) = self.disk.open_journal(GUARD_FILE).unwrap();
        records.iter().map(|(_, bytes)| decode(bytes).unwrap()).collect()
    }
}

fn ballot(view: u64, content: u8) -> Ballot {
    Ballot {
        epoch: Epoch(0),
        view: View(view),
        height: Height(view),
        digest: Digest([content; 32]),
    }
}

fn notarize(view: u64, content: u8) -> Vote {
    Vote::Notarize(ballot(view, content))
}

fn finalize(view: u64, content: u8) -> Vote {
    Vote::Finalize(ballot(view, content))
}

fn nullify(view: u64) -> Vote {
    Vote::Nullify(NullifyBallot {
        epoch: Epoch(0),
        view: View(view),
    })
}

async fn sign(guard: &mut SigningGuard, vote: Vote) -> Result<SignedVote, Refusal> {
    guard.admit(GuardRecord::Vote(vote))?;
    guard.flush().await.unwrap();
    Ok(guard.sign_vote(vote))
}

fn refused(outcome: Result<SigningGuard, Stop>) -> Refusal {
    let Err(stop) = outcome else {
        panic!("the guard was opened")
    };
    assert_eq!(stop.exit_code(), EXIT_REFUSED_FOR_SAFETY, "{stop}");
    match stop {
        Stop::Refused(refusal) => refusal,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn second_notarize_with_other_content_is_refused_also_after_a_restart() {
    let place = Place::new();
    let mut guard = place.open().await.unwrap();
    let first = sign(&mut guard, notarize(3, 1)).await.unwrap();
    assert!(matches!(
        sign(&mut guard, notarize(3, 2)).await,
        Err(Refusal::Signing(GuardRefusal::OtherBlock { .. }))
    ));
    let mut guard = place.open().await.unwrap();
    assert!(matches!(
        sign(&mut guard, notarize(3, 2)).await,
        Err(Refusal::Signing(GuardRefusal::OtherBlock { .. }))
    ));
    // The same content again: the same signature, and no second record.
    let records = place.records().len();
    assert_eq!(sign(&mut guard, notarize(3, 1)).await.unwrap(), first);
    assert_eq!(place.records().len(), records);
}

#[tokio::test]
async fn view_is_never_both_finalized_and_nullified() {
    let place = Place::new();
    let mut guard = place.open().await.unwrap();
    sign(&mut guard, finalize(1, 1)).await.unwrap();
    sign(&mut guard, nullify(2)).await.unwrap();
    let mut guard = place.open().await.unwrap();
    assert!(matches!(
        sign(&mut guard, nullify(1)).await,
        Err(Refusal::Signing(GuardRefusal::Finalized(_)))
    ));
    assert!(matches!(
        sign(&mut guard, finalize(2, 1)).await,
        Err(Refusal::Signing(GuardRefusal::Nullified(_)))
    ));
}

#[tokio::test]
async fn second_proposal_of_a_view_is_refused() {
    let place = Place::new();
    let mut guard = place.open().await.unwrap();
    guard.admit(GuardRecord::Proposal(ballot(1, 1))).unwrap();
    guard.flush().await.unwrap();
    let signature = guard.sign_proposal(&ballot(1, 1));
    let mut guard = place.open().await.unwrap();
    assert!(guard.admit(GuardRecord::Proposal(ballot(1, 2))).is_err());
    guard.admit(GuardRecord::Proposal(ballot(1, 1))).unwrap();
    assert_eq!(guard.sign_proposal(&ballot(1, 1)), signature);
}

#[tokio::test]
async fn vote_is_on_the_disk_before_it_can_be_signed() {
    let place = Place::new();
    let mut guard = place.open().await.unwrap();
    guard.admit(GuardRecord::Vote(notarize(1, 1))).unwrap();
    // A crash before the flush: the vote never left, so another one is allowed.
    drop(guard);
    let mut guard = place.open().await.unwrap();
    sign(&mut guard, notarize(1, 2)).await.unwrap();
    place.disk.fail();
    guard.admit(GuardRecord::Vote(notarize(2, 2))).unwrap();
    assert!(matches!(guard.flush().await, Err(Stop::Storage { .. })));
}

#[tokio::test]
#[should_panic(expected = "only what is durable is signed")]
async fn signing_before_the_record_is_durable_is_our_bug() {
    let place = Place::new();
    let mut guard = place.open().await.unwrap();
    guard.admit(GuardRecord::Vote(notarize(1, 1))).unwrap();
    let _ = guard.sign_vote(notarize(1, 1));
}

#[tokio::test]
async fn missing_guard_beside_its_marker_is_refused() {
    let place = Place::new();
    drop(place.open().await.unwrap());
    place.disk.remove(GUARD_FILE).await.unwrap();
    assert!(matches!(refused(place.open().await), Refusal::MissingGuard));
    // A journal that lost its content is no better.
    let (mut journal, _) = place.disk.open_journal(GUARD_FILE).unwrap();
    journal.append(vec![]).await.unwrap();
    assert!(matches!(refused(place.open().await), Refusal::MissingGuard));
}

#[tokio::test]
async fn guard_that_signed_without_a_marker_is_refused() {
    let place = Place::new();
    let mut guard = place.open().await.unwrap();
    sign(&mut guard, notarize(1, 1)).await.unwrap();
    place.disk.remove(MARKER_FILE).await.unwrap();
    assert!(matches!(refused(place.open().await), Refusal::MissingMarker));
}

#[tokio::test]
async fn first_start_that_crashed_before_its_marker_is_no_obstacle() {
    let place = Place::new();
    drop(place.open().await.unwrap());
    place.disk.remove(MARKER_FILE).await.unwrap();
    assert!(place.open().await.is_ok());
    assert!(place.open().await.is_ok());
}

#[tokio::test]
async fn corrupt_guard_and_corrupt_marker_are_refused() {
    let place = Place::new();
    drop(place.open().await.unwrap());
    place.append_bytes(vec![0xff; 40]).await;
    assert!(matches!(
        refused(place.open().await),
        Refusal::Corrupt { file: GUARD_FILE, .. }
    ));

    let place = Place::new();
    drop(place.open().await.unwrap());
    // Well-formed records that contradict each other.
    for content in [1, 2] {
        let record = GuardRecord::Vote(notarize(1, content));
        place.append(&JournalRecord::Signed(record)).await;
    }
    assert!(matches!(
        refused(place.open().await),
        Refusal::Corrupt { file: GUARD_FILE, .. }
    ));

    let place = Place::new();
    drop(place.open().await.unwrap());
    place.disk.replace(MARKER_FILE, vec![1, 2, 3]).await.unwrap();
    assert!(matches!(
        refused(place.open().await),
        Refusal::Corrupt { file: MARKER_FILE, .. }
    ));
}

#[tokio::test]
async fn guard_restored_from_a_backup_is_refused() {
    let place = Place::new();
    drop(place.open().await.unwrap());
    let backup: Vec<Vec<u8>> = place.records().iter().map(encode).collect();
    let mut guard = place.open().await.unwrap();
    sign(&mut guard, notarize(1, 1)).await.unwrap();
    let (mut journal, _) = place.disk.open_journal(GUARD_FILE).unwrap();
    journal.rewrite(backup).await.unwrap();
    assert!(matches!(
        refused(place.open().await),
        Refusal::Restored {
            got_boot: 1,
            want_boot: 2,
            ..
        }
    ));
}

/// The disk failed at every start between journal and marker.
#[tokio::test]
async fn starts_that_end_before_the_marker_do_not_pass_for_a_backup() {
    let place = Place::new();
    drop(place.open().await.unwrap());
    let Some(JournalRecord::Opened { directory, boot: 1 }) = place.records().first().cloned() else {
        panic!("a journal begins with its start");
    };
    place.append(&JournalRecord::Opened { directory, boot: 2 }).await;
    drop(place.open().await.unwrap());
    let last = JournalRecord::Opened { directory, boot: 2 };
    assert_eq!(
        place.records().last(),
        Some(&last),
        "the number of a start that signed nothing is used again"
    );
}

#[tokio::test]
async fn guard_of_another_directory_is_refused() {
    let place = Place::new();
    drop(place.open().await.unwrap());
    place
        .append(&JournalRecord::Opened {
            directory: Digest([9; 32]),
            boot: 1,
        })
        .await;
    assert!(matches!(refused(place.open().await), Refusal::Restored { .. }));
}

#[tokio::test]
async fn crash_between_journal_and_marker_of_a_start_is_no_obstacle() {
    let place = Place::new();
    drop(place.open().await.unwrap());
    let marker = place.disk.read(MARKER_FILE).unwrap().unwrap();
    let mut guard = place.open().await.unwrap();
    sign(&mut guard, notarize(1, 1)).await.unwrap();
    place.disk.replace(MARKER_FILE, marker).await.unwrap();
    let mut guard = place.open().await.unwrap();
    assert!(sign(&mut guard, notarize(1, 2)).await.is_err());
}

#[tokio::test]
async fn directory_of_another_fleet_device_or_key_is_refused() {
    let place = Place::new();
    drop(place.open().await.unwrap());
    let other_chain = Owner {
        chain: ChainId([1; 32]),
        ..place.owner("v1")
    };
    let refusal = refused(place.open_as("v1", other_chain).await);
    assert!(matches!(refusal, Refusal::OtherChain { .. }), "{refusal}");
    let refusal = refused(place.open_as("v1", place.owner("v2")).await);
    assert!(matches!(refusal, Refusal::OtherDevice { .. }), "{refusal}");
    let refusal = refused(place.open_as("v2", place.owner("v1")).await);
    assert!(matches!(refusal, Refusal::OtherKey), "{refusal}");
}

#[tokio::test]
async fn newer_format_is_refused_without_a_write() {
    let place = Place::new();
    drop(place.open().await.unwrap());
    let mut marker: Marker = decode(&place.disk.read(MARKER_FILE).unwrap().unwrap()).unwrap();
    marker.version += 1;
    let newer = encode(&marker);
    place.disk.replace(MARKER_FILE, newer.clone()).await.unwrap();
    let records = place.records();
    assert!(matches!(refused(place.open().await), Refusal::NewerFormat { got: 2 }));
    assert_eq!(place.disk.read(MARKER_FILE).unwrap(), Some(newer));
    assert_eq!(place.records(), records);
}

#[tokio::test]
async fn compaction_keeps_what_is_above_the_finalization_and_refuses_what_is_below() {
    let place = Place::new();
    let mut guard = place.open().await.unwrap();
    let certificate = |view| {
        Record::Certificate(Certificate::Notarization(Notarization {
            ballot: ballot(view, 1),
            signers: Signers::gather(4, &[]),
        }))
    };
    for view in 1..=4 {
        guard.persist(certificate(view));
        sign(&mut guard, notarize(view, 1)).await.unwrap();
    }
    sign(&mut guard, finalize(4, 1)).await.unwrap();
    guard.rewrite((Epoch(0), View(2))).await.unwrap();

    let mut guard = place.open().await.unwrap();
    assert_eq!(guard.persisted(), [certificate(3), certificate(4)]);
    assert_eq!(guard.guard().compacted(), Some((Epoch(0), View(2))));
    assert!(matches!(
        sign(&mut guard, notarize(2, 1)).await,
        Err(Refusal::Signing(GuardRefusal::Compacted { .. }))
    ));
    assert!(sign(&mut guard, notarize(4, 2)).await.is_err());
    assert!(sign(&mut guard, nullify(4)).await.is_err());
    sign(&mut guard, notarize(4, 1)).await.unwrap();
    // A restart after the rewrite finds its own directory and start.
    assert!(place.open().await.is_ok());
}

#[tokio::test]
async fn vote_of_my_key_that_i_did_not_cast_is_a_clone() {
    let place = Place::new();
    let mut guard = place.open().await.unwrap();
    sign(&mut guard, notarize(5, 1)).await.unwrap();
    let finalization = Finalization {
        ballot: ballot(3, 1),
        signers: Signers::gather(4, &[]),
    };
    guard.persist(Record::Certificate(Certificate::Finalization(finalization)));
    guard.rewrite((Epoch(0), View(3))).await.unwrap();
    assert!(guard.check_clone(GuardRecord::Vote(notarize(5, 1))).is_ok());
    // At or below the compacted finalization the records are gone: no conclusion.
    assert!(guard.check_clone(GuardRecord::Vote(notarize(3, 1))).is_ok());
    for foreign in [notarize(5, 2), finalize(5, 1), nullify(6)] {
        assert!(matches!(
            guard.check_clone(GuardRecord::Vote(foreign)),
            Err(Refusal::Clone(_))
        ));
    }
}
