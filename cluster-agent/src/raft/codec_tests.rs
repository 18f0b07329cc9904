//! Encodings are pinned: a difference here is a change of format, and needs another version.

use std::{collections::BTreeMap, path::PathBuf};

use common::ids::to_hex;
use proptest::prelude::*;

use super::*;

fn vote() -> WireVote {
    WireVote {
        term: Term(7),
        candidate: RaftNodeId(0x1_0000_0002),
        is_committed: true,
    }
}

fn id(index: u64) -> WireLogId {
    WireLogId {
        term: Term(6),
        leader: RaftNodeId(0x3_0000_0001),
        index: LogIndex(index),
    }
}

fn membership() -> WireMembership {
    let member = |number: u64| WireMember {
        id: RaftNodeId(number),
        device: DeviceId([number as u8; 32]),
    };
    let old = vec![RaftNodeId(1), RaftNodeId(2), RaftNodeId(3)];
    let new = vec![RaftNodeId(1), RaftNodeId(2), RaftNodeId(4)];
    WireMembership::new(vec![old, new], (1..=4).map(member).collect())
}

fn entries() -> Vec<WireEntry> {
    vec![
        WireEntry {
            id: id(300),
            payload: WirePayload::Blank,
        },
        WireEntry {
            id: id(301),
            payload: WirePayload::command(&Bytes::from_static(b"command")).unwrap(),
        },
        WireEntry {
            id: id(302),
            payload: WirePayload::Membership(membership()),
        },
    ]
}

fn append() -> AppendRequest {
    AppendRequest {
        vote: vote(),
        previous: Some(id(299)),
        previous_chain: Some(Digest([0xcc; 32])),
        entries: entries().try_into().unwrap(),
        committed: Some(id(298)),
    }
}

fn frame() -> SnapshotFrame {
    SnapshotFrame {
        vote: vote(),
        digest: Digest([0xdd; 32]),
        bytes_total: 300_000,
        offset: 262_144,
        bytes: b"frame".to_vec().try_into().unwrap(),
    }
}

fn snapshot() -> SnapshotHead {
    SnapshotHead {
        last: Some(id(302)),
        chain: Digest([0xcc; 32]),
        membership_at: Some(id(302)),
        membership: membership(),
    }
}

/// Encodes, checks that decoding gives the same back, and returns the hex.
fn pin<T: Body + Clone + PartialEq + std::fmt::Debug>(value: &T) -> String {
    let bytes = encode(value.clone());
    assert_eq!(&decode::<T>(&bytes).unwrap(), value);
    to_hex(&bytes)
}

fn samples() -> BTreeMap<&'static str, String> {
    let ballot = BallotRequest {
        vote: vote(),
        last: Some(id(302)),
        is_transfer: true,
    };
    let changed = TransferReply::VoteChanged {
        expected: vote(),
        actual: vote(),
    };
    let chains = entries()
        .iter()
        .fold(Digest::default(), |chain, entry| entry.chain(chain));
    let mut samples = BTreeMap::from([
        ("vote", pin(&vote())),
        ("committed", pin(&CommittedRecord { id: Some(id(302)) })),
        (
            "purged",
            pin(&PurgedRecord {
                id: id(302),
                chain: Some(Digest([0xcc; 32])),
            }),
        ),
        ("append_request", pin(&append())),
        ("append_reply_success", pin(&AppendReply::Success)),
        ("append_reply_partial", pin(&AppendReply::PartialSuccess(Some(id(300))))),
        ("append_reply_conflict", pin(&AppendReply::Conflict)),
        ("append_reply_higher_vote", pin(&AppendReply::HigherVote(vote()))),
        ("ballot_request", pin(&ballot)),
        (
            "ballot_reply",
            pin(&BallotReply {
                vote: vote(),
                is_granted: true,
                last: None,
            }),
        ),
        (
            "transfer_request",
            pin(&TransferRequest {
                vote: vote(),
                to: RaftNodeId(2),
                last: Some(id(302)),
            }),
        ),
        ("transfer_reply_accepted", pin(&TransferReply::Accepted)),
        ("transfer_reply_vote_changed", pin(&changed)),
        (
            "transfer_reply_not_flushed",
            pin(&TransferReply::LogNotFlushed {
                expected: Some(id(302)),
                actual: None,
            }),
        ),
        ("snapshot_frame", pin(&frame())),
        (
            "snapshot_reply_continue",
            pin(&SnapshotReply::Continue { offset: 262_144 }),
        ),
        ("snapshot_reply_done", pin(&SnapshotReply::Done { vote: vote() })),
        ("snapshot_head", pin(&snapshot())),
        ("chain_of_three_entries", chains.to_hex()),
    ]);
    for (name, entry) in ["entry_blank", "entry_command", "entry_membership"]
        .into_iter()
        .zip(entries())
    {
        samples.insert(
            name,
            pin(&EntryRecord {
                chain: Digest([0xcc; 32]),
                entry,
            }),
        );
    }
    samples
}

#[test]
fn encodings_are_those_of_the_vectors() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/raft_v1.txt");
    let text: String = samples().iter().map(|(name, hex)| format!("{name} {hex}\n")).collect();
    let pinned = std::fs::read_to_string(&path).unwrap_or_default();
    for (line, want) in text.lines().zip(pinned.lines()) {
        assert_eq!(line, want, "{} differs", path.display());
    }
    assert_eq!(
        text.lines().count(),
        pinned.lines().count(),
        "{} should be:\n{text}",
        path.display()
    );
}

#[test]
fn other_versions_are_refused() {
    for version in [0, 2, 255] {
        let mut bytes = encode(vote());
        bytes[0] = version;
        assert_eq!(
            decode::<WireVote>(&bytes),
            Err(DecodeError::Invalid("unknown version of the Raft encoding"))
        );
    }
}

#[test]
fn contradictions_are_refused() {
    let gap = {
        let mut entries = entries();
        entries.remove(1);
        AppendRequest {
            entries: entries.try_into().unwrap(),
            ..append()
        }
    };
    let later_term = AppendRequest {
        vote: WireVote {
            term: Term(5),
            ..vote()
        },
        ..append()
    };
    let chain_alone = AppendRequest {
        previous: None,
        entries: vec![].try_into().unwrap(),
        ..append()
    };
    for request in [gap, later_term, chain_alone] {
        assert!(matches!(
            decode::<AppendRequest>(&encode(request)),
            Err(DecodeError::Invalid(_))
        ));
    }
    let past_the_end = SnapshotFrame {
        offset: 299_999,
        ..frame()
    };
    let overflowing = SnapshotFrame {
        offset: u64::MAX,
        ..frame()
    };
    let empty = SnapshotFrame {
        bytes: Blob::new(),
        ..frame()
    };
    for frame in [past_the_end, overflowing, empty] {
        assert!(matches!(
            decode::<SnapshotFrame>(&encode(frame)),
            Err(DecodeError::Invalid(_))
        ));
    }
    assert!(matches!(
        decode::<CommittedRecord>(&encode(CommittedRecord { id: Some(id(0)) })),
        Err(DecodeError::Invalid(_))
    ));
    let mut twice = membership();
    twice.members = vec![
        WireMember {
            id: RaftNodeId(1),
            device: DeviceId([1; 32])
        };
        2
    ]
    .try_into()
    .unwrap();
    let entry = WireEntry {
        id: id(1),
        payload: WirePayload::Membership(twice),
    };
    let record = EntryRecord {
        chain: Digest::default(),
        entry,
    };
    assert!(matches!(
        decode::<EntryRecord>(&encode(record)),
        Err(DecodeError::Invalid(_))
    ));
}

#[test]
fn greatest_values_fit_their_bounds() {
    let greatest = WireLogId {
        term: Term(u64::MAX),
        leader: RaftNodeId(u64::MAX),
        index: LogIndex(u64::MAX),
    };
    let vote = WireVote {
        term: Term(u64::MAX),
        candidate: RaftNodeId(u64::MAX),
        is_committed: true,
    };
    let digest = Digest([0xff; 32]);
    let command = WireEntry {
        id: greatest,
        payload: WirePayload::command(&vec![0xff; COMMAND_BYTES_MAX].into()).unwrap(),
    };
    // `encode` asserts the bounds.
    let ids: Vec<_> = (0..MEMBERS_MAX as u64)
        .map(|number| RaftNodeId(u64::MAX - 1_000 + number))
        .collect();
    let members = ids.iter().map(|id| WireMember {
        id: *id,
        device: DeviceId([0xff; 32]),
    });
    let members = WireMembership::new(vec![ids.clone(), ids.clone()], members.collect());
    let membership = WireEntry {
        id: greatest,
        payload: WirePayload::Membership(members.clone()),
    };
    for entry in [command, membership] {
        let record = EntryRecord { chain: digest, entry };
        assert!(encode(record.clone()).len() <= LOG_ENTRY_BYTES_MAX);
        pin(&record);
    }
    pin(&PurgedRecord {
        id: greatest,
        chain: Some(digest),
    });
    pin(&CommittedRecord { id: Some(greatest) });
    let reply_lens = [
        pin(&AppendReply::PartialSuccess(Some(greatest))).len(),
        pin(&BallotReply {
            vote,
            is_granted: true,
            last: Some(greatest),
        })
        .len(),
        pin(&TransferReply::LogNotFlushed {
            expected: Some(greatest),
            actual: Some(greatest),
        })
        .len(),
        pin(&TransferReply::VoteChanged {
            expected: vote,
            actual: vote,
        })
        .len(),
        pin(&SnapshotReply::Done { vote }).len(),
    ];
    assert!(
        reply_lens
            .into_iter()
            .all(|hex_len| hex_len / 2 <= crate::raft::REPLY_BYTES_MAX)
    );
    pin(&TransferRequest {
        vote,
        to: RaftNodeId(u64::MAX),
        last: Some(greatest),
    });
    pin(&BallotRequest {
        vote,
        last: Some(greatest),
        is_transfer: true,
    });
    let frame = SnapshotFrame {
        vote,
        digest,
        bytes_total: SNAPSHOT_BYTES_MAX,
        offset: 1 << 25,
        bytes: vec![0xff; SNAPSHOT_FRAME_BYTES_MAX].try_into().unwrap(),
    };
    pin(&frame);
}

#[test]
fn chain_covers_every_part_of_an_entry() {
    let entry = entries().remove(1);
    let other = |change: fn(&mut WireEntry)| {
        let mut entry = entry.clone();
        change(&mut entry);
        entry.chain(Digest::default())
    };
    let chains = [
        entry.chain(Digest::default()),
        entry.chain(Digest([1; 32])),
        other(|entry| entry.id.term = Term(5)),
        other(|entry| entry.id.leader = RaftNodeId(5)),
        other(|entry| entry.id.index = LogIndex(5)),
        other(|entry| entry.payload = WirePayload::Blank),
        other(|entry| entry.payload = WirePayload::command(&Bytes::from_static(b"Command")).unwrap()),
        other(|entry| entry.payload = WirePayload::Membership(membership())),
    ];
    let distinct: std::collections::BTreeSet<_> = chains.iter().collect();
    assert_eq!(distinct.len(), chains.len());
}

proptest! {
    #[test]
    fn bytes_from_outside_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), valid in any::<prop::sample::Index>(), at in any::<prop::sample::Index>()) {
        // Random bytes, and a valid encoding with one byte changed.
        let mut damaged = vec![encode(append()), encode(frame()), encode(snapshot())].swap_remove(valid.index(3));
        let place = at.index(damaged.len());
        damaged[place] ^= bytes.first().copied().unwrap_or(1).max(1);
        for bytes in [&bytes, &damaged] {
            let _ = decode::<AppendRequest>(bytes);
            let _ = decode::<SnapshotFrame>(bytes);
            let _ = decode::<SnapshotHead>(bytes);
            let _ = decode::<EntryRecord>(bytes);
            let _ = decode::<BallotRequest>(bytes);
            let _ = decode::<TransferReply>(bytes);
        }
    }
}
