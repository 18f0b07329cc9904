use common::ids::NodeIdx;

use super::*;
use crate::raft::store::LogOp;

fn identity() -> MemberIdentity {
    MemberIdentity {
        chain: ChainId([1; 32]),
        cluster: ClusterId(2),
        device: DeviceId([3; 32]),
        member: RaftNodeId::new(NodeIdx(4), 1),
    }
}

fn open(dir: &Path, identity: MemberIdentity) -> Result<MemberStores, IdentityError> {
    open_member(
        dir,
        identity,
        [9; 16],
        SledOptions {
            flush_every_ms: None,
            ..SledOptions::default()
        },
    )
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
    let stores = open_member(&dir, identity(), [8; 16], SledOptions::default()).unwrap();
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

#[test]
fn empty_database_beside_its_marker_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path(), identity()).unwrap();
    assert!(!dir.path().join("initialised").exists(), "nothing was acknowledged yet");
    vote(&stores);
    assert!(dir.path().join("initialised").exists());
    drop(stores);
    // The database is gone altogether, then gone and made anew.
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    let error = open(dir.path(), identity()).err().unwrap();
    assert!(matches!(error, IdentityError::LostData { .. }), "{error}");
    drop(DurableSled::open(&dir.path().join("log"), SledOptions::default(), Marker::none()).unwrap());
    let error = open(dir.path(), identity()).err().unwrap();
    assert!(matches!(error, IdentityError::LostData { .. }), "{error}");
    assert_eq!(error.exit_code(), 78);
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
