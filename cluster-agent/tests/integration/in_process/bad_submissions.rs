//! Bad and unfit entries: each is refused by name through every agent, and nothing changes anywhere.

use common::{
    codec::{Label, encode},
    crypto::sha256,
    entry::{Action, EntryDraft, Fence, Payload, Progress, SignedEntry},
    genesis::{GenesisDevice, Kind, RoleSet},
    ids::{Assignment, ClusterId, EntryNumber, Founding, Height, HolderCounter, KeyVersion, LogIndex, TaskId},
    task::{Place, Scope, Task, TaskState},
    testing::{Fleet, dev_timing, device_key, genesis, task},
    verdict::{Reason, Verdict},
    wire::{
        cluster::WriteOutcome,
        op::{Consistency, WriteRefusal},
    },
};
use transport::local::Request;

use super::support::{C1, Net};

/// Everything an entry could change: what is in the logs, and the state they lead to.
fn picture(net: &Net) -> Vec<(LogIndex, LogIndex, common::ids::Digest)> {
    let of = |label: &String| {
        let status = net.agent(label).status();
        (status.last_index, status.context.applied, status.queue_digest)
    };
    net.labels.iter().map(of).collect()
}

/// Nothing is on its way: no block comes, no batch is open, all members hold the same.
async fn still(net: &Net) {
    net.set_ground(false);
    let (mut last, mut since) = (None, tokio::time::Instant::now());
    net.eventually("nothing has moved for a second", || {
        let now = picture(net);
        if now.windows(2).any(|pair| pair[0] != pair[1]) || last.as_ref() != Some(&now) {
            (last, since) = (Some(now), tokio::time::Instant::now());
        }
        // The cut that closes a batch comes a while after its entries.
        (since.elapsed() > std::time::Duration::from_secs(1)).then_some(())
    })
    .await;
}

/// A cluster of three with a second operator who may only read; one submission is in its log.
async fn cluster() -> (Net, TaskId) {
    let mut genesis = genesis(2, 3, 4, dev_timing());
    let mut devices = genesis.devices.clone().into_inner();
    devices.push(GenesisDevice {
        key: device_key("op2").public(),
        label: Label::new("op2").expect("a short label"),
        kind: Kind::Operator,
        roles: RoleSet::OP_READ,
        cluster: None,
        stops_by_itself: true,
    });
    genesis.devices = devices.try_into().expect("a small fleet");
    let mut net = Net::with_fleet(Fleet::from_genesis(genesis), 3).all_started().await;
    let leader = net.leader().await;
    let first = net.submit(&leader, Scope::Cluster).await;
    still(&net).await;
    (net, first)
}

/// The decision about `entry`, the same through every agent, and nothing moved anywhere.
async fn refusal(net: &Net, entry: &SignedEntry) -> Reason {
    let before = picture(net);
    let mut reasons = Vec::new();
    for label in &net.labels {
        match net.agent(label).enter(entry.clone()).await {
            WriteOutcome::Refused(WriteRefusal::Rejected {
                verdict: Verdict::Rejected(reason),
                ..
            }) => reasons.push(reason),
            other => panic!("{label}: {other:?}"),
        }
    }
    assert!(reasons.windows(2).all(|pair| pair[0] == pair[1]), "{reasons:?}");
    assert_eq!(picture(net), before, "something changed");
    reasons[0]
}

/// The agents are alive: the next good submission is taken.
async fn go_on(net: &mut Net) {
    for label in net.labels.clone() {
        net.submit(&label, Scope::Cluster).await;
    }
}

fn draft(net: &Net, number: u64, action: Action) -> EntryDraft {
    EntryDraft {
        author: net.fleet.id("op1"),
        key_version: KeyVersion(0),
        cluster: C1,
        number: EntryNumber(number),
        not_after_height: Height(u64::MAX),
        scope: Scope::Cluster,
        action,
    }
}

fn signed(net: &Net, draft: EntryDraft, task: &Task) -> SignedEntry {
    SignedEntry::submit(&net.fleet.key("op1"), &net.fleet.chain, draft, task)
}

fn payload_of(bytes: Vec<u8>) -> Payload {
    Payload::try_from(bytes).expect("within the bound of a payload")
}

#[tokio::test(start_paused = true)]
async fn replayed_submission_gets_its_first_answer_and_changes_nothing() {
    let (mut net, _) = cluster().await;
    let entry = net.signed_task(Scope::Cluster);
    let leader = net.leader().await;
    let first = net.agent(&leader).enter(entry.clone()).await;
    assert!(matches!(first, WriteOutcome::Committed(_)), "{first:?}");
    still(&net).await;
    let before = picture(&net);
    for _ in 0..3 {
        for label in &net.labels {
            assert_eq!(net.agent(label).enter(entry.clone()).await, first, "{label}");
        }
    }
    assert_eq!(picture(&net), before);
    // The same number with other content is no replay.
    let other = net.fleet.submit("op1", C1, net.numbers, Scope::Cluster, &task("other"));
    assert_eq!(refusal(&net, &other).await, Reason::Conflict);
    go_on(&mut net).await;
}

#[tokio::test(start_paused = true)]
async fn number_below_the_window_or_beyond_the_largest_is_refused() {
    let (mut net, _) = cluster().await;
    for number in [1 << 63, u64::MAX] {
        let entry = signed(&net, draft(&net, number, Action::Submit), &task("k"));
        assert_eq!(refusal(&net, &entry).await, Reason::Malformed, "{number}");
    }
    // A number far ahead moves the window; what was skipped and falls below is out.
    net.numbers = 5_000;
    let leader = net.leader().await;
    net.submit(&leader, Scope::Cluster).await;
    still(&net).await;
    let skipped = signed(&net, draft(&net, 2, Action::Submit), &task("skipped"));
    assert_eq!(refusal(&net, &skipped).await, Reason::NumberWindow);
    go_on(&mut net).await;
}

#[tokio::test(start_paused = true)]
async fn expired_submission_is_refused() {
    let (mut net, _) = cluster().await;
    net.set_ground(true);
    net.eventually("some blocks have come", || {
        let is_there = |label: &String| net.agent(label).status().context.global_height >= Height(3);
        net.labels.iter().all(is_there).then_some(())
    })
    .await;
    still(&net).await;
    let late = EntryDraft {
        not_after_height: Height(1),
        ..draft(&net, 50, Action::Submit)
    };
    assert_eq!(refusal(&net, &signed(&net, late, &task("late"))).await, Reason::Expired);
    go_on(&mut net).await;
}

#[tokio::test(start_paused = true)]
async fn payload_that_is_not_the_signed_one_is_refused() {
    let (mut net, _) = cluster().await;
    let good = signed(&net, draft(&net, 50, Action::Submit), &task("k"));
    let mut swapped = good.clone();
    swapped.payload = payload_of(encode(&task("x")));
    assert_eq!(refusal(&net, &swapped).await, Reason::Malformed, "another hash");
    let mut longer = good.clone();
    longer.header.payload_len += 1;
    assert_eq!(refusal(&net, &longer).await, Reason::Malformed, "another length");
    let mut patched = swapped.clone();
    patched.header.payload_hash = sha256(&[&patched.payload]);
    patched.header.payload_len = patched.payload.len() as u32;
    assert_eq!(
        refusal(&net, &patched).await,
        Reason::Malformed,
        "the signature is of another header"
    );
    go_on(&mut net).await;
}

#[tokio::test(start_paused = true)]
async fn author_without_the_role_or_unknown_is_denied() {
    let (mut net, first) = cluster().await;
    let mut reader = draft(&net, 1, Action::Submit);
    reader.author = net.fleet.id("op2");
    let entry = SignedEntry::submit(&net.fleet.key("op2"), &net.fleet.chain, reader, &task("k"));
    assert_eq!(refusal(&net, &entry).await, Reason::Denied);
    let mut cancel = draft(&net, 2, Action::Cancel { task: first });
    cancel.author = net.fleet.id("op2");
    let entry = SignedEntry::sign(&net.fleet.key("op2"), &net.fleet.chain, cancel, Payload::new());
    assert_eq!(refusal(&net, &entry).await, Reason::Denied);
    let mut stranger = draft(&net, 1, Action::Submit);
    stranger.author = common::ids::DeviceId([7; 32]);
    let entry = signed(&net, stranger, &task("k"));
    assert_eq!(refusal(&net, &entry).await, Reason::UnknownKey);
    go_on(&mut net).await;
}

#[tokio::test(start_paused = true)]
async fn entry_for_another_cluster_or_fleet_is_refused() {
    let (mut net, _) = cluster().await;
    let mut elsewhere = draft(&net, 50, Action::Submit);
    elsewhere.cluster = ClusterId(1);
    assert_eq!(
        refusal(&net, &signed(&net, elsewhere, &task("k"))).await,
        Reason::WrongCluster
    );
    let other = Fleet::new(1, 3, 1);
    let foreign = SignedEntry::submit(
        &net.fleet.key("op1"),
        &other.chain,
        draft(&net, 50, Action::Submit),
        &task("k"),
    );
    assert_eq!(
        refusal(&net, &foreign).await,
        Reason::Malformed,
        "signed for another chain"
    );
    let mut constrained = task("k");
    constrained.constraints.cluster = Some(ClusterId(1));
    let entry = signed(&net, draft(&net, 50, Action::Submit), &constrained);
    assert_eq!(refusal(&net, &entry).await, Reason::Constrained);
    go_on(&mut net).await;
}

#[tokio::test(start_paused = true)]
async fn signature_of_another_kind_of_thing_is_refused() {
    let (mut net, first) = cluster().await;
    let claim = Action::Claim {
        task: first,
        assignment: Assignment(0),
        counter: HolderCounter(1),
    };
    let claim = net.fleet.entry("c1-1", C1, 50, Scope::Cluster, claim);
    // The claim's signature on a submission by the same author under the same number.
    let mut submit = net.fleet.submit("c1-1", C1, 50, Scope::Cluster, &task("k"));
    submit.signature = claim.signature;
    assert_eq!(refusal(&net, &submit).await, Reason::Malformed);
    // A signature over the same bytes in another domain.
    let mut attested = net.fleet.submit("c1-1", C1, 50, Scope::Cluster, &task("k"));
    let header = common::testing::ClusterLog::new(&net.fleet, C1)
        .granted(&net.fleet, vec![attested.clone()])
        .header;
    attested.signature = net.fleet.attest(&header, &net.fleet.roster(C1), 0).signature;
    assert_eq!(refusal(&net, &attested).await, Reason::Malformed);
    go_on(&mut net).await;
}

#[tokio::test(start_paused = true)]
async fn key_version_that_is_not_registered_is_refused() {
    let (mut net, _) = cluster().await;
    for version in [1, u32::MAX] {
        let mut newer = draft(&net, 50, Action::Submit);
        newer.key_version = KeyVersion(version);
        assert_eq!(
            refusal(&net, &signed(&net, newer, &task("k"))).await,
            Reason::UnknownKey
        );
    }
    go_on(&mut net).await;
}

#[tokio::test(start_paused = true)]
async fn task_that_breaks_a_rule_of_its_own_is_refused() {
    let (mut net, first) = cluster().await;
    let mut bad: Vec<(&str, Vec<u8>)> = Vec::new();
    let mut broken = |why, change: &dyn Fn(&mut Task)| {
        let mut task = task("k");
        change(&mut task);
        bad.push((why, encode(&task)));
    };
    let off_the_globe = |lat_e7, lon_e7| Place::Geo {
        lat_e7,
        lon_e7,
        alt_m: 0,
    };
    broken("latitude", &|task| {
        task.places = vec![off_the_globe(900_000_001, 0)].try_into().unwrap()
    });
    broken("longitude", &|task| {
        task.places = vec![off_the_globe(0, i32::MIN)].try_into().unwrap()
    });
    broken("empty key", &|task| task.key = Default::default());
    broken("linked twice", &|task| {
        task.after = vec![first, first].try_into().unwrap()
    });
    broken("no attempts", &|task| task.attempts_max = 0);
    bad.push(("not a task", vec![0xff; 40]));
    bad.push(("nothing", Vec::new()));
    bad.push(("links without end", with_links(9)));
    bad.push(("links without end", with_links(300)));
    bad.push(("one byte more", [encode(&task("k")), vec![0]].concat()));
    for (why, bytes) in bad {
        let draft = draft(&net, 50, Action::Submit);
        let entry = SignedEntry::sign(&net.fleet.key("op1"), &net.fleet.chain, draft, payload_of(bytes));
        assert_eq!(refusal(&net, &entry).await, Reason::Malformed, "{why}");
    }
    // On the drone's side, before anything is signed.
    for lat in ["NaN", "1e999", "91", "null"] {
        let line =
            format!(r#"{{"verb":"submit","spec":{{"key":"k","kind":"survey","places":[{{"lat":{lat},"lon":0}}]}}}}"#);
        let error = Request::from_line(&line).expect_err(lat);
        assert!(error.field.starts_with("spec.places"), "{error}");
    }
    go_on(&mut net).await;
}

/// The bytes of a task that waits for `count` others: more than a task may name.
fn with_links(count: usize) -> Vec<u8> {
    let (none, mut one) = (task("k"), task("k"));
    one.after = vec![TaskId([1; 32])].try_into().unwrap();
    let (none, one) = (encode(&none), encode(&one));
    let at = (0..none.len())
        .find(|at| none[*at] != one[*at])
        .expect("the count of links differs");
    let mut bytes = none[..at].to_vec();
    let mut left = count;
    while left >= 0x80 {
        bytes.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
    bytes.extend((0..count).flat_map(|n| sha256(&[&n.to_be_bytes()]).0));
    bytes.extend(&none[at + 1..]);
    bytes
}

#[tokio::test(start_paused = true)]
async fn author_above_its_rate_is_told_when_to_come_back() {
    let mut net = Net::new();
    net.limits.author_entries_per_second = 10;
    net.limits.author_entries_burst = 20;
    let mut net = net.all_started().await;
    let leader = net.leader().await;
    let (mut taken, mut told) = (0, None);
    let begun = tokio::time::Instant::now();
    for _ in 0..40 {
        let entry = net.signed_task(Scope::Cluster);
        match net.agent(&leader).enter(entry).await {
            WriteOutcome::Committed(_) => taken += 1,
            WriteOutcome::Refused(WriteRefusal::Overloaded { what, retry_after_ms }) => {
                assert_eq!(what.as_str(), "author");
                told = Some(retry_after_ms);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let gained = begun.elapsed().as_millis() as u64 / 100;
    let wait_ms = told.expect("the burst is used up");
    assert!(
        (20..=21 + gained).contains(&taken) && (1..=100).contains(&wait_ms),
        "{taken}, {wait_ms} ms"
    );
    // Another author is not held up, and this one comes in after the time it was told.
    let drones = net.fleet.submit("c1-1", C1, 1, Scope::Cluster, &task("drone"));
    assert!(matches!(
        net.agent(&leader).enter(drones).await,
        WriteOutcome::Committed(_)
    ));
    tokio::time::sleep(std::time::Duration::from_millis(wait_ms)).await;
    let entry = net.signed_task(Scope::Cluster);
    assert!(matches!(
        net.agent(&leader).enter(entry).await,
        WriteOutcome::Committed(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn more_writes_at_once_than_the_leader_takes_are_refused_as_overload() {
    let mut net = Net::new();
    net.raft.proposals_max = 4;
    let mut net = net.all_started().await;
    let leader = net.leader().await;
    let entries: Vec<_> = (0..64).map(|_| net.signed_task(Scope::Cluster)).collect();
    let ids: Vec<_> = entries
        .iter()
        .map(|entry| TaskId::from(entry.id(&net.fleet.chain)))
        .collect();
    let writes = entries.into_iter().map(|entry| net.agent(&leader).enter(entry));
    let outcomes = futures::future::join_all(writes).await;
    let mut refused = 0;
    for (outcome, id) in outcomes.iter().zip(ids) {
        let row = net.task(&leader, id, Consistency::Linearizable).await;
        match outcome {
            WriteOutcome::Committed(_) => assert!(row.is_some()),
            WriteOutcome::Refused(WriteRefusal::Overloaded { what, retry_after_ms }) => {
                assert!(what.as_str() == "proposals" && *retry_after_ms > 0);
                assert_eq!(row, None, "refused is not in the log");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!((1..64).contains(&refused), "{refused}");
    go_on(&mut net).await;
}

#[tokio::test(start_paused = true)]
async fn claims_and_reports_under_old_fences_and_on_finished_tasks_are_refused() {
    let (mut net, task) = cluster().await;
    let entry = |net: &Net, label: &str, number: u64, action: Action| {
        net.fleet.entry(label, C1, number, Scope::Cluster, action)
    };
    let claim = |assignment, counter| Action::Claim {
        task,
        assignment: Assignment(assignment),
        counter: HolderCounter(counter),
    };
    let leader = net.leader().await;
    let wrong = entry(&net, "c1-2", 1_000, claim(7, 1));
    assert_eq!(
        refusal(&net, &wrong).await,
        Reason::Fenced,
        "an assignment that is not the task's"
    );
    let granted = entry(&net, "c1-2", 1_001, claim(0, 5));
    let WriteOutcome::Committed(answer) = net.agent(&leader).enter(granted).await else {
        panic!("the claim is granted");
    };
    let fence = Fence {
        assignment: Assignment(0),
        founding: Founding(0),
        index: answer.index,
    };
    still(&net).await;
    let taken = entry(&net, "c1-3", 1_000, claim(0, 1));
    assert_eq!(refusal(&net, &taken).await, Reason::WrongState(TaskState::Claimed));
    let lower = Fence {
        index: LogIndex(answer.index.0 - 1),
        ..fence
    };
    let report = |fence| Action::Progress {
        task,
        fence,
        progress: Progress::Started,
    };
    let old = entry(&net, "c1-2", 1_002, report(lower));
    assert_eq!(refusal(&net, &old).await, Reason::Fenced, "a lower fence");
    let stolen = entry(&net, "c1-3", 1_002, report(fence));
    assert_eq!(refusal(&net, &stolen).await, Reason::NotHolder, "another drone's fence");
    let renew = entry(
        &net,
        "c1-2",
        0,
        Action::Renew {
            counter: HolderCounter(4),
        },
    );
    assert_eq!(refusal(&net, &renew).await, Reason::OldCounter, "an old renewal");
    let done = entry(&net, "c1-2", 1_003, Action::Complete { task, fence });
    assert!(matches!(
        net.agent(&leader).enter(done).await,
        WriteOutcome::Committed(_)
    ));
    still(&net).await;
    let finished = entry(&net, "c1-2", 1_004, claim(0, 50));
    assert_eq!(refusal(&net, &finished).await, Reason::WrongState(TaskState::Completed));
    let after = entry(&net, "c1-2", 1_005, report(fence));
    assert_eq!(refusal(&net, &after).await, Reason::WrongState(TaskState::Completed));
    go_on(&mut net).await;
}
