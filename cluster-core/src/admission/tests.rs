use common::{
    entry::{LogEntry, Progress},
    ids::{RaftNodeId, TaskId},
    roster::Roster,
    task::{Scope, Task},
    testing::task,
    verdict::Verdict,
};

use super::*;
use crate::testing::{OWN, TestCluster, verdict};

const LIMITS: AdmissionLimits = AdmissionLimits {
    outbox_bytes_max: 1_000_000,
    open_tasks_max: 1_000,
    state_bytes_max: 1_000_000,
    entries_per_second: 10,
    entries_burst: 1_000,
};

fn admit(c: &mut TestCluster, admission: &mut Admission, entry: &SignedEntry) -> Result<Admitted, AdmitError> {
    admission.admit(&c.queue, c.leader, entry, &mut c.oracle, 0)
}

#[test]
fn admission_gives_the_reason_that_apply_would_give() {
    let mut c = TestCluster::new();
    let mut admission = Admission::new(LIMITS);
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let fleet_task = c.submit("op1", Scope::Fleet, &task("f"));
    c.hold("c1-1", id);
    let claim = c.claim_action("c1-2", id);
    let early = c.claim_action("c1-2", fleet_task);
    let entries = [
        c.entry("c1-2", Scope::Cluster, claim),
        c.entry("c1-2", Scope::Fleet, early),
        c.entry("op1", Scope::Cluster, Action::Cancel { task: TaskId([1; 32]) }),
        c.entry("c1-3", Scope::Cluster, Action::Cancel { task: id }),
        c.submit_entry("op1", Scope::Cluster, &task("k")),
        c.fleet.submit("op1", OWN, 1, Scope::Cluster, &task("conflict")),
        c.fleet
            .submit("op1", ClusterId(1), 1, Scope::Cluster, &task("elsewhere")),
    ];
    for entry in entries {
        let early = admit(&mut c, &mut admission, &entry).unwrap_err();
        let applied = c.apply(LogEntry::Author(entry));
        assert!(matches!(verdict(&applied), Verdict::Rejected(_)));
        assert_eq!(early.verdict(), Some(verdict(&applied)));
    }
    let good = c.submit_entry("op1", Scope::Cluster, &task("good"));
    assert_eq!(admit(&mut c, &mut admission, &good), Ok(Admitted::Enter));
    let applied = c.apply(LogEntry::Author(good.clone()));
    assert_eq!(
        admit(&mut c, &mut admission, &good),
        Ok(Admitted::Known(applied.answer.unwrap())),
        "a retry learns its answer without entering"
    );
}

#[test]
fn accepted_entry_is_not_refused_when_its_number_has_left_the_window() {
    let mut c = TestCluster::new();
    let mut admission = Admission::new(LIMITS);
    let accepted = c.submit_entry("op1", Scope::Cluster, &task("accepted"));
    let lost = c.submit_entry("op1", Scope::Cluster, &task("lost"));
    let answer = c.apply(LogEntry::Author(accepted.clone())).answer.unwrap();
    let id = TaskId::from(accepted.id(&c.fleet.chain));
    let cancel = c.entry("op1", Scope::Cluster, Action::Cancel { task: id });
    let canceled = c.apply(LogEntry::Author(cancel.clone())).answer.unwrap();
    let far = c.fleet.submit("op1", OWN, 1 << 40, Scope::Cluster, &task("far"));
    c.apply(LogEntry::Author(far));
    assert_eq!(
        admit(&mut c, &mut admission, &accepted),
        Ok(Admitted::Known(answer)),
        "its task is in the queue"
    );
    assert_eq!(admit(&mut c, &mut admission, &cancel), Ok(Admitted::Known(canceled)));
    let refused = Err(AdmitError::Rejected(Reason::NumberWindow));
    assert_eq!(
        admit(&mut c, &mut admission, &lost),
        refused,
        "it can have no effect any more"
    );
    let applied = c.apply(LogEntry::Author(lost));
    assert_eq!(verdict(&applied), Verdict::Rejected(Reason::NumberWindow));
}

#[test]
fn forged_signature_is_refused_even_where_the_genuine_one_is_remembered() {
    let mut c = TestCluster::new();
    let mut admission = Admission::new(LIMITS);
    let good = c.submit_entry("op1", Scope::Cluster, &task("k"));
    assert_eq!(admit(&mut c, &mut admission, &good), Ok(Admitted::Enter));
    let mut forged = good.clone();
    forged.signature.s[0] ^= 1;
    assert_eq!(
        admit(&mut c, &mut admission, &forged),
        Err(AdmitError::Static(StaticFault::BadSignature))
    );
    assert_eq!(admit(&mut c, &mut admission, &good), Ok(Admitted::Enter));
}

#[test]
fn cache_of_signatures_is_bounded_and_remembers_no_bad_one() {
    let mut c = TestCluster::new();
    let mut cache = VerifiedCache::new(3);
    let key = *c.fleet.registry.key(&c.fleet.id("op1"), Default::default()).unwrap();
    let entries: Vec<SignedEntry> = (0..10)
        .map(|i| c.submit_entry("op1", Scope::Cluster, &task(&format!("k{i}"))))
        .collect();
    for entry in &entries {
        assert!(cache.is_signed_by(entry, &c.fleet.chain, &key));
        assert!(cache.len() <= 3);
    }
    let mut forged = entries[9].clone();
    forged.signature.r = entries[8].signature.r;
    for _ in 0..2 {
        assert!(!cache.is_signed_by(&forged, &c.fleet.chain, &key));
    }
    assert!(cache.is_signed_by(&entries[0], &c.fleet.chain, &key), "verified anew");
    let other = *c.fleet.registry.key(&c.fleet.id("c1-1"), Default::default()).unwrap();
    assert!(!cache.is_signed_by(&entries[0], &c.fleet.chain, &other), "another key");
}

#[test]
fn outbox_stops_submissions_first_then_claims_then_everything_but_renewals() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let held = c.submit("op1", Scope::Cluster, &task("held"));
    let fence = c.hold("c1-1", held);
    let submit = c.submit_entry("op1", Scope::Cluster, &task("new"));
    let claim = c.claim_action("c1-2", id);
    let claim = c.entry("c1-2", Scope::Cluster, claim);
    let report = Action::Progress {
        task: held,
        fence,
        progress: Progress::Started,
    };
    let report = c.entry("c1-1", Scope::Cluster, report);
    let counter = c.counter("c1-1");
    let renew = c.entry("c1-1", Scope::Cluster, Action::Renew { counter });
    let used = c.queue.batcher().pending_bytes() + submit.payload.len() as u64;
    // The quota is chosen so that what is pending stands between two of the limits.
    let mut passes = |percent: u64| {
        let mut admission = Admission::new(AdmissionLimits {
            outbox_bytes_max: (used * 100).div_ceil(percent).div_ceil(100) * 100,
            ..LIMITS
        });
        [&submit, &claim, &report, &renew].map(|entry| admit(&mut c, &mut admission, entry).is_ok())
    };
    assert_eq!(passes(60), [true, true, true, true]);
    assert_eq!(passes(79), [false, true, true, true]);
    assert_eq!(passes(95), [false, false, true, true]);
    assert_eq!(passes(200), [false, false, false, true]);
}

#[test]
fn full_state_stops_submissions_and_nothing_else() {
    let mut c = TestCluster::new();
    let id = c.submit("op1", Scope::Cluster, &task("k"));
    let submit = c.submit_entry("op1", Scope::Cluster, &task("new"));
    let claim = c.claim_action("c1-2", id);
    let claim = c.entry("c1-2", Scope::Cluster, claim);
    let bytes = c.queue.state_bytes();
    assert!(bytes > 0 && c.queue.open_tasks() == 1);
    let mut passes = |open_tasks_max, state_bytes_max| {
        let mut admission = Admission::new(AdmissionLimits {
            open_tasks_max,
            state_bytes_max,
            ..LIMITS
        });
        [&submit, &claim].map(|entry| admit(&mut c, &mut admission, entry))
    };
    assert_eq!(passes(2, bytes + 1), [Ok(Admitted::Enter), Ok(Admitted::Enter)]);
    let full = AdmitError::Overloaded(Full::State { tasks: 1, bytes });
    assert_eq!(passes(1, bytes + 1), [Err(full), Ok(Admitted::Enter)]);
    assert_eq!(passes(2, bytes), [Err(full), Ok(Admitted::Enter)]);
}

#[test]
fn flooding_author_is_slowed_and_told_when_to_come_back() {
    let mut quota = Quota::new(10, 3);
    let (one, other) = (DeviceId([1; 32]), DeviceId([2; 32]));
    for _ in 0..3 {
        assert_eq!(quota.take(&one, 0), Ok(()));
    }
    assert_eq!(quota.take(&one, 0), Err(100));
    assert_eq!(quota.take(&other, 0), Ok(()), "another author has its own");
    assert_eq!(quota.take(&one, 99_000), Err(1));
    assert_eq!(quota.take(&one, 100_000), Ok(()));
    assert_eq!(quota.take(&one, 100_000), Err(100));
    for _ in 0..3 {
        assert_eq!(
            quota.take(&one, 3_600_000_000),
            Ok(()),
            "no more than the burst is saved up"
        );
    }
    assert!(quota.take(&one, 3_600_000_000).is_err());
    // Asked far more often than a token takes to grow, it still grows.
    let mut quota = Quota::new(10, 1);
    let granted = (0..10_000).filter(|i| quota.take(&one, i * 100).is_ok()).count();
    assert!((10..=11).contains(&granted), "{granted} in a second");
}

#[test]
fn follower_refuses_only_what_no_registry_can_repair() {
    let mut c = TestCluster::new();
    let checker = StaticChecker::of(&c.queue);
    let good = c.submit_entry("op1", Scope::Cluster, &task("k"));
    let mut forged = good.clone();
    forged.signature.s[3] ^= 4;
    let mut swapped = good.clone();
    swapped.payload = common::codec::encode(&Task {
        priority: 1,
        ..task("k")
    })
    .try_into()
    .unwrap();
    let mut unknown = good.clone();
    unknown.header.author = DeviceId([9; 32]);
    // An entry that will be a no-op for a dynamic reason is appended.
    let denied = c.entry("c1-1", Scope::Cluster, Action::ForceRequeue { task: TaskId([1; 32]) });
    for (entry, is_good) in [
        (good, true),
        (forged, false),
        (swapped, false),
        (unknown, true),
        (denied, true),
    ] {
        assert_eq!(checker.check(&LogEntry::Author(entry), &mut c.oracle).is_ok(), is_good);
    }
    let roster = |nodes: &[&str]| {
        let members: Vec<_> = nodes
            .iter()
            .map(|label| common::roster::RosterMember {
                raft: RaftNodeId::new(c.fleet.idx(label), 1),
                key_version: Default::default(),
            })
            .collect();
        LogEntry::Roster(RosterChange {
            roster: Roster {
                members: members.try_into().unwrap(),
            },
        })
    };
    for (entry, is_good) in [
        (roster(&["c1-1", "c1-2"]), true),
        (roster(&["c1-2", "c1-1"]), false),
        (roster(&["c1-1", "c2-1"]), false),
        (roster(&[]), false),
    ] {
        assert_eq!(checker.check(&entry, &mut VerifiedCache::new(0)).is_ok(), is_good);
    }
}
