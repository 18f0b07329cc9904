use common::ids::{LogIndex, NodeIdx};

use super::*;
use crate::raft::store::{
    LogOp, LogRecord, LogStore,
    durable_sled::{DurableSled, SledOptions},
    member_log::LogKind,
    segment_log::{SegmentLog, SegmentOptions},
};

fn identity() -> MemberIdentity {
    MemberIdentity {
        chain: ChainId([1; 32]),
        cluster: ClusterId(2),
        device: DeviceId([3; 32]),
        member: RaftNodeId::new(NodeIdx(4), 1),
    }
}

fn options(kind: LogKind) -> LogOptions {
    LogOptions {
        kind,
        ..LogOptions::default()
    }
}

fn open_as(dir: &Path, identity: MemberIdentity, kind: LogKind) -> Result<MemberStores, IdentityError> {
    open_member(dir, identity, [9; 16], options(kind))
}

fn open(dir: &Path, identity: MemberIdentity) -> Result<MemberStores, IdentityError> {
    open_as(dir, identity, LogKind::default())
}

fn vote(stores: &MemberStores) {
    let (sender, receiver) = std::sync::mpsc::channel();
    stores.log.submit(
        LogOp::Vote("vote".into()),
        Box::new(move |outcome| drop(sender.send(outcome))),
    );
    receiver.recv().unwrap().unwrap();
}

fn listing(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                fs::read(entry.path()).unwrap(),
            )
        })
        .collect();
    found.sort();
    found
}

#[test]
fn directory_is_made_once_and_keeps_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("member");
    let made = open(&dir, identity()).unwrap().meta;
    assert_eq!(
        made,
        DirectoryMeta {
            identity: identity(),
            directory: [9; 16]
        }
    );
    let stores = open_member(&dir, identity(), [8; 16], LogOptions::default()).unwrap();
    assert_eq!(stores.meta.directory, [9; 16]);
}

#[test]
fn directory_of_another_identity_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    vote(&open(dir.path(), identity()).unwrap());
    let before = listing(dir.path());
    let others = [
        MemberIdentity {
            chain: ChainId([7; 32]),
            ..identity()
        },
        MemberIdentity {
            cluster: ClusterId(7),
            ..identity()
        },
        MemberIdentity {
            device: DeviceId([7; 32]),
            ..identity()
        },
        MemberIdentity {
            member: RaftNodeId::new(NodeIdx(4), 2),
            ..identity()
        },
    ];
    for other in others {
        let error = open(dir.path(), other).err().unwrap();
        assert!(matches!(error, IdentityError::Foreign { .. }), "{error}");
        assert_eq!(error.exit_code(), 78);
    }
    assert_eq!(listing(dir.path()), before);
    open(dir.path(), identity()).unwrap();
}

/// A new, empty log of either kind in `dir`.
fn make_empty_log(dir: &Path, kind: LogKind) {
    match kind {
        LogKind::Sled => drop(DurableSled::open(dir, SledOptions::default(), Marker::none()).unwrap()),
        LogKind::Segments => {
            drop(SegmentLog::open(dir, [9; 16], SegmentOptions::default(), Marker::none()).unwrap());
        }
    }
}

#[test]
fn empty_log_beside_its_marker_is_refused() {
    for kind in [LogKind::Segments, LogKind::Sled] {
        let dir = tempfile::tempdir().unwrap();
        let stores = open_as(dir.path(), identity(), kind).unwrap();
        assert!(!dir.path().join("initialised").exists(), "nothing was acknowledged yet");
        vote(&stores);
        assert!(dir.path().join("initialised").exists());
        drop(stores);
        // The log is gone altogether, then gone and made anew, as either kind.
        fs::remove_dir_all(dir.path().join("log")).unwrap();
        let error = open_as(dir.path(), identity(), kind).err().unwrap();
        assert!(matches!(error, IdentityError::LostData { .. }), "{error}");
        assert!(!dir.path().join("log").exists(), "a log was made");
        for other in [LogKind::Sled, LogKind::Segments] {
            make_empty_log(&dir.path().join("log"), other);
            let error = open_as(dir.path(), identity(), kind).err().unwrap();
            assert!(matches!(error, IdentityError::LostData { .. }), "{error}");
            assert_eq!(error.exit_code(), 78);
            fs::remove_dir_all(dir.path().join("log")).unwrap();
        }
    }
}

#[test]
fn log_of_which_everything_was_dropped_again_is_not_taken_for_a_lost_one() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path(), identity()).unwrap();
    let entry = LogRecord {
        index: LogIndex(1),
        bytes: "entry".into(),
    };
    for op in [LogOp::Append(vec![entry]), LogOp::Truncate { from: LogIndex(1) }] {
        let (sender, receiver) = std::sync::mpsc::channel();
        let done = move |outcome| drop(sender.send(outcome));
        stores.log.submit(op, Box::new(done));
        receiver.recv().unwrap().unwrap();
    }
    drop(stores);
    assert!(dir.path().join("initialised").exists());
    let again = open(dir.path(), identity()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(again.log.recovered().unwrap().records, None);
}

#[test]
fn log_keeps_the_kind_it_was_made_with() {
    for (made, configured) in [(LogKind::Sled, LogKind::Segments), (LogKind::Segments, LogKind::Sled)] {
        let dir = tempfile::tempdir().unwrap();
        vote(&open_as(dir.path(), identity(), made).unwrap());
        let again = open_as(dir.path(), identity(), configured).unwrap();
        assert_eq!(again.log.kind(), made);
        assert_eq!(again.log.recovered().unwrap().vote, Some("vote".into()));
    }
}

#[test]
fn two_logs_in_one_directory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    vote(&open_as(dir.path(), identity(), LogKind::Segments).unwrap());
    let other = tempfile::tempdir().unwrap();
    vote(&open_as(other.path(), identity(), LogKind::Sled).unwrap());
    fs::copy(other.path().join("log/db"), dir.path().join("log/db")).unwrap();
    for kind in [LogKind::Segments, LogKind::Sled] {
        let error = open_as(dir.path(), identity(), kind).err().unwrap();
        assert_eq!(error.exit_code(), 78);
        assert!(
            error.to_string().contains("a log of segments and one in sled"),
            "{error}"
        );
    }
}

#[test]
fn marker_lost_between_flush_and_rename_is_written_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    vote(&open(dir.path(), identity()).unwrap());
    fs::remove_file(dir.path().join("initialised")).unwrap();
    drop(open(dir.path(), identity()).unwrap());
    assert!(dir.path().join("initialised").exists());
}

#[test]
fn newer_format_is_refused_without_a_write() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), identity()).unwrap());
    let path = dir.path().join("meta");
    let text = fs::read_to_string(&path).unwrap();
    // A newer format may have any fields.
    let newer = text.replace("\"format_version\": 1", "\"new_field\": 5, \"format_version\": 2");
    assert_ne!(newer, text);
    fs::write(&path, newer).unwrap();
    let before = listing(dir.path());
    let error = open(dir.path(), identity()).err().unwrap();
    assert_eq!(error, IdentityError::NewerFormat { got: 2, max: 1 });
    assert_eq!(error.exit_code(), 78);
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn damaged_or_missing_meta_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), identity()).unwrap());
    let path = dir.path().join("meta");
    for bytes in [&b""[..], b"{}", b"{\"format_version\": 1}"] {
        fs::write(&path, bytes).unwrap();
        let error = open(dir.path(), identity()).err().unwrap();
        assert!(matches!(error, IdentityError::BadMeta { .. }), "{error}");
    }
    fs::remove_file(&path).unwrap();
    let error = open(dir.path(), identity()).err().unwrap();
    assert!(matches!(error, IdentityError::BadMeta { .. }), "{error}");
}
