//! What is decided about an entry, and by whom.

use super::*;
use crate::{
    batch::BatchItem,
    crypto::preimage::Tag,
    entry::{Cause, EntryDraft, StaticFault, life::Holder},
    ids::{EntryNumber, KeyVersion, LogIndex},
    limits::NUMBER_WINDOW,
    task::{AfterCustody, Place},
    verdict::Reason,
};

fn rejected(reason: Reason) -> Verdict {
    Verdict::Rejected(reason)
}

/// Enters entries that are bad for ever beside a good one. Returns the outcome; the good one must be granted.
fn enter_bad(ledger: &mut Ledger, bad: Vec<SignedEntry>) -> BlockOutcome {
    let good = ledger.submit("op1", C1, Scope::Fleet, &task("good"));
    let count = bad.len();
    let mut entries = bad;
    entries.push(good);
    let batch = ledger.granted(C1, entries);
    // A certified batch is never refused for what one entry in it says.
    assert!(ledger.queue.verify_batch(batch.clone()).is_ok());
    let outcome = ledger.block(vec![batch], 100);
    assert_eq!(verdicts(&outcome)[count], Verdict::Granted);
    assert_eq!(ledger.queue.task_count(), 1);
    outcome
}

#[test]
fn statically_bad_entry_is_a_recorded_no_op_and_evidence() {
    let mut ledger = ledger();
    let fleet = ledger.fleet.clone();
    let good = fleet.submit("op1", C1, 50, Scope::Fleet, &task("x"));
    let mut bad_signature = good.clone();
    bad_signature.signature.s[0] ^= 1;
    let mut other_payload = good.clone();
    other_payload.payload = b"other".to_vec().try_into().unwrap();
    let mut other_length = good.clone();
    other_length.header.payload_len += 1;
    let other_cluster = fleet.submit("op1", C2, 50, Scope::Fleet, &task("x"));
    let too_large = fleet.submit("op1", C1, u64::MAX, Scope::Fleet, &task("x"));
    let off_the_globe = Task {
        places: vec![Place::Geo {
            lat_e7: 900_000_001,
            lon_e7: 0,
            alt_m: 0,
        }]
        .try_into()
        .unwrap(),
        ..task("x")
    };
    let off_the_globe = fleet.submit("op1", C1, 50, Scope::Fleet, &off_the_globe);
    let renewal = Action::Renew {
        counter: HolderCounter(1),
    };
    let renewal = fleet.entry("c1-1", C1, 50, Scope::Fleet, renewal);
    let unknown_key = SignedEntry::submit(
        &fleet.key("op1"),
        &fleet.chain,
        EntryDraft {
            key_version: KeyVersion(1),
            ..fleet.draft("op1", C1, 50, Scope::Fleet, Action::Submit)
        },
        &task("x"),
    );
    // Signed as a claim, presented as a cancel: the tag of the purpose is in the signed bytes.
    let id = TaskId(good.id(&fleet.chain).0);
    let claim = Action::Claim {
        task: id,
        assignment: Assignment(0),
        counter: HolderCounter(0),
    };
    let mut other_purpose = fleet.entry("op1", C1, 50, Scope::Fleet, claim);
    other_purpose.header.action = Action::Cancel { task: id };
    assert_ne!(Tag::Claim, Tag::Cancel);
    let bad = vec![
        bad_signature,
        other_payload,
        other_length,
        other_cluster,
        too_large,
        off_the_globe,
        renewal,
        unknown_key,
        other_purpose,
    ];
    let outcome = enter_bad(&mut ledger, bad);
    let mut want = [rejected(Reason::Malformed); 9];
    want[3] = rejected(Reason::WrongCluster);
    want[7] = rejected(Reason::UnknownKey);
    assert_eq!(verdicts(&outcome)[..9], want);
    let faults: Vec<RowFault> = outcome.evidence.iter().map(|evidence| evidence.fault).collect();
    assert_eq!(faults[0], RowFault::Static(StaticFault::BadSignature));
    assert!(matches!(
        faults[1],
        RowFault::Static(StaticFault::WrongPayload { got: 5, .. })
    ));
    assert!(matches!(faults[2], RowFault::Static(StaticFault::WrongPayload { .. })));
    assert_eq!(faults[3], RowFault::WrongCluster(C2));
    assert_eq!(
        faults[4],
        RowFault::Static(StaticFault::NumberTooLarge(EntryNumber(u64::MAX)))
    );
    assert!(matches!(faults[5], RowFault::Static(StaticFault::BadTask(_))));
    assert_eq!(faults[6..8], [RowFault::Renewal, RowFault::UnknownKey]);
    assert_eq!(faults[8], RowFault::Static(StaticFault::BadSignature));
    // None of them used up its number.
    assert_eq!(enter_one(&mut ledger, C1, good), Verdict::Granted);
}

#[test]
fn repeated_number_gets_the_same_answer_and_other_content_a_conflict() {
    let mut ledger = ledger();
    let entry = ledger.fleet.submit("op1", C1, 7, Scope::Fleet, &task("a"));
    let other = ledger.fleet.submit("op1", C1, 7, Scope::Fleet, &task("b"));
    let denied = ledger.fleet.submit("v1", C1, 1, Scope::Fleet, &task("a"));
    let got = enter(
        &mut ledger,
        C1,
        vec![entry.clone(), entry.clone(), other, denied.clone(), denied.clone()],
    );
    assert_eq!(
        got,
        [
            Verdict::Granted,
            Verdict::Granted,
            rejected(Reason::Conflict),
            rejected(Reason::Denied),
            rejected(Reason::Denied)
        ]
    );
    assert_eq!(ledger.queue.task_count(), 1);
    let id = entry.id(&ledger.fleet.chain);
    assert_eq!(
        ledger.queue.history(&id.into()).len(),
        2,
        "submit and assigned, once each"
    );
    let author = ledger.fleet.id("op1");
    assert_eq!(ledger.queue.highest_number(author, KeyVersion(0), C1), EntryNumber(7));
    assert_eq!(ledger.queue.highest_number(author, KeyVersion(0), C2), EntryNumber(0));
    let answer = ledger.queue.answer_to(&entry.header, id).unwrap();
    assert_eq!(answer.verdict, Verdict::Granted);
    let denied_answer = ledger
        .queue
        .answer_to(&denied.header, denied.id(&ledger.fleet.chain))
        .unwrap();
    assert_eq!(
        denied_answer.verdict,
        rejected(Reason::Denied),
        "a rejected entry used its number up"
    );
}

#[test]
fn number_below_the_window_is_refused_however_far_the_window_moved() {
    let mut ledger = ledger();
    let far = ledger.fleet.submit("op1", C1, 1 << 62, Scope::Fleet, &task("far"));
    let below = ledger
        .fleet
        .submit("op1", C1, (1 << 62) - NUMBER_WINDOW, Scope::Fleet, &task("below"));
    let inside = ledger
        .fleet
        .submit("op1", C1, (1 << 62) - NUMBER_WINDOW + 1, Scope::Fleet, &task("inside"));
    assert_eq!(
        enter(&mut ledger, C1, vec![far, below, inside]),
        [Verdict::Granted, rejected(Reason::NumberWindow), Verdict::Granted]
    );
}

#[test]
fn streams_of_two_clusters_are_apart() {
    let mut ledger = ledger();
    let one = ledger.fleet.submit("op1", C1, 1, Scope::Fleet, &task("a"));
    let two = ledger.fleet.submit("op1", C2, 1, Scope::Fleet, &task("b"));
    assert_eq!(enter_one(&mut ledger, C1, one), Verdict::Granted);
    assert_eq!(enter_one(&mut ledger, C2, two), Verdict::Granted);
}

#[test]
fn entry_first_committed_above_its_height_is_expired() {
    let mut ledger = ledger();
    contact(&mut ledger, &[C1]);
    for scope in [Scope::Fleet, Scope::Cluster] {
        for (below, want) in [(1, rejected(Reason::Expired)), (0, Verdict::Granted)] {
            // The batch stands at the height of this state; that height itself is in time.
            let not_after = ledger.queue.height().0 - below;
            let number = ledger.number("op1", C1);
            let draft = EntryDraft {
                not_after_height: Height(not_after),
                ..ledger.fleet.draft("op1", C1, number, scope, Action::Submit)
            };
            let name = format!("{below}{scope:?}");
            let entry = SignedEntry::submit(&ledger.fleet.key("op1"), &ledger.fleet.chain, draft, &task(&name));
            assert_eq!(enter_one(&mut ledger, C1, entry), want);
        }
    }
}

/// The ledger after `op1` was changed in the registry.
fn with_operator(change: fn(&mut crate::registry::Member)) -> Ledger {
    let mut ledger = ledger();
    let idx = ledger.fleet.idx("op1");
    let registry = ledger.queue.registry().clone().with_change(idx, change);
    ledger.queue.registry = Arc::new(registry);
    ledger
}

#[test]
fn entry_under_a_rotated_key_is_no_longer_accepted_and_is_no_fault() {
    let rotated = |member: &mut crate::registry::Member| {
        let key = crate::testing::device_key("op1's second key").public();
        member.keys.push(crate::crypto::AdmittedKey::admit(&key).unwrap());
    };
    let mut ledger = with_operator(rotated);
    let old = ledger.submit("op1", C1, Scope::Fleet, &task("old"));
    let batch = ledger.granted(C1, vec![old]);
    let outcome = ledger.block(vec![batch], 100);
    assert_eq!(verdicts(&outcome), [rejected(Reason::StaleKey)]);
    assert_eq!(
        outcome.evidence,
        [],
        "the signature is good under the key the author had"
    );
    let draft = EntryDraft {
        key_version: KeyVersion(1),
        ..ledger.fleet.draft("op1", C1, 1, Scope::Fleet, Action::Submit)
    };
    let key = crate::testing::device_key("op1's second key");
    let new = SignedEntry::submit(&key, &ledger.fleet.chain, draft, &task("new"));
    assert_eq!(enter_one(&mut ledger, C1, new), Verdict::Granted);
}

#[test]
fn suspended_or_revoked_author_is_denied() {
    use crate::registry::Status;
    let changes: [fn(&mut crate::registry::Member); 2] = [
        |member| member.status = Status::Suspended,
        |member| member.status = Status::Revoked { at: Height(1) },
    ];
    for change in changes {
        let mut ledger = with_operator(change);
        let submit = ledger.submit("op1", C1, Scope::Fleet, &task("a"));
        assert_eq!(enter_one(&mut ledger, C1, submit), rejected(Reason::Denied));
        let own = ledger.submit("c1-1", C1, Scope::Fleet, &task("b"));
        let id = TaskId::from(own.id(&ledger.fleet.chain));
        assert_eq!(enter_one(&mut ledger, C1, own), Verdict::Granted);
        let cancel = ledger.entry("op1", C1, Scope::Fleet, Action::Cancel { task: id });
        assert_eq!(enter_one(&mut ledger, C1, cancel), rejected(Reason::Denied));
    }
}

#[test]
fn author_without_the_role_cannot_submit_to_the_fleet() {
    let mut ledger = ledger();
    let entry = ledger.submit("v1", C1, Scope::Fleet, &task("a"));
    assert_eq!(enter_one(&mut ledger, C1, entry), rejected(Reason::Denied));
    assert_eq!(ledger.queue.task_count(), 0);
}

#[test]
fn one_task_key_is_one_task_of_the_fleet_through_whatever_cluster() {
    let mut ledger = ledger();
    let id = submit(&mut ledger, C1, Scope::Fleet, &task("a"));
    let same = ledger.submit("op1", C2, Scope::Fleet, &task("a"));
    assert_eq!(enter_one(&mut ledger, C2, same), rejected(Reason::DuplicateOf(id)));
    let other = Task {
        priority: 7,
        ..task("a")
    };
    let other = ledger.submit("op1", C3, Scope::Fleet, &other);
    assert_eq!(enter_one(&mut ledger, C3, other), rejected(Reason::KeyConflict(id)));
    let of_another_author = ledger.submit("c1-1", C1, Scope::Fleet, &task("a"));
    assert_eq!(enter_one(&mut ledger, C1, of_another_author), Verdict::Granted);
    assert_eq!(ledger.queue.task_count(), 2);
}

#[test]
fn cluster_scope_key_counts_within_its_cluster() {
    let mut ledger = ledger();
    let one = submit(&mut ledger, C1, Scope::Cluster, &task("a"));
    let two = submit(&mut ledger, C2, Scope::Cluster, &task("a"));
    assert_ne!(one, two);
    let fleet = submit(&mut ledger, C1, Scope::Fleet, &task("a"));
    assert_eq!(ledger.queue.task_count(), 3);
    assert_eq!(state(&ledger, &fleet), TaskState::Assigned);
    assert_eq!(state(&ledger, &one), TaskState::Queued, "never assigned");
    let duplicate = ledger.submit("op1", C1, Scope::Cluster, &task("a"));
    let verdict = rejected(Reason::DuplicateOf(one));
    assert_eq!(enter_as(&mut ledger, C1, verdict, duplicate), verdict);
}

#[test]
fn constraint_to_a_cluster_that_does_not_exist_is_refused() {
    let mut ledger = ledger();
    let mut nowhere = task("a");
    nowhere.constraints.cluster = Some(ClusterId(3));
    let entry = ledger.submit("op1", C1, Scope::Fleet, &nowhere);
    assert_eq!(enter_one(&mut ledger, C1, entry), rejected(Reason::Constrained));
}

#[test]
fn verdict_of_the_cluster_is_taken_for_its_own_tasks() {
    let mut ledger = ledger();
    let id = submit(&mut ledger, C1, Scope::Cluster, &task("a"));
    let claim_of = |ledger: &mut Ledger, drone: &str| {
        let action = Action::Claim {
            task: id,
            assignment: Assignment(0),
            counter: HolderCounter(1),
        };
        ledger.entry(drone, C1, Scope::Cluster, action)
    };
    let refused = claim_of(&mut ledger, "c1-1");
    let verdict = rejected(Reason::OldCounter);
    assert_eq!(enter_as(&mut ledger, C1, verdict, refused), verdict);
    assert_eq!(state(&ledger, &id), TaskState::Queued);
    let fence = claim(&mut ledger, "c1-2", id);
    assert_eq!(
        (fence.assignment, state(&ledger, &id)),
        (Assignment(0), TaskState::Claimed)
    );
    assert_eq!(
        fence.index.0,
        ledger.logs[0].next_index.0 - 2,
        "the claim's place in the log"
    );
    let cancel = ledger.entry("op1", C1, Scope::Cluster, Action::Cancel { task: id });
    assert_eq!(enter_one(&mut ledger, C1, cancel), Verdict::Granted);
    assert_eq!(state(&ledger, &id), TaskState::Canceled);
    // Granted by the cluster, impossible by the table: refused, and the cluster has to answer for it.
    let action = start(id, fence);
    let impossible = ledger.entry("c1-2", C1, Scope::Cluster, action);
    let batch = ledger.granted(C1, vec![impossible]);
    let outcome = ledger.block(vec![batch], 100);
    let reason = Reason::WrongState(TaskState::Canceled);
    assert_eq!(verdicts(&outcome), [rejected(reason)]);
    assert_eq!(outcome.evidence[0].fault, RowFault::Refused(reason));
}

#[test]
fn another_cluster_decides_nothing_about_a_clusters_tasks() {
    let mut ledger = ledger();
    let own = submit(&mut ledger, C1, Scope::Cluster, &task("a"));
    let placed = assigned(&mut ledger, "b");
    for (id, assignment, scope) in [(own, 0, Scope::Cluster), (placed, 1, Scope::Fleet)] {
        let action = Action::Claim {
            task: id,
            assignment: Assignment(assignment),
            counter: HolderCounter(1),
        };
        let entry = ledger.entry("c2-1", C2, scope, action);
        assert_eq!(enter_one(&mut ledger, C2, entry), rejected(Reason::NotInCustody));
        assert!(row(&ledger, &id).is_waiting());
    }
    let cancel = ledger.entry("op1", C2, Scope::Cluster, Action::Cancel { task: own });
    assert_eq!(enter_one(&mut ledger, C2, cancel), rejected(Reason::NotInCustody));
}

#[test]
fn entry_about_an_unknown_task_changes_nothing() {
    let mut ledger = ledger();
    for scope in [Scope::Fleet, Scope::Cluster] {
        let entry = ledger.entry("op1", C1, scope, Action::Cancel { task: TaskId([9; 32]) });
        assert_eq!(enter_one(&mut ledger, C1, entry), rejected(Reason::UnknownTask));
    }
}

#[test]
fn author_and_operator_cancel_a_fleet_task_and_a_stranger_does_not() {
    let mut ledger = ledger();
    let entry = ledger.submit("c1-1", C1, Scope::Fleet, &task("own"));
    let own = TaskId::from(entry.id(&ledger.fleet.chain));
    assert_eq!(enter_one(&mut ledger, C1, entry), Verdict::Granted);
    let stranger = ledger.entry("c1-2", C1, Scope::Fleet, Action::Cancel { task: own });
    assert_eq!(enter_one(&mut ledger, C1, stranger), rejected(Reason::Denied));
    // Whatever the cluster said: of fleet scope this is decided here.
    let author = ledger.entry("c1-1", C1, Scope::Fleet, Action::Cancel { task: own });
    assert_eq!(
        enter_as(&mut ledger, C1, rejected(Reason::Denied), author),
        Verdict::Granted
    );
    assert_eq!(state(&ledger, &own), TaskState::Canceled);
    let other = assigned(&mut ledger, "other");
    let operator = ledger.entry("op1", C3, Scope::Fleet, Action::Cancel { task: other });
    assert_eq!(enter_one(&mut ledger, C3, operator), Verdict::Granted);
    assert_eq!(row(&ledger, &other).standing.custody, None);
}

#[test]
fn entry_under_an_old_assignment_is_late_and_its_result_is_kept() {
    let mut ledger = ledger();
    let id = assigned(&mut ledger, "a");
    let fence = claim(&mut ledger, "c1-1", id);
    let force = ledger.entry("op1", C2, Scope::Fleet, Action::ForceRequeue { task: id });
    assert_eq!(enter_one(&mut ledger, C2, force), Verdict::Granted);
    assert!(row(&ledger, &id).standing.assignment > fence.assignment);
    assert_eq!(state(&ledger, &id), TaskState::Assigned);
    let report = ledger.entry("c1-1", C1, Scope::Fleet, start(id, fence));
    assert_eq!(enter_one(&mut ledger, C1, report), Verdict::Late);
    assert_eq!(row(&ledger, &id).standing.life.late_result, None);
    let fenced = rejected(Reason::Fenced);
    let report = ledger.entry("c1-1", C1, Scope::Fleet, start(id, fence));
    assert_eq!(enter_as(&mut ledger, C1, fenced, report), fenced);
    let done = ledger.entry("c1-1", C1, Scope::Fleet, complete(id, fence));
    assert_eq!(
        enter_as(&mut ledger, C1, fenced, done),
        Verdict::Late,
        "a result is never lost"
    );
    let holder = Holder {
        device: ledger.fleet.id("c1-1"),
        fence,
    };
    assert_eq!(row(&ledger, &id).standing.life.late_result, Some(holder));
    assert_eq!(state(&ledger, &id), TaskState::Assigned, "late changes nothing");
    let words: Vec<String> = ledger
        .queue
        .history(&id)
        .iter()
        .map(|event| event.what.to_string())
        .collect();
    let want = [
        "submit",
        "assigned",
        "claim",
        "force-requeue",
        "assigned",
        "start",
        "start",
        "complete",
    ];
    assert_eq!(words, want);
}

#[test]
fn result_of_the_last_holder_closes_a_task_that_waits_for_it() {
    let mut ledger = ledger();
    for (scope, key) in [(Scope::Fleet, "f"), (Scope::Cluster, "c")] {
        let hold = Task {
            after_custody: AfterCustody::Hold,
            places: vec![place_in(0)].try_into().unwrap(),
            ..task(key)
        };
        let id = submit(&mut ledger, C1, scope, &hold);
        let fence = claim(&mut ledger, "c1-1", id);
        let cause = Cause::LeaseEnded {
            fence,
            renewed_at: fence.index,
        };
        let ended = ledger.entry("c1-2", C1, scope, Action::Requeue { task: id, cause });
        assert_eq!(enter_one(&mut ledger, C1, ended), Verdict::Granted);
        assert_eq!(state(&ledger, &id), TaskState::Unknown);
        assert!(
            ledger.queue.view(&id).unwrap().holder.is_some(),
            "who may still be at it is shown"
        );
        let guess = Fence {
            index: LogIndex(1),
            ..fence
        };
        let other = ledger.entry("c1-3", C1, scope, complete(id, guess));
        assert_eq!(enter_as(&mut ledger, C1, Verdict::Late, other), Verdict::Late);
        assert_eq!(state(&ledger, &id), TaskState::Unknown);
        let done = ledger.entry("c1-1", C1, scope, complete(id, fence));
        assert_eq!(enter_as(&mut ledger, C1, Verdict::Late, done), Verdict::Late);
        assert_eq!(state(&ledger, &id), TaskState::Completed);
    }
}

#[test]
fn completed_after_a_cancel_that_the_cluster_did_not_know_is_late() {
    let mut ledger = ledger();
    let id = assigned(&mut ledger, "a");
    let fence = claim(&mut ledger, "c1-1", id);
    let cancel = ledger.entry("op1", C2, Scope::Fleet, Action::Cancel { task: id });
    assert_eq!(enter_one(&mut ledger, C2, cancel), Verdict::Granted);
    let started = ledger.entry("c1-1", C1, Scope::Fleet, start(id, fence));
    let reason = Reason::WrongState(TaskState::Canceled);
    let done = ledger.entry("c1-1", C1, Scope::Fleet, complete(id, fence));
    let batch = ledger.granted(C1, vec![started, done]);
    let outcome = ledger.block(vec![batch], 100);
    assert_eq!(verdicts(&outcome), [rejected(reason), Verdict::Late]);
    assert_eq!(
        outcome.evidence,
        [],
        "two tiers that learn of each other late are no fault"
    );
    assert_eq!(state(&ledger, &id), TaskState::Canceled);
}

#[test]
fn claim_of_a_finished_task_is_refused() {
    let mut ledger = ledger();
    let id = assigned(&mut ledger, "a");
    let fence = claim(&mut ledger, "c1-1", id);
    let done = ledger.entry("c1-1", C1, Scope::Fleet, complete(id, fence));
    enter_one(&mut ledger, C1, done);
    let action = Action::Claim {
        task: id,
        assignment: fence.assignment,
        counter: HolderCounter(3),
    };
    let again = ledger.entry("c1-2", C1, Scope::Fleet, action);
    let reason = Reason::WrongState(TaskState::Completed);
    assert_eq!(enter_one(&mut ledger, C1, again), rejected(reason));
}

#[test]
fn operator_requeues_a_failed_task_under_a_new_number() {
    let mut ledger = ledger();
    let id = assigned(&mut ledger, "a");
    let fence = claim(&mut ledger, "c1-1", id);
    let failed = ledger.entry("c1-1", C1, Scope::Fleet, fail(id, fence));
    assert_eq!(enter_one(&mut ledger, C1, failed), Verdict::Granted);
    assert_eq!(state(&ledger, &id), TaskState::Failed);
    let requeue = Action::Requeue {
        task: id,
        cause: Cause::Operator,
    };
    let drone = ledger.entry("c1-1", C1, Scope::Fleet, requeue);
    assert_eq!(enter_one(&mut ledger, C1, drone), rejected(Reason::Denied));
    let operator = ledger.entry("op1", C1, Scope::Fleet, requeue);
    assert_eq!(enter_one(&mut ledger, C1, operator), Verdict::Granted);
    assert_eq!(state(&ledger, &id), TaskState::Assigned);
    assert!(row(&ledger, &id).standing.assignment > fence.assignment);
    let forced = ledger.entry("c1-1", C1, Scope::Fleet, Action::ForceRequeue { task: id });
    assert_eq!(enter_one(&mut ledger, C1, forced), rejected(Reason::Denied));
}

#[test]
fn claim_in_flight_is_late_after_a_take_back_in_the_same_block() {
    let mut ledger = ledger();
    let id = assigned(&mut ledger, "a");
    let fence = claim(&mut ledger, "c1-1", id);
    let failed = ledger.entry("c1-1", C1, Scope::Fleet, fail(id, fence));
    enter_one(&mut ledger, C1, failed);
    let requeue = Action::Requeue {
        task: id,
        cause: Cause::Operator,
    };
    let requeue = ledger.entry("op1", C2, Scope::Fleet, requeue);
    let action = Action::Claim {
        task: id,
        assignment: fence.assignment,
        counter: HolderCounter(5),
    };
    let in_flight = ledger.entry("c1-2", C1, Scope::Fleet, action);
    let requeue = ledger.granted(C2, vec![requeue]);
    let in_flight = ledger.granted(C1, vec![in_flight]);
    let outcome = ledger.block(vec![requeue, in_flight], 100);
    assert_eq!(verdicts(&outcome), [Verdict::Granted, Verdict::Late]);
    assert_eq!(state(&ledger, &id), TaskState::Assigned);
}

#[test]
fn note_of_an_author_is_kept_in_the_history() {
    let mut ledger = ledger();
    let id = assigned(&mut ledger, "a");
    let number = ledger.number("op1", C1);
    let note = [b'n'; 300];
    let cancel = Action::Cancel { task: id };
    let entry = ledger.fleet.entry_with("op1", C1, number, Scope::Fleet, cancel, &note);
    assert_eq!(enter_one(&mut ledger, C1, entry), Verdict::Granted);
    assert_eq!(
        ledger.queue.history(&id).last().unwrap().note[..],
        note[..NOTE_BYTES_MAX]
    );
}

#[test]
fn outcome_root_is_over_every_decision_in_order() {
    let mut ledger = ledger();
    let entry = ledger.submit("op1", C1, Scope::Fleet, &task("a"));
    let batch = ledger.granted(C1, vec![entry]);
    assert!(matches!(batch.entries[0].item, BatchItem::Author(_)));
    let outcome = ledger.block(vec![batch], 100);
    assert!(matches!(
        outcome.outcomes[..],
        [
            Outcome::Batch {
                reference: 0,
                stale: None
            },
            Outcome::Entry {
                reference: 0,
                row: 0,
                verdict: Verdict::Granted,
                state: Some(TaskState::Queued),
                ..
            },
            Outcome::Machine {
                what: MachineEvent::Assigned { .. },
                state: TaskState::Assigned,
                ..
            }
        ]
    ));
    assert_eq!(outcome.outcome_root, outcome_root(&outcome.outcomes));
    let mut swapped = outcome.outcomes.clone();
    swapped.swap(0, 1);
    assert_ne!(outcome.outcome_root, outcome_root(&swapped));
}
