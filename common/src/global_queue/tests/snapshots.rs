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
    bytes[0] = 2;
    assert_eq!(
        GlobalQueue::from_bytes(&bytes, &ledger.fleet.genesis),
        Err(RestoreError::Version { got: 2 })
    );
}
