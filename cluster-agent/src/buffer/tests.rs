//! What waits is bounded, in order, and the same after any restart.

use std::sync::Arc;

use common::{
    codec::Label,
    ids::LogIndex,
    testing::{Fleet, task},
    verdict::Answer,
};
use transport::{memory::MemoryDisk, ports::Disk};

use super::*;

const C1: ClusterId = ClusterId(0);
const LIMITS: BufferLimits = BufferLimits {
    entries_max: 3,
    bytes_max: 64 * 1024,
};

fn fleet() -> Fleet {
    Fleet::new(1, 3, 1)
}

fn entry(fleet: &Fleet, number: u64) -> SignedEntry {
    fleet.submit("op1", C1, number, Scope::Cluster, &task(&format!("k{number}")))
}

fn granted(index: u64) -> BufferedState {
    BufferedState::Committed(Answer {
        index: LogIndex(index),
        verdict: Verdict::Granted,
    })
}

async fn open(disk: &MemoryDisk, fleet: &Fleet, limits: BufferLimits) -> BufferJournal {
    BufferJournal::open(Arc::new(disk.clone()), fleet.chain, limits)
        .await
        .expect("the journal is whole")
}

async fn keep(journal: &BufferJournal, fleet: &Fleet, entry: &SignedEntry) -> Result<BufferedState, BufferRefusal> {
    let id = entry.id(&fleet.chain);
    journal.keep(&id, entry.clone()).await.expect("the disk works")
}

#[tokio::test]
async fn what_was_answered_survives_crashes_in_its_order() {
    let (fleet, disk) = (fleet(), MemoryDisk::new());
    let entries: Vec<_> = (1..=3).map(|number| entry(&fleet, number)).collect();
    let ids: Vec<_> = entries.iter().map(|entry| entry.id(&fleet.chain)).collect();
    let journal = open(&disk, &fleet, LIMITS).await;
    for entry in &entries {
        assert_eq!(keep(&journal, &fleet, entry).await, Ok(BufferedState::Waiting));
    }
    for (at, id) in ids.iter().enumerate() {
        disk.crash();
        let journal = open(&disk, &fleet, LIMITS).await;
        let (first, kept) = journal.with(Buffer::first).expect("it waits");
        assert_eq!((first, &kept), (*id, &entries[at]), "in order");
        journal.end(id, granted(at as u64)).await.unwrap();
    }
    disk.crash();
    let journal = open(&disk, &fleet, LIMITS).await;
    assert_eq!(journal.with(Buffer::waiting), (0, 0));
    for (at, id) in ids.iter().enumerate() {
        assert_eq!(
            journal.with(|buffer| buffer.state(id).cloned()),
            Some(granted(at as u64))
        );
    }
}

#[tokio::test]
async fn entry_is_kept_once_and_its_number_for_no_other_content() {
    let (fleet, disk) = (fleet(), MemoryDisk::new());
    let journal = open(&disk, &fleet, LIMITS).await;
    let first = entry(&fleet, 1);
    for _ in 0..3 {
        assert_eq!(keep(&journal, &fleet, &first).await, Ok(BufferedState::Waiting));
    }
    assert_eq!(journal.with(Buffer::waiting).0, 1);
    let other = fleet.submit("op1", C1, 1, Scope::Cluster, &task("other"));
    assert_eq!(keep(&journal, &fleet, &other).await, Err(BufferRefusal::Conflict));
    journal.end(&first.id(&fleet.chain), granted(9)).await.unwrap();
    assert_eq!(
        keep(&journal, &fleet, &first).await,
        Ok(granted(9)),
        "its outcome is the answer"
    );
}

#[tokio::test]
async fn full_buffer_refuses_by_entries_and_by_bytes_and_drops_nothing() {
    let (fleet, disk) = (fleet(), MemoryDisk::new());
    let journal = open(&disk, &fleet, LIMITS).await;
    for number in 1..=3 {
        keep(&journal, &fleet, &entry(&fleet, number)).await.unwrap();
    }
    let full = keep(&journal, &fleet, &entry(&fleet, 4)).await;
    assert!(matches!(full, Err(BufferRefusal::Full { entries: 3, .. })), "{full:?}");
    let first = entry(&fleet, 1);
    journal.end(&first.id(&fleet.chain), granted(1)).await.unwrap();
    assert_eq!(
        keep(&journal, &fleet, &entry(&fleet, 4)).await,
        Ok(BufferedState::Waiting)
    );
    // Narrower limits after a restart: what waits goes on waiting, nothing comes in.
    disk.crash();
    let narrow = BufferLimits {
        bytes_max: bytes_of(&first),
        entries_max: 100,
    };
    let journal = open(&disk, &fleet, narrow).await;
    assert_eq!(journal.with(Buffer::waiting).0, 3);
    let full = keep(&journal, &fleet, &entry(&fleet, 5)).await;
    assert!(matches!(full, Err(BufferRefusal::Full { .. })), "{full:?}");
    let off = BufferLimits {
        entries_max: 0,
        bytes_max: 0,
    };
    let journal = open(&MemoryDisk::new(), &fleet, off).await;
    let full = keep(&journal, &fleet, &entry(&fleet, 1)).await;
    assert!(matches!(full, Err(BufferRefusal::Full { entries: 0, .. })), "{full:?}");
}

#[tokio::test]
async fn only_submissions_wait() {
    let (fleet, disk) = (fleet(), MemoryDisk::new());
    let journal = open(&disk, &fleet, LIMITS).await;
    let cancel = Action::Cancel { task: TaskId([1; 32]) };
    let cancel = fleet.entry("op1", C1, 1, Scope::Cluster, cancel);
    assert_eq!(keep(&journal, &fleet, &cancel).await, Err(BufferRefusal::NotSubmit));
}

#[tokio::test]
async fn entry_is_not_kept_if_the_disk_does_not_take_it() {
    let (fleet, disk) = (fleet(), MemoryDisk::new());
    let journal = open(&disk, &fleet, LIMITS).await;
    disk.fail();
    let entry = entry(&fleet, 1);
    assert!(journal.keep(&entry.id(&fleet.chain), entry.clone()).await.is_err());
    assert_eq!(journal.with(Buffer::waiting), (0, 0));
    disk.crash();
    assert_eq!(open(&disk, &fleet, LIMITS).await.with(Buffer::waiting), (0, 0));
}

#[tokio::test]
async fn contradicting_or_foreign_journal_is_refused_and_left_alone() {
    let fleet = fleet();
    let ended = BufferRecord::Ended {
        id: EntryId([1; 32]),
        state: BufferedState::Waiting,
    };
    let begin = BufferRecord::Begin { version: VERSION };
    let bad = [
        vec![encode(&BufferRecord::Begin { version: VERSION + 1 })],
        vec![encode(&BufferRecord::Begin { version: 0 })],
        vec![encode(&ended)],
        vec![encode(&begin), encode(&ended)],
        vec![encode(&begin), encode(&begin)],
        vec![encode(&begin), vec![9, 9, 9]],
    ];
    for records in bad {
        let disk = MemoryDisk::new();
        let (mut journal, _) = disk.open_journal("buffer").unwrap();
        journal.append(records.clone()).await.unwrap();
        let opened = BufferJournal::open(Arc::new(disk.clone()), fleet.chain, LIMITS).await;
        let error = opened.err().expect("it must not be read");
        assert_eq!(error.exit_code(), 78, "{error}");
        let (_, after) = disk.open_journal("buffer").unwrap();
        assert_eq!(after.into_iter().map(|(_, record)| record).collect::<Vec<_>>(), records);
    }
}

#[tokio::test]
async fn journal_of_the_first_format_is_read_and_rewritten_so_that_its_release_refuses_it() {
    let (fleet, disk) = (fleet(), MemoryDisk::new());
    let (ended, waiting) = (entry(&fleet, 1), entry(&fleet, 2));
    let id = ended.id(&fleet.chain);
    let old = [
        BufferRecord::Begin { version: 1 },
        BufferRecord::Kept(ended),
        BufferRecord::Kept(waiting.clone()),
        BufferRecord::Ended { id, state: granted(7) },
    ];
    let (mut journal, _) = disk.open_journal("buffer").unwrap();
    journal.append(old.iter().map(encode).collect()).await.unwrap();
    drop(journal);
    for _ in 0..2 {
        let opened = open(&disk, &fleet, LIMITS).await;
        let first = opened.with(Buffer::first).map(|(_, entry)| entry);
        assert_eq!(first.as_ref(), Some(&waiting));
        assert_eq!(opened.with(|buffer| buffer.state(&id).cloned()), Some(granted(7)));
        drop(opened);
        disk.crash();
        let (_, records) = disk.open_journal("buffer").unwrap();
        let begin = BufferRecord::Begin { version: 2 };
        assert_eq!(records.first().map(|(_, record)| record), Some(&encode(&begin)));
    }
}

#[tokio::test]
async fn journal_and_outcomes_stay_bounded_over_thousands_of_entries() {
    let (fleet, disk) = (fleet(), MemoryDisk::new());
    let journal = open(&disk, &fleet, LIMITS).await;
    let mut longest = 0;
    let count = OUTCOMES_MAX as u64 + 200;
    for number in 1..=count {
        let entry = entry(&fleet, number);
        keep(&journal, &fleet, &entry).await.unwrap();
        journal.end(&entry.id(&fleet.chain), granted(number)).await.unwrap();
        longest = longest.max(journal.with(|buffer| buffer.rows.len()));
    }
    assert!(longest <= OUTCOMES_MAX + 1, "{longest}");
    assert_eq!(
        journal.with(|buffer| buffer.state(&entry(&fleet, 1).id(&fleet.chain)).cloned()),
        None
    );
    let before: Vec<BufferRecord> = journal.with(Buffer::records);
    let is_content = |record: &&BufferRecord| matches!(record, BufferRecord::Kept(_));
    assert_eq!(before.iter().filter(is_content).count(), 0, "the queue has them");
    disk.crash();
    assert_eq!(open(&disk, &fleet, LIMITS).await.with(Buffer::records), before);
}

#[tokio::test]
async fn journal_stays_bounded_though_every_life_is_short() {
    let (fleet, disk) = (fleet(), MemoryDisk::new());
    let large = |number: u64| {
        let task = Task {
            payload: vec![7; 8 * 1024].try_into().unwrap(),
            ..task(&format!("k{number}"))
        };
        fleet.submit("op1", C1, number, Scope::Cluster, &task)
    };
    for life in 0..5 {
        let journal = open(&disk, &fleet, LIMITS).await;
        for number in 1..=80 {
            let entry = large(life * 80 + number);
            keep(&journal, &fleet, &entry).await.unwrap();
            journal.end(&entry.id(&fleet.chain), granted(number)).await.unwrap();
        }
        disk.crash();
    }
    let (journal, _) = disk.open_journal("buffer").unwrap();
    assert!(journal.bytes() < 2 * 1024 * 1024, "{}", journal.bytes());
}

#[tokio::test]
async fn content_of_refused_entries_is_kept_up_to_its_bound_and_their_outcomes_longer() {
    let (fleet, disk) = (fleet(), MemoryDisk::new());
    let journal = open(&disk, &fleet, LIMITS).await;
    let refused = BufferedState::Refused {
        verdict: Verdict::Rejected(Reason::Expired),
        detail: Label::new("expired").unwrap(),
    };
    let big = |number: u64| {
        let task = Task {
            payload: vec![number as u8; 8 * 1024].try_into().unwrap(),
            ..task(&format!("k{number}"))
        };
        fleet.submit("op1", C1, number, Scope::Cluster, &task)
    };
    let bytes = bytes_of(&big(1));
    let count = 2 * CONTENT_BYTES_MAX / bytes;
    for number in 1..=count {
        let entry = big(number);
        keep(&journal, &fleet, &entry).await.unwrap();
        journal.end(&entry.id(&fleet.chain), refused.clone()).await.unwrap();
        let held: u64 = journal.with(|buffer| {
            buffer
                .rows
                .values()
                .filter_map(|row| row.entry.as_ref())
                .map(bytes_of)
                .sum()
        });
        assert!(held <= CONTENT_BYTES_MAX, "{held}");
        assert_eq!(journal.with(|buffer| buffer.content_bytes), held);
    }
    disk.crash();
    let journal = open(&disk, &fleet, LIMITS).await;
    let view = |number| journal.with(|buffer| buffer.view(&big(number).id(&fleet.chain).into()));
    assert_eq!(view(1), None, "the oldest content has gone");
    let finality = Finality::Refused {
        verdict: Verdict::Rejected(Reason::Expired),
    };
    assert_eq!(view(count).map(|view| view.finality), Some(finality));
    for number in 1..=count {
        let id = big(number).id(&fleet.chain);
        assert_eq!(journal.with(|buffer| buffer.state(&id).cloned()), Some(refused.clone()));
    }
}
