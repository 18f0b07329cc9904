use common::ids::{LogIndex, Term};

use super::*;

fn at(index: u64, term: u64) -> LogPosition {
    LogPosition {
        term: Term(term),
        index: LogIndex(index),
    }
}

#[tokio::test]
async fn newest_snapshot_is_kept_and_older_ones_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("snapshots");
    let store = FileSnapshots::open(&dir).unwrap();
    assert_eq!(store.load().await, Ok(None));
    store.save(at(9, 1), "nine".into()).await.unwrap();
    store.save(at(10, 2), "ten".into()).await.unwrap();
    assert_eq!(store.load().await, Ok(Some("ten".into())));
    assert_eq!(names(&dir).unwrap(), ["snap-00000000000000000010-00000000000000000002"]);
    assert_eq!(FileSnapshots::open(&dir).unwrap().load().await, Ok(Some("ten".into())));
}

#[tokio::test]
async fn snapshot_cut_short_by_a_crash_is_not_seen() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileSnapshots::open(dir.path()).unwrap();
    store.save(at(9, 1), "nine".into()).await.unwrap();
    fs::write(
        dir.path().join("snap-00000000000000000010-00000000000000000002.tmp"),
        "te",
    )
    .unwrap();
    assert_eq!(store.load().await, Ok(Some("nine".into())));
    let again = FileSnapshots::open(dir.path()).unwrap();
    assert_eq!(again.load().await, Ok(Some("nine".into())));
    assert_eq!(names(dir.path()).unwrap().len(), 1);
}

#[tokio::test]
async fn older_snapshot_left_by_a_crash_loses_to_the_newer() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileSnapshots::open(dir.path()).unwrap();
    store.save(at(10, 2), "ten".into()).await.unwrap();
    fs::write(
        dir.path().join("snap-00000000000000000009-00000000000000000001"),
        "nine",
    )
    .unwrap();
    assert_eq!(store.load().await, Ok(Some("ten".into())));
}

#[tokio::test]
async fn failing_directory_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileSnapshots::open(dir.path()).unwrap();
    fs::remove_dir_all(dir.path()).unwrap();
    assert!(matches!(
        store.save(at(1, 1), "one".into()).await,
        Err(StoreError::Io(_))
    ));
    assert!(matches!(store.load().await, Err(StoreError::Io(_))));
}
