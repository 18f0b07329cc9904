//! The software on board of one drone: takes tasks, works only while its lease holds, reports.
//!
//! # Rules
//! * It speaks to nothing but its own agent's local socket. While the agent is down it finishes what it
//!   may still do, keeps the result, and reports it when the agent is back.
//! * It begins to work on a task only if the lease outlasts the work, and stops when the lease ends.
//! * A claim whose answer was lost may stand all the same: a row that says "mine" is taken up.
//! * A claim that was granted is not permission: the row's `may_run_until_us` is.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{
    entry::{Fence, Progress},
    ids::TaskId,
    task::TaskState,
};
use tokio::time::{Instant, sleep};
use transport::local::{ErrorCode, LocalClient, Reply, Request, TaskRow, base64};

use super::journal::{Event, Journal};
use crate::clock;

/// Tasks in hand at one time: parcels on one tour.
const TASKS_IN_HAND_MAX: usize = 16;
/// Longest wait for the agent's answer.
const CALL_DEADLINE: Duration = Duration::from_secs(8);
/// Pause of a round in which nothing was to be done.
const IDLE_PAUSE: Duration = Duration::from_millis(60);
/// All claims are renewed this often.
const RENEW_EVERY: Duration = Duration::from_millis(1_500);
/// A task that was refused is left alone for this long.
const REFUSED_PAUSE: Duration = Duration::from_millis(700);
/// Other drones have this long for the tasks that fall to them first.
const OTHERS_FIRST: Duration = Duration::from_millis(1_200);
/// Longest work on a task: the demo shows the queue, not the flight.
const WORK_MAX: Duration = Duration::from_millis(400);
/// A claim that does not become permission for this long is given back.
const PATIENCE: Duration = Duration::from_secs(20);

/// One drone.
#[derive(Clone, Debug)]
pub struct Drone {
    /// Label of its agent.
    pub label: String,
    /// Label of its cluster.
    pub cluster: String,
    /// Its position among the drones of its cluster, and their number.
    pub turn: (usize, usize),
    /// The agent's local socket.
    pub socket: PathBuf,
    /// What it saw.
    pub journal: Journal,
    /// Set when the day is over.
    pub is_over: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Claimed; not yet allowed to work, or not yet said so.
    Claimed,
    /// At work until then.
    AtWork(Instant),
    /// Done; to be reported.
    Done,
}

#[derive(Clone, Copy, Debug)]
struct InHand {
    fence: Fence,
    phase: Phase,
    since: Instant,
    work: Duration,
    /// When the lease ends, as last heard.
    lease_end: Instant,
}

impl InHand {
    fn claimed(fence: Fence, now: Instant, work: Duration) -> Self {
        Self {
            fence,
            phase: Phase::Claimed,
            since: now,
            work,
            lease_end: now,
        }
    }
}

/// The agent is gone or did not answer: connect anew.
struct Disconnected;

struct Onboard {
    drone: Drone,
    client: Option<LocalClient>,
    in_hand: BTreeMap<TaskId, InHand>,
    refused_until: BTreeMap<TaskId, Instant>,
    first_seen: BTreeMap<TaskId, Instant>,
    renewed: Instant,
}

impl Drone {
    /// Works until the day is over and nothing is in hand.
    pub async fn run(self) {
        let mut onboard = Onboard {
            drone: self,
            client: None,
            in_hand: BTreeMap::new(),
            refused_until: BTreeMap::new(),
            first_seen: BTreeMap::new(),
            renewed: Instant::now(),
        };
        while !onboard.drone.is_over.load(Ordering::Relaxed) {
            onboard.finish_work();
            let did_something = onboard.round().await.unwrap_or_else(|Disconnected| {
                onboard.client = None;
                false
            });
            if !did_something {
                sleep(IDLE_PAUSE).await;
            }
        }
    }
}

impl Onboard {
    /// Forgets a task, and leaves it alone for a moment: its row may lag behind what was just said.
    fn let_go(&mut self, task: TaskId) {
        self.in_hand.remove(&task);
        self.refused_until.insert(task, Instant::now() + REFUSED_PAUSE);
    }

    /// Work that has ended by itself or must end because the lease does; needs no agent.
    fn finish_work(&mut self) {
        let now = Instant::now();
        let mut stopped = Vec::new();
        for (task, held) in &mut self.in_hand {
            let Phase::AtWork(until) = held.phase else { continue };
            if now >= until.min(held.lease_end) {
                self.drone.journal.record(Event::RunEnded {
                    task: task.to_hex(),
                    drone: self.drone.label.clone(),
                });
                if until <= held.lease_end {
                    held.phase = Phase::Done;
                } else {
                    stopped.push(*task);
                }
            }
        }
        for task in stopped {
            // Not done in time: nothing to report. Whoever holds it next does it.
            self.let_go(task);
        }
    }

    async fn call(&mut self, request: &Request) -> Result<Result<Reply, ErrorCode>, Disconnected> {
        if self.client.is_none() {
            self.client = Some(
                LocalClient::connect(&self.drone.socket)
                    .await
                    .map_err(|_| Disconnected)?,
            );
            // The agent may have been restarted: only a new renewal brings leases back.
            self.renewed = Instant::now().checked_sub(RENEW_EVERY).unwrap_or(self.renewed);
        }
        let client = self.client.as_mut().ok_or(Disconnected)?;
        match client.call(request, CALL_DEADLINE).await {
            Ok(answer) => Ok(answer.map_err(|error| error.code)),
            Err(_) => Err(Disconnected),
        }
    }

    /// One look at the queue and everything that follows from it. Returns whether something was done.
    async fn round(&mut self) -> Result<bool, Disconnected> {
        if !self.in_hand.is_empty() && self.renewed.elapsed() >= RENEW_EVERY {
            self.renewed = Instant::now();
            // A refused renewal shows in the rows: the lease runs down.
            let _ = self.call(&Request::Renew).await?;
        }
        let Some((rows, now_us)) = self.open_tasks().await? else {
            return Ok(false);
        };
        let by_id: BTreeMap<TaskId, &TaskRow> = rows.iter().filter_map(|row| Some((row.task_id()?, row))).collect();
        let mut did_something = false;
        for task in self.in_hand.keys().copied().collect::<Vec<_>>() {
            self.finish_work();
            did_something |= self.go_on(task, by_id.get(&task).copied(), now_us).await?;
        }
        self.take_up(&by_id);
        did_something |= self.claim_more(&by_id).await?;
        Ok(did_something)
    }

    /// Takes up claims that stand in the queue and are not in hand: their answers were lost.
    fn take_up(&mut self, rows: &BTreeMap<TaskId, &TaskRow>) {
        let now = Instant::now();
        for (task, row) in rows {
            let is_known = self.in_hand.contains_key(task) || self.refused_until.contains_key(task);
            if let Some(fence) = row.fence.filter(|_| row.is_mine && row.state.is_held() && !is_known) {
                self.in_hand
                    .insert(*task, InHand::claimed(fence.into(), now, work_of(row)));
            }
        }
    }

    /// Open tasks of this cluster, and the agent's clock.
    async fn open_tasks(&mut self) -> Result<Option<(Vec<TaskRow>, u64)>, Disconnected> {
        let states = TaskState::ALL
            .into_iter()
            .filter(|state| state.is_open())
            .collect::<Vec<_>>();
        let (mut rows, mut now_us, mut after) = (Vec::new(), 0, None);
        loop {
            let request = Request::Tasks {
                scope: None,
                states: states.clone(),
                after,
                limit: 256,
            };
            let Ok(reply) = self.call(&request).await? else {
                return Ok(None);
            };
            let page = reply.tasks.unwrap_or_default();
            // The first page's clock: the rows that follow were read later, so nothing lasts longer than it seems.
            if after.is_none() {
                now_us = reply.now_us.unwrap_or(0);
            }
            let last = page.last().and_then(TaskRow::task_id);
            let own = self.drone.cluster.as_str();
            rows.extend(page.into_iter().filter(|row| row.cluster.as_deref() == Some(own)));
            if reply.more != Some(true) || last <= after {
                return Ok(Some((rows, now_us)));
            }
            after = last;
        }
    }

    /// The next step with a task in hand.
    async fn go_on(&mut self, task: TaskId, row: Option<&TaskRow>, now_us: u64) -> Result<bool, Disconnected> {
        let Some(mut held) = self.in_hand.get(&task).copied() else {
            return Ok(false);
        };
        let is_mine = row.is_some_and(|row| row.is_mine && row.fence.map(Fence::from) == Some(held.fence));
        if let Some(left_us) = row
            .filter(|_| is_mine)
            .and_then(|row| row.may_run_until_us?.checked_sub(now_us))
        {
            held.lease_end = held.lease_end.max(Instant::now() + Duration::from_micros(left_us));
            self.in_hand.insert(task, held);
        }
        match held.phase {
            Phase::AtWork(_) => Ok(false),
            Phase::Done => self.report(task, held).await,
            Phase::Claimed if !is_mine => {
                // Somebody else's, ended, or not shown yet after the claim.
                if held.since.elapsed() > REFUSED_PAUSE {
                    self.let_go(task);
                }
                Ok(false)
            }
            Phase::Claimed if held.lease_end > Instant::now() + held.work => self.begin(task, held).await,
            Phase::Claimed if held.since.elapsed() > PATIENCE => {
                let request = Request::Release {
                    task,
                    fence: Some(held.fence),
                };
                if let Ok(reply) = self.call(&request).await? {
                    self.acknowledged("release", task, &reply);
                    self.let_go(task);
                }
                Ok(true)
            }
            Phase::Claimed => Ok(false),
        }
    }

    async fn begin(&mut self, task: TaskId, mut held: InHand) -> Result<bool, Disconnected> {
        let request = Request::Progress {
            task,
            fence: Some(held.fence),
            progress: Progress::Started,
        };
        match self.call(&request).await? {
            Ok(reply) => self.acknowledged("start", task, &reply),
            Err(ErrorCode::Rejected | ErrorCode::Denied | ErrorCode::Invalid | ErrorCode::NotFound) => {
                self.let_go(task);
                return Ok(true);
            }
            // Not written, or perhaps written: the lease holds either way, and the work says nothing new.
            Err(_) => return Ok(true),
        }
        // The answer took time: look at the lease again before the vehicle moves.
        let now = Instant::now();
        if held.lease_end > now + held.work {
            held.phase = Phase::AtWork(now + held.work);
            self.drone.journal.record(Event::RunBegan {
                task: task.to_hex(),
                drone: self.drone.label.clone(),
            });
            self.in_hand.insert(task, held);
        }
        Ok(true)
    }

    async fn report(&mut self, task: TaskId, held: InHand) -> Result<bool, Disconnected> {
        let request = Request::Complete {
            task,
            fence: Some(held.fence),
            reason: String::new(),
        };
        match self.call(&request).await? {
            Ok(reply) => {
                self.acknowledged("complete", task, &reply);
                self.let_go(task);
            }
            Err(
                ErrorCode::Rejected
                | ErrorCode::Denied
                | ErrorCode::Invalid
                | ErrorCode::NotFound
                | ErrorCode::Conflict,
            ) => {
                self.let_go(task);
            }
            // Asked again in a later round, with the same fence.
            Err(_) => return Ok(false),
        }
        Ok(true)
    }

    async fn claim_more(&mut self, rows: &BTreeMap<TaskId, &TaskRow>) -> Result<bool, Disconnected> {
        let now = Instant::now();
        self.first_seen.retain(|task, _| rows.contains_key(task));
        self.refused_until.retain(|_, until| *until > now);
        let wall_ms = clock::wall().0 / 1_000;
        let mut claimable: Vec<(&TaskId, &&TaskRow)> = rows
            .iter()
            .filter(|(task, row)| {
                let first_seen = *self.first_seen.entry(**task).or_insert(now);
                let (turn, of) = self.drone.turn;
                let falls_to_me = usize::from(task.0[31]) % of.max(1) == turn;
                matches!(row.state, TaskState::Assigned | TaskState::Queued)
                    && !self.in_hand.contains_key(task)
                    && !self.refused_until.contains_key(task)
                    && row.earliest_start_ms.is_none_or(|start| start <= wall_ms)
                    // While what it waits for is open, a claim would be refused.
                    && !row.after.iter().any(|id| TaskId::from_hex(id).is_some_and(|id| rows.contains_key(&id)))
                    && (falls_to_me || now.duration_since(first_seen) > OTHERS_FIRST)
            })
            .collect();
        claimable.sort_by_key(|(task, row)| (row.deadline_ms, **task));
        let mut did_something = false;
        for (task, row) in claimable {
            if self.in_hand.len() >= TASKS_IN_HAND_MAX {
                break;
            }
            did_something |= self.claim(*task, row).await?;
        }
        Ok(did_something)
    }

    async fn claim(&mut self, task: TaskId, row: &TaskRow) -> Result<bool, Disconnected> {
        match self.call(&Request::Claim { task }).await? {
            Ok(reply) => {
                self.acknowledged("claim", task, &reply);
                let Some(fence) = reply.fence else { return Ok(true) };
                self.in_hand
                    .insert(task, InHand::claimed(fence.into(), Instant::now(), work_of(row)));
                Ok(true)
            }
            Err(_) => {
                self.refused_until.insert(task, Instant::now() + REFUSED_PAUSE);
                Ok(false)
            }
        }
    }

    fn acknowledged(&self, verb: &str, task: TaskId, reply: &Reply) {
        self.drone.journal.record(Event::Acknowledged {
            verb: verb.to_owned(),
            task: task.to_hex(),
            by: self.drone.label.clone(),
            verdict: reply.verdict.clone().unwrap_or_else(|| "granted".into()),
            cluster: self.drone.cluster.clone(),
            index: reply.index.unwrap_or(0),
        });
    }
}

/// How long the work takes: the payload says it in milliseconds.
fn work_of(row: &TaskRow) -> Duration {
    let text = base64::decode(&row.payload_base64).and_then(|bytes| String::from_utf8(bytes).ok());
    let ms = text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis(ms).clamp(Duration::from_millis(20), WORK_MAX)
}
