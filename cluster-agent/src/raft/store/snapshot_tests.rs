use super::*;

fn at(index: u64, term: u64) -> LogPosition {
    LogPosition {
        term: Term(term),
        index: LogIndex(index),
    }
}

async fn save(store: &dyn SnapshotStore, at: LogPosition, text: &str) -> Result<(), StoreError> {
    let mut draft = store.draft(DraftName::Own)?;
    draft.append(text.as_bytes())?;
    draft.sync()?;
    store.publish(draft, at).await.map(drop)
}

fn newest(store: &dyn SnapshotStore) -> Option<String> {
    store.newest().unwrap().map(|bytes| text(&*bytes))
}

fn text(bytes: &dyn SnapshotBytes) -> String {
    let mut all = vec![0; bytes.bytes_len() as usize];
    bytes.read_at(0, &mut all).unwrap();
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn newest_snapshot_is_kept_older_ones_are_removed_and_still_readable_for_who_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("snapshots");
    let store = FileSnapshots::open(&dir).unwrap();
    assert_eq!(newest(&store), None);
    save(&store, at(9, 1), "nine").await.unwrap();
    let read = store.newest().unwrap().unwrap();
    save(&store, at(10, 2), "ten").await.unwrap();
    assert_eq!(newest(&store).as_deref(), Some("ten"));
    assert_eq!(names(&dir).unwrap(), ["snap-00000000000000000010-00000000000000000002"]);
    assert_eq!(text(&*read), "nine");
    assert_eq!(newest(&FileSnapshots::open(&dir).unwrap()).as_deref(), Some("ten"));
}

#[tokio::test]
async fn own_snapshot_that_is_late_does_not_replace_one_that_was_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let stores: [Box<dyn SnapshotStore>; 2] = [
        Box::new(FileSnapshots::open(dir.path()).unwrap()),
        Box::new(MemorySnapshots::default()),
    ];
    for store in &stores {
        save(&**store, at(10, 2), "ten").await.unwrap();
        save(&**store, at(9, 2), "nine").await.unwrap();
        assert_eq!(newest(&**store).as_deref(), Some("ten"));
        save(&**store, at(11, 2), "eleven").await.unwrap();
        assert_eq!(newest(&**store).as_deref(), Some("eleven"));
    }
}

#[tokio::test]
async fn snapshot_cut_short_by_a_crash_is_not_seen() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileSnapshots::open(dir.path()).unwrap();
    save(&store, at(9, 1), "nine").await.unwrap();
    let mut draft = store.draft(DraftName::Own).unwrap();
    draft.append(b"te").unwrap();
    drop(draft);
    assert_eq!(newest(&store).as_deref(), Some("nine"));
    let again = FileSnapshots::open(dir.path()).unwrap();
    assert_eq!(newest(&again).as_deref(), Some("nine"));
    assert_eq!(names(dir.path()).unwrap().len(), 1);
}

#[tokio::test]
async fn older_snapshot_left_by_a_crash_loses_to_the_newer() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileSnapshots::open(dir.path()).unwrap();
    save(&store, at(10, 2), "ten").await.unwrap();
    fs::write(
        dir.path().join("snap-00000000000000000009-00000000000000000001"),
        "nine",
    )
    .unwrap();
    assert_eq!(newest(&store).as_deref(), Some("ten"));
}

#[test]
fn incoming_draft_survives_a_restart_and_goes_when_another_begins() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (
        DraftName::Incoming(Digest([1; 32])),
        DraftName::Incoming(Digest([2; 32])),
    );
    let store = FileSnapshots::open(dir.path()).unwrap();
    store.draft(one).unwrap().append(b"half").unwrap();
    let again = FileSnapshots::open(dir.path()).unwrap();
    assert_eq!(text(&*again.draft(one).unwrap()), "half");
    assert_eq!(text(&*again.draft(other).unwrap()), "");
    let found = names(dir.path()).unwrap();
    assert_eq!(found, [format!("incoming-{}.part", "02".repeat(32))]);
    again.draft(other).unwrap().discard();
    assert!(names(dir.path()).unwrap().is_empty());
}

#[tokio::test]
async fn failing_directory_is_an_error_and_the_draft_goes() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileSnapshots::open(dir.path()).unwrap();
    let draft = store.draft(DraftName::Own).unwrap();
    fs::remove_dir_all(dir.path()).unwrap();
    assert!(matches!(store.publish(draft, at(1, 1)).await, Err(StoreError::Io(_))));
    assert!(matches!(store.draft(DraftName::Own), Err(StoreError::Io(_))));
    assert!(matches!(store.newest(), Err(StoreError::Io(_))));
}
