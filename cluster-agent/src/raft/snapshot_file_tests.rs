use proptest::prelude::*;

use super::*;
use crate::raft::store::snapshot::{DraftName, MemorySnapshots, SnapshotStore};

fn head() -> SnapshotHead {
    SnapshotHead {
        last: None,
        chain: Digest([5; 32]),
        membership_at: None,
        membership: codec::WireMembership::new(vec![vec![]], vec![]),
    }
}

fn written(pieces: &[(u8, Vec<u8>)]) -> Box<dyn SnapshotDraft> {
    let mut draft = MemorySnapshots::default().draft(DraftName::Own).unwrap();
    let mut writer = SnapshotWriter::begin(&mut *draft, head()).unwrap();
    for (section, bytes) in pieces {
        writer.put(*section, bytes).unwrap();
    }
    let digest = writer.finish().unwrap();
    assert_eq!(verify(&*draft), Ok(digest));
    draft
}

fn read(bytes: &dyn SnapshotBytes) -> Result<Vec<(u8, Vec<u8>)>, StoreError> {
    let (mut reader, found) = SnapshotReader::begin(bytes)?;
    assert_eq!(found, head());
    let mut pieces = Vec::new();
    while let Some(piece) = reader.next()? {
        pieces.push(piece);
    }
    assert_eq!(reader.next(), Ok(None));
    Ok(pieces)
}

#[test]
fn what_packs_is_packed() {
    let draft = written(&[(1, vec![7; 100_000])]);
    assert!(draft.bytes_len() < 2_000, "{} bytes", draft.bytes_len());
}

#[test]
fn piece_above_the_bound_or_of_a_reserved_section_is_refused() {
    let mut draft = MemorySnapshots::default().draft(DraftName::Own).unwrap();
    let mut writer = SnapshotWriter::begin(&mut *draft, head()).unwrap();
    for (section, len) in [(0, 1), (255, 1), (1, FRAME_BYTES_MAX + 1)] {
        assert!(matches!(writer.put(section, &vec![1; len]), Err(StoreError::Misuse(_))));
    }
}

proptest! {
    #[test]
    fn pieces_come_back_as_they_were_put(
        pieces in prop::collection::vec((1u8..255, prop::collection::vec(any::<u8>(), 0..2_000)), 0..20),
    ) {
        let draft = written(&pieces);
        prop_assert_eq!(read(&*draft).unwrap(), pieces);
    }

    #[test]
    fn damage_is_found_by_the_digest_and_reading_it_never_panics(
        pieces in prop::collection::vec((1u8..255, prop::collection::vec(any::<u8>(), 0..500)), 0..6),
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
        cut in any::<prop::sample::Index>(),
    ) {
        let draft = written(&pieces);
        let mut whole = vec![0; draft.bytes_len() as usize];
        draft.read_at(0, &mut whole).unwrap();
        let place = at.index(whole.len());
        whole[place] ^= flip;
        for bytes in [&whole[..], &whole[..cut.index(whole.len())]] {
            let mut damaged = MemorySnapshots::default().draft(DraftName::Own).unwrap();
            damaged.append(bytes).unwrap();
            prop_assert!(matches!(verify(&*damaged), Err(StoreError::Corrupt(_))));
            // Behind the digest stand checksums of their own.
            if let Ok((mut reader, _)) = SnapshotReader::begin(&*damaged) {
                while let Ok(Some(_)) = reader.next() {}
            }
        }
    }
}
