//! Custody, contact, deadlines and who gets what.

use super::*;

const C_MS: u64 = 12_000;

fn at(cluster: u32, key: &str) -> Task {
    Task {
        places: vec![place_in(cluster)].try_into().unwrap(),
        ..task(key)
    }
}

fn cluster_of(ledger: &Ledger, id: &TaskId) -> Option<ClusterId> {
    row(ledger, id).standing.custody.and(row(ledger, id).standing.cluster)
}

#[test]
fn task_goes_to_the_cluster_whose_zone_holds_its_first_place() {
    let mut ledger = ledger();
    for zone in [2, 0, 1] {
        let id = submit(&mut ledger, C1, Scope::Fleet, &at(zone, &format!("z{zone}")));
        assert_eq!(cluster_of(&ledger, &id), Some(ClusterId(zone)));
    }
}

#[test]
fn task_outside_all_zones_goes_to_the_fewest_open_tasks_then_to_the_lowest() {
    let mut ledger = ledger();
    let mut got = Vec::new();
    for i in 0..4 {
        let id = submit(&mut ledger, C3, Scope::Fleet, &task(&format!("k{i}")));
        got.push(cluster_of(&ledger, &id).unwrap());
    }
    assert_eq!(got, [C1, C2, C3, C1]);
    // A cluster's own open tasks count too, closed ones do not.
    let own = submit(&mut ledger, C2, Scope::Cluster, &task("own"));
    submit(&mut ledger, C3, Scope::Cluster, &task("own"));
    let cancel = ledger.entry("op1", C2, Scope::Cluster, Action::Cancel { task: own });
    enter_one(&mut ledger, C2, cancel);
    let id = submit(&mut ledger, C3, Scope::Fleet, &task("next"));
    assert_eq!(cluster_of(&ledger, &id), Some(C2));
}

#[test]
fn task_waits_until_a_cluster_is_in_contact() {
    let mut ledger = Ledger::new(Fleet::new(3, 3, 1));
    let entry = ledger.submit("op1", C1, Scope::Fleet, &at(1, "a"));
    let id = TaskId::from(entry.id(&ledger.fleet.chain));
    let mut only_two = at(2, "two");
    only_two.constraints.cluster = Some(C2);
    let bound = ledger.submit("op1", C1, Scope::Fleet, &only_two);
    let bound_id = TaskId::from(bound.id(&ledger.fleet.chain));
    let batch = ledger.granted(C1, vec![entry, bound]);
    ledger.block(vec![batch], 100);
    assert_eq!(
        cluster_of(&ledger, &id),
        Some(C1),
        "the only cluster in contact, though another's zone"
    );
    assert_eq!(state(&ledger, &bound_id), TaskState::Queued);
    ledger.block(vec![], 100);
    assert_eq!(
        state(&ledger, &bound_id),
        TaskState::Queued,
        "tried again, nobody there"
    );
    contact(&mut ledger, &[C2]);
    assert_eq!(cluster_of(&ledger, &bound_id), Some(C2));
    assert_eq!(row(&ledger, &bound_id).standing.assignment, Assignment(1));
}

#[test]
fn silent_cluster_is_given_nothing_more() {
    let mut ledger = ledger();
    for _ in 0..5 {
        let beat = ledger.beat(C2);
        ledger.block(vec![beat], 2_500);
    }
    assert!(!ledger.queue.is_in_contact(C1) && ledger.queue.is_in_contact(C2));
    let id = submit(&mut ledger, C2, Scope::Fleet, &at(0, "a"));
    assert_eq!(cluster_of(&ledger, &id), Some(C2));
    contact(&mut ledger, &[C1]);
    let id = submit(&mut ledger, C2, Scope::Fleet, &at(0, "b"));
    assert_eq!(cluster_of(&ledger, &id), Some(C1));
}

#[test]
fn higher_priority_is_placed_first_then_the_earlier_arrival() {
    let mut ledger = Ledger::new(Fleet::new(2, 3, 1));
    let mut bound = |key: &str, priority| {
        let mut task = Task { priority, ..task(key) };
        task.constraints.cluster = Some(C2);
        let entry = ledger.submit("op1", C1, Scope::Fleet, &task);
        let id = TaskId::from(entry.id(&ledger.fleet.chain));
        let batch = ledger.granted(C1, vec![entry]);
        ledger.block(vec![batch], 100);
        id
    };
    let ids = [
        bound("low", 1),
        bound("first", 100),
        bound("second", 100),
        bound("top", 255),
    ];
    let outcome = contact(&mut ledger, &[C2]);
    let order: Vec<TaskId> = outcome
        .outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Machine { task, .. } => Some(*task),
            Outcome::Batch { .. } | Outcome::Entry { .. } => None,
        })
        .collect();
    assert_eq!(order, [ids[3], ids[1], ids[2], ids[0]]);
}

#[test]
fn first_custody_is_block_time_plus_c_and_every_contact_renews_it() {
    let mut ledger = ledger();
    let id = assigned(&mut ledger, "a");
    let until = |ledger: &Ledger| ledger.queue.custody_until(row(ledger, &id)).unwrap();
    let placed = ledger.queue.time();
    assert_eq!(until(&ledger), placed.plus_ms(C_MS));
    assert_eq!(
        row(&ledger, &id).standing.terms,
        Some(ledger.fleet.genesis.timing.lease)
    );
    ledger.block(vec![], 2_000);
    contact(&mut ledger, &[C2, C3]);
    assert_eq!(until(&ledger), placed.plus_ms(C_MS), "others' contact renews nothing");
    contact(&mut ledger, &[C1]);
    assert_eq!(until(&ledger), ledger.queue.time().plus_ms(C_MS));
    assert_eq!(ledger.queue.view(&id).unwrap().custody_until, Some(until(&ledger)));
}

#[test]
fn stale_reference_is_no_contact() {
    let mut ledger = ledger();
    let id = assigned(&mut ledger, "a");
    let until = ledger.queue.custody_until(row(&ledger, &id));
    let beat = ledger.beat(C1);
    ledger.block(vec![beat.clone()], 100);
    let renewed = ledger.queue.custody_until(row(&ledger, &id));
    assert!(renewed > until);
    ledger.block(vec![beat], 100);
    assert_eq!(ledger.queue.custody_until(row(&ledger, &id)), renewed);
}

#[test]
fn gap_between_blocks_of_more_than_a_quarter_of_custody_stretches_it_by_the_gap() {
    let mut ledger = ledger();
    let id = assigned(&mut ledger, "a");
    let until = |ledger: &Ledger| ledger.queue.custody_until(row(ledger, &id)).unwrap();
    let first = until(&ledger);
    ledger.block(vec![], C_MS / 4);
    assert_eq!(until(&ledger), first, "a quarter is no gap");
    ledger.block(vec![], C_MS / 4 + 1);
    assert_eq!(until(&ledger), first.plus_ms(C_MS / 4 + 1));
    ledger.block(vec![], 1_000_000);
    assert_eq!(until(&ledger), first.plus_ms(C_MS / 4 + 1 + 1_000_000));
    contact(&mut ledger, &[C1]);
    assert_eq!(until(&ledger), ledger.queue.time().plus_ms(C_MS));
}

#[test]
fn custody_that_ran_out_is_shown_and_not_yet_taken_back() {
    let mut ledger = ledger();
    let id = assigned(&mut ledger, "a");
    let number = row(&ledger, &id).standing.assignment;
    for _ in 0..10 {
        let beat = ledger.beat(C2);
        ledger.block(vec![beat], 2_900);
    }
    assert!(ledger.queue.custody_until(row(&ledger, &id)).unwrap() < ledger.queue.time());
    assert_eq!(
        (state(&ledger, &id), row(&ledger, &id).standing.assignment),
        (TaskState::Assigned, number)
    );
}

#[test]
fn waiting_fleet_task_expires_after_its_deadline_and_a_held_one_when_it_is_queued_again() {
    let mut ledger = ledger();
    let end = ledger.queue.time().plus_ms(1_000);
    let deadline = Some(end);
    let held = submit(
        &mut ledger,
        C1,
        Scope::Fleet,
        &Task {
            deadline,
            ..at(0, "held")
        },
    );
    let waits = submit(
        &mut ledger,
        C1,
        Scope::Fleet,
        &Task {
            deadline,
            ..at(0, "waits")
        },
    );
    let mut nobody = Task {
        deadline,
        ..at(0, "nobody")
    };
    nobody.after = vec![TaskId([9; 32])].try_into().unwrap();
    let nobody = submit(&mut ledger, C1, Scope::Fleet, &nobody);
    let fence = claim(&mut ledger, "c1-1", held);
    let left = end.ms_since(ledger.queue.time());
    ledger.block(vec![], left);
    assert_eq!(
        state(&ledger, &waits),
        TaskState::Assigned,
        "the deadline itself is in time"
    );
    ledger.block(vec![], 1);
    assert_eq!(state(&ledger, &waits), TaskState::Expired);
    assert_eq!(state(&ledger, &nobody), TaskState::Expired);
    assert_eq!(row(&ledger, &waits).standing.custody, None);
    assert_eq!(state(&ledger, &held), TaskState::Claimed);
    let given_back = ledger.entry("c1-1", C1, Scope::Fleet, release(held, fence));
    assert_eq!(enter_one(&mut ledger, C1, given_back), Verdict::Granted);
    assert_eq!(state(&ledger, &held), TaskState::Expired);
    assert_eq!(ledger.queue.history(&held).last().unwrap().what.as_str(), "expired");
}

#[test]
fn clusters_own_task_expires_when_its_log_has_applied_the_block_past_the_deadline() {
    let mut ledger = ledger();
    let deadline = Some(ledger.queue.time().plus_ms(500));
    let id = submit(&mut ledger, C1, Scope::Cluster, &Task { deadline, ..task("a") });
    // Committed in the cluster before the block past the deadline came down: the claim counts.
    let action = Action::Claim {
        task: id,
        assignment: Assignment(0),
        counter: HolderCounter(1),
    };
    let in_time = ledger.entry("c1-1", C1, Scope::Cluster, action);
    let in_time = ledger.granted(C1, vec![in_time]);
    ledger.block(vec![], 1_000);
    assert_eq!(state(&ledger, &id), TaskState::Queued);
    let outcome = ledger.block(vec![in_time], 100);
    assert_eq!(verdicts(&outcome), [Verdict::Granted]);
    let fence = row(&ledger, &id).standing.life.holder.unwrap().fence;
    let given_back = ledger.entry("c1-1", C1, Scope::Cluster, release(id, fence));
    assert_eq!(enter_one(&mut ledger, C1, given_back), Verdict::Granted);
    assert_eq!(
        state(&ledger, &id),
        TaskState::Queued,
        "its log has not seen a new block since"
    );
    let at_the_same_height = ledger.logs[0].beat(&ledger.fleet);
    ledger.block(vec![at_the_same_height], 100);
    assert_eq!(state(&ledger, &id), TaskState::Queued, "nor for this batch");
    contact(&mut ledger, &[C1]);
    assert_eq!(state(&ledger, &id), TaskState::Expired);
}

#[test]
fn released_task_stays_with_its_cluster_under_the_same_number() {
    let mut ledger = ledger();
    let id = assigned(&mut ledger, "a");
    let fence = claim(&mut ledger, "c1-1", id);
    let given_back = ledger.entry("c1-1", C1, Scope::Fleet, release(id, fence));
    assert_eq!(enter_one(&mut ledger, C1, given_back), Verdict::Granted);
    assert_eq!(
        (state(&ledger, &id), cluster_of(&ledger, &id)),
        (TaskState::Queued, Some(C1))
    );
    let again = claim(&mut ledger, "c1-2", id);
    assert!(again > fence && again.assignment == fence.assignment);
}
