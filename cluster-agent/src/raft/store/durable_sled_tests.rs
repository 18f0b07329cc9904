//! Deaths, injected failures, and random histories against a model.

use std::{
    collections::BTreeMap,
    fs, io,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use bytes::Bytes;
use futures::FutureExt;
use proptest::prelude::*;
use tempfile::TempDir;

#[path = "sled_move_tests.rs"]
mod moves;

use super::{
    super::group_commit_tests::{Sort, submit, write},
    *,
};

const QUIET: SledOptions = SledOptions {
    cache_bytes: 8 * 1024 * 1024,
    file_bytes_max: FILE_BYTES_DEFAULT,
};

fn open(dir: &Path) -> DurableSled {
    DurableSled::open(dir, QUIET, Marker::none()).unwrap()
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

fn tree_of(log: &DurableSled) -> Tree {
    log.tree.read().unwrap().clone().unwrap()
}

fn all(log: &DurableSled) -> Vec<LogRecord> {
    let tree = &tree_of(log);
    let Some((first, last)) = entries::verify(tree, None).unwrap() else {
        return Vec::new();
    };
    entries::read(tree, first, last.next(), usize::MAX).unwrap()
}

/// A directory in memory where there is one: the histories below test logic, not the device.
fn fast_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// What a kill leaves: the files as they are, without sled's own end.
fn copy(dir: &Path) -> TempDir {
    let to = fast_dir();
    let (_, active) = generations::active(dir).unwrap();
    assert_eq!(
        fs::read_dir(active.join("blobs")).unwrap().count(),
        0,
        "a leaf outside sled's log"
    );
    copy_all(dir, to.path());
    to
}

fn copy_all(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&place).unwrap();
            copy_all(&entry.path(), &place);
        } else {
            fs::copy(entry.path(), place).unwrap();
        }
    }
}

#[test]
fn acknowledged_operations_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    write(&log, LogOp::Vote("vote 1".into())).unwrap();
    write(&log, LogOp::Append(records(1..200))).unwrap();
    write(&log, LogOp::Truncate { from: LogIndex(150) }).unwrap();
    write(&log, LogOp::Append(records(150..160))).unwrap();
    write(
        &log,
        LogOp::Purge {
            upto: LogIndex(40),
            marker: "marker".into(),
        },
    )
    .unwrap();
    write(&log, LogOp::Vote("vote 2".into())).unwrap();
    let killed = copy(dir.path());
    let again = open(killed.path());
    let recovered = again.recovered().unwrap();
    assert_eq!(recovered.vote, Some("vote 2".into()));
    assert_eq!(recovered.purged, Some((LogIndex(40), "marker".into())));
    assert_eq!(recovered.records, Some((LogIndex(41), LogIndex(159))));
    let found = again.read(LogIndex(41), LogIndex(u64::MAX), usize::MAX).unwrap();
    assert_eq!(found, records(41..160));
}

#[test]
fn unfinished_index_of_sled_does_not_stop_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    write(&log, LogOp::Append(records(1..500))).unwrap();
    drop(log);
    // sled itself takes this file for its newest index and reports corruption for ever.
    fs::write(dir.path().join("snap.00000000FFFFFFFF.generating"), b"").unwrap();
    let direct = sled::Config::new().path(dir.path()).open();
    assert!(
        direct.is_err(),
        "sled was expected to stumble; is the deletion still needed?"
    );
    drop(direct);
    fs::write(dir.path().join("snap.00000000FFFFFFFF.generating"), b"").unwrap();
    assert_eq!(all(&open(dir.path())), records(1..500));
}

#[test]
fn damaged_index_of_sled_is_set_aside_and_the_log_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    write(&log, LogOp::Append(records(1..500))).unwrap();
    drop(log);
    // Opening writes an index.
    drop(open(dir.path()));
    let indexes = files::index_files(dir.path()).unwrap();
    assert!(!indexes.is_empty(), "sled writes its index when it opens");
    for path in indexes {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&path, bytes).unwrap();
    }
    assert_eq!(all(&open(dir.path())), records(1..500));
    assert!(dir.path().join("aside").exists());
}

#[test]
fn damaged_entry_is_reported_and_nothing_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    write(&log, LogOp::Append(records(1..10))).unwrap();
    {
        let tree = &tree_of(&log);
        let (key, value) = tree.iter().nth(4).unwrap().unwrap();
        let mut value = value.to_vec();
        *value.last_mut().unwrap() ^= 1;
        tree.insert(key, value).unwrap();
    }
    drop(log);
    for _ in 0..2 {
        let error = DurableSled::open(dir.path(), QUIET, Marker::none()).err().unwrap();
        assert!(
            matches!(&error, StoreError::Corrupt(why) if why.contains("checksum")),
            "{error}"
        );
    }
}

#[test]
fn gap_in_the_log_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    write(&log, LogOp::Append(records(1..10))).unwrap();
    {
        let tree = &tree_of(&log);
        let (key, _) = tree.iter().nth(4).unwrap().unwrap();
        tree.remove(key).unwrap();
    }
    drop(log);
    let error = DurableSled::open(dir.path(), QUIET, Marker::none()).err().unwrap();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
}

/// Before sled reads the log, and after it has.
const FLUSHES_OF_OPENING: usize = 2;

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
    let dir = tempfile::tempdir().unwrap();
    let (fsync, calls) = failing_once(FLUSHES_OF_OPENING + 1);
    let log = DurableSled::open_with(dir.path(), QUIET, Marker::none(), fsync, Box::new(|_| ())).unwrap();
    assert_eq!(write(&log, LogOp::Vote("a".into())), Ok(()));
    let error = write(&log, LogOp::Append(records(1..3))).unwrap_err();
    assert!(
        matches!(&error, StoreError::Io(why) if why.contains("the device is gone")),
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
    assert_eq!(calls.load(Ordering::SeqCst), flushes, "the flush was tried again");
    assert!(matches!(log.failure(), Some(StoreError::Poisoned(_))));
    let failed = log.failed().now_or_never().expect("the failure is known");
    assert!(failed.to_string().contains("the device is gone"), "{failed}");
}

fn sort(dir: &TempDir) -> Sort<DurableSled> {
    let path = dir.path().to_path_buf();
    Sort {
        open: Box::new(move |fsync| {
            DurableSled::open_with(&path, QUIET, Marker::none(), fsync, Box::new(|_| ())).unwrap()
        }),
        flushes: FLUSHES_OF_OPENING,
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
fn hint_costs_no_flush() {
    let dir = tempfile::tempdir().unwrap();
    let (fsync, calls) = failing_once(usize::MAX);
    let log = DurableSled::open_with(dir.path(), QUIET, Marker::none(), fsync, Box::new(|_| ())).unwrap();
    let before = calls.load(Ordering::SeqCst);
    write(&log, LogOp::Committed("hint".into())).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), before);
    write(&log, LogOp::Vote("a".into())).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), before + 1);
    let again = copy(dir.path());
    assert_eq!(open(again.path()).recovered().unwrap().committed, Some("hint".into()));
}

#[test]
fn removals_come_in_small_batches_of_whole_records() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    // Three pieces each.
    let large: Vec<_> = (1..=50).map(|index| record(index, vec![index as u8; 12_000])).collect();
    write(&log, LogOp::Append(large)).unwrap();
    let tree = &tree_of(&log);
    assert_eq!(tree.len(), 150);
    assert!(
        tree.iter()
            .values()
            .all(|value| value.unwrap().len() <= entries::VALUE_BYTES_MAX)
    );
    let newest = entries::newest_keys(tree, LogIndex(2)).unwrap();
    assert_eq!(newest.len(), 63, "21 whole records");
    assert_eq!(
        entries::oldest_keys(tree, LogIndex(50)).unwrap().len(),
        entries::REMOVALS_PER_STEP
    );
    write(&log, LogOp::Truncate { from: LogIndex(2) }).unwrap();
    assert_eq!(all(&log), [record(1, vec![1; 12_000])]);
}

#[test]
fn largest_record_is_kept_and_a_larger_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let largest = record(1, vec![9; super::super::RECORD_BYTES_MAX]);
    write(&log, LogOp::Append(vec![largest.clone()])).unwrap();
    assert_eq!(all(&log), [largest]);
    let larger = record(2, vec![9; super::super::RECORD_BYTES_MAX + 1]);
    assert!(matches!(
        write(&log, LogOp::Append(vec![larger])),
        Err(StoreError::Misuse(_))
    ));
}

#[test]
fn no_leaf_ever_leaves_sleds_log() {
    let dir = fast_dir();
    let log = open(dir.path());
    // Values of the greatest length, in every order that makes leaves split and merge; the writer
    // poisons the store if a leaf gets too large.
    let piece = entries::VALUE_BYTES_MAX - 8;
    for round in 0..4u64 {
        let from = round * 150 + 1;
        for at in (from..from + 300).step_by(30) {
            write(
                &log,
                LogOp::Append((at..at + 30).map(|index| record(index, vec![7; piece])).collect()),
            )
            .unwrap();
        }
        write(
            &log,
            LogOp::Truncate {
                from: LogIndex(from + 150),
            },
        )
        .unwrap();
        write(
            &log,
            LogOp::Purge {
                upto: LogIndex(from + 100),
                marker: "marker".into(),
            },
        )
        .unwrap();
    }
    write(
        &log,
        LogOp::Append(vec![record(601, vec![9; super::super::RECORD_BYTES_MAX])]),
    )
    .unwrap();
    assert_eq!(fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0);
}

#[test]
fn purged_records_left_by_a_kill_are_removed_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    write(&log, LogOp::Append(records(1..1_000))).unwrap();
    {
        // The marker is durable, nothing is removed yet: as a kill right after the flush leaves it.
        let tree = &tree_of(&log);
        tree.insert(PURGED_KEY, purged_value(LogIndex(900), b"marker")).unwrap();
    }
    drop(log);
    let log = open(dir.path());
    assert_eq!(log.recovered().unwrap().records, Some((LogIndex(901), LogIndex(999))));
    // The writer removes them one batch after another.
    let tree = &tree_of(&log);
    while !entries::oldest_keys(tree, LogIndex(900)).unwrap().is_empty() {
        std::thread::yield_now();
    }
}

#[test]
fn read_stops_at_its_byte_bound_but_never_before_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    write(
        &log,
        LogOp::Append((1..=10).map(|index| record(index, vec![0; 1_000])).collect()),
    )
    .unwrap();
    let count = |bytes_max| log.read(LogIndex(2), LogIndex(100), bytes_max).unwrap().len();
    assert_eq!(
        (count(1), count(1_000), count(2_999), count(3_000), count(usize::MAX)),
        (1, 1, 2, 3, 9)
    );
    assert_eq!(log.read(LogIndex(5), LogIndex(5), 10).unwrap(), []);
}

#[test]
fn closed_store_fails_and_gives_the_files_free() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    write(&log, LogOp::Append(records(1..3))).unwrap();
    log.close();
    assert_eq!(write(&log, LogOp::Vote("a".into())), Err(StoreError::Closed));
    assert_eq!(log.read(LogIndex(1), LogIndex(3), 10), Err(StoreError::Closed));
    assert_eq!(all(&open(dir.path())), records(1..3));
}

const SMALL_FILE: SledOptions = SledOptions {
    // More than a segment: that long is every file after a start.
    file_bytes_max: 5 * 1024 * 1024,
    ..QUIET
};

fn disk_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| {
        let found = entry.metadata().unwrap();
        if found.is_dir() {
            disk_bytes(&entry.path())
        } else {
            found.len()
        }
    });
    sizes.sum()
}

/// The log as it should be.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    vote: Option<Bytes>,
    purged: Option<(LogIndex, Bytes)>,
    records: BTreeMap<u64, Bytes>,
}

impl Model {
    fn next_index(&self) -> u64 {
        let last = self.records.last_key_value().map(|(last, _)| *last);
        last.max(self.purged.as_ref().map(|(upto, _)| upto.0)).unwrap_or(0) + 1
    }
}

#[derive(Clone, Debug)]
enum Step {
    Vote(u8),
    Append(Vec<(u8, usize)>),
    Truncate(u64),
    Purge(u64),
    PurgeBeyond(u64),
    Committed,
    Reopen,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let length =
        prop_oneof![8 => 0..300usize, 1 => 5_000..5_200usize, 1 => 11_000..13_000usize, 1 => 40_000..50_000usize];
    prop_oneof![
        2 => any::<u8>().prop_map(Step::Vote),
        6 => proptest::collection::vec((any::<u8>(), length), 1..20).prop_map(Step::Append),
        2 => (0..40u64).prop_map(Step::Truncate),
        2 => (0..40u64).prop_map(Step::Purge),
        1 => (0..5u64).prop_map(Step::PurgeBeyond),
        1 => Just(Step::Committed),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

impl Model {
    /// Changes the model, and says what to submit.
    fn apply(&mut self, step: &Step) -> Option<LogOp> {
        match step {
            Step::Vote(number) => {
                self.vote = Some(vec![*number].into());
                self.vote.clone().map(LogOp::Vote)
            }
            Step::Append(contents) => {
                let from = self.next_index();
                let new: Vec<_> = (from..)
                    .zip(contents)
                    .map(|(index, (byte, len))| record(index, vec![*byte; *len]))
                    .collect();
                self.records
                    .extend(new.iter().map(|record| (record.index.0, record.bytes.clone())));
                Some(LogOp::Append(new))
            }
            Step::Truncate(back) => {
                let floor = self.purged.as_ref().map_or(0, |(upto, _)| upto.0) + 1;
                let from = self.next_index().saturating_sub(*back).max(floor);
                self.records.split_off(&from);
                Some(LogOp::Truncate { from: LogIndex(from) })
            }
            Step::Purge(ahead) => {
                let (first, _) = self.records.first_key_value()?;
                let (last, _) = self.records.last_key_value()?;
                Some(self.purge((first + ahead).min(*last)))
            }
            Step::PurgeBeyond(ahead) => Some(self.purge(self.next_index() + ahead)),
            Step::Committed => Some(LogOp::Committed("hint".into())),
            Step::Reopen | Step::Kill => None,
        }
    }

    fn purge(&mut self, upto: u64) -> LogOp {
        let marker = Bytes::from(format!("purged {upto}"));
        self.purged = Some((LogIndex(upto), marker.clone()));
        self.records = self.records.split_off(&(upto + 1));
        LogOp::Purge {
            upto: LogIndex(upto),
            marker,
        }
    }

    fn check(&self, log: &DurableSled) {
        // Purged records may be readable for a while; nobody asks for them.
        let first = self.purged.as_ref().map_or(LogIndex(1), |(upto, _)| upto.next());
        let found = log.read(first, LogIndex(u64::MAX), usize::MAX).unwrap();
        let want: Vec<_> = self
            .records
            .iter()
            .map(|(index, bytes)| record(*index, bytes.clone()))
            .collect();
        assert!(found == want, "found {found:?}, want {want:?}");
    }

    fn check_recovered(&self, log: &DurableSled) {
        let recovered = log.recovered().unwrap();
        assert_eq!((&recovered.vote, &recovered.purged), (&self.vote, &self.purged));
        let first = self.records.first_key_value().map(|(index, _)| LogIndex(*index));
        let last = self.records.last_key_value().map(|(index, _)| LogIndex(*index));
        assert_eq!(recovered.records, first.zip(last));
        self.check(log);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_end_as_the_model_does(steps in proptest::collection::vec(step(), 1..20)) {
        let mut dir = fast_dir();
        let (mut log, mut model) = (open(dir.path()), Model::default());
        let mut waiting = Vec::new();
        for step in &steps {
            if let Some(op) = model.apply(step) {
                waiting.push(submit(&log, op));
                continue;
            }
            for acknowledged in waiting.drain(..) {
                prop_assert_eq!(acknowledged.recv().unwrap(), Ok(()));
            }
            model.check(&log);
            if matches!(step, Step::Kill) {
                // The writer may still be removing what was purged; a copy of a moving file is no
                // crash. Its last batch is waited for by the next acknowledged flush.
                while model.purged.as_ref().is_some_and(|(upto, _)| {
                    !entries::oldest_keys(&tree_of(&log), *upto).unwrap().is_empty()
                }) {
                    std::thread::yield_now();
                }
                let vote = model.vote.clone().unwrap_or_else(|| "vote".into());
                model.vote = Some(vote.clone());
                write(&log, LogOp::Vote(vote)).unwrap();
                let killed = copy(dir.path());
                drop(log);
                dir = killed;
            } else {
                drop(log);
            }
            log = open(dir.path());
            model.check_recovered(&log);
        }
        drop(log);
        model.check_recovered(&open(dir.path()));
    }
}

#[path = "sled_loss_tests.rs"]
mod losses;
