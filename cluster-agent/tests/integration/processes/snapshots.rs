//! A follower that was away for longer than the log remembers, killed while a snapshot brings it back.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use common::{
    ids::{ClusterId, LogIndex, TaskId},
    task::Scope,
    testing::task,
    wire::{
        cluster::WriteOutcome,
        op::{AgentStatus, Consistency, Mode, OpAnswer, OpRequest},
    },
};
use futures::future::{join_all, select};
use rand::{RngExt as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};
use tokio::time::{Instant, sleep};
use transport::relay::Rule;

use super::harness::{AGENTS, Operator, PATIENCE, Place, Process, Shape};

const ROUNDS: usize = 5;
/// A snapshot after so many entries, and what is kept below it.
const SNAPSHOT_ENTRIES: u64 = 40;
const KEPT_ENTRIES: u64 = 10;
const SMALL_LOG: &str = "\n[limits]\nsnapshot_entries = 40\nsnapshot_entries_kept = 10\n\n[link]\nprofile = \"dev\"\n";
/// Written while the follower is away: two snapshots and more.
const WRITES: usize = 120;
/// So that a snapshot takes several frames.
const PAYLOAD_BYTES: usize = 3 * 1024;
/// Writes under way at once.
const WRITERS: usize = 12;
/// All tasks of a run.
const TASKS: usize = WRITERS + ROUNDS * (WRITES + SNAPSHOT_ENTRIES as usize + WRITERS);
/// After a snapshot above 4 MiB the next one waits for as much log: the follower would be sent entries.
const _: () = assert!(TASKS * (PAYLOAD_BYTES + 1024) < 4 * 1024 * 1024);
/// On every link to and from the follower: its catch-up takes long enough to be hit.
const SLOW: Rule = Rule {
    drops_all: false,
    loss_ppm: 0,
    delay_us: 15_000,
    jitter_us: 0,
    reorder_ppm: 0,
    reorder_us: 0,
    duplicate_ppm: 0,
};

struct Cluster {
    place: Place,
    operator: Operator,
    running: BTreeMap<&'static str, Process>,
    number: u64,
    acknowledged: Vec<TaskId>,
}

impl Cluster {
    async fn start(seed: u64) -> Self {
        let place = Place::of(&Shape {
            agents: 3,
            relay: Some(seed),
            has_ground: false,
            config: SMALL_LOG,
        });
        let cluster = Self {
            operator: Operator::connect(&place),
            running: AGENTS.map(|label| (label, place.spawn(label))).into(),
            place,
            number: 0,
            acknowledged: Vec::new(),
        };
        cluster.operator.leader().await;
        cluster
    }

    /// Submits through the agents that run until each of `count` tasks is acknowledged.
    async fn write(&mut self, count: usize) {
        let numbers: Vec<u64> = (self.number + 1..=self.number + count as u64).collect();
        self.number += count as u64;
        for numbers in numbers.chunks(WRITERS) {
            let done = join_all(numbers.iter().map(|number| self.submit(*number))).await;
            self.acknowledged.extend(done);
        }
    }

    async fn submit(&self, number: u64) -> TaskId {
        let mut content = task(&format!("task-{number}"));
        content.payload = vec![number as u8; PAYLOAD_BYTES].try_into().unwrap();
        let fleet = &self.place.fleet;
        let entry = fleet.submit("op1", ClusterId(0), number, Scope::Cluster, &content);
        let deadline = Instant::now() + PATIENCE;
        for label in self.running.keys().cycle() {
            let answer = self.operator.ask(label, &OpRequest::Enter(entry.clone())).await;
            if let Ok(OpAnswer::Write {
                outcome: WriteOutcome::Committed(_),
                ..
            }) = answer
            {
                break;
            }
            assert!(Instant::now() < deadline, "not acknowledged: {answer:?}");
            sleep(Duration::from_millis(20)).await;
        }
        TaskId::from(entry.id(&fleet.chain))
    }

    async fn follower(&self) -> &'static str {
        let leader = self.operator.leader().await;
        AGENTS.into_iter().find(|label| *label != leader).unwrap()
    }

    fn spawn(&mut self, label: &'static str) {
        self.running.insert(label, self.place.spawn(label));
    }

    fn kill(&mut self, label: &str) {
        self.running.remove(label).expect("it runs").kill();
    }

    fn slow_down(&self, label: &str, rule: Rule) {
        let others = AGENTS.iter().filter(|other| **other != label);
        let links = others.flat_map(|other| [(label, *other), (*other, label)]);
        self.place.relay().set(links, rule).unwrap();
    }

    fn drafts(&self, label: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        drafts_below(&self.place.path(label).join("data"), &mut found);
        found
    }

    /// Waits until part of a snapshot has reached the disk of `label`; or all of it, where the transfer
    /// was over between two looks.
    async fn until_snapshot_arrives_at(&self, label: &str, last: LogIndex) {
        let deadline = Instant::now() + PATIENCE;
        let is_incoming = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "part");
        let is_over = async {
            loop {
                let status = self.operator.status(label).await;
                if status.is_some_and(|status| status.context.applied >= last) {
                    break;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let is_seen = async {
            while !self.drafts(label).iter().any(is_incoming) {
                assert!(
                    Instant::now() < deadline,
                    "{label} is sent no snapshot: {}",
                    self.place.log(label)
                );
                sleep(Duration::from_millis(1)).await;
            }
        };
        select(pin!(is_over), pin!(is_seen)).await;
    }

    /// Waits until all agents say that they are not behind, with one state at one index and no draft left.
    async fn until_all_agree(&self) -> Vec<AgentStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asked = join_all(AGENTS.map(|label| self.operator.status(label))).await;
            let drafts: Vec<PathBuf> = AGENTS.iter().flat_map(|label| self.drafts(label)).collect();
            if let Some(found) = asked.iter().cloned().collect::<Option<Vec<AgentStatus>>>() {
                let is_level = |status: &AgentStatus| {
                    status.context.mode == Mode::Island && status.context.applied == found[0].context.applied
                };
                if found.iter().all(is_level) && drafts.is_empty() {
                    return found;
                }
            }
            assert!(Instant::now() < deadline, "{asked:?}, drafts {drafts:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Everything acknowledged is in the own state of `label`.
    async fn has_all(&self, label: &str) {
        for ids in self.acknowledged.chunks(WRITERS) {
            let asked = ids.iter().map(|id| self.operator.task(label, *id, Consistency::Local));
            for (id, found) in ids.iter().zip(join_all(asked).await) {
                assert!(found.is_some(), "{label} lost the acknowledged task {id}");
            }
        }
    }
}

/// Files that are written beside their place, whoever writes them.
fn drafts_below(dir: &Path, found: &mut Vec<PathBuf>) {
    // What is listed may be gone a moment later.
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            drafts_below(&path, found);
        } else if ["tmp", "part", "generating"].contains(&extension.as_str()) {
            found.push(path);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follower_killed_while_a_snapshot_brings_it_back_ends_with_the_same_state() {
    let text = std::env::var("MUSTER_KILL_SEED").ok();
    let seed = text.map_or(u64::from(std::process::id()), |text| text.parse().unwrap());
    println!("MUSTER_KILL_SEED={seed}");
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut cluster = Cluster::start(seed).await;
    let (mut kills, mut kills_in_transfer) = (0, 0);
    cluster.write(WRITERS).await;
    for round in 0..ROUNDS {
        let victim = cluster.follower().await;
        let left_at = cluster.operator.answered_status(victim).await.last_index;
        cluster.kill(victim);
        cluster.write(WRITES).await;
        let leader = cluster.operator.leader().await;
        let last = cluster.operator.answered_status(&leader).await.last_index;
        assert!(
            last.0 > left_at.0 + 2 * SNAPSHOT_ENTRIES + KEPT_ENTRIES,
            "the log goes from {left_at} to {last}: the others may still hold what {victim} needs"
        );
        cluster.slow_down(victim, SLOW);
        for attempt in 0..3 {
            cluster.spawn(victim);
            // The first kill waits for the transfer; the others come whenever they come.
            let pause_ms = if attempt == 0 {
                cluster.until_snapshot_arrives_at(victim, last).await;
                random.random_range(0..60)
            } else {
                random.random_range(0..700)
            };
            sleep(Duration::from_millis(pause_ms)).await;
            cluster.kill(victim);
            kills += 1;
            kills_in_transfer += usize::from(!cluster.drafts(victim).is_empty());
            if attempt == 1 {
                // A newer snapshot than the one whose part lies there.
                cluster.write(SNAPSHOT_ENTRIES as usize + WRITERS).await;
            }
        }
        cluster.spawn(victim);
        cluster.slow_down(victim, Rule::default());
        let found = cluster.until_all_agree().await;
        let applied: LogIndex = found[0].context.applied;
        assert!(applied >= last, "{applied} after {last}");
        assert!(
            found.iter().all(|status| status.queue_digest == found[0].queue_digest),
            "round {round}: other states at one index: {found:?}"
        );
        cluster.has_all(victim).await;
    }
    println!("{kills_in_transfer} of {kills} kills left part of a snapshot on the disk");
    assert!(kills_in_transfer > 0, "no kill hit a transfer");
    for label in AGENTS {
        cluster.has_all(label).await;
    }
    assert_eq!(cluster.acknowledged.len(), TASKS);
}
