//! Tasks, entries and verdicts.

use common::{
    batch::RosterChange,
    block::AdvancePart,
    entry::{Action, Cause, LogEntry, Progress, SignedEntry},
    genesis::Genesis,
    ids::{Assignment, BatchSeq, BlockTime, Digest, Height, HolderCounter, LogIndex, TaskId},
    task::{AfterCustody, Constraints, OnLeaseLoss, Place, Scope, Task, TaskKind, TaskState},
    testing::{Fleet, place_in},
    verdict::{Reason, Verdict},
};

use super::{C1, C2, FENCE, Samples, TASK, label, operators::event};

/// A task with every field set.
pub fn full_task() -> Task {
    Task {
        key: b"order-4711".to_vec().try_into().unwrap(),
        kind: TaskKind::Delivery,
        revision: 2,
        priority: 200,
        earliest_start: Some(BlockTime(1_700_000_001_000_000)),
        deadline: Some(BlockTime(1_700_000_009_000_000)),
        places: vec![
            Place::Geo {
                lat_e7: 521_234_567,
                lon_e7: -131_234_567,
                alt_m: 120,
            },
            place_in(1),
        ]
        .try_into()
        .unwrap(),
        payload_g: 1_500,
        requester: label("hospital übersee"),
        labels: vec![(label("a"), label("1")), (label("b"), label("2"))]
            .try_into()
            .unwrap(),
        constraints: Constraints {
            cluster: Some(C2),
            capabilities: vec![label("cold-chain"), label("winch")].try_into().unwrap(),
        },
        after: vec![TaskId([1; 32]), TaskId([2; 32])].try_into().unwrap(),
        on_lease_loss: OnLeaseLoss::Continue,
        after_custody: AfterCustody::Hold,
        attempts_max: 5,
        payload: vec![0, 1, 2, 0xff].try_into().unwrap(),
    }
}

/// Every action that an author can ask for, by its name.
pub fn actions() -> Vec<(&'static str, Action)> {
    let counter = HolderCounter(9);
    let progress = |progress| Action::Progress {
        task: TASK,
        fence: FENCE,
        progress,
    };
    let requeue = |cause| Action::Requeue { task: TASK, cause };
    vec![
        ("cancel", Action::Cancel { task: TASK }),
        (
            "claim",
            Action::Claim {
                task: TASK,
                assignment: Assignment(3),
                counter,
            },
        ),
        ("renew", Action::Renew { counter }),
        ("progress_started", progress(Progress::Started)),
        ("progress_paused", progress(Progress::Paused)),
        ("progress_resumed", progress(Progress::Resumed)),
        ("progress_percent", progress(Progress::Percent(40))),
        (
            "complete",
            Action::Complete {
                task: TASK,
                fence: FENCE,
            },
        ),
        (
            "fail",
            Action::Fail {
                task: TASK,
                fence: FENCE,
                counter,
                retriable: true,
            },
        ),
        (
            "release",
            Action::Release {
                task: TASK,
                fence: FENCE,
                counter,
            },
        ),
        (
            "requeue_lease_ended",
            requeue(Cause::LeaseEnded {
                fence: FENCE,
                renewed_at: LogIndex(310),
            }),
        ),
        ("requeue_operator", requeue(Cause::Operator)),
        ("force_requeue", Action::ForceRequeue { task: TASK }),
    ]
}

pub fn submit(fleet: &Fleet) -> SignedEntry {
    fleet.submit("op1", C1, 1, Scope::Fleet, &full_task())
}

pub fn tasks_and_entries(all: &mut impl Samples, fleet: &Fleet) {
    all.add("genesis", fleet.genesis.clone());
    all.add("genesis_smallest", Genesis::clone(&Fleet::new(1, 1, 1).genesis));
    all.add("task_full", full_task());
    all.add("event", event(fleet.id("op1")));
    let kinds = [
        TaskKind::Pickup,
        TaskKind::Dropoff,
        TaskKind::Survey,
        TaskKind::Patrol,
        TaskKind::Custom,
    ];
    for kind in kinds {
        let name = format!("task_{kind:?}").to_lowercase();
        let on_lease_loss = if kind == TaskKind::Patrol {
            OnLeaseLoss::Return
        } else {
            OnLeaseLoss::Stop
        };
        let key = b"k".to_vec().try_into().unwrap();
        all.add(
            &name,
            Task {
                on_lease_loss,
                ..Task::new(key, kind)
            },
        );
    }
    all.add("entry_submit", submit(fleet));
    for (name, action) in actions() {
        let entry = fleet.entry_with("c1-1", C1, 7, Scope::Cluster, action, "ein Grund".as_bytes());
        all.add(&format!("entry_{name}"), entry);
    }
    all.add("log_author", LogEntry::Author(submit(fleet)));
    all.add("log_cut", LogEntry::Cut { seq: BatchSeq(300) });
    all.add("log_beat", LogEntry::Beat { seq: BatchSeq(301) });
    let roster = fleet.roster(C1);
    all.add("log_roster", LogEntry::Roster(RosterChange { roster }));
    let part = AdvancePart::split(Height(5), Digest([3; 32]), b"an encoded advance").remove(0);
    all.add("log_global_advance", LogEntry::GlobalAdvance(part));
    let notice = b"news".to_vec().try_into().unwrap();
    all.add("log_registry_notice", LogEntry::RegistryNotice(notice));
}

/// Every verdict there is.
pub fn verdicts() -> Vec<Verdict> {
    let reasons = [
        Reason::UnknownKey,
        Reason::Malformed,
        Reason::Denied,
        Reason::StaleKey,
        Reason::WrongCluster,
        Reason::Conflict,
        Reason::NumberWindow,
        Reason::Expired,
        Reason::UnknownTask,
        Reason::Fenced,
        Reason::NotHolder,
        Reason::NotInCustody,
        Reason::OldCounter,
        Reason::Blocked,
        Reason::LeaseRenewed,
        Reason::Constrained,
        Reason::DuplicateOf(TASK),
        Reason::KeyConflict(TASK),
        Reason::TooManyClaims,
        Reason::LinkEnded(TASK),
    ];
    let states = TaskState::ALL.map(Reason::WrongState);
    [Verdict::Granted, Verdict::Late]
        .into_iter()
        .chain(reasons.into_iter().chain(states).map(Verdict::Rejected))
        .collect()
}
