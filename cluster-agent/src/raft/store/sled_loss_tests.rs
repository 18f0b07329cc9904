//! Losses in parts, damage, and moves that fail.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use super::*;

/// Bytes that do not repeat.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let blocks = (0u64..).flat_map(|at| common::crypto::sha256(&[&seed.to_be_bytes(), &at.to_be_bytes()]).0);
    blocks.take(len).collect()
}

fn noisy_records(range: std::ops::Range<u64>, len: usize) -> Vec<LogRecord> {
    range.map(|index| record(index, noise(index, len))).collect()
}

/// A copy of the database in `from`, whose file is `bytes`.
fn copy_with(from: &Path, bytes: &[u8]) -> TempDir {
    let to = fast_dir();
    copy_all(from, to.path());
    fs::write(to.path().join("db"), bytes).unwrap();
    to
}

/// Why the segments are long and the flushes dense. If this fails, sled recovers better than it did: look again.
/// Which pages matter depends on how sled's threads took turns, and now and then none does.
#[test]
fn sled_itself_recovers_an_empty_log_when_one_page_of_many_segments_is_lost() {
    assert!((0..20).any(|_| is_emptied_by_one_page()), "no page was that important");
}

/// Whether there is a page without which sled recovers an empty log.
fn is_emptied_by_one_page() -> bool {
    const SEGMENT: usize = 512 * 1024;
    // sled's threads keep the lock for a moment after it was closed.
    let open = |dir: &Path| {
        let is_locked = |error: &sled::Error| error.to_string().contains("could not acquire lock");
        loop {
            let config = sled::Config::new().path(dir).flush_every_ms(None).segment_size(SEGMENT);
            match catch_unwind(AssertUnwindSafe(|| config.open())) {
                Ok(Err(error)) if is_locked(&error) => std::thread::yield_now(),
                other => return other.ok().and_then(Result::ok),
            }
        }
    };
    let dir = fast_dir();
    drop(open(dir.path()).unwrap().open_tree("raft").unwrap());
    let db = open(dir.path()).unwrap();
    let tree = db.open_tree("raft").unwrap();
    for key in 0..40u64 {
        tree.insert(key.to_be_bytes(), vec![1; 3_000]).unwrap();
    }
    db.flush().unwrap();
    // Until here it was durable. Of what follows all but one page survives.
    for key in 40..400u64 {
        tree.insert(key.to_be_bytes(), vec![1; 5_000]).unwrap();
    }
    db.flush().unwrap();
    let bytes = fs::read(dir.path().join("db")).unwrap();
    (1..bytes.len() / SEGMENT).any(|segment| {
        let mut survived = bytes.clone();
        survived[segment * SEGMENT..][..4096].fill(0);
        let left = copy_with(dir.path(), &survived);
        let found = open(left.path()).or_else(|| {
            for index in files::index_files(left.path()).unwrap() {
                fs::remove_file(index).unwrap();
            }
            open(left.path())
        });
        found.is_some_and(|db| db.open_tree("raft").unwrap().is_empty())
    })
}

#[test]
fn what_sled_writes_between_two_flushes_fits_in_a_segment_with_room_to_spare() {
    const PIECE: usize = 512;
    let dir = fast_dir();
    let most = Arc::new(AtomicUsize::new(0));
    let (watched, mut before) = (most.clone(), Vec::new());
    let path = dir.path().join("db");
    let fsync: Fsync = Box::new(move |_| {
        let now = fs::read(&path)?;
        // sled shortens the file when what lies at its end is free. A segment that was cut off and came back in between
        // holds zeros, which nobody wrote.
        before.resize(now.len(), 0);
        let pieces = now.chunks(PIECE).zip(before.chunks(PIECE));
        let is_written = |(now, before): &(&[u8], &[u8])| now != before && now.iter().any(|byte| *byte != 0);
        let written = pieces.filter(is_written).count() * PIECE;
        watched.fetch_max(written, Ordering::SeqCst);
        before = now;
        Ok(())
    });
    let log = DurableSled::open_with(dir.path(), QUIET, Marker::none(), fsync, Box::new(|_| ())).unwrap();
    let (mut last, mut floor) = (0, 0);
    for (round, len) in (0u64..).zip([5_112, 20, 900, 5_112, 60_000, 5_112, 300, 5_112, 5_112]) {
        for _ in 0..4 {
            // In one group, mostly: it waits while the writer works.
            let waiting: Vec<_> = (0..3)
                .map(|_| {
                    let count = if len > 50_000 { 8 } else { 60 };
                    last += count;
                    submit(&log, LogOp::Append(noisy_records(last - count + 1..last + 1, len)))
                })
                .collect();
            for acknowledged in waiting {
                acknowledged.recv().unwrap().unwrap();
            }
            let from = last - 10;
            write(&log, LogOp::Truncate { from: LogIndex(from) }).unwrap();
            last = from - 1;
        }
        if round % 2 == 1 {
            floor = last - 60;
            let marker = Bytes::from("marker");
            let upto = LogIndex(floor);
            write(&log, LogOp::Purge { upto, marker }).unwrap();
        }
    }
    while !entries::oldest_keys(&tree_of(&log), LogIndex(floor))
        .unwrap()
        .is_empty()
    {
        std::thread::yield_now();
    }
    let most = most.load(Ordering::SeqCst);
    eprintln!("at most {most} bytes between two flushes");
    assert!((1..entries::SEGMENT_BYTES / 4 * 3).contains(&most), "{most} bytes");
}

#[test]
fn damaged_byte_anywhere_is_refused_at_every_start_or_costs_nothing() {
    let dir = fast_dir();
    let log = open(dir.path());
    write(&log, LogOp::Vote("vote 1".into())).unwrap();
    for from in (1..400).step_by(20) {
        write(&log, LogOp::Append(noisy_records(from..from + 20, 900))).unwrap();
    }
    write(&log, LogOp::Truncate { from: LogIndex(390) }).unwrap();
    let (upto, marker) = (LogIndex(40), "marker".into());
    write(&log, LogOp::Purge { upto, marker }).unwrap();
    while !entries::oldest_keys(&tree_of(&log), LogIndex(40)).unwrap().is_empty() {
        std::thread::yield_now();
    }
    write(&log, LogOp::Vote("vote 2".into())).unwrap();
    let bytes = fs::read(dir.path().join("db")).unwrap();
    let (mut refused, mut whole) = (0, 0);
    for at in (0..60).map(|part| part * bytes.len() / 60 + 7) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let left = copy_with(dir.path(), &damaged);
        let mut was_refused = false;
        for _ in 0..3 {
            match DurableSled::open(left.path(), QUIET, Marker::none()) {
                Err(StoreError::Corrupt(_)) => was_refused = true,
                Err(error) => panic!("byte {at}: {error}"),
                Ok(again) => {
                    assert!(!was_refused, "byte {at}: refused once, and then used");
                    let recovered = again.recovered().unwrap();
                    assert_eq!(recovered.vote, Some("vote 2".into()), "byte {at}");
                    assert_eq!(recovered.purged, Some((LogIndex(40), "marker".into())), "byte {at}");
                    let found = again.read(LogIndex(41), LogIndex(1_000), usize::MAX).unwrap();
                    assert_eq!(found, noisy_records(41..390, 900), "byte {at}");
                }
            }
        }
        refused += usize::from(was_refused);
        whole += usize::from(!was_refused);
    }
    eprintln!("{refused} refused, {whole} in what is not used any more");
    assert!(refused > 5 && whole > 5, "{refused} refused, {whole} not");
}

/// A power cut while sled opens may keep the removal of its old index and lose the name of the new one.
#[test]
fn log_without_an_index_is_replayed_whole_though_its_segments_were_used_again() {
    let dir = fast_dir();
    let mut log = open(dir.path());
    for round in 0..60u64 {
        let from = round * 100;
        let payload = |index| record(index, noise(index, 2_000));
        write(&log, LogOp::Append((from + 1..=from + 100).map(payload).collect())).unwrap();
        if round > 0 {
            let (upto, marker) = (LogIndex(from - 20), Bytes::from("marker"));
            write(&log, LogOp::Purge { upto, marker }).unwrap();
            while !entries::oldest_keys(&tree_of(&log), upto).unwrap().is_empty() {
                std::thread::yield_now();
            }
        }
        if round % 20 == 19 {
            drop(log);
            for index in files::index_files(dir.path()).unwrap() {
                fs::remove_file(index).unwrap();
            }
            log = open(dir.path());
            let found = log.read(LogIndex(from - 19), LogIndex(u64::MAX), usize::MAX).unwrap();
            let wanted: Vec<_> = (from - 19..=from + 100).map(payload).collect();
            assert!(found == wanted, "round {round}: {found:?}");
        }
    }
    let written = 60 * 100 * 2_000;
    assert!(disk_bytes(dir.path()) < 4 * written, "nothing was used again");
}

#[test]
fn log_that_was_put_back_from_an_older_copy_is_refused() {
    let dir = fast_dir();
    let root = dir.path().join("log");
    let log = open(&root);
    write(&log, LogOp::Append(records(1..10))).unwrap();
    let older = copy(&root);
    write(&log, LogOp::Append(records(10..12))).unwrap();
    drop(log);
    fs::copy(root.join("REACHED"), older.path().join("REACHED")).unwrap();
    for _ in 0..2 {
        let error = DurableSled::open(older.path(), QUIET, Marker::none()).err().unwrap();
        assert!(
            matches!(&error, StoreError::Corrupt(why) if why.contains("with the next `incarnation`")),
            "{error}"
        );
    }
}

#[test]
fn log_of_an_older_version_moves_into_long_segments() {
    let dir = fast_dir();
    let config = sled::Config::new().path(dir.path()).flush_every_ms(None);
    let db = config.segment_size(512 * 1024).open().unwrap();
    let tree = db.open_tree(RAFT_TREE).unwrap();
    for record in records(1..50) {
        entries::put(&tree, &record).unwrap();
    }
    tree.insert(VOTE_KEY, seal(b"vote")).unwrap();
    drop((tree, db));
    let log = open(dir.path());
    assert_eq!(log.recovered().unwrap().vote, Some("vote".into()));
    write(&log, LogOp::Append(records(50..52))).unwrap();
    write(&log, LogOp::Append(records(52..53))).unwrap();
    drop(log);
    let (name, place) = generations::active(dir.path()).unwrap();
    assert_eq!(name, "gen-000001");
    assert_eq!(files::segment_bytes(&place), entries::SEGMENT_BYTES);
    assert_eq!(all(&open(dir.path())), records(1..53));
}

/// Runs a log in a small file whose moves meet `on_move`, and `fsync`, until `rounds` are over or it has failed.
fn outgrow(root: &Path, fsync: Fsync, on_move: OnMove, rounds: u64) -> DurableSled {
    let log = DurableSled::open_with(root, SMALL_FILE, Marker::none(), fsync, on_move).unwrap();
    for round in 0..rounds {
        let from = round * 20;
        let new = (from + 1..=from + 20).map(|index| record(index, vec![index as u8; 12_000]));
        let (upto, marker) = (LogIndex(from), Bytes::from("marker"));
        let ops = [LogOp::Append(new.collect()), LogOp::Purge { upto, marker }];
        if ops.map(|op| write(&log, op)).iter().any(Result::is_err) {
            break;
        }
        while log.failure().is_none() && !entries::oldest_keys(&tree_of(&log), upto).unwrap().is_empty() {
            std::thread::yield_now();
        }
        let _ = write(&log, LogOp::Vote("vote".into()));
    }
    log
}

#[test]
fn full_disk_at_the_name_of_the_new_file_leaves_the_old_one_in_force() {
    let dir = fast_dir();
    let root = dir.path().join("log");
    let (name, tries) = (root.join("CURRENT.tmp"), Arc::new(AtomicUsize::new(0)));
    let counter = tries.clone();
    let on_move = move |step| {
        if step == MoveStep::Exported && counter.fetch_add(1, Ordering::SeqCst) == 0 {
            // What is written there finds no space.
            std::os::unix::fs::symlink("/dev/full", &name).unwrap();
        }
    };
    let log = outgrow(&root, Box::new(File::sync_data), Box::new(on_move), 40);
    assert_eq!(log.failure(), None);
    assert!(tries.load(Ordering::SeqCst) > 1, "it is tried again");
    assert!(root.join("CURRENT").exists(), "and moves once there is space");
    drop(log);
    let again = open(&root);
    assert_eq!(again.recovered().unwrap().records, Some((LogIndex(781), LogIndex(800))));
}

#[test]
fn failed_flush_of_the_copy_is_final() {
    let dir = fast_dir();
    let root = dir.path().join("log");
    let path_of = |file: &File| -> PathBuf {
        use std::os::fd::AsRawFd as _;
        fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
    };
    let fsync: Fsync = Box::new(move |file| {
        if path_of(file).to_string_lossy().contains("gen-") {
            return Err(io::Error::other("the device is gone"));
        }
        file.sync_data()
    });
    let log = outgrow(&root, fsync, Box::new(|_| ()), 40);
    let failure = log.failure().expect("it moved");
    assert!(failure.to_string().contains("the device is gone"), "{failure}");
    assert!(matches!(
        write(&log, LogOp::Vote("a".into())),
        Err(StoreError::Poisoned(_))
    ));
    assert!(root.join("db").exists() && !root.join("CURRENT").exists());
}
