//! Agents whose disk is full, fails, or cannot be written: they stop and say why, the others go on, and
//! nothing that was acknowledged is lost.

use std::{collections::BTreeMap, time::Duration};

use common::{
    ids::{ClusterId, TaskId},
    task::Scope,
    testing::task,
    wire::{
        cluster::WriteOutcome,
        op::{Consistency, OpAnswer, OpRequest},
    },
};
use powercut::{Fault, Faults};

use super::harness::{AGENTS, Operator, PATIENCE, Place, Process, Shape};

/// `EX_IOERR`: the disk failed; a restart goes on once it does not.
const DISK: i32 = 74;

struct Cluster {
    place: Place,
    operator: Operator,
    running: BTreeMap<&'static str, Process>,
    number: u64,
    acknowledged: Vec<TaskId>,
}

impl Cluster {
    /// Three agents whose log is of this kind, `victim` on a disk with faults.
    async fn start(victim: &str, log: &str) -> (Self, Faults) {
        let place = Place::of(&Shape {
            agents: 3,
            relay: None,
            has_ground: false,
            config: match log {
                "sled" => "\n[link]\nprofile = \"dev\"\n\n[disk]\nlog = \"sled\"\n",
                _ => "\n[link]\nprofile = \"dev\"\n",
            },
        });
        let faults = place.faults(victim);
        let running = AGENTS.map(|label| match label == victim {
            true => (label, place.spawn_on(label, &faults)),
            false => (label, place.spawn(label)),
        });
        let cluster = Self {
            operator: Operator::connect(&place),
            running: running.into(),
            place,
            number: 0,
            acknowledged: Vec::new(),
        };
        cluster.operator.leader().await;
        (cluster, faults)
    }

    /// Submits one task through whoever takes it, until it is acknowledged.
    async fn submit(&mut self) {
        self.number += 1;
        let task = task(&format!("task-{}", self.number));
        let place = &self.place;
        let entry = place
            .fleet
            .submit("op1", ClusterId(0), self.number, Scope::Cluster, &task);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        for label in AGENTS.iter().cycle() {
            let answer = self.operator.ask(label, &OpRequest::Enter(entry.clone())).await;
            let is_committed = matches!(
                answer,
                Ok(OpAnswer::Write {
                    outcome: WriteOutcome::Committed(_),
                    ..
                })
            );
            if is_committed {
                self.acknowledged.push(TaskId::from(entry.id(&place.fleet.chain)));
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "not acknowledged: {answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until `label` itself has all that was acknowledged.
    async fn has_all(&self, label: &str) {
        for id in &self.acknowledged {
            let found = self.operator.task(label, *id, Consistency::Linearizable).await;
            assert!(
                found.is_some(),
                "{label} lost the acknowledged task {id}: {}",
                self.place.log(label)
            );
        }
    }

    /// Goes on writing until `victim` ends by itself.
    async fn until_end_of(&mut self, victim: &'static str) -> Option<i32> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.running.get_mut(victim).expect("it runs").is_running() {
            self.submit().await;
            assert!(
                tokio::time::Instant::now() < deadline,
                "{victim} goes on: {}",
                self.place.log(victim)
            );
        }
        self.running.remove(victim).expect("it ran").end().await
    }
}

/// The disk of `c1-1` fails where a path has `part` in it, while the cluster works.
async fn fails_at_work(log: &str, fault: Fault, part: &str, wanted: &[&str]) {
    const VICTIM: &str = "c1-1";
    let (mut cluster, faults) = Cluster::start(VICTIM, log).await;
    for _ in 0..5 {
        cluster.submit().await;
    }
    faults.fail(fault, part);
    assert_eq!(
        cluster.until_end_of(VICTIM).await,
        Some(DISK),
        "{}",
        cluster.place.log(VICTIM)
    );
    let log = cluster.place.log(VICTIM);
    let last = log.lines().last().unwrap_or_default();
    for want in wanted {
        assert!(last.contains(want), "{want:?} is missing in {last:?}\n{log}");
    }
    for _ in 0..3 {
        cluster.submit().await;
    }
    faults.mend();
    cluster.running.insert(VICTIM, cluster.place.spawn_on(VICTIM, &faults));
    for label in AGENTS {
        cluster.has_all(label).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_on_a_full_disk_stops_and_goes_on_when_there_is_room() {
    fails_at_work("segments", Fault::Full, "/data", &["data/", "no space", "make room"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_sync_of_the_log_is_final_until_a_restart() {
    fails_at_work(
        "segments",
        Fault::SyncOnce,
        ".seg",
        &["data/log/", ".seg", "start again"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_sync_of_a_log_in_sled_is_final_until_a_restart() {
    fails_at_work("sled", Fault::SyncOnce, "/log/db", &["data/log/db", "start again"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_does_not_start_on_a_disk_that_it_cannot_write() {
    let place = Place::new();
    let faults = place.faults("c1-1");
    faults.fail(Fault::ReadOnly, "/data");
    assert_eq!(place.spawn_on("c1-1", &faults).end().await, Some(DISK));
    let log = place.log("c1-1");
    assert!(
        log.contains("/data") && log.contains("Read-only file system") && log.contains("make it writable"),
        "{log}"
    );
    assert!(!place.path("c1-1").join("data").exists(), "nothing was written");
    // The same once there is data.
    faults.mend();
    let running = place.spawn_on("c1-1", &faults);
    let operator = Operator::connect(&place);
    while operator.status("c1-1").await.is_none() {}
    running.kill();
    let before = content(&place.path("c1-1").join("data"));
    faults.fail(Fault::ReadOnly, "/data");
    assert_eq!(place.spawn_on("c1-1", &faults).end().await, Some(DISK));
    assert_eq!(content(&place.path("c1-1").join("data")), before, "nothing was written");
}

/// Every file below `dir` with its bytes.
fn content(dir: &std::path::Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(content(&entry.path()));
        } else if kind.is_file() {
            found.insert(entry.path(), std::fs::read(entry.path()).unwrap());
        }
    }
    found
}
