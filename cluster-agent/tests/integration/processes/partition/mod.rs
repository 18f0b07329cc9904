//! A cluster of real processes at work while its links are cut: who submits, who reads, and the journal by which both are judged.
//!
//! # Rules
//! * What a client was told is in the journal before anything is concluded from it; nothing the agents say of
//!   themselves counts as an acknowledgement.
//! * Judged as they come: an acknowledgement by an agent that was cut off alone; a read that does not show a write
//!   acknowledged before the age it claims, or before it was sent if it is linearizable; two states with one index.
//! * Judged at the end: every acknowledged task is there once, no refused one is, every unknown one had one outcome.

mod journal;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{
    ids::{ClusterId, LogIndex, TaskId},
    task::Scope,
    testing::task,
    verdict::Answer,
    wire::{
        cluster::WriteOutcome,
        op::{AgentStatus, Consistency, Mode, OpAnswer, OpRequest, TaskView},
    },
};
use rand::{RngExt as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use transport::relay::Rule;

use self::journal::{Alone, Journal};
use crate::processes::harness::{Operator, PATIENCE, Place, Process, Shape};

/// Rounds of each test unless `MUSTER_CUT_ROUNDS` says otherwise.
const ROUNDS: u64 = 20;
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Between two writes of a client, and between two reads at an agent.
const PACE: Duration = Duration::from_millis(15);
/// A read asks for one of this many newest acknowledged tasks.
const RECENT: usize = 400;

/// A number from the environment.
fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

struct Shared {
    place: Place,
    operator: Operator,
    journal: Mutex<Journal>,
    numbers: Mutex<u64>,
    is_over: AtomicBool,
}

/// A cluster at work.
pub struct World {
    shared: Arc<Shared>,
    crew: JoinSet<()>,
    running: BTreeMap<String, Process>,
    pub random: Xoshiro256PlusPlus,
    pub rounds: u64,
    name: &'static str,
}

impl World {
    /// Starts a cluster of `shape` (its relay's seed is drawn), clients and readers at every agent. `on_ground` is called before
    /// the agents start.
    pub async fn start(name: &'static str, mut shape: Shape, on_ground: impl FnOnce(&Place)) -> Self {
        let seed = from_env("MUSTER_CUT_SEED").unwrap_or_else(|| u64::from(std::process::id()));
        let rounds = from_env("MUSTER_CUT_ROUNDS").unwrap_or(ROUNDS);
        println!("{name}: MUSTER_CUT_SEED={seed} MUSTER_CUT_ROUNDS={rounds}");
        shape.relay = Some(seed);
        let place = Place::of(&shape);
        on_ground(&place);
        let labels = place.labels.iter();
        let running = labels.map(|label| (label.clone(), place.spawn(label))).collect();
        let shared = Arc::new(Shared {
            operator: Operator::connect(&place),
            place,
            journal: Mutex::default(),
            numbers: Mutex::new(0),
            is_over: AtomicBool::new(false),
        });
        let mut world = Self {
            shared: shared.clone(),
            crew: JoinSet::new(),
            running,
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            rounds,
            name,
        };
        world.caught_up().await;
        for label in shared.place.labels.clone() {
            world.crew.spawn(submit_all(shared.clone(), label.clone()));
            for consistency in [Consistency::Local, Consistency::Linearizable] {
                let seed = world.random.random();
                world
                    .crew
                    .spawn(read_all(shared.clone(), label.clone(), consistency, seed));
            }
        }
        world.acknowledged_by(&world.labels(), 3).await;
        world
    }

    /// One more client at every agent.
    pub fn add_clients(&mut self) {
        for label in self.labels() {
            self.crew.spawn(submit_all(self.shared.clone(), label));
        }
    }

    pub fn labels(&self) -> Vec<String> {
        self.shared.place.labels.clone()
    }

    pub fn place(&self) -> &Place {
        &self.shared.place
    }

    fn journal(&self) -> std::sync::MutexGuard<'_, Journal> {
        self.shared.journal.lock().unwrap()
    }

    /// A random pause, so that the next cut comes at any moment.
    pub async fn pause(&mut self, limit_ms: u64) {
        let pause_ms = self.random.random_range(0..limit_ms);
        sleep(Duration::from_millis(pause_ms)).await;
    }

    /// All labels but `left_out`, in an order drawn anew.
    pub fn others(&mut self, left_out: &[&str]) -> Vec<String> {
        let mut others = self.labels();
        others.retain(|label| !left_out.contains(&label.as_str()));
        for last in (1..others.len()).rev() {
            others.swap(last, self.random.random_range(0..=last));
        }
        others
    }

    /// Who leads, by the word of the one with the highest term, and that term.
    pub async fn leader(&self) -> (String, u64) {
        self.leader_among(&self.labels(), 0).await
    }

    /// Waits until one of `labels` leads in a term above `term`.
    pub async fn leader_among(&self, labels: &[String], term: u64) -> (String, u64) {
        self.until("somebody leads", async || {
            let mut leaders = Vec::new();
            for label in labels {
                if let Some(status) = self.status(label).await
                    && status.is_leader
                    && status.context.term.0 > term
                {
                    leaders.push((status.context.term.0, label.clone()));
                }
            }
            leaders.into_iter().max().map(|(term, label)| (label, term))
        })
        .await
    }

    pub async fn status(&self, label: &str) -> Option<AgentStatus> {
        let status = self.shared.operator.status(label).await?;
        self.journal().state(label, &status);
        Some(status)
    }

    /// Cuts `label` off from all other processes.
    pub fn cut_alone(&self, label: &str) {
        self.place().relay().isolate(label).unwrap();
        // Nothing passes from here on.
        self.journal().alone.insert(label.to_owned(), Alone::now());
    }

    /// Waits until `label`, which is cut off alone, has refused a write for want of a majority (one that is
    /// cut off in one direction may have to call it unknown) and answered a local read with its age.
    pub async fn goes_read_only(&self, label: &str, is_whole: bool) {
        self.until(&format!("{label} refuses writes and answers reads"), async || {
            let journal = self.journal();
            let alone = &journal.alone[label];
            let writes = alone.refused + if is_whole { 0 } else { alone.unknown };
            (writes > 0 && alone.reads > 0).then_some(())
        })
        .await;
    }

    /// Cuts `label` off from all other processes: both ways, or only what it sends, or only what it would receive. However
    /// it is, no majority can tell it that it has a write. Returns whether both ways are cut.
    pub fn cut_alone_some_way(&mut self, label: &str) -> bool {
        let others = self.others(&[label]);
        let others = || others.iter().map(String::as_str);
        let way = self.random.random_range(0..4);
        match way {
            0 => self
                .place()
                .relay()
                .set(others().map(|other| (label, other)), Rule::CUT),
            1 => self
                .place()
                .relay()
                .set(others().map(|other| (other, label)), Rule::CUT),
            _ => self.place().relay().isolate(label),
        }
        .unwrap();
        self.journal().alone.insert(label.to_owned(), Alone::now());
        way > 1
    }

    /// Kills the agent `label` at once and starts it again.
    pub fn restart(&mut self, label: &str) {
        self.running.remove(label).expect("all agents run").kill();
        let process = self.place().spawn(label);
        self.running.insert(label.to_owned(), process);
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.journal().acks.len()
    }

    /// Waits until each of `labels` has acknowledged `count` more writes.
    pub async fn acknowledged_by(&self, labels: &[String], count: usize) {
        let begun = self.acknowledged();
        self.until("they acknowledge writes", async || {
            let journal = self.journal();
            let by = |label: &String| journal.acks[begun..].iter().filter(|ack| ack.by == *label).count();
            labels.iter().all(|label| by(label) >= count).then_some(())
        })
        .await;
    }

    /// Heals all links, waits until all agents have caught up, learns what became of unknown writes.
    pub async fn heal(&self) {
        // Whatever is acknowledged from here on may have passed a healed link.
        self.journal().alone.clear();
        self.place().relay().heal();
        self.caught_up().await;
        self.settle().await;
        self.must_be_innocent();
    }

    /// Waits until all agents follow one leader and have applied what any of them has now.
    async fn caught_up(&self) {
        let mut target = LogIndex(0);
        for label in self.labels() {
            let status = self.status(&label).await;
            target = status.map_or(target, |status| target.max(status.last_index));
        }
        self.until("all have caught up", async || {
            let mut leaders = BTreeSet::new();
            for label in self.labels() {
                let status = self.status(&label).await?;
                let is_whole = !matches!(status.context.mode, Mode::ReadOnly | Mode::CatchingUp);
                if !is_whole || status.context.applied < target {
                    return None;
                }
                leaders.insert(status.context.leader?);
            }
            (leaders.len() == 1).then_some(())
        })
        .await;
    }

    /// Sends unknown writes again, the same bytes, until each has its outcome; two agents must tell the same one.
    async fn settle(&self) {
        let unknown = std::mem::take(&mut self.journal().unknown);
        let labels = self.labels();
        for (nth, entry) in unknown.into_iter().enumerate() {
            let id = TaskId::from(entry.id(&self.place().fleet.chain));
            let mut outcomes = Vec::new();
            for turn in 0..2 {
                let label = &labels[(nth + turn) % labels.len()];
                let (sent, answer) = self
                    .until("an unknown write has an outcome", async || {
                        let sent = Instant::now();
                        let answer = self.shared.operator.ask(label, &OpRequest::Enter(entry.clone())).await;
                        committed(answer.ok()?).map(|answer| (sent, answer))
                    })
                    .await;
                outcomes.push(answer);
                self.journal().acknowledged(id, label, answer, sent);
            }
            if outcomes[0] != outcomes[1] {
                self.journal()
                    .faults
                    .push(format!("{id} has two outcomes: {outcomes:?}"));
            }
        }
    }

    fn must_be_innocent(&self) {
        // Not under the lock: who waits for it would panic too, and hide the reason.
        let faults = self.journal().faults.clone();
        let first = &faults[..faults.len().min(5)];
        assert!(faults.is_empty(), "{}: {} faults: {first:#?}", self.name, faults.len());
    }

    /// Ends the clients and judges everything: what was acknowledged is there once, what was refused is not.
    pub async fn judge(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.crew.join_next().await {
            ended.expect("clients and readers do not panic");
        }
        self.heal().await;
        self.same_state().await;
        let (acked, refused) = {
            let journal = self.journal();
            let acked: BTreeSet<TaskId> = journal.acks.iter().map(|ack| ack.id).collect();
            (acked, journal.refused.clone())
        };
        for label in self.labels() {
            let tasks = self.all_tasks(&label).await;
            let ids: BTreeSet<TaskId> = tasks.iter().map(|task| task.id).collect();
            let keys: BTreeSet<_> = tasks.iter().map(|task| task.task.key.clone()).collect();
            assert_eq!(keys.len(), tasks.len(), "{label} has a key twice");
            let lost: Vec<_> = acked.difference(&ids).collect();
            assert!(lost.is_empty(), "{label} lost {lost:?}");
            let risen: Vec<_> = refused.intersection(&ids).collect();
            assert!(risen.is_empty(), "{label} has what was refused: {risen:?}");
            assert_eq!(ids.len(), acked.len(), "{label} has tasks that nobody was told of");
        }
        let journal = self.journal();
        println!(
            "{}: {} acknowledged, {} refused; reads: {} checked, {} while alone, {} of due tasks, {} of unknown age",
            self.name,
            acked.len(),
            refused.len(),
            journal.reads_checked,
            journal.reads_while_alone,
            journal.reads_of_due_tasks,
            journal.reads_of_unknown_age
        );
        assert!(
            journal.acks.len() as u64 > 5 * self.rounds,
            "too little was done to say anything"
        );
        assert!(
            journal.reads_of_due_tasks > 5 * self.rounds,
            "too little was read to say anything"
        );
    }

    /// Waits until all agents have the same index, and so the same state.
    async fn same_state(&self) {
        self.until("all have one state", async || {
            let mut states = BTreeSet::new();
            for label in self.labels() {
                let status = self.status(&label).await?;
                states.insert((status.context.applied, status.queue_digest));
            }
            (states.len() == 1).then_some(())
        })
        .await;
        self.must_be_innocent();
    }

    /// All tasks of the cluster, by a linearizable read at `label`.
    async fn all_tasks(&self, label: &str) -> Vec<TaskView> {
        let mut all: Vec<TaskView> = Vec::new();
        loop {
            let request = OpRequest::Tasks {
                states: Default::default(),
                after: all.last().map(|task| task.id),
                limit: 256,
                consistency: Consistency::Linearizable,
                staleness_ms_max: None,
            };
            let (tasks, more) = self
                .until("a linearizable read is answered", async || {
                    match self.shared.operator.ask(label, &request).await {
                        Ok(OpAnswer::Tasks { tasks, more, .. }) => Some((tasks, more)),
                        _ => None,
                    }
                })
                .await;
            all.extend(tasks.into_inner());
            if !more {
                return all;
            }
        }
    }

    /// Every acknowledged task with its index in the cluster's log.
    pub fn acknowledged_tasks(&self) -> BTreeMap<TaskId, LogIndex> {
        let journal = self.journal();
        journal.acks.iter().map(|ack| (ack.id, ack.answer.index)).collect()
    }

    /// Tasks whose first submission began at or after `since` and was acknowledged.
    pub fn tasks_sent_since(&self, since: Instant) -> BTreeSet<TaskId> {
        let journal = self.journal();
        let before: BTreeSet<TaskId> = journal
            .acks
            .iter()
            .filter(|ack| ack.sent < since)
            .map(|ack| ack.id)
            .collect();
        let acks = journal.acks.iter().filter(|ack| !before.contains(&ack.id));
        acks.map(|ack| ack.id).collect()
    }

    /// Polls until `look` finds something.
    pub async fn until<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look().await {
                return found;
            }
            if begun.elapsed() > PATIENCE {
                self.tell_all();
                panic!("{}: not within {PATIENCE:?}: {what}", self.name);
            }
            sleep(LOOK).await;
        }
    }

    /// For the reader of a failed test: the end of every agent's log, and where it began if an agent panicked.
    fn tell_all(&self) {
        let faults = self.journal().faults.clone();
        eprintln!("faults: {faults:#?}");
        for label in self.labels() {
            let log = self.place().log(&label);
            let lines: Vec<&str> = log.lines().collect();
            if let Some(at) = lines.iter().position(|line| line.contains("panicked at")) {
                eprintln!(
                    "{label} panicked:\n{}",
                    lines[at.saturating_sub(25)..(at + 30).min(lines.len())].join("\n")
                );
            }
            eprintln!("{label}:\n{}", lines[lines.len().saturating_sub(12)..].join("\n"));
        }
    }
}

fn committed(answer: OpAnswer) -> Option<Answer> {
    match answer {
        OpAnswer::Write {
            outcome: WriteOutcome::Committed(answer),
            ..
        } => Some(answer),
        _ => None,
    }
}

/// A client of the agent `label`: one write after the other.
async fn submit_all(shared: Arc<Shared>, label: String) {
    while !shared.is_over.load(Ordering::Relaxed) {
        let number = {
            let mut numbers = shared.numbers.lock().unwrap();
            *numbers += 1;
            *numbers
        };
        let fleet = &shared.place.fleet;
        let content = task(&format!("task-{number}"));
        let entry = fleet.submit("op1", ClusterId(0), number, Scope::Cluster, &content);
        let id = TaskId::from(entry.id(&fleet.chain));
        let sent = Instant::now();
        let answer = shared.operator.ask(&label, &OpRequest::Enter(entry.clone())).await;
        shared.journal.lock().unwrap().told(&label, id, entry, sent, answer);
        sleep(PACE).await;
    }
}

/// A reader at the agent `label`: asks it for tasks that were acknowledged of late, by whomever.
async fn read_all(shared: Arc<Shared>, label: String, consistency: Consistency, seed: u64) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    while !shared.is_over.load(Ordering::Relaxed) {
        sleep(PACE).await;
        let asked = {
            let journal = shared.journal.lock().unwrap();
            let recent = &journal.acks[journal.acks.len().saturating_sub(RECENT)..];
            (!recent.is_empty()).then(|| recent[random.random_range(0..recent.len())].clone())
        };
        let Some(asked) = asked else { continue };
        let request = OpRequest::Task {
            task: asked.id,
            consistency,
            staleness_ms_max: None,
        };
        let sent = Instant::now();
        let answer = shared.operator.ask(&label, &request).await;
        // The operator's own link is not cut, but the machine may be too busy for an answer.
        let Ok(answer) = answer else { continue };
        let mut journal = shared.journal.lock().unwrap();
        match answer {
            OpAnswer::Task { task, context } => journal.read(&label, sent, &asked, task.as_ref(), &context),
            OpAnswer::NoQuorum { .. } if consistency == Consistency::Linearizable => {}
            other => journal.faults.push(format!("{label} answered {other:?}")),
        }
    }
}
