//! Batches, blocks, certificates, outcomes and a proof.

use common::{
    batch::{BatchItem, CertifiedBatch, RosterChange},
    block::{Advance, AdvanceBatch, Block, FinalizedBlock, Link, ParentProof, filler_digest},
    certificate::{NullifyBallot, Vote},
    entry::Action,
    global_queue::{MachineEvent, Outcome, StaleReason},
    ids::{Assignment, Digest, EntryId, Epoch, Height, HolderCounter, TaskId, View},
    proof::build_proof,
    task::{Scope, Task, TaskState},
    testing::{BlockChain, ClusterLog, Fleet, Ledger, place_in, task},
    verdict::Verdict,
    wire::bft::{BatchNotice, Certificate},
};

use super::{C1, C2, Samples, TASK, tasks::verdicts};

/// A batch with a row of every verdict and a change of roster, and a beat after it.
pub fn two_batches(fleet: &Fleet) -> [CertifiedBatch; 2] {
    let mut log = ClusterLog::new(fleet, C1);
    let mut items: Vec<(Verdict, BatchItem)> = verdicts()
        .into_iter()
        .zip(1..)
        .map(|(verdict, number)| {
            let entry = fleet.entry("c1-2", C1, number, Scope::Fleet, Action::Cancel { task: TASK });
            (verdict, BatchItem::Author(entry))
        })
        .collect();
    let roster = fleet.roster(C1);
    items.push((Verdict::Granted, BatchItem::Roster(RosterChange { roster })));
    [log.batch_of(fleet, items), log.beat(fleet)]
}

pub fn batches(all: &mut impl Samples, fleet: &Fleet) {
    let [batch, beat] = two_batches(fleet);
    all.add("batch_header", batch.header.clone());
    all.add("attestation", fleet.attest(&batch.header, &fleet.roster(C1), 2));
    all.add(
        "batch_notice",
        BatchNotice {
            header: batch.header.clone(),
            attestations: batch.attestations.clone(),
        },
    );
    all.add("certified_batch", batch);
    all.add("certified_beat", beat);
}

/// Two blocks: with two references, and empty.
pub fn two_blocks(fleet: &Fleet) -> [Block; 2] {
    let batches = two_batches(fleet);
    let mut chain = BlockChain::new(fleet, Digest([0x11; 32]));
    [chain.block(fleet, &batches, 20), chain.block(fleet, &[], 1_000)]
}

/// A block whose finality is shown by a header and a filler above it.
pub fn finalized_from_above(fleet: &Fleet) -> FinalizedBlock {
    let [first, second] = two_blocks(fleet);
    let below = second.digest();
    let mut finalized = fleet.finalize(second.clone());
    let mut ballot = second.header.ballot();
    ballot.view = View(9);
    ballot.digest = filler_digest(Epoch(0), View(9), &below);
    finalized.block = first;
    finalized.proof.finalization = fleet.finalization(ballot);
    let filler = Link::Filler {
        epoch: Epoch(0),
        view: View(9),
        parent: below,
    };
    finalized.proof.above = vec![Link::Header(second.header), filler].try_into().unwrap();
    let verified = finalized.clone().verify(&fleet.chain, &fleet.set);
    assert!(verified.is_ok(), "the sample is genuine");
    finalized
}

pub fn blocks(all: &mut impl Samples, fleet: &Fleet) {
    let [first, second] = two_blocks(fleet);
    let mut last_of_epoch = second.clone();
    last_of_epoch.header.next_set = Some(Digest([7; 32]));
    all.add("block", first.clone());
    all.add("block_empty_last_of_epoch", last_of_epoch);
    all.add("proposal_on_genesis", fleet.propose(first.clone(), None));
    let mut skipping = second.clone();
    skipping.header.view = View(4);
    all.add(
        "proposal_on_notarization",
        fleet.propose(skipping, Some(first.header.ballot())),
    );
    let mut on_final = fleet.propose(second.clone(), None);
    on_final.parent_proof = ParentProof::Finalization(fleet.finalization(first.header.ballot()));
    all.add("proposal_on_finalization", on_final);
    all.add("finalized_block", fleet.finalize(first.clone()));
    all.add("finalized_block_from_above", finalized_from_above(fleet));
    let [batch, beat] = two_batches(fleet);
    all.add(
        "advance",
        Advance {
            batches: vec![AdvanceBatch::Full(batch), AdvanceBatch::Own(beat.digest(&fleet.chain))]
                .try_into()
                .unwrap(),
            finalized: fleet.finalize(first),
        },
    );
}

pub fn certificates(all: &mut impl Samples, fleet: &Fleet) {
    let ballot = two_blocks(fleet)[0].header.ballot();
    let nullify = NullifyBallot {
        epoch: Epoch(0),
        view: View(300),
    };
    all.add("vote_notarize", fleet.vote("v1", Vote::Notarize(ballot)));
    all.add("vote_finalize", fleet.vote("v2", Vote::Finalize(ballot)));
    all.add("vote_nullify", fleet.vote("v4", Vote::Nullify(nullify)));
    let (notarization, finalization) = (fleet.notarization(ballot), fleet.finalization(ballot));
    let nullification = fleet.nullification(View(300));
    all.add("notarization", notarization.clone());
    all.add("finalization", finalization.clone());
    all.add("nullification", nullification.clone());
    all.add("certificate_notarization", Certificate::Notarization(notarization));
    all.add("certificate_nullification", Certificate::Nullification(nullification));
    all.add("certificate_finalization", Certificate::Finalization(finalization));
}

/// A short history with a task that was claimed and completed; the last decision is pending.
pub fn ledger() -> Ledger {
    let mut ledger = Ledger::new(Fleet::new(2, 3, 4));
    ledger.without_finalization.insert(Height(3));
    let beat = ledger.beat(C1);
    ledger.block(vec![beat], 100);
    let sample = Task {
        places: vec![place_in(0)].try_into().unwrap(),
        ..task("sample")
    };
    let entries = vec![
        ledger.submit("op1", C1, Scope::Fleet, &sample),
        ledger.submit("c1-1", C1, Scope::Cluster, &task("own")),
    ];
    let id = TaskId::from(entries[0].id(&ledger.fleet.chain));
    let batch = ledger.granted(C1, entries);
    ledger.block(vec![batch], 100);
    let claim = Action::Claim {
        task: id,
        assignment: Assignment(1),
        counter: HolderCounter(1),
    };
    let claim = ledger.entry("c1-2", C1, Scope::Fleet, claim);
    let batch = ledger.granted(C1, vec![claim]);
    ledger.block(vec![batch], 100);
    let fence = ledger.queue.task(&id).unwrap().standing.life.holder.unwrap().fence;
    let done = ledger.entry("c1-2", C1, Scope::Fleet, Action::Complete { task: id, fence });
    let (batch, beat) = (ledger.granted(C1, vec![done]), ledger.beat(C2));
    ledger.block(vec![beat, batch], 4_000);
    ledger.block(vec![], 100);
    ledger
}

/// The task of [`ledger`].
pub fn ledgers_task(ledger: &Ledger) -> TaskId {
    let completed = |row: &&common::global_queue::Row| row.state() == TaskState::Completed;
    ledger.queue.tasks(None, 10).find(completed).unwrap().id
}

pub fn outcomes_and_proof(all: &mut impl Samples) {
    let stale = [
        None,
        Some(StaleReason::UnknownCluster),
        Some(StaleReason::OtherFounding),
        Some(StaleReason::NotNext),
        Some(StaleReason::OtherPredecessor),
        Some(StaleReason::OtherRoster),
        Some(StaleReason::OtherNextRoster),
        Some(StaleReason::ImpossibleHeight),
        Some(StaleReason::Misnamed),
    ];
    for (i, stale) in (0u32..).zip(stale) {
        all.add(&format!("outcome_batch_{i}"), Outcome::Batch { reference: i, stale });
    }
    all.add(
        "outcome_entry",
        Outcome::Entry {
            reference: 1,
            row: 255,
            id: EntryId([4; 32]),
            task: Some(TASK),
            verdict: Verdict::Late,
            state: Some(TaskState::Unknown),
        },
    );
    let machine = [
        MachineEvent::Assigned {
            cluster: C2,
            assignment: Assignment(300),
        },
        MachineEvent::Expired,
        MachineEvent::LinkedTaskEnded,
    ];
    for (what, state) in machine
        .into_iter()
        .zip([TaskState::Assigned, TaskState::Expired, TaskState::Failed])
    {
        let name = format!("outcome_{}", what.word().replace('-', "_"));
        all.add(
            &name,
            Outcome::Machine {
                task: TASK,
                what,
                state,
            },
        );
    }
    let ledger = ledger();
    let proof = build_proof(&ledgers_task(&ledger), &ledger.queue, &ledger).expect("everything is stored");
    assert!(common::proof::verify_proof(&proof, &ledger.fleet.genesis).is_ok());
    all.add("task_proof", proof);
}
