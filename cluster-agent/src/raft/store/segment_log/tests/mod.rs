//! What is acknowledged, what is poisoned, and how much disk is used.

mod damage;
mod history;

use std::sync::{
    atomic::{AtomicUsize, Ordering},
    mpsc,
};

use bytes::Bytes;
use futures::FutureExt;
use tempfile::TempDir;

use super::*;
use crate::raft::store::{
    RECORD_BYTES_MAX,
    group_commit_tests::{Sort, submit, write},
};

const DIRECTORY: [u8; 16] = [7; 16];
/// Segments so small that most tests use several.
const SMALL: SegmentOptions = SegmentOptions {
    segment_bytes: 32 * 1024,
};

fn try_open(dir: &Path) -> Result<SegmentLog, StoreError> {
    SegmentLog::open(dir, DIRECTORY, SMALL, Marker::none())
}

fn open(dir: &Path) -> SegmentLog {
    try_open(dir).unwrap()
}

fn open_on(dir: &Path, fsync: Fsync) -> SegmentLog {
    SegmentLog::open_with(dir, DIRECTORY, SMALL, Marker::none(), fsync).unwrap()
}

fn record(index: u64, bytes: impl Into<Bytes>) -> LogRecord {
    LogRecord {
        index: LogIndex(index),
        bytes: bytes.into(),
    }
}

fn records(range: std::ops::Range<u64>) -> Vec<LogRecord> {
    range.map(|index| record(index, format!("entry {index}"))).collect()
}

fn purge(upto: u64) -> LogOp {
    LogOp::Purge {
        upto: LogIndex(upto),
        marker: format!("purged {upto}").into(),
    }
}

fn all(log: &impl LogStore) -> Vec<LogRecord> {
    log.read(first_of(log), LogIndex(u64::MAX), usize::MAX).unwrap()
}

/// Where a whole log begins; reads below find nothing.
fn first_of(log: &impl LogStore) -> LogIndex {
    let recovered = log.recovered().unwrap();
    let first = recovered.records.map(|(first, _)| first);
    first
        .or(recovered.purged.map(|(upto, _)| LogIndex(upto.0 + 1)))
        .unwrap_or(LogIndex(1))
}

/// A directory in memory where there is one: most tests are about logic, not about the device.
fn fast_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// What a kill leaves: the files as they are.
fn copy(dir: &Path) -> TempDir {
    let to = fast_dir();
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(Result::unwrap).collect();
    // The newest segment first: they are removed from the oldest on meanwhile, so that no gap is copied.
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
    for entry in entries {
        match fs::copy(entry.path(), to.path().join(entry.file_name())) {
            // The housekeeper has removed or renamed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => drop(other.unwrap()),
        }
    }
    to
}

#[test]
fn acknowledged_operations_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir.path().join("log"));
    write(&log, LogOp::Vote("vote 1".into())).unwrap();
    write(&log, LogOp::Append(records(1..200))).unwrap();
    write(&log, LogOp::Truncate { from: LogIndex(150) }).unwrap();
    write(&log, LogOp::Append(records(150..160))).unwrap();
    write(&log, purge(40)).unwrap();
    write(&log, LogOp::Vote("vote 2".into())).unwrap();
    let killed = copy(&dir.path().join("log"));
    let again = open(killed.path());
    let recovered = again.recovered().unwrap();
    assert_eq!(recovered.vote, Some("vote 2".into()));
    assert_eq!(recovered.purged, Some((LogIndex(40), "purged 40".into())));
    assert_eq!(recovered.records, Some((LogIndex(41), LogIndex(159))));
    assert_eq!(all(&again), records(41..160));
}

/// Fails once after `fine` flushes, and would succeed again.
fn failing_once(fine: usize) -> (Fsync, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let fsync = move |file: &File| {
        if counter.fetch_add(1, Ordering::SeqCst) == fine {
            return Err(io::Error::other("the device is gone"));
        }
        file.sync_data()
    };
    (Box::new(fsync), calls)
}

#[test]
fn failed_flush_poisons_the_store_and_is_never_tried_again() {
    let dir = fast_dir();
    // The first flush belongs to opening.
    let (fsync, calls) = failing_once(2);
    let log = open_on(dir.path(), fsync);
    assert_eq!(write(&log, LogOp::Vote("a".into())), Ok(()));
    let error = write(&log, LogOp::Append(records(1..3))).unwrap_err();
    assert!(
        matches!(&error, StoreError::Io(why) if why.contains("the device is gone") && why.contains(".seg")),
        "{error}"
    );
    let flushes = calls.load(Ordering::SeqCst);
    for op in [
        LogOp::Vote("b".into()),
        LogOp::Append(records(3..4)),
        LogOp::Committed("c".into()),
    ] {
        assert!(matches!(write(&log, op), Err(StoreError::Poisoned(_))));
    }
    assert_eq!(
        log.read(LogIndex(1), LogIndex(3), usize::MAX),
        Ok(vec![]),
        "what failed is not read"
    );
    let failed = log.failed().now_or_never().expect("the failure is known");
    assert!(failed.to_string().contains("the device is gone"), "{failed}");
    log.close();
    assert_eq!(calls.load(Ordering::SeqCst), flushes, "the flush was tried again");
}

#[test]
fn group_whose_flush_failed_is_written_again_at_the_next_start() {
    let dir = fast_dir();
    let (fsync, _) = failing_once(2);
    let log = open_on(dir.path(), fsync);
    write(&log, LogOp::Vote("a".into())).unwrap();
    assert!(write(&log, LogOp::Vote("b".into())).is_err());
    drop(log);
    // The page cache still has it, so it is found, and from then on it must be on the disk.
    let flushed = Arc::new(Mutex::new(Vec::new()));
    let seen = flushed.clone();
    let fsync: Fsync = Box::new(move |file| {
        let mut bytes = vec![0; 2 * SECTOR_BYTES];
        file.read_exact_at(&mut bytes, 0)?;
        seen.lock().unwrap().push(bytes);
        Ok(())
    });
    let again = open_on(dir.path(), fsync);
    assert_eq!(again.recovered().unwrap().vote, Some("b".into()));
    assert_eq!(flushed.lock().unwrap().len(), 1, "one flush at the start");
    let (_, end) = {
        drop(again);
        EndFile::open(dir.path()).unwrap()
    };
    assert_eq!(end.group, 2, "the mark says what was relied on");
}

fn sort(dir: &TempDir) -> Sort<SegmentLog> {
    let path = dir.path().to_path_buf();
    Sort {
        open: Box::new(move |fsync| open_on(&path, fsync)),
        flushes: 1,
        failure: |log| log.failed().now_or_never(),
    }
}

#[test]
fn panic_in_the_writer_poisons_the_store() {
    sort(&fast_dir()).panic_in_the_writer_poisons_the_store();
}

#[test]
fn panic_of_who_is_acknowledged_poisons_the_store_and_the_others_are_told() {
    sort(&fast_dir()).panic_of_who_is_acknowledged_poisons_the_store_and_the_others_are_told();
}

#[test]
fn waiting_operations_share_one_flush_and_are_acknowledged_in_order() {
    sort(&fast_dir()).waiting_operations_share_one_flush_and_are_acknowledged_in_order();
}

#[test]
fn nothing_is_read_before_it_is_durable() {
    let dir = fast_dir();
    let (gate_sender, gate) = mpsc::channel::<()>();
    let mut flushes = 0;
    let fsync: Fsync = Box::new(move |file| {
        flushes += 1;
        if flushes > 1 {
            gate.recv().map_err(io::Error::other)?;
        }
        file.sync_data()
    });
    let log = open_on(dir.path(), fsync);
    let written = submit(&log, LogOp::Append(records(1..4)));
    assert_eq!(log.read(LogIndex(1), LogIndex(4), usize::MAX), Ok(vec![]));
    gate_sender.send(()).unwrap();
    assert_eq!(written.recv().unwrap(), Ok(()));
    assert_eq!(log.read(LogIndex(1), LogIndex(4), usize::MAX), Ok(records(1..4)));
}

#[test]
fn hint_costs_no_flush_and_goes_with_the_next_group_or_the_end() {
    let dir = fast_dir();
    let (fsync, calls) = failing_once(usize::MAX);
    let log = open_on(dir.path(), fsync);
    let before = calls.load(Ordering::SeqCst);
    write(&log, LogOp::Committed("hint".into())).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), before);
    write(&log, LogOp::Vote("a".into())).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), before + 1);
    let again = open(copy(dir.path()).path());
    assert_eq!(again.recovered().unwrap().committed, Some("hint".into()));
    write(&log, LogOp::Committed("newer".into())).unwrap();
    drop(log);
    assert_eq!(open(dir.path()).recovered().unwrap().committed, Some("newer".into()));
}

#[test]
fn largest_record_is_kept_and_a_larger_one_refused() {
    let dir = fast_dir();
    let log = open(dir.path());
    let largest = record(1, vec![9; RECORD_BYTES_MAX]);
    write(&log, LogOp::Append(vec![largest.clone()])).unwrap();
    drop(log);
    let log = open(dir.path());
    assert_eq!(all(&log), [largest]);
    let larger = record(2, vec![9; RECORD_BYTES_MAX + 1]);
    assert!(matches!(
        write(&log, LogOp::Append(vec![larger])),
        Err(StoreError::Misuse(_))
    ));
}

#[test]
fn operation_longer_than_a_frame_is_acknowledged_once_and_whole() {
    let dir = fast_dir();
    let log = open(dir.path());
    let large: Vec<_> = (1..=40)
        .map(|index| record(index, vec![index as u8; 100_000]))
        .collect();
    write(&log, LogOp::Append(large.clone())).unwrap();
    assert_eq!(all(&open(copy(dir.path()).path())), large);
}

#[test]
fn operation_that_does_not_fit_is_refused_before_anything_is_written() {
    let misfits = [
        LogOp::Append(records(12..13)),
        LogOp::Append(records(5..6)),
        LogOp::Append(vec![record(11, "a"), record(13, "b")]),
        purge(2),
    ];
    for op in misfits {
        let dir = fast_dir();
        let log = open(dir.path());
        write(&log, LogOp::Append(records(1..11))).unwrap();
        write(&log, purge(3)).unwrap();
        assert!(matches!(write(&log, op), Err(StoreError::Misuse(_))));
        drop(log);
        assert_eq!(all(&open(dir.path())), records(4..11));
    }
}

#[test]
fn read_stops_at_its_byte_bound_but_never_before_the_first() {
    let dir = fast_dir();
    let log = open(dir.path());
    let long = (1..=10).map(|index| record(index, vec![0; 1_000])).collect();
    write(&log, LogOp::Append(long)).unwrap();
    let count = |bytes_max| log.read(LogIndex(2), LogIndex(100), bytes_max).unwrap().len();
    assert_eq!(
        (count(1), count(1_000), count(2_999), count(3_000), count(usize::MAX)),
        (1, 1, 2, 3, 9)
    );
    assert_eq!(log.read(LogIndex(5), LogIndex(5), 10).unwrap(), []);
    assert_eq!(log.read(LogIndex(11), LogIndex(20), 10).unwrap(), []);
}

#[test]
fn closed_store_fails_and_gives_the_files_free() {
    let dir = fast_dir();
    let log = open(dir.path());
    write(&log, LogOp::Append(records(1..3))).unwrap();
    let error = try_open(dir.path()).err().unwrap();
    assert!(error.to_string().contains("another process uses this log"), "{error}");
    log.close();
    assert_eq!(write(&log, LogOp::Vote("a".into())), Err(StoreError::Closed));
    assert_eq!(log.read(LogIndex(1), LogIndex(3), 10), Err(StoreError::Closed));
    assert_eq!(all(&open(dir.path())), records(1..3));
}

#[test]
fn disk_holds_what_is_live_and_two_segments_more() {
    let dir = fast_dir();
    let log = open(dir.path());
    for round in 0..60 {
        let from = round * 20 + 1;
        let new = (from..from + 20).map(|index| record(index, vec![index as u8; 1_000]));
        write(&log, LogOp::Append(new.collect())).unwrap();
        write(&log, purge(from + 9)).unwrap();
    }
    // 10 to 30 records of 1,000 bytes are live at any time: at most four segments. The housekeeper may have been too
    // busy to be asked; it is asked again with the next group.
    let has_room = || {
        let segments = files::list(dir.path()).unwrap();
        segments.len() <= 6 && segments[0] > 20
    };
    // Each of these moves the log on, for which the writer waits for the housekeeper now and then.
    let mut attempts = 0..10_000;
    while !has_room() {
        assert!(attempts.next().is_some(), "{:?}", files::list(dir.path()));
        write(&log, LogOp::Vote("again".into())).unwrap();
    }
    drop(log);
    let log = open(dir.path());
    let wanted: Vec<_> = (1_191..=1_200)
        .map(|index| record(index, vec![index as u8; 1_000]))
        .collect();
    assert_eq!(all(&log), wanted);
    assert_eq!(
        log.recovered().unwrap().purged,
        Some((LogIndex(1_190), "purged 1190".into()))
    );
}

#[test]
fn purged_log_with_a_far_marker_goes_on_behind_it() {
    let dir = fast_dir();
    let log = open(dir.path());
    write(&log, LogOp::Append(records(1..100))).unwrap();
    write(&log, purge(5_000)).unwrap();
    write(&log, LogOp::Append(records(5_001..5_400))).unwrap();
    for _ in 0..40 {
        write(&log, LogOp::Vote(vec![1; 1_000].into())).unwrap();
    }
    drop(log);
    let log = open(dir.path());
    assert_eq!(all(&log), records(5_001..5_400));
    write(&log, LogOp::Truncate { from: LogIndex(5_001) }).unwrap();
    write(&log, LogOp::Append(records(5_001..5_003))).unwrap();
    drop(log);
    assert_eq!(all(&open(dir.path())), records(5_001..5_003));
}

#[test]
fn segment_that_cannot_be_made_leaves_nothing_of_itself() {
    let dir = fast_dir();
    // Something stands where the segment should go.
    fs::create_dir(files::path_of(dir.path(), 2)).unwrap();
    let error = files::prepare(dir.path(), 2, 4_096).unwrap_err();
    assert!(
        matches!(&error, StoreError::Io(why) if why.contains("0000000000000002.seg")),
        "{error}"
    );
    let left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["0000000000000002.seg"]);
}

#[test]
fn next_segment_is_made_again_when_what_was_in_its_way_is_gone() {
    let dir = fast_dir();
    let log = open(dir.path());
    let blocker = files::path_of(dir.path(), 2);
    fs::create_dir(&blocker).unwrap();
    // More than half of the first segment: the next one is asked for, and fails, which harms nobody yet.
    write(&log, LogOp::Append(vec![record(1, vec![1; 18_000])])).unwrap();
    write(&log, LogOp::Vote("a".into())).unwrap();
    assert_eq!(log.failure(), None);
    fs::remove_dir(&blocker).unwrap();
    fs::create_dir(files::path_of(dir.path(), 3)).unwrap();
    write(&log, LogOp::Append(vec![record(2, vec![2; 18_000])])).unwrap();
    assert!(blocker.is_file());
    let error = write(&log, LogOp::Append(vec![record(3, vec![3; 18_000])])).unwrap_err();
    assert!(matches!(error, StoreError::Io(_)), "{error}");
    drop(log);
    fs::remove_dir(files::path_of(dir.path(), 3)).unwrap();
    let log = open(dir.path());
    assert_eq!(all(&log), [record(1, vec![1; 18_000]), record(2, vec![2; 18_000])]);
    write(&log, LogOp::Append(vec![record(3, vec![3; 18_000])])).unwrap();
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the claim is about a reader beside the writer")]
fn reader_finds_purged_records_or_none_but_no_error() {
    let dir = fast_dir();
    let log = Arc::new(open(dir.path()));
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reader = {
        let (log, done) = (log.clone(), done.clone());
        std::thread::Builder::new()
            .spawn(move || {
                let mut seen = 0u64;
                while !done.load(Ordering::SeqCst) {
                    for from in [seen, seen + 1, seen + 40] {
                        for record in log.read(LogIndex(from), LogIndex(from + 100), usize::MAX).unwrap() {
                            assert_eq!(record.bytes, vec![record.index.0 as u8; 1_000]);
                            seen = seen.max(record.index.0);
                        }
                    }
                    seen += 1;
                    if seen > 4_000 {
                        seen = 0;
                    }
                }
            })
            .unwrap()
    };
    for round in 0..200 {
        let from = round * 20 + 1;
        let new = (from..from + 20).map(|index| record(index, vec![index as u8; 1_000]));
        write(&*log, LogOp::Append(new.collect())).unwrap();
        write(&*log, purge(from + 9)).unwrap();
    }
    done.store(true, Ordering::SeqCst);
    reader.join().unwrap();
}
