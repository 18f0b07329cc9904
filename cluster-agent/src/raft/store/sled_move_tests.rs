//! A log that moves to a new file because its old one has outgrown its quota.

use super::*;

/// Appends 20 records of 12 kB above `from` and purges all but them.
fn append_and_purge(log: &DurableSled, from: u64) {
    let new = (from + 1..=from + 20).map(|index| record(index, vec![index as u8; 12_000]));
    write(log, LogOp::Append(new.collect())).unwrap();
    let marker = Bytes::from(format!("purged {from}"));
    write(
        log,
        LogOp::Purge {
            upto: LogIndex(from),
            marker,
        },
    )
    .unwrap();
    // A move waits until the purge is done.
    while !entries::oldest_keys(&tree_of(log), LogIndex(from)).unwrap().is_empty() {
        std::thread::yield_now();
    }
    write(log, LogOp::Vote(format!("vote {from}").into())).unwrap();
}

#[test]
fn file_that_has_outgrown_its_quota_is_left_and_the_log_goes_on() {
    let dir = fast_dir();
    let root = dir.path().join("log");
    let log = DurableSled::open(&root, SMALL_FILE, Marker::none()).unwrap();
    for round in 0..60 {
        append_and_purge(&log, round * 20);
    }
    let wanted: Vec<_> = (1_181..=1_200)
        .map(|index| record(index, vec![index as u8; 12_000]))
        .collect();
    let check = |log: &DurableSled| {
        assert_eq!(
            log.read(LogIndex(1_181), LogIndex(u64::MAX), usize::MAX).unwrap(),
            wanted
        );
    };
    check(&log);
    let (name, _) = generations::active(&root).unwrap();
    assert!(name.as_str() > "gen-000002", "moved more than once: {name}");
    assert!(
        !root.join("db").exists() && fs::read_dir(&root).unwrap().count() == 3,
        "CURRENT, REACHED, and the one in force"
    );
    assert!(
        disk_bytes(&root) < 10 * 1024 * 1024,
        "14 MB were written, {} are left",
        disk_bytes(&root)
    );
    drop(log);
    let again = DurableSled::open(&root, SMALL_FILE, Marker::none()).unwrap();
    check(&again);
    let recovered = again.recovered().unwrap();
    assert_eq!(recovered.vote, Some("vote 1180".into()));
    assert_eq!(recovered.purged, Some((LogIndex(1_180), "purged 1180".into())));
}

#[test]
fn crash_at_any_step_of_a_move_leaves_exactly_one_whole_log() {
    let dir = fast_dir();
    let root = dir.path().join("log");
    let (seen, crashes) = mpsc::channel();
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let (of_crash, watched) = (acknowledged.clone(), root.clone());
    let mut exporting = 0;
    let on_move = move |step| {
        exporting += usize::from(step == MoveStep::Exporting);
        if step == MoveStep::Exporting && exporting % 3 != 1 {
            return;
        }
        let left = fast_dir();
        copy_all(&watched, left.path());
        seen.send((step, left, of_crash.load(Ordering::SeqCst))).unwrap();
    };
    let log = DurableSled::open_with(
        &root,
        SMALL_FILE,
        Marker::none(),
        Box::new(File::sync_data),
        Box::new(on_move),
    );
    let log = log.unwrap();
    for round in 0..30 {
        append_and_purge(&log, round * 20);
        acknowledged.store(round as usize * 20, Ordering::SeqCst);
    }
    drop(log);
    let mut steps = Vec::new();
    for (step, left, purged_at_least) in crashes {
        let again = DurableSled::open(left.path(), QUIET, Marker::none()).unwrap();
        let recovered = again.recovered().unwrap();
        let (upto, marker) = recovered.purged.clone().unwrap();
        assert!(upto.0 >= purged_at_least as u64, "{step:?}: {recovered:?}");
        assert_eq!(marker, format!("purged {upto}"), "{step:?}");
        // The next records may be there before the purge below them.
        let (first, last) = recovered.records.unwrap();
        assert!(
            first == upto.next() && [20, 40].contains(&(last.0 - upto.0)),
            "{step:?}: {recovered:?}"
        );
        let records = again.read(first, LogIndex(u64::MAX), usize::MAX).unwrap();
        let wanted = (first.0..=last.0).map(|index| record(index, vec![index as u8; 12_000]));
        assert_eq!(records, wanted.collect::<Vec<_>>(), "{step:?}");
        // What the move left is gone, whichever generation is in force.
        let (name, _) = generations::active(left.path()).unwrap();
        let is_there = |other: &str| left.path().join(other).exists();
        assert_eq!(is_there("db"), name.is_empty(), "{step:?}");
        let generations = fs::read_dir(left.path()).unwrap().map(Result::unwrap);
        let generations = generations.filter(|entry| entry.file_name().to_string_lossy().starts_with("gen-"));
        assert_eq!(generations.count(), usize::from(!name.is_empty()), "{step:?}");
        write(&again, LogOp::Append(vec![record(last.0 + 1, "goes on")])).unwrap();
        steps.push(step);
    }
    for step in [
        MoveStep::Begun,
        MoveStep::Exporting,
        MoveStep::Exported,
        MoveStep::Named,
        MoveStep::Removed,
    ] {
        assert!(
            steps.iter().filter(|seen| **seen == step).count() > 1,
            "{step:?} in {steps:?}"
        );
    }
}

#[test]
fn move_that_fails_leaves_the_old_file_in_force_and_the_store_alive() {
    let dir = fast_dir();
    let root = dir.path().join("log");
    let watched = root.clone();
    let tries = Arc::new(AtomicUsize::new(0));
    let counter = tries.clone();
    let on_move = move |step| {
        if step == MoveStep::Begun {
            counter.fetch_add(1, Ordering::SeqCst);
            fs::remove_dir_all(watched.join("gen-000001").join("blobs")).unwrap();
        }
    };
    let fsync: Fsync = Box::new(File::sync_data);
    let log = DurableSled::open_with(&root, SMALL_FILE, Marker::none(), fsync, Box::new(on_move)).unwrap();
    for round in 0..40 {
        append_and_purge(&log, round * 20);
    }
    let tries = tries.load(Ordering::SeqCst);
    assert!((1..20).contains(&tries), "{tries}: not after every operation");
    assert_eq!(log.failure(), None);
    assert!(root.join("db").exists() && !root.join("CURRENT").exists());
    assert!(!root.join("gen-000001").exists(), "what failed is removed");
    drop(log);
    let again = DurableSled::open(&root, QUIET, Marker::none()).unwrap();
    assert_eq!(again.recovered().unwrap().records, Some((LogIndex(781), LogIndex(800))));
}

#[test]
fn name_of_a_generation_that_is_not_there_is_damage_and_nothing_is_made() {
    let dir = fast_dir();
    drop(open(dir.path()));
    for (named, says) in [
        ("gen-000007", "which is not there"),
        ("../elsewhere", "names no generation"),
    ] {
        fs::write(dir.path().join("CURRENT"), named).unwrap();
        let error = DurableSled::open(dir.path(), QUIET, Marker::none()).err().unwrap();
        assert!(
            matches!(&error, StoreError::Corrupt(why) if why.contains(says)),
            "{error}"
        );
        assert!(dir.path().join("db").exists() && !dir.path().join("gen-000007").exists());
    }
}
