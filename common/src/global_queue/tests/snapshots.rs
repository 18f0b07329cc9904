//! The state as bytes.

use super::*;

fn busy() -> Ledger {
    let mut ledger = ledger();
    let id = assigned(&mut ledger, "a");
    let fence = claim(&mut ledger, "c1-1", id);
    let done = ledger.entry("c1-1", C1, Scope::Fleet, start(id, fence));
    enter_one(&mut ledger, C1, done);
    submit(&mut ledger, C2, Scope::Cluster, &task("own"));
    let mut linked = task("linked");
    linked.after = vec![id].try_into().unwrap();
    linked.deadline = Some(ledger.queue.time().plus_ms(60_000));
    submit(&mut ledger, C3, Scope::Fleet, &linked);
    // One that left, of each scope.
    let gone = [
        assigned(&mut ledger, "gone"),
        submit(&mut ledger, C2, Scope::Cluster, &task("gone")),
    ];
    for id in gone {
        let entry = ledger.entry("op1", C2, row(&ledger, &id).scope(), Action::Cancel { task: id });
        assert_eq!(enter_one(&mut ledger, C2, entry), Verdict::Granted);
    }
    let short = Retention { rows: 0, ..RETENTION };
    ledger.queue = ledger.queue.clone().with_retention(short);
    ledger.block(vec![], 100);
    let beat = ledger.beat(C2);
    ledger.block(vec![beat], 100);
    ledger.queue = ledger.queue.clone().with_retention(RETENTION);
    assert!(gone.iter().all(|id| ledger.queue.retired(id).is_some()));
    ledger
}

#[test]
fn restored_state_is_equal_in_everything_and_goes_on_alike() {
    let mut ledger = busy();
    let bytes = ledger.queue.to_bytes();
    let restored = GlobalQueue::from_bytes(&bytes, &ledger.fleet.genesis).unwrap();
    assert_eq!(restored, ledger.queue);
    assert_eq!(restored.to_bytes(), bytes);
    restored.check_invariants();
    let mut other = ledger.clone();
    other.queue = restored;
    assert_eq!(ledger.block(vec![], 90_000), other.block(vec![], 90_000));
    assert_eq!(ledger.queue, other.queue);
}

#[test]
fn damaged_bytes_are_refused_whichever_bit_is_flipped() {
    let ledger = busy();
    let bytes = ledger.queue.to_bytes();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(
            GlobalQueue::from_bytes(&damaged, &ledger.fleet.genesis).is_err(),
            "byte {at} of {}",
            bytes.len()
        );
    }
    for end in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        assert!(GlobalQueue::from_bytes(&bytes[..end], &ledger.fleet.genesis).is_err());
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert_eq!(
        GlobalQueue::from_bytes(&longer, &ledger.fleet.genesis),
        Err(RestoreError::Malformed)
    );
}

#[test]
fn state_of_another_fleet_or_version_is_refused() {
    let ledger = ledger();
    let mut bytes = ledger.queue.to_bytes();
    let other = Fleet::new(2, 3, 1);
    assert!(matches!(
        GlobalQueue::from_bytes(&bytes, &other.genesis),
        Err(RestoreError::WrongFleet { .. })
    ));
    bytes[0] = 3;
    assert_eq!(
        GlobalQueue::from_bytes(&bytes, &ledger.fleet.genesis),
        Err(RestoreError::Version { got: 3 })
    );
}

fn pieces(queue: &GlobalQueue) -> Vec<(Section, Vec<u8>)> {
    let mut pieces = Vec::new();
    let put = |section, bytes: &[u8]| {
        pieces.push((section, bytes.to_vec()));
        Ok::<_, std::convert::Infallible>(())
    };
    queue.write_sections(put).unwrap();
    pieces
}

fn restore(pieces: &[(Section, Vec<u8>)], genesis: &crate::genesis::Genesis) -> Result<GlobalQueue, RestoreError> {
    let mut restoring = Restoring::new(genesis);
    for (section, bytes) in pieces {
        restoring.add(*section, bytes)?;
    }
    restoring.finish()
}

#[test]
fn state_restored_from_pieces_is_equal_and_a_piece_missing_doubled_or_out_of_order_is_refused() {
    let ledger = busy();
    let (genesis, all) = (&ledger.fleet.genesis, pieces(&ledger.queue));
    assert_eq!(restore(&all, genesis).as_ref(), Ok(&ledger.queue));
    for at in 0..all.len() {
        let mut missing = all.clone();
        missing.remove(at);
        assert!(restore(&missing, genesis).is_err(), "without piece {at}");
        let mut doubled = all.clone();
        doubled.insert(at, all[at].clone());
        assert!(restore(&doubled, genesis).is_err(), "piece {at} twice");
        let mut swapped = all.clone();
        swapped.swap(at, (at + 1) % all.len());
        assert!(restore(&swapped, genesis).is_err(), "piece {at} later");
    }
}

#[test]
fn pieces_of_a_large_state_stay_small() {
    let mut ledger = ledger();
    for number in 0..40 {
        let mut new = task(&format!("large{number}"));
        new.payload = vec![7; 8_000].try_into().unwrap();
        submit(&mut ledger, C2, Scope::Cluster, &new);
    }
    let all = pieces(&ledger.queue);
    assert!(all.iter().filter(|(section, _)| *section == Section::Tasks).count() > 1);
    assert!(all.iter().all(|(_, bytes)| bytes.len() < PIECE_BYTES + 64 * 1024));
    assert_eq!(restore(&all, &ledger.fleet.genesis), Ok(ledger.queue));
}
