//! Claims about proof files.

use super::*;
use crate::{
    batch::CertifiedBatch,
    block::FinalityError,
    certificate::CertificateError,
    codec::{Blob, DecodeError, encode},
    entry::Action,
    global_queue::{MachineEvent, What},
    ids::{ClusterId, HolderCounter, TaskId},
    task::{Scope, Task, TaskState},
    testing::{Fleet, Ledger, place_in, task},
    verdict::{Reason, Verdict},
};

const C1: ClusterId = ClusterId(0);

/// A task that was submitted, assigned, claimed, completed, and whose cancel came too late; every
/// other block is final through the one above. With company in each batch and block.
fn history(validators: u32, tail: u32) -> (Ledger, TaskId) {
    let mut ledger = Ledger::new(Fleet::new(2, 3, validators));
    ledger.without_finalization = (0..40).filter(|height| height % 2 == 1).map(Height).collect();
    let beat = ledger.beat(C1);
    ledger.block(vec![beat], 100);
    let sample = Task {
        places: vec![place_in(0)].try_into().unwrap(),
        payload: Blob::try_from(b"what the on-board software reads".to_vec()).unwrap(),
        ..task("sample")
    };
    let submit = ledger.submit("op1", C1, Scope::Fleet, &sample);
    let id = TaskId::from(submit.id(&ledger.fleet.chain));
    step(&mut ledger, vec![submit]);
    let row = ledger.queue.task(&id).unwrap();
    let claim = Action::Claim {
        task: id,
        assignment: row.standing.assignment,
        counter: HolderCounter(1),
    };
    let claim = ledger.entry("c1-2", C1, Scope::Fleet, claim);
    step(&mut ledger, vec![claim]);
    let fence = ledger.queue.task(&id).unwrap().standing.life.holder.unwrap().fence;
    let done = ledger.entry("c1-2", C1, Scope::Fleet, Action::Complete { task: id, fence });
    step(&mut ledger, vec![done]);
    let cancel = ledger.entry("op1", C1, Scope::Fleet, Action::Cancel { task: id });
    step(&mut ledger, vec![cancel]);
    for _ in 0..tail {
        ledger.block(vec![], 100);
    }
    // The last block has a finalization of its own, or its proof would have to wait.
    ledger.without_finalization.remove(&ledger.queue.height());
    (ledger, id)
}

/// A block with these entries between others, beside another cluster's batch.
fn step(ledger: &mut Ledger, entries: Vec<SignedEntry>) {
    let mut rows = Vec::new();
    for (i, entry) in entries.into_iter().enumerate() {
        let height = ledger.queue.height();
        rows.push(ledger.submit("c1-1", C1, Scope::Cluster, &task(&format!("a{height}{i}"))));
        rows.push(entry);
        rows.push(ledger.submit("c1-1", C1, Scope::Cluster, &task(&format!("b{height}{i}"))));
    }
    let other = ledger.beat(ClusterId(1));
    let batch = ledger.granted(C1, rows);
    ledger.block(vec![other, batch], 100);
}

fn built(ledger: &Ledger, id: &TaskId) -> TaskProof {
    build_proof(id, &ledger.queue, ledger).unwrap()
}

#[test]
fn whole_life_of_a_task_is_proven_with_the_genesis_file_alone() {
    let (ledger, id) = history(4, 3);
    let bytes = encode(&built(&ledger, &id));
    let report = verify(&bytes, &ledger.fleet.genesis).unwrap();
    assert_eq!((report.task_id, report.state), (id, Some(TaskState::Completed)));
    assert_eq!(report.author_label.as_str(), "op1");
    assert_eq!(report.task, *ledger.queue.task(&id).unwrap().task());
    let words: Vec<&str> = report.events.iter().map(ProvenEvent::word).collect();
    assert_eq!(words, ["submit", "assigned", "claim", "complete", "cancel"]);
    for (proven, kept) in report
        .events
        .iter()
        .zip(&ledger.queue.task(&id).unwrap().standing.events)
    {
        assert_eq!((proven.what, proven.height), (kept.what, kept.height));
        assert_eq!(proven.outcome, Some((kept.verdict, kept.state)));
        assert_eq!(proven.time, ledger.blocks[&kept.height].block.header.time);
        assert_eq!(proven.entry.as_ref().map(|e| e.id), kept.entry.map(|e| e.id));
    }
    assert_eq!(report.events[1].assigned_to(), Some(C1));
    assert!(matches!(
        report.events[1].what,
        What::Machine(MachineEvent::Assigned { .. })
    ));
    assert_eq!(report.events[2].entry.as_ref().unwrap().author_label.as_str(), "c1-2");
    let late = Verdict::Rejected(Reason::WrongState(TaskState::Completed));
    assert_eq!(report.events[4].outcome.unwrap().0, late, "ordered, and rejected");
}

/// Verifies the file with each byte changed by `masks`; every change must make it worthless.
fn assert_no_flip_survives(bytes: &[u8], ledger: &Ledger, masks: impl Fn(usize) -> Vec<u8>) {
    assert!(verify(bytes, &ledger.fleet.genesis).is_ok());
    for at in 0..bytes.len() {
        for mask in masks(at) {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= mask;
            assert!(
                verify(&flipped, &ledger.fleet.genesis).is_err(),
                "mask {mask:#04x} at byte {at} of {}",
                bytes.len()
            );
        }
    }
}

#[test]
fn every_flipped_bit_makes_the_file_worthless() {
    // The smallest fleet and the shortest life: every bit of the file can be tried.
    let mut ledger = Ledger::new(Fleet::new(1, 1, 1));
    let beat = ledger.beat(C1);
    ledger.block(vec![beat], 100);
    let entries = vec![
        ledger.submit("op1", C1, Scope::Fleet, &task("a")),
        ledger.submit("op1", C1, Scope::Fleet, &task("b")),
    ];
    let id = TaskId::from(entries[1].id(&ledger.fleet.chain));
    let batch = ledger.granted(C1, entries);
    ledger.block(vec![batch], 100);
    let cancel = ledger.entry("op1", C1, Scope::Fleet, Action::Cancel { task: id });
    let batch = ledger.granted(C1, vec![cancel]);
    ledger.block(vec![batch], 100);
    ledger.block(vec![], 100);
    // Submission and assignment are decided, the cancel is ordered and pending.
    let bytes = encode(&built(&ledger, &id));
    assert_no_flip_survives(&bytes, &ledger, |_| (0..8).map(|bit| 1 << bit).collect());
}

#[test]
fn changed_byte_of_a_longer_life_makes_the_file_worthless() {
    for (validators, tail) in [(1, 0), (1, 1), (4, 2)] {
        let (ledger, id) = history(validators, tail);
        let bytes = encode(&built(&ledger, &id));
        assert_no_flip_survives(&bytes, &ledger, |at| vec![1 << (at % 8)]);
        for end in 0..bytes.len() {
            assert!(verify(&bytes[..end], &ledger.fleet.genesis).is_err());
        }
    }
}

#[test]
fn event_whose_outcome_root_is_not_final_is_ordered_and_pending() {
    for tail in 0..3 {
        let (ledger, id) = history(1, tail);
        let report = verify(&encode(&built(&ledger, &id)), &ledger.fleet.genesis).unwrap();
        let pending: Vec<&str> = report
            .events
            .iter()
            .filter(|event| event.outcome.is_none())
            .map(ProvenEvent::word)
            .collect();
        let want: [&[&str]; 3] = [&["complete", "cancel"], &["cancel"], &[]];
        assert_eq!(pending, want[tail as usize]);
        let state = [TaskState::Claimed, TaskState::Completed, TaskState::Completed];
        assert_eq!(report.state, Some(state[tail as usize]));
    }
}

#[test]
fn decision_of_the_machinery_waits_for_its_root() {
    let mut ledger = Ledger::new(Fleet::new(1, 1, 1));
    let beat = ledger.beat(C1);
    ledger.block(vec![beat], 100);
    let entry = ledger.submit("op1", C1, Scope::Fleet, &task("a"));
    let id = TaskId::from(entry.id(&ledger.fleet.chain));
    let batch = ledger.granted(C1, vec![entry]);
    ledger.block(vec![batch], 100);
    let words = |ledger: &Ledger| {
        let report = verify(&encode(&built(ledger, &id)), &ledger.fleet.genesis).unwrap();
        (
            report.events.iter().map(ProvenEvent::word).collect::<Vec<_>>(),
            report.state,
        )
    };
    assert_eq!(words(&ledger), (vec!["submit"], None));
    ledger.block(vec![], 100);
    ledger.block(vec![], 100);
    assert_eq!(words(&ledger), (vec!["submit", "assigned"], Some(TaskState::Assigned)));
}

#[test]
fn file_of_another_fleet_is_refused() {
    let (ledger, id) = history(1, 2);
    let bytes = encode(&built(&ledger, &id));
    let other = Fleet::new(3, 3, 1);
    assert!(matches!(
        verify(&bytes, &other.genesis),
        Err(ProofError::WrongFleet { .. })
    ));
    assert_eq!(
        verify(b"", &ledger.fleet.genesis),
        Err(ProofError::Decode(DecodeError::Malformed))
    );
}

#[test]
fn finalization_of_too_few_validators_is_refused() {
    let (ledger, id) = history(4, 2);
    let mut proof = built(&ledger, &id);
    let mut segments = proof.segments.clone().into_inner();
    let signers = &mut segments[0].finality.finalization.signers;
    signers.signatures = signers.signatures[..2].to_vec().try_into().unwrap();
    signers.bitmap = vec![0b0011].try_into().unwrap();
    proof.segments = segments.try_into().unwrap();
    assert!(matches!(
        verify_proof(&proof, &ledger.fleet.genesis),
        Err(ProofError::NotFinal {
            error: FinalityError::Certificate(CertificateError::TooFew { got: 2, needed: 3 }),
            ..
        })
    ));
}

#[test]
fn parts_of_another_tasks_proof_do_not_fit() {
    let mut ledger = Ledger::new(Fleet::new(1, 1, 1));
    let beat = ledger.beat(C1);
    ledger.block(vec![beat], 100);
    let entries = ["mine", "theirs"].map(|key| ledger.submit("op1", C1, Scope::Fleet, &task(key)));
    let ids = entries
        .each_ref()
        .map(|entry| TaskId::from(entry.id(&ledger.fleet.chain)));
    let batch = ledger.granted(C1, entries.to_vec());
    ledger.block(vec![batch], 100);
    for _ in 0..3 {
        ledger.block(vec![], 100);
    }
    let genesis = &ledger.fleet.genesis;
    let [mine, theirs] = ids.map(|id| built(&ledger, &id));
    assert_eq!(mine.segments, theirs.segments, "both stand in one block");
    let with = |events: Vec<EventProof>| TaskProof {
        events: events.try_into().unwrap(),
        ..mine.clone()
    };
    let forged = TaskProof {
        submit: theirs.submit.clone(),
        ..mine.clone()
    };
    assert!(matches!(
        verify_proof(&forged, genesis),
        Err(ProofError::Mismatch(0, _))
    ));
    let forged = with(vec![mine.events[0].clone(), theirs.events[1].clone()]);
    let of_another = Err(ProofError::Mismatch(1, "of another task"));
    assert_eq!(verify_proof(&forged, genesis), of_another);
    let signed = |event: &EventProof, submit: &SignedEntry| match event.clone() {
        EventProof::Entry {
            height,
            leaf,
            leaf_path,
            batch,
            batch_path,
            outcome,
            ..
        } => EventProof::Entry {
            signed: Some(SignedHeader {
                header: submit.header.clone(),
                signature: submit.signature,
            }),
            height,
            leaf,
            leaf_path,
            batch,
            batch_path,
            outcome,
        },
        machine @ EventProof::Machine { .. } => machine,
    };
    let forged = with(vec![mine.events[0].clone(), signed(&theirs.events[0], &theirs.submit)]);
    assert_eq!(verify_proof(&forged, genesis), of_another);
    let first = with(vec![signed(&mine.events[0], &mine.submit)]);
    assert_eq!(verify_proof(&first, genesis), Err(ProofError::OutOfOrder(0)));
    let twice = with(vec![mine.events[0].clone(), mine.events[0].clone()]);
    assert_eq!(verify_proof(&twice, genesis), Err(ProofError::OutOfOrder(1)));
    let headless = with(mine.events[1..].to_vec());
    assert_eq!(verify_proof(&headless, genesis), Err(ProofError::OutOfOrder(0)));
    assert_eq!(verify_proof(&with(vec![]), genesis), Err(ProofError::OutOfOrder(0)));
}

#[test]
fn genuine_parts_of_two_events_of_one_task_cannot_be_exchanged() {
    let mut ledger = Ledger::new(Fleet::new(1, 1, 1));
    let beat = ledger.beat(C1);
    ledger.block(vec![beat], 100);
    let entry = ledger.submit("op1", C1, Scope::Fleet, &task("a"));
    let id = TaskId::from(entry.id(&ledger.fleet.chain));
    let batch = ledger.granted(C1, vec![entry]);
    ledger.block(vec![batch], 100);
    // Both about the task, in one batch: the first is granted, the second comes too late.
    let cancels = [1, 2].map(|_| ledger.entry("op1", C1, Scope::Fleet, Action::Cancel { task: id }));
    let batch = ledger.granted(C1, cancels.to_vec());
    ledger.block(vec![batch], 100);
    for _ in 0..2 {
        ledger.block(vec![], 100);
    }
    let genesis = &ledger.fleet.genesis;
    let proof = built(&ledger, &id);
    assert!(verify_proof(&proof, genesis).is_ok());
    let exchanged = |change: fn(&mut EventProof, &mut EventProof)| {
        let mut events = proof.events.to_vec();
        let (before, last) = events.split_at_mut(3);
        change(&mut before[2], &mut last[0]);
        let events = events.try_into().unwrap();
        verify_proof(
            &TaskProof {
                events,
                ..proof.clone()
            },
            genesis,
        )
    };
    let signatures = exchanged(|a, b| match (a, b) {
        (EventProof::Entry { signed: a, .. }, EventProof::Entry { signed: b, .. }) => core::mem::swap(a, b),
        _ => panic!("both are entries"),
    });
    assert_eq!(
        signatures,
        Err(ProofError::Mismatch(2, "the place is that of another entry"))
    );
    let outcomes = exchanged(|a, b| match (a, b) {
        (EventProof::Entry { outcome: a, .. }, EventProof::Entry { outcome: b, .. }) => core::mem::swap(a, b),
        _ => panic!("both are entries"),
    });
    assert_eq!(
        outcomes,
        Err(ProofError::Mismatch(2, "the outcome is that of another entry"))
    );
}

#[test]
fn events_that_descend_are_refused() {
    let (ledger, id) = history(1, 2);
    let mut proof = built(&ledger, &id);
    let mut events = proof.events.to_vec();
    let last = events.len() - 1;
    events.swap(last - 1, last);
    proof.events = events.try_into().unwrap();
    assert_eq!(
        verify_proof(&proof, &ledger.fleet.genesis),
        Err(ProofError::OutOfOrder(last))
    );
}

#[test]
fn missing_or_damaged_store_is_named_and_proves_nothing() {
    let (ledger, id) = history(1, 2);
    let unknown = TaskId([9; 32]);
    assert_eq!(
        build_proof(&unknown, &ledger.queue, &ledger),
        Err(ProveError::UnknownTask(unknown))
    );
    let mut without_block = ledger.clone();
    without_block.blocks.remove(&Height(2));
    let error = build_proof(&id, &without_block.queue, &without_block).unwrap_err();
    assert_eq!(error, ProveError::MissingBlock(Height(2)));
    let mut without_outcomes = ledger.clone();
    without_outcomes.outcomes.remove(&Height(2));
    let error = build_proof(&id, &without_outcomes.queue, &without_outcomes).unwrap_err();
    assert_eq!(error, ProveError::MissingOutcomes(Height(2)));
    let mut without_batch = ledger.clone();
    let digest = ledger.blocks[&Height(2)].block.refs[1].digest;
    let batch: CertifiedBatch = without_batch.batches.remove(&digest).unwrap();
    let error = build_proof(&id, &without_batch.queue, &without_batch).unwrap_err();
    assert_eq!(error, ProveError::MissingBatch(digest));
    let mut damaged = batch;
    damaged.entries = BoundedVec::new();
    without_batch.batches.insert(digest, damaged);
    let error = build_proof(&id, &without_batch.queue, &without_batch).unwrap_err();
    assert_eq!(error, ProveError::Contradiction(Height(2)));
}
